"""Counter, MergingSet, Max and Min: attributes that applications change by operations, so that changes made at the same time all count.

An object is what one request sees: the contents when the session was opened, and this request's own operations. At commit,
under the manager's lock, these become a *contribution*, which is joined with what the record holds by then (`merging.py`), so a
request that was slower than another loses nothing. One that the application makes is a new birth when it is set: it replaces
what the request saw under that name, and adds up with others that were set there at the same time.

An object belongs to one attribute of one session, and to the request that opened it; like the session it is not for two threads
at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableSet
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, ClassVar, Protocol, Self

from .errors import ValueDamaged, ValueRefused
from .heads import COUNTER_MAX
from .merging import (
    AMOUNT_MAX,
    BYTES,
    COUNTER,
    DAY,
    DECIMAL,
    LOCAL_TIME,
    MAX,
    MIN,
    MOMENT,
    NUMBER,
    SET,
    SPAN,
    TEXT,
    Birth,
    Register,
    State,
    Version,
    build,
    elements,
    extreme,
    is_better,
    join,
    joined_sets,
    parse,
    reach,
    total,
)  # fmt: skip
from .value_tags import crowded

__all__ = ["MERGING_TYPES", "Counter", "Max", "Merging", "MergingSet", "Min", "merging_from"]

_CHANGE_MAX = 2**53  # of one request; exact also where others keep numbers as doubles
_LATER: Version = (COUNTER_MAX, b"\xff" * 16)  # stands for the version that the commit will get, while it is not known
_MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1)
_WORD = 2**63


class Codec(Protocol):
    """Of `ValueTypes`, what elements need."""

    def encode(self, value: Any, path: str) -> bytes: ...
    def decode(self, data: bytes) -> Any: ...


class Merging:
    """What the four have in common."""

    __slots__ = ("_bytes", "_state", "taken")
    __hash__ = None  # type: ignore[assignment]

    kind: ClassVar[int]

    def __init__(self) -> None:
        self._state: State | None = None  #: as the session was opened, or as committed since; None: made by the application
        self._bytes = b""  #: the same, encoded
        self.taken = False  #: an attribute of some session

    @property
    def new(self) -> bool:
        """Made by the application, and not committed yet."""
        return self._state is None

    @property
    def pending(self) -> bool:
        """Whether a commit has anything to say of it."""
        return self._state is None or self._changed()

    def encoded(self, types: Codec, path: str) -> bytes:
        """What a commit would write if nobody else had changed it. Raises `ValueRefused`."""
        if not self.pending:
            return self._bytes
        self._prepare(types, path)
        mine: Register = (*_LATER, build(self.contribution(None, None, _LATER)))
        value = mine[2] if self._state is None else join((*_LATER, self._bytes), mine)[2]
        assert value is not None
        return value

    def contribution(self, opened: Register | None, now: Register | None, version: Version) -> State:
        """This request's operations, as a state to join with `now`. `opened`: the register that the request saw. After `encoded`."""
        if self._state is None:
            over = reach(opened)
            return State(over, {version: Birth(version, self.kind, self._operated(None, None, version))})
        births = {stamp: birth for stamp, birth in self._state.births.items() if birth.kind == self.kind}
        standing = parse(now[2]) if now is not None else None
        target = max(births)  # of several, the highest: whatever ends that one ends them all
        there = standing.births.get(target) if standing is not None else None
        body = self._operated(births[target].body, there.body if there is not None and there.kind == self.kind else births[target].body, version)
        lower = {stamp: birth._replace(body=self._cleared(birth.body)) for stamp, birth in births.items() if stamp != target}
        return State(self._state.over, {**lower, target: Birth(version, self.kind, body)})

    def rebase(self, value: bytes, types: Codec) -> None:
        """The record has this now: what is done from here on is another commit's. Raises `ValueDamaged`."""
        state = parse(value)
        if state is None or state.births[max(state.births)].kind != self.kind:
            raise ValueDamaged("stored value cannot be decoded: a malformed merging value")
        self._show(state, types)
        self._state, self._bytes, self.taken = state, value, True

    def _changed(self) -> bool:
        raise NotImplementedError

    def _prepare(self, types: Codec, path: str) -> None:
        """See that it can travel."""

    def _operated(self, opened: Any, standing: Any, version: Version) -> Any:
        """The body with this request's operations applied; None, None: of a new birth."""
        raise NotImplementedError

    def _cleared(self, body: Any) -> Any:
        """The same of a lower birth, where nothing is added."""
        return body

    def _show(self, state: State, types: Codec) -> None:
        raise NotImplementedError


