"""A cluster with a store behind it: the store has its own troubles, nodes die one by one and all at once, and nothing that was stored may be lost.

The store is a machine of its own: what reaches it is done, whether or not whoever asked lives to hear of it; answers can be lost, late, or errors. Calls travel in virtual time.

The story, for three rounds: requests go on while the store is down, slow or forgetful and a node dies; then every node is killed at the same moment. With write-through that is in the middle of it all, and what
was acknowledged as stored must be there; with write-behind it is once the store has everything, and all of it must be there. Who logged out stays logged out. In some seeds memory is smaller than the sessions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from caterwaul.cluster.settings import Settings
from caterwaul.cluster.stores import NodeStores
from caterwaul.managers.base import SessionManager
from caterwaul.managers.epochs import Epochs
from caterwaul.managers.session import key_of
from caterwaul.managers.stores.memory import MemoryStore
from caterwaul.managers.stores.settings import StoreSettings
from caterwaul.managers.stores.store import StoreError
from caterwaul.managers.stores.worker import StoreWorker

from .clients import Clients
from .copies import difference
from .node import SimCluster, SimNode
from .reactor import SimReactor
from .world import World

__all__ = ["Shelf", "StoredCluster", "stored"]

_NODES, _CLIENTS, _ROUNDS = 4, 40, 3
_QUICK_S, _SLOW_S = (0.0005, 0.01), (0.3, 2.0)
_LOST = 0.05  # of the answers of a forgetful store
_STORED_S = 20.0  # until everything is stored, once the store is well


class Shelf:
    """The store, on a machine of its own. `state`: `up`, `down`, `slow`, `forgetful`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng("store")
        self._spaces: dict[str, MemoryStore] = {}
        self.state = "up"

    def space(self, name: str) -> MemoryStore:
        if name not in self._spaces:
            self._spaces[name] = MemoryStore(f"memory:{id(self)}", name)
            self._spaces[name].clear()  # another world may have had this number
        return self._spaces[name]

    def call(self, reactor: SimReactor, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """As if in a thread of that process: the answer comes in its reactor's thread, if it still lives."""
        answered: Deferred[Any] = Deferred()
        queue, takes_s = self._world.queue, self._rng.uniform(*(_SLOW_S if self.state == "slow" else _QUICK_S))
        is_lost = self.state == "forgetful" and self._rng.random() < _LOST
        self._world.counters["store calls"] += 1
        self._world.counters["store answers lost"] += is_lost

        def arrive(_: object) -> None:
            try:
                if self.state == "down":
                    self._world.counters["store errors"] += 1
                    raise StoreError("the store is down")
                result = function(*arguments)
            except StoreError:
                result = Failure()
            if not is_lost:
                queue.at(queue.now + takes_s / 2, lambda _: reactor.callLater(0.0, answered.callback, result), None)

        queue.at(queue.now + takes_s / 2, arrive, None)
        return answered


class _Stores(NodeStores):
    def __init__(self, settings: Settings, reactor: SimReactor, shelf: Shelf) -> None:
        is_shared = any(manager.type == "persistent" for manager in settings.managers.values())
        super().__init__(settings.store, settings.cluster.name, 3600.0, reactor, is_shared)
        self._shelf = shelf
        self.is_trusted = True

    def of(self, engine: str) -> tuple[StoreWorker, StoreSettings] | None:
        reactor = self._reactor
        return StoreWorker(self._shelf.space(engine), self._settings.timeout_s, reactor, lambda *call: self._shelf.call(reactor, *call)), self.settings_of(
            engine
        )


class _InOrder(set[bytes]):
    """A set of hashes, whose order would differ from run to run. It decides about what is saved first, and nothing else."""

    def __iter__(self) -> Iterator[bytes]:
        return iter(sorted(super().__iter__()))

    def pop(self) -> bytes:
        first = min(super().__iter__())
        self.remove(first)
        return first


class _Node(SimNode):
    def __init__(self, settings: Settings, reactor: SimReactor, entropy: Any, shelf: Shelf) -> None:
        super().__init__(settings, reactor, entropy)
        self._stores = _Stores(settings, reactor, shelf)

    def _start_epochs(self, channel: Any) -> Epochs:
        epochs = super()._start_epochs(channel)
        self._tell_time(epochs)
        self._put_in_order(epochs)
        return epochs

    def _start_engine(self, *arguments: Any) -> SessionManager:
        manager = super()._start_engine(*arguments)
        self._tell_time(manager)
        self._put_in_order(manager)
        return manager

    def _tell_time(self, manager: SessionManager) -> None:
        assert manager.persistence is not None
        manager.persistence.wall_s = self.reactor.wall

    def _put_in_order(self, manager: SessionManager) -> None:
        assert manager.persistence is not None
        manager.persistence.storing.urgent = _InOrder()
        manager._core.replica.written = _InOrder(manager._core.replica.written)


class StoredCluster(SimCluster):
    def __init__(self, world: World, size: int, shelf: Shelf, **settings: Any) -> None:
        self._shelf = shelf
        super().__init__(world, size, **settings)

    def make(self, node: int, *arguments: Any) -> SimNode:
        return _Node(*arguments, self._shelf)

    def is_stored(self) -> bool:
        """The store lacks nothing that anybody has."""
        engines = [engine for node in self.nodes.values() for engine in node.engines.values()]
        return not difference(self) and all(not engine.statistics()["store_waiting"] and not engine._core.replica.written for engine in engines)


class _Ended:
    """Users who log out, and never may be found logged in again."""

    def __init__(self, world: World, cluster: SimCluster, clients: Clients) -> None:
        self._world, self._cluster, self._clients = world, cluster, clients
        self._rng = world.rng("logouts")
        self.told: set[str] = set()  #: ids of whose end all heard who were to
        self.asked: set[str] = set()

    def end_one(self) -> None:
        client = self._rng.choice(self._clients.all)
        node = self._cluster.nodes.get(client.node) if client.node is not None else None
        if node is None or client.busy or client.id is None or not node.is_ready or node.reactor.paused:
            return
        session = node.manager.open_local(client.id, client.token)
        if session is None or session.new or session.unknown:
            return
        ended, client.id = client.id, None
        client.token, client.written, client.least = "", 0, 0
        self.asked.add(ended)
        session.invalidate()
        receipt = node.manager.commit(session)
        node.manager.release(session)
        receipt.deferred().addCallback(lambda done: self.told.add(ended) if done.satisfied else None)

    def check(self, ids: set[str]) -> None:
        for session_id in sorted(ids):
            for node in self._cluster.nodes.values():
                node.manager.open_deferred(session_id).addCallback(self._found, node, session_id)

    def _found(self, session: Any, node: SimNode, session_id: str) -> None:
        if not session.new and not session.unknown:
            self._world.fail(f"S2: {node.reactor.name} serves {key_of(session_id).hex()[:8]}, which had ended")
        self._world.counters["ends looked at"] += 1
        node.manager.release(session)


def stored(seed: int, manager: str) -> Counter[str]:
    """See the top of the file."""
    with World(seed) as world:
        rng, shelf = world.rng("story"), Shelf(world)
        is_through = seed % 2 == 1
        chosen: dict[str, Any] = {"type": manager, "read_your_writes": "cluster", "max_active": 15 if seed % 3 == 0 else 0}
        if manager != "delta":
            chosen["backups"] = 1 + seed % 2
        cluster = StoredCluster(
            world, _NODES, shelf, membership={"drop_time_s": 1.5, "heartbeat_interval_s": 0.3}, channel={"reconnect_max_s": 1.0}, managers={"default": chosen},
            store={"url": "memory:", "write": "through" if is_through else "behind", "write_behind_s": 1.0, "timeout_s": 0.5},
        )  # fmt: skip
        world.run_until_true(cluster.is_ready, 10.0)
        clients = Clients(world, cluster, _CLIENTS, 60.0, acks="all", patient=True)
        ended = _Ended(world, cluster, clients)
        for _ in range(_ROUNDS):
            _trouble(world, cluster, shelf, ended, rng)
            if not is_through:
                clients.hold()
                world.run_until_true(cluster.is_ready, 20.0)
                world.run_until_true(cluster.is_stored, _STORED_S, 0.1)
            gone = set(ended.told if is_through else ended.asked)
            for number in list(cluster.nodes):
                cluster.crash(number, whole_host=rng.random() < 0.5)
            world.counters["all killed"] += 1
            world.run_for(rng.uniform(0.0, 3.0))
            for number in range(_NODES):
                cluster.start(number)
            world.run_until_true(cluster.is_ready, 20.0)
            clients.go_on()
            for client in clients.all:
                clients.request(client)
            ended.check(gone)
            world.run_for(2.0)
        clients.hold()
        world.run_until_true(cluster.is_stored, _STORED_S, 0.1)
        return world.counters


def _trouble(world: World, cluster: StoredCluster, shelf: Shelf, ended: _Ended, rng: Any) -> None:
    """Some seconds of requests, with a store that is not well for a part of them, and a node that dies."""
    victim, strikes = rng.randrange(_NODES), rng.random() < 0.7
    for state in rng.sample(["up", "down", "slow", "forgetful"], 3):
        shelf.state = state
        world.counters[f"store {state}"] += 1
        for _ in range(5):
            world.run_for(rng.uniform(0.1, 0.6))
            ended.end_one()
        if strikes and victim in cluster.nodes and rng.random() < 0.5:
            cluster.crash(victim, whole_host=False)
            world.counters["crashes"] += 1
    shelf.state = "up"
    world.run_for(rng.uniform(0.5, 2.0))
    if victim not in cluster.nodes:
        cluster.start(victim)
