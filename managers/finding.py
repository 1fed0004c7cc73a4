"""Where is this session? Asked by requests here, and by other members.

Its keepers are asked, and the primary that an old copy names. A member answers with the session itself where it is a holder whose
copy is the truth; one that knows only the head, or has a copy on its way out, says with whom it is; one whose copy may be
out of date gives it and says that it is unsure. "Gone" takes a tombstone, or two who are sure that there is nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

from ..membership.effects import Effect, Send
from .antientropy import AntiEntropy
from .entry import Entry, is_whole
from .freshness import Freshness
from .heads import LIVE
from .lookup import Lookups
from .messages import ABSENT, ELSEWHERE, FOUND, GONE, LEFT, UNSURE, Session, Speaker
from .moving import Moving
from .placement import WHOLE, partition_of
from .replica import Replica
from .tokens import Written, claimed, is_of

__all__ = ["Finding"]


class Finding:
    """A part of the manager's core. `cut`: members whose link is down; `sure(now_ms)`: whether a session that is not here does not exist;
    `awake(now_ms)`: whether what is here is what it would be if this process had never stood still."""

    def __init__(
        self,
        me: bytes,
        speaker: Speaker,
        replica: Replica,
        entropy: AntiEntropy,
        lookups: Lookups,
        freshness: Freshness,
        moving: Moving,
        cut: Set[bytes],
        sure: Callable[[int], bool],
        awake: Callable[[int], bool],
    ) -> None:
        self.me = me
        self._say = speaker
        self._replica = replica
        self._entropy = entropy
        self._lookups = lookups
        self._freshness = freshness
        self._moving = moving
        self._cut = cut
        self._sure = sure
        self._awake = awake

    # -- asking

    def ask(self, key: bytes, now_ms: int, token: str = "") -> list[Effect]:
        """Who it is that a browser's token says wrote the session is asked too."""
        placement, entry = self._moving.placement, self._replica.get(key)
        peers = [uid for uid in placement.keepers(partition_of(key)) if uid != self.me]
        if not placement.everywhere:
            more = (*self._moving.handover.keepers_before(key, now_ms), entry.primary if entry is not None else b"")
            peers = [*dict.fromkeys((*peers, *(uid for uid in more if uid in placement.view and uid != self.me)))]
        elif entry is None and len(peers) < 2:
            peers += [uid for uid in placement.peers() if uid in self._entropy.in_sync and uid not in peers][: 2 - len(peers)]
        authors = claimed(token)
        peers += [uid for uid in placement.peers() if authors and is_of(uid, authors) and uid not in peers]
        peers = peers or list(placement.peers()[:2])
        alone = len(peers) < 2 and entry is None and not self._sure(now_ms)  # "gone" takes two who are sure, and we are not
        return self.ask_for(key, peers, now_ms, alone)

    def ask_for(self, key: bytes, peers: Sequence[bytes], now_ms: int, unsure: bool) -> list[Effect]:
        """Ask these. `unsure`: whatever they say, "gone" is not believed."""
        return self._lookups.ask(key, peers, now_ms, unsure, self._exists(key)) + self._unheard()

    def _unheard(self) -> list[Effect]:
        """Nothing comes from those whose link is down, though they were asked."""
        return [effect for uid in sorted(self._cut) for effect in self._lookups.cut(uid)]

    def await_commits(self, key: bytes, missing: Written, now_ms: int) -> list[Effect]:
        """A browser has written these to this session, and they are not here."""
        placement, entry = self._moving.placement, self._replica.get(key)
        others = [uid for uid in placement.view.by_uid if uid != self.me]
        holders = {*placement.keepers(partition_of(key)), *placement.holders(key, entry.primary if entry is not None else b"")}
        return self._freshness.begin(key, missing, [uid for uid in others if uid in holders], others, now_ms)

    def answered(self, peer: bytes, key: bytes, verdict: int, now_ms: int) -> list[Effect]:
        """An ANSWER. What it speaks of came before it, and is merged."""
        moving = self._moving
        if moving.handover.parting.was_truth(key):
            self._lookups.believe(key)
        completed = self._lookups.is_completed_by(peer, key)
        denied = completed and verdict == ABSENT and self._lookups.is_denied(key) and self._sure(now_ms)
        named = self._replica.primary_of(key)
        verdict = self._weighed(peer, key, verdict, named, now_ms)
        if verdict in (ELSEWHERE, LEFT):
            known = dict.fromkeys((named, *moving.handover.holders(key, named, moving.placement), *moving.placement.holders(key, named)))
            effects = self._lookups.redirected(peer, key, [uid for uid in known if uid != self.me and uid in moving.placement.view], verdict == LEFT, now_ms)
            effects += self._unheard()
        else:
            if verdict == FOUND and self._lookups.is_pending(key):  # one that comes too late was not weighed against the others
                moving.fetched(key, peer, now_ms)
            effects = self._lookups.answered(peer, key, verdict, now_ms, self._exists(key)) + self._freshness.answered(peer, key, verdict)
        if denied and moving.handover.is_empty(key, moving.placement):
            effects += self._end_empty(key, now_ms)
        elif completed and not self._lookups.is_waiting(key) and moving.handover.recovered(key):
            effects += self._lookups.found(key)  # nobody here has more than we
        return effects

    def recover(self, key: bytes, peers: Sequence[bytes], now_ms: int) -> list[Effect]:
        """What is here of this session may be out of date: ask these. Nobody: it is all there is."""
        if peers:
            return self.ask_for(key, peers, now_ms, unsure=True)
        handover = self._moving.handover
        if not handover.is_empty(key, self._moving.placement):
            handover.recovered(key)
        elif self._sure(now_ms):
            return self._end_empty(key, now_ms)
        return []

    def _end_empty(self, key: bytes, now_ms: int) -> list[Effect]:
        """It went with its holders."""
        head = self._moving.handover.end_empty(key, now_ms)
        if head is None:
            return []
        told = self._moving.placement.heads(key, head.primary)
        return [*self._lookups.gone(key), *(Send(group, self._say.heads([(key, head)])) for group in told)]

    def _weighed(self, peer: bytes, key: bytes, verdict: int, named: bytes, now_ms: int) -> int:
        """FOUND becomes LEFT where this member is not believed without hearing the others."""
        if verdict == FOUND and not self._knows(peer, key):
            return LEFT
        if verdict == FOUND and self._is_early(peer, key, named, now_ms):
            self._lookups.accept(key)
            return LEFT
        return verdict

    def _knows(self, peer: bytes, key: bytes) -> bool:
        """Whether this member's copy is believed without hearing the others who were asked: it is a keeper, or named by another, and in sync with us. One that
        only calls itself the primary may come out of a partition; one that was a keeper lately may not have heard that it is none any more.
        """
        placement = self._moving.placement
        if placement.everywhere:
            return True
        return peer in self._entropy.in_sync and (peer in placement.keepers(partition_of(key)) or self._lookups.is_named(peer, key))

    def _is_early(self, peer: bytes, key: bytes, named: bytes, now_ms: int) -> bool:
        """Whether somebody else may have more, and can still say so. While a partition heals that is anybody who holds the session: this member may have come from
        the other side and be in sync with us as we hold nothing, and of the holders the primary hears first of what was written on either side.
        """
        moving = self._moving
        if not moving.handover.is_healing(now_ms):
            return False
        if self._lookups.is_waiting(key, besides=peer):
            return True
        primary_is_here = named in moving.placement.view and named not in (self.me, *self._cut)
        return primary_is_here and not moving.placement.vouches(peer, key, named) and not self._lookups.has_heard(named, key)

    def _exists(self, key: bytes) -> bool:
        """A live session of which something is here: it is somewhere."""
        entry = self._replica.get(key)
        return not self._moving.placement.everywhere and entry is not None and (entry.head is None or entry.head.state == LIVE)

    # -- being asked

    def asked(self, peer: bytes, key: bytes, now_ms: int) -> list[Effect]:
        """A LOOKUP."""
        entry = self._replica.get(key)
        if entry is None:
            return [self._verdict(peer, key, ABSENT if self._sure(now_ms) else UNSURE)]
        if entry.head is not None and entry.head.state != LIVE:
            return [*self._entropy.records(peer, [key]), self._verdict(peer, key, GONE)]
        if self._sure(now_ms) and self._moving.handover.is_empty(key, self._moving.placement):
            return [self._verdict(peer, key, ABSENT)]
        if self._is_elsewhere(peer, key, entry):
            if self._moving.handover.parting.was_truth(key):
                return [*self._entropy.records(peer, [key]), self._verdict(peer, key, LEFT)]
            head = Session(key, entry.head, entry.created_ms, entry.touches, None)
            return [Send((peer,), self._say.records([head])), self._verdict(peer, key, ELSEWHERE)]
        if not is_whole(entry):
            return [self._verdict(peer, key, UNSURE)]
        if key in self._moving.handover.recovering or not self._awake(now_ms):
            return [*self._entropy.records(peer, [key]), self._verdict(peer, key, UNSURE)]
        if not self._moving.placement.uniform:  # also one that should hold it, by our view: by its own it may not
            self._moving.watchers.watch(key, peer)
        return [*self._entropy.records(peer, [key]), self._verdict(peer, key, FOUND)]

    def _is_elsewhere(self, peer: bytes, key: bytes, entry: Entry) -> bool:
        """Whether others hold it, and this member does not."""
        placement = self._moving.placement
        if placement.everywhere or entry.head is None or placement.depth(self.me, key, entry.primary) == WHOLE:
            return False
        holders = self._moving.handover.holders(key, entry.primary, placement)
        return any(uid in placement.view and uid not in (self.me, peer) for uid in holders)

    def _verdict(self, peer: bytes, key: bytes, verdict: int) -> Send:
        return Send((peer,), self._say.answer(key, verdict))
