"""A step in another thread than the reactor's: what leaves at once, what is left to the reactor, and who is told where."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Connection as TcpTransport

from caterwaul.cluster.frames import ACK, DATA, HELLO, FrameDecoder, encode_ack, encode_piece
from caterwaul.cluster.shortcut import Shortcut
from caterwaul.membership.channel import Message
from caterwaul.membership.codec import encode

from .test_channel_shell import GREETING, PEER, Fixture

Pair = tuple[socket.socket, socket.socket]


class Wired:
    """A fixture whose one connection is Twisted's own transport on a real socket; `far` is the other end."""

    def __init__(self, pair: Pair) -> None:
        near, self.far = pair
        self.fixture = Fixture()
        self.channel = self.fixture.channel
        self.reactor = self.fixture.reactor
        self.protocol: Any = self.fixture.reactor.tcpServers[-1][1].buildProtocol(None)
        self.transport: Any = TcpTransport(near, self.protocol, self.reactor)  # type: ignore[no-untyped-call]
        self.transport.connected = 1
        self.transport.startReading()
        self.protocol.makeConnection(self.transport)
        self.decoder = FrameDecoder()
        self.protocol.dataReceived(GREETING)
        self.pump()
        assert [frame[0] for frame in self.frames()] == [HELLO]

    def pump(self) -> None:
        """What the reactor does while the transport wants to write."""
        self.reactor.advance(0)
        while self.transport in self.reactor.writers:
            self.transport.doWrite()

    def frames(self) -> list[Any]:
        """All that has come out at the other end."""
        self.far.setblocking(False)
        frames: list[Any] = []
        while True:
            try:
                frames += self.decoder.feed(self.far.recv(1 << 20))
            except BlockingIOError:
                return frames

    def hasten(self, *messages: Message) -> bool:
        """In a thread of its own."""
        results: list[bool] = []
        thread = threading.Thread(target=lambda: results.append(self.channel.hasten(lambda: [self.channel.send([PEER.uid], message) for message in messages])))  # type: ignore[arg-type,func-returns-value]
        thread.start()
        thread.join()
        return results[0]


@pytest.fixture
def pair() -> Iterator[Pair]:
    listener = socket.create_server(("127.0.0.1", 0))
    far = socket.create_connection(listener.getsockname())
    near, _ = listener.accept()
    listener.close()
    near.setblocking(False)
    yield near, far
    near.close()
    far.close()


@pytest.fixture
def wired(pair: Pair) -> Iterator[Wired]:
    wired = Wired(pair)
    yield wired
    wired.protocol.connectionLost()


class Waiter:
    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def confirmed(self, uid: bytes) -> None:
        self.heard.append(("confirmed", threading.get_ident()))

    def failed(self, uid: bytes) -> None:
        self.heard.append(("failed", threading.get_ident()))


def message(size: int = 0, waiter: Waiter | None = None) -> Message:
    return Message("app", 1, encode(["app", 1, bytes(size)]), waiters=() if waiter is None else (waiter,))


def test_what_an_idle_link_has_to_say_leaves_before_the_reactor_has_a_turn(wired: Wired) -> None:
    assert wired.hasten(message(), message())
    assert [frame[:2] for frame in wired.frames()] == [(DATA, 1), (DATA, 2)]
    assert not wired.reactor.getDelayedCalls() or all(call.getTime() > 0 for call in wired.reactor.getDelayedCalls())


def test_a_busy_link_gathers_and_the_caller_has_to_wake_the_reactor(wired: Wired) -> None:
    assert wired.hasten(message())
    ran: list[int] = []
    assert not wired.channel.hasten(lambda: ran.append(1))
    assert not ran
    wired.protocol.dataReceived(encode_ack(0, 1))
    assert wired.hasten(message())
    assert [frame[:2] for frame in wired.frames()] == [(DATA, 1), (DATA, 2)]


