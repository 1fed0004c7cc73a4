"""Who is alive: silence raises a suspicion, others are asked, and only then somebody is gone.

Any sign of life counts: a datagram, or any frame over the link. A member that is *quiet* (no sign for two heartbeats) is
probed over its link; so where no datagrams come at all, links prove life. A member is *suspect* when it is silent for the
drop time although probed, or at once when its connection broke and the redial was refused: then nobody listens there.
A suspicion opens an *inquiry*: up to three other members are asked whether they reach it. One "yes" clears the suspect for
one drop time (our way to it is broken, not the member); if none comes in time it is gone.

Who is asked answers "yes" only on a sign of life *newer than the question* (it probes for one), because everybody heard a
killed process a moment ago. If half of the asker's patience passes without one, a link that is up and was heard on
recently still counts: the suspect may be slow for a moment. A refused inquiry ends only by a new link or by a "yes":
a datagram that the dead process left in our socket proves nothing.

Silence is judged once per heartbeat, never in between, so `alive` is one dictionary store and needs no new deadline.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from .effects import Effect, Notify, Send
from .member import Member
from .messages import Alive, Ask, Control, Probe, Verdict, to_message
from .settings import MembershipSettings

__all__ = ["Detector", "Gone", "MemberCleared", "MemberSuspected"]

_ASKED_MAX = 3


@dataclass(frozen=True, slots=True)
class MemberSuspected:
    """Silent for the drop time, or its port refused us; others are being asked. It still is a member."""

    member: Member


@dataclass(frozen=True, slots=True)
class MemberCleared:
    """The suspicion was wrong, or only our own way to it is broken."""

    member: Member


@dataclass(frozen=True, slots=True)
class Gone:
    """Judgement: this member does not live any more. For `Group` alone."""

    uid: bytes


class _Watched:
    """What is known of one member's life besides when it was last heard."""

    __slots__ = ("excused_until", "inquiry", "linked", "member", "probed")

    def __init__(self, member: Member) -> None:
        self.member = member
        self.linked = False  # a connection is up
        self.probed = False  # a probe is under way on this connection: one is enough, the link loses nothing
        self.inquiry: _Inquiry | None = None
        self.excused_until = 0.0  # others reached it: no new suspicion before


@dataclass(slots=True)
class _Inquiry:
    """Our question about a suspect."""

    nonce: int
    begun: float
    deadline: float
    refused: bool
    pending: set[bytes]


@dataclass(slots=True)
class _Question:
    """Another member's question about a target of ours. `probe`: an answer to this one or a later one proves life."""

    nonce: int
    begun: float
    deadline: float
    probe: int


