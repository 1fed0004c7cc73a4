"""Small inputs that are large once they are decoded, or take for ever: each is refused, at once, and is not kept in memory.

The worst that is *accepted* is measured too: what a hostile member may cost with each message of a mebibyte.
"""

from __future__ import annotations

import gc
import tracemalloc
import zlib
from collections.abc import Callable
from random import Random
from time import thread_time
from typing import Any

import pytest

from caterwaul.cluster.frames import DATA, DATA_FRAME_MAX, FrameDecoder, encode_hello, encode_piece
from caterwaul.cluster.handshake import ACCEPTED, Handshake
from caterwaul.cluster.link import Link
from caterwaul.cluster.pipeline import Pipeline
from caterwaul.managers.errors import ValueDamaged
from caterwaul.managers.merging import MERGING, parse
from caterwaul.managers.messages import ITEMS_MAX
from caterwaul.managers.record import TOUCHES_MAX, Record, merge_touches
from caterwaul.managers.values import ValueTypes
from caterwaul.membership.channel import Message
from caterwaul.membership.codec import decode, encode
from caterwaul.membership.crowding import BYTES_EACH, FREE
from caterwaul.membership.errors import RemoteError
from caterwaul.membership.member import Member
from caterwaul.membership.messages import decode_control, decode_heartbeat

from .managers import OP_MAX, Fixture

MIB = 1 << 20
REFUSED_MS, FRAME_MS, MEBIBYTE_MS, MEMORY_MAX = 50.0, 50.0, 200.0, 100 * MIB
_TRIES = 8


def head(major: int, count: int) -> bytes:
    """The longest spelling of a length."""
    return bytes((major << 5 | 27,)) + count.to_bytes(8, "big")


def array(item: bytes, size: int) -> bytes:
    count = (size - 5) // len(item)
    return b"\x9a" + count.to_bytes(4, "big") + item * count


def tagged(tag: int, content: bytes) -> bytes:
    return b"\xda" + tag.to_bytes(4, "big") + content


