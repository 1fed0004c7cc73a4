"""Parting from copies, and taking what others part from.

*A copy in the wrong place is dropped only when every member that should have the session has confirmed that it has all that is in it*: CHECK
carries a mark (a digest) to each of them, again and again, until all have said CHECKED; who has something else asks for the
record, merges it, and confirms then. A former keeper parts from its heads in the same way; tombstones are handed on and kept.

It goes on as fast as the others confirm, some keys at a time, each at least once a second. The mark also says whether the copy was the
truth until its place changed, so that who takes it need not doubt it (`handover.py`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from ..membership.effects import Send
from .digests import digest
from .entry import Entry, is_whole
from .heads import LIVE
from .messages import HEAD_MARK, RECORD_MARK, TRUTH_MARK, Speaker
from .placement import HEAD, NOTHING, WHOLE, Placement, gather
from .replica import Replica

__all__ = ["AT_ONCE", "OURSELVES", "Parting", "Taken"]

OURSELVES = b""  #: a change of view that was all ours: this member has lost its weight

CONFIRMS_SINCE = 2  #: the protocol version that knows CHECK

AT_ONCE = 512  #: keys in one CHECK
_DUE_MAX = 20 * AT_ONCE
_COUNTED_MAX = 2000  # that are looked at one by one to know how many are left
_OWING_MAX = 8 * AT_ONCE  # confirmations that wait for records on their way

Mark = tuple[bytes, bytes]  #: key, and a kind with a digest


class Taken(NamedTuple):
    """What a CHECK led to."""

    same: list[Mark]  #: what we have as its sender has it, and belongs here
    wants: list[bytes]  #: what we have otherwise, or not at all


class Parting:
    """A part of the manager's core. `keep(key)`: somebody here uses the copy now."""

    def __init__(self, me: bytes, speaker: Speaker, replica: Replica, keep: Callable[[bytes], bool]) -> None:
        self.me = me
        self._say = speaker
        self._replica = replica
        self._keep = keep
        self.leaving: OrderedDict[bytes, dict[bytes, bytes]] = OrderedDict()  #: keys held in the wrong place -> {member: mark it has confirmed}
        self.calm: bytes | None = None  #: the member whose coming was all of the last change of view, or `OURSELVES`; None: more has happened
        self._truth: set[bytes] = set()  # leaving copies that were the truth before that change
        self._bound: set[bytes] = set()  # leaving copies that go in any case, as they were here when the view changed
        self._due: OrderedDict[bytes, None] = OrderedDict()  # leaving keys to look at: new ones, those confirmed by somebody, and once a second all
        self._asked: set[bytes] = set()  # members that have not answered the last CHECK yet: one is under way at a time
        self._waiting: dict[bytes, dict[bytes, None]] = {}  # by such a member, leaving keys to look at when it has answered
        self._owing: dict[bytes, dict[bytes, bytes]] = {}  # by member, marks of its that are confirmed when its record has come
        self.dropped = 0  #: copies dropped after all who should hold them had confirmed

    # -- what leaves here

    def changed(self, calm: bytes | None) -> None:
        """The view has changed, or a link began anew."""
        self.calm = calm
        self._truth.clear()

    def clear(self) -> None:
        """Nothing leaves any more."""
        self.leaving.clear()
        self._truth.clear()
        self._bound.clear()
        self._due.clear()
        self._waiting.clear()

    def part(self, key: bytes, truth: bool) -> None:
        """This copy is in the wrong place; `truth`: and was the truth until now."""
        if truth and self.calm is not None:
            self._truth.add(key)
        self.leaving.setdefault(key, {})
        self._due[key] = None

    def stay(self, key: bytes) -> None:
        """It is in its place, or nothing is held of it any more."""
        self.leaving.pop(key, None)
        self._truth.discard(key)
        self._bound.discard(key)
        self._due.pop(key, None)

    def bind(self, key: bytes) -> None:
        """If this leaves, it goes in any case, whoever gives us the same session meanwhile: there may be in it what not all have who should hold it."""
        if key in self.leaving:
            self._bound.add(key)

    def is_bound(self, key: bytes) -> bool:
        """Our copy leaves, and is no near copy before all have what is in it."""
        return key in self._bound

    def was_truth(self, key: bytes) -> bool:
        """Our copy is on its way out, and was the truth until then."""
        return key in self._truth

    def all_due(self) -> None:
        """Look at everything once more, in turn."""
        if len(self._due) < _DUE_MAX:
            self._due |= dict.fromkeys(islice(self.leaving, _DUE_MAX))

    @property
    def is_due(self) -> bool:
        """Something could be asked now; else when somebody has answered."""
        return bool(self._due) and not self._asked

    def check(self, placement: Placement) -> tuple[list[Send], list[bytes]]:
        """Ask all that should hold what is leaving here, some of what is due; and drop what all of them have: (questions, keys of which no record is left)."""
        questions: list[tuple[bytes, Mark]] = []
        dropped = []
        for _ in range(min(len(self._due), AT_ONCE)):
            key, _ = self._due.popitem(last=False)
            entry = self._replica.get(key)
            if entry is None:
                dropped.append(key)
            elif key in self.leaving:
                self.leaving.move_to_end(key)
                parts = entry.body is not None and not is_whole(entry)
                missing = {} if parts else self._missing(key, entry, placement)  # parts are with their authors, too
                questions += ((uid, (key, mark)) for uid, mark in (missing or {}).items() if uid not in self._asked)
                for uid in missing or ():
                    if uid in self._asked:
                        self._waiting.setdefault(uid, {})[key] = None
                if missing == {}:
                    self._bound.discard(key)
                    if not self._keep(key) and self._drop(key, entry, placement):
                        dropped.append(key)
        asked = gather(questions)
        sends = [Send((uid,), self._say.check(items)) for uid, items in asked]
        self._asked.update(uid for uid, _ in asked)
        return sends, dropped

    def _missing(self, key: bytes, entry: Entry, placement: Placement) -> dict[bytes, bytes] | None:
        """The members whose confirmation is still missing, with the mark to confirm: of what that member should hold and this one has.
        None: there is nobody to hand over to."""
        told = _able(placement, key, entry)
        if not told:
            return None
        head = record = truth = HEAD_MARK + digest(entry.head, None)
        if entry.body is not None:
            hashed = digest(entry.head, self._replica.body_of(entry))
            record, truth = RECORD_MARK + hashed, TRUTH_MARK + hashed
        wanted = {}
        for uid in told:
            if placement.depth(uid, key, entry.primary) != WHOLE:
                wanted[uid] = head
            else:
                wanted[uid] = truth if key in self._truth and self.calm in (uid, OURSELVES) else record
        confirmed = self.leaving[key]
        return {uid: mark for uid, mark in wanted.items() if confirmed.get(uid) != mark}

    def _drop(self, key: bytes, entry: Entry, placement: Placement) -> bool:
        """Whether it was: who has once refused an id goes on refusing it, for as long as tombstones live."""
        confirmed = self.leaving.get(key, {})
        trusted = [uid for uid in placement.holders(key, entry.primary) if uid in confirmed]  # a keeper may have its head only
        self.stay(key)
        if entry.head is not None and entry.head.state != LIVE:
            return False
        self.dropped += 1
        if placement.depth(self.me, key, entry.primary) != NOTHING:
            self._replica.strip(key, trusted)
        else:
            self._replica.drop(key, trusted)
        return True

    def confirmed(self, peer: bytes, items: Sequence[Mark]) -> bool:
        """A CHECKED: what all have confirmed is dropped with the next look. Whether there is something to look at; else ask again in a while, and no sooner."""
        self._answered(peer)
        for key, mark in items:
            if key in self.leaving:
                self.leaving[key][peer] = mark
                self._due[key] = None
                self._due.move_to_end(key, last=False)
        return bool(self._due)

    def remaining(self, placement: Placement) -> tuple[int, int]:
        """(what is leaving here, sessions and tombstones, that not all who should hold it have confirmed yet; live sessions that nobody
        else can hold). Whatever state was confirmed will do: what was written since is on its way to the same members.
        """
        if len(self.leaving) > _COUNTED_MAX:
            key = next(iter(self.leaving))
            entry = self._replica.get(key)
            alone = not placement.heads(key, entry.primary if entry is not None else b"")  # that is so for one and all
            return (0, self._replica.live) if alone else (len(self.leaving), 0)
        left = stranded = 0
        for key, confirmed in self.leaving.items():
            entry = self._replica.get(key)
            if entry is None or not (is_whole(entry) or entry.body is None):
                continue
            told = _able(placement, key, entry)
            left += any(uid not in confirmed for uid in told)
            stranded += not told and entry.body is not None
        return left, stranded

    # -- what comes from others

    def asked(self, peer: bytes, items: Sequence[Mark], placement: Placement) -> Taken:
        """A CHECK: what is the same here, and what has to be fetched. What does not belong here either is neither: two could part from it at once."""
        taken = Taken([], [])
        owing = self._owing.setdefault(peer, {})
        if len(owing) > _OWING_MAX:
            owing.clear()  # what is parted from is asked for again
        for key, mark in items:
            entry = self._replica.get(key)
            if entry is None or not self._has(entry, mark):
                owing[key] = mark
                taken.wants.append(key)
            elif self._stays(key, entry, mark, placement):
                taken.same.append((key, mark))
        return taken

    def answer(self, peer: bytes, same: list[Mark], wants: list[bytes]) -> list[Send]:
        """To a CHECK: confirm these, fetch those."""
        sends = [Send((peer,), self._say.checked(same))]
        if wants:
            sends.append(Send((peer,), self._say.want(wants)))
        return sends

    def _has(self, entry: Entry, mark: bytes) -> bool:
        if mark[:1] == HEAD_MARK:
            return digest(entry.head, None) == mark[1:]
        return is_whole(entry) and digest(entry.head, self._replica.body_of(entry)) == mark[1:]

    def _stays(self, key: bytes, entry: Entry, mark: bytes, placement: Placement) -> bool:
        return placement.depth(self.me, key, entry.primary) >= (HEAD if mark[:1] == HEAD_MARK else WHOLE)

    def owed(self, peer: bytes, key: bytes) -> bytes:
        """The mark of this member's that is confirmed when its record has come; empty: none."""
        return self._owing.get(peer, {}).get(key, b"")

    def creditors(self, key: bytes) -> list[bytes]:
        """Members that part from this, and wait for us to confirm it."""
        return [uid for uid, owing in self._owing.items() if key in owing]

    def put_off(self, peer: bytes, key: bytes) -> None:
        """Do not confirm this before it is asked for again."""
        self._owing.get(peer, {}).pop(key, None)

    def confirm(self, peer: bytes, keys: Iterable[bytes], placement: Placement) -> list[Send]:
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

    def lost(self, peer: bytes) -> None:
        """The link to this member began anew, or it left: no answer will come."""
        self._answered(peer)
        self._owing.pop(peer, None)

    def _answered(self, peer: bytes) -> None:
        self._asked.discard(peer)
        self._due |= {key: None for key in self._waiting.pop(peer, ()) if key in self.leaving}


def _able(placement: Placement, key: bytes, entry: Entry) -> list[bytes]:
    """Those who are to know of the session, and can confirm that they do: members of protocol 1 do not know the question, and have all there is."""
    members = placement.view.by_uid
    told = [uid for group in placement.heads(key, entry.primary) for uid in group]
    return [uid for uid in told if uid not in members or members[uid].version >= CONFIRMS_SINCE]
