"""The proof of a shared secret: who is admitted, and that nothing else gets anybody in. Requirements 18, 19 and 23."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caterwaul.cluster.errors import HandshakeRefused
from caterwaul.cluster.security.proof import EXPORTER_BYTES, Proof
from caterwaul.membership.secret import Secret

A, B = b"a" * 16, b"b" * 16
ONE, TWO = Secret(b"1" * 32), Secret(b"2" * 32)
EXPORTER, OTHER = b"e" * EXPORTER_BYTES, b"o" * EXPORTER_BYTES


def dialler(*secrets: Secret, uid: bytes = A, cluster: str = "shop", exporter: bytes = EXPORTER) -> Proof:
    return Proof({secret.id: secret for secret in secrets or (ONE,)}, cluster, uid, exporter, dialled=True)


def acceptor(*secrets: Secret, uid: bytes = B, cluster: str = "shop", exporter: bytes = EXPORTER) -> Proof:
    return Proof({secret.id: secret for secret in secrets or (ONE,)}, cluster, uid, exporter, dialled=False)


def shake(one: Proof, two: Proof) -> tuple[bytes, bytes]:
    """What each has left over, with something said after the proof."""
    answer, rest = two.receive(one.begin())
    assert rest == b""
    proof, left_one = one.receive(answer + b"frames of two")
    said, left_two = two.receive(proof + b"frames of one")
    assert said == b""
    return left_one, left_two


def test_two_that_hold_the_secret_know_each_other():
    one, two = dialler(), acceptor()
    assert shake(one, two) == (b"frames of two", b"frames of one")
    assert one.identity is not None
    assert two.identity is not None
    assert (one.identity.uid, two.identity.uid) == (B, A)
    assert one.identity.credential == two.identity.credential == ONE.id.hex()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_however_the_bytes_are_cut(sizes: list[int]):
    one, two = dialler(TWO, ONE), acceptor(ONE)

    def feed(to: Proof, data: bytes) -> tuple[bytes, bytes]:
        said, rest, at = b"", b"", 0
        for size in [*sizes, len(data)]:
            if to.identity is None:
                more, rest = to.receive(data[at : at + size])
                said += more
            else:
                rest += data[at : at + size]
            at += size
        return said, rest

    answer, _ = feed(two, one.begin())
    proof, left = feed(one, answer + b"x" * 50)
    _, over = feed(two, proof + b"y" * 50)
    assert (left, over) == (b"x" * 50, b"y" * 50)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (dialler(ONE), acceptor(TWO)),
        (dialler(cluster="shop"), acceptor(cluster="crm")),
        (dialler(exporter=EXPORTER), acceptor(exporter=OTHER)),  # a man in the middle has two connections
        (dialler(uid=A), acceptor(uid=A)),
    ],
    ids=["another secret", "another cluster", "somebody in between", "itself"],
)
def test_nobody_else_is_admitted(one: Proof, two: Proof):
    with pytest.raises(HandshakeRefused):
        shake(one, two)
    assert one.identity is None
    assert two.identity is None


def test_who_has_no_secret_in_common_is_told_nothing():
    with pytest.raises(HandshakeRefused, match="none of this node's secrets"):
        acceptor(TWO).receive(dialler(ONE).begin())


def test_a_proof_is_worth_nothing_in_the_other_role():
    """An acceptor that has no secret sends a dialler's own words back."""
    victim, also = dialler(), acceptor()
    answer, _ = also.receive(victim.begin())
    proof, _ = victim.receive(answer)
    liar = dialler()
    with pytest.raises(HandshakeRefused, match="wrong"):
        liar.receive(b"CWP1" + B + ONE.id + proof)


def test_a_proof_is_worth_nothing_said_by_another():
    """Who relays what it has heard under another uid is refused."""
    one, two = dialler(), acceptor()
    answer, _ = two.receive(one.begin())
    with pytest.raises(HandshakeRefused, match="wrong"):
        one.receive(answer[:4] + b"c" * 16 + answer[20:])


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_lead_to_anything_but_a_refusal(data: bytes, dialled: bool):
    proof = dialler() if dialled else acceptor()
    proof.begin()
    try:
        proof.receive(data)
        proof.receive(bytes(2000))
    except HandshakeRefused:
        pass
    assert proof.identity is None


def test_while_secrets_change_nobody_is_refused():
    steps = [(ONE,), (ONE, TWO), (TWO, ONE), (TWO,)]
    for mine, theirs in [(steps[n], steps[m]) for n in range(4) for m in range(4) if abs(n - m) <= 1]:
        one, two = dialler(*mine), acceptor(*theirs)
        shake(one, two)
        assert one.identity is not None
        assert one.identity.credential in {mine[0].id.hex(), theirs[0].id.hex()}, "the preferred one if both have it"
