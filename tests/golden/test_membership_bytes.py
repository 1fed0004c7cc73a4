"""The bytes of membership on the wire. Changing one of these is a change of the protocol."""

from __future__ import annotations

import pytest

from caterwaul.membership.codec import decode
from caterwaul.membership.member import Member
from caterwaul.membership.messages import (
    Alive,
    Announcement,
    Ask,
    Farewell,
    Heartbeat,
    Known,
    Probe,
    Verdict,
    decode_control,
    decode_heartbeat,
    to_message,
)  # fmt: skip
from caterwaul.membership.sealing import SealedDatagrams
from caterwaul.membership.secret import Secret

UID = bytes(range(16))
UID_HEX = UID.hex()

CONTROLS = [
    (Probe(7), "83600107"),
    (Alive(7), "83600207"),
    (Ask(500, UID), "8460031901f450" + UID_HEX),
    (Verdict(500, UID, True), "8560041901f450" + UID_HEX + "f5"),
    (Verdict(500, UID, False), "8560041901f450" + UID_HEX + "f4"),
    (Known(((UID, "10.0.0.1", 7000),)), "83600581" + "8350" + UID_HEX + "6831302e302e302e31" + "191b58"),
    (Farewell(), "826006"),
    (
        Announcement(Member(UID, "n1", "10.0.0.1", 7000)),
        "836007a5" + "6375696450" + UID_HEX + "646e616d65626e31" + "64686f73746831302e302e302e31" + "64706f7274191b58" + "6176820102",
    ),
]


@pytest.mark.parametrize(("control", "golden"), CONTROLS, ids=lambda value: type(value).__name__)
def test_each_control_message_has_these_bytes_and_comes_back_from_them(control, golden):
    assert to_message(control).payload.hex() == golden
    assert decode_control(decode(bytes.fromhex(golden))).to_wire() == control.to_wire()


def test_a_heartbeat_has_these_bytes_and_comes_back_from_them():
    heartbeat = Heartbeat("shop", UID, "n1", "10.0.0.1", 7000, "blue")
    golden = "88" + "624357" + "01" + "6473686f70" + "50" + UID_HEX + "626e31" + "6831302e302e302e31" + "191b58" + "64626c7565"
    assert heartbeat.encode().hex() == golden
    assert decode_heartbeat(bytes.fromhex(golden)) == heartbeat


def test_a_sealed_datagram_has_these_bytes():
    """Header in clear (magic, version, key id, uid, counter), then AES-256-GCM; all of it follows from secret, cluster, uid and counter."""
    sealed = SealedDatagrams([Secret(b"s" * 32)], "shop", UID, lambda n: bytes(n)).seal(b"heartbeat")
    assert sealed[:3].hex() == "435301"
    assert sealed[7:23] == UID
    assert sealed[23:31] == (1).to_bytes(8, "big")
    assert len(sealed) == 47 + len(b"heartbeat")
    assert sealed.hex() == "4353010363aae9000102030405060708090a0b0c0d0e0f000000000000000125551fa942ab17fb53ac3ab22dfa10762fff123878da2e35d0"
