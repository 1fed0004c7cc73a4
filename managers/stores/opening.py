"""Which store a URL names: `memory:`, `file:///var/lib/caterwaul`, `sqlite:///sessions.db`, `postgresql://`, `mysql://`, `redis://`, ...

The libraries of the kinds are imported where they are asked for only, so that nobody needs those of the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ...membership.errors import LocalError
from .memory import MemoryStore
from .redis_address import SCHEMES
from .store import Store

__all__ = ["open_store", "without_password"]

_login = re.compile(r"(://[^/@:]*):.*@", re.DOTALL)
_argument = re.compile(r"(password=)[^&#]*", re.IGNORECASE)
_Maker = Callable[[str, str, float], Store]  # of URL, space, timeout in s


def open_store(url: str, space: str, *, timeout_s: float = 2.0) -> Store:
    """The items of `space` in the store that `url` names; nothing is connected to before `Store.open`. Raises `LocalError` for a URL that names none.

    `timeout_s`: about how long a call may take.
    """
    scheme, colon, _ = url.partition(":")
    if not colon:
        raise LocalError(f"store {url!r} is no URL; one of {', '.join(_MAKERS)} begins it")
    maker = _MAKERS.get(scheme)
    if maker is None:
        raise LocalError(f"store {without_password(url)}: unknown kind {scheme!r}; there are {', '.join(_MAKERS)}")
    return maker(url, space, timeout_s)


def without_password(url: str) -> str:
    """The same, to show. What is a password only by mistake (a slash that was not quoted) is none the less hidden."""
    return _argument.sub(r"\1***", _login.sub(r"\1:***@", url))


def _memory(url: str, space: str, timeout_s: float) -> Store:
    return MemoryStore(url, space)


def _redis(url: str, space: str, timeout_s: float) -> Store:
    try:
        from .redis import RedisStore
    except ImportError as error:
        raise LocalError(f"store {without_password(url)} needs redis-py: pip install 'caterwaul[redis]' ({error})") from error
    return RedisStore(url, space, timeout_s, without_password(url))


_MAKERS: dict[str, _Maker] = {"memory": _memory, **dict.fromkeys(SCHEMES, _redis)}
