"""Sockets: listening, dialling, and the protocol of one connection. The only Twisted protocol code of the channel.

A connection passes three phases: admission (who is there?), the handshake (what do we say?), and then frames; the phase is the
function that takes what comes in, and changing phase is replacing it. How bytes are carried and who is admitted comes from outside
as `Endpoints`; nothing is said before the connection is *usable*, which for plain TCP is when it is made and for TLS when its own
handshake is complete. No frame is decoded before admission, and no failure of it falls through: it closes the connection.

Nothing here waits for a peer: the link is asked for bytes only while the transport wants them, so a slow peer's bytes
stay in its bounded outbox, where urgent frames still pass before data.

Everything that Twisted calls takes the channel's lock (`Host.lock`), because a thread that holds it may write too
(`hasten`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from ipaddress import ip_address
from typing import Any
from typing import Protocol as Interface

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP4ServerEndpoint, TCP6ClientEndpoint, TCP6ServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IHandshakeListener, IListeningPort, IPushProducer, IStreamClientEndpoint, IStreamServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from ..membership.errors import LocalError, RemoteError
from .errors import HandshakeRefused
from .frames import Frame, FrameDecoder, encode_refuse
from .handshake import Answer, Greeting, Handshake
from .link import Link
from .meeting import Address, Offer
from .security.admission import Admission, Identity, Open
from .security.guards import Guard
from .security.tls import TlsClient, TlsServer
from .shortcut import Shortcut, lower

__all__ = ["Connection", "Endpoints", "Host", "PlainTcp", "TlsTcp", "connect", "listen"]

_USER_TIMEOUT_MS = 30_000  # a backstop: the kernel gives up on data nobody confirms; the detector has long decided by then


class Endpoints(Interface):
    """How to listen and dial, and who is admitted. `host` is an address or a name."""

    has_handshake: bool  #: the transport has one of its own, and a connection is usable when that is complete

    def server(self, reactor: Any, host: str, port: int) -> IStreamServerEndpoint: ...

    def client(self, reactor: Any, host: str, port: int, timeout_s: float) -> IStreamClientEndpoint: ...

    def admission(self, transport: Any, uid: bytes, *, dialled: bool) -> Admission:
        """Of a connection that is usable now. `uid`: this process. Raises `HandshakeRefused`."""

    def admits(self, identity: Identity) -> bool:
        """Whether who was admitted so would be admitted still."""


class PlainTcp:
    """No encryption, and everybody is admitted: for loopback."""

    has_handshake = False

    def server(self, reactor: Any, host: str, port: int) -> IStreamServerEndpoint:
        endpoint = TCP6ServerEndpoint if _version(host) == 6 else TCP4ServerEndpoint
        return endpoint(reactor, port, interface=host)

    def client(self, reactor: Any, host: str, port: int, timeout_s: float) -> IStreamClientEndpoint:
        version = _version(host)
        if version == 4:
            return TCP4ClientEndpoint(reactor, host, port, timeout=timeout_s)
        if version == 6:
            return TCP6ClientEndpoint(reactor, host, port, timeout=timeout_s)
        return HostnameEndpoint(reactor, host, port, timeout=timeout_s)

    def admission(self, transport: Any, uid: bytes, *, dialled: bool) -> Admission:
        return Open()

    def admits(self, identity: Identity) -> bool:
        return True


class TlsTcp:
    """TLS 1.3, and whom `guard` admits."""

    has_handshake = True

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._plain = PlainTcp()

    def server(self, reactor: Any, host: str, port: int) -> IStreamServerEndpoint:
        return TlsServer(self._plain.server(reactor, host, port), self._guard.context, reactor)

    def client(self, reactor: Any, host: str, port: int, timeout_s: float) -> IStreamClientEndpoint:
        return TlsClient(self._plain.client(reactor, host, port, timeout_s), self._guard.context, reactor)

    def admission(self, transport: Any, uid: bytes, *, dialled: bool) -> Admission:
        return self._guard.admission(transport.getHandle(), uid, dialled=dialled)

    def admits(self, identity: Identity) -> bool:
        return self._guard.admits(identity)


def _version(host: str) -> int:
    """4 or 6 for an address, 0 for a name."""
    try:
        return ip_address(host).version
    except ValueError:
        return 0


class Host(Interface):
    """What a connection reports to: the channel. `lock`: held while it is told anything, and while anything is written."""

    @property
    def lock(self) -> AbstractContextManager[Any]: ...

    def made(self, connection: Connection) -> None:
        """There is a connection, which nobody has been admitted on."""

    def admission(self, connection: Connection) -> Admission:
        """It is usable. May raise `HandshakeRefused`."""

    def handshake(self, connection: Connection) -> Handshake:
        """Somebody is admitted on it."""

    def greeted(self, connection: Connection, greeting: Greeting) -> None:
        """May raise `HandshakeRefused`."""

    def answered(self, connection: Connection, answer: Answer) -> None: ...

    def frames(self, connection: Connection, frames: Sequence[Frame], size: int) -> None: ...

    def broken(self, connection: Connection, error: RemoteError) -> None:
        """The connection is about to be closed because of this."""

    def lost(self, connection: Connection, why: str) -> None:
        """The socket is gone; whatever the phase, once for each connection made. `why`: the transport's words, for people; empty: this end closed it."""

    def now_ms(self) -> int: ...


