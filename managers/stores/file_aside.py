"""Files that are not items yet, or no more: what a save writes before it renames it, and what it puts back when that could not be made lasting.

They are in one directory of the space. Their names begin with a token of the `FileStore` they belong to, which has a file of that name locked (`flock`) for as long as it lives.
So a crash leaves files whose lock is free, wherever and whoever else is at work; the next who opens the space removes them. No age, no process number: both lie.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from itertools import count
from threading import Lock

from .private_directory import make_file

__all__ = ["ASIDE", "Aside"]

ASIDE = ".aside"  # in the directory of a space
_LOCK = "lock"


class Aside:
    """Of one `FileStore`. Any thread. All raise `OSError`."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._token = ""
        self._descriptor = -1
        self._numbers = count()

    def name(self, space: int) -> str:
        """A new path, in the directory of the space."""
        with self._lock:
            if not self._is_locked(space):  # none yet, or this is another directory by now
                self._drop()
                self._token, self._descriptor = _begin(space)
            return f"{ASIDE}/{self._token}.{os.getpid()}.{next(self._numbers)}"  # the number counts on in a fork, too

    def sweep(self, space: int) -> int:
        """Remove what crashes have left there, and say how many files."""
        names = _names(space)
        removed = 0
        for token in {name.partition(".")[0] for name in names}:
            lock = f"{ASIDE}/{token}.{_LOCK}"
            with suppress(FileNotFoundError):
                descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=space)
                try:
                    flock(descriptor, LOCK_EX | LOCK_NB)
                    mine = [name for name in _names(space) if name.startswith(f"{token}.") and not name.endswith(_LOCK)]
                    removed += _remove(space, mine)
                    os.unlink(lock, dir_fd=space)
                except BlockingIOError:  # somebody lives
                    pass
                finally:
                    os.close(descriptor)
                continue
            removed += _remove(space, [name for name in names if name.startswith(f"{token}.")])  # a lock is there before and after all others
        return removed

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _is_locked(self, space: int) -> bool:
        with suppress(FileNotFoundError):
            return self._descriptor != -1 and os.path.samestat(os.fstat(self._descriptor), os.stat(f"{ASIDE}/{self._token}.{_LOCK}", dir_fd=space))
        return False

    def _drop(self) -> None:
        if self._descriptor != -1:
            os.close(self._descriptor)
            self._descriptor = -1


def _begin(space: int) -> tuple[str, int]:
    while True:
        token = secrets.token_hex(8)
        path = f"{ASIDE}/{token}.{_LOCK}"
        descriptor = make_file(path, space)
        try:
            flock(descriptor, LOCK_EX | LOCK_NB)
            if os.fstat(descriptor).st_nlink:  # nobody has swept it away meanwhile
                return token, descriptor
        except BlockingIOError:  # somebody just does
            pass
        os.close(descriptor)


def _names(space: int) -> list[str]:
    directory = os.open(ASIDE, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=space)
    try:
        return os.listdir(directory)
    finally:
        os.close(directory)


def _remove(space: int, names: list[str]) -> int:
    for name in names:
        with suppress(FileNotFoundError):
            os.unlink(f"{ASIDE}/{name}", dir_fd=space)
    return len(names)