class Counter(Merging):
    """A number that requests on any member add to at the same time, and every addition counts.

    `add(n)`, `counter += n`, `int(counter)`, `counter.value`. Whole numbers, in one request at most 2^53 up or down. Setting a new
    `Counter(start)` begins anew.
    """

    __slots__ = ("_change", "_start")
    kind = COUNTER

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        self._start = 0
        self._change = 0
        self.add(start)

    def add(self, amount: int = 1) -> None:
        """Add; a negative amount subtracts. Raises `ValueRefused`."""
        if type(amount) is not int or abs(self._change + amount) > _CHANGE_MAX:
            raise ValueRefused(f"Counter.add({amount!r:.40}): use an int, in one request at most 2**53 in all")
        self._change += amount

    @property
    def value(self) -> int:
        return self._start + self._change

    def __int__(self) -> int:
        return self.value

    def __iadd__(self, amount: int) -> Self:
        self.add(amount)
        return self

    def __isub__(self, amount: int) -> Self:
        self.add(-amount)
        return self

    def __eq__(self, other: object) -> bool:
        return self.value == (other.value if type(other) is Counter else other)

    def __repr__(self) -> str:
        return f"Counter({self.value})"

    def _changed(self) -> bool:
        return self._change != 0

    def _operated(self, opened: Any, standing: Any, version: Version) -> Any:
        body = dict(standing or {})
        if self._change:
            added, subtracted = body.get(version[1], (0, 0))
            body[version[1]] = (min(added + max(self._change, 0), AMOUNT_MAX), min(subtracted + max(-self._change, 0), AMOUNT_MAX))
        return body

    def _show(self, state: State, types: Codec) -> None:
        self._start, self._change = total(state), 0


class MergingSet(Merging, MutableSet[Any]):
    """A set that requests on any member change at the same time: additions all stay, and a removal takes what its author saw.

    Like `set`; elements are what a set in a session may hold (docs/values.md). An element that one request removes while another adds
    it anew stays. Adding what is there, and removing what is not, is no change. Operators (``|``, ``&``) give plain sets.
    """

    __slots__ = ("_dots", "_items", "_known")
    kind = SET

    def __init__(self, items: Iterable[Any] = ()) -> None:
        super().__init__()
        self._items: dict[Any, None] = dict.fromkeys(items)
        self._known: dict[Any, list[bytes]] = {}  # as opened: the encodings of each element; several where 1 and True met
        self._dots: dict[Any, bytes] = {}  # encodings of what this request adds

    def __contains__(self, item: object) -> bool:
        return item in self._items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def add(self, value: Any) -> None:
        self._items.setdefault(value)

    def discard(self, value: Any) -> None:
        self._items.pop(value, None)

    @classmethod
    def _from_iterable(cls, it: Iterable[Any]) -> set[Any]:
        return set(it)

    def __repr__(self) -> str:
        return f"MergingSet({set(self._items) or ''})"

    def _changed(self) -> bool:
        return self._items.keys() != self._known.keys()

    def _prepare(self, types: Codec, path: str) -> None:
        if crowded(self._items):
            raise ValueRefused(f"{path}: too many elements of equal hash")
        self._dots = {item: types.encode(item, f"{path}{{...}}") for item in self._items if item not in self._known}

    def _operated(self, opened: Any, standing: Any, version: Version) -> Any:
        # What stands comes first: a dot of this version says that all earlier ones of its origin were seen.
        seen, present = joined_sets(standing, self._cleared(opened)) if opened is not None else ({}, {})
        if self._dots:
            seen = seen | {version[1]: version[0]}
            present = present | dict.fromkeys(self._dots.values(), frozenset({version}))
        return seen, present

    def _cleared(self, body: Any) -> Any:
        seen, present = body
        gone = {encoding for item, encodings in self._known.items() if item not in self._items for encoding in encodings}
        return seen, {element: dots for element, dots in present.items() if element not in gone}

    def _show(self, state: State, types: Codec) -> None:
        encodings = elements(state)
        try:
            items = [types.decode(encoding) for encoding in encodings]
            if crowded(items):
                raise ValueDamaged("stored value cannot be decoded: too many elements of equal hash")
            known: dict[Any, list[bytes]] = {}
            for item, encoding in zip(items, encodings, strict=True):
                known.setdefault(item, []).append(encoding)
        except TypeError:
            raise ValueDamaged("stored value cannot be decoded: an element that cannot be in a set") from None
        self._known, self._items, self._dots = known, dict.fromkeys(known), {}


