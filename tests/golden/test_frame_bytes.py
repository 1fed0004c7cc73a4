"""Bytes of every frame kind. Changing one of these is changing the protocol."""

from __future__ import annotations

import pytest

from caterwaul.cluster.frames import (
    ACK,
    CONTROL,
    DATA,
    HELLO,
    MORE,
    REFUSE,
    FrameDecoder,
    encode_ack,
    encode_hello,
    encode_piece,
    encode_refuse,
)  # fmt: skip
from caterwaul.cluster.handshake import Answer, encode_answer, encode_greeting
from caterwaul.membership.member import Member

ME = Member(bytes(range(16)), "node1", "10.0.0.1", 4000)

GOLDEN = [
    (encode_hello({"caterwaul": 1}), (HELLO, {"caterwaul": 1}), "0000000e" "8200" "a1696361746572776175" "6c01"),
    (encode_refuse("cluster: no"), (REFUSE, "cluster: no"), "0000000e" "8201" "6b636c75737465723a206e6f"),
    (encode_piece(CONTROL, 1, 2, 0, b"abc"), (CONTROL, 1, 2, 0, b"abc"), "0000001d" "8502" "1b0000000000000001" "1b0000000000000002" "00" "5a00000003616263"),
    (
        encode_piece(DATA, 1 << 40, 86_400_000, MORE | 1 << 1, b""), (DATA, 1 << 40, 86_400_000, 3, b""),
        "0000001a" "8503" "1b0000010000000000" "1b0000000005265c00" "03" "5a00000000",
    ),
    (encode_ack(5, 6), (ACK, 5, 6), "00000014" "8304" "1b0000000000000005" "1b0000000000000006"),
]  # fmt: skip


@pytest.mark.parametrize(("encoded", "frame", "golden"), GOLDEN)
def test_each_kind_of_frame_has_these_bytes_and_reads_back(encoded: bytes, frame: tuple[object, ...], golden: str) -> None:
    assert encoded.hex() == golden
    assert FrameDecoder().feed(bytes.fromhex(golden)) == [frame]


def test_shortest_integers_are_understood_too() -> None:
    """Another implementation may let its CBOR library write the array."""
    assert FrameDecoder().feed(bytes.fromhex("000000088503010200426162")) == [(DATA, 1, 2, 0, b"ab")]
    assert FrameDecoder().feed(bytes.fromhex("0000000483040506")) == [(ACK, 5, 6)]


def test_the_two_hellos_have_these_bytes() -> None:
    member = (
        "666d656d626572" "a5" "63756964" "50000102030405060708090a0b0c0d0e0f" "646e616d65" "656e6f646531" "64686f7374" "6831302e302e302e31"
        "64706f7274" "190fa0" "6176" "820102"
    )  # fmt: skip
    greeting = encode_greeting(ME, "c", epoch=None, fresh=b"f" * 8, peer=b"p" * 8, received=(7, 8))
    assert greeting.hex() == (
        "00000097" "8200" "a8" "696361746572776175" "6c01" "6876657273696f6e73" "820102" "67636c7573746572" "6163" + member
        + "6565706f6368" "f6" "656672657368" "486666666666666666" "6470656572" "487070707070707070" "687265636569766564" "820708"
    )  # fmt: skip
    answer = encode_answer(ME, "c", Answer(ME, 2, True, b"e" * 8, (9, 10)))
    assert answer.hex() == (
        "00000087" "8200" "a7" "696361746572776175" "6c01" "6776657273696f6e" "02" "67636c7573746572" "6163" + member
        + "66726573756d65" "f5" "6565706f6368" "486565656565656565" "687265636569766564" "82090a"
    )  # fmt: skip
