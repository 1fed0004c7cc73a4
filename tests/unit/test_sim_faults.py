"""Faults come from the seed, all of them befall a cluster, and all of them end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from ..sim.faults import KINDS, Fault, Injector, draw, missing
from ..sim.world import SimulationError, World
from .toy_cluster import ToyCluster

END_S = 45.0


def run(seed: int) -> tuple[World, ToyCluster]:
    """A safety phase with faults, then healing; ends when every node has all its connections."""
    with World(seed) as world:
        cluster = ToyCluster(world)
        injector = Injector(world, cluster, draw(world.rng("faults"), cluster.size, 2.0, END_S, 3.0), down_max=2)
        world.run_until(END_S)
        injector.heal()
        world.run_until_true(cluster.is_whole, 15.0)
        for number, node in sorted(cluster.nodes.items()):
            world.note(f"{number} {node.beats} {node.received} {node.sent}")
    return world, cluster


@pytest.mark.parametrize("seed", range(8))
def test_a_cluster_lives_through_every_class_of_faults_and_is_whole_after_them(seed: int) -> None:
    world, cluster = run(seed)
    assert missing(world) == []
    assert all(node.reactor.wall_reads == 0 for node in cluster.nodes.values())
    assert world.counters["stream_deliveries"] > 200


def test_the_same_seed_is_the_same_run_and_another_one_is_another() -> None:
    assert run(3)[0].digest() == run(3)[0].digest() != run(4)[0].digest()


def test_the_hash_seed_of_the_interpreter_changes_nothing() -> None:
    root = Path(__file__).parents[2]
    program = "from tests.unit.test_sim_faults import run; print(run(5)[0].digest())"
    digests = {
        subprocess.run(
            [sys.executable, "-c", program], cwd=root, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert digests == {run(5)[0].digest() + "\n"}


def test_a_schedule_has_every_class_is_in_order_and_ends_in_time() -> None:
    for seed in range(50):
        faults = draw(Random(seed), 5, 3.0, 40.0, 3.0)
        assert {fault.kind for fault in faults} == set(KINDS)
        assert faults == sorted(faults)
        assert all(3.0 <= fault.at <= fault.until <= 40.0 for fault in faults)
        assert all(fault.until - fault.at > 3.0 for fault in faults if fault.kind == "pause_long")
        assert all(fault.until - fault.at < 3.0 for fault in faults if fault.kind == "pause_short")


def test_most_classes_rest_in_most_of_the_windows() -> None:
    kinds_on = Counter(len({fault.kind for fault in draw(Random(seed), 5, 0.0, 40.0, 3.0) if fault.at < 10.0}) for seed in range(50))
    assert max(kinds_on) < len(KINDS)
    assert len(kinds_on) > 3


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("clock_step", "stream_cut")])
def test_a_fault_leaves_nothing_behind_when_it_ends(kind: str) -> None:
    with World(1) as world:
        cluster = ToyCluster(world, 3)
        faults = [fault for fault in draw(Random(1), 3, 5.0, 40.0, 3.0) if fault.kind == kind]
        injector = Injector(world, cluster, faults, down_max=1)
        world.run_until(60.0)
        assert world.counters[f"fault:{kind}"] >= 1
        weather = world.network.weather
        assert (weather.loss, weather.delay_s, weather.duplicate, weather.reorder, weather.corrupt) == (0.0,) * 5
        assert all(path.open and not path.datagram_cuts and not path.waiting for path in world.network.paths())
        assert not any(host.deaf or host.mute or not host.up for host in world.network.hosts.values())
        assert not any(node.reactor.paused for node in cluster.nodes.values())
        injector.heal()
        assert cluster.is_whole()


def test_no_more_nodes_are_down_than_allowed_and_the_others_wait_for_their_turn() -> None:
    with World(1) as world:
        cluster = ToyCluster(world, 5)
        Injector(world, cluster, [Fault(1.0 + node / 10, 9.0, "crash_process", (node,)) for node in range(5)], down_max=2)
        world.run_until(5.0)
        assert len(cluster.nodes) == 3
        assert world.counters["fault:crash_process"] == 2
        world.run_until(60.0)
        assert world.counters["fault:crash_process"] == 5
        assert world.counters["faults_postponed"] > 0
        assert cluster.is_whole()


def test_healing_ends_what_is_going_on_and_what_was_to_come() -> None:
    with World(1) as world:
        cluster = ToyCluster(world, 3)
        faults = [
            Fault(1.0, 99.0, "pause_long", (0,)),
            Fault(1.0, 99.0, "crash_host", (1,)),
            Fault(1.0, 99.0, "partition", (2,)),
            Fault(1.0, 99.0, "clock_skew", (2,), 1.1),
            Fault(20.0, 99.0, "deaf", (2,)),
        ]
        injector = Injector(world, cluster, faults, down_max=1)
        world.run_until(10.0)
        assert not cluster.is_whole()
        injector.heal()
        world.run_until_true(cluster.is_whole, 15.0)
        world.run_until(120.0)
        assert cluster.is_whole()
        assert world.counters["fault:deaf"] == 0


def test_a_condition_that_does_not_come_true_ends_the_run() -> None:
    with World(9) as world, pytest.raises(SimulationError, match=r"seed 9, at 2\.0\d* s: not true within 2\.0 s"):
        world.run_until_true(lambda: False, 2.0)
