"""Deeper than bytes, for membership: any plain data as arguments, and each byte of a sealed datagram changed. The rest is in `targets.py`."""

from __future__ import annotations

import contextlib
import os

from hypothesis import example, given
from hypothesis import strategies as st

from caterwaul.membership.codec import decode, encode
from caterwaul.membership.errors import RemoteError
from caterwaul.membership.messages import Heartbeat, decode_control, decode_heartbeat
from caterwaul.membership.sealing import SealedDatagrams
from caterwaul.membership.secret import Secret

from .forms import PLAIN

GOOD = Heartbeat("shop", b"u" * 16, "n1", "10.0.0.1", 7000).encode()
OPENER = SealedDatagrams([Secret(b"s" * 32)], "shop", b"b" * 16, os.urandom)
SEALED = SealedDatagrams([Secret(b"s" * 32)], "shop", b"a" * 16, os.urandom).seal(GOOD)


@given(st.integers(-1, 9), st.lists(PLAIN, max_size=4))
def test_any_plain_data_as_the_arguments_of_a_control_message(op, arguments):
    message = decode(encode(["", op, *arguments]))
    with contextlib.suppress(RemoteError):
        assert decode_control(message).to_wire()[1] == op


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
@example(len(GOOD) - 1, 0)
def test_a_heartbeat_with_one_byte_changed(position, byte):
    with contextlib.suppress(RemoteError):
        assert isinstance(decode_heartbeat(GOOD[:position] + bytes([byte]) + GOOD[position + 1 :]), Heartbeat)


@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
def test_a_sealed_datagram_with_one_byte_changed_opens_as_nothing(position, change):
    assert OPENER.open(SEALED[:position] + bytes([SEALED[position] ^ change]) + SEALED[position + 1 :]) is None
