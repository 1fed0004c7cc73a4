"""Which members must hold what: a pure function of the view and of who is primary.

Keys fall into 4096 partitions by their first 12 bits. ``rank(p)`` orders the members for a partition by weighted
rendezvous hashing (Thaler & Ravishankar 1998; weights by the logarithm method of Schindelhauer & Schomaker 2005), so
every member computes the same order and a change of view moves only what it must. The two *keepers* of a partition are
its first ranked member and the first of the rest in another zone, else on another machine, else the next: they hold the
head of every session of the partition, so whoever wants to find any session asks them.

A placement is the strategy that tells the session managers apart:

- `EveryMember`: everybody holds everything;
- `PrimaryAndBackups`: the primary named in the head, wherever it is, and backups, the keepers before others;
- `Ranked`: the keepers and the next ranked, whoever serves the session;
- `Alone` (`alone.py`): nobody but who serves it, as a store has it.

Everything is computed when first asked for and cached per view: one object per view, dropped with it. Members without
weight hold nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b
from math import log
from typing import Any, Protocol, TypeVar

from ..membership.member import Member
from ..membership.view import View

__all__ = [
    "HEAD",
    "NOTHING",
    "PARTITIONS",
    "WHOLE",
    "EveryMember",
    "Groups",
    "Placement",
    "PrimaryAndBackups",
    "Ranked",
    "Ranking",
    "Strategy",
    "Uids",
    "gather",
    "machine_of",
    "outranks",
    "partition_of",
]

PARTITIONS = 4096
NOTHING, HEAD, WHOLE = range(3)

Uids = tuple[bytes, ...]
Groups = tuple[Uids, ...]  #: members that are told the same things, so that one message serves each group
_To = TypeVar("_To", bytes, Uids)


def partition_of(key: bytes) -> int:
    """The partition of a session key: its first 12 bits."""
    return key[0] << 4 | key[1] >> 4


def gather(pairs: Iterable[tuple[_To, Any]]) -> list[tuple[_To, list[Any]]]:
    """(member or group, something for it) -> what there is for each, in the order of the members."""
    gathered: dict[_To, list[Any]] = {}
    for to, one in pairs:
        gathered.setdefault(to, []).append(one)
    return sorted(gathered.items())


class Placement(Protocol):
    """Made anew for each view by a strategy. Reactor thread or under the manager's lock; computing a rank is idempotent.

    `named` is the primary that a session's head names; it need not be here any more. `everywhere`: this member holds every session,
    so that what is not here is at no other; `uniform`: and so does every other; `sees_all`: and these are all sessions that there are. `moves_primary`: who serves a session becomes its primary, and its head
    says so; else that is who created it, and decides nothing.
    """

    view: View
    everywhere: bool
    uniform: bool
    sees_all: bool
    moves_primary: bool

    def keepers(self, partition: int) -> Uids:
        """The two keepers, best first (fewer when fewer members hold copies)."""

    def granter(self, key: bytes, but: bytes = b"") -> bytes:
        """Who grants the session's lock: the best ranked member, of others than this one; `b""` if nobody can."""

    def primary(self, key: bytes, named: bytes) -> bytes:
        """Who leads this session, `b""` if nobody can: the named one if it is here and can hold copies, else the best ranked."""

    def holders(self, key: bytes, named: bytes) -> Uids:
        """All members that must hold this session, the primary first."""

    def others(self, key: bytes, named: bytes) -> Groups:
        """The holders besides this member, as groups."""

    def heads(self, key: bytes, named: bytes) -> Groups:
        """The members besides this one that must know its head: holders and keepers, as groups."""

    def depth(self, uid: bytes, key: bytes, named: bytes) -> int:
        """What this member must hold of the session: `NOTHING`, `HEAD` or `WHOLE`."""

    def serves(self, key: bytes, named: bytes) -> bool:
        """Whether this member may answer for the session from its own copy, as somebody who is told of every change."""

    def appoint(self, key: bytes) -> bytes:
        """The primary of a session that this member creates."""

    def leads(self, named: bytes) -> bool:
        """Whether this member, when it serves a session of that primary, should become its primary."""

    def is_lite(self, uid: bytes) -> bool:
        """Whether this member is here and has no weight: it holds nothing."""

    def is_orphan(self, named: bytes) -> bool:
        """Whether a session of that primary needs another one, served or not: this one is gone, or is about to leave."""

    def vouches(self, uid: bytes, key: bytes, named: bytes) -> bool:
        """Whether what this member gives of a session is as new as anything that others may have given up relying on it."""

    def is_stray(self, author: bytes, named: bytes) -> bool:
        """Whether a commit by this member may have missed the session's primary, because its author took another for the primary (or itself)."""

    def peers(self) -> Uids:
        """The others that may hold anything we hold: those to reconcile with."""


