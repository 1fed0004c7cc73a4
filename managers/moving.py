"""Sessions on the move: from one primary to another, to new holders, into and out of near caches.

What the placements by which some members hold a session need besides what all need. Everything here follows from two
facts: every member computes from a head who should hold the session, and a head with a higher version stands. So whoever
serves a session may take it over and say so; who loses it hands over what it has; and copies in the wrong place
go when those in the right place are confirmed (`handover.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any

from ..membership.effects import Effect, Send
from .antientropy import AntiEntropy
from .entry import Entry, is_whole
from .handover import Handover
from .heads import LIVE, Head, Ours
from .messages import Session, Speaker, parts, read_keys, read_marks
from .near import NearCache, Watchers
from .placement import WHOLE, Groups, Placement, Uids, gather, partition_of
from .record import Record
from .replica import Replica
from .settings import ManagerSettings

__all__ = ["Moving"]


class Moving:
    """A part of the manager's core. `placement`: the present one, set by the core at each change of view."""

    def __init__(
        self,
        me: bytes,
        speaker: Speaker,
        replica: Replica,
        entropy: AntiEntropy,
        near: NearCache,
        placement: Placement,
        settings: ManagerSettings,
        keep: Callable[[bytes], bool],
    ) -> None:
        self.me = me
        self.placement = placement
        self._say = speaker
        self._replica = replica
        self._entropy = entropy
        self.near = near
        self.watchers = Watchers(settings.watched_max)
        self.handover = Handover(me, speaker, replica, self.near, self.watchers, placement, keep)

    # -- primaries

    def take_over(self, key: bytes, entry: Entry, now_ms: int) -> tuple[Groups, Groups]:
        """This member becomes the primary. Returns (who must get the new head, who must get the record: those who are to hold it from now on)."""
        placement = self.placement
        old = entry.primary
        had = self.handover.holders(key, old, placement)
        told = dict.fromkeys(placement.heads(key, old))
        fresh = self.near.is_fresh(key)
        self._replica.take_over(key, entry)
        self.watchers.changed((key,))
        told |= dict.fromkeys(placement.heads(key, self.me))
        if placement.everywhere:
            return tuple(told), ()
        if old in placement.view:
            told[(old,)] = None
        self.handover.settle(key, placement, now_ms)
        if fresh:
            self.handover.recovered(key)
        return tuple(told), tuple(group for group in placement.others(key, self.me) if group[0] not in had)

    def forward(self, peer: bytes, deltas: list[list[Any]]) -> list[Effect]:
        """Commits of one who is not the primary (any more): tell it who is, and give the primary what it has not heard."""
        effects: list[Effect] = []
        for primary, keys in gather(self._strays(peer, deltas)):
            effects += self._entropy.records(peer, keys)
            if primary != self.me:
                effects += self._entropy.records(primary, keys)
        return effects

    def _strays(self, peer: bytes, deltas: list[list[Any]]) -> Iterator[tuple[bytes, bytes]]:
        for delta in deltas:
            entry = self._replica.get(delta[0])
            if entry is not None and self.placement.is_stray(peer, entry.primary) and is_whole(entry):
                yield entry.primary, delta[0]

    def needs_record(self, key: bytes) -> bool:
        """Whether a head alone is not enough here: this member holds the session, or has to judge whether it lives again."""
        entry = self._replica.get(key)
        return entry is None or entry.head is None or entry.head.state != LIVE or self.placement.depth(self.me, key, entry.head.primary) == WHOLE

    def is_held(self, session: Session) -> bool:
        """Whether this member is to hold it, by the head that came along."""
        return self.placement.depth(self.me, session.key, session.head.primary if session.head is not None else b"") == WHOLE

    def primaries(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Who leads these, as far as is known here. For `displaced`, before something is merged."""
        if self.placement.everywhere:
            return {}
        entries = ((key, self._replica.get(key)) for key in keys)
        return {key: entry.primary for key, entry in entries if entry is not None}

    def deposed(self, keys: Iterable[bytes]) -> list[Effect]:
        """This member led these: who has taken one over gets what we have, as it may have missed some of it."""
        entries = ((key, self._replica.get(key)) for key in keys)
        lost = gather((entry.primary, key) for key, entry in entries if entry is not None and entry.primary != self.me and entry.body is not None)
        return [effect for winner, some in lost for effect in self._entropy.records(winner, some)]

    def displaced(self, before: dict[bytes, bytes], peer: bytes, heads: Iterable[tuple[bytes, Head]]) -> list[Effect]:
        """Tell the primary of before of the new one; the keepers tell the others who held the session by the old head: the author may
        not have known of them. Tell those too who want us to confirm what they have of before: it will not be. And tell `peer`, whose heads these are, where it
        is behind."""
        tells: list[tuple[bytes, tuple[bytes, Head]]] = []
        for key, old in before.items():
            entry = self._replica.get(key)
            if entry is None or entry.head is None or entry.primary == old:
                continue
            lost = {old, *self.handover.parting.creditors(key)}  # the author may not have seen it, and nor may our view yet, though its link is there
            if self.me in self.placement.keepers(partition_of(key)):
                lost.update(uid for group in self.placement.heads(key, old) for uid in group)
                lost.difference_update(*self.placement.heads(key, entry.primary))
                lost.add(old)
            tells += ((uid, (key, entry.head)) for uid in sorted(lost.difference((self.me, peer))))
        for key, head in heads if before else ():
            entry = self._replica.get(key)
            if (
                entry is not None
                and entry.head is not None
                and head.version < entry.head.version
                and (head.primary != entry.primary or entry.head.state != LIVE)
            ):
                tells.append((peer, (key, entry.head)))
        return [Send((uid,), self._say.heads(part)) for uid, heads in gather(tells) for part in parts(heads)]

    def pass_on(self, sessions: Iterable[Session], grown: Container[bytes], peer: bytes) -> list[Effect]:
        """Of these, which `peer` gave, ours have grown by some (`grown`), or were in doubt and have more than they: our session's primary gets that, and tells
        the other holders. A partition heals link by link, and whoever gave something may see none of them. Nor is it told yet that all have it: it asks again.
        """
        if self.placement.everywhere:
            return []
        tells: list[tuple[bytes, bytes]] = []
        for session in sessions:
            key = session.key
            entry = self._replica.get(key)
            if session.body is None or entry is None or entry.body is None or not is_whole(entry):
                continue
            more = key in self.handover.recovering and self._replica.body_of(entry) != session.body
            if not more and (key not in grown or key in self.near):
                continue
            leader = self.placement.primary(key, entry.primary)
            told = [uid for group in self.placement.others(key, entry.primary) for uid in group] if leader == self.me else [leader]
            told = [uid for uid in told if uid and (more or uid != peer)]
            if told and key in grown:
                self.handover.parting.put_off(peer, key)
            tells += ((uid, key) for uid in told)
        return [effect for uid, some in gather(tells) for effect in self._entropy.records(uid, some)]

    def doubts(self, key: bytes) -> bool:
        """Whether our copy may be out of date, and was so before it was to leave."""
        return key in self.near and not self.handover.parting.was_truth(key)

    def came(self, keys: Sequence[bytes], new: Container[bytes], doubtful: Container[bytes], peer: bytes, now_ms: int) -> list[Effect]:
        """Records came for these; `new`: of which no record was here before, `doubtful`: that may be out of date, by their sender's word."""
        self.merged(keys, peer, now_ms)
        if self.placement.everywhere:
            return [*self.handover.parting.confirm(peer, keys, self.placement)]
        return [*self.handover.came(peer, keys, new, doubtful, self.placement, now_ms), *self._show(keys, new, peer)]

    def _show(self, keys: Sequence[bytes], new: Container[bytes], peer: bytes) -> list[Send]:
        """To the primaries of what this member holds from now on, and was given by others: it may have moved on while it was under way, and who knows that may
        not know of us. A primary that is behind learns from it, and one that is ahead answers (`displaced`).
        """
        placement = self.placement
        if not placement.moves_primary:
            return []
        entries = ((key, self._replica.get(key)) for key in keys if key in new)
        heads = ((entry.primary, (key, entry.head)) for key, entry in entries if entry is not None and entry.head is not None)
        to_others = ((named, item) for named, item in heads if named in placement.view and named not in (self.me, peer))
        shown = gather((named, item) for named, item in to_others if placement.depth(self.me, item[0], named) == WHOLE)
        return [Send((uid,), self._say.heads(part)) for uid, some in shown for part in parts(some)]

    def merged(self, keys: Sequence[bytes], peer: bytes, now_ms: int) -> None:
        """Something came for these: tell who reads them from us, and see that each is where it should be."""
        if self.watchers:
            self.watchers.changed(keys, peer)
        if not self.placement.everywhere:
            for key in keys:
                self.handover.settle(key, self.placement, now_ms)

    def committed(self, key: bytes, named: bytes, now_ms: int) -> None:
        """A commit was made here."""
        if self.watchers:
            self.watchers.changed((key,))
        if self.placement.depth(self.me, key, named) != WHOLE:
            self.handover.settle(key, self.placement, now_ms)

    def fetched(self, key: bytes, peer: bytes, now_ms: int) -> None:
        """A holder has given this session, and watches over our copy if we hold none."""
        entry = self._replica.get(key)
        if entry is None or entry.body is None:
            return
        if self.placement.everywhere:
            self.near.forget(key)
        elif self.placement.depth(self.me, key, entry.primary) == WHOLE:
            self.handover.recovered(key)
        elif not self.handover.must_part(key):
            self.near.fetched(key, peer)
            self.handover.settle(key, self.placement, now_ms)

    def stale(self, keys: Iterable[bytes], now_ms: int) -> None:
        """A holder says that these have changed."""
        for key in self.near.changed(keys):
            self.handover.settle(key, self.placement, now_ms)

    # -- what members say of that

    def check(self, now_ms: int, peer: bytes, message: list[Any], ours: Ours) -> list[Effect]:
        return [*self.handover.asked(peer, read_marks(message[2], "check"), self.placement)]

    def checked(self, now_ms: int, peer: bytes, message: list[Any], ours: Ours) -> list[Effect]:
        self.handover.confirmed(peer, read_marks(message[2], "checked"), now_ms)
        return []

    def changed(self, now_ms: int, peer: bytes, message: list[Any], ours: Ours) -> list[Effect]:
        self.stale(read_keys(message[2], "changed"), now_ms)
        return []

    def tick(self, now_ms: int) -> tuple[list[Effect], list[tuple[bytes, Uids]]]:
        """(effects, keys to ask these members for): copies that may go or are out of date, and sessions whose primary is gone."""
        tasks = self.handover.tick(now_ms, self.placement)
        heads: list[tuple[Uids, tuple[bytes, Head]]] = []
        records: list[tuple[Uids, bytes]] = [((uid,), key) for uid, keys in tasks.given.items() for key in keys]
        for key in tasks.heirs:
            entry = self._replica.get(key)
            assert entry is not None
            told, given = self.take_over(key, entry, now_ms)
            assert entry.head is not None
            heads += ((group, (key, entry.head)) for group in told)
            records += ((group, key) for group in given)
        effects: list[Effect] = [*tasks.sends]
        effects += [Send(group, self._say.heads(some)) for group, some in gather(heads)]
        effects += [Send(group, message) for group, keys in gather(records) for message in self._entropy.messages(keys)]
        return effects, tasks.recover

    def tell_readers(self) -> list[Send]:
        return [Send((uid,), self._say.changed(part)) for uid, keys in self.watchers.take() for part in parts(keys)]

    def prune(self, key: bytes, entry: Entry, record: Record) -> bool:
        """Let this session's record forget what was removed, if it has too much of that and this member leads it; others are to get the whole then."""
        if not record.wants_pruning or self.placement.primary(key, entry.primary) not in (self.me, b""):
            return False
        record.prune()
        self._replica.changed[partition_of(key)] = 1
        return True

    def pruned(self, deltas: list[list[Any]]) -> list[bytes]:
        """Of the sessions that others have removed something from, those that this member has pruned."""
        entries = ((delta[0], self._replica.get(delta[0])) for delta in deltas if None in delta[4].values())
        return [
            key for key, entry in entries if entry is not None and (record := self._replica.record(key, entry)) is not None and self.prune(key, entry, record)
        ]

    # -- members come and go

    def unlinked(self, peer: bytes, now_ms: int) -> None:
        """The connection to this member is gone: it cannot tell us of changes."""
        for key in self.near.lost(peer):
            self.handover.settle(key, self.placement, now_ms)

    def relinked(self, peer: bytes, now_ms: int) -> None:
        """The link to this member began anew."""
        self.left(peer, now_ms)
        if not self.placement.everywhere:
            self.handover.relinked(peer, now_ms)

    def left(self, peer: bytes, now_ms: int) -> None:
        """It is gone, or its link began anew: what was on its way to either side is lost."""
        self.unlinked(peer, now_ms)
        self.handover.parting.lost(peer)
        self.watchers.lost(peer)
