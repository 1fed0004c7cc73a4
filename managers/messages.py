"""What session managers say to each other: operation numbers, builders, and the schema of all that is not a delta.

Every message is ``[manager name, op, ...]``. All are idempotent and none needs an answer to be safe: what is lost with a
link is found again by reconciling. Builders return `Message`s; readers check everything before they return
(`RemoteError` otherwise) and turn the sender's times into ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from ..membership.channel import CONTROL, DATA, Message, Waiter
from ..membership.codec import encode
from ..membership.errors import RemoteError
from ..membership.member import UID_BYTES
from .changes import KEY_BYTES
from .heads import COUNTER_MAX, Head, Ours, head_from_wire, head_to_wire
from .placement import PARTITIONS
from .record import TOUCHES_MAX, Touches

__all__ = ["Differ", "Inventory", "Session", "Speaker", "Sums"]

DELTAS, RECORDS, TOUCHES, HEADS, WANT, OFFER, INVENTORY, COVERED, SYNCED, LOOKUP, ANSWER, ASK, ACCESS = range(1, 14)
#: Since protocol 2.
SUMS, DIFFER, CHECK, CHECKED, CHANGED = range(14, 19)
#: To members that announce what they listen to.
ENDS = 19
#: Where members have a store in common; others skip it.
STORED = 20

#: What a CHECK speaks of: the head only; head and record; and these of a copy that was the truth until its placement changed.
HEAD_MARK, RECORD_MARK, TRUTH_MARK = b"h", b"r", b"t"

#: Verdicts of a look-up's answer. ABSENT: "no", by one who must know; UNSURE: "no", by one who may have missed it.
#: ELSEWHERE: it lives, and the head that came before this answer says with whom. LEFT: the same, and the whole record came, which was the
#: truth here until the session's place changed, or lacks what was here once. EMPTY: "no", by one who must know and has its head: absent for who has no more than that, too.
VERDICTS = FOUND, GONE, ABSENT, UNSURE, ELSEWHERE, LEFT, EMPTY = range(7)

_DOUBTFUL = (True,)
_BEHIND = bytes(KEY_BYTES)
_SERIAL_BYTES = 8
DIGEST_BYTES = SUM_BYTES = 8
_ITEM_BYTES = KEY_BYTES + DIGEST_BYTES
_MARKED_BYTES = KEY_BYTES + 1 + DIGEST_BYTES
_STORED_BYTES = KEY_BYTES + 2 * DIGEST_BYTES

ITEMS_MAX = 4096  #: sessions that a list may speak of: what older members send at most, and some tens of milliseconds to whoever reads it
AT_ONCE = 1000  #: and what this one sends


_T = TypeVar("_T")


def parts(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """Cut so that each is for one message; none of nothing."""
    return (items[i : i + AT_ONCE] for i in range(0, len(items), AT_ONCE))


class Session(NamedTuple):
    """One element of RECORDS."""

    key: bytes
    head: Head | None
    created_ms: int
    touches: Touches
    body: bytes | None
    doubtful: bool = False  #: its sender's copy may be out of date


class Inventory(NamedTuple):
    """Everything its sender holds in partitions ``[start, stop)``, or in those of them that `only` names: ``{key: digest}``."""

    round: int
    start: int
    stop: int
    items: dict[bytes, bytes]
    only: list[int] | None = None


class Sums(NamedTuple):
    """One sum of eight bytes for each partition from `start` on."""

    round: int
    start: int
    sums: bytes


class Differ(NamedTuple):
    """Of the partitions ``[start, stop)`` these have other sums at the sender's."""

    round: int
    start: int
    stop: int
    partitions: list[int]


