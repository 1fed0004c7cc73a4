"""Sessions on their way into a file and back: what a member gives of those it answers for, and what it makes of those it is given.

A *kept* session is its record and two times, in the clock of the wall, as no monotonic clock outlives a machine: when it was made, and when it was used last. Each session is given
by one member, the first of its holders, so all pages of all members hold each once. Giving one back is a merge like any other: a session that
has ended here since stays ended, one that lives gets what it lacks, and one that is not here is, and goes to those who are to hold it. A session whose
time was over meanwhile is not brought back.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ..membership.channel import Channel
from ..membership.codec import decode, encode
from .changes import KEY_BYTES
from .committing import Committing
from .core import SessionCore
from .entry import Entry, Outcome, is_whole
from .expiry import deadline_of
from .heads import LIVE, live_head
from .lock import PoliteLock
from .messages import need
from .placement import partition_of
from .receipts import DONE, Receipt
from .record import Record

__all__ = ["Kept", "Page", "Restored", "Snapshots", "read_kept"]

_PAGE_SESSIONS = 500
_PAGE_BYTES = 256 * 1024
_LOOKS_AT_ONCE = 5000  # entries: some milliseconds under the lock


class Kept(NamedTuple):
    """A session outside of memory; times in ms since 1970. `body`: its packed record."""

    key: bytes
    created_ms: int
    used_ms: int
    body: bytes

    def pack(self) -> bytes:
        return encode(list(self))


def read_kept(data: bytes) -> tuple[Kept, Record]:
    """Raises `RemoteError` for what is none."""
    wire = decode(data)
    need(type(wire) is list and len(wire) >= 4, "kept session")
    key, created_ms, used_ms, body = wire[:4]
    need(
        type(key) is bytes and len(key) == KEY_BYTES and type(body) is bytes and all(type(ms) is int and 0 <= ms < 2**53 for ms in (created_ms, used_ms)),
        "kept session",
    )
    return Kept(key, created_ms, used_ms, body), Record.unpack(body)


class Page(NamedTuple):
    """Packed kept sessions. `after`: the key to go on after, empty: that was all. `skipped`: sessions of which the whole is not here at the moment."""

    items: list[bytes]
    after: bytes
    skipped: int


class Restored(NamedTuple):
    """What has become of sessions that were given back: numbers. `receipt`: final when all members that are to hold them, and can answer, do."""

    restored: int  #: were not there
    merged: int  #: live here
    ended: int  #: have ended here since
    over: int  #: nobody used them for too long
    receipt: Receipt


class Snapshots:
    """Any thread. `flush` takes the outbox, in the reactor's thread."""

    def __init__(self, core: SessionCore, channel: Channel, lock: PoliteLock, committing: Committing, flush: Callable[[], None]) -> None:
        self._core = core
        self._channel = channel
        self._lock = lock
        self._committing = committing
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
                key = read_kept(item)[0].key
                holders = placement.holders(key, b"")
                homes.setdefault(self._core.me if self._core.me in holders or not holders else holders[0], []).append(item)
        return homes

    def restore(self, items: Iterable[bytes], as_used: bool = False) -> Restored:
        """Give these back. `as_used`: as if each had just been used. Raises `RemoteError` if one is malformed; then none is."""
        read = [read_kept(item) for item in items]
        counts: Counter[str] = Counter()
        with self._lock:
            now_ms = self._channel.now_ms()
            ahead_ms = int(self.wall_s() * 1000) - now_ms
            before = self._core.telling.before_records(kept.key for kept, _ in read)
            keys = []
            for kept, record in read:
                created_ms = min(kept.created_ms - ahead_ms, now_ms)
                what = self._merge(kept, record, created_ms, now_ms if as_used else max(created_ms, min(kept.used_ms - ahead_ms, now_ms)))
                counts[what] += 1
                if what in ("restored", "merged"):
                    keys.append(kept.key)
            self._core.telling.after(before)
            self._core.settle_fresh(now_ms)
            receipt = self._tell(keys, now_ms)
        self._channel.wake(self._flush)
        return Restored(counts["restored"], counts["merged"], counts["ended"], counts["over"], receipt)

    def _merge(self, kept: Kept, record: Record, created_ms: int, used_ms: int) -> str:
        core, key = self._core, kept.key
        replica = core.replica
        entry = replica.get(key)
        if entry is not None and entry.head is not None and entry.head.state != LIVE:
            return "ended"
        touches = (core.me, max(0, used_ms), used_ms)
        is_new = entry is None or entry.body is None
        if is_new:
            deadline, _ = deadline_of(Entry(None, None, created_ms, touches), record, core.expiry.limits)
            if deadline is not None and self._channel.now_ms() >= deadline:
                return "over"
        head = live_head(1, core.me, core.placement.appoint(key)) if entry is None or entry.head is None else None
        replica.merge_record(key, head, created_ms, touches, kept.body, record, Outcome())
        return "restored" if is_new else "merged"

    def _tell(self, keys: list[bytes], now_ms: int) -> Receipt:
        """To all who are to hold these, or their heads."""
        core, outbox = self._core, self._committing.outbox
        told: list[tuple[bytes, bytes, Any]] = []
        for key in keys:
            entry = core.replica.get(key)
            if entry is not None and entry.head is not None:
                told.append((key, entry.primary, entry.head))
        records = Counter(uid for key, named, _ in told for group in core.placement.others(key, named) for uid in group)
        waiting = self._committing.receipt_of(records) if records else None
        for key, named, head in told:
            groups = core.placement.others(key, named)
            outbox.put_state(groups, key, waiting.ear if waiting is not None else None)
            outbox.put_head(tuple(group for group in core.placement.heads(key, named) if group not in groups), key, head)
            core.moving.committed(key, named, now_ms)
        outbox.arm()
        return waiting if waiting is not None else DONE
