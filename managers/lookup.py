"""Questions that are out: where is this session? Who was asked, who has answered what, whom others have named, and when to stop waiting.

What the answers mean is judged in one place, when all have come or the time is over (`Finding`, which ends the question or has it asked
again). Two answers end it at once: FOUND, as the session came before it on the same lane and is here already, and GONE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

from ..membership.effects import Effect, Notify, Send
from .messages import FOUND, GONE, UNSURE, Speaker

__all__ = ["EARLY", "SILENT", "LookupEnded", "Lookups", "Question", "StoreWanted"]


EARLY = -1  #: found, and somebody else may have more: good enough if nobody has
SILENT = -2  #: this member cannot answer, or has not in time

_AGAIN_MS = 50
_PENDING_MAX = 4096  # a flood of made-up ids while nobody can say no; questions have no place in a full outbox's dirty keys


class LookupEnded(Notify):
    """`event` is (key, verdict): FOUND, GONE, or UNSURE for unknown."""


class StoreWanted(Notify):
    """`event` is (peer, key): this member asks for what is not here, and a store may have."""


class Question:
    """A look-up under way. `doubted`: "no" from all of them is unknown, and not gone."""

    __slots__ = ("answers", "doubted", "expires_ms", "extra", "named", "shown", "waiting")

    def __init__(self, asked: Sequence[bytes], expires_ms: int, doubted: bool) -> None:
        self.waiting = set(asked)  #: members that were asked and have not answered
        self.answers: dict[bytes, int] = {}  #: by member, its verdict: of `messages`, or one of the two above
        self.named: set[bytes] = set()  #: members that have it by the word of others
        self.shown: set[bytes] = set()  #: members that have given it and not answered yet, and would be believed
        self.extra: set[bytes] = set()  #: members that were asked in the end, as they may have more (`Lookups.widen`)
        self.expires_ms = expires_ms
        self.doubted = doubted


class Lookups:
    """A part of the manager's core: pending questions by key. `conclude(key, question, now_ms)` is called when nobody is waited for any more; it
    calls `end`, or `again`."""

    def __init__(self, speaker: Speaker, timeout_ms: int, conclude: Callable[[bytes, Question, int], list[Effect]]) -> None:
        self._say = speaker
        self._timeout_ms = timeout_ms
        self._conclude = conclude
        self._pending: dict[bytes, Question] = {}
        self._again: dict[bytes, int] = {}  # when to ask once more
        self.asked = self.timeouts = 0

    def is_pending(self, key: bytes) -> bool:
        return key in self._pending

    def awaited(self, peer: bytes, key: bytes) -> Question | None:
        """The question that this member has still to answer."""
        question = self._pending.get(key)
        return question if question is not None and peer in question.waiting else None

    def ask(self, key: bytes, members: Sequence[bytes], now_ms: int, doubted: bool = False) -> list[Effect]:
        """Ask these, unless the question is out already. With nobody to ask, or too many questions out, the answer is unknown at once."""
        if key in self._pending:
            return []
        if not members or len(self._pending) >= _PENDING_MAX:
            return [LookupEnded((key, UNSURE))]
        self.asked += 1
        self._pending[key] = Question(members, now_ms + self._timeout_ms, doubted)
        return [Send(tuple(members), self._say.lookup(key))]

    def answered(self, peer: bytes, key: bytes, verdict: int, now_ms: int, holders: Sequence[bytes] = ()) -> list[Effect]:
        """`holders`: who has it, by what this member has said: those of them that were not asked yet are asked now. Too late, it changes nothing."""
        question = self.awaited(peer, key)
        if question is None:
            return []
        question.waiting.discard(peer)
        question.shown.discard(peer)
        question.answers[peer] = verdict
        if verdict in (FOUND, GONE):
            return self.end(key, verdict)
        question.named.update(uid for uid in holders if uid != peer)
        new = tuple(uid for uid in holders if uid not in question.waiting and uid not in question.answers)
        question.waiting.update(new)
        if new:
            return [Send(new, self._say.lookup(key))]
        return [] if question.waiting else self._conclude(key, question, now_ms)

    def widen(self, key: bytes, members: Sequence[bytes], cut: Set[bytes]) -> list[Effect]:
        """Ask these too before it is judged, but for those that cannot be (`cut`)."""
        question = self._pending[key]
        question.extra.update(members)
        question.answers.update((uid, SILENT) for uid in members if uid in cut)
        asked = tuple(uid for uid in members if uid not in cut)
        question.waiting.update(asked)
        return [Send(asked, self._say.lookup(key))] if asked else []

    def cut(self, peer: bytes, now_ms: int) -> list[Effect]:
        """This member will not answer: its link is gone."""
        effects: list[Effect] = []
        for key in sorted(key for key, question in self._pending.items() if peer in question.waiting):
            effects += self.answered(peer, key, SILENT, now_ms)
        for key in sorted(key for key in self._again if peer in self._pending[key].answers):
            question = self._pending[key]
            del question.answers[peer]  # it is not asked again
            if not question.answers:
                effects += self.end(key, UNSURE)
        return effects

    def again(self, key: bytes, now_ms: int) -> list[Effect]:
        """Ask all of them once more in a moment, if there is time. What they say then is no more certain than what they have said now."""
        question = self._pending[key]
        if now_ms >= question.expires_ms:
            return self.end(key, UNSURE)
        self._again[key] = now_ms + _AGAIN_MS
        question.doubted = True
        return []

    def end(self, key: bytes, verdict: int) -> list[Effect]:
        """Whoever waits for this hears FOUND, GONE or UNSURE."""
        self._again.pop(key, None)
        return [LookupEnded((key, verdict))] if self._pending.pop(key, None) is not None else []

    def tick(self, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        for key in sorted(key for key, question in self._pending.items() if now_ms >= question.expires_ms):
            question = self._pending[key]
            self.timeouts += bool(question.waiting)
            for uid in sorted(question.waiting or question.answers):
                question.answers[uid] = EARLY if uid in question.shown else SILENT
            effects += self._conclude(key, question, now_ms)
        for key in sorted(key for key, again_ms in self._again.items() if now_ms >= again_ms):
            del self._again[key]
            question = self._pending[key]
            question.waiting, question.answers, question.shown = set(question.answers), {}, set()
            effects.append(Send(tuple(sorted(question.waiting)), self._say.lookup(key)))
        return effects

    @property
    def deadline_ms(self) -> int | None:
        first = next((question.expires_ms for question in self._pending.values()), None)  # all have the same time, so the first is the oldest
        return min((at for at in (first, next(iter(self._again.values()), None)) if at is not None), default=None)
