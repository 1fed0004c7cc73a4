"""Bytes past the reactor: what an idle connection has to say leaves in the thread that says it.

A commit that waits for confirmations would otherwise wake the reactor's thread first, and that costs more than
everything else it does. The kernel takes the bytes as long as its buffer has room and nothing of before is waiting in the
transport; what it does not take is the reactor's again.

The socket used here is a duplicate. The reactor closes its own at any moment, in its own thread, and the number of its
descriptor may belong to another connection by the time a `send` gets to the kernel. The duplicate is closed only by its
owner, under the channel's lock.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.tcp import Connection as TcpTransport

__all__ = ["Shortcut"]


class Shortcut:
    """Of one connected plain TCP transport. Any thread, under the channel's lock."""

    __slots__ = ("_socket", "_transport")

    def __init__(self, transport: TcpTransport) -> None:
        self._transport: Any = transport
        self._socket: Any = self._transport.getHandle().dup()

    @classmethod
    def of(cls, transport: Any) -> Shortcut | None:
        """None where bytes may not pass the transport by: it encrypts them, or is no socket."""
        return cls(transport) if isinstance(transport, TcpTransport) and not transport.TLS else None

    @property
    def is_clear(self) -> bool:
        """Whether nothing waits in the transport, so that order is kept. (Twisted has no public word for it.)"""
        return self._transport._tempDataLen == 0 and self._transport.dataBuffer == b""  # type: ignore[no-any-return]

    def send(self, data: bytes) -> bytes:
        """Give the kernel what it takes now; returns the rest. An error shows itself to the reactor, which comes next."""
        try:
            return data[self._socket.send(data) :]
        except OSError:
            return data

    def close(self) -> None:
        self._socket.close()
