"""Finding a session that is not (or not surely) here: ask its keepers.

A look-up says *found*, *gone* or *unknown*. Gone needs a tombstone, or "no" from every keeper asked, each sure of itself
(in sync, and no unannounced loss lately). Everything else is unknown: the session may exist where nobody could be
asked. An answer that found the session comes after its record on the same lane, so the record is here already. A session that is just being
handed over is found when all have answered: what its last holder had, and what the next one has been told since, make it whole. Where that is not enough, and the
session surely exists, all are asked again until the look-up's time is over: a wait is better than "unknown".
"""

from __future__ import annotations

from collections.abc import Sequence

from ..membership.effects import Effect, Notify, Send
from .messages import ABSENT, FOUND, GONE, UNSURE, Speaker

__all__ = ["LookupEnded", "Lookups"]


_AGAIN_MS = 50
_PENDING_MAX = 4096  # a flood of made-up ids while nobody can say no; questions have no place in a full outbox's dirty keys


class LookupEnded(Notify):
    """`event` is (key, verdict): FOUND, GONE, or UNSURE for unknown."""


class _Lookup:
    __slots__ = ("asked", "certain", "cut", "denied", "done", "enough", "expires_ms", "named", "truth", "unsure")

    def __init__(self, asked: set[bytes], expires_ms: int, unsure: bool, certain: bool) -> None:
        self.asked = asked
        self.done: set[bytes] = set()  # who has answered
        self.expires_ms = expires_ms
        self.named: set[bytes] = set()  # whom others have named
        self.unsure = unsure
        self.truth = False  # what was the truth until lately is here; with what the others gave, it is again
        self.certain = certain  # it exists: worth to be asked for again
        self.cut = False  # somebody cannot answer
        self.denied = True  # all who have answered are sure that they have nothing
        self.enough = False  # what is here will do if nobody has more


