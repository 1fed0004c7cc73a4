"""A cluster of production nodes on simulated hosts: the `Target` that faults befall."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from twisted.python.failure import Failure

from caterwaul.cluster.node import Node
from caterwaul.cluster.security.service import Security
from caterwaul.cluster.settings import Settings
from caterwaul.managers.base import SessionManager
from caterwaul.managers.epochs import NAME as EPOCHS
from caterwaul.managers.epochs import Epochs
from caterwaul.membership import PlainDatagrams

from .network import Host
from .reactor import SimReactor
from .world import World

__all__ = ["SimCluster", "SimNode"]

_PORT = 7000


class SimNode(Node):
    """One life of a node. `reactor`: its process."""

    def __init__(self, settings: Settings, reactor: SimReactor, entropy: Any) -> None:
        super().__init__(settings, reactor, entropy=entropy)
        self.reactor = reactor

    @property
    def manager(self) -> SessionManager:
        return self.managers["default"]

    @property
    def epochs(self) -> Epochs:
        found = self.engines[EPOCHS]
        assert isinstance(found, Epochs)
        return found

    def _member(self, payload: dict[str, Any]) -> Any:
        """As in production, but for the process id, which is the machine's and would differ from run to run."""
        return super()._member({**payload, "pid": 1})

    def _make_security(self, uid: bytes) -> Security:
        """None: encryption is random, and would be all that is simulated."""
        security = super()._make_security(uid)
        security.sealer = PlainDatagrams()
        return security


class SimCluster:
    """Nodes 0 to `size` - 1, each alone on its host. `settings`: keywords of `Settings.of`, the same for all; `node_settings(number)`: more for its
    table `node`. `up`: how many are started at once, all if None."""

    def __init__(
        self, world: World, size: int = 5, up: int | None = None, node_settings: Callable[[int], dict[str, Any]] = lambda number: {}, **settings: Any
    ) -> None:
        self.world = world
        self.size = size
        self.nodes: dict[int, SimNode] = {}  #: those that are up
        self.lives = [0] * size
        self._settings = settings
        self._node_settings = node_settings
        #: told of each new life, before it starts
        self.on_start: Callable[[int, SimNode], None] | None = None
        for number in range(size if up is None else up):
            self.start(number)

    # -- Target

    def host(self, node: int) -> Host:
        return self.world.network.host(f"10.0.{node // 250}.{node % 250 + 1}")

    def reactor(self, node: int) -> SimReactor | None:
        return self.nodes[node].reactor if node in self.nodes else None

    def crash(self, node: int, whole_host: bool) -> None:
        self.host(node).up = not whole_host
        self.nodes.pop(node).reactor.end(whole_host)

    def end(self, node: int) -> None:
        """Its process ends, after the node has left."""
        self.nodes.pop(node).reactor.end(False)

    def start(self, node: int) -> None:
        host = self.host(node)
        if not host.up:
            host.boot()
        self.lives[node] += 1
        life = f"n{node}.{self.lives[node]}"
        own = {"name": f"n{node}", "port": _PORT, **self._node_settings(node)}
        settings = Settings.of(node=own, admin={"socket": ""}, web={"listen": ""}, **self._settings)
        settings = replace(settings, node=replace(settings.node, host=host.address, insecure=True))  # outside loopback and in the clear, which no user may have
        self.nodes[node] = started = self.make(node, settings, self.process(node, life, host.address), self.world.rng(f"entropy of {life}").randbytes)
        if self.on_start is not None:
            self.on_start(node, started)
        started.start().addErrback(self._failed, life)

    def process(self, node: int, name: str, address: str) -> SimReactor:
        return self.world.process(name, address)

    def make(self, node: int, *arguments: Any) -> SimNode:
        return SimNode(*arguments)

    # -- state

    def sees_all(self) -> bool:
        """Every node is up and has every node, and nobody else, in its view."""
        uids = {node.me.uid for node in self.nodes.values() if node.membership is not None}
        return len(uids) == self.size and all({member.uid for member in node.view} == uids for node in self.nodes.values())

    def is_ready(self) -> bool:
        return self.sees_all() and all(node.is_ready for node in self.nodes.values())

    def _failed(self, failure: Failure, life: str) -> None:
        raise self.world.error(f"{life} did not start: {failure.getTraceback()}")
