"""The scene `rehearsal`: asked what would not survive the loss of a node, or of two, the cluster names that and nothing else. Then these die, and every user looks.

Sessions have no backups in some seeds, or few nodes hold them. In half of the rounds the last changes of one who is to die do not reach all others, so
that copies are left which are older. Near copies are gone before anybody asks: no answer promises that one stays, or that it goes.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

from caterwaul.managers.session import Session, key_of

from .clients import Client, Clients
from .copies import difference
from .node import SimCluster, SimNode
from .shared import SETTINGS
from .world import World

__all__ = ["rehearsal"]

_NODES, _ROUNDS = 6, 4
_DROPPED_S = 4.0  # a loss is noticed, and the copies are restored
_AGREE_WITHIN_S = 10.0


def rehearsal(seed: int, manager: str) -> Counter[str]:
    """See the top of the file."""
    with World(seed) as world:
        rng = world.rng("rehearsal")
        backups, holding = rng.randrange(3), rng.choice((2, 3, _NODES))
        chosen: dict[str, Any] = {"type": manager, "read_your_writes": "cluster", "near_cache_max": 0, "unknown_for_s": 6.0}
        if manager != "delta":
            chosen["backups"] = backups
        cluster = SimCluster(world, _NODES, node_settings=lambda number: {"weight": int(number < holding)}, managers={"default": chosen}, **SETTINGS)
        world.run_until_true(cluster.is_ready, 10.0)
        clients = Clients(world, cluster, 60, 100.0, patient=True, modest=True)
        for _ in range(_ROUNDS):
            clients.go_on()
            world.run_for(3.0)
            clients.stop()
            world.run_until_true(lambda: cluster.is_ready() and not _has_near_copies(cluster) and not difference(cluster), _AGREE_WITHIN_S)
            lose = rng.sample(range(holding), rng.choice((1, 2)))
            asked = rng.choice([number for number in range(_NODES) if number != lose[0]])
            uninformed = [number for number in range(_NODES) if number not in (asked, *lose) and rng.random() < 0.8] if rng.random() < 0.5 else []
            paths = [world.network.path(cluster.host(lose[0]), cluster.host(number)) for number in uninformed]
            for path in paths:
                path.clog()
            for client in clients.all if paths else ():
                if client.node == lose[0]:
                    clients.request(client)
            world.run_for(0.2)
            held = {key for node in cluster.nodes.values() for key, entry in node.manager._core.replica.entries() if entry.body is not None}
            written = {client: client.written for client in clients.all if client.id is not None and key_of(client.id) in held}
            found = _rehearse(world, cluster.nodes[asked], [f"n{number}" for number in lose])
            if found["keys"] and not paths and len(lose) < holding and (manager == "delta" or len(lose) <= backups):
                world.fail(f"rehearsal: {len(found['keys'])} sessions are named for the loss of {len(lose)} nodes, with {backups} backups on {holding}")
            for number in lose:
                cluster.crash(number, whole_host=True)
            world.counters["crashes"] += len(lose)
            world.run_for(_DROPPED_S)
            _compare(world, found, *_look(world, cluster, written, rng))
            for path in paths:
                path.clog(-1)
            for number in lose:
                cluster.start(number)
            world.run_until_true(cluster.is_ready, 20.0)
        return world.counters


def _has_near_copies(cluster: SimCluster) -> bool:
    return any(node.manager._core.moving.near for node in cluster.nodes.values())


def _rehearse(world: World, node: SimNode, lose: list[str]) -> dict[str, Any]:
    """What it says of its sessions."""
    answers: list[dict[str, Any]] = []
    assert node.rehearsal is not None
    node.rehearsal.run(node.view, lose).addCallback(answers.append)
    world.run_until_true(lambda: answers, 5.0)
    found: dict[str, Any] = answers[0]["managers"]["default"]
    return found


def _look(world: World, cluster: SimCluster, written: dict[Client, int], rng: Random) -> tuple[set[str], set[str]]:
    """The sessions that are gone, and those that are older than what was written, as a node says to each of these users."""
    gone, older, waiting = set[str](), set[str](), set(written)

    def look(session: Session, client: Client, node: SimNode) -> None:
        waiting.discard(client)
        name = key_of(client.id or "").hex()[:8]
        if session.new or session.unknown:
            gone.add(name)
        elif session["n"] != written[client]:
            older.add(name)
        node.manager.release(session)

    for client in written:
        node = cluster.nodes[rng.choice(sorted(cluster.nodes))]
        node.manager.open_deferred(client.id, client.token).addCallback(look, client, node)
    world.run_until_true(lambda: not waiting, 5.0)
    return gone, older


def _compare(world: World, found: dict[str, Any], gone: set[str], older: set[str]) -> None:
    """Those of which no copy was left are named first."""
    lost, behind = set(found["keys"][: found["lost"]]), set(found["keys"][found["lost"] :])
    world.counters["lost"] += len(gone)
    world.counters["behind"] += len(older)
    for what, named, true in (("gone", lost, gone), ("older", behind, older)):
        if named != true:
            world.fail(f"rehearsal: {len(true - named)} sessions are {what} that were not named, {len(named - true)} are not that were")
