"""Where is this session? Asked by requests here, and by other members.

Its keepers are asked, and the primary that an old copy names. A member answers with the session itself where it is a holder whose
copy is the truth; one that knows only the head, or has a copy on its way out, says with whom it is; one whose copy may be
out of date gives it and says that it is unsure. "Gone" takes a tombstone, or two who are sure that there is nothing: in sync, and
without an unannounced loss lately; a copy whose time is over is gone only if no holder doubts that. All else is unknown: the session may
exist where nobody could be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set

from ..membership.effects import Effect, Send
from .antientropy import AntiEntropy
from .entry import Entry, is_whole
from .freshness import Freshness
from .heads import LIVE
from .lookup import EARLY, SILENT, Lookups, Question, StoreWanted
from .messages import ABSENT, ELSEWHERE, EMPTY, FOUND, GONE, LEFT, UNSURE, Session, Speaker
from .moving import Moving
from .placement import WHOLE, partition_of
from .principals import Logins
from .record import Record
from .replica import Replica
from .tokens import Written, claimed, is_of

__all__ = ["Finding"]

_YOUNG_MS, _YOUNG_ASKS = 10_000, 16  # a member that has just started may not see all yet, and asks so many others
_ELSEWHERE = (ELSEWHERE, LEFT, EARLY)  # it lives, with others
_DOUBTS = frozenset((UNSURE, SILENT))


class Finding:
    """A part of the manager's core. `timeout_ms`: of a look-up. `cut`: members whose link is down; `sure(now_ms)`: whether a session that is not here does not exist;
    `awake(now_ms)`: whether what is here is what it would be if this process had never stood still; `servable(key, now_ms)`: what a request could be given."""

    def __init__(
        self,
        me: bytes,
        speaker: Speaker,
        replica: Replica,
        entropy: AntiEntropy,
        timeout_ms: int,
        freshness: Freshness,
        moving: Moving,
        cut: Set[bytes],
        sure: Callable[[int], bool],
        awake: Callable[[int], bool],
        servable: Callable[[bytes, int], Entry | None],
        logins: Logins,
        now_ms: int,
    ) -> None:
        self.me = me
        self._say = speaker
        self._replica = replica
        self._departed = replica.departed
        self._entropy = entropy
        self.lookups = Lookups(speaker, timeout_ms, self._conclude)
        self.has_store = False  #: what is not here may be there
        self.young_until_ms = now_ms + _YOUNG_MS
        self._freshness = freshness
        self._moving = moving
        self._cut = cut
        self._sure = sure
        self._awake = awake
        self._servable = servable
        self._logins = logins

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
        if entry is None and now_ms < self.young_until_ms and not placement.everywhere:  # by the views of others, who see more, the keepers may be others
            peers += [uid for uid in placement.peers() if uid not in peers][:_YOUNG_ASKS]
        authors = claimed(token)
        peers += [uid for uid in placement.peers() if authors and is_of(uid, authors) and uid not in peers]
        peers = peers or list(placement.peers()[:2])
        alone = len(peers) < 2 and entry is None and not self._sure(now_ms)  # "gone" takes two who are sure, and we are not
        return self.ask_for(key, peers, now_ms, alone)

    def ask_for(self, key: bytes, peers: Sequence[bytes], now_ms: int, doubted: bool) -> list[Effect]:
        """Ask these. `doubted`: whatever they say, "gone" is not believed."""
        return self.lookups.ask(key, peers, now_ms, doubted) + self._unheard(now_ms)

    def _unheard(self, now_ms: int) -> list[Effect]:
        """Nothing comes from those whose link is down, though they were asked."""
        return [effect for uid in sorted(self._cut) for effect in self.lookups.cut(uid, now_ms)]

    def await_commits(self, key: bytes, missing: Written, now_ms: int) -> list[Effect]:
        """A browser has written these to this session, and they are not here."""
        placement, entry = self._moving.placement, self._replica.get(key)
        others = [uid for uid in placement.view.by_uid if uid != self.me]
        holders = {*placement.keepers(partition_of(key)), *placement.holders(key, entry.primary if entry is not None else b"")}
        return self._freshness.begin(key, missing, [uid for uid in others if uid in holders], others, now_ms)

    def answered(self, peer: bytes, key: bytes, verdict: int, now_ms: int) -> list[Effect]:
        """An ANSWER. What it speaks of came before it, and is merged."""
        moving, named = self._moving, self._replica.primary_of(key)
        question = self.lookups.awaited(peer, key)
        if question is not None:
            verdict = self._weighed(peer, key, verdict, question, now_ms)
            if verdict == FOUND:
                moving.fetched(key, peer, now_ms)
        if verdict not in (ELSEWHERE, UNSURE):
            self._departed.heard(key, peer)
        if verdict not in _ELSEWHERE:
            return self.lookups.answered(peer, key, verdict, now_ms) + self._freshness.answered(peer, key, verdict)
        known = dict.fromkeys((named, *moving.handover.holders(key, named, moving.placement), *moving.placement.holders(key, named)))
        holders = [uid for uid in known if uid != self.me and uid in moving.placement.view]
        if verdict == ELSEWHERE:
            self._departed.heard(key, peer, [uid for uid in holders if question is None or uid not in question.answers])
        return self.lookups.answered(peer, key, verdict, now_ms, holders) + self._unheard(now_ms)

    def _weighed(self, peer: bytes, key: bytes, verdict: int, question: Question, now_ms: int) -> int:
        """FOUND becomes LEFT or EARLY where this member is not believed without hearing the others."""
        if verdict != FOUND:
            return verdict
        if not self._knows(peer, key, question):
            return LEFT
        return EARLY if self._is_early(peer, key, question, now_ms) else FOUND

    def shown(self, peer: bytes, keys: Iterable[bytes]) -> None:
        """This member has given these, whole. Its answer comes next; where its outbox was full that is lost, and the record stands for it."""
        for key in keys:
            question = self.lookups.awaited(peer, key)
            if question is not None and self._knows(peer, key, question):
                question.shown.add(peer)

    def _knows(self, peer: bytes, key: bytes, question: Question) -> bool:
        """Whether this member's copy is believed without hearing the others who were asked: it is a keeper, or named by another, and in sync with us. One that
        only calls itself the primary may come out of a partition; one that was a keeper lately may not have heard that it is none any more.
        """
        placement = self._moving.placement
        if placement.everywhere:
            return True
        return peer in self._entropy.in_sync and (peer in placement.keepers(partition_of(key)) or peer in question.named)

    def _is_early(self, peer: bytes, key: bytes, question: Question, now_ms: int) -> bool:
        """Whether somebody else may have more, and can still say so. While a partition heals that is anybody who holds the session: this member may have come from
        the other side and be in sync with us as we hold nothing, and of the holders the primary hears first of what was written on either side.
        """
        moving, named = self._moving, self._replica.primary_of(key)
        if self._servable(key, now_ms) is None and (question.waiting - {peer} or not _DOUBTS.isdisjoint(question.answers.values())):
            return True  # its time is over, by what this member knows of its use; who has just started has not heard of a loss that another doubts for
        if self.is_behind(key):
            return True
        if not moving.handover.is_healing(now_ms):
            return False
        if question.waiting - {peer}:
            return True
        primary_is_here = named in moving.placement.view and named not in (self.me, *self._cut)
        return primary_is_here and not moving.placement.vouches(peer, key, named) and question.answers.get(named, SILENT) == SILENT

    def _conclude(self, key: bytes, question: Question, now_ms: int) -> list[Effect]:
        """Nobody is waited for any more. A session that is just being handed over is found: what its last holder had, and what the next one has been told
        since, make it whole. Where that is not enough, and it surely exists, all are asked again: a wait is better than "unknown". If a copy that went from
        here had more in it than what has come, those who confirmed that are asked first.
        """
        more = self._trusted_once(key, question, now_ms)
        if more:
            asked = self.lookups.widen(key, more, self._cut)
            if asked:
                return asked
        in_vain = {uid for uid in question.extra if question.answers.get(uid, SILENT) == SILENT}
        if in_vain:
            self._departed.silent(key, now_ms)
        handover, verdicts = self._moving.handover, {verdict for uid, verdict in question.answers.items() if uid not in in_vain}
        if SILENT in verdicts or not verdicts or (in_vain and self._replica.held(key) is None):
            is_found = self._is_good(key, now_ms) or (EARLY in verdicts and self._servable(key, now_ms) is not None)
            return self.lookups.end(key, FOUND if is_found else UNSURE)
        if ELSEWHERE not in verdicts and handover.is_empty(key, self._moving.placement):
            if verdicts <= {ABSENT, EMPTY} and self._sure(now_ms):
                return self._end_empty(key, now_ms)
            return self.lookups.end(key, UNSURE)  # there is nothing to take for the truth: it is asked for again until all are sure
        if self._is_partial(key) and ELSEWHERE not in verdicts:
            if verdicts <= {ABSENT, EMPTY} and self._sure(now_ms):
                return [*self._settle_partial(key), *self.lookups.end(key, FOUND)]
            if not self._moving.placement.everywhere:
                return self.lookups.end(key, UNSURE)
        if UNSURE in verdicts and self._replica.held(key) is not None and self._servable(key, now_ms) is None:
            return self.lookups.end(key, UNSURE)  # its time is over by what is here, and others do not know of its last use: that takes two who are sure
        if handover.assumed(key) or handover.parting.was_truth(key) or verdicts & {LEFT, EARLY}:  # nobody has more than we
            return self.lookups.end(key, FOUND)
        if not self._exists(key) and ELSEWHERE not in verdicts:
            return self.lookups.end(key, GONE if verdicts == {ABSENT} and not question.doubted else UNSURE)
        return self.lookups.again(key, now_ms)

    def recover(self, key: bytes, peers: Sequence[bytes], now_ms: int) -> list[Effect]:
        """What is here of this session may be out of date: ask these, and who may have what went from here. Nobody: it is all there is."""
        peers = [*dict.fromkeys((*peers, *self._trusted(key)))]
        if peers:
            return self.ask_for(key, peers, now_ms, doubted=True)
        handover = self._moving.handover
        if self._is_partial(key):
            return self._settle_partial(key) if self._sure(now_ms) else []
        if not handover.is_empty(key, self._moving.placement):
            handover.assumed(key)
        elif self._sure(now_ms):
            return self._end_empty(key, now_ms)
        return []

    def is_behind(self, key: bytes) -> bool:
        """A copy that went from here had more in it than what is here now."""
        if key not in self._departed.copies:
            return False  # each request comes here
        entry = self._replica.get(key)
        record = self._replica.record(key, entry) if entry is not None else None
        return record is not None and self._departed.lacks(key, record.applied)

    def must_ask(self, key: bytes, now_ms: int) -> bool:
        """The same, and those who may have what is missing were not asked in vain a moment ago."""
        return self.is_behind(key) and self._departed.is_due(key, now_ms)

    def _trusted_once(self, key: bytes, question: Question, now_ms: int) -> list[bytes]:
        """Who may have what was in our copy and is not here, and has not been asked."""
        if key not in self._departed.copies or now_ms >= question.expires_ms:
            return []
        if self._replica.held(key) is not None and not self.must_ask(key, now_ms):
            return []
        return [uid for uid in self._trusted(key) if uid not in question.answers]

    def _trusted(self, key: bytes) -> list[bytes]:
        return [uid for uid in self._departed.trusted(key) if uid in self._moving.placement.view and uid != self.me]

    def _is_partial(self, key: bytes) -> bool:
        """Commits to this session have come, its record has not."""
        entry = self._replica.get(key)
        return entry is not None and entry.body is not None and not is_whole(entry)

    def take_parts(self, key: bytes) -> None:
        """Of a session of which only commits have come: nobody has more of it, so that is all there is."""
        entry = self._replica.get(key)
        if entry is not None and type(entry.body) is Record:
            entry.body.partial = False
            self._replica.changed[partition_of(key)] = 1

    def _settle_partial(self, key: bytes) -> list[Effect]:
        """Nobody has more of it: these parts are what is left of the session. Where all hold all, they get it now."""
        placement = self._moving.placement
        self.take_parts(key)
        if not placement.everywhere:
            self._moving.handover.assumed(key)
            return []
        return [Send(group, message) for group in placement.others(key, self._replica.primary_of(key)) for message in self._entropy.messages([key])]

    def _end_empty(self, key: bytes, now_ms: int) -> list[Effect]:
        """It went with its holders."""
        head = self._moving.handover.end_empty(key, now_ms)
        assert head is not None  # it was live, and empty
        told = self._moving.placement.heads(key, head.primary)
        return [*self.lookups.end(key, GONE), *(Send(group, self._say.heads([(key, head)])) for group in told)]

    def _is_good(self, key: bytes, now_ms: int) -> bool:
        """Whether this member holds the session, and would give its copy to others as the truth. It serves that too where those who may know better do
        not answer: a fault of theirs is none of this member's requests."""
        entry = self._servable(key, now_ms)
        if entry is None or self._moving.placement.depth(self.me, key, entry.primary) != WHOLE:
            return False
        return not self._is_doubtful(key, entry) and self._awake(now_ms)

    def _is_doubtful(self, key: bytes, entry: Entry) -> bool:
        """Whether what a holder has may be out of date: it was in the wrong place until lately, whether that has been looked at yet or not."""
        moving = self._moving
        return key in moving.handover.recovering or (key in moving.near and moving.placement.depth(self.me, key, entry.primary) == WHOLE)

    def has_ended(self, key: bytes, now_ms: int) -> bool:
        """By what is here, after all who could be were asked. A session whose time is over may have been used by whom we have just lost."""
        entry = self._replica.get(key)
        if entry is None or (entry.head is not None and entry.head.state != LIVE):
            return entry is not None
        if self._logins.is_over(key, entry):
            return True
        return is_whole(entry) and self._servable(key, now_ms) is None and self._sure(now_ms) and self._logins.epochs_are_known()

    def _exists(self, key: bytes) -> bool:
        """A live session of which something is here: it is somewhere."""
        entry = self._replica.get(key)
        return not self._moving.placement.everywhere and entry is not None and (entry.head is None or entry.head.state == LIVE)

    # -- being asked

    def asked(self, peer: bytes, key: bytes, now_ms: int, has_looked: bool = False) -> list[Effect]:
        """A LOOKUP. `has_looked`: into the store, if that has answered."""
        entry = self._replica.get(key)
        if self.has_store and not has_looked and self._should_look_there(peer, key, entry) and self._sure(now_ms):
            return [StoreWanted((peer, key))]
        if entry is None:
            return [self._verdict(peer, key, ABSENT if self._sure(now_ms) else UNSURE)]
        if entry.head is not None and entry.head.state != LIVE:
            return [*self._entropy.records(peer, [key]), self._verdict(peer, key, GONE)]
        if self._logins.is_over(key, entry):
            return [self._verdict(peer, key, GONE)]
        if self._sure(now_ms) and self._moving.handover.is_empty(key, self._moving.placement):
            return [self._verdict(peer, key, EMPTY)]
        if self._is_elsewhere(peer, key, entry):
            if self._moving.handover.parting.was_truth(key):
                return [*self._entropy.records(peer, [key]), self._verdict(peer, key, LEFT)]
            head = Session(key, entry.head, entry.created_ms, entry.touches, None)
            return [Send((peer,), self._say.records([head])), self._verdict(peer, key, ELSEWHERE)]
        if not is_whole(entry):
            return [self._verdict(peer, key, UNSURE)]
        is_over = self._servable(key, now_ms) is None
        if self._is_doubtful(key, entry) or not self._awake(now_ms) or (is_over and not self._sure(now_ms)):
            return [*self._entropy.records(peer, [key]), self._verdict(peer, key, UNSURE)]
        if not self._moving.placement.uniform:  # also one that should hold it, by our view: by its own it may not
            self._moving.watchers.watch(key, peer)
        return [*self._entropy.records(peer, [key]), self._verdict(peer, key, LEFT if self.is_behind(key) else FOUND)]

    def _should_look_there(self, peer: bytes, key: bytes, entry: Entry | None) -> bool:
        """Whether this holder has to look into the store before it answers: for who may not hold what is found there, or as its own copy may be older."""
        placement = self._moving.placement
        if placement.depth(self.me, key, b"" if entry is None else entry.primary) != WHOLE:
            return False
        if entry is not None:
            return key in (self._replica.unverified or ())
        return not placement.moves_primary or placement.is_lite(peer)

    def store_said(self, peer: bytes, key: bytes, verdict: int, now_ms: int) -> list[Effect]:
        """What came of a `StoreWanted`."""
        if self._replica.get(key) is not None:
            return self.asked(peer, key, now_ms, has_looked=True)
        return [self._verdict(peer, key, ABSENT if verdict == GONE and self._sure(now_ms) else UNSURE)]

    def _is_elsewhere(self, peer: bytes, key: bytes, entry: Entry) -> bool:
        """Whether others hold it, and this member does not."""
        placement = self._moving.placement
        if placement.everywhere or entry.head is None or placement.depth(self.me, key, entry.primary) == WHOLE:
            return False
        holders = self._moving.handover.holders(key, entry.primary, placement)
        return any(uid in placement.view and uid not in (self.me, peer) for uid in holders)

    def _verdict(self, peer: bytes, key: bytes, verdict: int) -> Send:
        return Send((peer,), self._say.answer(key, verdict))