@implementer(IPushProducer, IHandshakeListener)
class Connection(Protocol):
    """One TCP connection. `offer`: what this end says once it has dialled (None: it accepted). `link`: set once the handshake is done.

    `identity`: what the other end has proven, from its admission on. `has_handshake`: see `Endpoints`.
    """

    def __init__(self, host: Host, ahead_bytes: int, address: Address | None = None, offer: Offer | None = None, *, has_handshake: bool = False) -> None:
        self._host = host
        self._ahead_bytes = ahead_bytes
        self._has_handshake = has_handshake
        self.accepted_from = ""  #: the address of whoever dialled this end
        self.lock = host.lock  #: what Twisted's TLS transport takes too
        self.address = address
        self.offer = offer
        self.link: Link | None = None
        self.identity: Identity | None = None
        self._admission: Admission  # from `_begin` on
        self._decoder = FrameDecoder()
        self._phase: Callable[[bytes], None] = self._too_early
        self._paused = False
        self._shortcut: Shortcut | None = None

    @property
    def is_closed(self) -> bool:
        """Closed by this end: what still comes in is not looked at."""
        return self._phase == self._ignore

    @property
    def where(self) -> str:
        """The other end's address, for people."""
        peer: Any = self.transport.getPeer() if self.transport is not None else None
        return f"{getattr(peer, 'host', '?')}:{getattr(peer, 'port', '?')}"

    # -- Twisted calls these

    def connectionMade(self) -> None:
        _configure(self.transport)
        with self.lock:
            self._host.made(self)
            if not self._has_handshake:
                self._guarded(self._begin)

    def handshakeCompleted(self) -> None:
        """Of the transport; ours comes after it."""
        with self.lock:
            self._guarded(self._begin)

    def dataReceived(self, data: bytes) -> None:
        if self._phase == self._ignore:
            return
        with self.lock:
            self._guarded(self._phase, data)

    def connectionLost(self, reason: Failure = Failure(ConnectionError())) -> None:  # noqa: B008  (Twisted's signature has a default)
        with self.lock:
            why = "" if self.is_closed else reason.getErrorMessage()
            self._end()
            self._host.lost(self, why)

    def _guarded(self, act: Callable[..., None], *arguments: bytes) -> None:
        """Whatever the other end's bytes lead to: a remote error closes the connection."""
        try:
            act(*arguments)
        except RemoteError as error:
            self._host.broken(self, error)
            code = error.code if isinstance(error, HandshakeRefused) else "malformed"
            self.close(f"{code}: {error}")

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        with self._host.lock:
            self._paused = False
            self.flush()

    def stopProducing(self) -> None:
        self._paused = True

    # -- the channel calls these

    def establish(self, link: Link, answer: bytes = b"") -> None:
        """The handshake is done: frames of this link from now on."""
        transport: Any = self.transport
        self.link = link
        self._phase = self._frames
        if answer:
            transport.write(answer)
        lower(transport).bufferSize = self._ahead_bytes
        transport.registerProducer(self, True)
        self._shortcut = Shortcut.of(transport)

    @property
    def is_idle(self) -> bool:
        """Whether `hasten` would write at once: nothing is under way to the peer. (A busy link had better gather.)"""
        return self._shortcut is not None and not self._paused and self.link is not None and not self.link.is_awaiting and self._shortcut.is_clear

    def hasten(self) -> bool:
        """Give the kernel what an idle link has to say. Any thread, under the lock. False: there is more, `flush` has to go on."""
        link = self.link
        if link is None or self._shortcut is None or not self.is_idle:
            return False
        data = link.pull(self._host.now_ms(), self._ahead_bytes)
        return (not data or self._shortcut.send(data)) and not link.outbox.is_waiting

    def flush(self) -> None:
        """Write what the link has, as long as the transport takes it."""
        transport: Any = self.transport
        link = self.link
        if self._paused or link is None or self.hasten():
            return
        if self._shortcut is not None:
            self._shortcut.put_back()
        while not self._paused:
            data = link.pull(self._host.now_ms(), self._ahead_bytes)
            if not data:
                return
            transport.write(data)

    def close(self, reason: str) -> None:
        """Tell the peer why (``code: text``; empty: nothing) and close; what it still sends is ignored."""
        if self._phase == self._ignore:
            return
        transport: Any = self.transport
        if self._shortcut is not None:
            self._shortcut.put_back()
        self._end()
        if self.link is not None:
            transport.unregisterProducer()
        if reason and self.identity is not None:  # whoever is not admitted is told nothing
            transport.write(encode_refuse(reason))
        transport.loseConnection()

    def abort(self) -> None:
        """Close without waiting for the peer."""
        transport: Any = self.transport
        self._end()
        transport.abortConnection()

    def _end(self) -> None:
        """Neither read nor write any more."""
        self._phase = self._ignore
        self._paused = True
        if self._shortcut is not None:
            self._shortcut.close()
            self._shortcut = None

    # -- phases

    def _too_early(self, data: bytes) -> None:
        """Before the connection is usable nobody can have said anything: a transport that gives bytes then is not believed."""
        raise RemoteError("bytes before the connection was usable")

    def _begin(self) -> None:
        transport: Any = self.transport
        self._admission = self._host.admission(self)
        self._phase = self._admit
        transport.write(self._admission.begin())
        self._admit(b"")

    def _admit(self, data: bytes) -> None:
        transport: Any = self.transport
        said, rest = self._admission.receive(data)
        if said:
            transport.write(said)
        if self._admission.identity is None:
            return
        self.identity = self._admission.identity
        self._handshake = self._host.handshake(self)
        self._phase = self._shake
        if self.offer is not None:
            transport.write(self.offer.hello)
        if rest:
            self._phase(rest)

    def _shake(self, data: bytes) -> None:
        frames = self._decoder.feed(data)
        if not frames:
            return
        first, *rest = frames
        said = self._handshake.receive(first)
        if isinstance(said, Answer):
            self._host.answered(self, said)
        else:
            self._host.greeted(self, said)
        if rest and self._phase == self._frames:
            self._host.frames(self, rest, len(data))

    def _frames(self, data: bytes) -> None:
        self._host.frames(self, self._decoder.feed(data), len(data))

    def _ignore(self, data: bytes) -> None:
        """After closing."""


