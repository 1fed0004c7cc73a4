"""Servers of several processes: every worker a full member, or one node a host that holds sessions and lite workers beside it.

    prefork-full    two hosts of four workers, eight members that hold everything
    prefork-lite    the same workers with `node.workers = "lite"`, and a node on each host that holds everything

All workers serve at the same time, each at a steady rate, sessions of their own host (a balancer keeps a browser on a host, the kernel picks a worker): of all
sessions held, some are in use. A request opens the session and reads it; one in five changes one attribute and commits, with nobody's confirmation. Times are those of the
median worker; CPU is of all processes, also of what they do without requests.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from .processes import Group, Process

__all__ = ["SHAPES", "requests"]

SHAPES = ("full", "lite")
_HOSTS, _WORKERS = 2, 4
_ATTRIBUTES, _SIZE = 10, 100
_IN_USE = 20  # of the sessions of a host one in so many is asked for
_RATE, _WRITE_EVERY = 50.0, 5  # of each worker, a second
_IDLE_S = 3.0


def requests(shape: str, held: int, ms: int, repetitions: int) -> list[dict[str, float]]:
    """`held`: sessions, all hosts together."""
    found: list[dict[str, float]] = []
    with Group(managers={"default": {"pack_after_s": 0.5}}) as group:
        hosts = _start(group, shape)
        empty = _memory(group.nodes)
        ids = []
        for workers in hosts:
            workers[0].do("create", sessions=held // _HOSTS, attributes=_ATTRIBUTES, size=_SIZE)
            ids.append(workers[0].do("ids", every=_IN_USE)["ids"])
        _serve(hosts, ids, min(1000, ms))  # who is asked for the first time is fetched once
        for _ in range(repetitions):
            used, began = _cpu(group.nodes), time.monotonic()
            time.sleep(_IDLE_S)
            idle = (_cpu(group.nodes) - used) / (time.monotonic() - began)
            used = _cpu(group.nodes)
            done = _serve(hosts, ids, ms)
            busy = _cpu(group.nodes) - used
            sent = sum(one["requests"] for one in done)
            memory = _memory(group.nodes)
            found.append({
                **{figure: median(one[figure] for one in done) for figure in ("read_p50_us", "read_p99_us", "write_p50_us", "write_p99_us")},
                "requests_per_s": sent / ms * 1000, "cpu_request_us": busy / sent * 1e6, "cpu_idle_ms": idle * 1000, "members": len(group.nodes),
                "memory_mb": memory / 1e6, "sessions_mb": (memory - empty) / 1e6, "sessions": held,
                "missing": sum(one["missing"] for one in done), "wrong": _wrong(hosts, ids),
            })  # fmt: skip
    return found


def _start(group: Group, shape: str) -> list[list[Process]]:
    """The workers of each host."""
    beside: list[dict[str, Any]] = [{} for _ in range(_HOSTS)]
    if shape == "lite":
        nodes = [group.add() for _ in range(_HOSTS)]
        beside = [{"name": node.name, "port": node.about["port"], "workers": "lite"} for node in nodes]
    hosts = [[group.add(**host) for _ in range(_WORKERS)] for host in beside]
    group.meet()
    return hosts


def _serve(hosts: Sequence[Sequence[Process]], ids: Sequence[list[str]], ms: int) -> list[dict[str, Any]]:
    pairs = [(worker, known) for workers, known in zip(hosts, ids, strict=True) for worker in workers]
    for number, (worker, known) in enumerate(pairs):
        worker.tell("serve", ids=known, ms=ms, rate=_RATE, write_every=_WRITE_EVERY, size=_SIZE, seed=number)
    return [worker.answer() for worker, _ in pairs]


def _cpu(nodes: Sequence[Process]) -> float:
    return sum(float(node.do("cpu")["cpu_s"]) for node in nodes)


def _memory(nodes: Sequence[Process]) -> int:
    return sum(int(node.do("memory", packed=True)["bytes"]) for node in nodes)


def _wrong(hosts: Sequence[Sequence[Process]], ids: Sequence[list[str]]) -> int:
    """Sessions that two workers of different hosts read differently."""
    wrong = 0
    for known in ids:
        first, *others = [workers[-1].do("digests", ids=known)["digests"] for workers in hosts]
        wrong += sum(1 for one, *rest in zip(first, *others, strict=True) if not one or any(other != one for other in rest))
    return wrong
