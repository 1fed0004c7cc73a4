"""Sealed datagrams: requirements 1 to 5 of multicast security, as far as the sealer keeps them."""

from __future__ import annotations

import os

import pytest

from caterwaul.membership.errors import LocalError
from caterwaul.membership.sealing import PlainDatagrams, SealedDatagrams
from caterwaul.membership.secret import Secret

A, B = b"a" * 16, b"b" * 16
SECRET, OTHER = Secret(b"s" * 32), Secret(b"o" * 32)


def sealer(uid: bytes, *secrets: Secret, cluster: str = "shop") -> SealedDatagrams:
    return SealedDatagrams(secrets or (SECRET,), cluster, uid, os.urandom)


def test_what_one_node_seals_another_opens():
    one, two = sealer(A), sealer(B)
    assert [two.open(one.seal(text)) for text in (b"x", b"", b"y" * 1000)] == [b"x", b"", b"y" * 1000]


def test_a_repeated_datagram_is_dropped():
    one, two = sealer(A), sealer(B)
    sealed = one.seal(b"x")
    assert (two.open(sealed), two.open(sealed)) == (b"x", None)
    assert two.statistics()["repeated"] == 1


def test_datagrams_out_of_order_are_late_and_then_repeats_within_the_window_of_64():
    """What the network lost, and somebody says later, is no sign of life."""
    one, two = sealer(A), sealer(B)
    sealed = [one.seal(bytes([n])) for n in range(67)]
    assert two.open(sealed[65]) == b"\x41"
    assert [two.open(datagram) for datagram in reversed(sealed[2:65])] == [None] * 63
    assert (two.statistics()["late"], two.statistics()["repeated"]) == (63, 0)
    assert [two.open(datagram) for datagram in sealed[:66]] == [None] * 66
    assert (two.statistics()["late"], two.statistics()["repeated"]) == (63, 66)
    assert two.open(sealed[66]) == b"\x42"


@pytest.mark.parametrize("position", [0, 2, 3, 7, 23, 30, 31, 40, -1])
def test_one_changed_bit_anywhere_makes_it_a_forgery_that_changes_nothing(position):
    one, two = sealer(A), sealer(B)
    sealed = one.seal(b"heartbeat")
    forged = bytearray(sealed)
    forged[position] ^= 1
    assert two.open(bytes(forged)) is None
    assert two.statistics()["senders"] == 0
    assert two.open(sealed) == b"heartbeat"


def test_a_forged_high_counter_does_not_move_the_window():
    one, two = sealer(A), sealer(B)
    assert two.open(one.seal(b"1")) == b"1"
    forged = bytearray(one.seal(b"2"))
    forged[23:31] = b"\xff" * 8
    assert two.open(bytes(forged)) is None
    assert two.open(one.seal(b"3")) == b"3"


def test_another_cluster_with_the_same_secret_opens_nothing():
    assert sealer(B, cluster="crm").open(sealer(A, cluster="shop").seal(b"x")) is None


def test_a_node_with_a_secret_ignores_plain_datagrams_and_one_without_passes_bytes_on():
    assert sealer(A).open(PlainDatagrams().seal(b"\x88plain" * 20)) is None
    assert PlainDatagrams().open(PlainDatagrams().seal(b"x")) == b"x"


def test_a_secret_is_rotated_without_losing_anybody():
    """Add everywhere, put first, remove: at each step both nodes open what the other seals; in the end the old secret opens nothing."""
    steps = [(SECRET,), (SECRET, OTHER), (OTHER, SECRET), (OTHER,)]
    for mine, theirs in [(steps[n], steps[m]) for n in range(4) for m in range(4) if abs(n - m) <= 1]:
        assert sealer(B, *theirs).open(sealer(A, *mine).seal(b"x")) == b"x"
    assert sealer(B, OTHER).open(sealer(A, SECRET).seal(b"x")) is None


def test_a_rotated_sender_is_not_mistaken_for_a_repeat_of_itself():
    two = sealer(B, SECRET, OTHER)
    before = SealedDatagrams((SECRET,), "shop", A, lambda n: b"\xff" * n)
    after = SealedDatagrams((OTHER, SECRET), "shop", A, lambda n: bytes(n))
    assert (two.open(before.seal(b"1")), two.open(after.seal(b"2"))) == (b"1", b"2")


def test_two_starts_from_one_snapshot_share_no_nonce():
    one, two = sealer(A), sealer(A)
    assert not {one.seal(b"x")[23:31] for _ in range(1000)} & {two.seal(b"x")[23:31] for _ in range(1000)}


def test_the_table_of_senders_is_bounded_and_keeps_the_latest():
    two = sealer(B)
    senders = [sealer(n.to_bytes(16, "big")) for n in range(1030)]
    sealed = [sender.seal(b"x") for sender in senders]
    assert all(two.open(datagram) == b"x" for datagram in sealed)
    assert two.statistics()["senders"] == 1024
    assert two.open(sealed[-1]) is None


def test_a_secret_is_rotated_while_the_node_runs():
    one, two = sealer(A, SECRET), sealer(B, SECRET)
    for mine, theirs in [((SECRET,), (SECRET, OTHER)), ((SECRET, OTHER), (OTHER, SECRET)), ((OTHER, SECRET), (OTHER,)), ((OTHER,), (OTHER,))]:
        one.replace(mine)
        two.replace(theirs)
        assert (two.open(one.seal(b"x")), one.open(two.seal(b"y"))) == (b"x", b"y")
    old = sealer(A, SECRET)
    assert two.open(old.seal(b"x")) is None


def test_a_secret_that_is_used_again_meets_no_nonce_again():
    one = sealer(A)
    before = {one.seal(b"x")[23:31] for _ in range(100)}
    one.replace([OTHER])
    one.replace([SECRET])
    assert not before & {one.seal(b"x")[23:31] for _ in range(100)}


def test_no_secret_is_refused():
    with pytest.raises(LocalError, match="takes a secret"):
        SealedDatagrams([], "shop", A, os.urandom)
