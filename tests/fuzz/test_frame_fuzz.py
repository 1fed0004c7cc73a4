"""Deeper than bytes, for frames: however a stream is cut, the same come out; any plain data in a HELLO; the limits. The rest is in `targets.py`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caterwaul.cluster.frames import (
    ACK,
    CONTROL,
    CONTROL_FRAME_MAX,
    DATA,
    DATA_FRAME_MAX,
    HELLO,
    REFUSE,
    FrameDecoder,
    encode_ack,
    encode_hello,
    encode_piece,
    encode_refuse,
)  # fmt: skip
from caterwaul.cluster.handshake import ACCEPTED, DIALLED, Answer, Greeting, Handshake, encode_answer, encode_greeting
from caterwaul.cluster.stages.compressing import compress, inflate
from caterwaul.membership.errors import RemoteError
from caterwaul.membership.member import Member

from .forms import PLAIN

ME = Member(b"m" * 16, "n", "h", 1)
HELLO_KEYS = ["caterwaul", "versions", "version", "cluster", "member", "epoch", "fresh", "peer", "received", "resume", "mandatory"]
NUMBERS = st.integers(0, (1 << 64) - 1)
FRAMES = st.one_of(
    st.builds(lambda text: ((REFUSE, text), encode_refuse(text)), st.text(max_size=300)),
    st.builds(lambda kind, n, now, flags, data: ((kind, n, now, flags, data), encode_piece(kind, n, now, flags, data)),
              st.sampled_from([CONTROL, DATA]), NUMBERS, NUMBERS, st.integers(0, 5), st.binary(max_size=300)),
    st.builds(lambda c, d: ((ACK, c, d), encode_ack(c, d)), NUMBERS, NUMBERS),
    st.builds(lambda content: ((HELLO, content), encode_hello(content)), st.dictionaries(st.text(max_size=5), st.integers(0, 9), max_size=3)),
)  # fmt: skip


def feed_all(stream: bytes, cuts: list[int]) -> list[Any]:
    decoder, frames, at = FrameDecoder(), [], 0
    for cut in cuts:
        frames += decoder.feed(stream[at : at + cut])
        at += cut
    return frames + decoder.feed(stream[at:])


@given(st.lists(FRAMES, max_size=12), st.lists(st.integers(0, 60), max_size=60))
def test_any_chunking_of_a_stream_gives_the_same_frames(frames: list[Any], cuts: list[int]) -> None:
    stream = b"".join(encoded for _, encoded in frames)
    assert feed_all(stream, cuts) == [frame for frame, _ in frames]


@settings(max_examples=400)
@given(st.sampled_from([ACCEPTED, DIALLED]), st.dictionaries(st.sampled_from(HELLO_KEYS), PLAIN), st.booleans(), st.sets(st.sampled_from(HELLO_KEYS)))
def test_an_arbitrary_hello_raises_nothing_but_a_remote_error(state: str, wrong: dict[str, Any], greeting: bool, without: set[str]) -> None:
    good = encode_greeting(ME, "c", epoch=None, fresh=b"f" * 8, peer=None, received=(0, 0)) if greeting else encode_answer(
        ME, "c", Answer(ME, 1, False, b"e" * 8, (0, 0)))  # fmt: skip
    hello = {key: value for key, value in (FrameDecoder().feed(good)[0][1] | wrong).items() if key not in without}
    try:
        said = Handshake(state, b"u" * 16, "c").receive((HELLO, hello))
    except RemoteError:
        return
    assert isinstance(said, Greeting if state == ACCEPTED else Answer)


@given(st.binary(max_size=5000))
def test_what_was_compressed_inflates_to_itself_and_not_beyond_the_bound(data: bytes) -> None:
    how, small = compress(data * 4)
    if how:
        assert inflate(how, small, len(data) * 4) == data * 4
        with pytest.raises(RemoteError, match="larger"):
            inflate(how, small, len(data) * 4 - 1)
        with pytest.raises(RemoteError, match="truncated"):
            inflate(how, small[:-1], len(data) * 4)


def test_lengths_are_refused_before_the_frame_arrives() -> None:
    """64 KiB before a HELLO has passed, and for all kinds but DATA; 256 KiB for DATA."""
    with pytest.raises(RemoteError, match="65537 bytes"):
        FrameDecoder().feed((CONTROL_FRAME_MAX + 1).to_bytes(4, "big"))
    decoder = FrameDecoder()
    decoder.feed(encode_hello({}))
    with pytest.raises(RemoteError, match="262145 bytes"):
        decoder.feed((DATA_FRAME_MAX + 1).to_bytes(4, "big"))
    decoder = FrameDecoder()
    decoder.feed(encode_hello({}))
    largest = encode_piece(DATA, 1, 1, 0, bytes(DATA_FRAME_MAX - 26))
    assert len(decoder.feed(largest)) == 1
    with pytest.raises(RemoteError, match="for its kind"):
        decoder.feed(encode_piece(CONTROL, 1, 1, 0, bytes(CONTROL_FRAME_MAX)))
