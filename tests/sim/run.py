"""One seed, from start to verdict: calm, faults, healing, quiet.

A seed is a cluster of five nodes and sixty virtual seconds with more than a hundred requests a second. A run in which some class of
faults had no effect, or with too few requests, proves nothing: it is void, and counted as such.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .checkers import Checkers
from .faults import Injector, draw, missing
from .features import begin, chosen, in_turn, with_features
from .node import SimCluster
from .workload import Workload
from .world import SimulationError, World

__all__ = ["NODES", "RATE", "SECONDS", "Result", "attempt", "collect", "run_seed"]

NODES = 5
SECONDS = 60.0
_CALM_UNTIL = 2.5
_HEAL_AT = 46.0
_REQUESTS_UNTIL = 50.0
_AGREE_WITHIN_S = 5.0  # S5. Promised are ten; it takes half, unless what should have gone at once is found by comparing in the background only
RATE = 135.0  # so that the whole run has more than a hundred a second
_USERS = 40
_DROP_TIME_S = 1.5
_IDLE_S = 8.0
_OUTBOX_MAX = 65536
_BACKUPS = 2
_SETTINGS: dict[str, Any] = {
    "membership": {"drop_time_s": _DROP_TIME_S, "heartbeat_interval_s": 0.3},
    "channel": {"outbox_max_bytes": _OUTBOX_MAX, "reconnect_max_s": 1.0},
    "managers": {"default": {"idle_timeout_s": _IDLE_S, "pack_after_s": 3.0, "expire_check_s": 0.5, "read_your_writes": "cluster"}},
}


@dataclass(frozen=True, slots=True)
class Result:
    """`void`: why the run proves nothing, or empty. `digest` is equal for equal seeds, whatever the hash seed."""

    seed: int | str
    void: str
    digest: str
    counters: Counter[str]


def run_seed(
    seed: int | str, kinds: Sequence[str] | None = None, manager: str = "delta", lite: int = 0, features: Sequence[str] | None = None, rate: float = RATE
) -> Result:
    """Run one seed. Raises `SimulationError` when a promise is broken. `kinds`: only these classes of faults (never void). `manager`: its type.
    `lite`: this many of the nodes serve, and hold nothing. `features`: these, and not those that the seed draws. `rate`: requests a second, without theirs."""
    with World(seed) as world:
        rng = world.rng("features")
        drawn = chosen(rng)
        features = drawn if features is None else features
        settings = with_features(_settings(manager), features, rng, world.rng("reauthenticate"))
        cluster = SimCluster(world, NODES, node_settings=lambda number: {"weight": 0} if number < lite else {}, **settings)
        checkers = Checkers(world, cluster, _OUTBOX_MAX, _DROP_TIME_S, _IDLE_S)
        world.run_until(_CALM_UNTIL)
        faults = draw(world.rng("faults"), NODES, _CALM_UNTIL, _HEAL_AT, _DROP_TIME_S)
        if kinds is not None:
            faults = [fault for fault in faults if fault.kind in kinds]
        injector = Injector(world, cluster, faults, down_max=2)
        workload = Workload(world, cluster, checkers, users=_USERS, rate=rate, until=_REQUESTS_UNTIL, idle_s=_IDLE_S)
        others = begin(world, cluster, checkers, features, _REQUESTS_UNTIL)
        world.counters.update(f"with_{name}" for name in features)
        world.run_until(_HEAL_AT)
        injector.heal()
        world.run_until(_REQUESTS_UNTIL)
        for other in others:
            other.healed()
        while world.now < _REQUESTS_UNTIL + _AGREE_WITHIN_S - 0.5 and not (cluster.is_ready() and checkers.agree()):
            world.run_until(world.now + 0.5)
        world.counters["ms_to_agree"] = int((world.now - _REQUESTS_UNTIL) * 1000)
        checkers.settled()
        checkers.nothing_is_stale(workload.cookies())
        while world.now < _REQUESTS_UNTIL + _AGREE_WITHIN_S and any(other.difference() for other in others):
            world.run_until(world.now + 0.1)
        for other in others:
            if wrong := other.difference():
                checkers.fail("S5", f"copies differ after healing: {wrong}")
            other.settled()
        world.run_until(SECONDS)
        checkers.all_are_served()
        checkers.all_are_logged_out()
        for other in others:
            other.over()
        return Result(seed, _void(world) if kinds is None else "", world.digest(), world.counters)


def _settings(manager: str) -> dict[str, Any]:
    chosen: dict[str, Any] = {**_SETTINGS["managers"]["default"], "type": manager}
    if manager != "delta":
        chosen["backups"] = _BACKUPS
    return {**_SETTINGS, "managers": {"default": chosen}}


def attempt(seed: int | str, manager: str = "delta", features: bool = False) -> Result | str:
    """The same for a worker process: a broken promise comes back as its text. Each even seed has one feature; `features`: all have those that they draw."""
    try:
        return run_seed(seed, manager=manager, features=None if features else in_turn(seed))
    except SimulationError as error:
        return str(error)
    finally:
        collect()


def collect() -> None:
    """What is left of a world goes, and what its Deferreds and coroutines log then: not in the next one."""
    for _ in range(3):  # coroutines that end when they are collected leave more behind
        gc.collect()


def _void(world: World) -> str:
    if world.counters["operations"] < 100 * SECONDS:
        return f"only {world.counters['operations']} requests"
    absent = missing(world)
    return f"no effect of {', '.join(absent)}" if absent else ""
