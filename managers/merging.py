"""Merging values: attributes whose concurrent changes are joined, where of two plain values one has to win.

A merging value is a register's value like any other, bytes behind a tag of its own, and this file is all that ever looks inside
while copies merge. It says *over* which version it was set (everything up to that one is replaced), and holds the *births* that
live: one for each commit that set the attribute (``session["n"] = Counter()``), by that commit's version, with what was done to
it since. The join of two registers is the higher `over`, and the births above it, those on both sides joined by their kind. A
plain value (also None, and bytes that are no merging value) is the case without births: it is *over* its own version. So

- two members that set the attribute at the same time, neither knowing of the other, have two births: both count;
- a removal, a plain value or a new birth ends all that its author had seen, and what others did to that meanwhile;
- of a plain value and births above it, or of births of several kinds, the highest says what the attribute is.

`over` is a chain and births are dropped by it alone, so this is a join-semilattice whenever the kinds are (Shapiro et al. 2011):
a Counter is a PN-counter, per process what it added and subtracted; a MergingSet an observed-remove set where an addition wins,
with a dot (the commit's version) per element and a version map instead of tombstones (Bieniusa et al. 2012); Max and Min are
chains. Elements of sets stay encoded bytes here: members that know other classes, or other time zones, join the same. Whatever
is not exactly what `build` would write is plain: then all members agree on that too.
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

from ..membership.codec import decode, encode
from ..membership.errors import RemoteError
from ..membership.member import UID_BYTES
from .heads import COUNTER_MAX

__all__ = [
    "AMOUNT_MAX", "COUNTER", "DECIMAL", "MAX", "MERGING", "MERGING_BYTES", "MIN", "NEVER", "NUMBER", "SET", "TEXT", "Birth", "Register", "State", "Version",
    "build", "elements", "extreme", "is_better", "join", "joined_sets", "parse", "reach", "reborn", "total", "unpruned",
]  # fmt: skip

Register = tuple[int, bytes, bytes | None]
Version = tuple[int, bytes]

MERGING = b"\xdaCW\x00\x0c"  # the tag 0x4357000c; every merging value begins so
MERGING_BYTES = len(MERGING)
NEVER: Version = (0, b"")
AMOUNT_MAX = 2**63 - 1  # of one process's additions or subtractions: more does not count
COUNTER, SET, MAX, MIN = range(4)
_REMEMBERED_BYTES = 1024
#: What Max and Min can hold; the number says which encoding, and values of different numbers are never compared by applications.
NUMBER, TEXT, BYTES, DECIMAL, LOCAL_TIME, MOMENT, DAY, SPAN = range(8)

_PLAIN_OF = ((int, float), (str,), (bytes,), (str,), (int,), (int,), (int,), (int,))
_DECIMAL_TEXT = re.compile(r"-?\d{1,1000}(?:\.\d{1,1000})?(?:E[+-]\d{1,6})?", re.ASCII)


class Birth(NamedTuple):
    """One setting of the attribute, and what became of it. `changed`: the version of the last commit that touched it."""

    changed: Version
    kind: int
    body: Any  #: COUNTER ``{origin: (added, subtracted)}``, SET ``({origin: counter seen}, {element: {dot, ...}})``, else ``(order, value)`` or None


class State(NamedTuple):
    over: Version
    births: dict[Version, Birth]  #: by version, all above `over`


# -- bytes


def parse(value: bytes | None) -> State | None:
    """What these bytes say, never to be changed; None if they are no merging value. Raises nothing, whatever the bytes.

    One value is parsed by each that reads, joins and shows it: small ones are remembered.
    """
    if value is None or value[:MERGING_BYTES] != MERGING:
        return None
    return _parsed_lately(value) if len(value) <= _REMEMBERED_BYTES else _parsed(value)


def _parsed(value: bytes) -> State | None:
    try:
        state = _state_from(decode(value[MERGING_BYTES:]))
        return state if build(state) == value else None
    except (RemoteError, TypeError, ValueError, LookupError):
        return None


_parsed_lately = lru_cache(maxsize=512)(_parsed)


def build(state: State) -> bytes:
    """The one encoding of this state."""
    births = [[*stamp, *birth.changed, birth.kind, _body_to_wire(birth.kind, birth.body)] for stamp, birth in sorted(state.births.items())]
    return MERGING + encode([*state.over, births])


def _body_to_wire(kind: int, body: Any) -> Any:
    if kind == COUNTER:
        return {origin: list(body[origin]) for origin in sorted(body)}
    if kind == SET:
        seen, present = body
        origins = sorted(seen)
        index = {origin: i for i, origin in enumerate(origins)}
        dots = {element: [n for counter, origin in sorted(present[element]) for n in (counter, index[origin])] for element in sorted(present)}
        return [origins, [seen[origin] for origin in origins], dots]
    return [] if body is None else list(body)


def _state_from(wire: Any) -> State:
    """Raises ValueError, TypeError or LookupError if it breaks the schema (order and shortest form are checked by building again)."""
    counter, origin, rows = wire
    over = NEVER if (counter, origin) == NEVER else _version(counter, origin)
    births = {}
    for birth_counter, birth_origin, changed_counter, changed_origin, kind, body in rows:
        stamp, changed = _version(birth_counter, birth_origin), _version(changed_counter, changed_origin)
        _need(over < stamp <= changed and type(kind) is int and COUNTER <= kind <= MIN)
        births[stamp] = Birth(changed, kind, _body_from(kind, body))
    _need(bool(births))
    return State(over, births)


def _body_from(kind: int, body: Any) -> Any:
    if kind == COUNTER:
        _need(type(body) is dict and all(_is_uid(origin) for origin in body))
        for added, subtracted in body.values():
            _need(type(added) is int and type(subtracted) is int and 0 <= added <= AMOUNT_MAX and 0 <= subtracted <= AMOUNT_MAX and added + subtracted > 0)
        return {origin: tuple(amounts) for origin, amounts in body.items()}
    if kind == SET:
        return _set_from(*body)
    if not body:
        return None
    order, value = body
    _need(type(order) is int and NUMBER <= order <= SPAN and type(value) in _PLAIN_OF[order] and value == value)
    _need(order != DECIMAL or _DECIMAL_TEXT.fullmatch(value) is not None)
    return order, value


def _set_from(origins: Any, counters: Any, dots: Any) -> Any:
    _need(type(dots) is dict and all(type(element) is bytes for element in dots))
    seen = dict(_version(counter, origin)[::-1] for origin, counter in zip(origins, counters, strict=True))
    present = {}
    for element, flat in dots.items():
        _need(len(flat) > 0 and all(type(n) is int and n >= 0 for n in flat))
        present[element] = frozenset((counter, origins[i]) for counter, i in zip(flat[::2], flat[1::2], strict=True))
        _need(all(0 < counter <= seen[origin] for counter, origin in present[element]))
    return seen, present


def _version(counter: Any, origin: Any) -> Version:
    _need(type(counter) is int and 0 < counter <= COUNTER_MAX and _is_uid(origin))
    return counter, origin


def _is_uid(origin: Any) -> bool:
    return type(origin) is bytes and len(origin) == UID_BYTES


def _need(condition: bool) -> None:
    if not condition:
        raise ValueError


# -- joining


def join(mine: Register, theirs: Register) -> Register:
    """The register that stands where these two meet: commutative, associative, idempotent, for any bytes.

    Of two plain values it is the one of the higher version. `mine` itself is returned where it stands.
    """
    if mine == theirs:
        return mine
    one, two = _state_of(mine), _state_of(theirs)
    if one is None and two is None:
        return mine if _plain_order(mine) > _plain_order(theirs) else theirs
    joined = _joined(one or State(mine[:2], {}), two or State(theirs[:2], {}))
    if not joined.births:
        return mine if one is None else theirs
    register = _register(joined)
    return mine if register == mine else register


def unpruned(register: Register, floor: dict[bytes, int]) -> Register | None:
    """What is left of a register where a floor says that it was removed: what the floor does not cover. `register` itself if that is all."""
    state = _state_of(register)
    if state is None:
        return None if register[0] <= floor.get(register[1], 0) else register
    births = {stamp: birth for stamp, birth in state.births.items() if stamp[0] > floor.get(stamp[1], 0)}
    if len(births) == len(state.births):
        return register
    return _register(State(state.over, births)) if births else None


def surviving(register: Register, floor: dict[bytes, int], beside: Register) -> Register | None:
    """The same where the record with this floor holds `beside` under that name: births that the floor covers are gone if they are not there, too."""
    state = _state_of(register)
    if state is None:
        return register
    there = _state_of(beside)
    kept = there.births if there is not None else ()
    births = {stamp: birth for stamp, birth in state.births.items() if stamp[0] > floor.get(stamp[1], 0) or stamp in kept}
    if len(births) == len(state.births):
        return register
    return _register(State(state.over, births)) if births else None


def reach(register: Register | None) -> Version:
    """Over what a new birth has to be, to replace all of this."""
    if register is None:
        return NEVER
    state = _state_of(register)
    return max(state.births) if state is not None else register[:2]


def _state_of(register: Register) -> State | None:
    """None: it is plain, and *over* its version. So is what claims to be younger than its own version."""
    state = parse(register[2])
    return None if state is None or register[:2] < _changed(state) else state


def _register(state: State) -> Register:
    return (*_changed(state), build(state))


def _changed(state: State) -> Version:
    return max(birth.changed for birth in state.births.values())


def _plain_order(register: Register) -> tuple[int, bytes, bool, bytes]:
    """By version; one version has one value, unless somebody lies."""
    counter, origin, value = register
    return counter, origin, value is not None, value or b""


def _joined(one: State, two: State) -> State:
    over = max(one.over, two.over)
    births = {stamp: birth for stamp, birth in one.births.items() if stamp > over}
    for stamp, birth in two.births.items():
        if stamp > over:
            mine = births.get(stamp)
            births[stamp] = birth if mine is None else _joined_births(mine, birth)
    return State(over, births)


def _joined_births(one: Birth, two: Birth) -> Birth:
    if one.kind != two.kind:
        return max(one, two, key=lambda birth: birth.kind)
    changed = max(one.changed, two.changed)
    if one.kind == COUNTER:
        return Birth(changed, COUNTER, _joined_counts(one.body, two.body))
    if one.kind == SET:
        return Birth(changed, SET, joined_sets(one.body, two.body))
    return Birth(changed, one.kind, two.body if is_better(one.kind, two.body, one.body) else one.body)


def _joined_counts(one: dict[bytes, tuple[int, int]], two: dict[bytes, tuple[int, int]]) -> dict[bytes, tuple[int, int]]:
    body = dict(one)
    for origin, (added, subtracted) in two.items():
        mine = body.get(origin, (0, 0))
        body[origin] = (max(added, mine[0]), max(subtracted, mine[1]))
    return body


def joined_sets(one: Any, two: Any) -> Any:
    """A dot stays where both have it, or where the other side has not seen it yet: what it has seen and not kept, it removed."""
    (seen_by_one, here), (seen_by_two, there) = one, two
    present = {}
    for element in here.keys() | there.keys():
        mine, theirs = here.get(element, frozenset()), there.get(element, frozenset())
        dots = (
            (mine & theirs)
            | {dot for dot in mine - theirs if dot[0] > seen_by_two.get(dot[1], 0)}
            | {dot for dot in theirs - mine if dot[0] > seen_by_one.get(dot[1], 0)}
        )
        if dots:
            present[element] = frozenset(dots)
    seen = {origin: max(seen_by_one.get(origin, 0), seen_by_two.get(origin, 0)) for origin in seen_by_one.keys() | seen_by_two.keys()}
    return seen, present


def is_better(kind: int, new: Any, old: Any) -> bool:
    """Whether a Max or Min goes from `old` to `new`. A total order: values that are equal, and values of several kinds, have an order too."""
    if new is None or old is None or new[0] != old[0]:
        return new is not None and (old is None or new[0] > old[0])
    one, two = (Decimal(new[1]), Decimal(old[1])) if new[0] == DECIMAL else (new[1], old[1])
    if one == two:
        return encode(new[1]) > encode(old[1])
    return (one > two) is (kind == MAX)


# -- what an application sees


def _of_kind(state: State) -> list[Birth]:
    """The births that count: those of the highest one's kind."""
    kind = state.births[max(state.births)].kind
    return [birth for birth in state.births.values() if birth.kind == kind]


def total(state: State) -> int:
    return sum(added - subtracted for birth in _of_kind(state) for added, subtracted in birth.body.values())


def elements(state: State) -> list[bytes]:
    """Encoded, in the order of their bytes."""
    return sorted({element for birth in _of_kind(state) for element in birth.body[1]})


def extreme(state: State) -> Any:
    """``(order, value)`` or None."""
    best = None
    for birth in _of_kind(state):
        if is_better(birth.kind, birth.body, best):
            best = birth.body
    return best


def reborn(value: bytes, version: Version) -> bytes:
    """The same contents, set by this commit: for another record, where nothing of this one's past is known."""
    state = parse(value)
    if state is None:
        return value
    kind = state.births[max(state.births)].kind
    body: Any
    if kind == COUNTER:
        amount = total(state)
        body = {version[1]: (min(max(amount, 0), AMOUNT_MAX), min(max(-amount, 0), AMOUNT_MAX))} if amount else {}
    elif kind == SET:
        present = dict.fromkeys(elements(state), frozenset({version}))
        body = ({version[1]: version[0]} if present else {}, present)
    else:
        body = extreme(state)
    return build(State(NEVER, {version: Birth(version, kind, body)}))
