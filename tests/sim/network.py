"""The network between simulated hosts: which ways are open, how long they take, and what befalls datagrams.

A `Path` is one direction between two hosts. Byte streams over it (streams.py) can be *clogged* (nothing moves, nothing is
lost, all of it moves on at once) or *holed* (packets vanish without an error; TCP's retransmissions bring the bytes after
healing, at the moments at which a kernel would try again). Datagrams have faults of their own: a path may drop all of
them, a host may be deaf or mute, and the `Weather` loses, delays, doubles, reorders and flips bits everywhere at its
rates. Faults nest: each is a depth, so two that overlap end independently. Every fault that had an effect is counted.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from random import Random
from typing import TYPE_CHECKING, Any

from .clock import EventQueue

if TYPE_CHECKING:
    from .listening import ListeningSocket
    from .reactor import SimReactor
    from .streams import StreamSocket
    from .trace import Trace

__all__ = ["DatagramSocket", "Host", "Network", "Path", "Weather"]

_LOOPBACK_S = 20e-6
_DATAGRAM_OVERHEAD = 1280  # what a small datagram costs of a kernel's receive buffer
_RECEIVE_BUFFER = 4 * 1024 * 1024
_RTO_FIRST_S = 0.2  # Linux's minimum; each retransmission waits twice as long, to 120 s
_RTO_MAX_S = 120.0


@dataclass(slots=True)
class Weather:
    """Rates at which datagrams between hosts suffer; `delay_s` is the most that is added to each."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    delay_s: float = 0.0

    def clear(self) -> None:
        for field in fields(self):
            setattr(self, field.name, 0.0)


class Host:
    """A machine with one address. `up`: False after a crash of the whole machine: it says nothing at all."""

    def __init__(self, network: Network, address: str) -> None:
        self.network = network
        self.address = address
        self.up = True
        self.deaf = self.mute = 0
        self.listeners: dict[int, ListeningSocket] = {}
        self.datagram_sockets: list[DatagramSocket] = []
        self.orphans: dict[StreamSocket, float] = {}  #: who sends to connections this machine has forgotten, since when
        self._port = 32768

    def ephemeral_port(self) -> int:
        self._port = self._port + 1 if self._port < 60999 else 32768
        return self._port

    def is_own(self, address: str) -> bool:
        return address in ("", "0.0.0.0", self.address) or address.startswith("127.")

    def boot(self) -> None:
        """Up again; whoever kept sending to a connection of before gets a reset at his next try."""
        self.up = True
        orphans, self.orphans = self.orphans, {}
        for sender, since in orphans.items():
            self.network.queue.at(self.network.retransmission(since), sender.retry_into_the_void, None)


class Path:
    """One direction. `open`: bytes and connection attempts pass."""

    __slots__ = ("clogs", "datagram_cuts", "delay_s", "holes", "jitter_s", "loopback", "network", "open", "waiting")

    def __init__(self, network: Network, delay_s: float, jitter_s: float, loopback: bool) -> None:
        self.network = network
        self.delay_s = delay_s
        self.jitter_s = jitter_s
        self.loopback = loopback
        self.open = True
        self.clogs = self.holes = self.datagram_cuts = 0
        self.waiting: dict[StreamSocket, float] = {}  #: who has something to bring over once it is open, since when

    def clog(self, by: int = 1) -> None:
        self.clogs += by
        self._changed(clogged_until_now=True)

    def hole(self, by: int = 1) -> None:
        self.holes += by
        self._changed(clogged_until_now=False)

    def cut_datagrams(self, by: int = 1) -> None:
        self.datagram_cuts += by

    def heal(self) -> None:
        """End every fault of this path at once."""
        holed = self.holes > 0
        self.clogs = self.holes = self.datagram_cuts = 0
        self._changed(clogged_until_now=not holed)

    def wait(self, sender: StreamSocket) -> None:
        if sender not in self.waiting:
            self.waiting[sender] = self.network.queue.now
            self.network.counters["streams_holed" if self.holes else "streams_clogged"] += 1

    def _changed(self, clogged_until_now: bool) -> None:
        self.open = not (self.clogs or self.holes)
        if not self.open or not self.waiting:
            return
        waiting, self.waiting = self.waiting, {}
        for sender, since in waiting.items():
            when = self.network.queue.now if clogged_until_now else self.network.retransmission(since)
            self.network.queue.at(when, sender.release, since)


