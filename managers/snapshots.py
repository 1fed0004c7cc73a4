"""Sessions on their way into a file and back: what a member gives of those it answers for, and what it makes of those it is given.

Each session is given by one member, the first of its holders, so all pages of all members hold each once. Giving one back is `restoring.py`'s.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..membership.channel import Channel
from .core import SessionCore
from .entry import Entry, is_whole
from .heads import LIVE
from .kept import Kept, KeptEnd, read_item
from .lock import PoliteLock
from .placement import partition_of
from .receipts import Receipt
from .record import Record
from .restoring import ENDED, MERGED, OVER, RESTORED, Restoring

__all__ = ["Page", "Restored", "Snapshots"]

_PAGE_SESSIONS = 500
_PAGE_BYTES = 256 * 1024
_LOOKS_AT_ONCE = 5000  # entries: some milliseconds under the lock


class Page(NamedTuple):
    """Packed kept sessions. `after`: the key to go on after, empty: that was all. `skipped`: sessions of which the whole is not here at the moment."""

    items: list[bytes]
    after: bytes
    skipped: int


class Restored(NamedTuple):
    """What has become of sessions, or ends of them, that were given back: numbers. `receipt`: final when all members that are to hold them, and can answer, do."""

    restored: int  #: were not there
    merged: int  #: live here
    ended: int  #: have ended here since
    over: int  #: nobody used them for too long
    receipt: Receipt


class Snapshots:
    """Any thread. `flush` takes the outbox, in the reactor's thread."""

    def __init__(self, core: SessionCore, channel: Channel, lock: PoliteLock, restoring: Restoring, flush: Callable[[], None]) -> None:
        self._core = core
        self._channel = channel
        self._lock = lock
        self._restoring = restoring
        self._flush = flush
        self.wall_s = time.time

    def page(self, after: bytes) -> Page:
        """Sessions that this member answers for, by key, after this one (empty: from the first)."""
        items: list[bytes] = []
        size = skipped = 0
        last = after
        with self._lock:
            now_ms = self._channel.now_ms()
            ahead_ms = int(self.wall_s() * 1000) - now_ms
            entries = self._core.replica.entries(partition_of(after) if after else 0)
            for looked, (key, entry) in enumerate(entry for entry in entries if entry[0] > after):
                if looked >= _LOOKS_AT_ONCE or size >= _PAGE_BYTES or len(items) >= _PAGE_SESSIONS:
                    return Page(items, last, skipped)
                last = key
                if not self._answers_for(key, entry, now_ms):
                    continue
                body = self._core.replica.body_of(entry) if is_whole(entry) else None
                if body is None:
                    skipped += 1
                    continue
                items.append(Kept(key, max(0, entry.created_ms + ahead_ms), max(0, entry.last_access_ms + ahead_ms), body).pack())
                size += len(body)
        return Page(items, b"", skipped)

    def _answers_for(self, key: bytes, entry: Entry, now_ms: int) -> bool:
        if entry.head is None or entry.head.state != LIVE or self._core.placement.holders(key, entry.primary)[:1] != (self._core.me,):
            return False
        return entry.body is None or not is_whole(entry) or not self._core.expiry.is_over(key, entry, now_ms)

    def homes(self, items: Iterable[bytes]) -> dict[bytes, list[bytes]]:
        """The member that each is to be given back to, as it knows most of it: one that holds it, or is to. Raises `RemoteError` if one is malformed."""
        homes: dict[bytes, list[bytes]] = {}
        with self._lock:
            placement = self._core.placement
            for item in items:
                key = read_item(item).key
                holders = placement.holders(key, b"")
                homes.setdefault(self._core.me if self._core.me in holders or not holders else holders[0], []).append(item)
        return homes

    def restore(self, items: Iterable[bytes], as_used: bool = False) -> Restored:
        """Give these back. `as_used`: as if each had just been used. Raises `RemoteError` if one is malformed; then none is."""
        read = [item if isinstance(item, KeptEnd) else (item, Record.unpack(item.body)) for item in map(read_item, items)]
        with self._lock:
            became = self._restoring.merge(read, int(self.wall_s() * 1000) - self._channel.now_ms(), as_used)
            receipt = self._restoring.tell(key for key, what in became.items() if what != OVER)
        self._channel.wake(self._flush)
        counts = Counter(became.values())
        return Restored(counts[RESTORED], counts[MERGED], counts[ENDED], counts[OVER], receipt)
