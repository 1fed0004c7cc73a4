"""Somebody on the network who has no secret: hears what nodes say by multicast, and says it again.

A stranger lives on a host without a node, where a socket that joins the group is all it takes.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from types import TracebackType

from caterwaul.membership.settings import MembershipSettings

from .network import Network, Undo, enter

__all__ = ["Repeated", "Stranger"]

_GROUP = MembershipSettings().multicast_address, MembershipSettings().multicast_port
_LOOK_S, _PAUSE_S = 0.1, 0.005


class Repeated(Undo):
    """Ends it. `sent`: how many datagrams so far."""

    def __init__(self) -> None:
        self.sent = 0
        self.over = Event()
        super().__init__(self.over.set)


class Stranger:
    """On the host of that number, from its start on. A context manager."""

    def __init__(self, network: Network, number: int) -> None:
        self._address = network.addresses[number]
        self._heard: list[tuple[str, bytes]] = []
        self._over = Event()
        self._pool = ThreadPoolExecutor(2, initializer=enter, initargs=(network.names[number],))
        self._acts: list[Future[None]] = []

    def __enter__(self) -> Stranger:
        self._ear = self._pool.submit(self._open).result()
        self._acts.append(self._pool.submit(self._hear))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._pool.shutdown()
        self._ear.close()
        if error is None:
            for act in self._acts:
                act.result()

    def heard(self, address: str) -> list[bytes]:
        """What was sent from there, in order."""
        return [datagram for source, datagram in list(self._heard) if source == address]

    def repeat(self, datagrams: Sequence[bytes], per_s: int) -> Repeated:
        """Send them in turn, over and over, so many a second."""
        repeated = Repeated()
        self._acts.append(self._pool.submit(self._say, datagrams, per_s, repeated))
        return repeated

    def _open(self) -> socket.socket:
        ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        ear.bind(_GROUP)
        ear.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(_GROUP[0]) + socket.inet_aton(self._address))
        ear.settimeout(_LOOK_S)
        return ear

    def _hear(self) -> None:
        while not self._over.is_set():
            try:
                datagram, (source, _) = self._ear.recvfrom(1 << 16)
            except TimeoutError:
                continue
            if source != self._address:
                self._heard.append((source, datagram))

    def _say(self, datagrams: Sequence[bytes], per_s: int, repeated: Repeated) -> None:
        begun = time.monotonic()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth:
            mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(self._address))
            mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
            while not repeated.over.wait(_PAUSE_S) and not self._over.is_set():
                while repeated.sent < per_s * (time.monotonic() - begun):
                    mouth.sendto(datagrams[repeated.sent % len(datagrams)], _GROUP)
                    repeated.sent += 1
