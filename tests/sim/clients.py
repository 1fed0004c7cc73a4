"""Users whose every answer is checked: nobody's session may be lost, unknown or older than what must have survived."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from caterwaul.managers.errors import SessionError
from caterwaul.managers.session import Session, key_of

from .node import SimCluster, SimNode
from .world import World

__all__ = ["Client", "Clients"]


class Client:
    __slots__ = ("busy", "id", "least", "node", "token", "written")

    def __init__(self) -> None:
        self.id: str | None = None
        self.token = ""
        self.node: int | None = None
        self.written = self.least = 0  # the last number written, and the one that must be there
        self.busy = False


class Clients:
    """`count` users, `rate` requests a second in all, each on its node while that is ready. `acks`: level of their commits; with `none` every write must
    survive, else those that were confirmed. `patient`: an answer of *unknown* is no failure; `modest`: nor is a new session, or an older one. `nodes`: those that they may use."""

    def __init__(
        self, world: World, cluster: SimCluster, count: int, rate: float, *,
        acks: str = "none", patient: bool = False, modest: bool = False, nodes: Collection[int] = (),
    ) -> None:  # fmt: skip
        self._world, self._cluster, self._acks, self._patient, self._modest = world, cluster, acks, patient, modest
        self._nodes = nodes or range(cluster.size)
        self._rng = world.rng(f"clients of {list(self._nodes)}")
        self.all = [Client() for _ in range(count)]
        self._pause = 1.0 / rate
        self._running = True
        world.queue.at(world.now, self._next, None)

    def stop(self) -> None:
        self._running = False

    hold = stop

    def go_on(self) -> None:
        """After `hold`; nobody waits for an answer any more of those who were killed meanwhile."""
        for client in self.all:
            client.busy = False
        if not self._running:
            self._running = True
            self._world.queue.at(self._world.now, self._next, None)

    def _next(self, _: None) -> None:
        if not self._running:
            return
        self._world.queue.at(self._world.now + self._rng.uniform(0.5, 1.5) * self._pause, self._next, None)
        self.request(self._rng.choice(self.all))

    def request(self, client: Client) -> None:
        ready = [number for number, node in sorted(self._cluster.nodes.items()) if number in self._nodes and node.is_ready and not node.reactor.paused]
        if client.busy or not ready:
            return
        if client.node not in ready:
            client.node = self._rng.choice(ready)
        node = self._cluster.nodes[client.node]
        client.busy = True
        session = node.manager.open_local(client.id, client.token)
        if session is not None:
            self._serve(client, node, session)
        else:
            assert node.channel is not None
            node.channel.wake(lambda: node.manager.open_deferred(client.id, client.token).addCallback(lambda found: self._serve(client, node, found)) and None)

    def _serve(self, client: Client, node: SimNode, session: Session) -> None:
        self._world.counters["requests"] += 1
        try:
            self._check(client, node, session)
            if not session.unknown:
                self._write(client, node, session)
        except SessionError:
            self._world.counters["refused"] += 1
        finally:
            client.busy = False
            node.manager.release(session)

    def _check(self, client: Client, node: SimNode, session: Session) -> None:
        life = node.reactor.name
        if session.unknown:
            self._world.counters["unknown"] += 1
            if not self._patient:
                self._world.fail(f"{life} answered unknown for {key_of(client.id or '').hex()[:8]}")
        elif self._modest:
            client.written = client.least = session.get("n", 0)
        elif client.id is not None:
            there = session.get("n", 0)
            if not client.least <= there <= client.written:
                self._world.fail(f"{life} shows {there} in {key_of(client.id).hex()[:8]}; {client.written} was written, {client.least} must be there")
            client.written = there

    def _write(self, client: Client, node: SimNode, session: Session) -> None:
        session["n"] = number = client.written + 1
        receipt = node.manager.commit(session, self._acks)
        client.id, client.token, client.written = session.id, session.token, number
        if self._acks == "none":
            client.least = number
        else:
            receipt.deferred().addCallback(lambda done: self._confirmed(client, session.id, done, number))

    def _confirmed(self, client: Client, session_id: str | None, receipt: Any, number: int) -> None:
        if receipt.satisfied and client.id == session_id:
            client.least = max(client.least, number)
            self._world.counters["acknowledged"] += 1
