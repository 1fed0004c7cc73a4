"""A cluster of stock Twisted protocols for the tests of the simulator: multicast heartbeats, and a mesh of line connections.

Each node beats twice a second, dials everybody with a `ClientService` and sends numbered lines; nothing of the product.
"""

from __future__ import annotations

from typing import Any

from twisted.application.internet import ClientService, backoffPolicy
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.protocol import DatagramProtocol, Factory
from twisted.internet.task import LoopingCall
from twisted.protocols.basic import LineReceiver

from ..sim.network import Host
from ..sim.reactor import SimReactor
from ..sim.world import World

GROUP = ("228.0.0.4", 45564)


class _Line(LineReceiver):
    def __init__(self, node: ToyNode) -> None:
        self.node = node

    def connectionMade(self) -> None:
        self.node.lines.add(self)

    def connectionLost(self, reason: Any = None) -> None:
        self.node.lines.discard(self)

    def lineReceived(self, line: bytes) -> None:
        self.node.received += 1


class ToyNode(DatagramProtocol):
    def __init__(self, reactor: SimReactor, world: World, number: int, size: int) -> None:
        self.reactor = reactor
        self.lines: set[_Line] = set()
        self.received = self.beats = self.sent = 0
        factory = Factory.forProtocol(lambda: _Line(self))
        factory.noisy = False
        TCP4ServerEndpoint(reactor, 7000).listen(factory)
        self._port = reactor.listenMulticast(GROUP[1], self, listenMultiple=True)
        self._port.joinGroup(GROUP[0])
        policy = backoffPolicy(0.1, 1.0, jitter=world.rng(f"jitter {number} {reactor.name}").random)
        for peer in range(number):
            ClientService(TCP4ClientEndpoint(reactor, address(peer), 7000, timeout=2.0), factory, policy, clock=reactor).startService()
        beat = LoopingCall(self.beat)
        beat.clock = reactor
        beat.start(0.5)

    def beat(self) -> None:
        self._port.write(b"beat %d" % self.beats, GROUP)
        for line in sorted(self.lines, key=lambda line: (line.transport.getPeer().host, line.transport.getPeer().port)):  # type: ignore[union-attr]
            self.sent += 1
            line.sendLine(b"line %d" % self.sent)  # type: ignore[no-untyped-call]

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.beats += 1


def address(number: int) -> str:
    return f"10.0.0.{number + 1}"


class ToyCluster:
    """A `Target` of faults."""

    def __init__(self, world: World, size: int = 5) -> None:
        self.world = world
        self.size = size
        self.nodes: dict[int, ToyNode] = {}
        for number in range(size):
            self.start(number)

    def host(self, node: int) -> Host:
        return self.world.network.host(address(node))

    def reactor(self, node: int) -> SimReactor | None:
        return self.nodes[node].reactor if node in self.nodes else None

    def crash(self, node: int, whole_host: bool) -> None:
        self.host(node).up = not whole_host
        self.nodes.pop(node).reactor.end(whole_host)

    def start(self, node: int) -> None:
        if not self.host(node).up:
            self.host(node).boot()
        self.nodes[node] = ToyNode(self.world.process(f"node {node} at {self.world.now:.3f}", address(node)), self.world, node, self.size)

    def is_whole(self) -> bool:
        return all(len(node.lines) == self.size - 1 for node in self.nodes.values()) and len(self.nodes) == self.size
