"""The secrets of a cluster: where they come from, and which of them are none.

A file with one secret a line, readable by its owner only, or the environment variable CATERWAUL_SECRET; never an argument of a
command, which all users of a machine can read. The first secret is used, all are accepted. So a secret is changed
without losing anybody: add the new one on every node, then put it first on every node, then take the old one away.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from ...membership.errors import LocalError
from ...membership.secret import Secret
from .private_files import read_private, write_file

__all__ = ["SECRETS_MAX", "VARIABLE", "from_environment", "make_secret", "read_secrets", "write_secrets"]

VARIABLE = "CATERWAUL_SECRET"
SECRETS_MAX = 8  #: in one file: a rotation takes two; each is offered in every handshake
_SECRET_BYTES = 32
_DISTINCT_MIN = 8  # characters; less is a pattern, not a secret
#: Beginnings of what stands in examples, in lower case: whoever can read has these.
_EXAMPLES = (
    "change",
    "secret",
    "password",
    "passw0rd",
    "example",
    "your-",
    "your_",
    "caterwaul",
    "replace",
    "please",
    "insert",
    "todo",
    "0123456789",
    "abcdefgh",
)


def make_secret() -> str:
    """A new one: 256 random bits as 43 characters."""
    return secrets.token_urlsafe(_SECRET_BYTES)


def read_secrets(path: Path) -> list[Secret]:
    """The secrets of a file, the one to use first. Raises `LocalError` saying which line is none, and never what is in it."""
    lines = read_private(path, "the secret file").decode("utf-8", "replace").splitlines()
    found = [_checked(line, f"{path}, line {number}") for number, line in enumerate(map(str.strip, lines), 1) if line and not line.startswith("#")]
    if not found:
        raise LocalError(f"{path} has no secret in it; `caterwaul secret new {path}` makes one")
    if len(found) > SECRETS_MAX:
        raise LocalError(f"{path} has {len(found)} secrets; at most {SECRETS_MAX} are used, take the old ones away")
    return found


def read_lines(path: Path) -> list[str]:
    """The same as text, for whoever rewrites the file."""
    read_secrets(path)
    lines = map(str.strip, read_private(path, "the secret file").decode("utf-8", "replace").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def write_secrets(path: Path, lines: list[str], *, replace: bool) -> None:
    """Raises `LocalError`."""
    write_file(path, "".join(f"{line}\n" for line in lines).encode(), replace=replace)


def from_environment() -> list[Secret]:
    """Those of CATERWAUL_SECRET, separated by white space; none if it is not set. Raises `LocalError`."""
    return [_checked(text, f"the environment variable {VARIABLE}") for text in os.environ.get(VARIABLE, "").split()]


def _checked(text: str, where: str) -> Secret:
    lowered = text.lower()
    if lowered.startswith(_EXAMPLES) or len(set(text)) < _DISTINCT_MIN:
        raise LocalError(f"{where}: this is an example or a pattern, which anybody could guess; `caterwaul secret new` makes a good one")
    try:
        return Secret(text.encode())
    except LocalError as error:
        raise LocalError(f"{where}: {error}") from None
