"""Hints become dials, slowly.

Anybody on the segment can send a heartbeat with any address in it, so a hint may cost us little: one dial a second for
an address, ten a second in all, and a bounded list of addresses still to dial. A hint that finds its address just dialled
is forgotten: whoever is really there will be hinted at again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["ADDRESSES_MAX", "Dial", "Dialler"]

Address = tuple[str, int]

ADDRESSES_MAX = 1024  # four times the default of members: room for a rolling restart; a flood of forged ones is cut here
_SPACING_S = 0.1  # ten dials a second in all
_REST_S = 1.0  # one dial a second for an address


@dataclass(frozen=True, slots=True)
class Dial:
    """Effect: try to meet whoever is at this address."""

    host: str
    port: int


class Dialler:
    """Core. `hint` wants an address dialled, `take` says which to dial now."""

    def __init__(self) -> None:
        self._wanted: dict[Address, bytes] = {}  # with the uid that is said to be there, if any; in order of arrival
        self._resting: dict[Address, float] = {}  # dialled: not again before; in order of time
        self._next_at = 0.0
        self.dropped = 0  #: hints dropped because too many addresses wait

    def hint(self, now: float, address: Address, uid: bytes = b"") -> None:
        if address in self._wanted or self._resting.get(address, now) > now:
            return
        if len(self._wanted) >= ADDRESSES_MAX:
            self.dropped += 1
            return
        self._wanted[address] = uid

    def take(self, now: float, needless: Callable[[Address, bytes], bool]) -> list[Dial]:
        """At most one dial, for the address that waits longest; not for one that has become `needless` (address, uid) meanwhile."""
        if self._next_at > now:
            return []
        while self._wanted:
            address = next(iter(self._wanted))
            if not needless(address, self._wanted.pop(address)):
                self._next_at = now + _SPACING_S
                self._rest(now, address)
                return [Dial(*address)]
        return []

    def deadline(self) -> float | None:
        return self._next_at if self._wanted else None

    def _rest(self, now: float, address: Address) -> None:
        for rested in [rested for rested, until in self._resting.items() if until <= now]:  # at most ten a second get in, so it stays short
            del self._resting[rested]
        self._resting[address] = now + _REST_S