class Lookups:
    """A part of the manager's core: pending questions by key."""

    def __init__(self, speaker: Speaker, timeout_ms: int) -> None:
        self._say = speaker
        self._timeout_ms = timeout_ms
        self._pending: dict[bytes, _Lookup] = {}
        self._again: dict[bytes, int] = {}  # when to ask once more
        self.asked = self.timeouts = 0

    def ask(self, key: bytes, keepers: Sequence[bytes], now_ms: int, unsure: bool = False, certain: bool = False) -> list[Effect]:
        """Ask these members, unless the question is out already. With nobody to ask, or too many questions out, the answer is unknown at once.

        `unsure`: "no" from all of them is unknown, and not gone. `certain`: there is such a session.
        """
        if key in self._pending:
            return []
        if not keepers or len(self._pending) >= _PENDING_MAX:
            return [LookupEnded((key, UNSURE))]
        self.asked += 1
        self._pending[key] = _Lookup(set(keepers), now_ms + self._timeout_ms, unsure, certain)
        return [Send(tuple(keepers), self._say.lookup(key))]

    def is_completed_by(self, peer: bytes, key: bytes) -> bool:
        """Whether everybody who was asked for this session has answered when this member has."""
        lookup = self._pending.get(key)
        return lookup is not None and lookup.asked == {peer} and not lookup.cut

    def believe(self, key: bytes) -> None:
        """Our copy of this was the truth until its place changed, lately."""
        lookup = self._pending.get(key)
        if lookup is not None:
            lookup.truth = True

    def accept(self, key: bytes) -> None:
        """What has come is served if the others who were asked do not answer."""
        lookup = self._pending.get(key)
        if lookup is not None:
            lookup.enough = True

    def has_heard(self, peer: bytes, key: bytes) -> bool:
        """This member was asked, and has answered."""
        lookup = self._pending.get(key)
        return lookup is not None and peer in lookup.done

    def is_named(self, peer: bytes, key: bytes) -> bool:
        """Somebody else has said that the session is with this member."""
        lookup = self._pending.get(key)
        return lookup is not None and peer in lookup.named

    def is_waiting(self, key: bytes, besides: bytes = b"") -> bool:
        """Somebody who was asked has not answered; `besides`: and is not this member."""
        lookup = self._pending.get(key)
        return lookup is not None and not lookup.asked <= {besides}

    def is_denied(self, key: bytes) -> bool:
        """All who have answered are sure that they have nothing of it."""
        lookup = self._pending.get(key)
        return lookup is not None and lookup.denied

    def found(self, key: bytes) -> list[Effect]:
        """What is here is all there is."""
        return self._end(key, FOUND) if key in self._pending else []

    def gone(self, key: bytes) -> list[Effect]:
        """It lived, and nobody has it any more."""
        return self._end(key, GONE) if key in self._pending else []

    def is_pending(self, key: bytes) -> bool:
        return key in self._pending

    def answered(self, peer: bytes, key: bytes, verdict: int, now_ms: int, certain: bool = False) -> list[Effect]:
        lookup = self._pending.get(key)
        if lookup is None or peer not in lookup.asked:
            return []
        lookup.asked.discard(peer)
        lookup.done.add(peer)
        if verdict in (FOUND, GONE):
            return self._end(key, verdict)
        lookup.unsure = lookup.unsure or verdict != ABSENT
        lookup.denied = lookup.denied and verdict == ABSENT
        lookup.certain = lookup.certain or certain
        return self._settle(key, lookup, now_ms)

    def redirected(self, peer: bytes, key: bytes, holders: Sequence[bytes], truth: bool, now_ms: int) -> list[Effect]:
        """It lives, with these: ask those of them that were not asked yet. Its existence is certain now, so "no" from everybody is *unknown*.
        `truth`: the copy of the one who says so came along, and was the truth until its place changed."""
        lookup = self._pending.get(key)
        if lookup is None or peer not in lookup.asked:
            return []
        lookup.asked.discard(peer)
        lookup.done.add(peer)
        lookup.unsure = lookup.certain = True
        lookup.denied = False
        lookup.truth = lookup.truth or truth
        lookup.named.update(uid for uid in holders if uid != peer)
        new = tuple(uid for uid in holders if uid not in lookup.asked and uid not in lookup.done)
        lookup.asked.update(new)
        return [Send(new, self._say.lookup(key))] if new else self._settle(key, lookup, now_ms)

    def cut(self, peer: bytes) -> list[Effect]:
        """This member will not answer: its link is gone."""
        effects: list[Effect] = []
        for key, lookup in sorted(self._pending.items()):
            if peer in lookup.asked:
                lookup.asked.discard(peer)
                lookup.unsure = lookup.cut = True
                effects += self._settle(key, lookup, 0)
        return effects

    def _settle(self, key: bytes, lookup: _Lookup, now_ms: int) -> list[Effect]:
        if lookup.asked:
            return []
        if lookup.enough or (lookup.truth and not lookup.cut):
            return self._end(key, FOUND)
        if lookup.unsure and lookup.certain and not lookup.cut:
            self._again[key] = now_ms + _AGAIN_MS  # it is just being handed over from one to another
            return []
        return self._end(key, UNSURE if lookup.unsure else GONE)

    def _end(self, key: bytes, verdict: int) -> list[Effect]:
        del self._pending[key]
        self._again.pop(key, None)
        return [LookupEnded((key, verdict))]

    def tick(self, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        for key in sorted(key for key, lookup in self._pending.items() if now_ms >= lookup.expires_ms):
            lookup = self._pending[key]
            self.timeouts += bool(lookup.asked)
            effects += self._end(key, FOUND if lookup.enough else UNSURE)
        for key in sorted(key for key, again_ms in self._again.items() if now_ms >= again_ms):
            del self._again[key]
            lookup = self._pending[key]
            lookup.asked, lookup.done = lookup.done, set()
            effects.append(Send(tuple(sorted(lookup.asked)), self._say.lookup(key)))
        return effects

    @property
    def deadline_ms(self) -> int | None:
        first = next((lookup.expires_ms for lookup in self._pending.values()), None)  # all have the same time, so the first is the oldest
        return min((at for at in (first, next(iter(self._again.values()), None)) if at is not None), default=None)
