"""The handshake's form, and what two ends decide when they meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from random import Random
from typing import Any

import pytest

from caterwaul.cluster.errors import HandshakeRefused
from caterwaul.cluster.frames import ACK, HELLO, REFUSE, FrameDecoder
from caterwaul.cluster.handshake import ACCEPTED, DIALLED, Answer, Greeting, Handshake, encode_answer, encode_greeting
from caterwaul.cluster.link import Link
from caterwaul.cluster.meeting import Links, Meeting, Offer
from caterwaul.cluster.pipeline import Pipeline, cost
from caterwaul.membership.channel import DATA, Message
from caterwaul.membership.errors import RemoteError
from caterwaul.membership.member import PROTOCOL_MAX, Member

PIPELINE = Pipeline(chunk_bytes=1024, message_max_bytes=1 << 20, compress_above_bytes=0)


def member(uid: int) -> Member:
    return Member(bytes([uid]) * 16, f"n{uid}", "10.0.0.1", uid)


def hello(**changes: Any) -> tuple[int, dict[str, Any]]:
    (frame,) = FrameDecoder().feed(encode_greeting(member(1), "c", epoch=None, fresh=b"f" * 8, peer=None, received=(0, 0)))
    content = frame[1] | changes
    return HELLO, {key: value for key, value in content.items() if value is not ...}


class End:
    """One process: its links, and its sides of handshakes."""

    def __init__(self, uid: int) -> None:
        self.me = member(uid)
        self.links = Links("c", Random(uid).randbytes, outbox_max_bytes=1 << 20, message_max_bytes=1 << 20)

    def offer(self, other: End) -> Offer:
        return self.links.offer(self.me, other.me.address)

    def admit(self, offer: Offer) -> Meeting:
        said = Handshake(ACCEPTED, self.me.uid, "c").receive(FrameDecoder().feed(offer.hello)[0])
        assert isinstance(said, Greeting)
        return self.links.admit(self.me, said, 0.0)

    def conclude(self, offer: Offer, meeting: Meeting, other: End) -> Meeting:
        said = Handshake(DIALLED, self.me.uid, "c").receive(FrameDecoder().feed(meeting.answer)[0])
        assert isinstance(said, Answer)
        return self.links.conclude(offer, other.me.address, said, 0.0)


def connect(dialler: End, acceptor: End) -> tuple[bool, bool]:
    offer = dialler.offer(acceptor)
    meeting = acceptor.admit(offer)
    return meeting.resumed, dialler.conclude(offer, meeting, acceptor).resumed


def link(end: End, other: End) -> Link:
    return end.links.by_uid[other.me.uid]


def put(target: Link, number: int) -> None:
    message = Message("s", DATA, bytes([number]))
    parcels = PIPELINE.outbound(message)
    target.put(parcels, message, cost(parcels))


@pytest.mark.parametrize(
    ("frame", "code", "text"),
    [
        (hello(caterwaul=2), "version", "not a HELLO"),
        (hello(cluster="d"), "cluster", "'d' there, 'c' here"),
        (hello(versions=[7, 9]), "version", "7-9 there, 1-2 here"),
        (hello(versions=[0, 0]), "version", "0-0 there"),
        (hello(mandatory=["tomorrow"]), "mandatory", "tomorrow"),
        (hello(member=member(9).to_wire()), "self", "this is the process"),
    ],
)
def test_a_greeting_that_cannot_be_answered_is_refused_with_the_reason(frame: Any, code: str, text: str) -> None:
    with pytest.raises(HandshakeRefused, match=text) as caught:
        Handshake(ACCEPTED, member(9).uid, "c").receive(frame)
    assert caught.value.code == code


def test_keys_of_a_newer_version_are_ignored() -> None:
    newer = {**member(1).to_wire(), "v": [2, 5], "shoe size": 43}
    said = Handshake(ACCEPTED, member(9).uid, "c").receive(hello(versions=[2, 5], member=newer, colour="red", mandatory=[]))
    assert isinstance(said, Greeting)
    assert (said.member, said.version) == (member(1), PROTOCOL_MAX)


def speaks(uid: int, lowest: int, highest: int) -> Member:
    return replace(member(uid), versions=(lowest, highest))


def greeted(**changes: Any) -> Greeting:
    said = Handshake(ACCEPTED, member(9).uid, "c").receive(hello(**changes))
    assert isinstance(said, Greeting)
    return said


def answered(version: int, by: Member, **changes: Any) -> Answer:
    (frame,) = FrameDecoder().feed(encode_answer(by, "c", Answer(by, version, False, b"e" * 8, (0, 0))))
    said = Handshake(DIALLED, member(9).uid, "c").receive((HELLO, frame[1] | changes))
    assert isinstance(said, Answer)
    return said


def test_a_link_with_an_older_version_speaks_that_whoever_dials() -> None:
    old = speaks(1, 1, 1)
    assert greeted(versions=[1, 1], member=old.to_wire()).version == 1 == answered(1, old).version == old.version
    assert greeted().version == PROTOCOL_MAX == answered(PROTOCOL_MAX, member(1)).version == member(1).version


def test_an_answer_with_another_version_than_the_highest_that_both_know_is_refused() -> None:
    for version, by in ((1, member(1)), (2, speaks(1, 1, 1)), (3, speaks(1, 1, 3)), (0, member(1))):
        with pytest.raises(HandshakeRefused, match="version") as caught:
            answered(version, by)
        assert caught.value.code == "version"


def test_versions_that_are_not_the_members_are_a_remote_error() -> None:
    with pytest.raises(RemoteError, match="not those of the member"):
        greeted(versions=[1, 1])


def test_an_acceptor_may_need_a_feature_too_and_the_dialler_refuses_what_it_does_not_know() -> None:
    with pytest.raises(HandshakeRefused, match="not known here: tomorrow, today") as caught:
        answered(PROTOCOL_MAX, member(1), mandatory=["tomorrow", "today"])
    assert caught.value.code == "mandatory"
    with pytest.raises(RemoteError, match="'mandatory' is malformed"):
        answered(PROTOCOL_MAX, member(1), mandatory="tomorrow")


@pytest.mark.parametrize(
    "changes", [{"fresh": None}, {"fresh": b"short"}, {"epoch": 1}, {"received": [1]}, {"received": [-1, 0]}, {"versions": 1}, {"member": ...}]
)
def test_a_malformed_greeting_is_a_remote_error(changes: dict[str, Any]) -> None:
    with pytest.raises(RemoteError):
        Handshake(ACCEPTED, member(9).uid, "c").receive(hello(**changes))


@pytest.mark.parametrize(("state", "frame"), [(ACCEPTED, (ACK, 1, 1)), (ACCEPTED, (REFUSE, "no")), (DIALLED, (ACK, 1, 1))])
def test_a_frame_that_the_table_does_not_name_is_an_error(state: str, frame: Any) -> None:
    with pytest.raises(RemoteError, match="in the handshake"):
        Handshake(state, member(9).uid, "c").receive(frame)


def test_the_refused_end_learns_code_and_reason() -> None:
    with pytest.raises(HandshakeRefused, match="refused by the peer: another cluster") as caught:
        Handshake(DIALLED, member(9).uid, "c").receive((REFUSE, "cluster: another cluster"))
    assert caught.value.code == "cluster"


def test_the_second_handshake_resumes_from_either_end() -> None:
    a, b = End(1), End(2)
    assert connect(a, b) == (False, False)
    assert connect(a, b) == (True, True)
    assert connect(b, a) == (True, True)


def test_what_was_not_confirmed_is_sent_again_with_its_number() -> None:
    a, b = End(1), End(2)
    connect(a, b)
    for number in range(3):
        put(link(a, b), number)
    frames = FrameDecoder().feed(link(a, b).pull(7, 1000))
    assert link(b, a).accept(frames[0]) == b"\0"
    link(b, a).applied(frames[0])
    connect(b, a)
    again = FrameDecoder().feed(link(a, b).pull(9, 1000))
    assert [frame[1:] for frame in again if frame[0] != ACK] == [(2, 9, 0, b"\1"), (3, 9, 0, b"\2")]


def test_an_end_that_discarded_does_not_resume() -> None:
    a, b = End(1), End(2)
    connect(a, b)
    link(a, b).discard()
    assert connect(a, b) == (False, False)
    link(b, a).discard()
    assert connect(a, b) == (False, False)
    assert connect(a, b) == (True, True)


@pytest.mark.parametrize(
    "history", list(product(["both", "lost", "discard a", "discard b"], ["a", "b"], ["both", "lost", "discard a"], ["a", "b"], ["both", "lost"], ["a", "b"]))
)
def test_lost_answers_never_lead_to_a_wrong_resume(history: tuple[str, ...]) -> None:
    """Two ends resume only if what each remembers of the other is the era the other is in."""
    a, b = End(1), End(2)
    connect(a, b)
    era = {"a": 0, "b": 0}  # the handshake each end's numbering began with
    for number, (what, who) in enumerate(zip(history[::2], history[1::2], strict=True), 1):
        dialler, acceptor = (a, b) if who == "a" else (b, a)
        other = "b" if who == "a" else "a"
        if what.startswith("discard"):
            end, peer = (a, b) if what[-1] == "a" else (b, a)
            link(end, peer).discard()
            era[what[-1]] = -number
        offer = dialler.offer(acceptor)
        meeting = acceptor.admit(offer)
        assert meeting.resumed == (era["a"] == era["b"])
        if not meeting.resumed:
            era[other] = number
        if what != "lost":
            assert dialler.conclude(offer, meeting, acceptor).resumed == meeting.resumed
            if not meeting.resumed:
                era[who] = number


def test_an_end_that_claims_more_than_was_sent_does_not_resume() -> None:
    a, b = End(1), End(2)
    connect(a, b)
    link(a, b).received[DATA] = 5
    assert connect(a, b) == (False, False)
    assert link(a, b).received == [0, 0]
    assert connect(a, b) == (True, True)


def test_an_answer_to_an_older_state_is_rejected() -> None:
    a, b = End(1), End(2)
    connect(a, b)
    offer = a.offer(b)
    meeting = b.admit(offer)
    assert meeting.resumed
    link(a, b).discard()
    with pytest.raises(RemoteError, match="meanwhile"):
        a.conclude(offer, meeting, b)


def test_of_two_dials_that_cross_the_lower_uids_is_kept() -> None:
    low, high = End(1), End(2)
    from_low, from_high = low.offer(high), high.offer(low)

    def judge(end: End, offer: Offer, is_dialling: Callable[[Any], bool], now: float = 0.0) -> None:
        said = Handshake(ACCEPTED, end.me.uid, "c").receive(FrameDecoder().feed(offer.hello)[0])
        assert isinstance(said, Greeting)
        end.links.refuse_duplicate(end.me, said, now, is_dialling)

    judge(high, from_low, {low.me.address}.__contains__)
    with pytest.raises(HandshakeRefused, match="both ends dialled"):
        judge(low, from_high, {high.me.address}.__contains__)
    meeting = high.admit(from_low)
    low.conclude(from_low, meeting, high)
    with pytest.raises(HandshakeRefused, match="both ends dialled"):
        judge(low, from_high, set().__contains__, now=1.9)
    judge(low, from_high, set().__contains__, now=2.1)  # by now it means that the peer lost the connection


def test_an_address_that_led_to_a_member_is_remembered_until_the_member_is_forgotten() -> None:
    a, b = End(1), End(2)
    offer = a.links.offer(a.me, ("alias", 5))
    said = Handshake(DIALLED, a.me.uid, "c").receive(FrameDecoder().feed(b.admit(offer).answer)[0])
    assert isinstance(said, Answer)
    a.links.conclude(offer, ("alias", 5), said, 0.0)
    assert a.links.at(("alias", 5)) is link(a, b)
    a.links.remove(b.me.uid)
    assert a.links.at(("alias", 5)) is None
