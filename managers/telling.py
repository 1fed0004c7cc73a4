"""What a merge has changed, attribute by attribute, for those who listen to the changes that other members make.

Merging itself does not keep count: it is the hot path, and nearly nobody listens. So where somebody does, the attributes that a message
speaks of are looked at before and after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from .entry import Changed
from .replica import Replica

__all__ = ["Before", "Telling"]


class Before(NamedTuple):
    """What was there. `names`: of these attributes only; None: of all."""

    names: set[str] | None
    values: dict[str, bytes | None]


class Telling:
    """A part of the manager's core. `on`: somebody listens."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self.on = False

    def before_deltas(self, deltas: Iterable[list[Any]]) -> dict[bytes, Before]:
        """What is held now of what these deltas change; to be given to `after`."""
        if not self.on:
            return {}
        named: dict[bytes, set[str]] = {}
        for delta in deltas:
            named.setdefault(delta[0], set()).update(delta[4])
        return {key: Before(names, self._values(key, names)) for key, names in named.items()}

    def before_records(self, keys: Iterable[bytes]) -> dict[bytes, Before]:
        """The same for whole records."""
        return {key: Before(None, self._values(key, None)) for key in keys} if self.on else {}

    def after(self, before: dict[bytes, Before]) -> None:
        """Report what has become another value since."""
        for key, (names, was) in before.items():
            now = self._values(key, names)
            for name in sorted(was.keys() | now.keys()):
                value = now.get(name)
                if was.get(name) != value and name[:1] != "\0":
                    self._replica.events.append(Changed(key, name, value is None))

    def _values(self, key: bytes, names: set[str] | None) -> dict[str, bytes | None]:
        entry = self._replica.get(key)
        record = self._replica.record(key, entry) if entry is not None else None
        if record is None:
            return {}
        registers = record.registers
        return {name: registers[name][2] for name in (registers if names is None else names) if name in registers}
