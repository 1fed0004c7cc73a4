"""What two members say while they compare: read from the wire, and given to `AntiEntropy`. No decision is made here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..membership.effects import Effect
from . import messages as m
from .antientropy import AntiEntropy
from .heads import Ours

__all__ = ["Dialogue", "Reader"]

#: ``reader(now_ms, peer, message, ours)``. Raises `RemoteError`; then nothing of the message was applied.
Reader = Callable[[int, bytes, list[Any], Ours], list[Effect]]


class Dialogue:
    """A part of the manager's core. `version(uid)`: the protocol of the link with that member; `moved()`: a round may be over."""

    def __init__(self, entropy: AntiEntropy, version: Callable[[bytes], int], moved: Callable[[], object]) -> None:
        self._entropy = entropy
        self._version = version
        self._moved = moved
        self.readers: Mapping[int, Reader] = {
            m.WANT: self._want, m.OFFER: self._offer, m.INVENTORY: self._inventory, m.COVERED: self._covered,
            m.SYNCED: self._synced, m.SUMS: self._sums, m.DIFFER: self._differ,
        }  # fmt: skip

    def _want(self, now_ms: int, peer: bytes, message: list[Any], ours: Ours) -> list[Effect]:
        return list(self._entropy.records(peer, m.read_keys(message[2], "want")))

    def _offer(self, now_ms: int, peer: bytes, message: list[Any], ours: Ours) -> list[Effect]:
        return list(self._entropy.offered(peer, self._version(peer), now_ms))

    def _sums(self, now_ms: int, peer: bytes, message: list[Any], ours: Ours) -> list[Effect]:
        return list(self._entropy.sums(peer, m.read_sums(message), now_ms))

    def _inventory(self, now_ms: int, peer: bytes, message: list[Any], ours: Ours) -> list[Effect]:
        return list(self._entropy.inventory(peer, m.read_inventory(message), now_ms))

    def _differ(self, now_ms: int, peer: bytes, message: list[Any], ours: Ours) -> list[Effect]:
        effects: list[Effect] = list(self._entropy.differ(peer, m.read_differ(message), now_ms))
        self._moved()
        return effects

    def _covered(self, now_ms: int, peer: bytes, message: list[Any], ours: Ours) -> list[Effect]:
        effects: list[Effect] = list(self._entropy.covered(peer, *m.read_covered(message), now_ms))
        self._moved()
        return effects

    def _synced(self, now_ms: int, peer: bytes, message: list[Any], ours: Ours) -> list[Effect]:
        m.need(type(message[2]) is int, "synced")
        effects: list[Effect] = list(self._entropy.synced(peer, message[2], now_ms))
        self._moved()
        return effects