class Speaker:
    """Builds the messages of one manager."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._said = 0  # messages that stay behind records

    def _data(self, keys: Sequence[bytes], *body: Any, waiters: Sequence[Waiter] = ()) -> Message:
        return Message(self.name, DATA, encode([self.name, *body]), keys, waiters)

    def _control(self, keys: Sequence[bytes], *body: Any, waiters: Sequence[Waiter] = ()) -> Message:
        return Message(self.name, CONTROL, encode([self.name, *body]), keys, waiters)

    def _behind(self, *body: Any) -> Message:
        """One that must not overtake what was said before it: where a full outbox has dropped records, it comes after them, when they are asked for (`again`). For
        that the message is its own key, and no other has the same."""
        data = encode([self.name, *body])
        self._said += 1
        return Message(self.name, DATA, data, [_BEHIND + self._said.to_bytes(_SERIAL_BYTES, "big") + data])

    def again(self, key: bytes) -> Message | None:
        """The message that is this key; None: it is a session's."""
        return Message(self.name, DATA, key[len(_BEHIND) + _SERIAL_BYTES :], [key]) if len(key) > len(_BEHIND) else None

    def records(self, sessions: Sequence[Session], waiters: Sequence[Waiter] = ()) -> Message:
        wire = [[s.key, s.head and head_to_wire(s.head), s.created_ms, list(s.touches), s.body, *_DOUBTFUL[: s.doubtful]] for s in sessions]
        return self._data([s.key for s in sessions], RECORDS, wire, waiters=waiters)

    def touches(self, touches: Sequence[tuple[bytes, int]]) -> Message:
        """Accesses on this member: (key, ms)."""
        return self._data([key for key, _ in touches], TOUCHES, [[key, ms] for key, ms in touches])

    def heads(self, heads: Sequence[tuple[bytes, Head]], waiters: Sequence[Waiter] = ()) -> Message:
        return self._control([key for key, _ in heads], HEADS, [[key, head_to_wire(head)] for key, head in heads], waiters=waiters)

    def stored(self, items: Sequence[tuple[bytes, bytes, bytes]]) -> Message:
        """Sessions that may go from memory: (key, digest, digest of the head alone)."""
        return self._control([key for key, _, _ in items], STORED, b"".join(map(b"".join, items)))

    def want(self, keys: Sequence[bytes]) -> Message:
        return self._control((), WANT, list(keys))

    def offer(self) -> Message:
        return self._behind(OFFER)

    def inventory(self, number: int, start: int, stop: int, items: Iterable[tuple[bytes, bytes]], only: Sequence[int] | None = None) -> Message:
        """`only`: of these partitions; a member that speaks protocol 1 would take it for an inventory of all."""
        rest = () if only is None else (_bits(start, stop, only),)
        return self._data((), INVENTORY, number, start, stop, b"".join(key + digest for key, digest in items), *rest)

    def covered(self, number: int, stop: int, wants: Sequence[bytes], have: Sequence[bytes] | None = None) -> Message:
        """`have`: the digests of our copies of the first ones wanted; the leader need not send what has become the same."""
        rest = () if have is None else (b"".join(have),)
        return self._behind(COVERED, number, stop, b"".join(wants), *rest)

    def synced(self, number: int) -> Message:
        return self._behind(SYNCED, number)

    def sums(self, number: int, start: int, sums: bytes) -> Message:
        """Most are zero where members hold a part of all sessions each: only the others travel."""
        stop = start + len(sums) // SUM_BYTES
        present = [] if sums.count(0) == len(sums) else [start + i for i, one in enumerate(memoryview(sums).cast("Q")) if one]
        some = b"".join([sums[(i - start) * SUM_BYTES : (i - start + 1) * SUM_BYTES] for i in present])
        return self._data((), SUMS, number, start, stop, _bits(start, stop, present), some)

    def differ(self, number: int, start: int, stop: int, partitions: Iterable[int]) -> Message:
        return self._data((), DIFFER, number, start, stop, _bits(start, stop, partitions))

    def lookup(self, key: bytes) -> Message:
        return self._control((), LOOKUP, key)

    def answer(self, key: bytes, verdict: int) -> Message:
        """One that speaks of what has just been sent counts as a message about the session: in a full outbox it must not overtake that."""
        return self._data((key,) if verdict in (FOUND, GONE, ELSEWHERE, LEFT) else (), ANSWER, key, verdict)

    def check(self, items: Iterable[tuple[bytes, bytes]]) -> Message:
        """Whether the receiver has the same: (key, mark)."""
        return self._data((), CHECK, b"".join(key + mark for key, mark in items))

    def checked(self, items: Iterable[tuple[bytes, bytes]]) -> Message:
        return self._data((), CHECKED, b"".join(key + mark for key, mark in items))

    def changed(self, keys: Sequence[bytes]) -> Message:
        """What the receiver has read from us is stale. On the lane of records, so that it cannot overtake the one it speaks of."""
        return self._data((), CHANGED, list(keys))

    def ends(self, ends: Sequence[tuple[bytes, Head, bytes | None]], waiters: Sequence[Waiter]) -> Message:
        """These sessions have ended; the receiver tells its application. Nobody asks for it again, so no full outbox drops it: its sender bounds it."""
        return self._data((), ENDS, [[key, head_to_wire(head), body] for key, head, body in ends], waiters=waiters)

    def ask(self, keys: Sequence[bytes]) -> Message:
        return self._control((), ASK, list(keys))

    def access(self, answers: Sequence[tuple[bytes, Touches, bool]]) -> Message:
        return self._control((), ACCESS, [[key, list(touches), in_use] for key, touches, in_use in answers])


