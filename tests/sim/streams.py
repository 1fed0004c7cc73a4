"""TCP as a process sees it: the kernel's half of connections, under Twisted's own transports.

`StreamSocket`, and `ListeningSocket` beside it, answer the calls that `twisted.internet.tcp` makes to a socket, so buffering, producers,
half-closing and aborting are Twisted's production code. What is simulated is the kernel and the wire: bytes arrive in
order, exactly once, after the path's delay, cut anywhere; what is sent and not yet read by the peer is bounded (`WINDOW`), so
a reader that does not read stops its writer; what a closed path holds back comes after it opens. Ends are a kernel's too:

- a process that dies on a live host: its kernel closes its connections (FIN; RST if it had unread bytes);
- a host that dies says nothing; back up, it answers old connections' packets with RST;
- RST gets lost on a closed path; an answer to data is tried again, because the data are;
- a stopped process still accepts connections, up to the backlog, and its kernel still takes bytes.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .listening import ListeningSocket
    from .network import Host, Path
    from .reactor import SimReactor

__all__ = ["WINDOW", "StreamSocket"]

WINDOW = 256 * 1024  # send and receive buffer together
_SYN_RETRY_S = 1.0  # then 2, 4, 8 ... as Linux
_SYN_TRIES = 7
_FIN: None = None  # in a sequence of bytes: the sender has finished

_NEW, _CONNECTING, _OPEN, _CLOSED = range(4)


class StreamSocket:
    """One end of a connection."""

    __slots__ = (
        "_acked", "_error", "_fin_received", "_fin_sent", "_held", "_inbox", "_last_arrival", "_linger_none", "_read", "_refuses", "_room_wanted", "_sent",
        "host", "local", "network", "number", "path", "peer", "process", "read_armed", "reader", "remote", "state", "write_armed", "writer",
    )  # fmt: skip

    def __init__(self, process: SimReactor) -> None:
        self.process = process
        self.host: Host = process.host
        self.network = process.network
        self.number = process.network.number_socket()
        self.state = _NEW
        self.peer: StreamSocket | None = None
        self.path: Path | None = None  #: to the peer
        self.local: tuple[str, int] = ("0.0.0.0", 0)
        self.remote: tuple[str, int] = ("0.0.0.0", 0)
        self.reader: Any = None  #: the transport, while it wants to read
        self.writer: Any = None
        self.read_armed = self.write_armed = False
        self._inbox: deque[bytes] = deque()
        self._read = self._sent = self._acked = 0
        self._last_arrival = 0.0
        self._held: list[bytes | None] = []
        self._error = 0
        self._fin_received = self._fin_sent = self._linger_none = self._room_wanted = self._refuses = False
        process.sockets[self] = None

    # -- as Twisted calls it

    def setblocking(self, flag: bool) -> None:
        pass

    def fileno(self) -> int:
        return -1

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        if level == socket.SOL_SOCKET and option == socket.SO_LINGER:
            self._linger_none = True

    def getsockopt(self, level: int, option: int, size: int = 0) -> int:
        if level == socket.SOL_SOCKET and option == socket.SO_ERROR:
            error, self._error = self._error, 0
            return error
        return 0

    def bind(self, address: tuple[str, int]) -> None:
        if not self.host.is_own(address[0]):
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        self.local = (self.host.address, address[1])

    def dup(self) -> _Duplicate:
        return _Duplicate(self)

    def getsockname(self) -> tuple[str, int]:
        return self.local

    def getpeername(self) -> tuple[str, int]:
        return self.remote

    def connect_ex(self, address: tuple[str, int]) -> int:
        if self.state == _NEW:
            self.state = _CONNECTING
            own = self.host.is_own(address[0])
            self.remote = address
            self.local = (address[0] if own else self.host.address, self.local[1] or self.host.ephemeral_port())
            self._syn(0)
            return errno.EINPROGRESS
        return errno.EISCONN if self.state == _OPEN else errno.EALREADY

    def recv(self, size: int) -> bytes:
        inbox = self._inbox
        if not inbox:
            if self._error:
                raise ConnectionResetError(self._error, "Connection reset by peer")
            if self._fin_received:
                return b""
            raise BlockingIOError(errno.EWOULDBLOCK, "Resource temporarily unavailable")
        if len(inbox) == 1:
            data = inbox.popleft()
        else:
            data = b"".join(inbox)
            inbox.clear()
        network = self.network
        if network.chunk_rate and len(data) > 1 and network.rng.random() < network.chunk_rate:
            size = min(size, network.rng.randrange(1, len(data)))
        if len(data) > size:
            inbox.append(data[size:])
            data = data[:size]
        self._read += len(data)
        peer = self.peer
        if peer is not None and peer._room_wanted:
            self._offer_room(peer)
        return data

    def send(self, data: bytes | memoryview) -> int:
        if self.state != _OPEN or self._error or self._fin_sent:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        size = len(data)
        room = self._room()
        if room < size:
            if room <= 0:
                raise BlockingIOError(errno.EWOULDBLOCK, "Resource temporarily unavailable")
            size = room
            data = data[:size]
        self._sent += size
        self._transmit(data if type(data) is bytes else bytes(data))
        return size

    def abort(self) -> None:
        """Close it with a reset."""
        self._linger_none = True
        self.close()

    def shutdown(self, how: int) -> None:
        if self.state == _OPEN and not self._fin_sent and not self._error:
            self._fin_sent = True
            self._transmit(_FIN)

    def close(self) -> None:
        """The application has done with it; what was sent still goes out."""
        if self.state == _OPEN and self._linger_none and not self._error:
            self._held.clear()
            self._reset_peer()
        self._leave()

    # -- as the reactor asks it

    def has_input(self) -> bool:
        return bool(self._inbox or self._fin_received or self._error)

    def has_room(self) -> bool:
        """Ask before waiting: if there is none, the reactor is told when there is."""
        if self._error or self.state != _OPEN or self._room() > 0:
            return self.state == _OPEN
        self._room_wanted = True
        peer = self.peer
        if peer is not None and peer.path is not None and not peer.path.open:
            peer.path.wait(peer)  # acknowledgements do not come through
        return False

    def is_connecting(self) -> bool:
        return self.state == _CONNECTING

    # -- the process or its host ends

    def vanish(self, host_crashed: bool) -> None:
        if host_crashed:
            self._held.clear()
        elif self.state == _OPEN and self._inbox and not self._error:
            self._reset_peer()
        else:
            self.shutdown(socket.SHUT_RDWR)
        self._leave()

    def _leave(self) -> None:
        self.state = _CLOSED
        self.reader = self.writer = None
        self._inbox.clear()
        self.process.sockets.pop(self, None)
        self.network.connections.pop(self, None)

    # -- bytes on their way

    def _room(self) -> int:
        peer = self.peer
        if peer is not None and peer.path is not None and peer.path.open:
            self._acked = peer._read
        return WINDOW - (self._sent - self._acked)

    def _transmit(self, item: bytes | None) -> None:
        path = self.path
        if not path.open or self._held:  # type: ignore[union-attr]
            self._held.append(item)
            if not path.open:  # type: ignore[union-attr]
                path.wait(self)  # type: ignore[union-attr]
            return
        network = path.network  # type: ignore[union-attr]
        when = network.queue.now + path.delay_s + network.rng.random() * path.jitter_s  # type: ignore[union-attr]
        if when < self._last_arrival:
            when = self._last_arrival
        self._last_arrival = when
        network.queue.at(when, self.peer._arrive, item)  # type: ignore[union-attr]

    def release(self, since: float) -> None:
        """The path was closed since then; it is time to try again."""
        path = self.path
        if path is None:
            return
        if not path.open:
            path.waiting.setdefault(self, since)
            return
        if self._refuses:
            self._refuses = False
            self._reset_peer()
        held, self._held = self._held, []
        if held:
            self.network.counters["streams_resumed"] += 1
        block = b"".join([item for item in held if item is not _FIN])
        if block:
            self._transmit(block)
        if held and held[-1] is _FIN:
            self._transmit(_FIN)
        peer = self.peer
        if peer is not None and peer._room_wanted:
            self._offer_room(peer)

    def _arrive(self, item: bytes | None) -> None:
        if self.state != _OPEN:
            self._refuse()
            return
        if self._error:
            return
        if item is _FIN:
            self._fin_received = True
            self.network.trace.data(b"f", self.number, b"")
        else:
            self._inbox.append(item)
            self.network.counters["stream_deliveries"] += 1
            self.network.trace.data(b"s", self.number, item)
        self.process.readable(self)

    def _refuse(self) -> None:
        """Bytes for a connection that is no more. A machine that is down says nothing; it will when it is up."""
        peer = self.peer
        if peer is None or peer.state != _OPEN:
            return
        if not self.host.up:
            self.host.orphans.setdefault(peer, self.network.queue.now)
        elif self.path is not None and not self.path.open:
            self._refuses = True
            self.path.wait(self)
        else:
            self._reset_peer()

    def retry_into_the_void(self, _: None) -> None:
        """Our unacknowledged bytes are sent again, to a host that has booted since."""
        if self.state == _OPEN and self.peer is not None and self.path is not None and self.path.open:
            self.peer._refuse()

    def _reset_peer(self) -> None:
        """A reset that is lost is lost."""
        path, peer = self.path, self.peer
        if path is not None and peer is not None and path.open:
            self.network.queue.at(max(self.network.queue.now + path.delay_s, self._last_arrival), peer.reset, None)

    def reset(self, _: None) -> None:
        """A RST came."""
        if self.state == _CONNECTING:
            self._fail(errno.ECONNREFUSED)
        elif self.state == _OPEN and not self._error:
            self._error = errno.ECONNRESET
            self._held.clear()
            self.network.connections.pop(self, None)
            self.network.trace.data(b"r", self.number, b"")
            self.process.broken(self)

    def _offer_room(self, writer: StreamSocket) -> None:
        path = self.path
        if path is None:
            return
        if not path.open:
            path.wait(self)
            return
        writer._room_wanted = False
        self.network.queue.at(self.network.queue.now + path.delay_s, writer.room_came, None)

    def room_came(self, _: None) -> None:
        self.process.writable(self)

    # -- opening a connection

    def _syn(self, attempt: int) -> None:
        if self.state != _CONNECTING:
            return
        network = self.network
        target = self.host if self.host.is_own(self.remote[0]) else network.hosts.get(self.remote[0])
        if target is not None:
            self.path = network.path(self.host, target)
            if self.path.open and target.up:
                network.queue.at(network.queue.now + self.path.delay_s, self._knock, (target, attempt))
                return
        self._syn_again(attempt)

    def _syn_again(self, attempt: int) -> None:
        self.network.counters["syns_lost"] += 1
        wait = _SYN_RETRY_S * 2**attempt
        if attempt + 1 < _SYN_TRIES:
            self.network.queue.at(self.network.queue.now + wait, self._syn, attempt + 1)
        else:
            self.network.queue.at(self.network.queue.now + wait, self._fail, errno.ETIMEDOUT)

    def _knock(self, at: tuple[Host, int]) -> None:
        """The SYN is at the other host."""
        target, attempt = at
        network, back = self.network, self.network.path(target, self.host)
        listener = target.listeners.get(self.remote[1]) if target.up else None
        if not target.up or not back.open or (listener is not None and listener.is_full()):
            self._syn_again(attempt)
        elif listener is None or not listener.takes(self.remote[0]):
            network.queue.at(network.queue.now + back.delay_s, self._fail, errno.ECONNREFUSED)
        else:
            accepted = StreamSocket(listener.process)
            accepted.state, accepted.peer, accepted.path = _OPEN, self, back
            accepted.local, accepted.remote = self.remote, self.local
            listener.pending += 1
            network.queue.at(network.queue.now + back.delay_s, self._opened, (accepted, listener))

    def _opened(self, met: tuple[StreamSocket, ListeningSocket]) -> None:
        accepted, listener = met
        if self.state != _CONNECTING:  # given up, or dead: a reset, before anybody accepted it
            listener.pending -= 1
            accepted._leave()
            return
        if accepted.state != _OPEN and accepted.host.up:
            self._fail(errno.ECONNREFUSED)
            return
        self.state, self.peer = _OPEN, accepted
        self.network.connections[self] = None
        self.network.trace.note(f"#{self.number} {self.local} connected to #{accepted.number} {self.remote}")
        self.network.counters["connections"] += 1
        # Nobody can overtake the last step of the handshake: the accepting end reads after it has accepted.
        self.network.queue.at(self.network.queue.now + self.path.delay_s, listener.enqueue, accepted)  # type: ignore[union-attr]
        self.process.writable(self)

    def _fail(self, error: int) -> None:
        if self.state == _CONNECTING:
            self._error = error
            self.process.writable(self)


class _Duplicate:
    """Another descriptor of the same connection."""

    def __init__(self, original: StreamSocket) -> None:
        self._original = original

    def send(self, data: bytes) -> int:
        return self._original.send(data)

    def close(self) -> None: ...
