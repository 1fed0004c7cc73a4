"""Who may change an item: threads of this process and other processes of this machine take turns.

One lock for each sixteenth of the keys: a file (`flock`) between processes, and a lock of this process before it, so that one thread at a time asks for the file.
Who wants several takes them in ascending order. A process that dies lets go by that; one that is stopped does not, so nobody waits longer than `timeout_s`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from fcntl import LOCK_EX, LOCK_NB, flock
from threading import Lock

__all__ = ["LOCKS", "FileLocks"]

LOCKS = ".locks"  # in the directory of a space
_STRIPES = 16
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.0005, 0.02


class FileLocks:
    """Of one `FileStore`. Any thread."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._mine = [Lock() for _ in range(_STRIPES)]

    @contextmanager
    def of(self, space: int, keys: Iterable[bytes]) -> Iterator[None]:
        """Nobody else changes these meanwhile. Raises `OSError`; `TimeoutError` among them."""
        deadline = time.monotonic() + self._timeout_s
        with ExitStack() as held:
            for stripe in sorted({key[0] % _STRIPES for key in keys}):
                held.enter_context(self._one(space, stripe, deadline))
            yield

    @contextmanager
    def _one(self, space: int, stripe: int, deadline: float) -> Iterator[None]:
        if not self._mine[stripe].acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise self._too_long()
        try:
            descriptor = os.open(f"{LOCKS}/{stripe:x}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=space)
            try:
                self._lock(descriptor, deadline)
                yield
            finally:
                os.close(descriptor)
        finally:
            self._mine[stripe].release()

    def _lock(self, descriptor: int, deadline: float) -> None:
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                return flock(descriptor, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                if time.monotonic() + wait_s > deadline:
                    raise self._too_long() from None
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _too_long(self) -> TimeoutError:
        return TimeoutError(None, f"others have been changing the same items for {self._timeout_s:g} s")
