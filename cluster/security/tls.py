"""TLS 1.3 around every connection, by Twisted and pyOpenSSL.

The context is asked for anew for each connection, so certificates change without a restart. There are no tickets, no early data and
no sessions to resume: every connection proves everything again.

Twisted's transport holds the TLS state and is not made for several threads. Here a thread that holds the channel's lock may write
(see `shortcut`), so everything that Twisted calls takes that lock too, and what a shortcut left over goes out before anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IListeningPort,
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)  # fmt: skip
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["TlsClient", "TlsServer", "TlsTransport", "make_context", "tls_factory"]

_RECORD_BYTES = 1 << 14  # of data in a TLS record
_RECORD_OVERHEAD_BYTES = 64  # at most, in TLS 1.3

ContextSource = Callable[[], SSL.Context]


def make_context(chain: Sequence[x509.Certificate], key: EllipticCurvePrivateKey, authorities: Sequence[x509.Certificate] = ()) -> SSL.Context:
    """For both ends of a connection. With `authorities` the other end must show a certificate issued by one of them; without any, nothing is asked for."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.use_privatekey(key)
    context.use_certificate(chain[0])
    for certificate in chain[1:]:
        context.add_extra_chain_cert(certificate)
    if authorities:
        store = context.get_cert_store()
        assert store is not None, "of a new context"
        for authority in authorities:
            store.add_cert(X509.from_cryptography(authority))
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    return context


class TlsTransport(TLSMemoryBIOProtocol):
    """Between the socket's transport and a connection that has a `lock`."""

    def __init__(self, factory: TLSMemoryBIOFactory, connection: IProtocol, connect: bool = True) -> None:
        super().__init__(factory, connection, connect)  # type: ignore[no-untyped-call]
        self._lock: Any = connection.lock  # type: ignore[attr-defined]
        self.put_back: Callable[[], None] = _nothing  #: gives the socket's transport what a shortcut left over; a shortcut sets it

    @property
    def is_ending(self) -> bool:
        """The other end has closed it, or this one has: nothing more can be said. (Twisted has no public word for the first.)"""
        return bool(self._lostTLSConnection or self.disconnecting)

    def encrypt(self, data: bytes) -> bytes:
        """The records of `data`, which are no longer this transport's to send. Under the lock, once the handshake is done. Raises `SSL.Error` if TLS has ended."""
        engine = self.getHandle()  # type: ignore[no-untyped-call]
        engine.sendall(data)
        room = len(data) + (len(data) // _RECORD_BYTES + 2) * _RECORD_OVERHEAD_BYTES
        found = [engine.bio_read(room)]
        while len(found[-1]) == room:  # full, so there may be more: what TLS says for itself comes out here too
            try:
                found.append(engine.bio_read(room))
            except SSL.WantReadError:
                break
        return b"".join(found)

    def write(self, data: bytes) -> None:
        self.put_back()
        super().write(data)  # type: ignore[no-untyped-call]

    def dataReceived(self, data: bytes) -> None:
        with self._lock:
            self.put_back()
            super().dataReceived(data)  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        with self._lock:
            super().connectionLost(reason)  # type: ignore[no-untyped-call]

    def loseConnection(self) -> None:
        self.put_back()
        super().loseConnection()  # type: ignore[no-untyped-call]


def _nothing() -> None:
    """There is no shortcut, so nothing is left over."""


class _Factory(TLSMemoryBIOFactory):
    """Refuses whom the wrapped factory refuses, which Twisted's would take for a protocol."""

    def buildProtocol(self, addr: Any) -> TLSMemoryBIOProtocol | None:  # type: ignore[override]
        connection = self.wrappedFactory.buildProtocol(addr)
        return None if connection is None else self.protocol(self, connection)


class _LockedFactory(_Factory):
    protocol = TlsTransport


@implementer(IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator)
class _Creator:
    def __init__(self, context: ContextSource) -> None:
        self._context = context

    def clientConnectionForTLS(self, protocol: object) -> SSL.Connection:
        return SSL.Connection(self._context(), None)

    def serverConnectionForTLS(self, protocol: object) -> SSL.Connection:
        return SSL.Connection(self._context(), None)


def tls_factory(context: ContextSource, factory: IProtocolFactory, clock: Any) -> TLSMemoryBIOFactory:
    """Serve any Twisted protocol with TLS."""
    return _Factory(_Creator(context), False, factory, clock)


@implementer(IStreamServerEndpoint)
class TlsServer:
    """Listens with TLS on what `endpoint` listens on."""

    def __init__(self, endpoint: IStreamServerEndpoint, context: ContextSource, clock: Any) -> None:
        self._endpoint = endpoint
        self._context = context
        self._clock = clock

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        return self._endpoint.listen(_LockedFactory(_Creator(self._context), False, factory, self._clock))


@implementer(IStreamClientEndpoint)
class TlsClient:
    """Dials with TLS where `endpoint` dials. The Deferred fires before TLS's own handshake is over."""

    def __init__(self, endpoint: IStreamClientEndpoint, context: ContextSource, clock: Any) -> None:
        self._endpoint = endpoint
        self._context = context
        self._clock = clock

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        return self._endpoint.connect(_LockedFactory(_Creator(self._context), True, factory, self._clock))
