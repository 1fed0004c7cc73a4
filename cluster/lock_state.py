"""What a node keeps of one manager's locks (`locks.py`): its table, the questions under way, what is held here and what of that has to be told."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from twisted.internet.defer import Deferred

from ..managers.base import SessionManager
from ..managers.locking import Grant
from ..managers.locks import Asker, Claim, LockTable
from ..membership.driver import Driver
from ..membership.effects import Effect
from ..membership.member import Member
from ..membership.view import View

__all__ = ["Desk", "Early", "Timed", "Wanted", "after", "are_numbers", "digest", "has"]

_NUMBER_MAX = 2**63


@dataclass(slots=True, eq=False)
class Wanted:
    """A lock that somebody here asks for. `void`: another member may grant it by now, so what the asked one says does not count."""

    key: bytes
    granter: bytes
    void: bool = False


@dataclass(slots=True, eq=False)
class Early:
    """A question that came before the claims. `void`: who asked waits no more."""

    key: bytes
    asker: Asker
    void: bool = False


@dataclass(slots=True)
class Desk:
    """What a node has for one manager."""

    name: str
    manager: SessionManager
    table: LockTable
    driver: Driver = field(init=False)
    answers: dict[tuple[bytes, Asker], Deferred[list[Any]]] = field(default_factory=dict)  #: questions of others that are not answered
    wanted: dict[int, Wanted] = field(default_factory=dict)
    held: dict[int, Grant] = field(default_factory=dict)
    recent: dict[Asker, tuple[float, Claim]] = field(default_factory=dict)  #: what was given back from here, and until when that is told
    ceded: dict[bytes, tuple[float, Member]] = field(default_factory=dict)  #: who grants though we may not see it yet, and until when we believe that
    claims_of: View | None = None  #: the view whose members have told their claims
    asking: Deferred[None] | None = None  #: they are being asked
    over: list[Claim] = field(default_factory=list)  #: what was given back meanwhile
    early: set[Early] = field(default_factory=set)  #: questions that wait for the claims
    sleeps: int = 0  #: `Locks.sleeps` of when that was noticed here


class Timed:
    """The table, for its driver."""

    def __init__(self, desk: Desk, notice: Callable[[Desk], None]) -> None:
        self._desk = desk
        self._notice = notice

    def tick(self, now: float) -> list[Effect]:
        self._notice(self._desk)
        return self._desk.table.tick(now)

    def deadline(self) -> float | None:
        return self._desk.table.deadline()


def has(view: View, peer: Member) -> bool:
    """Whether it ranks there as it says."""
    seen = view.by_uid.get(peer.uid)
    return seen is not None and seen.weight == peer.weight


def digest(view: View) -> bytes:
    """Equal for views that rank alike."""
    return blake2b(repr([(member.uid, float(member.weight)) for member in view]).encode(), digest_size=8).digest()


def after(other: Deferred[None]) -> Deferred[None]:
    """Fires when the other does, which goes on for who else waits. Its failure is the first one's."""
    waiting: Deferred[None] = Deferred()
    other.addBoth(waiting.callback)
    return waiting


def are_numbers(values: Iterable[object]) -> bool:
    return all(type(value) is int and 0 <= value < _NUMBER_MAX for value in values)
