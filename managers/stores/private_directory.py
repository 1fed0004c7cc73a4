"""Directories that only this process's user can use, and what is done in them by name.

Everything goes through descriptors of directories that were looked at after they had been opened: a name that somebody exchanges between the look and the use leads
nowhere else (CVE-2022-23181 was that). No symbolic link is followed to a directory or a file of ours.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["NotPrivate", "make_directory", "make_file", "open_directory", "read_file", "sync_directory"]

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_NO_FILE = {errno.ELOOP, errno.ENXIO, errno.EACCES}  # a symbolic link, a socket, one that its owner may not read


class NotPrivate(Exception):
    """Others than this user could use it; the text says what to do."""


@contextmanager
def open_directory(path: Path | str, inside: int | None = None) -> Iterator[int]:
    """A descriptor of it for a while. Raises `OSError`, or `NotPrivate` if it is a symbolic link, another user's, or open to others. `inside`: a directory that the path begins in."""
    if stat.S_ISLNK(os.stat(path, dir_fd=inside, follow_symlinks=False).st_mode):
        raise NotPrivate(f"{_shown(path, inside)} is a symbolic link: name the directory itself")
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=inside)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            raise NotPrivate(
                f"{_shown(path, inside)} belongs to user {found.st_uid}, and this process is user {os.geteuid()}: chown -R it, if you know who wrote it"
            )
        if found.st_mode & _OTHERS:
            shown = _shown(path, inside)
            raise NotPrivate(f"{shown} has mode {stat.S_IMODE(found.st_mode):04o}, so others of this machine can use it: chmod -R go= {shown}")
        yield descriptor
    finally:
        os.close(descriptor)


def make_directory(path: Path | str, inside: int | None = None) -> None:
    """Make it for this user only, lastingly, if it is not there. Its parent has to be there. Raises `OSError`; then it is not there."""
    try:
        os.mkdir(path, 0o700, dir_fd=inside)
    except FileExistsError:
        return
    try:
        sync_directory(Path(path).parent, inside)
    except OSError:
        with suppress(OSError):
            os.rmdir(path, dir_fd=inside)
        raise


def sync_directory(path: Path | str, inside: int | None = None) -> None:
    """Make lasting which names are in it. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=inside)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_file(path: str, inside: int) -> int:
    """A descriptor to write a new file with. Raises `OSError`, also if it is there."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=inside)


@contextmanager
def read_file(path: str, inside: int) -> Iterator[int | None]:
    """A descriptor for a while; None for what is no file of this user's only. Raises `OSError`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=inside)
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        yield None
        return
    try:
        found = os.fstat(descriptor)
        is_ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & _OTHERS
        yield descriptor if is_ours else None
    finally:
        os.close(descriptor)


def _shown(path: Path | str, inside: int | None) -> str:
    return str(path) if inside is None else f"{os.readlink(f'/proc/self/fd/{inside}')}/{path}"
