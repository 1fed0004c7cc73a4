"""What is dear is counted right, wherever it stands, and what only looks dear is not."""

from __future__ import annotations

import pytest
from cbor2 import dumps
from hypothesis import given
from hypothesis import strategies as st

from caterwaul.managers.heads import COUNTER_MAX, live_head
from caterwaul.managers.messages import Speaker
from caterwaul.managers.record import Record
from caterwaul.membership.codec import decode
from caterwaul.membership.crowding import BYTES_EACH, COUNT_MAX, FREE, _has_more, is_crowded
from caterwaul.membership.errors import RemoteError

MEBIBYTE = 1 << 20
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=300) | st.binary(max_size=70000),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=10), inner, max_size=8),
    max_leaves=30,
)


def containers(value: object) -> int:
    inner = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else None
    return 0 if inner is None else 1 + sum(map(containers, inner))


def array(items: bytes, count: int) -> bytes:
    return b"\x9a" + count.to_bytes(4, "big") + items


@given(plain)
def test_arrays_and_maps_are_counted_whatever_is_between_them(value: object) -> None:
    data, count = dumps(value), containers(value)
    assert not _has_more(data, count)
    assert not count or _has_more(data, count - 1)


@given(st.binary(max_size=200), st.integers(0, 9))
def test_any_bytes_are_counted(data: bytes, left: int) -> None:
    assert _has_more(data, left) in (True, False)
    assert not _has_more(data, len(data)) or any(first >> 5 in (2, 3) and first & 31 >= 24 for first in data)


@pytest.mark.parametrize("long", [b"\x58\x17" + b"x" * 23, b"\x79\x00\xff" + b"x" * 255, b"\x5a\x00\x00\xff\xff" + b"x" * 65535, b"\x7b" + bytes(7) + b"\x01x"])
def test_strings_that_are_spelled_longer_than_they_need_be_are_not_walked_through(long: bytes) -> None:
    assert _has_more(long, 1)
    for shorter in (24, 256, 65536):
        assert not _has_more(dumps(b"x" * shorter), 1)


@pytest.mark.parametrize(
    "dear", [b"\x80", b"\xa0", b"\x81\x80", b"\xa1\x40\x80", b"\xe0", b"\xf8\x20", b"\xc1\x80", b"\xd9\x01\x02\x00", b"\x98\x00", b"\xba\0\0\0\0"]
)
def test_a_mebibyte_of_what_is_dear_is_refused_before_it_is_decoded(dear: bytes) -> None:
    count = MEBIBYTE // len(dear)
    with pytest.raises(RemoteError, match=r"too many arrays and maps in \d+ bytes"):
        decode(array(dear * count, count))


@pytest.mark.parametrize(
    "cheap", [b"\x00", b"\xf6", b"\x40", b"\x18\x80", b"\xf9\x80\x80", b"\x1b" + b"\x80" * 8, b"\x57" + b"\x80" * 23, b"\x59\x01\x00" + b"\xe0" * 256]
)
def test_a_mebibyte_of_what_is_not_is_decoded(cheap: bytes) -> None:
    count = MEBIBYTE // len(cheap)
    assert len(decode(array(cheap * count, count))) == count


def test_the_limit_is_exact() -> None:
    size = MEBIBYTE
    allowed = FREE + size // BYTES_EACH - 2  # the outer array and the one within

    def message(count: int) -> bytes:
        inner = array(b"\x80" * count, count)
        return b"\x82" + inner + b"\x5a" + (size - len(inner) - 6).to_bytes(4, "big") + b"\x80" * (size - len(inner) - 6)

    assert len(decode(message(allowed))[0]) == allowed
    with pytest.raises(RemoteError, match="too many"):
        decode(message(allowed + 1))


def test_never_more_than_a_million_of_them() -> None:
    size = 16 * MEBIBYTE
    items = (b"\x80" + b"\x4e" + b"\x80" * 14) * (size // 16)
    assert not is_crowded(items[: 16 * (COUNT_MAX - 1)])
    assert is_crowded(items + b"\x80")


def test_the_densest_messages_of_ours_pass() -> None:
    """A full list of heads or accesses, and a record of millions of short names and values, are far from it."""
    say, uid = Speaker("default"), b"u" * 16
    keys = [n.to_bytes(16, "big") for n in range(65536)]
    assert len(decode(say.heads([(key, live_head(1, uid, uid)) for key in keys]).payload)[2]) == 65536
    assert len(decode(say.access([(key, (), False) for key in keys]).payload)[2]) == 65536
    record = Record()
    record.write(COUNTER_MAX, uid, {format(n, "x"): b"\0" for n in range(300_000)})
    assert len(Record.unpack(record.pack()).registers) == 300_000
