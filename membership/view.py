"""The answer to "who is here": an immutable, numbered, sorted snapshot.

Everything above membership reacts to views and to nothing else. A view holds this process too, and only members of its
own domain; the console and the balancer get a view of everyone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from .member import Member

__all__ = ["View", "ViewChanged"]


@dataclass(frozen=True)
class View:
    """Members held alive, sorted by uid. `number` grows by one with each change on this node; it is not shared between nodes."""

    number: int
    members: tuple[Member, ...]

    @staticmethod
    def of(number: int, members: object) -> View:
        return View(number, tuple(sorted(members)))  # type: ignore[call-overload]

    @cached_property
    def by_uid(self) -> dict[bytes, Member]:
        return {member.uid: member for member in self.members}

    def __contains__(self, uid: object) -> bool:
        """Whether a member of this uid (bytes) is here."""
        return uid in self.by_uid

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def without(self, uid: bytes) -> View:
        """This view as it would be if that member were not here."""
        return View(self.number, tuple(member for member in self.members if member.uid != uid))

    def announcing(self, manager: str, kind: str = "delta") -> View:
        """The part of this view that takes part in the manager of that name, and runs it as this kind."""
        return View(self.number, tuple(member for member in self.members if manager in member.managers and member.kind_of(manager) == kind))


@dataclass(frozen=True, slots=True)
class ViewChanged:
    """One change of membership. `clean` holds the uids that left with a farewell: their absence is no loss."""

    before: View
    after: View
    clean: frozenset[bytes] = frozenset()

    @property
    def appeared(self) -> tuple[Member, ...]:
        return tuple(member for member in self.after if member.uid not in self.before)

    @property
    def moves_nothing(self) -> bool:
        """Whether the same members are here, in the same places with the same weights: some have only announced something else."""
        before, after = ([(member.uid, member.weight, member.zone, member.machine, member.host) for member in view] for view in (self.before, self.after))
        return before == after

    @property
    def disappeared(self) -> tuple[Member, ...]:
        return tuple(member for member in self.before if member.uid not in self.after)
