"""Bytes past the reactor: what an idle connection has to say leaves in the thread that says it.

A commit that waits for confirmations would otherwise wake the reactor's thread first, and that costs more than
everything else it does. The kernel takes the bytes as long as its buffer has room and nothing of before is waiting in the
transport; what it does not take is the reactor's again.

Under TLS the thread encrypts too; what the kernel does not take of that has to go out before the next record, whoever makes it: the TLS transport
asks for it (`TlsTransport.put_back`) before it says anything itself.

The socket used here is a duplicate. The reactor closes its own at any moment, in its own thread, and the number of its
descriptor may belong to another connection by the time a `send` gets to the kernel. The duplicate is closed only by its
owner, under the channel's lock.
"""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.tcp import Connection as TcpTransport

from .security.tls import TlsTransport

__all__ = ["Shortcut", "lower"]


def lower(transport: Any) -> Any:
    """The transport with the socket, below TLS or not."""
    return transport.transport if isinstance(transport, TlsTransport) else transport


class Shortcut:
    """Of one connected transport. Any thread, under the channel's lock."""

    __slots__ = ("_left", "_lower", "_socket", "_tls")

    def __init__(self, transport: TcpTransport, tls: TlsTransport | None) -> None:
        self._lower: Any = transport
        self._tls = tls
        self._socket: Any = self._lower.getHandle().dup()
        self._left = b""  # what the kernel did not take, encrypted where there is TLS
        if tls is not None:
            tls.put_back = self.put_back

    @classmethod
    def of(cls, transport: Any) -> Shortcut | None:
        """None where bytes may not pass the transport by: it is no socket."""
        below = lower(transport)
        if not isinstance(below, TcpTransport) or below.TLS:
            return None
        return cls(below, transport if below is not transport else None)

    @property
    def is_clear(self) -> bool:
        """Whether nothing waits to be written, so that order is kept. (Twisted has no public word for what its transport holds.)"""
        if self._left or (self._tls is not None and self._tls.is_ending):
            return False
        return bool(self._lower._tempDataLen == 0 and self._lower.dataBuffer == b"")

    def send(self, data: bytes) -> bool:
        """Give the kernel what it takes now; whether that was all. The rest is for `put_back`, also after an error, which shows itself to the reactor."""
        try:
            bytes_out = data if self._tls is None else self._tls.encrypt(data)
        except SSL.Error:  # it has ended meanwhile; the link says all that again on its next connection
            return False
        try:
            self._left = bytes_out[self._socket.send(bytes_out) :]
        except OSError:
            self._left = bytes_out
        return not self._left

    def put_back(self) -> None:
        """Let the socket's transport have what the kernel did not take. Reactor thread, under the lock."""
        if self._left:
            left, self._left = self._left, b""
            self._lower.write(left)

    def close(self) -> None:
        self._socket.close()
