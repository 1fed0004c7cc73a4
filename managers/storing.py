"""What a store still lacks of the sessions here, and what it is known to have; a core without I/O.

A store is written *behind* the requests. Whatever changes a session here marks its key (`Replica.written`); every *period* marks are gathered, and
what they stand for is saved as it is by then: many changes of one session are one save. Of all its holders one saves a session, its primary; the others drop the mark, and with it
what they knew of the store's copy. So a member that becomes primary, by the death of another for instance, does not know what the store has, and a *sweep* over what it holds finds
that out: it saves as if nothing was there, and the store says where something is.

A save names what it replaces. If that is not what the store has, it comes back (`refused`), is loaded, merged here, and saved again unless nothing is missing there.

What a request has to wait for (write-through) is saved by the member that served it, whether it is the first or not: two that save the same session merge.

States of a key, of which it has one or none; only a mark may stand beside the others, and so may waiting beside under way, as a session goes on changing.

- *none*: the store has what is here (`Entry.stored` is its revision), or this member neither knows nor has to (`NOTHING`);
- *marked* (`Replica.written`): it has changed since marks were gathered;
- *waiting* (`waiting`, since when), and *urgent* too if a request waits for it;
- *under way* (`_flight`): in the batch that is being saved, of which there is one;
- *refused* (`_refused`): the store has something else, which is being loaded.

    marked     gather  waiting
    waiting    batch   under way; none if another member saves it, or it is not here any more; marked if not all of it has come
    under way  saved   none, and `NOTHING` is known of the store if it cannot be encoded; refused
    refused    met     none; waiting if the store lacks something of it
    under way, refused  failed  waiting

As long as it has one of these (`lacks`), the session is not passivated, and its end is not forgotten: what is stored would live again. So an outage of the store longer than
`retention_s` makes memory grow by the ends of that time, up to `tombstones_max`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from itertools import islice

from .drafts import Draft, Undrawn
from .entry import Entry, is_whole
from .heads import LIVE, Head
from .kept import Kept, KeptEnd
from .limits import Limits
from .placement import PARTITIONS, Placement
from .record import Record
from .replica import Replica
from .stores.store import NOTHING, Save

__all__ = ["Storing"]

_AT_ONCE = 200  # items taken in one go: half a millisecond under the lock
_BATCH_BYTES = 1024 * 1024
_LOOKED_AT_ONCE = 2000  # entries
_GATHERED_AT_ONCE = 5000  # marks


class Storing:
    """A part of one manager. Guarded by its lock; ms are of our monotonic clock, `ahead_ms` is the wall's less ours. `touch_ms`: how stale a time of use may be in the store."""

    def __init__(self, me: bytes, replica: Replica, limits: Limits, retention_ms: int, touch_ms: int, placement: Callable[[], Placement]) -> None:
        self.me = me
        self._replica = replica
        self._limits = limits
        self._retention_ms = retention_ms
        self._touch_ms = touch_ms
        self._placement = placement
        self.waiting: dict[bytes, int] = {}  #: keys to save -> since when, the oldest first
        self.urgent: set[bytes] = set()  #: those of them that somebody waits for
        self._flight: dict[bytes, int] = {}  # what is being saved -> since when it waited
        self._refused: dict[bytes, int] = {}  # what the store has otherwise, and is being loaded, likewise
        self._sweep = 0  # partitions below were looked at
        self._most = _AT_ONCE  # saves in a batch; fewer after one has failed, as it may have been for one of them
        self.saves = self.conflicts = 0

    # -- what is to be saved

    def gather(self, now_ms: int, idle_ms: int = 0) -> None:
        """Take marks, as many as a millisecond allows; `idle_ms`: of sessions that were not used for so long only."""
        written, waiting = self._replica.written, self.waiting
        if not idle_ms:
            for _ in range(min(len(written), _GATHERED_AT_ONCE)):
                waiting.setdefault(written.pop(), now_ms)
            return
        for key in [written.pop() for _ in range(min(len(written), _LOOKED_AT_ONCE))]:
            entry = self._replica.get(key)
            if entry is not None and entry.body is not None and now_ms - entry.last_access_ms < idle_ms:
                written.add(key)
            else:
                waiting.setdefault(key, now_ms)

    def hurry(self, key: bytes, now_ms: int) -> None:
        """Somebody waits for this."""
        self.waiting.setdefault(key, now_ms)
        self.urgent.add(key)

    def placed(self) -> None:
        """Another view: look through what is here for what this member is the primary of from now on."""
        self._sweep = 0

    @property
    def is_sweeping(self) -> bool:
        return self._sweep < PARTITIONS

    def sweep(self, now_ms: int) -> None:
        """Go on looking, a few milliseconds long."""
        looked = 0
        while self._sweep < PARTITIONS and looked < _LOOKED_AT_ONCE:
            partition = self._replica.partitions[self._sweep]
            for key, entry in partition.items():
                if not entry.stored and self._is_ours(key, entry):
                    self.waiting.setdefault(key, now_ms)
            looked += 1 + len(partition)
            self._sweep += 1

    def _is_ours(self, key: bytes, entry: Entry) -> bool:
        return self._placement().primary(key, entry.primary) in (self.me, b"")

    def is_settled(self, key: bytes, revision: bytes) -> bool:
        """Whether this is what the store is known to have of it still, and nothing is being saved: what was loaded meanwhile is not older than that."""
        entry = self._replica.get(key)
        return key not in self._flight and key not in self._refused and (entry.stored if entry is not None else NOTHING) == revision

    def lacks(self, key: bytes) -> bool:
        """Whether something of this is to be saved, or to be dropped if it is somebody else's to save."""
        return key in self.waiting or key in self._flight or key in self._refused or key in self._replica.written

    def has(self, key: bytes) -> bool:
        """Whether the store has this as it is here, as far as this member knows."""
        entry = self._replica.get(key)
        return entry is not None and bool(entry.stored) and not self.lacks(key)

    def has_all(self, key: bytes, entry: Entry) -> bool:
        """Whether the store has this session as it is here, and this member is the one to decide about it."""
        return bool(entry.stored) and not self.lacks(key) and self._is_ours(key, entry)

    # -- saving

    def batch(self, now_ms: int, ahead_ms: int) -> list[Draft | Undrawn | Save]:
        """The next to be saved, those first that somebody waits for. Until it was `saved` or has `failed` there is no other."""
        drafts: list[Draft | Undrawn | Save] = []
        size = 0
        for key in [*islice(self.urgent, _LOOKED_AT_ONCE), *islice(self.waiting, _LOOKED_AT_ONCE)]:
            if len(drafts) >= self._most or size >= _BATCH_BYTES:
                break
            since = self.waiting.pop(key, None)
            try:
                draft: Draft | Undrawn | Save | None = self._draft(key, now_ms, ahead_ms) if since is not None else None
            except Exception as error:
                draft = Undrawn(key, error)
            self.urgent.discard(key)
            if draft is not None and since is not None:
                drafts.append(draft)
                self._flight[key] = since
                size += len(draft.data) if isinstance(draft, Save) else draft.size
        return drafts

    def _draft(self, key: bytes, now_ms: int, ahead_ms: int) -> Draft | Save | None:
        """What is to be saved of it by this member, if anything is."""
        entry = self._replica.get(key)
        if entry is None:
            return None  # it is somebody else's by now, or its tombstone's time is over
        if not is_whole(entry):
            if entry.body is not None:
                self._replica.written.add(key)  # once all of it has come
            return None
        if key not in self.urgent and not self._is_ours(key, entry):
            entry.stored = NOTHING  # from now on somebody else changes what the store has
            return None
        if entry.head is not None and entry.head.state != LIVE:
            return self.ending(key, entry.head, entry.stored, ahead_ms)
        body = entry.body.copy() if isinstance(entry.body, Record) else entry.body
        assert body is not None, "it is whole"
        times = Entry(None, None, entry.created_ms, entry.touches)
        return Draft(key, times, body, self._limits, now_ms, ahead_ms, 2 * self._touch_ms, entry.stored)

    def ending(self, key: bytes, head: Head, replaces: bytes, ahead_ms: int) -> Save:
        """That the session has ended."""
        end = KeptEnd(key, head._replace(ended_ms=max(0, head.ended_ms + ahead_ms)))
        return Save(key, end.pack(), end.head.ended_ms + self._retention_ms, replaces)

    def saved(self, batch: Iterable[Draft | Undrawn | Save], revisions: Mapping[bytes, bytes], broken: Container[bytes] = ()) -> list[bytes]:
        """What became of a batch. Returns those of which the store has something else: they are under way until it is loaded and `met`, or has `failed`.

        `broken`: what could not be encoded. To try again would not help before it changes.
        """
        refused: list[bytes] = []
        for save in batch:
            revision = revisions.get(save.key, NOTHING)
            since = self._flight.pop(save.key)
            if not revision and save.key not in broken:
                self._refused[save.key] = since
                refused.append(save.key)
                continue
            entry = self._replica.get(save.key)
            if entry is not None:
                entry.stored = revision
        self._most = min(_AT_ONCE, 2 * self._most)
        self.saves += len(revisions)
        self.conflicts += len(refused)
        return refused

    def failed(self, keys: Iterable[bytes]) -> None:
        """Nobody knows what the store has of these: what was under way is saved again."""
        again: dict[bytes, int] = {}
        for key in keys:
            since = self._flight.pop(key, None) or self._refused.pop(key, None)
            if since is not None:
                again[key] = since
            entry = self._replica.get(key)
            if entry is not None:
                entry.stored = NOTHING
        for key, since in again.items():
            self.waiting[key] = min(since, self.waiting.pop(key, since))  # at the end: one that no store takes is in nobody's way
        self._most = max(1, self._most // 2)

    # -- loading

    def met(self, key: bytes, item: Kept | KeptEnd | None, revision: bytes, ahead_ms: int, now_ms: int) -> None:
        """The store has this (None: nothing), and it is merged here. If something is missing there, it is saved."""
        since = self._refused.pop(key, None)
        entry = self._replica.get(key)
        if entry is None:
            return
        entry.stored = revision
        if item is None or self._lacks(item, entry, ahead_ms):
            self.waiting[key] = min(since or now_ms, self.waiting.get(key, now_ms))
        else:
            self.waiting.pop(key, None)
            self.urgent.discard(key)
            self._replica.written.discard(key)

    def _lacks(self, item: Kept | KeptEnd, entry: Entry, ahead_ms: int) -> bool:
        if entry.head is not None and entry.head.state != LIVE:
            return isinstance(item, Kept) or (item.head.version, item.head.state) != (entry.head.version, entry.head.state)
        if isinstance(item, KeptEnd):
            return True
        return item.body != self._replica.body_of(entry) or entry.last_access_ms + ahead_ms - item.used_ms > self._touch_ms

    @property
    def is_pressed(self) -> bool:
        """Whether there is more to save than is worth waiting for."""
        return bool(self.urgent) or len(self.waiting) >= _AT_ONCE

    def oldest_ms(self, now_ms: int) -> int:
        """How long the oldest change waits that is not in the store."""
        first = min((*self._flight.values(), *self._refused.values(), *self.waiting.values(), now_ms))
        return now_ms - first

    def __len__(self) -> int:
        """Sessions that the store lacks changes of, or that another member saves and are still marked here."""
        return len(self._replica.written.union(self.waiting, self._flight, self._refused))
