"""Sessions that come back into memory, out of a snapshot or a store.

Giving one back is a merge like any other: a session that has ended here since stays ended, one that lives gets what it lacks, and one that is
not here is, and goes to those who are to hold it. A session whose time was over meanwhile is not brought back. Ends come back too, as what they are.

An expiry says what it knew of the session's use in the clocks of members that may be gone. What is kept says it in the wall's, so that is how the two are compared: the expiry
stands if the session would have been over by then as it is kept, too, and had no commit that the expiry did not know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from ..membership.channel import Channel
from .committing import Committing
from .core import SessionCore
from .entry import Activated, Created, Entry, Outcome
from .expiry import deadline_of
from .heads import LIVE, Head, live_head
from .kept import Kept, KeptEnd
from .receipts import DONE, Receipt
from .record import Record

__all__ = ["ENDED", "MERGED", "OVER", "RESTORED", "Restoring"]

#: What becomes of a session.
RESTORED, MERGED, ENDED, OVER = "restored", "merged", "ended", "over"
_ROUNDING_MS = 50  # of two clocks, twice; a use that would have made this difference makes none


class Restoring:
    """Under the manager's lock."""

    def __init__(self, core: SessionCore, channel: Channel, committing: Committing) -> None:
        self._core = core
        self._channel = channel
        self._committing = committing

    def merge(self, items: Iterable[tuple[Kept, Record] | KeptEnd], ahead_ms: int, as_used: bool = False, over_too: bool = False) -> dict[bytes, str]:
        """What has become of each, by key. `ahead_ms`: the wall's clock less ours. `as_used`: as if each had just been used. `over_too`: also those whose time
        is over, which end here soon."""
        items = list(items)
        now_ms = self._channel.now_ms()
        before = self._core.telling.before_records(item[0].key for item in items if not isinstance(item, KeptEnd))
        became: dict[bytes, str] = {}
        for item in items:
            if isinstance(item, KeptEnd):
                became[item.key] = self._end(item, ahead_ms, now_ms)
            else:
                kept, record = item
                created_ms = min(kept.created_ms - ahead_ms, now_ms)
                used_ms = now_ms if as_used else max(created_ms, min(kept.used_ms - ahead_ms, now_ms))
                became[kept.key] = self._merge(kept, record, created_ms, used_ms, now_ms, over_too)
        self._core.telling.after(before)
        self._core.settle_fresh(now_ms)
        return became

    def _merge(self, kept: Kept, record: Record, created_ms: int, used_ms: int, now_ms: int, over_too: bool) -> str:
        core, key = self._core, kept.key
        replica = core.replica
        entry = replica.get(key)
        touches = (core.me, max(0, used_ms), used_ms)
        if (
            entry is not None
            and entry.head is not None
            and entry.head.state != LIVE
            and self._stands(entry.head, Entry(None, None, created_ms, touches), record)
        ):
            return ENDED
        is_new = entry is None or entry.body is None
        if is_new and not over_too:
            deadline, _ = deadline_of(Entry(None, None, created_ms, touches), record, core.expiry.limits)
            if deadline is not None and now_ms >= deadline:
                return OVER
        head = live_head(1, core.me, core.placement.appoint(key)) if entry is None or entry.head is None else None
        told = len(replica.events)
        replica.merge_record(key, head, created_ms, touches, kept.body, record, Outcome())
        replica.events[told:] = [Activated(key) if type(event) is Created else event for event in replica.events[told:]]
        if replica.held(key) is None:
            return ENDED
        return RESTORED if is_new else MERGED

    def _stands(self, expiry: Head, session: Entry, record: Record) -> bool:
        """Whether this end is one, whatever is known of the session's use."""
        if expiry.cover is None:
            return True  # it was not by time
        deadline, _ = deadline_of(session, record, self._core.expiry.limits)
        return deadline is not None and deadline <= expiry.ended_ms + _ROUNDING_MS and expiry.cover.covers(record.applied, ())

    def _end(self, item: KeptEnd, ahead_ms: int, now_ms: int) -> str:
        if self._core.eternal:
            return OVER  # nothing ends here, whatever a store says
        ended_ms = min(item.head.ended_ms - ahead_ms, now_ms)
        if now_ms - ended_ms >= self._core.settings.retention_s * 1000:
            return OVER
        self._core.replica.merge_head(item.key, self._knowing(item.key, item.head._replace(ended_ms=ended_ms)), Outcome())
        return ENDED

    def _knowing(self, key: bytes, head: Head) -> Head:
        """The same, with what it knew of the session that is here in our clock."""
        entry = self._core.replica.held(key) if head.cover is not None else None
        record = self._core.replica.record(key, entry) if entry is not None else None
        if entry is None or record is None or head.cover is None or not self._stands(head, entry, record):
            return head
        touches = {entry.touches[i]: entry.touches[i + 1] for i in range(0, len(entry.touches), 3)}
        return head._replace(cover=head.cover._replace(touches=head.cover.touches | touches))

    def tell(self, keys: Iterable[bytes]) -> Receipt:
        """Everybody who is to hold these, or their heads, gets them. Final when all of them confirmed that can answer. The outbox has to be taken after that."""
        core, outbox = self._core, self._committing.outbox
        now_ms = self._channel.now_ms()
        told: list[tuple[bytes, bytes, Any]] = []
        for key in keys:
            entry = core.replica.get(key)
            if entry is not None and entry.head is not None:
                told.append((key, entry.primary, entry.head))
        records = Counter(uid for key, named, head in told if head.state == LIVE for group in core.placement.others(key, named) for uid in group)
        waiting = self._committing.confirming.by_messages(records) if records else None
        if waiting is not None:
            self._committing.confirming.await_(waiting)
        for key, named, head in told:
            groups = core.placement.others(key, named) if head.state == LIVE else ()
            outbox.put_state(groups, key, waiting.ear if waiting is not None else None)
            outbox.put_head(tuple(group for group in core.placement.heads(key, named) if group not in groups), key, head)
            core.moving.committed(key, named, now_ms)
        outbox.arm()
        return waiting if waiting is not None else DONE