class Network:
    """All hosts and the paths between them. `rng` decides delays, chunks and the fate of datagrams."""

    def __init__(self, queue: EventQueue, rng: Random, counters: Counter[str], trace: Trace) -> None:
        self.queue = queue
        self.rng = rng
        self.counters = counters
        self.trace = trace
        self.weather = Weather()
        self.hosts: dict[str, Host] = {}
        self.connections: dict[StreamSocket, None] = {}  #: the dialling ends of those that are open
        self.sockets_made = 0
        self.audience: Callable[[Host], Iterable[Host]] = lambda sender: self.hosts.values()  #: who hears this host's multicast
        self.chunk_rate = rng.choice((0.0, 0.05, 0.3))  #: how often a read gets less than there is
        self._paths: dict[tuple[Host, Host], Path] = {}

    def host(self, address: str) -> Host:
        """The host of this address; made when it is first asked for."""
        if address not in self.hosts:
            self.hosts[address] = Host(self, address)
        return self.hosts[address]

    def number_socket(self) -> int:
        self.sockets_made += 1
        return self.sockets_made

    def path(self, source: Host, target: Host) -> Path:
        path = self._paths.get((source, target))
        if path is None:
            if source is target:
                path = Path(self, _LOOPBACK_S, 0.0, True)
            else:
                path = Path(self, self.rng.uniform(0.0001, 0.001), self.rng.choice((0.0001, 0.001, 0.01)), False)
            self._paths[source, target] = path
        return path

    def paths(self) -> list[Path]:
        """Those that were used so far."""
        return list(self._paths.values())

    def retransmission(self, since: float) -> float:
        """When a kernel that first sent at `since` tries again, at the earliest now."""
        at, gap, now = since, _RTO_FIRST_S, self.queue.now
        while at < now:
            at += gap
            gap = min(2 * gap, _RTO_MAX_S)
        return at

    def reset_connections(self, one: Host, other: Host) -> int:
        """Both ends of every connection between these hosts get a reset, as from a firewall. Says how many there were."""
        pair = {one, other}
        broken = [dialled for dialled in self.connections if {dialled.host, dialled.peer.host} == pair]  # type: ignore[union-attr]
        for dialled in broken:
            accepted = dialled.peer
            dialled.reset(None)
            if accepted is not None:
                accepted.reset(None)
        self.counters["streams_cut"] += len(broken)
        return len(broken)

    def heal(self) -> None:
        """Every path open, no weather, no host deaf or mute. Hosts that are down stay down."""
        self.weather.clear()
        for host in self.hosts.values():
            host.deaf = host.mute = 0
        for path in self._paths.values():
            path.heal()

    # -- datagrams

    def send_datagram(self, sender: DatagramSocket, data: bytes, to: tuple[str, int]) -> None:
        address, port = to
        if int(address.partition(".")[0]) >= 224:
            for host in self.audience(sender.host):
                if host is sender.host and not sender.loopback:
                    continue
                for sock in host.datagram_sockets:
                    if sock.port == port and address in sock.groups:
                        self._carry(sender, sock, data)
            return
        target = sender.host if sender.host.is_own(address) else self.hosts.get(address)
        for sock in target.datagram_sockets if target is not None else ():
            if sock.port == port:
                self._carry(sender, sock, data)
                return

    def _carry(self, sender: DatagramSocket, to: DatagramSocket, data: bytes) -> None:
        path, counters, queue = self.path(sender.host, to.host), self.counters, self.queue
        origin = (sender.host.address, sender.port)
        if path.loopback:
            queue.at(queue.now + path.delay_s, to.arrive, (data, origin))
            return
        if sender.host.mute or to.host.deaf:
            counters["datagrams_muted" if sender.host.mute else "datagrams_unheard"] += 1
            return
        if path.datagram_cuts:
            counters["datagrams_cut"] += 1
            return
        weather, random = self.weather, self.rng.random
        if weather.loss and random() < weather.loss:
            counters["datagrams_lost"] += 1
            return
        arrival = queue.now + path.delay_s + random() * path.jitter_s
        if weather.delay_s:
            arrival += random() * weather.delay_s
            counters["datagrams_delayed"] += 1
        if weather.reorder and random() < weather.reorder:
            arrival += 0.005 + random() * 1.5  # behind one to three heartbeats of the same sender
            counters["datagrams_reordered"] += 1
        if weather.corrupt and data and random() < weather.corrupt:
            data = self._corrupted(data)
            counters["datagrams_corrupted"] += 1
        queue.at(arrival, to.arrive, (data, origin))
        if weather.duplicate and random() < weather.duplicate:
            queue.at(arrival + random() * 0.1, to.arrive, (data, origin))
            counters["datagrams_duplicated"] += 1

    def _corrupted(self, data: bytes) -> bytes:
        """One to three bits flipped, so that a checksum of 16 bits would have passed it."""
        damaged = bytearray(data)
        for _ in range(self.rng.randrange(1, 4)):
            damaged[self.rng.randrange(len(damaged))] ^= 1 << self.rng.randrange(8)
        return bytes(damaged)