Strategy = Callable[[View, bytes], Placement]  #: ``strategy(view, me)``


def _score(member: Member, partition: int) -> float:
    digest = blake2b(member.uid + partition.to_bytes(2, "big"), digest_size=8).digest()
    fraction = (int.from_bytes(digest, "big") + 1) / 2**64
    return -member.weight / log(fraction) if fraction < 1.0 else float("inf")


def outranks(one: Member, other: Member | None, key: bytes) -> bool:
    """Whether the first comes before the other (None: nobody) in the ranking of this key's partition."""
    if other is None or not other.weight:
        return one.weight > 0
    partition = partition_of(key)
    return one.weight > 0 and (-_score(one, partition), one.uid) < (-_score(other, partition), other.uid)


def machine_of(member: Member) -> str:
    """What tells its machine from others."""
    return member.machine or member.host


def _spread(chosen: list[Member], candidates: list[Member]) -> Member:
    """The best ranked candidate in a zone not yet used, else on a machine not yet used, else the best ranked."""
    zones, machines = {member.zone for member in chosen}, {machine_of(member) for member in chosen}
    for member in candidates:
        if member.zone not in zones:
            return member
    for member in candidates:
        if machine_of(member) not in machines:
            return member
    return candidates[0]


class Ranking:
    """rank(p) and keepers of one view, cached."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.members = [member for member in view if member.weight > 0]
        self._ranks: dict[int, list[Member]] = {}
        self._keepers: dict[int, Uids] = {}

    def rank(self, partition: int) -> list[Member]:
        found = self._ranks.get(partition)
        if found is None:
            found = self._ranks[partition] = sorted(self.members, key=lambda member: (-_score(member, partition), member.uid))
        return found

    def keepers(self, partition: int) -> Uids:
        found = self._keepers.get(partition)
        if found is None:
            ranked = self.rank(partition)
            chosen = ranked[:1]
            if len(ranked) > 1:
                chosen.append(_spread(chosen, ranked[1:]))
            found = self._keepers[partition] = tuple(member.uid for member in chosen)
        return found


class EveryMember:
    """`DeltaManager`'s strategy: every member of the domain with a weight holds every session, and every head."""

    moves_primary = True

    def __init__(self, view: View, me: bytes) -> None:
        self.view = view
        self._me = me
        self._ranking = Ranking(view)
        self._holders = tuple(member.uid for member in self._ranking.members)
        self._with_weight = frozenset(self._holders)
        self.everywhere = self.sees_all = me in self._holders or not self._holders
        self.uniform = len(self._holders) in (0, len(view))
        self._peers = tuple(member.uid for member in view if member.uid != me)
        told = tuple(uid for uid in self._holders if uid != me)
        self._groups: Groups = (told,) if told else ()

    def keepers(self, partition: int) -> Uids:
        return self._ranking.keepers(partition)

    def granter(self, key: bytes, but: bytes = b"") -> bytes:
        return next((member.uid for member in self._ranking.rank(partition_of(key)) if member.uid != but), b"")

    def primary(self, key: bytes, named: bytes) -> bytes:
        if named in self._with_weight:
            return named
        return next(iter(self.keepers(partition_of(key))), b"")

    def holders(self, key: bytes, named: bytes) -> Uids:
        return self._holders

    def others(self, key: bytes, named: bytes) -> Groups:
        return self._groups

    def heads(self, key: bytes, named: bytes) -> Groups:
        return self._groups

    def depth(self, uid: bytes, key: bytes, named: bytes) -> int:
        return WHOLE if uid in self._with_weight else NOTHING

    def serves(self, key: bytes, named: bytes) -> bool:
        return self.everywhere

    def appoint(self, key: bytes) -> bytes:
        return self._me

    def leads(self, named: bytes) -> bool:
        return named not in self._with_weight and self._me in self._with_weight

    def is_lite(self, uid: bytes) -> bool:
        return uid in self.view and uid not in self._with_weight

    def is_orphan(self, named: bytes) -> bool:
        return False  # whoever serves it next takes it over

    def vouches(self, uid: bytes, key: bytes, named: bytes) -> bool:
        return True

    def is_stray(self, author: bytes, named: bytes) -> bool:
        return False

    def peers(self) -> Uids:
        return self._peers


