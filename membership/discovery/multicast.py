"""Discovery by UDP multicast: heartbeats out, heartbeats in.

Every fault of the network is counted and survived: a send while the interface is down raises, and must not end the
heartbeats; once a minute the group is joined again, for an interface that came back as another one. Several nodes and
several clusters of a host share the port. The socket is bound to the group's address: one bound to all addresses hears every group
that any process of the host has joined, at least until it is told not to, and a datagram that came before stays in its buffer.
`IP_MULTICAST_ALL` = 0 keeps out what others joined on another interface; the cluster's name in the heartbeat does the rest.
Nothing is ever answered.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from errno import EADDRINUSE
from ipaddress import IPv4Address
from typing import Any

from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..errors import LocalError
from ..messages import DATAGRAM_BYTES_MAX
from ..settings import MembershipSettings
from .base import Found, Polling

__all__ = ["MulticastDiscovery"]

_log = Logger()
_IP_MULTICAST_ALL = 49  # linux/in.h; Python has no name for it
_REJOIN_S = 60.0


class MulticastDiscovery(Polling):
    """`interface`: IPv4 address of the interface, empty: the kernel's choice. `received`: gets each datagram of the group, cut where it is too long to be ours.

    Raises `LocalError` if the group's address is none.
    """

    def __init__(self, settings: MembershipSettings, interface: str, reactor: Any, received: Callable[[bytes], None]) -> None:
        super().__init__(_REJOIN_S, reactor)
        self._settings = settings
        self._interface = interface
        self._received = received
        self._port: Any = None
        self._lost = False  # the reactor gave the socket up after an error in reading
        self._group = settings.multicast_address, settings.multicast_port
        if not _is_group(settings.multicast_address):
            raise LocalError(f"membership.multicast_address {settings.multicast_address!r}: use an IPv4 group, 224.0.0.0 to 239.255.255.255")

    def start(self, found: Found) -> None:
        """`found` is not called: heartbeats go to `received`. Raises `LocalError` if the port or the group cannot be had."""
        if self._port is None:
            self._listen()
            super().start(found)

    def stop(self) -> None:
        super().stop()
        self._close()

    def _close(self) -> None:
        port, self._port = self._port, None
        if port is not None:
            port.stopListening()

    def send(self, datagram: bytes) -> None:
        if self._port is None:
            return
        try:
            self._port.write(datagram, self._group)
        except Exception:  # whatever a network in trouble raises: the next heartbeat tries again
            self.errors += 1

    def poll(self, now: float) -> None:
        """Look after the socket: open it if it was lost, and join again."""
        try:
            if self._lost or self._port is None:
                self._listen()
            else:
                self._join(lambda failure: self._count(failure.value))
        except LocalError as error:
            self._count(error)

    def _count(self, error: BaseException | None) -> None:
        self.errors += 1
        _log.warn("multicast {group}: {error}; it is tried again", group=self._group[0], error=str(error))

    def _listen(self) -> None:
        try:
            self._port = self._open()
        except CannotListenError as error:
            raise LocalError(
                f"cannot listen on UDP port {self._group[1]}, asked by discovery by multicast (membership.multicast_port): {error.socketError}"
            ) from error
        try:
            self._configure()
        except OSError as error:
            raise self._give_up(error) from error
        failures: list[Failure] = []
        self._join(failures.append)
        if failures:
            raise self._give_up(failures[0].value) from failures[0].value

    def _open(self) -> Any:
        self._lost = False
        protocol = _Datagrams(self._received, self._socket_lost)
        address, port = self._group
        return self._clock.listenMulticast(port, protocol, interface=address, maxPacketSize=DATAGRAM_BYTES_MAX + 1, listenMultiple=True)  # type: ignore[attr-defined]

    def _configure(self) -> None:
        self._port.setTTL(self._settings.multicast_ttl)
        self._port.setLoopbackMode(1)
        if self._interface:
            failures: list[Failure] = []
            self._port.setOutgoingInterface(self._interface).addErrback(failures.append)
            if failures:
                failures[0].raiseException()
        handle = self._port.getHandle()
        if isinstance(handle, socket.socket):  # a simulated network has none
            handle.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
            self._enlarge(handle)

    def _enlarge(self, handle: socket.socket) -> None:
        wanted = self._settings.receive_buffer_bytes
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wanted)
        granted = handle.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2  # the kernel doubles it for its own bookkeeping
        if granted < wanted:
            _log.warn(
                "the kernel grants {granted} of {wanted} bytes of receive buffer: heartbeats may be lost in bursts; raise net.core.rmem_max",
                granted=granted, wanted=wanted,
            )  # fmt: skip

    def _join(self, failed: Callable[[Failure], None]) -> None:
        def check(failure: Failure) -> None:
            if failure.value is None or EADDRINUSE not in failure.value.args:  # that one means: joined already
                failed(failure)

        self._port.joinGroup(self._group[0], self._interface).addErrback(check)

    def _give_up(self, error: BaseException | None) -> LocalError:
        self._close()
        where = f" on interface {self._interface}" if self._interface else ""
        why = error.args[-1] if error is not None and error.args else error  # of errno and text, the text
        return LocalError(
            f"cannot join multicast group {self._group[0]}{where}: {why}. Name the interface (membership.multicast_interface) or add a multicast route "
            "(ip route add 224.0.0.0/4 dev INTERFACE). Without multicast use membership.discovery = ['static'] with membership.seeds = ['host:port', ...]"
        )

    def _socket_lost(self) -> None:
        self._lost = True


class _Datagrams(DatagramProtocol):
    def __init__(self, accept: Callable[[bytes], None], lost: Callable[[], None]) -> None:
        self._accept = accept
        self._lost = lost

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self._accept(datagram)

    def stopProtocol(self) -> None:
        self._lost()


def _is_group(address: str) -> bool:
    try:
        return IPv4Address(address).is_multicast
    except ValueError:
        return False
