"""A session's record: a map of last-writer-wins registers, and who has written how far.

*Register*: ``(counter, origin, value)``; `value` is the attribute's encoded bytes, None when removed. A version is
``(counter, origin uid)``, the counter one more than the highest the record has seen; no clock takes part. The higher
version stands, everywhere the same, so merging is commutative, associative and idempotent: order, repeats, re-sends and
transfers cannot harm (Shapiro et al. 2011, state-based LWW map).

`applied` maps each origin to the last counter of its commits that is in here *without a gap*. A delta names its origin's
previous counter: past a gap its registers are merged, the map does not advance, and the record is fetched.
`floor` is a version map too: a register it covers and that is absent was removed, and its tombstone has been pruned.

Plain functions over plain containers: one delta costs dictionary work only. Principal and limits are registers with
names that start with NUL, which applications cannot use. `touches` is a flat tuple ``(origin, counter, ms, ...)``, last
access per origin in our monotonic clock; the counter of a touch is its origin's own clock, so it only grows.
"""

from __future__ import annotations

from typing import Any

from ..membership.codec import decode, encode
from ..membership.errors import RemoteError
from ..membership.member import UID_BYTES
from .heads import COUNTER_MAX

__all__ = [
    "IDLE_LIMIT", "NAME_MAX_BYTES", "PRINCIPAL", "Record", "Register", "Touches", "last_access", "merge_touches", "touched",
]  # fmt: skip

Register = tuple[int, bytes, bytes | None]
Touches = tuple[Any, ...]

PRINCIPAL = "\0principal"
IDLE_LIMIT = "\0idle"
NAME_MAX_BYTES = 4096  # what a peer may send; applications are held to less by their settings
_ORIGINS_MAX = 4096
_PRUNE_AT = 64  # removed names a record may remember before its primary prunes them