def _bits(start: int, stop: int, partitions: Iterable[int]) -> bytes:
    """One bit for each partition from `start` to `stop`, the first one the lowest bit of the first byte."""
    bits = bytearray((stop - start + 7) // 8)
    for number in partitions:
        bits[number - start >> 3] |= 1 << (number - start & 7)
    return bytes(bits)


def need(condition: bool, what: str) -> None:
    if not condition:
        raise RemoteError(f"{what}: malformed")


def _is_key(value: object) -> bool:
    return type(value) is bytes and len(value) == KEY_BYTES


def _is_ms(value: object) -> bool:
    return type(value) is int and abs(value) <= COUNTER_MAX


def _list(value: object, what: str) -> list[Any]:
    need(type(value) is list and len(value) <= ITEMS_MAX, what)
    return value  # type: ignore[return-value]


def read_stored(wire: object) -> list[tuple[bytes, bytes, bytes]]:
    """(key, digest, digest of the head alone)."""
    need(type(wire) is bytes and not len(wire) % _STORED_BYTES and len(wire) <= ITEMS_MAX * _STORED_BYTES, "stored")
    assert isinstance(wire, bytes)
    ends = (KEY_BYTES, KEY_BYTES + DIGEST_BYTES, _STORED_BYTES)
    items = (wire[at : at + _STORED_BYTES] for at in range(0, len(wire), _STORED_BYTES))
    return [(item[: ends[0]], item[ends[0] : ends[1]], item[ends[1] : ends[2]]) for item in items]


def read_keys(value: object, what: str) -> list[bytes]:
    keys = _list(value, what)
    need(all(map(_is_key, keys)), what)
    return keys


def _read_touches(value: object, ours: Ours, what: str) -> Touches:
    """A flat array (origin, counter, ms, ...), at most one triple per origin."""
    need(type(value) is list and len(value) % 3 == 0 and len(value) <= 3 * TOUCHES_MAX, what)
    flat: list[Any] = value  # type: ignore[assignment]
    for i in range(0, len(flat), 3):
        need(type(flat[i]) is bytes and len(flat[i]) == UID_BYTES and _is_ms(flat[i + 1]) and flat[i + 1] >= 0 and _is_ms(flat[i + 2]), what)
    if len(flat) == 3:
        return flat[0], flat[1], ours(flat[2])
    need(len({*flat[::3]}) * 3 == len(flat), what)
    for i in range(2, len(flat), 3):
        flat[i] = ours(flat[i])
    return tuple(flat)


def read_records(value: object, ours: Ours) -> list[Session]:
    sessions = []
    for item in _list(value, "records"):
        need(type(item) is list and len(item) >= 5, "record")
        key, head, created, touches, body = item[:5]
        need(_is_key(key) and _is_ms(created) and (body is None or type(body) is bytes), "record")
        need(head is not None or body is not None, "record")
        sessions.append(
            Session(
                key,
                None if head is None else head_from_wire(head, ours),
                ours(created),
                _read_touches(touches, ours, "record"),
                body,
                len(item) > 5 and item[5] is True,
            )
        )
    return sessions


def read_touches(value: object, ours: Ours) -> list[tuple[bytes, int, int]]:
    """(key, counter, our ms): the counter of a touch is its origin's own clock."""
    result = []
    for item in _list(value, "touches"):
        need(type(item) is list and len(item) >= 2 and _is_key(item[0]) and _is_ms(item[1]) and item[1] >= 0, "touch")
        result.append((item[0], item[1], ours(item[1])))
    return result


def read_heads(value: object, ours: Ours) -> list[tuple[bytes, Head]]:
    result = []
    for item in _list(value, "heads"):
        need(type(item) is list and len(item) >= 2 and _is_key(item[0]), "head")
        result.append((item[0], head_from_wire(item[1], ours)))
    return result


def read_lookup(message: list[Any]) -> bytes:
    need(_is_key(message[2]), "lookup")
    return message[2]  # type: ignore[no-any-return]


def read_answer(message: list[Any]) -> tuple[bytes, int]:
    """(key, verdict)."""
    need(len(message) >= 4 and _is_key(message[2]) and type(message[3]) is int, "answer")
    return message[2], message[3] if message[3] in VERDICTS else UNSURE  # of a newer peer


def read_ends(value: object, ours: Ours) -> list[tuple[bytes, Head, bytes | None]]:
    result = []
    for item in _list(value, "ends"):
        need(type(item) is list and len(item) >= 3 and _is_key(item[0]) and (item[2] is None or type(item[2]) is bytes), "end")
        result.append((item[0], head_from_wire(item[1], ours), item[2]))
    return result


def read_inventory(message: list[Any]) -> Inventory:
    need(len(message) >= 6, "inventory")
    number, start, stop, blob = message[2:6]
    need(
        type(number) is int and type(start) is int and type(stop) is int and 0 <= start < stop <= PARTITIONS
        and type(blob) is bytes and len(blob) % _ITEM_BYTES == 0,
        "inventory",
    )  # fmt: skip
    items = {blob[i : i + KEY_BYTES]: blob[i + KEY_BYTES : i + _ITEM_BYTES] for i in range(0, len(blob), _ITEM_BYTES)}
    only = _read_bits(message[6], start, stop, "inventory") if len(message) > 6 and message[6] is not None else None
    named = range(start, stop) if only is None else frozenset(only)
    need(all((key[0] << 4 | key[1] >> 4) in named for key in items), "inventory")
    return Inventory(number, start, stop, items, only)


def _read_bits(bits: object, start: int, stop: int, what: str) -> list[int]:
    """Partitions, ascending."""
    count = stop - start
    if bits == bytes((count + 7) // 8):
        return []
    if type(bits) is not bytes or len(bits) != (count + 7) // 8 or int.from_bytes(bits, "little") >> count:
        raise RemoteError(f"{what}: malformed")
    return [start + i for i in range(count) if bits[i >> 3] >> (i & 7) & 1]


def read_sums(message: list[Any]) -> Sums:
    need(len(message) >= 7, "sums")
    number, start, stop, bits, blob = message[2:7]
    need(type(number) is int and type(start) is int and type(stop) is int and 0 <= start < stop <= PARTITIONS and type(blob) is bytes, "sums")
    present = _read_bits(bits, start, stop, "sums")
    need(len(blob) == len(present) * SUM_BYTES, "sums")
    if len(present) == stop - start:
        return Sums(number, start, blob)
    sums = bytearray((stop - start) * SUM_BYTES)
    for at, partition in enumerate(present):
        sums[(partition - start) * SUM_BYTES : (partition - start + 1) * SUM_BYTES] = blob[at * SUM_BYTES : (at + 1) * SUM_BYTES]
    return Sums(number, start, bytes(sums))


def read_differ(message: list[Any]) -> Differ:
    need(len(message) >= 6, "differ")
    number, start, stop, bits = message[2:6]
    need(type(number) is int and type(start) is int and type(stop) is int and 0 <= start < stop <= PARTITIONS, "differ")
    return Differ(number, start, stop, _read_bits(bits, start, stop, "differ"))


def read_covered(message: list[Any]) -> tuple[int, int, dict[bytes, bytes | None]]:
    """(round, stop, wanted keys with the digest of the sender's copy if that is told)."""
    need(len(message) >= 5, "covered")
    number, stop, blob = message[2:5]
    need(type(number) is int and type(stop) is int and 0 < stop <= PARTITIONS and type(blob) is bytes and len(blob) % KEY_BYTES == 0, "covered")
    wants: dict[bytes, bytes | None] = dict.fromkeys(blob[i : i + KEY_BYTES] for i in range(0, len(blob), KEY_BYTES))
    have = message[5] if len(message) > 5 and message[5] is not None else b""
    need(type(have) is bytes and len(have) % DIGEST_BYTES == 0 and len(have) // DIGEST_BYTES <= len(wants), "covered")
    wants.update(zip(list(wants), (have[i : i + DIGEST_BYTES] for i in range(0, len(have), DIGEST_BYTES)), strict=False))
    return number, stop, wants


def read_marks(value: object, what: str) -> list[tuple[bytes, bytes]]:
    """(key, mark) of a CHECK or CHECKED."""
    need(type(value) is bytes and len(value) % _MARKED_BYTES == 0 and len(value) <= ITEMS_MAX * _MARKED_BYTES, what)
    assert type(value) is bytes
    items = [(value[i : i + KEY_BYTES], value[i + KEY_BYTES : i + _MARKED_BYTES]) for i in range(0, len(value), _MARKED_BYTES)]
    need(all(mark[:1] in (HEAD_MARK, RECORD_MARK, TRUTH_MARK) for _, mark in items), what)
    return items


def read_access(value: object, ours: Ours) -> list[tuple[bytes, Touches, bool]]:
    result = []
    for item in _list(value, "access"):
        need(type(item) is list and len(item) >= 3 and _is_key(item[0]) and type(item[2]) is bool, "access")
        result.append((item[0], _read_touches(item[1], ours, "access"), item[2]))
    return result
