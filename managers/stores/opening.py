"""Which store a URL names: `memory:`, `file:///var/lib/caterwaul`, `sqlite:///sessions.db`, `postgresql://`, `mysql://`, `redis://`, ...

The libraries of the kinds are imported where they are asked for only, so that nobody needs those of the others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from ...membership.errors import LocalError
from ...membership.secret import Secret
from .file import FileStore
from .memory import MemoryStore
from .redis_address import SCHEMES
from .sealed import SealedStore
from .store import Store

__all__ = ["has_password", "open_store", "without_password"]

_login = re.compile(r"(://[^/@:]*):.*@", re.DOTALL)
_argument = re.compile(r"([?&][a-z_]*pass[a-z_]*=)[^&#]*", re.IGNORECASE)
_Maker = Callable[[str, str, float], Store]  # of URL, space, timeout in s


def open_store(url: str, space: str, *, timeout_s: float = 2.0, secret: Secret | None = None, encrypt: bool = False, older: Sequence[Secret] = ()) -> Store:
    """The items of `space` in the store that `url` names; nothing is connected to before `Store.open`. Raises `LocalError` for a URL that names none.

    `timeout_s`: about how long a call may take. `secret`, `encrypt`, `older`: of `SealedStore`.
    """
    scheme, colon, _ = url.partition(":")
    if not colon:
        raise LocalError(f"store {url!r} is no URL; one of {', '.join(_MAKERS)} begins it")
    maker = _MAKERS.get(scheme)
    if maker is None:
        raise LocalError(f"store {without_password(url)}: unknown kind {scheme!r}; there are {', '.join(_MAKERS)}")
    return SealedStore(maker(url, space, timeout_s), space, secret, encrypt, older)


def without_password(url: str) -> str:
    """The same, to show. What is a password only by mistake (a slash that was not quoted) is none the less hidden."""
    return _argument.sub(r"\1***", _login.sub(r"\1:***@", url))


def has_password(url: str) -> bool:
    """Whether there is one in it, in front of the host or among the options."""
    return without_password(url) != url


def _memory(url: str, space: str, timeout_s: float) -> Store:
    return MemoryStore(url, space)


def _file(url: str, space: str, timeout_s: float) -> Store:
    parts = urlsplit(url)
    path = Path(os.fsdecode(unquote_to_bytes(parts.path)))
    if not url.startswith("file:///") or parts.query or parts.fragment or "\0" in str(path):
        raise LocalError(f"store {url!r} names no directory: file:///var/lib/caterwaul, for one (three slashes, and %23 for a # in a name)")
    return FileStore(path, space, timeout_s)


def _sql(url: str, space: str, timeout_s: float) -> Store:
    try:
        from .sql import SqlStore
    except ImportError as error:
        raise LocalError(f"store {without_password(url)}: {error}; pip install 'caterwaul[sql]'") from error
    return SqlStore(url, space, timeout_s)


def _redis(url: str, space: str, timeout_s: float) -> Store:
    try:
        from .redis import RedisStore
    except ImportError as error:
        raise LocalError(f"store {without_password(url)} needs redis-py: pip install 'caterwaul[redis]' ({error})") from error
    return RedisStore(url, space, timeout_s, without_password(url))


_SQL = ("sqlite", "postgresql", "postgresql+psycopg", "mysql", "mysql+pymysql", "mariadb", "mariadb+pymysql")
_MAKERS: dict[str, _Maker] = {"memory": _memory, "file": _file, **dict.fromkeys(_SQL, _sql), **dict.fromkeys(SCHEMES, _redis)}