def listen(endpoints: Endpoints, reactor: Any, host: str, port: int, accept: Callable[[str], Connection | None]) -> Deferred[IListeningPort]:
    """Listen; `accept(address)` makes the connection's protocol, None refuses it. Fails with `LocalError` if the port cannot be had."""

    def explain(failure: Failure) -> None:
        failure.trap(CannotListenError, OSError)
        cause = getattr(failure.value, "socketError", failure.value)
        raise LocalError(f"cannot listen on TCP port {port} of {host or 'all addresses'}, asked by cluster channel (node.port): {cause}") from failure.value

    deferred: Deferred[IListeningPort] = endpoints.server(reactor, host, port).listen(_Acceptor(accept))
    deferred.addErrback(explain)
    return deferred


def connect(endpoints: Endpoints, reactor: Any, address: Address, timeout_s: float, connection: Connection) -> Deferred[Any]:
    """Dial; the Deferred fires when the connection is made or has failed."""
    return endpoints.client(reactor, *address, timeout_s).connect(_Acceptor(lambda _: connection))


def _configure(transport: Any) -> None:
    """Socket options, where there is a socket (a simulated transport has none)."""
    set_no_delay = getattr(transport, "setTcpNoDelay", None)
    if set_no_delay is not None:
        set_no_delay(True)
    get_handle = getattr(lower(transport), "getHandle", None)
    handle = get_handle() if get_handle is not None else None
    if isinstance(handle, socket.socket):
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)


class _Acceptor(Factory):
    noisy = False

    def __init__(self, build: Callable[[str], Connection | None]) -> None:
        self._build = build

    def buildProtocol(self, addr: object) -> Connection | None:
        return self._build(str(getattr(addr, "host", "")))
