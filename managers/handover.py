"""Copies in the wrong place, copies that may be out of date, and sessions whose primary is gone.

After a change of view, or when something about a session was merged, each member looks where its own copies should be:

- **A copy that placement does not want here** is stale at once (`near.py`) unless a holder watches over it, and *is dropped
  only when every member that should have it has confirmed that it has all that is in it*: CHECK carries a mark (a digest) to
  each of them, again and again, until all have said CHECKED; who has something else asks for the record, merges it,
  and confirms then. A former keeper parts from its heads in the same way; tombstones are handed on and kept.
- **A copy that was in the wrong place when this member became a holder** is out of date, as nobody told this member of changes meanwhile:
  until a holder has given the session, or all have answered, it is not served and not given as the truth (*recovering*).
- **A new holder that had nothing** is given the session by the first of those who were holders before (*newcomers*).
- **A session whose primary is gone** gets the best ranked of the surviving holders as its new one, by the placement of before
  the loss; if that does not come about, the best ranked of now does it, as soon as it holds the record (*orphans*).

All keys are looked at after a change of view, some at a time; single keys whenever something about them was merged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Sequence
from typing import NamedTuple

from ..membership.effects import Send
from .digests import digest
from .entry import Entry, is_whole
from .heads import LIVE
from .messages import HEAD_MARK, RECORD_MARK, Speaker
from .near import NearCache, Watchers
from .placement import HEAD, NOTHING, PARTITIONS, WHOLE, Placement, Uids, partition_of
from .replica import Replica

__all__ = ["Handover", "Tasks"]

_LOOKS_AT_ONCE = 500  # entries looked at in one go: a few milliseconds under the lock
_LOOK_AGAIN_MS = 5
_CHECKS_AT_ONCE = 512  # keys in one CHECK, and in one go of recovering
_CHECK_AGAIN_MS = 1000
_ORPHAN_MS = 2000  # a session without a primary for this long: whoever ranks best now may have it


class Tasks(NamedTuple):
    """What a look at the copies has left to do."""

    sends: list[Send]
    heirs: list[bytes]  #: keys to take over
    recover: list[tuple[bytes, Uids]]  #: keys to ask these members for
    given: dict[bytes, list[bytes]]  #: by newcomer, keys to send


class Handover:
    """A part of the manager's core. `keep(key)`: somebody here uses the copy now."""

    def __init__(self, me: bytes, speaker: Speaker, replica: Replica, near: NearCache, watchers: Watchers, keep: Callable[[bytes], bool]) -> None:
        self.me = me
        self._say = speaker
        self._replica = replica
        self._near = near
        self._watchers = watchers
        self._keep = keep
        self._before: Placement | None = None  # of before the change under review
        self._queue: deque[int] = deque()  # partitions still to be looked at
        self._look_at_ms: int | None = None
        self.leaving: dict[bytes, dict[bytes, bytes]] = {}  #: keys held in the wrong place -> {member: mark it has confirmed}
        self.recovering: dict[bytes, None] = {}  #: keys of ours that may be out of date
        self._orphans: dict[bytes, int] = {}  # keys without a present primary -> when that was first seen
        self._check_at_ms: int | None = None
        self._asked: set[bytes] = set()  # members that have not answered the last CHECK yet: one is under way at a time
        self._owing: dict[bytes, dict[bytes, bytes]] = {}  # by member, marks of its that are confirmed when its record has come
        self.dropped = 0  #: copies dropped after all who should hold them had confirmed

    def review(self, now_ms: int, before: Placement | None = None) -> None:
        """The view has changed, or a link began anew and what was on its way is lost: look at everything again.

        Near copies are stale then: what was written to one of them may not have come to everybody that is a holder now.
        """
        if before is not None and not self._queue:
            self._before = before
        self._near.expire()
        self._queue = deque(number for number in range(PARTITIONS) if self._replica.partitions[number])
        self._look_at_ms = now_ms if self._queue else None

    def settle(self, key: bytes, placement: Placement, now_ms: int) -> bool:
        """Look at one key. True: its primary is gone and this member is to take over."""
        entry = self._replica.get(key)
        if entry is None:
            self._forget(key)
            return False
        if self._is_in_place(key, entry, placement):
            self.leaving.pop(key, None)
        elif key not in self.leaving:
            self.leaving[key] = {}
        if key in self.leaving:
            self._check_soon(now_ms)
        elif key in self.recovering:
            self._check_later(now_ms)
        if entry.head is None or entry.head.state != LIVE or entry.head.primary in placement.view:
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

    def recovered(self, key: bytes) -> None:
        """A holder has given this session, or all have answered."""
        if self.recovering.pop(key, key) is None:
            self._near.forget(key)
            self._replica.changed[partition_of(key)] = 1

    def holders(self, key: bytes, named: bytes, placement: Placement) -> Uids:
        """Who holds the session, as far as it is known: by the placement of when its primary was last here."""
        if named in placement.view or self._before is None:
            return placement.holders(key, named)
        return self._before.holders(key, named)

    def _is_heir(self, key: bytes, entry: Entry, placement: Placement, now_ms: int) -> bool:
        since = self._orphans.setdefault(key, now_ms)
        self._check_soon(now_ms)
        if not placement.leads(entry.primary) or entry.body is None or not is_whole(entry):
            return False
        survivors = [uid for uid in self.holders(key, entry.primary, placement) if uid in placement.view]
        return survivors[:1] == [self.me] or (now_ms - since >= _ORPHAN_MS and placement.primary(key, entry.primary) == self.me)

    # -- in time

    def tick(self, now_ms: int, placement: Placement) -> Tasks:
        tasks = Tasks([], [], [], {})
        if self._look_at_ms is not None and now_ms >= self._look_at_ms:
            self._look(placement, now_ms, tasks)
        if self._check_at_ms is not None and now_ms >= self._check_at_ms:
            for key in self._near.trim():
                self.settle(key, placement, now_ms)
            tasks.heirs.extend(key for key in list(self._orphans) if self.settle(key, placement, now_ms))
            tasks.sends.extend(self._check(placement))
            tasks.recover.extend(self._recover(placement))
            self._check_at_ms = now_ms + _CHECK_AGAIN_MS if self.leaving or self._orphans or self.recovering else None
        return tasks

    def _look(self, placement: Placement, now_ms: int, tasks: Tasks) -> None:
        looked = 0
        while self._queue and looked < _LOOKS_AT_ONCE:
            partition = self._replica.partitions[self._queue.popleft()]
            looked += len(partition)
            for key in sorted(partition):
                if self.settle(key, placement, now_ms):
                    tasks.heirs.append(key)
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
            self._check_at_ms = now_ms + _CHECK_AGAIN_MS

    def _recover(self, placement: Placement) -> Iterable[tuple[bytes, Uids]]:
        for key in list(self.recovering)[:_CHECKS_AT_ONCE]:
            entry = self._replica.get(key)
            named = entry.primary if entry is not None else b""
            had = self._before.holders(key, named) if self._before is not None else ()
            others = tuple(uid for uid in dict.fromkeys((*had, *placement.holders(key, named))) if uid in placement.view and uid != self.me)
            if others and entry is not None:
                self.recovering.pop(key)
                self.recovering[key] = None  # the others first, the next time
                yield key, others
            else:
                self.recovered(key)

    # -- parting from copies

    def _check(self, placement: Placement) -> list[Send]:
        """Ask all that should hold what is leaving here; drop what all of them have."""
        questions: dict[bytes, list[tuple[bytes, bytes]]] = {}
        for key in list(self.leaving):
            entry = self._replica.get(key)
            if entry is None:
                self._forget(key)
                continue
            asked = self._missing(key, entry, placement) if is_whole(entry) or entry.body is None else {}  # parts are with their authors, too
            if asked:
                for uid, mark in asked.items():
                    questions.setdefault(uid, []).append((key, mark))
            elif asked is not None and not self._keep(key):
                self._drop(key, entry, placement)
        sends = []
        for uid, items in sorted(questions.items()):
            if uid not in self._asked:
                self._asked.add(uid)
                sends.append(Send((uid,), self._say.check(items[:_CHECKS_AT_ONCE])))
        return sends

    def _missing(self, key: bytes, entry: Entry, placement: Placement) -> dict[bytes, bytes] | None:
        """The members whose confirmation is still missing, with the mark to confirm. None: there is nobody to hand over to."""
        told = [uid for group in placement.heads(key, entry.primary) for uid in group]
        if not told:
            return None
        confirmed = self.leaving[key]
        wanted = {uid: self._mark(uid, key, entry, placement) for uid in told}
        return {uid: mark for uid, mark in wanted.items() if confirmed.get(uid) != mark}

    def _mark(self, uid: bytes, key: bytes, entry: Entry, placement: Placement) -> bytes:
        """Of what that member should hold and this one has: a kind and a digest."""
        if entry.body is not None and placement.depth(uid, key, entry.primary) == WHOLE:
            return RECORD_MARK + digest(entry.head, self._replica.body_of(entry))
        return HEAD_MARK + digest(entry.head, None)

    def _drop(self, key: bytes, entry: Entry, placement: Placement) -> None:
        del self.leaving[key]
        if entry.head is not None and entry.head.state != LIVE:
            return  # who has once refused an id goes on refusing it, for as long as tombstones live
        self.dropped += 1
        self._near.forget(key)
        if placement.depth(self.me, key, entry.primary) != NOTHING:
            self._replica.strip(key)
        else:
            self._forget(key)
            self._replica.drop(key)

    def _forget(self, key: bytes) -> None:
        self.leaving.pop(key, None)
        self.recovering.pop(key, None)
        self._orphans.pop(key, None)
        self._near.forget(key)

    # -- taking what others part from

    def asked(self, peer: bytes, items: Sequence[tuple[bytes, bytes]], placement: Placement) -> list[Send]:
        """A CHECK: confirm what is the same here, fetch the rest. What does not belong here either is not confirmed: two could part from it at once."""
        same: list[tuple[bytes, bytes]] = []
        owing = self._owing[peer] = {}
        for key, mark in items:
            entry = self._replica.get(key)
            if entry is None or not self._has(entry, mark):
                owing[key] = mark
            elif self._stays(key, entry, mark, placement):
                same.append((key, mark))
        sends = [Send((peer,), self._say.checked(same))]
        if owing:
            sends.append(Send((peer,), self._say.want(list(owing))))
        return sends

    def _has(self, entry: Entry, mark: bytes) -> bool:
        if mark[:1] == HEAD_MARK:
            return digest(entry.head, None) == mark[1:]
        return is_whole(entry) and digest(entry.head, self._replica.body_of(entry)) == mark[1:]

    def _stays(self, key: bytes, entry: Entry, mark: bytes, placement: Placement) -> bool:
        return placement.depth(self.me, key, entry.primary) >= (WHOLE if mark[:1] == RECORD_MARK else HEAD)

    def came(self, peer: bytes, keys: Sequence[bytes], new: Container[bytes], placement: Placement, now_ms: int) -> list[Send]:
        """Records came, and are merged. `new`: of which no record was here before.

        A new one is the truth only if it is of somebody who is told of every change; any other may be an old one, under way for long
        or left where it does not belong any more, and this member may have had a newer one itself.
        """
        for key in keys:
            entry = self._replica.get(key)
            if entry is None or entry.body is None or placement.depth(self.me, key, entry.primary) != WHOLE:
                continue
            if placement.vouches(peer, key, entry.primary):
                self.recovered(key)
            elif key in new:
                self._doubt(key)
                self.recovering[key] = None
                self._check_later(now_ms)
        return self._confirm(peer, keys, placement)

    def _confirm(self, peer: bytes, keys: Iterable[bytes], placement: Placement) -> list[Send]:
        """What a member parts from has come: all that was in it is here."""
        owing = self._owing.get(peer)
        if not owing:
            return []
        have = []
        for key in keys:
            mark, entry = owing.pop(key, b""), self._replica.get(key)
            if mark and entry is not None and self._stays(key, entry, mark, placement):
                have.append((key, mark))
        return [Send((peer,), self._say.checked(have))] if have else []

    def confirmed(self, peer: bytes, items: Sequence[tuple[bytes, bytes]], now_ms: int) -> None:
        """A CHECKED. What all have confirmed is dropped with the next look."""
        self._asked.discard(peer)
        for key, mark in items:
            if key in self.leaving:
                self.leaving[key][peer] = mark
        if items:  # nothing confirmed: ask again in a while, and no sooner
            self._check_at_ms = min(self._check_at_ms or now_ms + _LOOK_AGAIN_MS, now_ms + _LOOK_AGAIN_MS)

    def forget(self, peer: bytes) -> None:
        """The link to this member began anew, or it left: no answer will come."""
        self._asked.discard(peer)
        self._owing.pop(peer, None)

    @property
    def deadline_ms(self) -> int | None:
        return min((at for at in (self._look_at_ms, self._check_at_ms) if at is not None), default=None)
