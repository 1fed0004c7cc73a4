"""A Twisted reactor for one simulated process: as much of one as a cluster node uses.

Transports, ports and connectors are Twisted's own; they get simulated sockets instead of the kernel's. What this class
adds is a reactor's loop: who is told that a socket is readable or writable, and in which order. One iteration is that of
a real one: calls from threads, then timers that are due, then sockets; it shows only when a stopped process goes on (trap:
a detector's timer runs *before* the heartbeats that wait in the socket are read). An exception that leaves a protocol
ends the world: here it is a bug, not a connection to be closed.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet import tcp, udp
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import (
    IHostnameResolver,
    IHostResolution,
    IReactorCore,
    IReactorFDSet,
    IReactorFromThreads,
    IReactorMulticast,
    IReactorPluggableNameResolver,
    IReactorTCP,
    IReactorTime,
    IReactorUDP,
)
from twisted.internet.main import CONNECTION_LOST
from twisted.internet.posixbase import _DisconnectSelectableMixin
from zope.interface import implementer

from .clock import ProcessClock
from .listening import ListeningSocket
from .network import DatagramSocket, Host
from .streams import StreamSocket

__all__ = ["SimReactor"]


@implementer(IReactorTime, IReactorCore, IReactorTCP, IReactorUDP, IReactorMulticast, IReactorFDSet, IReactorFromThreads, IReactorPluggableNameResolver)
class SimReactor(_DisconnectSelectableMixin, ProcessClock):
    """`host`: the machine the process runs on; `name`: for the trace. One `SimReactor` is one life of one process."""

    running = True
    installed = False

    def __init__(self, host: Host, name: str, offset_s: float = 0.0) -> None:
        ProcessClock.__init__(self, host.network.queue, offset_s)
        self.host = host
        self.network = host.network
        self.name = name
        self.sockets: dict[Any, None] = {}
        self.triggers: list[tuple[str, str, Callable[..., object], tuple[Any, ...], dict[str, Any]]] = []
        self._thread_calls: list[tuple[Callable[..., object], tuple[Any, ...], dict[str, Any]]] = []
        self._missed_reads: dict[Any, None] = {}  #: became ready while the process was stopped
        self._missed_writes: dict[Any, None] = {}

    def __repr__(self) -> str:
        return f"<SimReactor {self.name} on {self.host.address}>"

    # -- IReactorFromThreads, IReactorCore

    def callFromThread(self, callable: Callable[..., object], *args: Any, **kw: Any) -> None:  # noqa: A002
        if not self._thread_calls:
            self.queue.at(self.queue.now, self._run_thread_calls, None)
        self._thread_calls.append((callable, args, kw))

    def callWhenRunning(self, callable: Callable[..., object], *args: Any, **kw: Any) -> None:  # noqa: A002
        callable(*args, **kw)

    def addSystemEventTrigger(self, phase: str, eventType: str, callable: Callable[..., object], *args: Any, **kw: Any) -> Any:  # noqa: A002
        trigger = (phase, eventType, callable, args, kw)
        self.triggers.append(trigger)
        return trigger

    def removeSystemEventTrigger(self, triggerID: Any) -> None:
        self.triggers.remove(triggerID)

    def fireSystemEvent(self, eventType: str) -> None:
        for _, event, callable_, args, kw in list(self.triggers):
            if event == eventType:
                callable_(*args, **kw)

    def installNameResolver(self, resolver: Any) -> Any:
        raise AssertionError("the simulated network has no names")

    def resolve(self, name: str, timeout: Any = ()) -> Deferred[str]:
        """Addresses only: a simulated network has no names."""
        return succeed(name) if name.replace(".", "").isdecimal() else fail(DNSLookupError(name))

    @property
    def nameResolver(self) -> _NoNames:
        return _NoNames(self.network.counters)

    def run(self) -> None:
        raise AssertionError("the world runs its reactors")

    def iterate(self, delay: float = 0.0) -> None:
        raise AssertionError("the world runs its reactors")

    stop = crash = run

    # -- IReactorTCP, IReactorUDP, IReactorMulticast

    def connectTCP(self, host: str, port: int, factory: Any, timeout: float = 30, bindAddress: Any = None) -> tcp.Connector:
        connector = _Connector(host, port, factory, timeout, bindAddress, self)
        connector.connect()
        return connector

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> tcp.Port:
        listening = _Port(port, factory, backlog, interface, self)
        listening.startListening()
        return listening

    def listenMulticast(self, port: int, protocol: Any, interface: str = "", maxPacketSize: int = 8192, listenMultiple: bool = False) -> udp.MulticastPort:
        listening = _MulticastPort(port, protocol, interface, maxPacketSize, self, listenMultiple)
        listening.startListening()  # type: ignore[no-untyped-call]
        return listening

    def listenUDP(self, port: int, protocol: Any, interface: str = "", maxPacketSize: int = 8192) -> udp.MulticastPort:
        return self.listenMulticast(port, protocol, interface, maxPacketSize)

    # -- IReactorFDSet: a transport wants to read or write, or no longer

    def addReader(self, reader: Any) -> None:
        sock = reader.socket
        sock.reader = reader
        if not sock.read_armed and sock.has_input():
            self._arm_read(sock)

    def removeReader(self, reader: Any) -> None:
        sock = getattr(reader, "socket", None)
        if sock is not None:
            sock.reader = None

    def addWriter(self, writer: Any) -> None:
        sock = writer.socket
        sock.writer = writer
        if not sock.write_armed:
            sock.write_armed = True
            self.queue.at(self.queue.now, self._write, sock)

    def removeWriter(self, writer: Any) -> None:
        sock = getattr(writer, "socket", None)
        if sock is not None:
            sock.writer = None

    def removeAll(self) -> list[Any]:
        readers = self.getReaders()
        for reader in readers:
            self.removeReader(reader)
        return readers

    def getReaders(self) -> list[Any]:
        return [sock.reader for sock in self.sockets if sock.reader is not None]

    def getWriters(self) -> list[Any]:
        return [sock.writer for sock in self.sockets if sock.writer is not None]

    # -- what the simulated kernel tells

    def readable(self, sock: Any) -> None:
        """An event of its own: the transport may run at once. Unless it already waits for its turn."""
        if sock.reader is None or sock.read_armed:
            return
        if self.paused:
            self._missed_reads[sock] = None
            return
        reader = sock.reader
        why = reader.doRead()
        if why:
            self._disconnectSelectable(reader, why, True)  # type: ignore[no-untyped-call]
        elif sock.reader is not None and sock.has_input():
            self._arm_read(sock)

    def writable(self, sock: Any) -> None:
        if sock.writer is not None and not sock.write_armed:
            sock.write_armed = True
            self._write(sock)

    def broken(self, sock: Any) -> None:
        """A reset: the reader finds it after what was received before; a mere writer is told at once."""
        if sock.reader is not None:
            self.readable(sock)
        else:
            self.writable(sock)

    # -- life of the process

    def resume(self) -> None:
        """Go on after `pause`: calls from threads, late timers, and only then the sockets."""
        self._run_thread_calls(None, resuming=True)
        ProcessClock.resume(self)
        reads, self._missed_reads = self._missed_reads, {}
        writes, self._missed_writes = self._missed_writes, {}
        for sock in reads:
            if not sock.read_armed:
                self._arm_read(sock)
        for sock in writes:
            sock.write_armed = True
            self.queue.at(self.queue.now, self._write, sock)

    def end(self, host_crashed: bool = False) -> None:
        """The process is killed, or the whole machine dies with it: nothing of it runs any more."""
        self.die()
        self._thread_calls.clear()
        self._missed_reads.clear()
        self._missed_writes.clear()
        for sock in list(self.sockets):
            sock.vanish(host_crashed)

    # -- inner loop

    def _arm_read(self, sock: Any) -> None:
        sock.read_armed = True
        self.queue.at(self.queue.now, self._read, sock)

    def _read(self, sock: Any) -> None:
        sock.read_armed = False
        self.readable(sock)

    def _write(self, sock: Any) -> None:
        if self.paused:
            self._missed_writes[sock] = None
            return
        sock.write_armed = False
        writer = sock.writer
        if writer is None or (sock.is_connecting() and not sock._error):
            return
        why = writer.doWrite()
        if why:
            self._disconnectSelectable(writer, why, False)  # type: ignore[no-untyped-call]
        elif sock.writer is not None and sock.has_room():
            sock.write_armed = True
            self.queue.at(self.queue.now, self._write, sock)

    def _run_thread_calls(self, _: None, resuming: bool = False) -> None:
        if self.paused and not resuming:
            return
        calls, self._thread_calls = self._thread_calls, []
        for func, args, kw in calls:
            func(*args, **kw)


@implementer(IHostResolution)
@dataclass
class _Resolution:
    name: str

    def cancel(self) -> None:
        pass


@implementer(IHostnameResolver)
class _NoNames:
    """The simulated network has no names: whoever asks is answered at once that there is none, and counted."""

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters

    def resolveHostName(
        self, resolutionReceiver: Any, hostName: str, portNumber: int = 0, addressTypes: Any = None, transportSemantics: str = "TCP"
    ) -> _Resolution:
        self._counters["names_looked_up"] += 1
        resolution = _Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        resolutionReceiver.resolutionComplete()
        return resolution


class _Quick:
    """Twisted's way to a socket without what only a real kernel needs (slices against its limits, retries after signals)."""

    def writeSomeData(self, data: Any) -> Any:
        try:
            return self.socket.send(data)  # type: ignore[attr-defined]
        except BlockingIOError:
            return 0
        except OSError:
            return CONNECTION_LOST


class _Client(_Quick, tcp.Client):
    def createInternetSocket(self) -> Any:
        return StreamSocket(self.connector.reactor)


class _Server(_Quick, tcp.Server):
    pass


class _Connector(tcp.Connector):
    def _makeTransport(self) -> tcp.Client:
        return _Client(self.host, self.port, self.bindAddress, self, self.reactor)  # type: ignore[no-untyped-call]


class _Port(tcp.Port):
    reactor: Any
    transport = _Server

    def createInternetSocket(self) -> Any:
        return ListeningSocket(self.reactor)


class _MulticastPort(udp.MulticastPort):
    def createInternetSocket(self) -> Any:
        sock = DatagramSocket(self.reactor)
        if self.listenMultiple:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return sock