class Detector:
    """Core. Knows members only by what `Group` adds; answers with messages, notes and `Gone`."""

    def __init__(self, settings: MembershipSettings, rng: Random) -> None:
        self._quiet_s = 2 * settings.heartbeat_interval_s
        self._drop_s = settings.drop_time_s
        self._patience_s = settings.probe_timeout_s
        self._rng = rng
        self._watched: dict[bytes, _Watched] = {}
        self._heard: dict[bytes, float] = {}  # the same keys; apart, so that a sign of life is one store
        self._questions: dict[tuple[bytes, bytes], _Question] = {}  # (asker, target): one each, so bounded by the members' square
        self._nonce = 0
        self.probes = self.suspicions = self.cleared = self.refusals = 0

    # -- who is watched

    def add(self, now: float, member: Member) -> None:
        self._watched[member.uid] = _Watched(member)
        self._heard[member.uid] = now

    def remove(self, uid: bytes) -> None:
        """Does nothing for one that is gone already."""
        self._watched.pop(uid, None)
        self._heard.pop(uid, None)
        self._questions = {pair: question for pair, question in self._questions.items() if uid not in pair}

    def renew(self, member: Member) -> None:
        self._watched[member.uid].member = member

    def is_linked(self, uid: bytes) -> bool:
        return uid in self._watched and self._watched[uid].linked

    # -- signs of life

    def alive(self, now: float, uid: bytes) -> None:
        """Any sign of life. The hot path: every frame of every link comes through here."""
        if uid in self._heard:
            self._heard[uid] = now

    def heard(self, now: float, uid: bytes) -> list[Effect]:
        """A datagram: a sign of life that also ends a suspicion of silence."""
        self._heard[uid] = now
        inquiry = self._watched[uid].inquiry
        return self._clear(uid) if inquiry is not None and not inquiry.refused else []

    def linked(self, now: float, uid: bytes) -> list[Effect]:
        """A new connection: the process is there, whatever was thought of it."""
        watched = self._watched[uid]
        watched.linked, watched.probed = True, False
        self._heard[uid] = now
        return self._clear(uid) if watched.inquiry is not None else []

    def unlinked(self, now: float, uid: bytes, refused: bool) -> list[Effect]:
        """The connection is gone. `refused`: and nobody listens at its address."""
        watched = self._watched[uid]
        watched.linked = watched.probed = False
        if not refused:
            return []
        self.refusals += 1
        effects = self._answer_all(uid, self._nonce, False)
        if watched.inquiry is not None:
            watched.inquiry.refused = True
            return effects if watched.inquiry.pending else effects + self._conclude(uid)
        return effects + self._suspect(now, [uid], refused=True) if watched.excused_until <= now else effects

    def slept(self, now: float) -> None:
        """We were asleep, not they: everybody gets a fresh drop time, and inquiries a fresh patience; who asked us waits no more."""
        self._questions.clear()
        for uid, watched in self._watched.items():
            self._heard[uid] = now
            if watched.inquiry is not None:
                watched.inquiry.deadline = now + self._patience_s

    # -- messages

    def received(self, now: float, uid: bytes, control: Control) -> list[Effect]:
        """`control`: one of the four about life, from the member `uid`."""
        match control:
            case Probe(nonce):
                return [_send(uid, Alive(nonce))]
            case Alive(nonce):
                self._watched[uid].probed = False
                return self._answer_all(uid, nonce, True)
            case Ask(nonce, target):
                return self._asked(now, uid, nonce, target)
            case Verdict(nonce, target, reached):
                return self._judge(now, uid, nonce, target, reached)
        return []

    def _asked(self, now: float, asker: bytes, nonce: int, target: bytes) -> list[Effect]:
        watched = self._watched.get(target)
        if watched is None or (watched.inquiry is not None and watched.inquiry.refused):
            return [_send(asker, Verdict(nonce, target, False))]
        probe = self._next_nonce()
        self._questions[asker, target] = _Question(nonce, now, now + self._patience_s / 2, probe)
        return [_send(target, Probe(probe))] if watched.linked else []

    def _answer_all(self, target: bytes, probe: int, reached: bool) -> list[Effect]:
        """Answer all questions about the target that are not younger than this probe."""
        asked = sorted(pair for pair, question in self._questions.items() if pair[1] == target and question.probe <= probe)
        return [_send(asker, Verdict(self._questions.pop((asker, target)).nonce, target, reached)) for asker, target in asked]

    def _judge(self, now: float, uid: bytes, nonce: int, target: bytes, reached: bool) -> list[Effect]:
        watched = self._watched.get(target)
        if watched is None or watched.inquiry is None or watched.inquiry.nonce != nonce or uid not in watched.inquiry.pending:
            return []  # late, or never asked
        if reached:
            watched.excused_until = now + self._drop_s
            return self._clear(target)
        watched.inquiry.pending.discard(uid)
        return [] if watched.inquiry.pending else self._conclude(target)

    # -- time

    def tick(self, now: float, beat: bool) -> list[Effect]:
        """`beat`: a heartbeat interval has passed, so silence is judged too."""
        effects: list[Effect] = []
        for uid in sorted(uid for uid, watched in self._watched.items() if watched.inquiry is not None and watched.inquiry.deadline <= now):
            effects += self._conclude(uid)
        for pair in sorted(pair for pair, question in self._questions.items() if question.deadline <= now):
            effects.append(self._answer_late(now, *pair))
        if beat:
            effects += self._listen(now)
        return effects

    def deadline(self) -> float | None:
        return min(self._deadlines(), default=None)

    def _deadlines(self) -> Iterator[float]:
        yield from (watched.inquiry.deadline for watched in self._watched.values() if watched.inquiry is not None)
        yield from (question.deadline for question in self._questions.values())

    def _listen(self, now: float) -> list[Effect]:
        """Probe the quiet, suspect the silent."""
        effects: list[Effect] = []
        silent = []
        for uid in sorted(self._watched):
            watched = self._watched[uid]
            if watched.inquiry is not None:
                if not watched.inquiry.refused and self._heard[uid] >= watched.inquiry.begun:
                    effects += self._clear(uid)
                continue
            if self._heard[uid] + self._quiet_s > now:
                continue
            if watched.linked and not watched.probed:
                watched.probed = True
                self.probes += 1
                effects.append(_send(uid, Probe(self._next_nonce())))
            if self._heard[uid] + self._drop_s <= now and watched.excused_until <= now:
                silent.append(uid)
        return effects + self._suspect(now, silent, refused=False)

    def _suspect(self, now: float, uids: list[bytes], refused: bool) -> list[Effect]:
        effects: list[Effect] = []
        for uid in uids:
            self._watched[uid].inquiry = _Inquiry(self._next_nonce(), now, now + self._patience_s, refused, set())
            self.suspicions += 1
            effects.append(Notify(MemberSuspected(self._watched[uid].member)))
        witnesses = sorted(uid for uid, watched in self._watched.items() if watched.linked and watched.inquiry is None)
        for uid in uids:
            inquiry = self._watched[uid].inquiry
            assert inquiry is not None
            inquiry.pending.update(self._rng.sample(witnesses, min(_ASKED_MAX, len(witnesses))))
            if inquiry.pending:
                effects.append(Send(tuple(sorted(inquiry.pending)), to_message(Ask(inquiry.nonce, uid))))
            elif refused:
                effects += self._conclude(uid)  # nobody to ask, and nobody listens there; after silence its last probe gets its full time
        return effects

    def _conclude(self, uid: bytes) -> list[Effect]:
        """The inquiry is over and nobody has reached it."""
        inquiry = self._watched[uid].inquiry
        assert inquiry is not None
        if not inquiry.refused and self._heard[uid] >= inquiry.begun:
            return self._clear(uid)
        effects = self._answer_all(uid, self._nonce, False)
        self.remove(uid)
        return [*effects, Gone(uid)]

    def _clear(self, uid: bytes) -> list[Effect]:
        watched = self._watched[uid]
        watched.inquiry = None
        self.cleared += 1
        return [Notify(MemberCleared(watched.member))]

    def _answer_late(self, now: float, asker: bytes, target: bytes) -> Effect:
        question = self._questions.pop((asker, target))
        heard = self._heard[target]
        reached = heard >= question.begun or (self._watched[target].linked and heard + self._quiet_s > now)
        return _send(asker, Verdict(question.nonce, target, reached))

    def _next_nonce(self) -> int:
        self._nonce += 1
        return self._nonce


def _send(uid: bytes, control: Control) -> Send:
    return Send((uid,), to_message(control))
