"""Records that nobody uses become one bytes object each: a third of the memory, at the price of unpacking the next time. What was used is weighed (`budget.py`).

A sweep begins every `pack_ms` and packs what was not used since the one before, some at a time, so that nobody waits long for the lock.
"""

from __future__ import annotations

from .record import Record
from .replica import Replica

__all__ = ["Packing"]

_AT_ONCE = 200  # records packed in one go: about 3 ms under the lock
_EVERY_MS = 20
_SOON_MS = 4  # while many wait: what the allocator once had it hardly gives back
_MANY = 5000


class Packing:
    """A part of the manager's core. Times are ms of our monotonic clock."""

    def __init__(self, replica: Replica, pack_ms: int, now_ms: int) -> None:
        self._replica = replica
        self._pack_ms = pack_ms
        self._sweep_at_ms = now_ms + pack_ms
        self._pack_at_ms: int | None = None
        self.cooling: set[bytes] = set()  #: keys to pack unless they are used again
        self._parts: list[bytes] = []

    def tick(self, now_ms: int) -> bool:
        """Whether a sweep began."""
        begins = now_ms >= self._sweep_at_ms
        if begins:
            self._sweep_at_ms = now_ms + self._pack_ms
            if not self.cooling:
                self.cooling, self._replica.in_use = self._replica.in_use, set()
            self._pack_at_ms = now_ms
            if not self._replica.is_stored:
                self._replica.written.clear()
        if self._pack_at_ms is not None and now_ms >= self._pack_at_ms:
            self._pack()
            left = len(self.cooling)
            self._pack_at_ms = now_ms + (_SOON_MS if left > _MANY else _EVERY_MS) if left else None
        return begins

    def _pack(self) -> None:
        for _ in range(min(_AT_ONCE, len(self.cooling))):
            key = self.cooling.pop()
            entry = self._replica.get(key)
            if entry is None or type(entry.body) is not Record:
                continue
            if key not in self._replica.in_use:
                if entry.body.partial:
                    self._parts.append(key)
                    self._replica.in_use.add(key)
                else:
                    entry.body = entry.body.pack()
            self._replica.weigh(entry)

    def take_parts(self) -> list[bytes]:
        """Keys of which only commits have come since the sweep before."""
        parts, self._parts = self._parts, []
        return parts

    @property
    def deadline_ms(self) -> int:
        return self._sweep_at_ms if self._pack_at_ms is None else min(self._sweep_at_ms, self._pack_at_ms)