class _Extreme(Merging):
    __slots__ = ("_before", "_best")

    def __init__(self, value: Any = None) -> None:
        super().__init__()
        self._before: Any = None
        self._best: Any = None
        if value is not None:
            self.offer(value)

    def offer(self, value: Any) -> bool:
        """Take `value` if it is better than what stands. Returns whether it was.

        int and float compare with each other; str, bytes, Decimal, date, timedelta and datetime with their own kind only (a datetime
        with a zone is kept in UTC, and not comparable to one without). Raises `ValueRefused` for anything else.
        """
        new = _ordered(value, type(self).__name__)
        if self._best is not None and self._best[0] != new[0]:
            raise ValueRefused(f"{type(self).__name__}.offer({value!r:.40}): does not compare with {self.value!r:.40}, which stands")
        if not is_better(self.kind, new, self._best):
            return False
        self._best = new
        return True

    @property
    def value(self) -> Any:
        """The best that was offered; None if nothing was."""
        return None if self._best is None else _from_ordered(*self._best)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._best == other._best

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'' if self._best is None else repr(self.value)})"

    def _changed(self) -> bool:
        return self._best is not self._before

    def _operated(self, opened: Any, standing: Any, version: Version) -> Any:
        return self._best

    def _show(self, state: State, types: Codec) -> None:
        best = extreme(state)
        if best is not None:
            try:
                _from_ordered(*best)
            except (OverflowError, ValueError):
                raise ValueDamaged("stored value cannot be decoded: out of range") from None
        self._before = self._best = best


class Max(_Extreme):
    """The highest value that any request offered, on whatever member: `offer(value)`, `value`."""

    __slots__ = ()
    kind = MAX


class Min(_Extreme):
    """The lowest value that any request offered, on whatever member: `offer(value)`, `value`."""

    __slots__ = ()
    kind = MIN


def _ordered(value: Any, who: str) -> tuple[int, Any]:
    """(order, plain value) that compare as `value` does, the same on every machine."""
    kind = type(value)
    if (kind is int and -_WORD <= value < _WORD) or (kind is float and value == value):
        return NUMBER, value
    if kind is str and _is_unicode(value):
        return TEXT, value
    if kind is bytes:
        return BYTES, value
    if kind is Decimal and value.is_finite() and len(value.as_tuple().digits) <= 1000:
        return DECIMAL, str(value).upper()
    if kind is datetime:
        return (LOCAL_TIME, (value - _EPOCH) // _MICROSECOND) if value.tzinfo is None else (MOMENT, (value - _EPOCH.replace(tzinfo=UTC)) // _MICROSECOND)
    if kind is date:
        return DAY, value.toordinal()
    if kind is timedelta and abs(value // _MICROSECOND) < _WORD:
        return SPAN, value // _MICROSECOND
    raise ValueRefused(f"{who}.offer({value!r:.40}): use an int of 64 bits, a float, str, bytes, Decimal, date, datetime or timedelta, and no NaN")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _from_ordered(order: int, value: Any) -> Any:
    """Raises OverflowError or ValueError where there is no such value."""
    if order == DECIMAL:
        return Decimal(value)
    if order == LOCAL_TIME:
        return _EPOCH + timedelta(microseconds=value)
    if order == MOMENT:
        return _EPOCH.replace(tzinfo=UTC) + timedelta(microseconds=value)
    if order == DAY:
        return date.fromordinal(value)
    return timedelta(microseconds=value) if order == SPAN else value


_BY_KIND: dict[int, type[Merging]] = {cls.kind: cls for cls in (Counter, MergingSet, Max, Min)}
MERGING_TYPES: frozenset[type] = frozenset(_BY_KIND.values())


def merging_from(value: bytes, types: Codec) -> Merging:
    """The object of a register's bytes. Raises `ValueDamaged` and nothing else."""
    state = parse(value)
    if state is None:
        raise ValueDamaged("stored value cannot be decoded: a malformed merging value")
    made = _BY_KIND[state.births[max(state.births)].kind]()
    made.rebase(value, types)
    return made
