"""How much memory sessions may take, and what gives way when they come near it.

What a session takes is estimated from its packed length, and kept as a sum (`Replica.bytes`): looked at when it comes, when it is packed or could be, and when it
goes, so that no commit pays for it, and the sum is right within `pack_after_s`. The budget bounds what is held, not the process, which has its outboxes, its near
copies' sources and the application besides.

Over nine tenths of it, in this order: near copies go (they can be fetched again), sessions whose time is over are ended as always, the oldest tombstones go that take
more than a quarter; who begins a new session is refused. Sessions that exist are served, grow and are replicated on: the last tenth is for them. A merge never refuses.
"""

from __future__ import annotations

from .entry import TOMBSTONE_BYTES
from .replica import Replica

__all__ = ["Budget"]

_FULL = 0.9
_TOMBSTONES = 0.25
_FEW_TOMBSTONES = 1000


class Budget:
    """A part of the manager's core. `most_bytes`: 0 for no bound."""

    def __init__(self, replica: Replica, most_bytes: int, tombstones_max: int) -> None:
        self._replica = replica
        self.most_bytes = most_bytes
        self._full_bytes = int(most_bytes * _FULL) if most_bytes else 2**63
        of_budget = max(_FEW_TOMBSTONES, int(most_bytes * _TOMBSTONES) // TOMBSTONE_BYTES)
        self.tombstones_max = min(tombstones_max, of_budget) if most_bytes else tombstones_max

    @property
    def is_full(self) -> bool:
        """Whether new sessions are refused."""
        return self._replica.bytes >= self._full_bytes
