"""What a store costs, and what it gives: behind a cluster of two nodes, on this machine.

behind-file, behind-sqlite     a commit with write-behind to such a store, and without one, by turns: CPU of its thread, and what it takes on the clock. The latter has in
                               it what the store's threads do at the same time in the same process, and on the same processors
restart-file, restart-sqlite   both nodes are killed and others started: until all sessions are in memory, while requests for them are served,
                               which come from when a node says that it is ready; what is asked before that is counted apart
persistent-file, ...           whole requests, reading and writing: sessions in such a store and nowhere else, and a DeltaManager, by turns
passivated                     ten times as many sessions as may be in memory: what the process takes
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .processes import Group, MeasureError, Process

__all__ = ["KINDS", "behind", "passivated", "persistent", "restarts"]

Repetition = dict[str, float]
KINDS = ("file", "sqlite")
_ASKED = 2000  # sessions that requests ask for while the others are loaded
_SERVED_MS, _SERVED_PER_S = 3000, 200.0
_PACED_PER_S = 200.0
_ACTIVE = 10  # of so many sessions one may be in memory
_SETTLE_S = 300.0


@contextmanager
def _url(kind: str) -> Iterator[str]:
    directory = Path(tempfile.mkdtemp(prefix="caterwaul-bench-"))
    try:
        yield f"file://{directory}/store" if kind == "file" else f"sqlite:///{directory}/sessions.db"
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def behind(kind: str, sessions: int, attributes: int, size: int, update: Callable[..., Repetition], ms: int, repetitions: int) -> list[Repetition]:
    """Commits with a store behind them and without: two clusters, by turns, of which the first is with a store in every other repetition.

    As fast as they go, and at a steady rate, where each commit finds a processor that has forgotten it. `update(group, ms=, rate=)` commits. A turn ends when the store has
    everything, so that no save falls into the other's.
    """
    found: list[Repetition] = []
    with _url(kind) as url, Group(store={"url": url}) as with_store, Group() as plain:
        turns = [("with", with_store.grow(2)), ("without", plain.grow(2))]
        for _, group in turns:
            group.writer.do("create", sessions=sessions, attributes=attributes, size=size)
        for number in range(1 + repetitions):  # the first one warms up
            figures: Repetition = {"wrong": 0.0}
            for pace, rate in (("steady", 0.0), ("paced", _PACED_PER_S)):
                for name, group in turns[:: 1 if number % 2 else -1]:
                    _stored(with_store.writer)
                    done = update(group, ms=ms, rate=rate)
                    figures["wrong"] += done["wrong"]
                    figures |= {f"{pace}_{about}_{name}": done[f"commit_{about}"] for about in ("cpu_p50_us", "cpu_p99_us", "p50_us", "p99_us")}
                figures |= {f"{pace}_{about}_more": figures[f"{pace}_{about}_with"] - figures[f"{pace}_{about}_without"] for about in ("cpu_p50_us", "p50_us")}
            if number:
                found.append(figures)
    return found


def persistent(kind: str, sessions: int, size: int, ms: int, repetitions: int) -> list[Repetition]:
    found: list[Repetition] = []
    with _url(kind) as url, Group(store={"url": url}, managers={"default": {"type": "persistent"}}) as shared, Group() as plain:
        for group in (shared.grow(2), plain.grow(2)):
            group.writer.do("create", sessions=sessions, attributes=1, size=size)
        _stored(shared.writer)
        for _ in range(repetitions):
            figures: Repetition = {"wrong": 0.0}
            for writes in (False, True):
                for threads in (1, 8):
                    for name, group, acks in (("shared", shared, "none"), ("delta", plain, "all")):
                        done = group.writer.do("requests", threads=threads, ms=ms, size=size, writes=writes, acks=acks)
                        about = f"{name}_{'write' if writes else 'read'}_{threads}t"
                        figures |= {f"{about}_per_s": done["per_s"], f"{about}_p50_us": done["p50_us"], f"{about}_p99_us": done["p99_us"]}
                        figures["wrong"] += done["wrong"]
            found.append(figures)
    return found


def restarts(kind: str, sessions: int, size: int, repetitions: int) -> list[Repetition]:
    found: list[Repetition] = []
    with _url(kind) as url, Group(store={"url": url}) as group:
        group.grow(2)
        began = time.monotonic()
        group.writer.do("create", sessions=sessions, attributes=1, size=size)
        for node in group.nodes:
            _stored(node)
        stored_s = time.monotonic() - began
        ids = group.writer.do("ids")["ids"]
        some = random.Random(20).sample(ids, min(_ASKED, len(ids)))
        digests = group.writer.do("digests", ids=some)["digests"]
        for _ in range(repetitions):
            for node in list(group.nodes):
                node.kill()
                group.drop(node)
            nodes = [group.add(), group.add()]
            for node in nodes:
                node.tell("serve", ids=some, ms=_SERVED_MS, rate=_SERVED_PER_S, write_every=10**9, size=size, seed=1)
            served = [node.answer() for node in nodes]
            held = [node.do("hold", sessions=sessions) for node in nodes]
            found.append({
                "from_spawn_s": (max(one["held_ns"] for one in held) - min(node.spawned_ns for node in nodes)) / 1e9,
                "from_start_s": max(one["held_ns"] - one["started_ns"] for one in held) / 1e9, "sessions": sessions, "stored_per_s": sessions / stored_s,
                "read_p50_us": max(one["read_p50_us"] for one in served), "read_p99_us": max(one["read_p99_us"] for one in served),
                "missing": sum(one["missing"] for one in served), "early": sum(one["early"] for one in served),
                "early_missing": sum(one["early_missing"] for one in served), "wrong": sum(a != b for node in nodes for a, b in zip(node.do("digests", ids=some)["digests"], digests, strict=True)),
            })  # fmt: skip
    return found


def passivated(sessions: int, size: int) -> Repetition:
    most = max(1, sessions // _ACTIVE)
    figures: dict[str, float] = {}
    for name, more in (("all", {}), ("active", {"max_active": most})):
        with _url("file") as url, Group(store={"url": url, "load": False}, managers={"default": {"pack_after_s": 0.5, **more}}) as group:
            node = group.add()
            node.do("meet", members=1)
            before = node.do("memory")["bytes"]
            node.do("create", sessions=sessions, attributes=1, size=size)
            _stored(node)
            _until(lambda: not more or _counts(node)["sessions"] <= most, "passivated")  # noqa: B023
            figures[f"{name}_mb"] = (node.do("memory", packed=True)["bytes"] - before) / 1e6
            some = random.Random(20).sample(node.do("ids")["ids"], min(_ASKED, sessions))
            visited = node.do("visit", ids=some)
            figures[f"{name}_missing"] = visited["missing"]
            figures[f"{name}_p50_us"], figures[f"{name}_p99_us"] = visited["p50_us"], visited["p99_us"]
    return {**figures, "sessions": sessions, "max_active": most}


def _counts(node: Process) -> dict[str, Any]:
    counts: dict[str, Any] = node.do("statistics")["managers"]["default"]
    return counts


def _stored(node: Process) -> None:
    _until(lambda: _counts(node)["store_waiting"] == 0, "stored")


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _SETTLE_S
    while not condition():
        if time.monotonic() > deadline:
            raise MeasureError(f"not {what} after {_SETTLE_S:g} s")
        time.sleep(0.05)
