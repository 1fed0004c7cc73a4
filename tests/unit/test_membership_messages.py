"""Messages of membership: strict, small, and nobody's bytes can raise anything else than a remote error."""

from __future__ import annotations

import pytest

from caterwaul.membership.codec import encode
from caterwaul.membership.errors import LocalError, RemoteError
from caterwaul.membership.messages import HEARTBEAT_BYTES_MAX, KNOWN_MAX, Heartbeat, decode_control, decode_heartbeat

UID = b"u" * 16


def test_a_heartbeat_of_usual_names_is_far_below_300_bytes_even_when_sealed():
    assert len(Heartbeat("production-shop", UID, "node12", "2001:db8::1234:5678", 65535, "europe-west").encode()) + 47 < 150
    assert HEARTBEAT_BYTES_MAX + 47 < 300


def test_a_heartbeat_that_would_be_too_long_is_refused_where_it_is_configured():
    with pytest.raises(LocalError, match="shorten"):
        Heartbeat("c" * 120, UID, "n", "h" * 100, 1, "d" * 50).encode()


@pytest.mark.parametrize(
    "wire",
    [
        [],
        ["CW", 1],
        ["XX", 1, "c", UID, "n", "h", 1, ""],
        ["CW", 2, "c", UID, "n", "10.0.0.1", 1, ""],
        ["CW", True, "c", UID, "n", "10.0.0.1", 1, ""],
        ["CW", 1, "c", UID[1:], "n", "10.0.0.1", 1, ""],
        ["CW", 1, "c", UID, "", "h", 1, ""],
        ["CW", 1, "c", UID, "n", "", 1, ""],
        ["CW", 1, "c", UID, "n", "a.host.example", 1, ""],
        ["CW", 1, "c", UID, "n", "127.1", 1, ""],
        ["CW", 1, "c", UID, "n", "10.0.0.1", 0, ""],
        ["CW", 1, "c", UID, "n", "10.0.0.1", True, ""],
        ["CW", 1, "c", UID, "n", "10.0.0.1", 65536, ""],
        ["CW", 1, "c", UID, "n", "10.0.0.1\n", 1, ""],
        ["CW", 1, "c", UID, "n", "10.0.0.1", 1, None],
        ["CW", 1, "c", UID, "n", "10.0.0.1", 1, "", 0],
        {"CW": 1},
        "CW",
        None,
    ],
)
def test_a_heartbeat_that_is_not_exactly_one_is_a_remote_error(wire):
    with pytest.raises(RemoteError):
        decode_heartbeat(encode(wire))


def test_a_heartbeat_longer_than_any_of_ours_is_refused_before_it_is_decoded():
    with pytest.raises(RemoteError, match="too long"):
        decode_heartbeat(b"\xff" * (HEARTBEAT_BYTES_MAX + 1))


@pytest.mark.parametrize(
    "message",
    [
        [""],
        ["", 0],
        ["", 8],
        ["", True, 1],
        ["", "1", 1],
        ["", 1],
        ["", 1, -1],
        ["", 1, 1 << 63],
        ["", 1, True],
        ["", 1, 1, 1],
        ["", 2, None],
        ["", 3, 1],
        ["", 3, 1, b"short"],
        ["", 4, 1, UID],
        ["", 4, 1, UID, 1],
        ["", 5],
        ["", 5, {}],
        ["", 5, [[UID, "10.0.0.1"]]],
        ["", 5, [[UID, "10.0.0.1", 0]]],
        ["", 5, [[UID, "a.host.example", 1]]],
        ["", 5, [[UID, "10.0.0.1", 1]] * (KNOWN_MAX + 1)],
        ["", 6, 1],
        ["", 7],
        ["", 7, []],
        ["", 7, {"uid": UID}],
        ["", 7, {"uid": UID, "name": "n", "host": "a.host.example", "port": 1, "v": [1, 1]}],
    ],
)
def test_a_control_message_that_breaks_its_schema_is_a_remote_error(message):
    with pytest.raises(RemoteError):
        decode_control(message)
