"""Where sessions should be: copies in the wrong place, copies that may be out of date, and sessions whose primary is gone.

After a change of view, or when something about a session was merged, each member looks where its own copies should be:

- **A copy that placement does not want here** is stale at once (`near.py`) unless a holder watches over it, and leaves when all who should
  hold the session have what is in it (`parting.py`).
- **A copy that was in the wrong place when this member became a holder** is out of date, as nobody told this member of changes meanwhile:
  until a holder has given the session, or all have answered, it is not served and not given as the truth (*recovering*).
  Where all have answered and none knew, it is the truth until somebody comes who may know (*assumed*).
- **What was the truth until a calm change of view** (one member came, or one gave up its weight) is the truth for who takes it over.
- **A new holder that had nothing** is given the session by the first of those who were holders before (*newcomers*).
- **A session whose primary is gone**, or is about to leave, gets the best ranked of the surviving holders as its new one, by the
  placement of before; if that does not come about, the best ranked of now does it, as soon as it holds the record (*orphans*).

All keys are looked at after a change of view, some at a time; single keys whenever something about them was merged.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from typing import NamedTuple

from ..membership.effects import Send
from ..membership.view import ViewChanged
from .comparing import HEALED_MS
from .entry import Entry, is_whole
from .heads import EXPIRED, LIVE, Head
from .messages import HEAD_MARK, TRUTH_MARK, Speaker
from .near import NearCache, Watchers
from .parting import AT_ONCE, OURSELVES, Parting
from .placement import NOTHING, PARTITIONS, WHOLE, Placement, Uids, partition_of
from .replica import Replica

__all__ = ["Handover", "Tasks"]

_LOOKS_AT_ONCE = 500  # entries looked at in one go: a few milliseconds under the lock
_LOOK_AGAIN_MS = 5
_CHECK_AGAIN_MS = 1000
_RECOVER_MS = 250  # in which a copy in doubt may become the truth by itself
_RECENT_MS = 10_000  # after a change of view, who kept sessions before it is asked for them too
_ORPHAN_MS = 2000  # a session without a primary for this long: whoever ranks best now may have it


class Tasks(NamedTuple):
    """What a look at the copies has left to do."""

    sends: list[Send]
    heirs: list[bytes]  #: keys to take over
    recover: list[tuple[bytes, Uids]]  #: keys to ask these members for
    given: dict[bytes, list[bytes]]  #: by newcomer, keys to send


class Handover:
    """A part of the manager's core. `keep(key)`: somebody here uses the copy now. `absent`: any placement, until the view changes."""

    def __init__(
        self, me: bytes, speaker: Speaker, replica: Replica, near: NearCache, watchers: Watchers, absent: Placement, keep: Callable[[bytes], bool]
    ) -> None:
        self.me = me
        self._say = speaker
        self._replica = replica
        self._near = near
        self._watchers = watchers
        self.parting = Parting(me, speaker, replica, keep)
        self._before: Placement | None = None  # of before the change under review
        self._absent = absent
        self._recent_until_ms = self._healing_until_ms = 0
        self._newcomer = b""  # its coming was the last change of view, and its link is not known to have begun
        self._queue: dict[int, None] = {}  # partitions still to be looked at
        self._look_at_ms: int | None = None
        self.recovering: dict[bytes, None] = {}  #: keys of ours that may be out of date
        self._assumed: dict[bytes, None] = {}  # keys of ours that were, and of which nobody here had more
        self._orphans: dict[bytes, int] = {}  # keys without a present primary -> when that was first seen
        self._check_at_ms: int | None = None
        self._all_due_ms = 0

    def view_changed(self, now_ms: int, change: ViewChanged, before: Placement, now: Placement, absent: Placement, healing: bool) -> None:
        """`absent`: the placement as it would be without this member. `healing`: members came or went that had something to lose."""
        self._absent = absent
        self._recent_until_ms = now_ms + _RECENT_MS
        if healing:
            self._healing_until_ms = now_ms + HEALED_MS
        if not self._queue:
            self._before = before
        calm = None
        if not change.disappeared and len(change.appeared) == 1:
            calm = self._newcomer = change.appeared[0].uid
        elif not change.disappeared and not change.appeared and now.is_lite(self.me) and not before.is_lite(self.me):
            calm = OURSELVES
        self.review(now_ms, calm)

    def relinked(self, peer: bytes, now_ms: int) -> None:
        """The link to this member began anew. The first one of a newcomer is no loss."""
        newcomer, self._newcomer = self._newcomer, b""
        if newcomer != peer:
            self.review(now_ms)

    def clear(self) -> None:
        """Nothing has to move. What is in the near cache may still be out of date."""
        self.parting.clear()
        self.recovering.clear()
        self._assumed.clear()
        self._orphans.clear()
        self._queue.clear()
        self._look_at_ms = self._check_at_ms = None
        self._near.expire()

    def review(self, now_ms: int, calm: bytes | None = None) -> None:
        """The view has changed (`calm`: see `Parting.calm`), or a link began anew and what was on its way is lost: look at everything again.

        Near copies are stale then: what was written to one of them may not have come to everybody that is a holder now.
        """
        self.parting.changed(calm)
        self._near.expire()
        for key in self._assumed:
            if self._replica.held(key) is not None:
                self._doubt(key)
                self.recovering[key] = None
        self._assumed.clear()
        self._queue = {number: None for number in range(PARTITIONS) if self._replica.partitions[number]}
        self._look_at_ms = now_ms if self._queue else None

    def settle(self, key: bytes, placement: Placement, now_ms: int) -> bool:
        """Look at one key. True: its primary is gone and this member is to take over."""
        entry = self._replica.get(key)
        if entry is None:
            self._forget(key)
            return False
        truth = is_whole(entry) and key not in self._near
        if self._is_in_place(key, entry, placement):
            self.parting.stay(key)
        else:
            self.parting.part(key, truth)
            self._check_soon(now_ms)
        if key in self.recovering:
            self._check_later(now_ms)
        if entry.head is None or entry.head.state != LIVE or not placement.is_orphan(entry.head.primary):
            self._orphans.pop(key, None)
            return False
        return self._is_heir(key, entry, placement, now_ms)

    def _is_in_place(self, key: bytes, entry: Entry, placement: Placement) -> bool:
        depth = placement.depth(self.me, key, entry.primary)
        if entry.body is None:
            self._near.forget(key)
            if depth == WHOLE and entry.head is not None and entry.head.state == LIVE:
                self.recovering[key] = None  # only its head has come
            else:
                self.recovering.pop(key, None)
            return depth != NOTHING
        if depth == WHOLE:
            if key in self._near:
                self._near.changed((key,))
                self.recovering[key] = None
            elif not is_whole(entry):
                self.recovering[key] = None  # commits have come, and not its record
            return True
        self.recovering.pop(key, None)
        self._doubt(key)
        if self._watchers:
            self._watchers.changed((key,))
        return self._near.is_fresh(key)

    def _doubt(self, key: bytes) -> None:
        """Our copy is not the truth: it takes no part in comparing."""
        if key not in self._near:
            self._near.hold(key)
            self._replica.changed[partition_of(key)] = 1

    def recovered(self, key: bytes) -> bool:
        """A holder has given this session. Whether it was in doubt until now."""
        doubtful = self.recovering.pop(key, key) is None
        self._assumed.pop(key, None)
        if doubtful:
            self._trust(key)
        return doubtful

    def assumed(self, key: bytes) -> bool:
        """All who are here have answered, and none of them knows more: ours is the truth until others come. Whether it was in doubt until now."""
        doubtful = self.recovered(key)
        if doubtful:
            self._assumed[key] = None
        return doubtful

    def _trust(self, key: bytes) -> None:
        """Our copy is the truth."""
        self._near.forget(key)
        self._replica.changed[partition_of(key)] = 1

    def is_empty(self, key: bytes, placement: Placement) -> bool:
        """Only the head of this session is here, and whoever could have more on its own has gone: its primary, where that is more than who created it."""
        entry = self._replica.get(key)
        if entry is None or entry.body is not None or entry.head is None or entry.head.state != LIVE:
            return False
        return entry.primary == self.me or entry.primary not in placement.view or not placement.moves_primary

    def end_empty(self, key: bytes, now_ms: int) -> Head | None:
        """Nobody who should have this session has it. It ends as one that has expired without any activity, so a holder that comes back revives it."""
        head = self._replica.end(key, EXPIRED, now_ms)
        self._forget(key)
        return head

    def holders(self, key: bytes, named: bytes, placement: Placement) -> Uids:
        """Who holds the session, as far as it is known: by the placement of when its primary was last here."""
        if self._before is None or not placement.is_orphan(named):
            return placement.holders(key, named)
        return self._before.holders(key, named)

    def keepers_before(self, key: bytes, now_ms: int) -> Uids:
        """The session's keepers of before the last change of view, if that was lately: those of now may not have heard of it yet."""
        return self._before.keepers(partition_of(key)) if self._before is not None and now_ms < self._recent_until_ms else ()

    def is_healing(self, now_ms: int) -> bool:
        """Members came or went a moment ago that had something to lose, so holders may differ."""
        return now_ms < self._healing_until_ms

    def _is_heir(self, key: bytes, entry: Entry, placement: Placement, now_ms: int) -> bool:
        if not placement.leads(entry.primary):
            return False
        since = self._orphans.setdefault(key, now_ms)
        self._check_later(now_ms)
        if entry.body is None or not is_whole(entry):
            return False
        survivors = [uid for uid in self.holders(key, entry.primary, placement) if not placement.is_orphan(uid)]
        late = not survivors or now_ms - since >= _ORPHAN_MS
        return survivors[:1] == [self.me] or (late and placement.primary(key, entry.primary) == self.me)

    # -- in time

    def tick(self, now_ms: int, placement: Placement) -> Tasks:
        tasks = Tasks([], [], [], {})
        if self._look_at_ms is not None and now_ms >= self._look_at_ms:
            self._look(placement, now_ms, tasks)
        if self._check_at_ms is not None and now_ms >= self._check_at_ms:
            for key in self._near.trim():
                self.settle(key, placement, now_ms)
            if now_ms >= self._all_due_ms:
                self._all_due_ms = now_ms + _CHECK_AGAIN_MS
                tasks.heirs.extend(key for key in list(self._orphans) if self.settle(key, placement, now_ms))
                self.parting.all_due()
            sends, dropped = self.parting.check(placement)
            for key in dropped:
                self._forget(key)
            tasks.sends.extend(sends)
            tasks.recover.extend(self._recover(placement))
            self._check_at_ms = self._next_check_ms(now_ms)
        return tasks

    def _next_check_ms(self, now_ms: int) -> int | None:
        if self.parting.is_due:
            return now_ms + _LOOK_AGAIN_MS
        return now_ms + _CHECK_AGAIN_MS if self.parting.leaving or self._orphans or self.recovering else None

    def _look(self, placement: Placement, now_ms: int, tasks: Tasks) -> None:
        looked = 0
        while self._queue and looked < _LOOKS_AT_ONCE:
            number = next(iter(self._queue))
            del self._queue[number]
            partition = self._replica.partitions[number]
            looked += len(partition)
            for key in sorted(partition):
                if self.settle(key, placement, now_ms):
                    tasks.heirs.append(key)
                self.parting.bind(key)
                for uid in self._newcomers(key, partition[key], placement):
                    tasks.given.setdefault(uid, []).append(key)
        self._look_at_ms = now_ms + _LOOK_AGAIN_MS if self._queue else None

    def _newcomers(self, key: bytes, entry: Entry, placement: Placement) -> Iterable[bytes]:
        """Members that were here before, and have to hold now what they did not: the first of those who held it gives it to them."""
        before = self._before
        if before is None or key in self._near or not (is_whole(entry) or entry.body is None):
            return ()
        had = before.holders(key, entry.primary)
        if next((uid for uid in had if uid in placement.view), None) != self.me:
            return ()
        knew = {*had, *before.keepers(partition_of(key))}
        hold = placement.holders(key, entry.primary)
        needy = [uid for uid in hold if uid not in had] + [uid for uid in placement.keepers(partition_of(key)) if uid not in knew and uid not in hold]
        return [uid for uid in needy if uid in before.view and uid != self.me]

    def _check_soon(self, now_ms: int) -> None:
        if self._check_at_ms is None:
            self._check_at_ms = now_ms + _LOOK_AGAIN_MS

    def _check_later(self, now_ms: int) -> None:
        """What is recovering may come of itself until then; who is asked for the session asks at once."""
        if self._check_at_ms is None:
            self._check_at_ms = now_ms + _RECOVER_MS

    def _recover(self, placement: Placement) -> Iterable[tuple[bytes, Uids]]:
        for key in list(self.recovering)[:AT_ONCE]:
            entry = self._replica.get(key)
            named = entry.primary if entry is not None else b""
            had = self._before.holders(key, named) if self._before is not None else ()
            others = tuple(uid for uid in dict.fromkeys((*had, *placement.holders(key, named), named)) if uid in placement.view and uid != self.me)
            self.recovering.pop(key)
            self.recovering[key] = None  # the others first, the next time
            yield key, others

    # -- parting from copies, and taking what others part from

    def remaining(self, placement: Placement) -> tuple[int, int]:
        """See `Parting.remaining`; what has not been looked at yet counts as left."""
        left, stranded = self.parting.remaining(placement)
        return left + sum(len(self._replica.partitions[number]) for number in self._queue), stranded

    def _forget(self, key: bytes) -> None:
        self.parting.stay(key)
        self.recovering.pop(key, None)
        self._assumed.pop(key, None)
        self._orphans.pop(key, None)
        self._near.forget(key)

    def must_part(self, key: bytes) -> bool:
        """Our copy was here when the view changed, and it is not known that all who are to hold the session have what is in it."""
        return self.parting.is_bound(key) or partition_of(key) in self._queue

    def asked(self, peer: bytes, items: Sequence[tuple[bytes, bytes]], placement: Placement) -> list[Send]:
        """A CHECK. What is in doubt here is not confirmed before somebody who knows has been heard."""
        taken = self.parting.asked(peer, items, placement)
        for key, mark in taken.same:
            entry = self._replica.get(key)
            if entry is not None and mark[:1] != HEAD_MARK and key in self._near and self._is_vouched(peer, key, entry, mark, placement):
                self.recovering.pop(key, None)
                self._trust(key)
        return self.parting.answer(peer, [item for item in taken.same if item[0] not in self.recovering], taken.wants)

    def _is_vouched(self, peer: bytes, key: bytes, entry: Entry, mark: bytes, placement: Placement) -> bool:
        """Whether what this member gives is the truth: as one that is told of every change, or was until the view changed, by its own word and by ours.

        Where the primary moves, and this names us, it has been here before and was on its way since then: nobody else makes us that, but for a lite
        member that creates a session.
        """
        if placement.vouches(peer, key, entry.primary):
            return True
        if mark[:1] != TRUTH_MARK or (placement.moves_primary and entry.primary == self.me):
            return False
        return self._absent.vouches(peer, key, entry.primary) or (self._before is not None and self._before.vouches(peer, key, entry.primary))

    def came(self, peer: bytes, keys: Sequence[bytes], new: Container[bytes], doubtful: Container[bytes], placement: Placement, now_ms: int) -> list[Send]:
        """Records came, and are merged. `new`: of which no record was here before; `doubtful`: that may be out of date.

        A new one is the truth only if it is of somebody who is told of every change, or was until the view changed; any other may be an old one, under way for long
        or left where it does not belong any more, and this member may have had a newer one itself.
        """
        for key in keys:
            entry = self._replica.get(key)
            if entry is None or entry.body is None or placement.depth(self.me, key, entry.primary) != WHOLE:
                continue
            if key not in doubtful and self._is_vouched(peer, key, entry, self.parting.owed(peer, key), placement):
                self.recovered(key)
            elif key in new:
                self._doubt(key)
                self.recovering[key] = None
                self._check_later(now_ms)
        return self.parting.confirm(peer, [key for key in keys if key not in self.recovering], placement)

    def confirmed(self, peer: bytes, items: Sequence[tuple[bytes, bytes]], now_ms: int) -> None:
        """A CHECKED."""
        if self.parting.confirmed(peer, items):
            self._check_at_ms = min(self._check_at_ms or now_ms + _LOOK_AGAIN_MS, now_ms + _LOOK_AGAIN_MS)

    @property
    def deadline_ms(self) -> int | None:
        return min((at for at in (self._look_at_ms, self._check_at_ms) if at is not None), default=None)