class _Partial:
    """A strategy by which a session is held by some members only."""

    everywhere = uniform = sees_all = moves_primary = False

    def __init__(self, view: View, me: bytes, copies: int) -> None:
        self.view = view
        self._me = me
        self._copies = copies
        self._ranking = Ranking(view)
        self._with_weight = frozenset(member.uid for member in self._ranking.members)
        self._peers = tuple(member.uid for member in view if member.uid != me)
        self._holders: dict[tuple[int, bytes], Uids] = {}
        self._groups: dict[tuple[int, bytes], tuple[Groups, Groups]] = {}

    def keepers(self, partition: int) -> Uids:
        return self._ranking.keepers(partition)

    def granter(self, key: bytes, but: bytes = b"") -> bytes:
        return next((member.uid for member in self._ranking.rank(partition_of(key)) if member.uid != but), b"")

    def primary(self, key: bytes, named: bytes) -> bytes:
        holders = self.holders(key, named)
        return holders[0] if holders else b""

    def holders(self, key: bytes, named: bytes) -> Uids:
        place = self._place(key, named)
        found = self._holders.get(place)
        if found is None:
            found = self._holders[place] = self._choose(*place)
        return found

    def others(self, key: bytes, named: bytes) -> Groups:
        return self._told(key, named)[0]

    def heads(self, key: bytes, named: bytes) -> Groups:
        return self._told(key, named)[1]

    def depth(self, uid: bytes, key: bytes, named: bytes) -> int:
        if uid in self.holders(key, named):
            return WHOLE
        return HEAD if uid in self.keepers(key[0] << 4 | key[1] >> 4) else NOTHING

    def serves(self, key: bytes, named: bytes) -> bool:
        return self._me in self.holders(key, named)

    def appoint(self, key: bytes) -> bytes:
        return self._me

    def leads(self, named: bytes) -> bool:
        return False

    def is_lite(self, uid: bytes) -> bool:
        return uid in self.view and uid not in self._with_weight

    def is_orphan(self, named: bytes) -> bool:
        return False

    def vouches(self, uid: bytes, key: bytes, named: bytes) -> bool:
        return uid in self.holders(key, named)

    def is_stray(self, author: bytes, named: bytes) -> bool:
        return False

    def peers(self) -> Uids:
        return self._peers

    def _told(self, key: bytes, named: bytes) -> tuple[Groups, Groups]:
        place = self._place(key, named)
        found = self._groups.get(place)
        if found is None:
            holders = self.holders(key, named)
            know = dict.fromkeys((*holders, *self.keepers(place[0])))
            found = self._groups[place] = tuple((uid,) for uid in holders if uid != self._me), tuple((uid,) for uid in know if uid != self._me)
        return found

    def _place(self, key: bytes, named: bytes) -> tuple[int, bytes]:
        """All that decides about a session's holders: its partition, and its primary if that is chosen freely."""
        raise NotImplementedError

    def _choose(self, partition: int, first: bytes) -> Uids:
        """The first of them (`b""`: the best ranked), then the keepers, then the best ranked; each spread over zones and machines."""
        ranked = self._ranking.rank(partition)
        if not ranked:
            return ()
        keepers = self.keepers(partition)
        chosen = [next((member for member in ranked if member.uid == first), ranked[0])]
        kept = [member for uid in keepers for member in ranked if member.uid == uid and member is not chosen[0]]
        rest = [member for member in ranked if member is not chosen[0] and member.uid not in keepers]
        while len(chosen) < self._copies and (kept or rest):
            candidates = kept or rest
            following = _spread(chosen, candidates)
            candidates.remove(following)
            chosen.append(following)
        return tuple(member.uid for member in chosen)


class PrimaryAndBackups(_Partial):
    """`BackupManager`'s strategy: the member that serves the session and `copies - 1` backups."""

    moves_primary = True

    def _place(self, key: bytes, named: bytes) -> tuple[int, bytes]:
        return key[0] << 4 | key[1] >> 4, named if named in self._with_weight else b""

    def serves(self, key: bytes, named: bytes) -> bool:
        return named == self._me or (self.is_lite(named) and self._me in self.holders(key, named))

    def appoint(self, key: bytes) -> bytes:
        """A member that holds nothing appoints the best ranked on its machine, else the best ranked."""
        if self._me in self._with_weight:
            return self._me
        ranked = self._ranking.rank(partition_of(key))
        mine = self.view.by_uid.get(self._me)
        beside = [member.uid for member in ranked if mine is not None and machine_of(member) == machine_of(mine)]
        return next(iter((*beside, *(member.uid for member in ranked))), self._me)

    def leads(self, named: bytes) -> bool:
        return named != self._me and self._me in self._with_weight

    def is_orphan(self, named: bytes) -> bool:
        return named not in self._with_weight

    def vouches(self, uid: bytes, key: bytes, named: bytes) -> bool:
        """Only the primary while it is here: the others learn of a session's moves at different times."""
        return uid == named or (named not in self._with_weight and uid in self.holders(key, named))

    def is_stray(self, author: bytes, named: bytes) -> bool:
        return author != named and author in self._with_weight and named in self._with_weight


class Ranked(_Partial):
    """`PartitionedManager`'s strategy: `copies` members of the partition, whoever serves the session."""

    def _place(self, key: bytes, named: bytes) -> tuple[int, bytes]:
        return key[0] << 4 | key[1] >> 4, b""
