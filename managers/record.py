"""A session's record: a map of last-writer-wins registers, and who has written how far.

*Register*: ``(counter, origin, value)``; `value` is the attribute's encoded bytes, None when removed. A version is
``(counter, origin uid)``, the counter one more than the highest the record has seen; no clock takes part. The higher
version stands, everywhere the same, so merging is commutative, associative and idempotent: order, repeats, re-sends and
transfers cannot harm (Shapiro et al. 2011, state-based LWW map). Values that merge by more than that are joined (`merging.py`).

`applied` maps each origin to the last counter of its commits that is in here *without a gap*. A delta names its origin's
previous counter: past a gap its registers are merged, the map does not advance, and the record is fetched.
`floor` is a version map too: a register it covers and that is absent was removed, and its tombstone has been pruned.

Plain functions over plain containers: one delta costs dictionary work only. Principal and limits are registers with
names that start with NUL, which applications cannot use. `touches` is a flat tuple ``(origin, counter, ms, ...)``, last
access per origin in our monotonic clock; the counter of a touch is its origin's own clock, so it only grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..membership.codec import decode, encode
from ..membership.errors import RemoteError
from ..membership.member import UID_BYTES
from .heads import COUNTER_MAX
from .merging import MERGING, Register, join, parse, surviving, unpruned

__all__ = [
    "AGE_LIMIT", "BEFORE", "FIRST", "IDLE_LIMIT", "ID_AGE", "LOGIN", "LOGIN_NUMBER", "NAME_MAX_BYTES", "PRINCIPAL", "RENEWED", "ROLE", "SCHEDULING", "SEED", "SIGNED_ON", "TOUCHES_MAX", "Clash", "Record",
    "Register", "Touches", "clashes", "last_access", "merge_touches", "touched",
]  # fmt: skip

Touches = tuple[Any, ...]

PRINCIPAL = "\0principal"
LOGIN = "\0login"
LOGIN_NUMBER = "\0login number"
SIGNED_ON = "\0signed on"
IDLE_LIMIT = "\0idle"
AGE_LIMIT = "\0age"
ROLE = "\0role"
SEED, ID_AGE, FIRST, BEFORE, RENEWED = "\0seed", "\0id age", "\0first", "\0before", "\0renewed"  # see `renewal.py`
SCHEDULING = frozenset((IDLE_LIMIT, AGE_LIMIT, ROLE, PRINCIPAL, RENEWED))  #: a change of one of these may change when the session ends, or whose it is
NAME_MAX_BYTES = 4096  # what a peer may send; applications are held to less by their settings
_ORIGINS_MAX = 4096
TOUCHES_MAX = 4096  #: origins; over it the youngest stay
_FEW = 3 * 8
_TAGGED = MERGING[0]  # a value that does not begin so merges with nothing: the cheap test; `join` looks closer
_PRUNE_AT = 64  # removed names a record may remember before its primary prunes them


class Clash(NamedTuple):
    """Of two writes of one attribute, neither knowing of the other, this one stands."""

    key: bytes
    name: str
    stands: Register
    lost: Register
    in_records: bool = False  #: two whole records met, as after a partition: whoever wrote the one that is lost may not be there to see it


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

    def merge_delta(
        self, counter: int, origin: bytes, previous: int, seen: dict[bytes, int], changes: dict[str, bytes | None], key: bytes = b""
    ) -> tuple[bool, Sequence[Clash]]:
        """Merge another origin's commit. Returns (no gap, what was written at the same time and could not be joined; `key` is theirs)."""
        applied = self.applied
        last = applied.get(origin, 0)
        if counter <= last:
            return True, ()
        registers = self.registers
        clashes: list[Clash] | None = None
        for name, value in changes.items():
            new = (counter, origin, value)
            old = registers.get(name)
            if old is not None:
                concurrent = old[1] != origin and seen.get(old[1], 0) < old[0]  # its author had not seen the register that stands here
                if concurrent or counter <= old[0] or (value and value[0] == _TAGGED):
                    new = join(old, (surviving(new, self.floor, old) or old) if self.floor else new)
                    if concurrent and not (parse(old[2]) and parse(value)):
                        clashes = clashes or []
                        clashes.append(Clash(key, name, new, (counter, origin, value) if new[:2] == old[:2] else old))
                    if new is old:
                        continue
            elif self.floor:
                left = unpruned(new, self.floor)
                if left is None:
                    continue
                new = left
            self._account(name, old, new[2])
            registers[name] = new
        if counter > self.counter:
            self.counter = counter
        if last != previous:
            return False, clashes or ()
        applied[origin] = counter
        return True, clashes or ()

    def merge(self, other: Record) -> bool:
        """Merge a whole record. Returns whether anything changed here."""
        changed = False
        registers, floor = self.registers, self.floor
        for name, theirs in other.registers.items():
            mine = registers.get(name)
            if mine is None:
                stands = unpruned(theirs, floor) if floor else theirs
                if stands is None:
                    continue
            else:
                stands = _met(mine, other.floor, theirs, floor)
                if stands == mine:
                    continue
            if stands is None:
                del registers[name]
            else:
                registers[name] = stands
            changed = True
        for origin, counter in other.floor.items():
            if counter > floor.get(origin, 0):
                floor[origin] = counter
                changed = True
        if other.floor:
            for name in [name for name in registers if name not in other.registers]:
                left = unpruned(registers[name], other.floor)
                if left is None:
                    del registers[name]
                    changed = True
                elif left is not registers[name]:
                    registers[name] = left
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

    def copy(self) -> Record:
        """Another one with the same contents: what changes here does not change there."""
        other = Record()
        other.registers, other.applied, other.floor = self.registers.copy(), self.applied.copy(), self.floor.copy()
        other.counter, other.removed, other.size, other.partial = self.counter, self.removed, self.size, self.partial
        return other

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


