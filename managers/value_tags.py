"""The tags that attribute values wear on the wire, one encoder and one strict decoder each.

A decoder gets what cbor2 made of the tag's content and trusts none of it: exact types, one spelling, bounded sizes, and no
more equal hashes than `COLLISIONS_MAX` (Python hashes text with a secret, but numbers and what is made of them without one).
Whatever a decoder raises is the data's fault; `values.py` says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, NoReturn, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

from cbor2 import CBORSimpleValue, CBORTag, undefined

__all__ = [
    "CLASS",
    "COLLISIONS_MAX",
    "DECODERS",
    "FROZENSET",
    "INT_BITS_MAX",
    "KEYS",
    "LEAVES",
    "MAP",
    "SET",
    "TUPLE",
    "Unfit",
    "bounded",
    "crowded",
    "no_simple_values",
    "refuse",
]

INT_BITS_MAX = 4096  # arithmetic on larger ones is a denial of service
COLLISIONS_MAX = 256  # keys or elements of equal hash: more of them are made on purpose, and quadratic to insert

T = TypeVar("T")

_TAG = 0x43570000  # "CW", in the first-come-first-served range
_DATETIME, _DATE, _TIME, _TIMEDELTA, _DECIMAL, _UUID, SET, FROZENSET, TUPLE, MAP, CLASS = range(_TAG + 1, _TAG + 12)

KEYS = frozenset({type(None), bool, int, float, str, bytes})  # what a dict may have for keys

_INT_MAX = (1 << INT_BITS_MAX) - 1
_MICROSECOND = timedelta(microseconds=1)
_DECIMAL_TEXT = re.compile(r"-?(?:\d{1,1000}(?:\.\d{1,1000})?(?:E[+-]\d{1,6})?|INFINITY|S?NAN\d{0,1000})", re.ASCII)


class Unfit(Exception):
    """A value or its bytes cannot be; `path` grows from the inside out while the walk unwinds."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path: list[str] = []


def bounded(value: int) -> int:
    """`value`, or `Unfit` when it has more bits than `INT_BITS_MAX`."""
    if not ~_INT_MAX <= value <= _INT_MAX:
        raise Unfit(f"an int of more than {INT_BITS_MAX} bits")
    return value


def crowded(items: Iterable[Any]) -> bool:
    """Whether putting these into a set would be quadratic."""
    hashes = list(map(hash, items))
    return len(hashes) - len(set(hashes)) > COLLISIONS_MAX


# --- to the wire ---


def _moment(tag: int) -> Callable[[datetime | time], CBORTag]:
    def encode(value: datetime | time) -> CBORTag:
        zone = value.tzinfo
        if zone is None and not value.fold:
            return CBORTag(tag, value.isoformat())
        return CBORTag(tag, [value.replace(tzinfo=None).isoformat(), value.fold, _zone(zone)])

    return encode


def _zone(zone: tzinfo | None) -> str | int | None:
    """A named zone by its key, a fixed one by its offset in microseconds (`fromisoformat` loses offsets below a second)."""
    if type(zone) is ZoneInfo and zone.key is not None:
        return zone.key
    if type(zone) is timezone:
        return zone.utcoffset(None) // _MICROSECOND
    if zone is None:
        return None
    raise Unfit(f"a time zone of type {type(zone).__qualname__} cannot be replicated; use zoneinfo.ZoneInfo with a key, or datetime.timezone")


def _decimal(value: Decimal) -> CBORTag:
    text = str(value).upper()  # a context can ask for a small "e"
    if not _DECIMAL_TEXT.fullmatch(text):
        raise Unfit("a Decimal of more than 1000 digits or an exponent of more than 6")
    return CBORTag(_DECIMAL, text)


LEAVES: dict[type, Callable[[Any], CBORTag]] = {
    datetime: _moment(_DATETIME),
    time: _moment(_TIME),
    date: lambda value: CBORTag(_DATE, value.isoformat()),
    timedelta: lambda value: CBORTag(_TIMEDELTA, [value.days, value.seconds, value.microseconds]),
    Decimal: _decimal,
    UUID: lambda value: CBORTag(_UUID, value.bytes),
}


