"""The channel's shell over Twisted's in-memory reactor: timeouts, silence, refusals, and steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure

from caterwaul.cluster.channel import GroupChannel
from caterwaul.cluster.frames import ACK, DATA, HELLO, REFUSE, FrameDecoder, encode_ack, encode_piece, encode_refuse
from caterwaul.cluster.handshake import Answer, encode_answer, encode_greeting
from caterwaul.cluster.settings import ChannelSettings
from caterwaul.membership.channel import Message, Waiter
from caterwaul.membership.codec import encode
from caterwaul.membership.errors import RemoteError
from caterwaul.membership.member import Member

PEER = Member(b"\2" * 16, "peer", "10.0.0.2", 4000)
GREETING = encode_greeting(PEER, "c", epoch=None, fresh=b"f" * 8, peer=None, received=(0, 0))


class Reactor(MemoryReactorClock):
    def callFromThread(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.callLater(0, f, *args, **kwargs)


class Wire(StringTransport):
    """Remembers each write, and tells the protocol when it is gone."""

    aborted = False

    def __init__(self, protocol: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.protocol = protocol
        self.writes: list[bytes] = []
        protocol.makeConnection(self)

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def frames(self) -> list[Any]:
        frames = FrameDecoder().feed(b"".join(self.writes))
        self.writes = []
        return frames

    def abortConnection(self) -> None:
        self.aborted = True
        self.gone()

    def gone(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))


class App:
    def __init__(self) -> None:
        self.events: list[str] = []
        self.on_message: Callable[[list[Any]], None] = lambda message: None

    def received(self, peer: Member, message: list[Any], offset_ms: int) -> None:
        self.events.append(f"message {message[1]} {offset_ms}")
        self.on_message(message)

    def link_opened(self, peer: Member, resumed: bool) -> None:
        self.events.append(f"opened {resumed}")

    def link_lost(self, peer: Member) -> None:
        self.events.append("lost")

    def refill(self, peer: Member, keys: Iterable[bytes], waiters: Sequence[Waiter]) -> Iterable[Message]:
        self.events.append(f"refill {len(list(keys))}")
        return ()


class Fixture:
    def __init__(self) -> None:
        self.reactor: Any = Reactor()  # type: ignore[no-untyped-call]
        me = Member(b"\1" * 16, "me", "10.0.0.1", 4000)
        settings = ChannelSettings(outbox_max_bytes=65536)
        self.channel = GroupChannel(me, settings, "c", self.reactor, rng=Random(1), entropy=Random(2).randbytes)
        self.app = App()
        self.channel.attach("app", self.app)
        self.channel.start()

    def accept(self) -> Wire:
        return Wire(self.reactor.tcpServers[-1][1].buildProtocol(None))

    def accepted(self) -> Wire:
        wire = self.accept()
        wire.protocol.dataReceived(GREETING)
        assert [frame[0] for frame in wire.frames()] == [HELLO]
        return wire

    def say(self, wire: Wire, *ops: int, first: int = 1) -> None:
        wire.protocol.dataReceived(b"".join(encode_piece(DATA, first + index, 0, 0, encode(["app", op])) for index, op in enumerate(ops)))


@pytest.fixture
def fixture() -> Fixture:
    return Fixture()


def message(size: int = 0, *keys: bytes) -> Message:
    return Message("app", 1, encode(["app", 1, bytes(size)]), keys)


def test_one_chunk_is_answered_with_one_write_confirmations_first(fixture: Fixture) -> None:
    wire = fixture.accepted()
    fixture.app.on_message = lambda _: fixture.channel.send((PEER.uid,), message())
    fixture.reactor.advance(2.5)
    fixture.say(wire, 1, 2, 3)
    assert len(wire.writes) == 1
    assert [frame[:2] for frame in wire.frames()] == [(ACK, 0), (DATA, 1), (DATA, 2), (DATA, 3)]
    assert fixture.app.events == ["opened False", "message 1 2500", "message 2 2500", "message 3 2500"]


def test_a_flush_from_another_thread_makes_one_write(fixture: Fixture) -> None:
    wire = fixture.accepted()

    def flush() -> None:
        for _ in range(5):
            fixture.channel.send((PEER.uid, b"\1" * 16), message())

    fixture.channel.wake(flush)
    assert not wire.writes
    fixture.reactor.advance(0)
    assert len(wire.writes) == 1
    assert len(wire.frames()) == 5


def test_while_the_transport_is_full_nothing_is_written_and_confirmations_wait_too(fixture: Fixture) -> None:
    wire = fixture.accepted()
    wire.protocol.pauseProducing()
    fixture.channel.send((PEER.uid,), message())
    fixture.say(wire, 1)
    assert not wire.writes
    wire.protocol.resumeProducing()
    assert [frame[0] for frame in wire.frames()] == [ACK, DATA]


def test_frames_before_a_bad_one_in_a_chunk_are_applied_and_the_bad_one_is_not_confirmed(fixture: Fixture) -> None:
    wire = fixture.accepted()

    def reject(message: list[Any]) -> None:
        if message[1] == 2:
            raise RemoteError("app: not this")

    fixture.app.on_message = reject
    fixture.say(wire, 1, 2, 3)
    assert fixture.app.events == ["opened False", "message 1 0", "message 2 0", "lost"]
    assert wire.frames()[-1] == (REFUSE, "malformed: app: not this")
    assert wire.disconnecting
    fixture.say(wire, 4, first=4)
    assert "message 4 0" not in fixture.app.events


def test_a_handshake_that_does_not_come_is_cut_off_in_time(fixture: Fixture) -> None:
    wire = fixture.accept()
    fixture.reactor.advance(4.9)
    assert not wire.aborted
    fixture.reactor.advance(0.2)
    assert wire.aborted


def test_a_peer_that_does_not_take_the_reason_for_closing_is_cut_off_in_time(fixture: Fixture) -> None:
    wire = fixture.accepted()
    fixture.channel.close(PEER.uid, "test")
    assert wire.frames() == [(REFUSE, "closed: test")]
    fixture.reactor.advance(5.1)
    assert wire.aborted


def test_a_peer_that_owes_confirmations_and_is_silent_is_dialled_again_and_an_idle_one_is_left_alone(fixture: Fixture) -> None:
    wire = fixture.accepted()
    fixture.reactor.pump([1.0] * 60)
    assert not wire.aborted
    fixture.channel.send((PEER.uid,), message())
    fixture.reactor.pump([1.0] * 2)
    wire.protocol.dataReceived(encode_ack(0, 1))
    assert not fixture.channel.is_degraded(PEER.uid)
    fixture.channel.send((PEER.uid,), message())
    fixture.reactor.pump([1.0] * 4)
    assert fixture.channel.is_degraded(PEER.uid), "nobody waits for it any more"
    wire.protocol.dataReceived(encode_ack(0, 2))
    assert not fixture.channel.is_degraded(PEER.uid)
    fixture.channel.send((PEER.uid,), message())
    fixture.reactor.pump([1.0] * 9)
    assert not wire.aborted
    fixture.reactor.pump([1.0] * 4)
    assert wire.aborted
    assert fixture.app.events == ["opened False", "lost"]
    assert fixture.channel.is_degraded(PEER.uid)
    assert fixture.reactor.tcpClients[0][:2] == PEER.address
    assert fixture.channel.backlog_bytes(PEER.uid) > 0


def test_a_refused_redial_is_told_and_so_is_another_process_at_the_address(fixture: Fixture) -> None:
    refused: list[bytes] = []
    fixture.channel.on_refused = refused.append
    fixture.accepted().gone()
    fixture.reactor.advance(0.3)
    fixture.reactor.tcpClients[0][2].clientConnectionFailed(None, Failure(Refused()))
    assert refused == [PEER.uid]
    fixture.reactor.advance(1.0)
    wire = Wire(fixture.reactor.tcpClients[1][2].buildProtocol(None))
    successor = Member(b"\3" * 16, "peer", *PEER.address)
    wire.protocol.dataReceived(encode_answer(successor, "c", Answer(successor, successor.version, False, b"e" * 8, (0, 0))))
    assert refused == [PEER.uid] * 2
    assert fixture.app.events == ["opened False", "lost", "opened False"]
    dials = len(fixture.reactor.tcpClients)
    fixture.reactor.pump([1.0] * 5)
    assert len(fixture.reactor.tcpClients) == dials
    assert len(refused) > 2


def test_a_newer_connection_of_a_member_replaces_the_one_it_had(fixture: Fixture) -> None:
    old, new = fixture.accepted(), fixture.accepted()
    assert fixture.app.events == ["opened False", "lost", "opened False"]
    assert old.frames()[0][0] == REFUSE
    fixture.say(old, 1)
    fixture.say(new, 2)
    assert fixture.app.events[3:] == ["message 2 0"]
    old.gone()
    assert not fixture.channel.is_degraded(PEER.uid)


def test_degraded_lasts_until_the_peer_confirms_something(fixture: Fixture) -> None:
    """One that we hear and that does not hear us would otherwise be waited for again and again."""
    wire = fixture.accepted()
    fixture.channel.send((PEER.uid,), message())
    fixture.channel.degrade(PEER.uid)
    assert fixture.channel.is_degraded(PEER.uid)
    fixture.say(wire, 1)
    assert fixture.channel.is_degraded(PEER.uid)
    wire.protocol.dataReceived(encode_ack(0, 1))
    assert not fixture.channel.is_degraded(PEER.uid)
    assert fixture.channel.is_degraded(b"unknown")


def test_refills_are_not_asked_for_inside_a_receivers_own_send(fixture: Fixture) -> None:
    wire = fixture.accepted()
    wire.protocol.pauseProducing()
    fixture.channel.send((PEER.uid,), message(60_000, b"k" * 16))
    fixture.channel.send((PEER.uid,), message(60_000, b"l" * 16))
    assert fixture.app.events == ["opened False"]
    fixture.reactor.advance(0)
    assert fixture.app.events[1:] in (["refill 2"], ["refill 1", "refill 1"])


def test_attaching_a_manager_is_announced_and_membership_and_requests_are_not(fixture: Fixture) -> None:
    told: list[list[str]] = []
    fixture.channel.on_announce = lambda me: told.append(sorted(me.managers))
    fixture.channel.attach("", App())
    fixture.channel.attach("second", App())
    fixture.channel.detach("app")
    assert told == [["app", "second"], ["second"]]


def test_an_unknown_receivers_message_is_confirmed_and_counted(fixture: Fixture) -> None:
    wire = fixture.accepted()
    wire.protocol.dataReceived(encode_piece(DATA, 1, 0, 0, encode(["elsewhere", 1])))
    assert wire.frames() == [(ACK, 0, 1)]
    assert fixture.channel.statistics()["messages_unknown"] == 1


@pytest.mark.parametrize("payload", [b"", b"\x00", encode([]), encode(["app"]), encode([1, 1]), encode(["app", "1"]), encode({}), b"\xff"])
def test_a_message_that_is_no_array_of_name_and_op_closes_the_connection(fixture: Fixture, payload: bytes) -> None:
    wire = fixture.accepted()
    wire.protocol.dataReceived(encode_piece(DATA, 1, 0, 0, payload))
    assert wire.disconnecting
    assert fixture.channel.statistics()["remote_errors"] == 1


def test_what_a_peer_says_is_one_line_of_the_log(fixture: Fixture) -> None:
    said: list[Any] = []
    globalLogPublisher.addObserver(said.append)
    try:
        fixture.accepted().protocol.dataReceived(encode_refuse("closed: \r\n\x1b[2J2026-11-28 a line of ours"))
        stranger = fixture.accept()
        stranger.protocol.dataReceived(encode_refuse("x\ny"))
    finally:
        globalLogPublisher.removeObserver(said.append)
    texts = [formatEvent(event) for event in said]
    assert any("closed: ???[2J2026" in text for text in texts)
    assert all(text.isprintable() for text in texts)