def colliding_ints(count: int) -> bytes:
    """Keys that are equal modulo Python's hash modulus, so each insertion looks at all before it."""
    modulus = (1 << 61) - 1
    return b"\xba" + count.to_bytes(4, "big") + b"".join(b"\x1b" + (n * modulus).to_bytes(8, "big") + b"\xf6" for n in range(8)) * (count // 8)


def doubling(tag: int, levels: int, reference: Callable[[int], bytes]) -> bytes:
    """Each level is the one before twice: by reference, a few bytes; written out, two to the power of levels."""
    value = tagged(tag, b"\x82\x00\x00")
    for n in range(levels):
        value = tagged(tag, b"\x82" + value + reference(n))
    return value


BOMBS: dict[str, bytes] = {
    "deep arrays": b"\x81" * 33 + b"\x00",
    "very deep arrays": b"\x81" * 60_000 + b"\x00",
    "very deep maps": b"\xa1\x40" * 30_000 + b"\x00",
    "very deep tags": b"\xc6" * 60_000 + b"\x00",
    "a bignum": b"\xc2" + head(2, 60_000) + b"\xff" * 60_000,
    "a negative bignum": b"\xc3" + head(2, 60_000) + b"\xff" * 60_000,
    "a decimal of a huge exponent": b"\xc4\x82\x1b" + b"\x7f" * 8 + b"\x01",
    "a decimal of many digits": b"\xc4\x82\x00\xc2" + head(2, 60_000) + b"\xff" * 60_000,
    "a bigfloat": b"\xc5\x82\x1a\x7f\xff\xff\xff\x01",
    "a rational": tagged(30, b"\x82\xc2" + head(2, 30_000) + b"\xff" * 30_000 + b"\x01"),
    "a regular expression": tagged(35, b"\x78\x14" + b"(a+)+$(a+)+$(a+)+$!!"),
    "a MIME message": tagged(36, b"\x79\xea\x60" + b"x" * 60_000),
    "a date": b"\xc0\x74" + b"2020-01-01T00:00:00Z",
    "a set": tagged(258, array(b"\x1b" + b"\xff" * 8, 60_000)),
    "integer keys that collide": colliding_ints(6000),
    "an integer key": b"\xa1\x01\x02",
    "an array for a key": b"\xa1\x80\x02",
    "a null for a key": b"\xa1\xf6\x02",
    "shared values": b"\x82" + tagged(28, b"\x81\x00") + tagged(29, b"\x00"),
    "shared values that double": doubling(28, 25, lambda n: tagged(29, bytes((n,)))),
    "a value in itself": tagged(28, b"\x81" + tagged(29, b"\x00")),
    "strings by reference": tagged(256, b"\x98\xff" + b"\x59\xea\x60" + b"x" * 60_000 + b"\xd8\x19\x00" * 254),
    "an array of unknown length": b"\x9f\x00\xff",
    "a map of unknown length": b"\xbf\x40\x00\xff",
    "bytes of unknown length": b"\x5f\x41a\xff",
    "text of unknown length": b"\x7f\x61a\xff",
    "an end of nothing": b"\xff",
    "a key twice": b"\xa2\x41a\x00\x41a\x01",
    "an empty key twice": b"\xa2\x60\x00\x60\x00",
    "something behind": b"\x80\x00",
    "much behind": b"\x00" * 60_000,
    "nothing": b"",
    "bytes that are not there": head(2, 2**63) + b"x",
    "text that is not there": head(3, 2**31) + b"x",
    "items that are not there": head(4, 2**63) + b"\x00",
    "two to the 32 items": b"\x9a\xff\xff\xff\xff" + b"\x00" * 1000,
    "entries that are not there": head(5, 2**62) + b"\x40\x00",
    "lengths in lengths": b"".join(b"\x9b" + b"\0\0\0\0\x7f\xff\xff\xff" for _ in range(30)),
    "text that is no UTF-8": b"\x62\xc3\x28",
    "reserved first bytes": b"\x1c\x00",
    "empty arrays": array(b"\x80", MIB),
    "empty maps": array(b"\xa0", MIB),
    "maps of one": array(b"\xa1\x40\x80", MIB),
    "arrays in arrays": array(b"\x81" * 30 + b"\x80", MIB),
    "simple values": array(b"\xe0", MIB),
    "empty arrays behind a long string": b"\x82\x59\xff\xff" + b"\x80" * 65535 + array(b"\x80", MIB - 65539),
}


@pytest.fixture(scope="module", autouse=True)
def frozen() -> None:
    """What thousands of tests before have left is not what the decoder is charged with."""
    gc.collect()
    gc.freeze()


def cost(run: Callable[[], object], enough_ms: float = REFUSED_MS) -> tuple[float, int, object]:
    """(CPU ms, the first that is enough, or the least of several times; most bytes; what came of it: the error, or else the value)."""

    def attempt() -> object:
        try:
            return run()
        except (RemoteError, ValueDamaged) as error:
            return error

    gc.collect()
    times: list[float] = []
    while len(times) < _TRIES and min(times, default=enough_ms) >= enough_ms:  # a busy machine is slow now and then
        begin = thread_time()
        attempt()
        times.append((thread_time() - begin) * 1000)
    tracemalloc.start()
    try:
        came = attempt()
        return min(times), tracemalloc.get_traced_memory()[1], came
    finally:
        tracemalloc.stop()


def is_defused(run: Callable[[], object], error: type[Exception] = RemoteError) -> None:
    took_ms, most, came = cost(run)
    assert isinstance(came, error), came
    assert took_ms <= REFUSED_MS
    assert most <= 8 * MIB


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_the_decoder_refuses(bomb: bytes) -> None:
    is_defused(lambda: decode(bomb))


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_so_do_all_who_are_handed_bytes(bomb: bytes) -> None:
    is_defused(lambda: Record.unpack(bomb))
    is_defused(lambda: decode_heartbeat(bomb))
    is_defused(lambda: FrameDecoder().feed(len(bomb).to_bytes(4, "big") + bomb))
    took_ms, most, _ = cost(lambda: parse(MERGING + bomb))
    assert parse(MERGING + bomb) is None
    assert took_ms <= REFUSED_MS
    assert most <= 8 * MIB


#: What an application could have put into a session itself.
HARMLESS, LONG = ("deep arrays",), ("empty arrays", "empty maps", "maps of one", "arrays in arrays", "simple values", "empty arrays behind a long string")


@pytest.mark.parametrize("name", [name for name in BOMBS if name not in LONG])
def test_so_do_attribute_values(name: str) -> None:
    """Time is that of the thread whose request reads the value, not the reactor's."""
    took_ms, most, came = cost(lambda: ValueTypes().decode(BOMBS[name]))
    assert name in HARMLESS or isinstance(came, ValueDamaged)
    assert took_ms <= REFUSED_MS
    assert most <= 8 * MIB


@pytest.mark.parametrize("item", [b"\x80", b"\xa1\x40\x80"])
def test_many_small_containers_are_a_value(item: bytes) -> None:
    """Nothing forbids an application to have them; a quarter of a mebibyte costs what a quarter of the limits is."""
    took_ms, most, came = cost(lambda: ValueTypes().decode(array(item, MIB // 4)))
    assert isinstance(came, list)
    assert took_ms <= MEBIBYTE_MS
    assert most <= MEMORY_MAX // 4


# -- frames


@pytest.mark.parametrize("length", [64 * 1024 + 1, 1 << 31, (1 << 32) - 1])
@pytest.mark.parametrize("after", [b"", b"\x85\x03\x1b" + b"\0" * 100])
def test_a_frame_is_refused_by_its_length(length: int, after: bytes) -> None:
    is_defused(lambda: FrameDecoder().feed(length.to_bytes(4, "big") + after))


def test_a_frame_is_refused_by_its_length_however_slowly_that_comes() -> None:
    def drip() -> None:
        decoder = FrameDecoder()
        decoder.feed(encode_hello({}))
        for byte in b"\xff\xff\xff\xff":
            decoder.feed(bytes((byte,)))

    is_defused(drip)


def test_what_is_announced_is_not_allocated() -> None:
    decoder = FrameDecoder()
    decoder.feed(encode_hello({}))
    took_ms, most, _ = cost(lambda: decoder.feed(DATA_FRAME_MAX.to_bytes(4, "big")))
    assert most < 64 * 1024
    assert took_ms < REFUSED_MS


def test_a_stream_in_single_bytes_is_linear() -> None:
    stream = encode_hello({}) + encode_piece(DATA, 1, 1, 0, bytes(30_000))

    def drip(size: int) -> list[Any]:
        decoder = FrameDecoder()
        return [frame for byte in stream[:size] for frame in decoder.feed(bytes((byte,)))]

    half, whole = cost(lambda: drip(15_000))[0], cost(lambda: drip(30_100))[0]
    assert whole < 4 * half + 5


# -- pieces and compression


def pipeline(size_max: int) -> Pipeline:
    return Pipeline(chunk_bytes=16384, message_max_bytes=size_max, compress_above_bytes=0)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_what_inflates_beyond_a_message_is_refused_before_that_is_there(times: int) -> None:
    """64 KiB of the outermost layer are 64 MiB, and more with every layer; only one is ever taken off."""
    bomb = bytes(2 * MIB << 5)
    for _ in range(times):
        bomb = zlib.compress(bomb, 9)
    took_ms, most, came = cost(lambda: decode(pipeline(MIB).inbound(bomb, 2)))
    assert isinstance(came, RemoteError)
    assert took_ms <= REFUSED_MS
    assert most <= 4 * MIB


@pytest.mark.parametrize("flags", range(6))
def test_no_way_of_compressing_makes_more_than_a_message(flags: int) -> None:
    for bomb in (zlib.compress(bytes(8 * MIB)), b"(\xb5/\xfd\xa4" + (1 << 31).to_bytes(4, "little") + b"\x01\0\0", b"\x78\x9c" + b"\0" * 1000):
        took_ms, most, came = cost(lambda bomb=bomb: pipeline(MIB).inbound(bomb, flags))  # type: ignore[misc]
        assert isinstance(came, RemoteError | bytes)
        assert took_ms <= REFUSED_MS
        assert most <= 4 * MIB


def test_what_inflates_to_more_than_four_times_is_refused_before_that_is_there() -> None:
    """The bomb that both together make: 16 KiB on the wire, 16 MiB inflated, and 1.3 GiB decoded if they were."""
    bomb = zlib.compress(array(b"\x80", 16 * MIB), 9)
    assert len(bomb) < 20_000
    took_ms, most, came = cost(lambda: pipeline(64 * MIB).inbound(bomb, 2))
    assert isinstance(came, RemoteError)
    assert took_ms <= REFUSED_MS
    assert most <= 4 * MIB


@pytest.mark.parametrize("size", [1000, MIB, MIB + 1, 8 * MIB])
def test_what_we_send_compressed_is_never_refused(size: int) -> None:
    """Zeros, text that compresses well, and noise."""
    sender = Pipeline(chunk_bytes=1 << 20, message_max_bytes=64 * MIB, compress_above_bytes=1)
    for payload in (bytes(size), (b"one thing again and again, %d times" * (size // 30 + 1))[:size], Random(1).randbytes(size)):
        parcels = sender.outbound(Message("x", 1, payload))
        flags = parcels[-1][1]
        assert pipeline(64 * MIB).inbound(b"".join(bytes(parcel[0]) for parcel in parcels), flags) == payload


def test_the_pieces_of_a_message_that_never_ends_are_not_kept() -> None:
    link = Link(Member(b"p" * 16, "n", "::1", 1), outbox_max_bytes=MIB, message_max_bytes=MIB)
    link.begin(b"e" * 8, b"f" * 8)

    def flood(size: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(10**6):
                number = link.received[1] + 1
                link.accept((DATA, number, 1, 1, bytes(size)))

        return run

    for size in (0, 1, 1000, 100_000):
        took_ms, most, came = cost(flood(size))
        assert isinstance(came, RemoteError)
        assert took_ms <= REFUSED_MS
        assert most <= 2 * MIB
        link.discard()
        link.begin(b"e" * 8, b"f" * 8)


# -- the worst that is accepted


def filled(content: bytes, size: int) -> bytes:
    """An array of this and a string that makes it so long: with it more arrays and maps are allowed."""
    return b"\x82" + content + b"\x5a" + (size - len(content) - 6).to_bytes(4, "big") + bytes(size - len(content) - 6)


def dense(item: bytes, arrays: int, size: int) -> bytes:
    """As many of these as may be; `arrays`: arrays and maps in one."""
    return filled(array(item, len(item) * ((FREE + size // BYTES_EACH - 3) // arrays) + 5), size)


def behind(size: int, content: Callable[[int], bytes]) -> bytes:
    """Behind a string that looks as if it were crowded, so that all is walked through."""
    lure = b"\x80" * (FREE + size // BYTES_EACH + 1)
    return b"\x82" + encode(lure) + content(size - len(lure) - 6)


def worst(size: int) -> dict[str, bytes]:
    """What is dearest to decode of all that is accepted, of so many bytes."""
    return {
        "empty arrays": dense(b"\x80", 1, size),
        "empty maps": dense(b"\xa0", 1, size),
        "maps of one": dense(b"\xa1\x40\x00", 1, size),
        "maps of one float": dense(b"\xa1\x40\xf9\x3c\x01", 1, size),
        "arrays in arrays": dense(b"\x81" * 29 + b"\x80", 30, size),
        "numbers": array(b"\x1a\x10\x00\x00\x00", size),
        "floats": array(b"\xf9\x3c\x01", size),
        "small numbers": array(b"\x00", size),
        "empty strings": array(b"\x40", size),
        "texts of two": array(b"\x62\xc3\xa9", size),
        "a map of many": b"\xba" + (size // 5 - 1).to_bytes(4, "big") + b"".join(b"\x43" + n.to_bytes(3, "big") + b"\xf6" for n in range(size // 5 - 1)),
        "what looks like arrays, and small numbers": behind(size, lambda left: array(b"\x00", left)),
        "what looks like arrays, and empty strings": behind(size, lambda left: array(b"\x40", left)),
        "what looks like arrays, and strings": behind(size, lambda left: array(b"\x58\x18" + bytes(24), left)),
    }


FRAMES, MEBIBYTES = worst(DATA_FRAME_MAX), worst(MIB)


def is_bearable(data: bytes, size: int, most_ms: float) -> None:
    assert size - 64 <= len(data) <= size
    took_ms, most, came = cost(lambda: decode(data), most_ms)
    assert not isinstance(came, Exception)
    assert took_ms <= most_ms
    assert most <= MEMORY_MAX
    assert encode(came)


@pytest.mark.parametrize("data", FRAMES.values(), ids=FRAMES.keys())
def test_the_worst_frame_that_decodes_is_bearable(data: bytes) -> None:
    is_bearable(data, DATA_FRAME_MAX, FRAME_MS)


@pytest.mark.parametrize("data", MEBIBYTES.values(), ids=MEBIBYTES.keys())
def test_the_worst_mebibyte_that_decodes_is_bearable(data: bytes) -> None:
    is_bearable(data, MIB, MEBIBYTE_MS)


CONTROL_MAX = 64 * 1024


def control(item: bytes, arrays: int) -> bytes:
    count = min((FREE + CONTROL_MAX // BYTES_EACH - 20) // arrays, (CONTROL_MAX - 60) // len(item))
    return filled(array(item, len(item) * count + 5), CONTROL_MAX - 32)


#: What a stranger may send before he has said who he is, and what overtakes all else: as much as is accepted, or nearly, or refused.
WORST_CONTROL: dict[str, bytes] = {
    "empty arrays": control(b"\x80", 1), "maps of one": control(b"\xa1\x40\x00", 1), "simple values": control(b"\xe0", 1), "arrays in arrays": control(b"\x81" * 25 + b"\x80", 26),
    "too many": array(b"\x80", CONTROL_MAX - 32),
}  # fmt: skip


@pytest.mark.parametrize("data", WORST_CONTROL.values(), ids=WORST_CONTROL.keys())
def test_the_worst_frame_of_a_stranger_is_bearable(data: bytes) -> None:
    body = b"\x82\x00\xa1\x66member" + data
    assert len(body) <= CONTROL_MAX

    def run() -> None:
        for frame in FrameDecoder().feed(len(body).to_bytes(4, "big") + body):
            Handshake(ACCEPTED, b"u" * 16, "c").receive(frame)

    took_ms, most, came = cost(run)
    assert isinstance(came, RemoteError)
    assert took_ms <= REFUSED_MS
    assert most <= 16 * MIB


@pytest.mark.parametrize("data", [*WORST_CONTROL.values(), FRAMES["maps of one"]], ids=[*WORST_CONTROL, "the largest"])
def test_the_worst_message_to_membership_is_bearable(data: bytes) -> None:
    took_ms, most, came = cost(lambda: decode_control(decode(b"\x83\x60\x05" + data)))
    assert isinstance(came, RemoteError)
    assert took_ms <= FRAME_MS
    assert most <= MEMORY_MAX


@pytest.mark.parametrize("name", ["empty arrays", "maps of one", "empty strings"])
def test_the_worst_nonsense_to_a_manager_is_bearable(name: str) -> None:
    fixture = Fixture()
    for op in range(1, OP_MAX):
        message = decode(b"\x83\x67default" + bytes((op,)) + FRAMES[name])
        took_ms, _, came = cost(lambda message=message: fixture.feed(message))  # type: ignore[misc]
        assert came is None or isinstance(came, RemoteError)
        assert took_ms <= REFUSED_MS
    fixture.check()


@pytest.mark.parametrize("op", [1, 2, 3, 4, 5, 7, 8, 12, 13, 16, 17, 18, 20])
def test_the_most_that_can_be_said_to_a_manager_at_once_is_linear_and_bearable(op: int) -> None:
    """As much of one operation as a frame holds or a list may, all of sessions that are not here, is work and not an attack."""

    def read(data: bytes) -> float:
        """Seconds."""
        assert len(data) <= DATA_FRAME_MAX
        fixture = Fixture()
        begin = thread_time()
        fixture.feed(decode(data))
        return thread_time() - begin

    whole, part = (SENSE[op](KEYS[: SENSE_ITEMS[op] // share]) for share in (1, 8))
    most, eighth = (min(read(data) for _ in range(_TRIES)) for data in (whole, part))
    assert most * 1000 <= FRAME_MS
    assert most < 6 * 8 * eighth + 1e-3


@pytest.mark.parametrize("op", [1, 2, 3, 4, 5, 12, 13, 16, 17, 18, 20])
def test_a_list_of_more_sessions_than_anybody_sends_is_refused(op: int) -> None:
    fixture = Fixture()
    with pytest.raises(RemoteError):
        fixture.feed(decode(SENSE[op](KEYS[: _LISTS[op] + 1])))
    fixture.check()


def test_what_many_members_say_of_the_last_use_is_merged_at_once() -> None:
    """Each would be looked for among all others: a second for a record of 100 kB."""
    mine, theirs = (tuple(part for n in range(TOUCHES_MAX) for part in (bytes([of]) * 14 + n.to_bytes(2, "big"), n, n)) for of in (1, 2))
    took_ms, _, came = cost(lambda: merge_touches(mine, theirs))
    assert took_ms <= FRAME_MS
    assert len(came) == 3 * TOUCHES_MAX
    assert min(came[2::3]) == TOUCHES_MAX // 2


UID = b"\x02" * 16
KEYS = [n.to_bytes(4, "big") * 4 for n in range(65536)]
_LISTS = {1: 2048, **dict.fromkeys((2, 3, 4, 5, 12, 13, 16, 17, 18, 20), ITEMS_MAX)}
#: So many of them are the largest frame, but for those of which no more are allowed.
SENSE_ITEMS = {**_LISTS, 2: 3200, 7: 10_900, 8: 16_300}
SENSE: dict[int, Callable[[list[bytes]], bytes]] = {
    1: lambda keys: encode(["default", 1, UID, [[key, 1, 0, {}, {"a": b"\x01"}, 900, 800] for key in keys]]),
    2: lambda keys: encode(["default", 2, [[key, [2, 1, UID, UID, [], None, 0], 5, [UID, 9, 9], None] for key in keys]]),
    3: lambda keys: encode(["default", 3, [[key, 50] for key in keys]]),
    4: lambda keys: encode(["default", 4, [[key, [2, 1, UID, UID, [], None, 0]] for key in keys]]),
    5: lambda keys: encode(["default", 5, keys]),
    7: lambda keys: encode(["default", 7, 1, 0, 4096, b"".join(key + b"d" * 8 for key in keys)]),
    8: lambda keys: encode(["default", 8, 1, 4096, b"".join(keys)]),
    12: lambda keys: encode(["default", 12, keys]),
    13: lambda keys: encode(["default", 13, [[key, [UID, 8, 8], False] for key in keys]]),
    16: lambda keys: encode(["default", 16, b"".join(key + b"h" + b"d" * 8 for key in keys)]),
    17: lambda keys: encode(["default", 17, b"".join(key + b"h" + b"d" * 8 for key in keys)]),
    18: lambda keys: encode(["default", 18, keys]),
    20: lambda keys: encode(["default", 20, b"".join(key + b"d" * 8 + b"h" * 8 for key in keys)]),
}
