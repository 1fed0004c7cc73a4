"""Two processes with a connection between them, for the tests of simulated TCP."""

from __future__ import annotations

from typing import Any

from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol

from ..sim.world import World

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"


class Peer(Protocol):
    """Keeps what it got and how it ended."""

    def __init__(self) -> None:
        self.got = b""
        self.chunks = 0
        self.lost: Any = None

    def dataReceived(self, data: bytes) -> None:
        self.got += data
        self.chunks += 1

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = reason.type


def factory_of(protocol: Any, made: list[Any]) -> Factory:
    def build() -> Any:
        made.append(protocol())
        return made[-1]

    factory = Factory.forProtocol(build)
    factory.noisy = False
    return factory


class Bench:
    """A server and a client process on hosts of their own, and one connection between them."""

    def __init__(self, seed: int | str = 1, world: World | None = None) -> None:
        self.world = world if world is not None else World(seed)
        self.server = self.world.process("server", SERVER)
        self.client = self.world.process("client", CLIENT)
        self.accepted: list[Any] = []
        self.failures: list[Any] = []

    def listen(self, protocol: Any = Peer, port: int = 7000) -> Any:
        factory = factory_of(protocol, self.accepted)
        ports: list[Any] = []
        TCP4ServerEndpoint(self.server, port).listen(factory).addCallback(ports.append)
        return ports[0]

    def dial(self, protocol: Any, timeout: float = 30.0) -> Any:
        connectProtocol(TCP4ClientEndpoint(self.client, SERVER, 7000, timeout=timeout), protocol).addErrback(lambda f: self.failures.append(f.type))
        return protocol

    def connected(self, protocol: Any = Peer) -> tuple[Any, Any]:
        self.listen(protocol)
        peer = self.dial(protocol())
        self.world.run_for(1.0)
        return peer, self.accepted[0]

    @property
    def there(self) -> Any:
        """The path from the client to the server."""
        return self.world.network.path(self.client.host, self.server.host)

    @property
    def back(self) -> Any:
        return self.world.network.path(self.server.host, self.client.host)