class Record:
    """The mutable half of a session. Guarded by its manager's lock."""

    __slots__ = ("applied", "counter", "floor", "partial", "registers", "removed", "size")

    def __init__(self) -> None:
        self.registers: dict[str, Register] = {}
        self.applied: dict[bytes, int] = {}
        self.floor: dict[bytes, int] = {}
        self.counter = 0  #: the highest counter seen, also past a gap
        self.removed = 0  #: registers whose value is None
        self.size = 0  #: bytes of names and values: what `session_max_bytes` limits
        self.partial = False  #: deltas came without their base: answers no look-up, counts as no copy

    def write(self, counter: int, origin: bytes, changes: dict[str, bytes | None]) -> None:
        """A commit of our own: its version is the highest there is, so every register is taken."""
        registers = self.registers
        for name, value in changes.items():
            self._account(name, registers.get(name), value)
            registers[name] = (counter, origin, value)
        self.applied[origin] = self.counter = counter

    def _account(self, name: str, old: Register | None, value: bytes | None) -> None:
        """A register goes from `old` to `value`."""
        if old is not None:
            if old[2] is None:
                self.removed -= 1
            else:
                self.size -= len(name) + len(old[2])
        if value is None:
            self.removed += 1
        else:
            self.size += len(name) + len(value)

    def _recount(self) -> None:
        values = [(name, register[2]) for name, register in self.registers.items()]
        self.removed = sum(1 for _, value in values if value is None)
        self.size = sum(len(name) + len(value) for name, value in values if value is not None)

    def merge_delta(self, counter: int, origin: bytes, previous: int, seen: dict[bytes, int], changes: dict[str, bytes | None]) -> tuple[bool, int]:
        """Merge another origin's commit. Returns (no gap, number of conflicting registers)."""
        applied = self.applied
        last = applied.get(origin, 0)
        if counter <= last:
            return True, 0
        registers = self.registers
        conflicts = 0
        for name, value in changes.items():
            old = registers.get(name)
            if old is not None:
                if old[1] != origin and seen.get(old[1], 0) < old[0]:
                    conflicts += 1  # its author had not seen the register that stands here: concurrent, not successive
                if old[0] > counter or (old[0] == counter and old[1] >= origin):
                    continue
            elif self.floor and counter <= self.floor.get(origin, 0):
                continue
            self._account(name, old, value)
            registers[name] = (counter, origin, value)
        if counter > self.counter:
            self.counter = counter
        if last != previous:
            return False, conflicts
        applied[origin] = counter
        return True, conflicts

    def merge(self, other: Record) -> bool:
        """Merge a whole record. Returns whether anything changed here."""
        changed = False
        registers, floor = self.registers, self.floor
        for name, theirs in other.registers.items():
            mine = registers.get(name)
            if mine is None:
                if theirs[0] <= floor.get(theirs[1], 0):
                    continue
            elif (mine[0], mine[1]) >= (theirs[0], theirs[1]):
                continue
            registers[name] = theirs
            changed = True
        for origin, counter in other.floor.items():
            if counter > floor.get(origin, 0):
                floor[origin] = counter
                changed = True
        if other.floor:
            theirs_floor = other.floor
            for name in [n for n, r in registers.items() if n not in other.registers and r[0] <= theirs_floor.get(r[1], 0)]:
                del registers[name]
                changed = True
        for origin, counter in other.applied.items():
            if counter > self.applied.get(origin, 0):
                self.applied[origin] = counter
                changed = True
        self.counter = max(self.counter, other.counter)
        self._recount()
        return changed

    def has_seen(self, seen: dict[bytes, int]) -> bool:
        applied = self.applied
        return all(applied.get(origin, 0) >= counter for origin, counter in seen.items())

    @property
    def wants_pruning(self) -> bool:
        return self.removed >= _PRUNE_AT

    def prune(self) -> None:
        """Forget removed names: everything in `applied` is in here, so the floor may rise to it. The primary's act, sent as a whole record."""
        self.floor = dict(self.applied)
        self.registers = {
            name: register for name, register in self.registers.items() if register[2] is not None or register[0] > self.floor.get(register[1], 0)
        }
        self._recount()

    def pack(self) -> bytes:
        """One bytes object: how an idle record is kept and how any record travels (PROTOCOL.md, *Record body*).

        Canonical: equal records give equal bytes on every member, whatever the order things came in.
        """
        origins = sorted({*self.applied, *self.floor, *(register[1] for register in self.registers.values())})
        index = {origin: i for i, origin in enumerate(origins)}
        return encode([
            origins,
            [self.applied.get(origin, 0) for origin in origins],
            [self.floor.get(origin, 0) for origin in origins] if self.floor else [],
            {name: [r[0], index[r[1]], r[2]] for name, r in sorted(self.registers.items())},
        ])  # fmt: skip

    @classmethod
    def unpack(cls, body: bytes) -> Record:
        """The record of a body. Raises `RemoteError` if it breaks the schema."""
        wire = decode(body)
        if type(wire) is not list or len(wire) < 4:
            raise RemoteError("record: not an array of 4")
        origins, applied, floor, registers = wire[:4]
        if not (
            type(origins) is list and len(origins) <= _ORIGINS_MAX
            and all(type(origin) is bytes and len(origin) == UID_BYTES for origin in origins)
            and _is_counters(applied, len(origins)) and (floor == [] or _is_counters(floor, len(origins)))
            and type(registers) is dict
        ):  # fmt: skip
            raise RemoteError("record: malformed")
        record = cls()
        record.applied = {origin: counter for origin, counter in zip(origins, applied, strict=True) if counter}
        record.floor = {origin: counter for origin, counter in zip(origins, floor, strict=True) if counter} if floor else {}
        top = max(applied, default=0)
        mine, count, size = record.registers, len(origins), 0
        for name, register in registers.items():
            if type(name) is not str or len(name) > NAME_MAX_BYTES or type(register) is not list or len(register) != 3:
                raise RemoteError("record: malformed register")
            counter, i, value = register
            if not (type(counter) is int and 0 < counter <= COUNTER_MAX and type(i) is int and 0 <= i < count):
                raise RemoteError("record: malformed version of a register")
            if value is None:
                record.removed += 1
            elif type(value) is not bytes:
                raise RemoteError("record: a value that is not bytes")
            else:
                size += len(name) + len(value)
            if counter > top:
                top = counter
            mine[name] = (counter, origins[i], value)
        record.counter = top
        record.size = size
        return record


def _is_counters(value: object, count: int) -> bool:
    return type(value) is list and len(value) == count and all(type(n) is int and 0 <= n <= COUNTER_MAX for n in value)


def touched(touches: Touches, origin: bytes, counter: int, ms: int) -> Touches:
    """With one more access merged in: per origin the higher counter wins, equal ones keep the older time (echoes never rejuvenate)."""
    if not touches or (len(touches) == 3 and touches[0] == origin):
        if touches and (counter < touches[1] or (counter == touches[1] and ms >= touches[2])):
            return touches
        return (origin, counter, ms)
    for i in range(0, len(touches), 3):
        if touches[i] == origin:
            if counter < touches[i + 1] or (counter == touches[i + 1] and ms >= touches[i + 2]):
                return touches
            return (*touches[:i], origin, counter, ms, *touches[i + 3 :])
    return (*touches, origin, counter, ms)


def merge_touches(mine: Touches, theirs: Touches) -> Touches:
    for i in range(0, len(theirs), 3):
        mine = touched(mine, theirs[i], theirs[i + 1], theirs[i + 2])
    return mine


def last_access(touches: Touches, default: int) -> int:
    """The youngest access in our clock, ms."""
    if len(touches) == 3:
        return touches[2]  # type: ignore[no-any-return]
    return max(touches[2::3], default=default)
