"""What a merge has changed, attribute by attribute, for those who listen to the changes that other members make.

Merging itself does not keep count: it is the hot path, and nearly nobody listens. So where somebody does, the attributes of what a
message speaks of are looked at before and after it.
"""

from __future__ import annotations

from collections.abc import Iterable

from .entry import Changed
from .record import Register
from .replica import Replica

__all__ = ["Telling"]

Before = dict[bytes, dict[str, Register]]  #: registers by key


class Telling:
    """A part of the manager's core. `on`: somebody listens."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self.on = False

    def before(self, keys: Iterable[bytes]) -> Before:
        """What is held of these sessions now; to be given to `after`."""
        return {key: self._registers(key) for key in keys} if self.on else {}

    def after(self, before: Before) -> None:
        """Report what has become another value since."""
        for key, old in before.items():
            new = self._registers(key)
            for name in sorted(old.keys() | new.keys()):
                was, now = _value(old.get(name)), _value(new.get(name))
                if was != now and name[:1] != "\0":
                    self._replica.events.append(Changed(key, name, now is None))

    def _registers(self, key: bytes) -> dict[str, Register]:
        entry = self._replica.get(key)
        record = self._replica.record(key, entry) if entry is not None else None
        return dict(record.registers) if record is not None else {}


def _value(register: Register | None) -> bytes | None:
    return register[2] if register is not None else None
