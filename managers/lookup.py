"""Finding a session that is not (or not surely) here: ask its keepers.

A look-up says *found*, *gone* or *unknown*. Gone needs a tombstone, or "no" from every keeper asked, each sure of itself
(in sync, and no unannounced loss lately). Everything else is unknown: the session may exist where nobody could be
asked. An answer that found the session comes after its record on the same lane, so the record is here already.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..membership.effects import Effect, Notify, Send
from .messages import ABSENT, FOUND, GONE, UNSURE, Speaker

__all__ = ["LookupEnded", "Lookups"]


_PENDING_MAX = 4096  # a flood of made-up ids while nobody can say no; questions have no place in a full outbox's dirty keys


class LookupEnded(Notify):
    """`event` is (key, verdict): FOUND, GONE, or UNSURE for unknown."""


class _Lookup:
    __slots__ = ("asked", "cut", "done", "expires_ms", "unsure")

    def __init__(self, asked: set[bytes], expires_ms: int) -> None:
        self.asked = asked
        self.done: set[bytes] = set()  # who has answered
        self.expires_ms = expires_ms
        self.unsure = False
        self.cut = False  # somebody cannot answer


class Lookups:
    """A part of the manager's core: pending questions by key."""

    def __init__(self, speaker: Speaker, timeout_ms: int) -> None:
        self._say = speaker
        self._timeout_ms = timeout_ms
        self._pending: dict[bytes, _Lookup] = {}
        self.asked = self.timeouts = 0

    def ask(self, key: bytes, keepers: Sequence[bytes], now_ms: int, unsure: bool = False) -> list[Effect]:
        """Ask these members, unless the question is out already. With nobody to ask, or too many questions out, the answer is unknown at once.

        `unsure`: "no" from all of them is unknown, and not gone.
        """
        if key in self._pending:
            return []
        if not keepers or len(self._pending) >= _PENDING_MAX:
            return [LookupEnded((key, UNSURE))]
        self.asked += 1
        self._pending[key] = lookup = _Lookup(set(keepers), now_ms + self._timeout_ms)
        lookup.unsure = unsure
        return [Send(tuple(keepers), self._say.lookup(key))]

    def is_completed_by(self, peer: bytes, key: bytes) -> bool:
        """Whether everybody who was asked for this session has answered when this member has."""
        lookup = self._pending.get(key)
        return lookup is not None and lookup.asked == {peer} and not lookup.cut

    def is_pending(self, key: bytes) -> bool:
        return key in self._pending

    def answered(self, peer: bytes, key: bytes, verdict: int) -> list[Effect]:
        lookup = self._pending.get(key)
        if lookup is None or peer not in lookup.asked:
            return []
        lookup.asked.discard(peer)
        lookup.done.add(peer)
        if verdict in (FOUND, GONE):
            del self._pending[key]
            return [LookupEnded((key, verdict))]
        lookup.unsure = lookup.unsure or verdict != ABSENT
        return self._settle(key, lookup)

    def redirected(self, peer: bytes, key: bytes, holders: Sequence[bytes]) -> list[Effect]:
        """It lives, with these: ask those of them that were not asked yet. Its existence is certain now, so "no" from everybody is *unknown*."""
        lookup = self._pending.get(key)
        if lookup is None or peer not in lookup.asked:
            return []
        lookup.asked.discard(peer)
        lookup.done.add(peer)
        lookup.unsure = True
        new = tuple(uid for uid in holders if uid not in lookup.asked and uid not in lookup.done)
        lookup.asked.update(new)
        return [Send(new, self._say.lookup(key))] if new else self._settle(key, lookup)

    def lost(self, peer: bytes) -> list[Effect]:
        """This member will not answer: its link is gone."""
        effects: list[Effect] = []
        for key, lookup in sorted(self._pending.items()):
            if peer in lookup.asked:
                lookup.asked.discard(peer)
                lookup.unsure = lookup.cut = True
                effects += self._settle(key, lookup)
        return effects

    def _settle(self, key: bytes, lookup: _Lookup) -> list[Effect]:
        if lookup.asked:
            return []
        del self._pending[key]
        return [LookupEnded((key, UNSURE if lookup.unsure else GONE))]

    def tick(self, now_ms: int) -> list[Effect]:
        late = sorted(key for key, lookup in self._pending.items() if now_ms >= lookup.expires_ms)
        for key in late:
            del self._pending[key]
        self.timeouts += len(late)
        return [LookupEnded((key, UNSURE)) for key in late]

    @property
    def deadline_ms(self) -> int | None:
        return next((lookup.expires_ms for lookup in self._pending.values()), None)  # all have the same time, so the first is the oldest
