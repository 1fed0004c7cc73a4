"""Commits of application threads on their way to the reactor.

A commit appends its delta and goes on; the first one arms a wake-up, and that takes everything that has gathered. So batches
grow with the load by themselves, and an idle commit leaves at once. Deltas are grouped while they come in, by the members
they go to, so that a batch fits one frame. Over the bound the deltas are dropped and the flush sends the sessions' current
*states* instead. Guarded by the manager's lock.
"""

from __future__ import annotations

from ..membership.channel import DATA, Message, Waiter
from .changes import encode_batch
from .heads import Head
from .placement import Groups, Uids

__all__ = ["ManagerOutbox", "Taken"]

_BATCH_BYTES = 15 * 1024  # with its frame's header still one piece of 16 KiB
_BACKLOG_MAX_BYTES = 8 * 1024 * 1024


class _Batch:
    """Deltas for one group that fit one message."""

    __slots__ = ("deltas", "keys", "size", "waiters")

    def __init__(self) -> None:
        self.deltas: list[bytes] = []
        self.keys: list[bytes] = []
        self.waiters: list[Waiter] = []
        self.size = 0


class Taken:
    """What one flush sends, in this order, each by group. `states`: keys whose current state goes out, with those who wait for it."""

    __slots__ = ("deltas", "heads", "states")

    def __init__(self) -> None:
        self.heads: dict[Uids, list[tuple[bytes, Head, Waiter | None]]] = {}
        self.deltas: list[tuple[Uids, Message]] = []
        self.states: dict[Uids, dict[bytes, list[Waiter]]] = {}


class ManagerOutbox:
    def __init__(self, name: str, prefix: bytes) -> None:
        self._name = name
        self._prefix = prefix
        self._batches: dict[Uids, _Batch] = {}
        self._backlog = 0
        self._taken = Taken()
        self._armed = 0  # 1: will be taken when there is time; 2: at once

    def put(self, groups: Groups, key: bytes, delta: bytes, waiter: Waiter | None) -> None:
        size = len(delta)
        if self._backlog > _BACKLOG_MAX_BYTES:
            self.put_state(groups, key, waiter)
            return
        self._backlog += size
        for group in groups:
            batch = self._batches.get(group)
            if batch is None:
                batch = self._batches[group] = _Batch()
            elif batch.size + size > _BATCH_BYTES:
                self._seal(group, batch)
                batch = self._batches[group] = _Batch()
            batch.deltas.append(delta)
            batch.keys.append(key)
            if waiter is not None:
                batch.waiters.append(waiter)
            batch.size += size

    def put_head(self, groups: Groups, key: bytes, head: Head, waiter: Waiter | None = None) -> None:
        for group in groups:
            self._taken.heads.setdefault(group, []).append((key, head, waiter))

    def put_state(self, groups: Groups, key: bytes, waiter: Waiter | None = None) -> None:
        """The session's current state goes to these."""
        for group in groups:
            waiters = self._taken.states.setdefault(group, {}).setdefault(key, [])
            if waiter is not None:
                waiters.append(waiter)

    def arm(self, waits: bool = True) -> bool:
        """Whoever gets True has to see that `take` is called: at once if somebody `waits` for what is in it, else when there is time."""
        armed, wanted = self._armed, 2 if waits else 1
        self._armed = max(armed, wanted)
        return armed < wanted

    def take(self) -> Taken:
        for group, batch in self._batches.items():
            self._seal(group, batch)
        self._batches = {}
        taken, self._taken = self._taken, Taken()
        self._backlog = 0
        self._armed = 0
        return taken

    def _seal(self, group: Uids, batch: _Batch) -> None:
        self._taken.deltas.append((group, Message(self._name, DATA, encode_batch(self._prefix, batch.deltas), batch.keys, batch.waiters)))
