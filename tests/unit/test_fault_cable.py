"""What the bad cable of the fault tests does to a frame: one bit of what is carried, and a checksum that lets it pass, or not."""

from __future__ import annotations

import struct
from random import Random

import pytest

from ..faults.cable import TCP, UDP, _checksum, damage

ADDRESSES = bytes([10, 77, 0, 1, 10, 77, 0, 2])


def frame(protocol: int, data: bytes, padding: bytes = b"") -> bytes:
    """An Ethernet frame with an IPv4 packet of that protocol, with right checksums where the kernel looks."""
    header = struct.pack("!HHIIBBHHH", 4000, 40000, 1, 1, 5 << 4, 0x18, 1000, 0, 0) if protocol == TCP else struct.pack("!HHHH", 4000, 40000, 8 + len(data), 0)
    body = header + data
    if protocol == TCP:
        body = body[:16] + summed(body) + body[18:]
    packet = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 7, 0, 64, protocol, 0) + ADDRESSES + body
    return bytes(12) + b"\x08\x00" + packet + padding


def summed(segment: bytes) -> bytes:
    """The checksum of a TCP segment."""
    return _checksum(ADDRESSES + struct.pack("!HH", TCP, len(segment)) + segment)


@pytest.mark.parametrize("passes", [True, False])
@pytest.mark.parametrize(("protocol", "header"), [(TCP, 20), (UDP, 8)])
@pytest.mark.parametrize("data", [b"x", b"seven..", bytes(1448)])
def test_one_bit_of_what_is_carried_is_another(protocol: int, header: int, data: bytes, passes: bool) -> None:
    before = frame(protocol, data, padding=bytes(6))
    after = damage(before, Random(1), passes=passes)
    assert after is not None
    carried = 14 + 20 + header
    assert sum((one ^ other).bit_count() for one, other in zip(before[carried:], after[carried:], strict=True)) == 1
    assert after[carried + len(data) :] == bytes(6), "what fills the frame up is nobody's"
    if protocol == TCP:
        assert (summed(after[34 : carried + len(data)]) == b"\0\0") == passes
    else:
        assert after[40:42] == b"\0\0", "no checksum"


def test_what_carries_nothing_is_not_damaged() -> None:
    assert damage(frame(TCP, b"", padding=bytes(6)), Random(1), passes=True) is None