def clashes(mine: Record, theirs: Record, key: bytes) -> list[Clash]:
    """What the two are to give up of each other when they merge: writes of one attribute, neither in a record that had seen the other, that cannot be joined."""
    found = []
    for name, new in theirs.registers.items():
        old = mine.registers.get(name)
        if old is None or old[1] == new[1] or not (_is_new(old, mine, theirs) and _is_new(new, theirs, mine)) or (parse(old[2]) and parse(new[2])):
            continue
        stands = join(old, new)
        found.append(Clash(key, name, stands, new if stands[:2] == old[:2] else old, in_records=True))
    return found


def _met(mine: Register, their_floor: dict[bytes, int], theirs: Register, my_floor: dict[bytes, int]) -> Register | None:
    """What stands where two records meet that both have the name; None: each has removed what the other had. Neither brings back what the other pruned."""
    if not their_floor and not my_floor:
        return join(mine, theirs)
    left, right = surviving(mine, their_floor, theirs), surviving(theirs, my_floor, mine)
    return join(left, right) if left is not None and right is not None else left or right


def _is_new(register: Register, here: Record, there: Record) -> bool:
    """Whether what was written here is not known there. Past a gap nobody can tell what its author knew."""
    counter, origin, _ = register
    return here.applied.get(origin, 0) >= counter > there.applied.get(origin, 0)


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
    if len(theirs) <= _FEW:
        for i in range(0, len(theirs), 3):
            mine = touched(mine, theirs[i], theirs[i + 1], theirs[i + 2])
        return mine
    merged = {mine[i]: (mine[i + 1], mine[i + 2]) for i in range(0, len(mine), 3)}  # of many, each would be looked for in many
    for i in range(0, len(theirs), 3):
        origin, counter, ms = theirs[i : i + 3]
        known = merged.get(origin)
        if known is None or counter > known[0] or (counter == known[0] and ms < known[1]):
            merged[origin] = (counter, ms)
    kept = sorted(merged, key=lambda origin: merged[origin][1])[-TOUCHES_MAX:] if len(merged) > TOUCHES_MAX else merged
    return tuple(part for origin in kept for part in (origin, *merged[origin]))


def last_access(touches: Touches, default: int) -> int:
    """The youngest access in our clock, ms."""
    if len(touches) == 3:
        return touches[2]  # type: ignore[no-any-return]
    return max(touches[2::3], default=default)