# --- from the wire ---


def refuse(*_: object) -> NoReturn:
    """Any tag that is not ours."""
    raise Unfit("an unknown tag")


def _fields(content: Any) -> list[Any]:
    fields: list[Any] = _of(list, content)
    if len(fields) != 3:
        raise Unfit("a malformed tag")
    return fields


def _of(kind: type[T], content: Any) -> T:
    if type(content) is not kind:
        raise Unfit("a malformed tag")
    return content


def _big(sign: int) -> Callable[[Any, bool], int]:
    def decode(content: Any, _: bool) -> int:
        if len(_of(bytes, content)) > INT_BITS_MAX // 8:
            raise Unfit(f"an int of more than {INT_BITS_MAX} bits")
        value = int.from_bytes(content, "big")
        return value if sign > 0 else -1 - value

    return decode


def _to_moment(kind: type[datetime] | type[time]) -> Callable[[Any, bool], datetime | time]:
    def decode(content: Any, _: bool) -> datetime | time:
        text, fold, key = (content, 0, None) if type(content) is str else _fields(content)
        value = kind.fromisoformat(_of(str, text))
        if value.isoformat() != text or value.tzinfo is not None:
            raise Unfit("a malformed time")
        return value.replace(tzinfo=_to_zone(key), fold=_of(int, fold))

    return decode


def _to_zone(key: Any) -> tzinfo | None:
    if key is None:
        return None
    return ZoneInfo(key) if type(key) is str else timezone(timedelta(microseconds=_of(int, key)))


def _to_date(content: Any, _: bool) -> date:
    value = date.fromisoformat(_of(str, content))
    if value.isoformat() != content:
        raise Unfit("a malformed date")
    return value


def _to_timedelta(content: Any, _: bool) -> timedelta:
    days, seconds, microseconds = (_of(int, field) for field in _fields(content))
    return timedelta(days, seconds, microseconds)


def _to_decimal(content: Any, _: bool) -> Decimal:
    if not _DECIMAL_TEXT.fullmatch(_of(str, content)):
        raise Unfit("a malformed Decimal")
    return Decimal(content)


def _to_set(kind: type[Any]) -> Callable[[Any, bool], Any]:
    def decode(content: Any, _: bool) -> Any:
        if crowded(_of(list, content)):
            raise Unfit("too many elements of equal hash")
        value = kind(content)
        if len(value) != len(content):
            raise Unfit("an element twice")
        return value

    return decode


def _to_map(content: Any, _: bool) -> dict[Any, Any]:
    keys = _of(list, content)[::2]
    if not KEYS.issuperset(map(type, keys)) or crowded(keys):
        raise Unfit("malformed keys")
    value = dict(zip(keys, content[1::2], strict=True))
    if len(value) != len(keys):
        raise Unfit("a key twice")
    return value


def no_simple_values(value: Any) -> None:
    """Raise `Unfit` when a CBOR simple value (`undefined` is one) hides in `value`: no tag announces it, no type of ours is it."""
    pending = [value]
    while pending:
        item = pending.pop()
        kind = type(item)
        if kind is dict:
            pending += item.values()
        elif kind in (list, tuple, set, frozenset):
            pending += item
        elif kind is CBORSimpleValue or item is undefined:
            raise Unfit("a CBOR simple value")


# Every tag that cbor2 would decode by itself is refused (a test asks it for them), then come ours.
_FOREIGN = (0, 1, 4, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799)

DECODERS: dict[int, Callable[[Any, bool], Any]] = {
    **dict.fromkeys(_FOREIGN, refuse),
    2: _big(1),
    3: _big(-1),
    _DATETIME: _to_moment(datetime),
    _TIME: _to_moment(time),
    _DATE: _to_date,
    _TIMEDELTA: _to_timedelta,
    _DECIMAL: _to_decimal,
    _UUID: lambda content, _: UUID(bytes=_of(bytes, content)),
    SET: _to_set(set),
    FROZENSET: _to_set(frozenset),
    TUPLE: lambda content, _: tuple(_of(list, content)),
    MAP: _to_map,
}
