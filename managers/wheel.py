"""Which keys want a look when: a calendar of coarse buckets.

A key sits in the bucket of the time somebody gave for it. Nothing is moved when a session is used: when its bucket
comes up, its real deadline is looked at and it goes into a later one. So a touch costs nothing, and a key one set entry.
"""

from __future__ import annotations

from heapq import heappop, heappush

__all__ = ["Wheel"]


class Wheel:
    """Times in ms; `granularity_ms` is the width of a bucket. A key may be in several buckets; looking twice does no harm."""

    def __init__(self, granularity_ms: int) -> None:
        self._width = max(1, granularity_ms)
        self._buckets: dict[int, set[bytes]] = {}
        self._order: list[int] = []

    def add(self, key: bytes, at_ms: int) -> None:
        number = at_ms // self._width + 1  # its end: never before `at_ms`
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = set()
            heappush(self._order, number)
        bucket.add(key)

    def due(self, now_ms: int, limit: int) -> list[bytes]:
        """Take out up to `limit` keys whose time has come, sorted within a bucket."""
        taken: list[bytes] = []
        while self._order and self._order[0] * self._width <= now_ms and len(taken) < limit:
            bucket = self._buckets[self._order[0]]
            room = limit - len(taken)
            if len(bucket) <= room:
                taken.extend(sorted(bucket))
                del self._buckets[heappop(self._order)]
            else:
                some = sorted(bucket)[:room]
                bucket.difference_update(some)
                taken.extend(some)
        return taken

    @property
    def next_ms(self) -> int | None:
        return self._order[0] * self._width if self._order else None

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets.values())
