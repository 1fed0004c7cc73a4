"""Commits of application threads on their way to the reactor.

A commit appends its delta and goes on; the first one arms a wake-up, and that takes everything that has gathered. So batches
grow with the load by themselves, and an idle commit leaves at once. Deltas are grouped while they come in, so that a
batch fits one frame. Over the bound the deltas are dropped and their keys are dirty: the flush then sends the sessions'
current state. Guarded by the manager's lock.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..membership.channel import DATA, Message, Waiter
from .changes import encode_batch
from .heads import Head

__all__ = ["ManagerOutbox", "Taken"]

_BATCH_BYTES = 15 * 1024  # with its frame's header still one piece of 16 KiB
_BACKLOG_MAX_BYTES = 8 * 1024 * 1024


class Taken:
    """What one flush sends, in this order."""

    __slots__ = ("deltas", "dirty", "dirty_waiters", "heads", "heads_waiters")

    def __init__(self) -> None:
        self.heads: list[tuple[bytes, Head]] = []
        self.heads_waiters: list[Waiter] = []
        self.deltas: list[Message] = []
        self.dirty: dict[bytes, None] = {}
        self.dirty_waiters: list[Waiter] = []


class ManagerOutbox:
    def __init__(self, name: str, prefix: bytes) -> None:
        self._name = name
        self._prefix = prefix
        self._deltas: list[bytes] = []
        self._keys: list[bytes] = []
        self._waiters: list[Waiter] = []
        self._size = 0
        self._backlog = 0
        self._taken = Taken()
        self.armed = False

    def put(self, key: bytes, delta: bytes, waiter: Waiter | None) -> None:
        size = len(delta)
        if self._backlog > _BACKLOG_MAX_BYTES:
            self._taken.dirty[key] = None
            if waiter is not None:
                self._taken.dirty_waiters.append(waiter)
            return
        if self._size + size > _BATCH_BYTES and self._deltas:
            self._seal()
        self._deltas.append(delta)
        self._keys.append(key)
        if waiter is not None:
            self._waiters.append(waiter)
        self._size += size
        self._backlog += size

    def put_head(self, key: bytes, head: Head, waiter: Waiter | None = None) -> None:
        self._taken.heads.append((key, head))
        if waiter is not None:
            self._taken.heads_waiters.append(waiter)

    def put_state(self, key: bytes) -> None:
        """The session's current state goes to everybody."""
        self._taken.dirty[key] = None

    def arm(self) -> bool:
        """Whoever gets True has to see that `take` is called soon."""
        armed, self.armed = self.armed, True
        return not armed

    def take(self) -> Taken:
        if self._deltas:
            self._seal()
        taken, self._taken = self._taken, Taken()
        self._backlog = 0
        self.armed = False
        return taken

    def _seal(self) -> None:
        waiters: Sequence[Waiter] = self._waiters
        self._taken.deltas.append(Message(self._name, DATA, encode_batch(self._prefix, self._deltas), self._keys, waiters or ()))
        self._deltas, self._keys, self._waiters, self._size = [], [], [], 0
