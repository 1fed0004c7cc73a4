"""A listening port's kernel half: a queue of connections that its process has not accepted yet.

The handshake is the kernel's business: a stopped process gets connections all the same, up to its backlog; more are not
answered, and who dials tries again.
"""

from __future__ import annotations

import errno
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .reactor import SimReactor
    from .streams import StreamSocket

__all__ = ["ListeningSocket"]


class ListeningSocket:
    """The kernel's half of a listening port."""

    def __init__(self, process: SimReactor) -> None:
        self.process = process
        self.host = process.host
        self.number = process.network.number_socket()
        self.reader: Any = None
        self.writer: Any = None
        self.read_armed = False
        self.pending = 0  #: shaking hands
        self._interface = ""
        self._port = 0
        self._backlog = 0
        self._waiting: deque[StreamSocket] = deque()
        process.sockets[self] = None

    def setblocking(self, flag: bool) -> None:
        pass

    def fileno(self) -> int:
        return -1

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        pass

    def bind(self, address: tuple[str, int]) -> None:
        self._interface, port = address
        if not self.host.is_own(self._interface):
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        if port in self.host.listeners:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        self._port = port or self.host.ephemeral_port()

    def listen(self, backlog: int) -> None:
        self._backlog = backlog
        self.host.listeners[self._port] = self

    def getsockname(self) -> tuple[str, int]:
        return (self._interface or "0.0.0.0", self._port)

    def takes(self, address: str) -> bool:
        return self._interface in ("", "0.0.0.0", address)

    def is_full(self) -> bool:
        return self.pending + len(self._waiting) > self._backlog

    def enqueue(self, accepted: StreamSocket) -> None:
        self.pending -= 1
        if self.host.listeners.get(self._port) is self:
            self._waiting.append(accepted)
            self.process.readable(self)
        else:
            accepted.abort()

    def accept(self) -> tuple[StreamSocket, tuple[str, int]]:
        if not self._waiting:
            raise BlockingIOError(errno.EWOULDBLOCK, "Resource temporarily unavailable")
        accepted = self._waiting.popleft()
        return accepted, accepted.remote

    def has_input(self) -> bool:
        return bool(self._waiting)

    def shutdown(self, how: int) -> None:
        pass

    def close(self) -> None:
        """Connections that nobody accepted are reset."""
        if self.host.listeners.get(self._port) is self:
            del self.host.listeners[self._port]
        self.reader = None
        self.process.sockets.pop(self, None)
        waiting, self._waiting = self._waiting, deque()
        for accepted in waiting:
            accepted.abort()

    def vanish(self, host_crashed: bool) -> None:
        if not host_crashed:
            self.close()
        elif self.host.listeners.get(self._port) is self:
            del self.host.listeners[self._port]
            self.process.sockets.pop(self, None)
