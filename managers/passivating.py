"""Sessions that leave memory because a store has them: passivation. A core without I/O.

A session that nobody has used for long, or, where there are too many, those used longest ago, are *passivated*: they go from the memory of all members, and from nothing else. Who
asks for one later gets it from the store, as after a restart. It is its primary that decides, only of what the store surely has as it is here, and of nothing that
is in use; it tells the others, and each drops what is the very same there. Who has something else, or has used it since, keeps it, and reconciling brings that back to all.

Over the limit a *sweep* goes through everything, a part at a time, and lets go of the oldest of each part, so many that nine tenths of the limit are left when it is through. Keys
are hashes, so that is the order of use, nearly: what was used longest ago goes first (Tomcat's PersistentManager: `maxActiveSessions`, `maxIdleSwap`, `minIdleSwap`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from heapq import nsmallest
from typing import Any

from ..membership.effects import Effect, Send
from .digests import digest
from .entry import Entry, Passivated, is_whole
from .heads import LIVE, Ours
from .messages import Speaker, read_stored
from .moving import Moving
from .placement import PARTITIONS, gather
from .replica import Replica
from .settings import ManagerSettings

__all__ = ["Passivating"]

_PARTS = 128  # of a sweep
_LEFT = 0.9  # of what is allowed, when a sweep is through
_AT_ONCE = 2000  # sessions in one go


class Passivating:
    """A part of the manager's core. `is_busy(key)`: a request has it open, or waits for it."""

    def __init__(self, me: bytes, speaker: Speaker, replica: Replica, moving: Moving, settings: ManagerSettings, is_busy: Callable[[bytes], bool]) -> None:
        self.me = me
        self._say = speaker
        self._replica = replica
        self._moving = moving
        self._is_busy = is_busy
        self.most = settings.max_active
        self.most_bytes = settings.max_active_bytes
        self._max_idle_ms = int(settings.max_idle_swap_s * 1000)
        self._min_idle_ms = int(settings.min_idle_swap_s * 1000)
        self._part = 0
        self.is_touched: Callable[[bytes], bool] = lambda key: False  #: it was used here, and nobody knows of it yet
        self.passivated = 0

    @property
    def is_wanted(self) -> bool:
        """Whether there is any limit."""
        return bool(self.most or self.most_bytes or self._max_idle_ms)

    @property
    def has_room(self) -> bool:
        """Whether sessions may be brought back that nobody has asked for."""
        return self._surplus(_LEFT) <= 0.0

    def _surplus(self, share: float) -> float:
        """Which part of the sessions here is too much, if so much of the limits may be used."""
        replica = self._replica
        over = 0.0
        if self.most and replica.live:
            over = 1.0 - share * self.most / replica.live
        if self.most_bytes and replica.bytes:
            over = max(over, 1.0 - share * self.most_bytes / replica.bytes)
        return over

    def sweep(self, now_ms: int, is_stored: Callable[[bytes, Entry], bool]) -> list[Effect]:
        """The next part of a sweep. `is_stored(key, entry)`: this member decides about it, and the store has all of it."""
        if not self._part and self._surplus(1.0) <= 0.0 and not self._max_idle_ms:
            return []
        size = PARTITIONS // _PARTS
        some = [item for partition in self._replica.partitions[self._part * size : (self._part + 1) * size] for item in partition.items()]
        self._part = (self._part + 1) % _PARTS
        left = _PARTS - self._part if self._part else 1
        number = min(_AT_ONCE, int(max(0.0, self._surplus(_LEFT)) * self._replica.live / left) + 1) if self._surplus(_LEFT) > 0.0 else 0
        oldest = nsmallest(2 * number, ((entry.last_access_ms, key, entry) for key, entry in some if entry.stored), key=lambda one: one[0])
        gone = [key for _, key, entry in oldest if self._may_go(key, entry, now_ms, self._min_idle_ms, is_stored)][:number]
        if self._max_idle_ms:
            there = set(gone)
            gone += [key for key, entry in some if key not in there and self._may_go(key, entry, now_ms, self._max_idle_ms, is_stored)][:_AT_ONCE]
        return self._passivate(gone)

    def _may_go(self, key: bytes, entry: Entry, now_ms: int, idle_ms: int, is_stored: Callable[[bytes, Entry], bool]) -> bool:
        if entry.head is None or entry.head.state != LIVE or not is_whole(entry) or not entry.stored:
            return False
        return now_ms - entry.last_access_ms >= idle_ms and not self._is_busy(key) and is_stored(key, entry)

    def _passivate(self, keys: Iterable[bytes]) -> list[Effect]:
        told: list[tuple[tuple[bytes, ...], tuple[bytes, bytes, bytes]]] = []
        placement = self._moving.placement
        for key in keys:
            entry = self._replica.get(key)
            assert entry is not None, "it was there a moment ago"
            item = (key, digest(entry.head, self._replica.body_of(entry)), digest(entry.head, None))
            told += ((group, item) for group in {*placement.others(key, entry.primary), *placement.heads(key, entry.primary)})
            self._drop(key, mine=True)
            self.passivated += 1
        return [Send(group, self._say.stored(items)) for group, items in gather(told)]

    def _drop(self, key: bytes, mine: bool) -> None:
        self._moving.watchers.changed((key,))
        self._replica.events.append(Passivated(key, mine))
        self._replica.passivate(key)

    def received(self, now_ms: int, peer: bytes, message: Sequence[Any], ours: Ours) -> list[Effect]:
        """A member says that the store has these, as they are: they go from here too. Raises `RemoteError`."""
        items = read_stored(message[2])
        if not self._replica.is_stored:
            return []  # we could not get it back
        for key, whole, head in items:
            entry = self._replica.get(key)
            if entry is None or entry.head is None or entry.head.state != LIVE or self._is_busy(key) or self.is_touched(key):
                continue
            if entry.body is None:
                if digest(entry.head, None) == head:
                    self._replica.passivate(key)
            elif is_whole(entry) and digest(entry.head, self._replica.body_of(entry)) == whole:
                self._drop(key, mine=False)
        return []
