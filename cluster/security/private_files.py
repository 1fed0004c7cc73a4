"""Files that hold keys: read only when nobody else can read them, written so that nobody ever could.

A file is written aside and renamed, so that a node that looks at it sees the old or the new and never half of one.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from ...membership.errors import LocalError

__all__ = ["Watched", "read_private", "write_file"]

_BYTES_MAX = 1024 * 1024  # no key and no list of revoked certificates is longer


def read_private(path: Path, what: str) -> bytes:
    """The file's bytes. `what` names it in errors. Raises `LocalError` if it is not there, too long, or open to others than its owner."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise LocalError(f"{what} {path} has mode {stat.S_IMODE(found.st_mode):04o}, so others of this machine can use it: chmod 600 {path}")
            if found.st_uid not in (os.geteuid(), 0):
                raise LocalError(f"{what} {path} belongs to user {found.st_uid}, and this process is user {os.geteuid()}: chown it")
            data = file.read(_BYTES_MAX + 1)
    except OSError as error:
        raise LocalError(f"{what} {path} cannot be read: {error.strerror}") from None
    if len(data) > _BYTES_MAX:
        raise LocalError(f"{what} {path} is longer than {_BYTES_MAX} bytes")
    return data


def write_file(path: Path, data: bytes, *, private: bool = True, replace: bool = True) -> None:
    """Write aside, then rename. `private`: mode 0600, else 0644. A file that is replaced keeps its owner. Raises `LocalError` if it cannot be
    written, or is there already and not to be replaced."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        before = path.stat() if path.exists() else None
        if before is not None and not replace:
            raise LocalError(f"{path} is there already, and is not overwritten")
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600 if private else 0o644)
        try:
            with os.fdopen(descriptor, "wb") as file:
                if before is not None and before.st_uid != os.geteuid():  # root writes for a node's user
                    os.fchown(descriptor, before.st_uid, before.st_gid)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.rename(path)
        except OSError:
            with suppress(OSError):
                aside.unlink()
            raise
        _sync(path.parent)
    except OSError as error:
        raise LocalError(f"{path} cannot be written: {error.strerror}") from None


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Watched:
    """Whether any of some files, or who may read it, has changed since the last look. A file that is not there is a state like any other."""

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._seen = self._look()

    def has_changed(self) -> bool:
        seen, self._seen = self._seen, self._look()
        return seen != self._seen

    def _look(self) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        for path in self._paths:
            try:
                status = path.stat()
            except OSError:
                found.append(())
            else:
                found.append((status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino))
        return found
