"""When to dial a member again, and what has waited long enough: every deadline of the channel.

A link that lost its connection is dialled again: at once by the end that had dialled it, a little later by the other (as
one dial is enough), then with pauses that double up to a bound, with jitter, so that a cluster does not dial in step. The
pauses start small again only after a connection has lasted: one that is made and broken in a loop costs no more than one
that is refused. Own core instead of Twisted's `ClientService`: which end dials and why a dial failed matter here, and one
timer serves all.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

__all__ = ["Dial", "Expired", "Redial"]

_OTHER_END_S = 0.2  # the head start of the end that had dialled: a slow round trip, and a killed peer is still known in well under a second


@dataclass(frozen=True, slots=True)
class Dial:
    """Effect: dial this member."""

    uid: bytes


@dataclass(frozen=True, slots=True)
class Expired:
    """Effect: what was guarded under this token has taken too long."""

    token: Any


class _Entry:
    __slots__ = ("attempts", "due", "lasting_at")

    def __init__(self) -> None:
        self.attempts = 0
        self.due: float | None = None  # None: connected, or a dial is under way
        self.lasting_at = 0.0


class Redial:
    """`min_s`, `max_s`: bounds of the pause."""

    def __init__(self, *, min_s: float, max_s: float, rng: Random) -> None:
        self._min_s = min_s
        self._max_s = max(min_s, max_s)
        self._rng = rng
        self._entries: dict[bytes, _Entry] = {}
        self._guards: dict[Any, float] = {}

    def opened(self, now: float, uid: bytes) -> None:
        """The link has a connection."""
        entry = self._entries.setdefault(uid, _Entry())
        entry.due = None
        entry.lasting_at = now + self._max_s

    def lost(self, now: float, uid: bytes, dialled: bool) -> None:
        """The link lost its connection; `dialled`: by this end."""
        entry = self._entries.setdefault(uid, _Entry())
        if now >= entry.lasting_at:
            entry.attempts = 0
        entry.due = now + (0.0 if dialled else _OTHER_END_S) + (self._pause(entry) if entry.attempts else 0.0)
        entry.attempts += 1

    def failed(self, now: float, uid: bytes) -> None:
        """A dial of a member without connection came to nothing."""
        entry = self._entries.get(uid)
        if entry is not None and entry.due is None:
            entry.due = now + self._pause(entry)
            entry.attempts += 1

    def forget(self, uid: bytes) -> None:
        self._entries.pop(uid, None)

    def guard(self, token: Any, deadline: float) -> None:
        """Tell (`Expired`) if `release` does not come first. One deadline a token."""
        self._guards[token] = deadline

    def release(self, token: Any) -> None:
        self._guards.pop(token, None)

    def tick(self, now: float) -> list[Dial | Expired]:
        effects: list[Dial | Expired] = []
        for uid in sorted(uid for uid, entry in self._entries.items() if entry.due is not None and entry.due <= now):
            self._entries[uid].due = None
            effects.append(Dial(uid))
        for token in [token for token, deadline in self._guards.items() if deadline <= now]:
            del self._guards[token]
            effects.append(Expired(token))
        return effects

    def deadline(self) -> float | None:
        dues = [entry.due for entry in self._entries.values() if entry.due is not None]
        return min((*dues, *self._guards.values()), default=None)

    def statistics(self) -> dict[str, int]:
        return {"redials_waiting": sum(entry.due is not None for entry in self._entries.values()), "deadlines": len(self._guards)}

    def _pause(self, entry: _Entry) -> float:
        pause = min(self._max_s, self._min_s * 2.0 ** min(entry.attempts, 32))
        return pause * (0.5 + self._rng.random() / 2)
