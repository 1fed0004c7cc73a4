"""The sessions this member holds, and how they merge. The heart of replication; a core without I/O.

Whatever comes in (a delta, a whole record, a head, a touch) is *merged*, in any order, any number of times. What a merge cannot settle alone it reports:

- *wants*: keys whose record must be fetched from the sender (a gap, a session whose beginning we missed);
- *tells*: keys whose head and record the sender must get (it speaks of a session that has ended here);
- *spreads*: sessions that an expiry had ended without having seen all activity, or that became whole here with more than their sender had: everybody gets them.

Rules. An ended head drops the record. Nothing revives an invalidated session; an expired one lives again when activity
comes that its head does not cover. A partial record answers nothing until the whole arrived.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from .departed import Departed
from .entry import Activated, Audited, Changed, Created, Destroyed, Entry, Outcome, Passivated, is_whole
from .heads import EXPIRED, LIVE, Cover, Head, Ours, creator, live_head, revived, winner
from .held import Held
from .placement import PARTITIONS, partition_of
from .record import SCHEDULING, Clash, Record, Touches, clashes, merge_touches, touched

__all__ = ["Replica"]


class Replica(Held):
    """Guarded by the manager's lock. Keys are 16 bytes, times ms of our monotonic clock."""

    def __init__(self, me: bytes) -> None:
        super().__init__()
        self.me = me
        self.changed = bytearray(PARTITIONS)  #: 1 where versions or values have changed since somebody set it to 0 (`digests.py`)
        self.events: list[Activated | Audited | Changed | Created | Destroyed | Passivated | Clash] = []
        self.fresh: list[bytes] = []  #: keys whose end must be scheduled: new, ended, or with a new limit or principal
        self.written: set[bytes] = set()  #: keys of what has changed since somebody took them, who keeps it elsewhere too (`storing.py`)
        self.is_stored = False  #: there is somebody who does; else they go with the next sweep (`packing.py`)
        self.unverified: set[bytes] | None = (
            None  #: keys of copies that came from members, who may have less than a store; None: memory has all there is (`passivating.py`)
        )
        self.on_gone: Callable[[bytes, Entry], object] = lambda key, entry: None  #: called before a live session, or its record, leaves this member
        self.departed = Departed(me)
        self._ended: deque[bytes] = deque()  # keys of tombstones, the oldest first
        self.forgotten = 0  #: tombstones dropped before their time
        self.conflicts = self.repeats = self.gaps = self.dropped = self.revivals = 0

    # -- our own acts

    def commit(
        self, key: bytes, changes: dict[str, bytes | None], now_ms: int, created_ms: int, primary: bytes
    ) -> tuple[bytes, int, int, dict[bytes, int], bool]:
        """Apply a commit of ours. Returns (author, counter, previous, seen, created). The caller has made sure that the session is not ended.

        `primary`: who leads the session if this creates it.
        """
        me = self.me
        self.changed[key[0] << 4 | key[1] >> 4] = 1
        entry = self.get(key)
        if entry is None or entry.body is None:
            record = Record()
            counter, author = self.departed.use(key, record)
            record.write(counter, author, changes)
            entry = Entry(live_head(counter, me, primary), record, created_ms, (me, now_ms, now_ms))
            self._insert(key, entry, me)
            self.in_use.add(key)
            return author, counter, 0, {}, True
        body = entry.body
        record = body if type(body) is Record else self.record(key, entry)  # type: ignore[assignment]
        self.in_use.add(key)
        self.written.add(key)
        applied = record.applied
        counter, author = self.departed.use(key, record)
        previous = applied.get(author, 0)
        alone = len(applied) == (1 if previous else 0)
        seen = {} if alone else {origin: last for origin, last in applied.items() if origin != author}
        record.write(counter, author, changes)
        entry.touches = touched(entry.touches, me, now_ms, now_ms)
        entry.sent_ms = now_ms
        if not SCHEDULING.isdisjoint(changes):
            self.fresh.append(key)
        return author, counter, previous, seen, False

    def take_over(self, key: bytes, entry: Entry) -> Head:
        """We become its primary."""
        self.changed[partition_of(key)] = 1
        entry.head = live_head(entry.head.counter + 1 if entry.head is not None else 1, self.me, self.me)
        return entry.head

    def end(self, key: bytes, state: int, now_ms: int, went: bytes = b"") -> Head | None:
        """End a live session: its head becomes a tombstone, its record goes. None if it is not live here. `went`: the key that it goes on under, of an id whose grace is over."""
        entry = self.get(key)
        if entry is None or (entry.head is not None and entry.head.state != LIVE):
            return None
        head = self.end_of(key, entry, state, now_ms, went)
        self._end(key, entry, head)
        return head

    def end_of(self, key: bytes, entry: Entry, state: int, now_ms: int, went: bytes = b"") -> Head:
        """The head that would end it now, see `end`."""
        record = self.record(key, entry)
        cover = None
        if state == EXPIRED:
            touches = entry.touches
            cover = Cover(dict(record.applied) if record else {}, {touches[i]: touches[i + 1] for i in range(0, len(touches), 3)})
        counter = (entry.head.counter if entry.head is not None else 0) + 1
        primary = entry.head.primary if entry.head is not None else self.me
        return Head(state, counter, self.me, primary, (went,) if went else (), cover, now_ms)

    # -- merging

    def merge_deltas(self, origin: bytes, deltas: list[list[Any]], ours: Ours, outcome: Outcome) -> None:
        """Commits of one origin, checked by `check_deltas`, in its order."""
        partitions, in_use, changed, written = self.partitions, self.in_use, self.changed, self.written
        for delta in deltas:
            key = delta[0]
            number = key[0] << 4 | key[1] >> 4
            changed[number] = 1
            entry = partitions[number].get(key)
            accessed = delta[5]
            if entry is None:
                entry = self._begin(key, origin, delta, ours, outcome)
            elif entry.head is not None and entry.head.state:
                self._late(key, entry.head, origin, delta[1], outcome)
                continue
            elif len(delta) > 6:
                self._meet_creation(entry, live_head(delta[1], origin, delta[7] if len(delta) > 7 else origin))
            record = entry.body
            if type(record) is not Record:
                if record is None:
                    record = entry.body = Record()
                    record.partial = len(delta) < 7
                    self.in_use.add(key)
                    if record.partial:
                        outcome.wants.append(key)
                    else:
                        entry.created_ms = ours(delta[6])
                else:
                    record = self.record(key, entry)
                    assert record is not None
            in_use.add(key)
            written.add(key)
            ordered, clashed = record.merge_delta(delta[1], origin, delta[2], delta[3], delta[4], key)
            entry.touches = touched(entry.touches, origin, accessed, ours(accessed))
            if not entry.weight:
                self.weigh(entry)
            if clashed:
                self._clashed(clashed)
            if not SCHEDULING.isdisjoint(delta[4]):
                self.fresh.append(key)
            if not ordered:
                self.gaps += 1
                outcome.wants.append(key)
            elif delta[3] and not record.has_seen(delta[3]):
                outcome.wants.append(key)  # its author had seen commits that never reached us (their author may be gone)

    def _clashed(self, some: Sequence[Clash]) -> None:
        self.conflicts += len(some)
        self.events += some

    def _begin(self, key: bytes, origin: bytes, delta: list[Any], ours: Ours, outcome: Outcome) -> Entry:
        """The first we hear of a session: created just now, or one whose beginning we missed."""
        accessed = delta[5]
        record = Record()
        created = accessed
        head = None
        if len(delta) > 6:
            created = delta[6]
            head = live_head(delta[1], origin, delta[7] if len(delta) > 7 else origin)  # a creation implies its head
        else:
            record.partial = True
            outcome.wants.append(key)
        entry = Entry(head, record, ours(created), (origin, accessed, ours(accessed)))
        self._insert(key, entry, origin if head is not None else None)
        return entry

    def _meet_creation(self, entry: Entry, head: Head) -> None:
        """Told again, or two members have created what goes by a name that both know (`maps.py`): one head stands everywhere."""
        if entry.head is None or entry.head.state == LIVE:
            entry.head = head if entry.head is None else winner(entry.head, head)

    def _late(self, key: bytes, head: Head, origin: bytes, counter: int, outcome: Outcome) -> None:
        """A commit to a session that has ended here."""
        if head.cover is not None and counter <= head.cover.applied.get(origin, 0):
            self.repeats += 1
            return
        self.dropped += 1
        outcome.tells.append(key)  # if it was an expiry, the author revives it: it has the record

    def merge_head(self, key: bytes, head: Head, outcome: Outcome) -> None:
        self.changed[partition_of(key)] = 1
        entry = self.get(key)
        if entry is None:
            self._insert(key, Entry(head, None, head.ended_ms, ()), creator(head))
            self._doubt(key)
            if head.state == LIVE:
                outcome.wants.append(key)
            return
        mine = entry.head
        if mine is None:
            if head.state == LIVE:
                entry.head = head
                return
            mine = live_head(1, head.origin, head.primary)
        if (mine.state == LIVE) == (head.state == LIVE) or mine.final or head.final:
            won = winner(mine, head)
            if won is mine:
                return
            if won.state == LIVE or mine.state != LIVE:
                entry.head = won
                self.written.add(key)
            else:
                self._end(key, entry, won)
        elif mine.state == LIVE:
            self._meet_expiry(key, entry, mine, head, outcome)
        else:
            outcome.wants.append(key)  # live there, expired here: the record decides

    def _meet_expiry(self, key: bytes, entry: Entry, mine: Head, head: Head, outcome: Outcome) -> None:
        record = self.record(key, entry)
        assert head.cover is not None
        # Who has heard of uses and has only the head cannot revive it: those with the record do. Two who have nothing would contradict each other for ever.
        if record is None or head.cover.covers(record.applied, entry.touches):
            self._end(key, entry, head)
        else:
            self.revivals += 1
            outcome.spreads.append(key)
            if head.version > mine.version:
                entry.head = revived(head)

    def merge_record(
        self, key: bytes, head: Head | None, created_ms: int, touches: Touches, body: bytes | None, incoming: Record | None, outcome: Outcome
    ) -> None:
        """A whole session as another member holds it; `incoming` is the record of `body`."""
        if head is not None and head.state:
            body = incoming = None  # what has ended has no contents
        self.changed[partition_of(key)] = 1
        entry = self.get(key)
        if entry is not None and entry.head is not None and entry.head.state and (head is None or head.state == LIVE):
            mine = entry.head
            if mine.cover is None or incoming is None or mine.cover.covers(incoming.applied, touches):
                outcome.tells.append(key)
                return
            self.revivals += 1
            self.tombstones -= 1
            self.on_gone(key, entry)
            self._remove(key)
            entry = None
            if head is None or mine.version > head.version:
                head = revived(mine)
            outcome.spreads.append(key)  # others may have ended it as we had, and the sender speaks to us only
            spent = mine.cover.applied.get(self.me, 0)
            if spent > incoming.applied.get(self.me, 0):  # the expiry took commits of ours that its author had not: no version is used twice
                incoming.applied[self.me] = spent
                body = incoming.pack()
        if entry is None:
            self._insert(key, Entry(head, body, created_ms, touches), creator(head))
            self._doubt(key)
            return
        self.written.add(key)
        if touches:
            entry.touches = merge_touches(entry.touches, touches)
        if incoming is not None and (entry.head is None or entry.head.state == LIVE):
            entry.created_ms = min(entry.created_ms, created_ms) if entry.body is not None else created_ms
            if entry.body is None:
                entry.body = body
                self.weigh(entry)
            else:
                record = self.record(key, entry)
                assert record is not None
                self._clashed(() if record.partial else clashes(record, incoming, key))
                if record.merge(incoming):
                    outcome.grown.append(key)
                if record.partial:
                    record.partial = False
                    if record.pack() != body:  # while it was partial nobody compared with it: what we had heard may be known to nobody else
                        outcome.spreads.append(key)
            if entry.principal is not None or not SCHEDULING.isdisjoint(incoming.registers):
                self.fresh.append(key)
        if head is not None:
            self.merge_head(key, head, outcome)

    def touch(self, key: bytes, origin: bytes, counter: int, ms: int, outcome: Outcome) -> None:
        entry = self.get(key)
        if entry is None:
            outcome.wants.append(key)
        elif entry.head is not None and entry.head.state:
            if entry.head.cover is not None and counter > entry.head.cover.touches.get(origin, -1):
                outcome.tells.append(key)
        else:
            entry.touches = touched(entry.touches, origin, counter, ms)
            self.written.add(key)

    # -- keeping house

    def drop(self, key: bytes, confirmed: Sequence[bytes] = ()) -> None:
        """Placement does not want it here any more, and others have it: those who have `confirmed` that."""
        entry = self._remove(key)
        self.verified(key)
        self._parted(key, entry, confirmed)
        if entry is not None:
            if entry.head is None or entry.head.state == LIVE:
                self.live -= 1
            else:
                self.tombstones -= 1

    def strip(self, key: bytes, confirmed: Sequence[bytes] = ()) -> None:
        """The same of the record; keep the head."""
        entry = self.get(key)
        self._parted(key, entry, confirmed)
        if entry is not None:
            entry.body, entry.touches = None, ()
            self.weigh(entry)

    def _parted(self, key: bytes, entry: Entry | None, confirmed: Sequence[bytes]) -> None:
        self.departed.spend()
        self.changed[partition_of(key)] = 1
        if entry is None:
            return
        self.on_gone(key, entry)
        if entry.body is not None and is_whole(entry):
            record = entry.body if type(entry.body) is Record else Record.unpack(entry.body)  # type: ignore[arg-type]
            self.departed.parted(key, record.applied, confirmed)

    def passivate(self, key: bytes) -> None:
        """A live session goes; a store has it as it is here, with all that has to be known of its versions."""
        entry = self.get(key)
        assert entry is not None
        self.on_gone(key, entry)
        self._remove(key)
        self.verified(key)
        self.departed.forget(key)
        self.changed[partition_of(key)] = 1
        self.live -= 1

    def forget(self, key: bytes) -> None:
        """Drop a tombstone whose retention is over."""
        entry = self.get(key)
        if entry is not None and entry.head is not None and entry.head.state:
            self._remove(key)
            self.verified(key)
            self.changed[partition_of(key)] = 1
            self.tombstones -= 1

    def forget_over(self, most: int) -> None:
        """Drop the oldest tombstones while there are more than `most`."""
        while self._ended:
            entry = self.get(self._ended[0])
            stands = entry is not None and entry.head is not None and entry.head.state != LIVE
            if stands and self.tombstones <= most:
                return
            key = self._ended.popleft()
            if stands:
                self.forget(key)
                self.forgotten += 1

    def _doubt(self, key: bytes) -> None:
        """It came from a member, which may have less of it than the store."""
        if self.unverified is not None:
            self.unverified.add(key)

    def verified(self, key: bytes) -> None:
        """What a store had of it is here, or it is gone."""
        if self.unverified is not None:
            self.unverified.discard(key)

    def _insert(self, key: bytes, entry: Entry, by: bytes | None = None) -> None:
        self.partitions[key[0] << 4 | key[1] >> 4][key] = entry
        if entry.body is None or type(entry.body) is bytes or entry.body.registers:  # type: ignore[union-attr]
            self.weigh(entry)  # else with the commit that follows
        if entry.head is None or entry.head.state == LIVE:
            self.live += 1
            self.events.append(Created(key, by))
        else:
            self.tombstones += 1
            self._ended.append(key)
            self.departed.forget(key)
        self.fresh.append(key)
        self.written.add(key)

    def _end(self, key: bytes, entry: Entry, head: Head) -> None:
        self.changed[partition_of(key)] = 1
        self.departed.forget(key)
        self.verified(key)
        self.live -= 1
        self.tombstones += 1
        self._ended.append(key)
        self.events.append(Destroyed(key, Entry(entry.head, entry.body, entry.created_ms, entry.touches), head))
        self.fresh.append(key)
        self.written.add(key)
        entry.head, entry.body, entry.touches = head, None, ()
        self.weigh(entry)
