"""Deeper than bytes, for session managers: any plain data as the arguments of an operation, and bursts of valid messages with an element exchanged."""

from __future__ import annotations

import contextlib
import os
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caterwaul.membership.codec import decode, encode
from caterwaul.membership.errors import RemoteError

from .forms import PLAIN, exchange
from .managers import KINDS, OP_MAX, Fixture, receive, valid

_BURST = int(os.environ.get("CATERWAUL_FUZZ_EXAMPLES", "2000")) // 100
_VALID = len(valid(Fixture()))


@given(st.sampled_from(sorted(KINDS)), st.integers(0, OP_MAX), st.lists(PLAIN, max_size=5))
def test_any_plain_data_as_the_arguments_of_any_operation(kind, op, rest):
    fixture = Fixture(kind)
    receive(fixture, decode(encode(["default", op, *rest])))
    fixture.check()


@given(
    st.sampled_from(sorted(KINDS)),
    st.lists(st.tuples(st.integers(0, _VALID - 1), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=2)), min_size=1, max_size=6),
)
def test_valid_messages_with_a_few_bytes_changed_in_any_order(kind, steps):
    fixture = Fixture(kind)
    messages = valid(fixture)
    for which, changes in steps:
        data = bytearray(messages[which])
        for position, byte in changes:
            data[position % len(data)] = byte
        with contextlib.suppress(RemoteError):
            fixture.feed(decode(bytes(data)))
    fixture.check()


@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_messages_with_an_element_exchanged(kind):
    rng = Random(5)
    for _ in range(_BURST):
        fixture = Fixture(kind)
        messages = [decode(data) for data in valid(fixture)]
        for _ in range(60):
            message = rng.choice(messages)
            changed = exchange(message[2:], rng)
            with contextlib.suppress(UnicodeEncodeError, OverflowError):
                receive(fixture, decode(encode([*message[:2], *(changed if isinstance(changed, list) else [changed])])))
        fixture.check()
