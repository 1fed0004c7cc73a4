"""TLS between two sockets of this process: what a thread writes past the reactor keeps its place among what the reactor writes."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.tcp import Connection as TcpTransport
from twisted.internet.testing import MemoryReactorClock

from caterwaul.cluster.security.guards import SecretGuard
from caterwaul.cluster.security.tls import TlsServer
from caterwaul.cluster.shortcut import Shortcut, lower
from caterwaul.membership.secret import Secret


class Near(Protocol):
    """This end: what `Connection` is to TLS."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.got = b""

    def dataReceived(self, data: bytes) -> None:
        self.got += data


class Wire:
    """A server's TLS transport on a real socket, and a client's engine at the other end of it."""

    def __init__(self) -> None:
        near, self.far = socket.socketpair()
        near.setblocking(False)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.far.setblocking(False)
        guard = SecretGuard([Secret(b"s" * 32)], "shop")
        self.reactor = MemoryReactorClock()
        self.near = Near()
        listened: list[Factory] = []

        class Port:
            def listen(self, factory: Factory) -> None:
                listened.append(factory)

        TlsServer(Port(), guard.context, self.reactor).listen(Factory.forProtocol(lambda: self.near))  # type: ignore[arg-type]
        self.tls: Any = listened[0].buildProtocol(None)  # type: ignore[arg-type]
        self.tcp: Any = TcpTransport(near, self.tls, self.reactor)  # type: ignore[no-untyped-call]
        self.tcp.connected = 1
        self.tls.makeConnection(self.tcp)
        self.engine = SSL.Connection(guard.context(), None)
        self.engine.set_connect_state()
        self.heard = b""
        for _ in range(4):
            self.turn()

    def turn(self) -> None:
        """The client's engine takes and gives what it can, and so does the reactor."""
        with contextlib.suppress(SSL.WantReadError):
            self.engine.do_handshake()
        self._give()
        self.tcp.doRead()
        while self.tcp in self.reactor.writers and self.tcp.doWrite() is None and self._take():
            pass
        self._take()

    def _give(self) -> None:
        with contextlib.suppress(SSL.WantReadError):
            self.far.sendall(self.engine.bio_read(1 << 16))

    def _take(self) -> bool:
        """Whether anything came."""
        came = False
        while True:
            try:
                self.engine.bio_write(self.far.recv(1 << 16))
            except BlockingIOError:
                break
            came = True
        while came:
            try:
                self.heard += self.engine.recv(1 << 16)
            except SSL.WantReadError:
                break
        return came

    def close(self) -> None:
        self.far.close()
        self.tcp.getHandle().close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    found = Wire()
    yield found
    found.close()


def test_a_thread_and_the_reactor_write_in_one_order(wire: Wire) -> None:
    shortcut = Shortcut.of(wire.near.transport)
    assert shortcut is not None
    said = b""
    for number in range(200):
        data = number.to_bytes(2, "big") * (1 + number * 150)
        said += data
        if shortcut.is_clear and number % 3:
            writer = threading.Thread(target=lambda data=data: shortcut.send(data))  # type: ignore[misc]
            writer.start()
            writer.join()
        else:
            wire.near.transport.write(data)  # type: ignore[union-attr]
        if number % 7 == 0:
            wire.turn()
    while len(wire.heard) < len(said):
        before = len(wire.heard)
        with wire.near.lock:
            shortcut.put_back()
        wire.turn()
        assert len(wire.heard) > before
    assert wire.heard == said
    shortcut.close()


def test_what_the_kernel_does_not_take_goes_before_whatever_comes_next(wire: Wire) -> None:
    shortcut = Shortcut.of(wire.near.transport)
    assert shortcut is not None
    assert not shortcut.send(b"1" * 100_000)
    assert not shortcut.is_clear
    wire.near.transport.write(b"2")  # type: ignore[union-attr]
    for _ in range(3):
        wire.turn()
    assert wire.heard == b"1" * 100_000 + b"2"
    assert shortcut.is_clear
    shortcut.close()


def test_what_comes_in_is_answered_behind_what_was_left(wire: Wire) -> None:
    """Reading makes TLS write, too."""
    shortcut = Shortcut.of(wire.near.transport)
    assert shortcut is not None
    shortcut.send(b"1" * 100_000)
    wire.engine.send(b"hello")
    for _ in range(3):
        wire.turn()
    assert (wire.near.got, wire.heard) == (b"hello", b"1" * 100_000)
    shortcut.close()


def test_the_transport_with_the_socket_is_below(wire: Wire) -> None:
    assert lower(wire.near.transport) is wire.tcp
    assert lower(wire.tcp) is wire.tcp


def test_after_the_end_of_tls_nothing_is_said_and_nothing_raises(wire: Wire) -> None:
    """The other end has closed, and Twisted has not told us yet: a thread comes in between."""
    shortcut = Shortcut.of(wire.near.transport)
    assert shortcut is not None
    wire.engine.shutdown()
    wire._give()
    wire.tcp.doRead()
    assert not shortcut.is_clear
    assert not shortcut.send(b"late")
    shortcut.close()


def test_whom_the_connection_refuses_the_factory_refuses() -> None:
    guard = SecretGuard([Secret(b"s" * 32)], "shop")
    listened: list[Any] = []

    class Port:
        def listen(self, factory: Any) -> None:
            listened.append(factory)

    class Full(Factory):
        def buildProtocol(self, addr: Any) -> None:
            return None

    TlsServer(Port(), guard.context, MemoryReactorClock()).listen(Full())  # type: ignore[arg-type]
    assert listened[0].buildProtocol(None) is None
