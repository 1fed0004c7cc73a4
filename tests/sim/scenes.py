"""Stories with one point each, that random faults would seldom tell: rolling restarts, a split, double losses within and beyond what backups can bear, a storm of joins, wide views, domains, lite members, losses that were rehearsed, a shared map, a store behind it or instead of it.

A scene is a function of (seed, manager type); it raises `SimulationError` when a promise is broken and returns what it counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from caterwaul.managers.heads import LIVE
from caterwaul.managers.session import key_of
from caterwaul.membership.view import ViewChanged

from .clients import Clients
from .copies import difference
from .faults import Injector, draw
from .node import SimCluster
from .persistent import persistent
from .rehearsals import rehearsal
from .run import collect, run_seed
from .shared import maps
from .stored import stored
from .world import SimulationError, World

__all__ = ["SCENES", "WITHOUT_MANAGER", "attempt"]

_DROP_TIME_S = 1.5
_AGREE_WITHIN_S = 10.0


def _settings(manager: str, backups: int = 1, **more: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {"read_your_writes": "cluster", "type": manager, **more}
    if manager != "delta":
        chosen["backups"] = backups
    return {"membership": {"drop_time_s": _DROP_TIME_S, "heartbeat_interval_s": 0.3}, "channel": {"reconnect_max_s": 1.0}, "managers": {"default": chosen}}


def _agree(world: World, cluster: SimCluster, within_s: float = _AGREE_WITHIN_S) -> None:
    """All in sync, and each copy where it should be."""

    def copies_are_right() -> bool:
        return cluster.is_ready() and not difference(cluster)

    try:
        world.counters["ms_to_agree"] += int(world.run_until_true(copies_are_right, within_s, 0.2) * 1000)
    except AssertionError:
        if cluster.is_ready():
            world.fail(f"S5: copies differ: {difference(cluster)}")
        raise


def rolling(seed: int, manager: str) -> Counter[str]:
    """Every node drains, leaves and is started again, under load: nothing is lost, although nothing is acknowledged and (with even seeds) there are no backups,
    and nobody is answered "unknown"."""
    with World(seed) as world:
        own = {"drain_on_term": True, "drain_notice_s": 0.0}
        cluster = SimCluster(world, 5, node_settings=lambda number: own, **_settings(manager, backups=seed % 2))
        world.run_until_true(cluster.is_ready, 10.0)
        clients = Clients(world, cluster, 60, 100.0)
        world.run_for(3.0)
        order = list(range(5))
        world.rng("order").shuffle(order)
        for number in order:
            node, left = cluster.nodes[number], list[object]()
            node.leave().addCallback(left.append)
            world.run_until_true(lambda left=left: left, 30.0)  # type: ignore[misc]
            assert node.drain is not None
            if node.drain.state != "drained":
                world.fail(f"n{number} was not drained in time: {node.drain.report()}")
            cluster.end(number)
            world.run_for(0.5)
            cluster.start(number)
            world.run_until_true(cluster.is_ready, 20.0)
            world.run_for(2.0)
        clients.stop()
        _agree(world, cluster)
        return world.counters


def split(seed: int, manager: str) -> Counter[str]:
    """Thirty seconds in two parts, both of which go on serving; then one again within ten seconds, and no more view changes than real ones."""
    with World(seed) as world:
        cluster = SimCluster(world, 5, **_settings(manager, backups=2))
        world.run_until_true(cluster.is_ready, 10.0)
        rng = world.rng("split")
        one = sorted(rng.sample(range(5), rng.choice((2, 3))))
        other = [number for number in range(5) if number not in one]
        changes: Counter[int] = Counter()
        for number, node in cluster.nodes.items():
            node.subscribe(lambda event, number=number: changes.update([number]) if isinstance(event, ViewChanged) else None)
        modest = manager != "delta"  # all copies of a session may be on the other side
        sides = [Clients(world, cluster, 20, 40.0, patient=True, modest=modest, nodes=side) for side in (one, other)]
        world.run_for(3.0)
        changes.clear()
        ends = [world.network.path(cluster.host(a), cluster.host(b)) for a, b in [(a, b) for a in one for b in other] + [(b, a) for a in one for b in other]]
        for path in ends:
            path.hole(1)
            path.cut_datagrams(1)
        world.run_for(30.0)
        for side in sides:
            if not all(client.id for client in side.all):
                world.fail("somebody was not served while the cluster was split")
        for path in ends:
            path.hole(-1)
            path.cut_datagrams(-1)
        world.counters["ms_to_heal"] = int(world.run_until_true(cluster.is_ready, _AGREE_WITHIN_S) * 1000)
        for side in sides:
            side.stop()
        _agree(world, cluster, _AGREE_WITHIN_S)
        for number, count in changes.items():
            real = 2 * len(other if number in one else one)
            if count > real:
                world.fail(f"n{number} changed its view {count} times; {real} members went and came")
        return world.counters


def double(seed: int, manager: str) -> Counter[str]:
    """Two nodes die at once, again and again: with two backups (or all members) nothing that all holders confirmed is lost."""
    with World(seed) as world:
        cluster = SimCluster(world, 6, **_settings(manager, backups=2))
        world.run_until_true(cluster.is_ready, 10.0)
        clients = Clients(world, cluster, 60, 100.0, acks="all", patient=True)
        rng = world.rng("double")
        for _ in range(4):
            world.run_for(4.0)
            struck = rng.sample(range(6), 2)
            for number in struck:
                cluster.crash(number, rng.random() < 0.5)
            world.counters["crashes"] += 2
            world.run_for(rng.uniform(0.0, 5.0))
            for number in struck:
                cluster.start(number)
            world.run_until_true(cluster.is_ready, 20.0)
        clients.stop()
        _agree(world, cluster)
        return world.counters


def beyond(seed: int, manager: str) -> Counter[str]:
    """Three of five die at once, with one backup. What they alone had is gone, heads and all, and stays gone when they come back; everything else lives."""
    with World(seed) as world:
        cluster = SimCluster(world, 5, **_settings(manager, unknown_for_s=6.0))
        world.run_until_true(cluster.is_ready, 10.0)
        clients = Clients(world, cluster, 80, 100.0, patient=True)
        world.run_for(4.0)
        clients.stop()
        world.run_for(1.0)
        before = _holding(cluster)
        struck = world.rng("beyond").sample(range(5), 3)
        for number in struck:
            cluster.crash(number, whole_host=False)
        expected = {key for key, numbers in before.items() if numbers - set(struck)}
        world.counters["lost"] = len(before) - len(expected)
        world.run_for(10.0)
        for again in (False, True):
            if again:
                for number in struck:
                    cluster.start(number)
                world.run_until_true(cluster.is_ready, 20.0)
            world.run_until_true(lambda: not difference(cluster), _AGREE_WITHIN_S)
            after = set(_holding(cluster))
            if after != expected:
                world.fail(f"{len(expected - after)} sessions are lost that somebody had, {len(after - expected)} are back that nobody had")
            heads = {
                key.hex()[:8]
                for node in cluster.nodes.values()
                for key, entry in node.manager._core.replica.entries()
                if entry.head and entry.head.state == LIVE
            }
            if len(heads) != len(expected):
                world.fail(f"{len(heads) - len(expected)} heads are left of sessions that are gone")
        return world.counters


def _holding(cluster: SimCluster) -> dict[bytes, set[int]]:
    """Which nodes have the record of each live session."""
    found: dict[bytes, set[int]] = {}
    for number, node in cluster.nodes.items():
        for key, entry in node.manager._core.replica.entries():
            if entry.body is not None:
                found.setdefault(key, set()).add(number)
    return found


def storm(seed: int, manager: str, members: int = 30) -> Counter[str]:
    """Five nodes serve, twenty-five join within two seconds. Nothing is lost; of those whose session is just on its way for the third time, few hear "unknown"."""
    with World(seed) as world:
        cluster = SimCluster(world, members, up=5, **_settings(manager))
        world.run_until_true(lambda: all(node.is_ready and len(node.view) == 5 for node in cluster.nodes.values()), 10.0)
        clients = Clients(world, cluster, 100, 100.0, patient=True)
        world.run_for(3.0)
        rng = world.rng("storm")
        for number in range(5, members):
            world.queue.at(world.now + rng.uniform(0.0, 2.0), cluster.start, number)
        world.run_for(2.1)
        world.counters["ms_to_ready"] = int(world.run_until_true(cluster.is_ready, 30.0, 0.1) * 1000)
        world.run_for(2.0)
        clients.stop()
        if world.counters["unknown"] > world.counters["requests"] // 20:
            world.fail(f"{world.counters['unknown']} of {world.counters['requests']} requests were answered unknown")
        _agree(world, cluster, 2 * _AGREE_WITHIN_S)
        return world.counters


def wide(seed: int, manager: str, members: int = 200) -> Counter[str]:
    """Many members: all see all, one dies, all see that once."""
    with World(seed) as world:
        cluster = SimCluster(world, members, **_settings(manager))
        world.counters["ms_to_meet"] = int(world.run_until_true(cluster.is_ready, 60.0, 0.5) * 1000)
        clients = Clients(world, cluster, 50, 50.0, patient=True, acks="all")
        world.run_for(3.0)
        changes: Counter[int] = Counter()
        for number, node in cluster.nodes.items():
            node.subscribe(lambda event, number=number: changes.update([number]) if isinstance(event, ViewChanged) else None)
        lost = world.rng("wide").randrange(members)
        cluster.crash(lost, whole_host=False)
        uids = {node.me.uid for node in cluster.nodes.values()}
        seen = world.run_until_true(lambda: all({member.uid for member in node.view} == uids for node in cluster.nodes.values()), 20.0, 0.1)
        world.counters["ms_to_drop"] = int(seen * 1000)
        world.run_for(3.0)
        clients.stop()
        if set(changes.values()) != {1}:
            world.fail(f"views changed {sorted(set(changes.values()))} times for one loss")
        return world.counters


def domains(seed: int, manager: str) -> Counter[str]:
    """Two domains in one group, under all faults; one node is started again in the other domain. No session is ever where it does not belong."""
    with World(seed) as world:
        where = {number: "east" if number < 3 else "west" for number in range(6)}
        cluster = SimCluster(world, 6, node_settings=lambda number: {"domain": where[number]}, **_settings(manager))
        world.run_for(3.0)
        everyone = {len(node.everyone) for node in cluster.nodes.values()}
        if everyone != {6}:
            world.fail(f"not all domains are seen: {everyone}")
        parts = {name: Clients(world, cluster, 20, 30.0, patient=True, modest=True, nodes=nodes) for name, nodes in (("east", range(3)), ("west", range(3, 6)))}
        injector = Injector(world, cluster, draw(world.rng("faults"), 6, 3.0, 25.0, _DROP_TIME_S), down_max=1)
        world.run_until(25.0)
        injector.heal()
        world.run_for(5.0)
        parts["east"].stop()
        cluster.crash(2, whole_host=False)
        where[2] = "west"
        cluster.start(2)
        world.run_for(10.0)
        parts["west"].stop()
        ids = {name: {key_of(client.id) for client in part.all if client.id} for name, part in parts.items()}
        for number, node in cluster.nodes.items():
            held = {key for key, entry in node.manager._core.replica.entries() if entry.head is None or entry.head.state == LIVE}
            foreign = held & ids["west" if where[number] == "east" else "east"]
            world.counters["held"] += len(held)
            if foreign:
                world.fail(f"n{number} of {where[number]} holds {len(foreign)} sessions of the other domain")
        return world.counters


def lite(seed: int, manager: str) -> Counter[str]:
    """All faults and features, as without a scene, with two of five nodes that serve and hold nothing."""
    return run_seed(seed, manager=manager, lite=2).counters


def attempt(seed: int, manager: str, scene: str) -> Counter[str] | str:
    """For a worker process: a broken promise comes back as its text."""
    try:
        return SCENES[scene](seed, manager)
    except SimulationError as error:
        return f"scene {scene}, {error}"
    finally:
        collect()


SCENES: dict[str, Callable[..., Counter[str]]] = {
    "rolling": rolling, "split": split, "double": double, "beyond": beyond, "storm": storm, "wide": wide, "domains": domains, "lite": lite,
    "maps": maps, "stored": stored, "rehearsal": rehearsal, "persistent": persistent,
}  # fmt: skip

WITHOUT_MANAGER = ("persistent",)  #: it has a manager of its own, whatever is asked for