def test_during_a_step_of_the_reactor_no_other_thread_makes_one(wired: Wired) -> None:
    results: list[bool] = []
    wired.channel.run(lambda: results.append(wired.hasten(message())))
    assert results == [False]
    wired.channel.run(lambda: results.append(wired.channel.hasten(lambda: None)))  # not from inside a step either
    assert results == [False, False]


def test_what_the_kernel_does_not_take_is_written_first_by_the_reactor_and_in_order(wired: Wired) -> None:
    for _ in range(200):  # fill the kernel's buffers
        if not wired.hasten(message(60_000)):
            break
        wired.protocol.dataReceived(encode_ack(0, wired.channel._links[PEER.uid]._numbered[1]))
    link = wired.channel._links[PEER.uid]
    wired.channel.send([PEER.uid], message(10))
    frames: list[Any] = []
    for _ in range(10_000):
        wired.reactor.advance(0)
        if wired.transport in wired.reactor.writers:
            wired.transport.doWrite()
        frames += wired.frames()
        if frames and frames[-1][1] == link._numbered[1] and not link.outbox.is_waiting:
            break
    assert [frame[1] for frame in frames if frame[0] == DATA] == list(range(1, link._numbered[1] + 1))
    assert len(frames[-1][4]) < 100


def test_waiters_are_never_told_in_the_thread_that_hastens(wired: Wired) -> None:
    waiter = Waiter()

    def flush() -> None:
        wired.channel.send([b"?" * 16], message(0, waiter))

    thread = threading.Thread(target=wired.channel.hasten, args=(flush,))
    thread.start()
    thread.join()
    assert not waiter.heard
    wired.reactor.advance(0)
    assert waiter.heard == [("failed", threading.get_ident())]


def test_a_flush_that_fails_harms_nobody(wired: Wired) -> None:
    def flush() -> None:
        wired.channel.send([PEER.uid], message())
        raise ZeroDivisionError

    assert wired.channel.hasten(flush)
    assert [frame[:2] for frame in wired.frames()] == [(DATA, 1)]
    assert wired.channel.statistics()["failures"] == 1


def test_after_the_reactor_has_closed_the_socket_its_number_is_nobodys(wired: Wired) -> None:
    """The kernel's descriptor that a hasty step writes to is its own, whatever the transport does meanwhile."""
    shortcut = wired.protocol._shortcut
    number = wired.transport.getHandle().fileno()
    wired.transport.getHandle().close()
    with socket.socket() as thief:
        assert thief.fileno() == number
        assert shortcut.send(b"late")
        assert wired.far.recv(4) == b"late"
    shortcut.close()
    assert not shortcut.send(b"later")


def test_a_transport_that_encrypts_by_itself_is_not_passed_by(wired: Wired) -> None:
    wired.transport.TLS = True
    assert Shortcut.of(wired.transport) is None
    assert Shortcut.of(Protocol()) is None


def test_confirmations_of_a_replica_leave_at_once_too(wired: Wired) -> None:
    wired.protocol.dataReceived(encode_piece(DATA, 1, 0, 0, encode(["app", 7])))
    assert [frame[0] for frame in wired.frames()] == [ACK]
    assert wired.transport not in wired.reactor.writers


def test_a_connection_that_fails_in_a_hasty_step_stops_nobody(wired: Wired, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises, the channel's next step is a step."""

    def broken(self: object, data: bytes) -> bool:
        raise RuntimeError("the transport has ended meanwhile")

    monkeypatch.setattr(Shortcut, "send", broken)
    with pytest.raises(RuntimeError):
        wired.channel.hasten(lambda: wired.channel.send([PEER.uid], Message("app", 1, encode(["app", 1]))))
    monkeypatch.undo()
    wired.pump()
    wired.channel.send([PEER.uid], Message("app", 1, encode(["app", 2])))
    wired.pump()
    assert [frame[0] for frame in wired.frames()][-1] == DATA
