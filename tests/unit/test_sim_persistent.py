"""Nodes whose sessions live in a shared store: what a node does for that, beyond its manager; in the simulator."""

from __future__ import annotations

from typing import Any

from ..sim.node import SimNode
from ..sim.persistent import Depot
from ..sim.stored import StoredCluster
from ..sim.world import World


def _opened(world: World, node: SimNode, session_id: str | None) -> Any:
    found: list[Any] = []
    node.manager.open_deferred(session_id).addCallback(found.append)
    world.run_until_true(lambda: found, 5.0)
    return found[0]


def test_an_end_of_logins_that_was_confirmed_outlives_all_nodes_as_their_sessions_do() -> None:
    with World(1) as world:
        depot = Depot(world)
        cluster = StoredCluster(
            world,
            2,
            depot,
            membership={"drop_time_s": 1.5, "heartbeat_interval_s": 0.3},
            managers={"default": {"type": "persistent"}},
            store={"url": "memory:"},
        )
        world.run_until_true(cluster.is_ready, 10.0)
        manager = cluster.nodes[0].manager
        session = _opened(world, cluster.nodes[0], None)
        session.login("ada")
        stored = manager.commit(session)
        world.run_until_true(lambda: not stored.needs_wait, 1.0)
        assert stored.satisfied
        depot.state = "down"
        refused = manager.end_all("grace")
        world.run_until_true(lambda: not refused.needs_wait, 1.0)
        assert not refused.satisfied
        assert "the store" in refused.unconfirmed
        depot.state = "up"
        world.run_for(5.0)
        ended = manager.end_all("ada")
        world.run_until_true(lambda: not ended.needs_wait, 1.0)
        assert ended.satisfied
        for number in (0, 1):
            cluster.crash(number, whole_host=False)
        for number in (0, 1):
            cluster.start(number)
        world.run_until_true(cluster.is_ready, 10.0)
        assert [_opened(world, node, session.id).new for node in cluster.nodes.values()] == [True, True]