class DatagramSocket:
    """The kernel's half of a UDP port: what `twisted.internet.udp.MulticastPort` expects of a socket."""

    def __init__(self, process: SimReactor) -> None:
        self.process = process
        self.host = process.host
        self.port = 0
        self.groups: dict[str, None] = {}
        self.loopback = True
        self.reader: Any = None
        self.writer: Any = None
        self.read_armed = False
        self.closed = False
        self.number = process.network.number_socket()
        self._shares = False
        self._inbox: deque[tuple[bytes, tuple[str, int]]] = deque()
        self._inbox_size = 0
        process.sockets[self] = None

    def arrive(self, datagram: tuple[bytes, tuple[str, int]]) -> None:
        network = self.process.network
        if self.closed or not self.host.up:
            return
        size = len(datagram[0]) + _DATAGRAM_OVERHEAD
        if self._inbox_size + size > _RECEIVE_BUFFER:
            network.counters["datagrams_overflowed"] += 1
            return
        network.counters["datagrams_delivered"] += 1
        network.trace.data(b"u", self.number, datagram[0])
        self._inbox.append(datagram)
        self._inbox_size += size
        self.process.readable(self)

    def has_input(self) -> bool:
        return bool(self._inbox)

    def vanish(self, host_crashed: bool) -> None:
        """The process is gone."""
        self.close()

    # -- as Twisted calls it

    def setblocking(self, flag: bool) -> None:
        pass

    def fileno(self) -> int:
        return -1

    def bind(self, address: tuple[str, int]) -> None:
        interface, port = address
        if not self.host.is_own(interface) and not interface.startswith("2"):
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        if any(other.port == port and not (other._shares and self._shares) for other in self.host.datagram_sockets):
            raise OSError(errno.EADDRINUSE, "Address already in use")
        self.port = port or self.host.ephemeral_port()
        self.host.datagram_sockets.append(self)

    def getsockname(self) -> tuple[str, int]:
        return ("0.0.0.0", self.port)

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        if level == socket.SOL_SOCKET and option in (socket.SO_REUSEADDR, getattr(socket, "SO_REUSEPORT", -1)):
            self._shares = True
        elif level == socket.IPPROTO_IP and option == socket.IP_ADD_MEMBERSHIP:
            group = socket.inet_ntoa(value[:4])
            if group in self.groups:
                raise OSError(errno.EADDRINUSE, "Address already in use")
            self.groups[group] = None
        elif level == socket.IPPROTO_IP and option == socket.IP_DROP_MEMBERSHIP:
            if self.groups.pop(socket.inet_ntoa(value[:4]), self) is self:
                raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        elif level == socket.IPPROTO_IP and option == socket.IP_MULTICAST_LOOP:
            self.loopback = bool(value)

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        return socket.inet_aton(self.host.address) if size else 1

    def sendto(self, data: bytes, to: tuple[str, int]) -> int:
        if self.host.up:
            self.process.network.send_datagram(self, bytes(data), to)
        return len(data)

    def recvfrom(self, size: int) -> tuple[bytes, tuple[str, int]]:
        if not self._inbox:
            raise BlockingIOError(errno.EWOULDBLOCK, "Resource temporarily unavailable")
        data, origin = self._inbox.popleft()
        self._inbox_size -= len(data) + _DATAGRAM_OVERHEAD
        return data[:size], origin

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.reader = None
            self.process.sockets.pop(self, None)
            if self in self.host.datagram_sockets:
                self.host.datagram_sockets.remove(self)
