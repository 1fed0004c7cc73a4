"""Production nodes live in the simulator as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from twisted.logger import capturedLogs

from caterwaul.membership.view import ViewChanged

from ..sim.faults import Injector, draw, missing
from ..sim.node import SimCluster
from ..sim.world import World


def test_five_nodes_meet_by_multicast_and_a_session_of_one_is_read_on_all() -> None:
    with World(1) as world:
        cluster = SimCluster(world)
        world.run_until_true(cluster.is_ready, 10.0)
        session = cluster.nodes[0].manager.open(None)
        session["cart"] = ["milk"]
        cluster.nodes[0].manager.commit(session)
        world.run_for(1.0)
        for node in cluster.nodes.values():
            assert node.manager.open(session.id)["cart"] == ["milk"]


def test_a_killed_process_is_known_in_well_under_a_second_and_its_successor_is_met() -> None:
    with World(2) as world:
        cluster = SimCluster(world)
        world.run_until_true(cluster.is_ready, 10.0)
        cluster.crash(3, whole_host=False)
        assert world.run_until_true(lambda: all(len(node.view) == 4 for node in cluster.nodes.values()), 5.0) < 1.0
        cluster.start(3)
        world.run_until_true(cluster.is_ready, 10.0)


def test_who_fails_on_a_change_of_the_view_keeps_nobody_from_hearing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with World(5) as world:
        cluster = SimCluster(world)
        world.run_until_true(cluster.is_ready, 10.0)
        node = cluster.nodes[0]
        heard: list[object] = []

        def fails(*what: object) -> None:
            raise ZeroDivisionError

        for engine in node.engines.values():
            monkeypatch.setattr(engine, "view_changed", fails)
        node.subscribe(fails)
        node.subscribe(heard.append)
        monkeypatch.setattr(node._locks, "view_changed", lambda name, change: heard.append(name))
        gone = replace(node.view, members=tuple(member for member in node.view if member.name != "n3"))
        change = ViewChanged(node.view, gone)
        with capturedLogs() as logs:
            node._event(change)
        assert heard == [*sorted(node.engines), change]
        assert sum("failed on" in event["log_format"] for event in logs) == len(node.engines) + 1


def run(seed: int) -> str:
    """Meet, suffer every class of faults, heal, be whole again; the digest of it all."""
    with World(seed) as world:
        cluster = SimCluster(world)
        injector = Injector(world, cluster, draw(world.rng("faults"), cluster.size, 3.0, 45.0, 3.0), down_max=2)
        world.run_until(45.0)
        injector.heal()
        world.run_until_true(cluster.is_ready, 15.0)
        assert missing(world) == []
        return world.digest()


def test_a_cluster_is_whole_again_after_all_faults_and_the_hash_seed_of_the_interpreter_changes_nothing() -> None:
    program = "from tests.unit.test_sim_nodes import run; print(run(3))"
    environments = [{**os.environ, "PYTHONHASHSEED": hash_seed} for hash_seed in ("1", "2")]
    root = Path(__file__).parents[2]
    digests = {
        subprocess.run([sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True, check=True).stdout
        for environment in environments
    }
    assert digests == {run(3) + "\n"}


def test_a_damaged_heartbeat_makes_nobody_look_up_a_name() -> None:
    with World(4) as world:
        SimCluster(world)
        world.network.weather.corrupt = 1.0
        world.run_until(60.0)
        assert world.counters["datagrams_corrupted"] > 1000
        assert world.counters["names_looked_up"] == 0
