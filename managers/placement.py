"""Which members must hold what: a pure function of the view.

Keys fall into 4096 partitions by their first 12 bits. ``rank(p)`` orders the members for a partition by weighted
rendezvous hashing (Thaler & Ravishankar 1998; weights by the logarithm method of Schindelhauer & Schomaker 2005), so
every member computes the same order and a change of view moves only what it must. The two *keepers* of a partition are
its first ranked member and the first of the rest in another zone, else on another machine, else the next: whoever
wants to find any session asks them.

A placement is the strategy that tells the session managers apart. Ranks are computed when first asked for and cached
per view: one object per view, dropped with it.
"""

from __future__ import annotations

from hashlib import blake2b
from math import log
from typing import Protocol

from ..membership.member import Member
from ..membership.view import View

__all__ = ["PARTITIONS", "EveryMember", "Placement", "partition_of"]

PARTITIONS = 4096


def partition_of(key: bytes) -> int:
    """The partition of a session key: its first 12 bits."""
    return key[0] << 4 | key[1] >> 4


class Placement(Protocol):
    """Made anew for each view by a strategy. Reactor thread or under the manager's lock; computing a rank is idempotent."""

    view: View

    def keepers(self, partition: int) -> tuple[bytes, ...]:
        """Uids of the two keepers, best first (fewer when fewer members hold copies)."""

    def holders(self, key: bytes) -> tuple[bytes, ...]:
        """Uids of all members that must hold this session."""

    def peers(self) -> tuple[bytes, ...]:
        """Uids of the others that hold anything we hold: those to reconcile with."""


def _score(member: Member, partition: int) -> float:
    digest = blake2b(member.uid + partition.to_bytes(2, "big"), digest_size=8).digest()
    fraction = (int.from_bytes(digest, "big") + 1) / 2**64
    return -member.weight / log(fraction) if fraction < 1.0 else float("inf")


class Ranking:
    """rank(p) and keepers of one view, cached."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._members = [member for member in view if member.weight > 0]
        self._keepers: dict[int, tuple[bytes, ...]] = {}

    def rank(self, partition: int) -> list[Member]:
        return sorted(self._members, key=lambda member: (-_score(member, partition), member.uid))

    def keepers(self, partition: int) -> tuple[bytes, ...]:
        found = self._keepers.get(partition)
        if found is None:
            found = self._keepers[partition] = self._choose(self.rank(partition))
        return found

    @staticmethod
    def _choose(ranked: list[Member]) -> tuple[bytes, ...]:
        if len(ranked) < 2:
            return tuple(member.uid for member in ranked)
        first, rest = ranked[0], ranked[1:]
        for member in rest:
            if member.zone != first.zone:
                return first.uid, member.uid
        for member in rest:
            if (member.machine or member.host) != (first.machine or first.host):
                return first.uid, member.uid
        return first.uid, rest[0].uid


class EveryMember:
    """`DeltaManager`'s strategy: every member of the domain with a weight holds every session, and every head."""

    def __init__(self, view: View, me: bytes) -> None:
        self.view = view
        self._ranking = Ranking(view)
        self._holders = tuple(member.uid for member in view if member.weight > 0)
        self._peers = tuple(uid for uid in self._holders if uid != me)

    def keepers(self, partition: int) -> tuple[bytes, ...]:
        return self._ranking.keepers(partition)

    def holders(self, key: bytes) -> tuple[bytes, ...]:
        return self._holders

    def peers(self) -> tuple[bytes, ...]:
        return self._peers
