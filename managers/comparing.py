"""When members compare what they hold though nothing asks for it: whatever slipped through every other occasion ends here.

Each period a member begins a round with all that it leads, all at once, so that what has changed is read once for all of them. A moment after a
change of the view it does so too: who saw the change sooner or later may have told others than should hold a session now. After a
partition it also asks those that lead it: who was in between may have seen none, and yet have missed something.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..membership.effects import Send
from .antientropy import SUMS_SINCE, AntiEntropy
from .digests import Digests

__all__ = ["HEALED_MS", "Comparing"]

_SETTLED_MS = 2000  # after a change of the view
HEALED_MS = _SETTLED_MS + 1000  #: after a partition has ended most of what differs has been found


class Comparing:
    """A part of the manager's core. `due_ms`: when to `begin`."""

    def __init__(self, me: bytes, entropy: AntiEntropy, digests: Digests, period_ms: int, now_ms: int) -> None:
        self.me = me
        self._entropy = entropy
        self._digests = digests
        self._period_ms = period_ms
        self._with_leaders = False
        self.due_ms = now_ms + period_ms

    def hurry(self, now_ms: int, healing: bool) -> None:
        """The view has changed; `healing`: some of those that came or went had something to lose."""
        self.due_ms = now_ms + min(_SETTLED_MS, self._period_ms)
        self._with_leaders = self._with_leaders or healing

    def begin(self, now_ms: int, peers: Iterable[tuple[bytes, int]]) -> list[Send]:
        """`peers`: (uid, protocol version). A round that gets on needs no other. Members of protocol 1 begin themselves."""
        self.due_ms = now_ms + self._period_ms
        self._digests.doubt_some()
        sends: list[Send] = []
        for uid, version in peers:
            if (uid > self.me or self._with_leaders) and version >= SUMS_SINCE and not self._entropy.is_moving(uid):
                sends += self._entropy.begin(uid, version, now_ms, stuck=True)
        self._with_leaders = False
        return sends
