"""Where in an input the CBOR is, so that a mutation can change a value in it and leave the lengths right.

Fuzzers that change bytes soon have nothing left that decodes. `exchange` changes an item of the decoded value instead; a form says how to take
the value out of the bytes and put it back. Also: how a list of inputs is one file.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from hypothesis import strategies as st

from caterwaul.membership.codec import decode, encode
from caterwaul.membership.errors import RemoteError

__all__ = ["ALL", "FRAMED", "PLAIN", "Form", "after", "exchange", "framed", "mutate", "mutate_value"]

#: What becomes of an item: the edges of types, sizes and lengths that schemas name.
ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 23, 24, 255, 256, 4095, 4096, 65535, 65536, 2**31, 2**32, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), -(2**64),
    1.5, float("nan"), float("inf"), "", "a", "\0", "\0token", "x" * 256, "\u2028", "127.0.0.1", "::1", b"", b"u" * 8, b"u" * 15, b"u" * 16, bytes(16),
    b"k" * 17, b"\xff" * 24, [], {}, [[]], [None] * 7, {"a": 1}, {b"u" * 16: 2}, {b"\x01" * 16: 2**53}, [b"k" * 16] * 3, [b"u" * 16, 1, 1], ["x"] * 7,
)  # fmt: skip


#: Anything that decodes.
_leaves = (
    st.none() | st.booleans() | st.integers(0, 9) | st.integers(-(2**64), 2**64 - 1) | st.floats() | st.text(max_size=20) | st.binary(max_size=40)
    | st.sampled_from([bytes([n]) * 16 for n in (1, 2, 3, 117)]) | st.sampled_from([item for item in ODD if not isinstance(item, str)])
)  # fmt: skip
PLAIN = st.recursive(
    _leaves,
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=8) | st.binary(min_size=16, max_size=16), inner, max_size=4),
    max_leaves=25,
)


class Form(NamedTuple):
    """`split`: (what goes before, CBOR); `join` is its inverse."""

    split: Callable[[bytes], tuple[bytes, bytes]]
    join: Callable[[bytes, bytes], bytes]


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def after(count: int) -> Form:
    """CBOR after so many other bytes."""
    return Form(lambda data: (data[:count], data[count:]), lambda head, body: head + body)


def _last_frame(data: bytes) -> tuple[bytes, bytes]:
    at = 0
    while True:
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        if end >= len(data):
            return data[:at], data[at + 4 :]
        at = end


ALL = after(0)
FRAMED = Form(_last_frame, lambda head, body: head + framed(body))


def exchange(value: Any, rng: Random) -> Any:
    """The same, but for one item somewhere in it: another value, gone, or there twice."""
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        how = rng.random()
        return [*value[:at], *(() if how < 0.06 else (value[at],) * 2 if how < 0.12 else (exchange(value[at], rng),)), *value[at + 1 :]]
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {other: item for other, item in value.items() if other != key}
        return {**value, key: exchange(value[key], rng)}
    if isinstance(value, bytes) and value and rng.random() < 0.5:  # bytes may hold more of the same: a record, a list of keys
        return mutate_value(value, rng) if rng.random() < 0.5 else _with_a_byte(value, rng)
    if type(value) is int and rng.random() < 0.5:
        return value + rng.choice((-1, 1, 8, 4096))
    return rng.choice(ODD)


def _with_a_byte(data: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes((rng.randrange(256),)) + data[at + 1 :]


def mutate_value(data: bytes, rng: Random, form: Form = ALL) -> bytes:
    """With one item of its CBOR exchanged; `data` itself if there is none."""
    head, body = form.split(data)
    try:
        return form.join(head, encode(exchange(decode(body), rng)))
    except (RemoteError, UnicodeEncodeError, ValueError, OverflowError):
        return data


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """With some bytes changed, gone, new, or from elsewhere in it."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, size = rng.randrange(len(changed) + 1), rng.choice((1, 1, 2, 4, 16))
        how = rng.randrange(5)
        if how == 0:
            del changed[at : at + size]
        elif how == 1:
            changed[at:at] = rng.randbytes(size)
        elif how == 2 and changed:
            begin = rng.randrange(len(changed))
            changed[at:at] = changed[begin : begin + 4 * size]
        elif how == 3 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        else:
            changed[at : at + size] = rng.choice(
                (b"\xff", b"\0", b"\x9f", b"\xbf", b"\x5f", b"\xc0", b"\xd8\x1c", b"\x1b" + b"\xff" * 8, b"\x9a\xff\xff\xff\xff")
            )
    return bytes(changed)


def mutate(data: bytes, rng: Random, form: Form | None) -> bytes:
    """One step of a fuzzer that has no coverage to guide it, and what is mixed into those of one that has."""
    return mutate_value(data, rng, form) if form is not None and rng.random() < 0.5 else mutate_bytes(data, rng)
