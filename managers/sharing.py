"""What this member and another must both hold of a session: that is what the two compare.

A near copy is not the truth, so of a session in the near cache at most the head counts, even where this member should hold the whole.
"""

from __future__ import annotations

from collections.abc import Iterator

from .digests import Sharers
from .near import NearCache
from .placement import HEAD, NOTHING, Placement

__all__ = ["Sharing"]


class Sharing:
    """A part of the manager's core. `placement`: the present one, set by the core at each change of view."""

    def __init__(self, me: bytes, near: NearCache, placement: Placement) -> None:
        self.me = me
        self.placement = placement
        self._near = near

    def common(self, peer: bytes, key: bytes, named: bytes) -> int:
        """`NOTHING`, `HEAD` or `WHOLE`. `named`: the primary that the session's head names."""
        return min(self._mine(key, named), self.placement.depth(peer, key, named))

    @property
    def sharers(self) -> Sharers | None:
        """Every peer with which something of a session is shared, and what. None: everything is shared with everybody."""
        return None if self.placement.uniform else self._sharers

    def _sharers(self, key: bytes, named: bytes) -> Iterator[tuple[bytes, int]]:
        mine, placement = self._mine(key, named), self.placement
        if mine != NOTHING:
            for group in placement.heads(key, named):
                for uid in group:
                    yield uid, min(mine, placement.depth(uid, key, named))

    def _mine(self, key: bytes, named: bytes) -> int:
        depth = self.placement.depth(self.me, key, named)
        return min(depth, HEAD) if key in self._near else depth
