"""What is measured, by rows. A row has a name, and a function that measures it once with a group of processes.

    flood-2r-100B-none-1t     deltas per second: two replicas, attribute of 100 bytes, acks none, one application thread
    latency-2r-100B-all       200 commits a second: from the call to visible on the slowest replica
    nodes-..., lookup-..., rebalance-...   where some members hold a session: see `spread.py`
    prefork-full, prefork-lite   workers of one host as members that hold sessions or do not: see `prefork.py`
    tls-..., sealed, forged   what security costs: see `guarded.py`
    behind-file, restart-file, passivated and others   what a store costs and gives: see `stored.py`
    store-file-save-single and others   sessions saved and loaded a second in each kind of store: see `stores.py`
    fronts-flask-read and others   what a session costs a request of a web framework: see `fronts/costs.py`
    memory, join, rejoin, detect   see `Scale`; the parts of a commit in one process are in `micro.py`

Rows of one kind that need the same cluster share it, each with its own repetitions; one repetition before the first warms it
and is thrown away. A repetition is a flat object of numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

from . import guarded, micro, prefork, spread, stored, stores
from .figures import chosen, percentile
from .fronts.costs import FRONTS, costs, works_of
from .processes import Group, Process

__all__ = ["FULL", "QUICK", "TINY", "Row", "Scale", "measure", "plan"]

Repetition = dict[str, float]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Scale:
    """How much is done. `quick` shows that everything works, and gives figures nobody should quote."""

    sessions: int  #: that floods and latencies update
    attributes: int
    flood_ms: int
    nodes_ms: int  #: writes of the rows nodes: so long that what the first ones cost after a pause counts for little in all processes together
    paced_ms: int
    held: int  #: sessions of the rows memory, join and rejoin
    losses: int  #: processes killed for the row detect
    away_s: float  #: how long the node of the row rejoin is away, at least
    requests: int  #: of each row fronts
    stored: int  #: sessions in a store


FULL = Scale(sessions=1000, attributes=10, flood_ms=2500, nodes_ms=10_000, paced_ms=5000, held=100_000, losses=10, away_s=60.0, requests=4000, stored=5000)
QUICK = Scale(sessions=1000, attributes=10, flood_ms=500, nodes_ms=500, paced_ms=1000, held=5000, losses=3, away_s=0.0, requests=500, stored=1000)
TINY = Scale(sessions=50, attributes=2, flood_ms=100, nodes_ms=100, paced_ms=100, held=200, losses=1, away_s=0.0, requests=20, stored=500)

_PACED_PER_S = 200.0
_SETTLE_S = 1.5  # after so long without anything new nothing more is coming
_HELD_BYTES = 100  # an attribute of the row memory; ten of them are 1 KB
_JOIN_BYTES = 1000  # the one attribute of the rows join and rejoin
_CHANGE_EVERY = 100  # of the row rejoin: one session in so many is changed meanwhile
_PACK_AFTER_S = 0.5


class Row(NamedTuple):
    name: str
    kind: str
    replicas: int = 1
    size: int = 0
    acks: str = "none"
    threads: int = 1
    manager: str = "delta"
    front: str = ""
    work: str = ""


def plan(selections: tuple[str, ...] = ()) -> list[Row]:
    """All rows that the selections mean, in the order they are measured."""
    rows = [Row(f"micro-{size}B", "micro", size=size) for size in (100, 1000)]
    for replicas in (1, 2, 3):
        for size in (100, 1000):
            rows += [
                Row(f"flood-{replicas}r-{size}B-{acks}-{threads}t", "flood", replicas, size, acks, threads) for acks in ("none", "all") for threads in (1, 8)
            ]
            rows += [Row(f"latency-{replicas}r-{size}B-{acks}", "latency", replicas, size, acks) for acks in ("none", "all")]
    for manager in spread.KINDS:
        for nodes in spread.NODES:
            rows += [Row(f"nodes-{manager}-{nodes}n-1000B-{acks}", "nodes", nodes - 1, 1000, acks, manager=manager) for acks in ("none", "all")]
    for manager in spread.KINDS[1:]:
        rows += [Row(f"lookup-{manager}", "lookup", 3, 100, manager=manager), Row(f"rebalance-{manager}", "rebalance", 3, 1000, manager=manager)]
        rows += [Row(f"away-{manager}", "away", 3, 1000, manager=manager)]
    rows += [Row(f"prefork-{shape}", "prefork", manager=shape) for shape in prefork.SHAPES]
    rows += [Row(f"tls-{size}B-{acks}", "tls", 1, size, acks) for size in (100, 1000) for acks in ("none", "all")]
    rows += [Row("sealed", "sealed"), Row("forged", "forged")]
    rows += [Row(f"behind-{store}", "behind", 1, 1000, front=store) for store in stored.KINDS]
    rows += [Row(f"persistent-{store}", "persistent", 1, 1000, front=store) for store in stored.KINDS]
    rows += [Row(f"restart-{store}", "restart", 1, 1000, front=store) for store in stored.KINDS] + [Row("passivated", "passivated", size=1000)]
    rows += [Row(f"store-{kind}-{work}", "store", manager=kind, work=work) for kind in stores.KINDS for work in stores.WORKS]
    rows += [Row(f"fronts-{front}-{work}", "fronts", front=front, work=work) for front in FRONTS for work in works_of(front)]
    rows += [Row("memory", "memory"), Row("join", "join"), Row("rejoin", "rejoin"), Row("detect", "detect", replicas=2)]
    return [row for row in rows if chosen(row.name, selections)]


def measure(rows: list[Row], scale: Scale, repetitions: int, tell: Tell) -> Iterator[tuple[Row, list[Repetition]]]:
    """Each row with its repetitions, as soon as it is measured. `tell` hears what is going on."""
    for (kind, replicas, size, *_), together in groupby(rows, _group):
        same = list(together)
        tell(f"{same[0].name}{f' and {len(same) - 1} more' if len(same) > 1 else ''}")
        if kind == "micro":
            yield same[0], [micro.commit_path(size, scale.flood_ms * 10) for _ in range(repetitions)]
        elif kind == "flood":
            yield from _updates(same, replicas, size, scale, repetitions)
        elif kind in ("nodes", "lookup", "rebalance", "away"):
            yield from ((row, _spread(row, scale, repetitions)) for row in same)
        elif kind == "prefork":
            yield from ((row, prefork.requests(row.manager, scale.held // 5, scale.paced_ms, repetitions)) for row in same)
        elif kind == "tls":
            yield from _encrypted(same, scale, repetitions)
        elif kind == "fronts":
            found = costs(same[0].front, [row.work for row in same], scale.requests, repetitions, tell)
            yield from ((row, found[row.work]) for row in same if row.work in found)
        elif kind == "store":
            rates = stores.rates(same[0].manager, [row.work for row in same], scale.stored, scale.flood_ms, repetitions, tell)
            yield from ((row, rates[row.work]) for row in same if row.work in rates)
        elif kind == "sealed":
            yield same[0], [guarded.sealed() for _ in range(repetitions)]
        elif kind == "forged":
            yield same[0], [guarded.forged(scale.paced_ms / 1000) for _ in range(repetitions)]
        elif kind == "behind":
            yield same[0], stored.behind(same[0].front, scale.sessions, scale.attributes, size, partial(_closely, row=same[0]), scale.flood_ms, repetitions)
        elif kind == "persistent":
            yield same[0], stored.persistent(same[0].front, scale.sessions, size, scale.flood_ms, repetitions)
        elif kind == "restart":
            yield same[0], stored.restarts(same[0].front, scale.held, size, repetitions)
        elif kind == "passivated":
            yield same[0], [stored.passivated(scale.held // 2, size) for _ in range(repetitions)]
        elif kind == "memory":
            yield same[0], [_memory(scale) for _ in range(repetitions)]
        elif kind == "join":
            yield same[0], _joins(scale, repetitions)
        elif kind == "rejoin":
            yield same[0], _rejoins(scale, repetitions)
        else:
            yield same[0], _losses(scale)


def _group(row: Row) -> tuple[str, int, int, str, str]:
    """What rows that share a cluster have in common."""
    return "flood" if row.kind == "latency" else row.kind, row.replicas, row.size, row.manager, row.front


def _spread(row: Row, scale: Scale, repetitions: int) -> list[Repetition]:
    if row.kind == "nodes":
        return spread.writes(row.manager, row.replicas + 1, row.size, row.acks, scale.sessions, scale.nodes_ms, repetitions)
    if row.kind == "lookup":
        return spread.lookups(row.manager, scale.sessions, row.size, repetitions)
    if row.kind == "away":
        return spread.rejoins(row.manager, scale.held, row.size, scale.away_s, _CHANGE_EVERY, repetitions)
    return spread.rebalances(row.manager, scale.held // 2, row.size, repetitions)


# -- updates


def _updates(rows: list[Row], replicas: int, size: int, scale: Scale, repetitions: int) -> Iterator[tuple[Row, list[Repetition]]]:
    with Group() as group:
        group.grow(replicas + 1)
        group.writer.do("create", sessions=scale.sessions, attributes=scale.attributes, size=size)
        _flood(group, Row("warm", "flood", replicas, size, "none", 8), scale.flood_ms)
        for row in rows:
            once = _flood if row.kind == "flood" else _paced
            ms = scale.flood_ms if row.kind == "flood" else scale.paced_ms
            once(group, row, min(500, ms))
            yield row, [once(group, row, ms) for _ in range(repetitions)]


def _encrypted(rows: list[Row], scale: Scale, repetitions: int) -> Iterator[tuple[Row, list[Repetition]]]:
    """Floods with TLS and in the clear by turns, so that what the machine does meanwhile befalls both."""
    with guarded.tls_pair() as (encrypted, clear):
        for group in (encrypted, clear):
            group.writer.do("create", sessions=scale.sessions, attributes=scale.attributes, size=rows[0].size)
            _flood(group, Row("warm", "flood", 1, rows[0].size, "none", 8), scale.flood_ms)
        for row in rows:
            found: list[Repetition] = []
            for _ in range(repetitions):
                one, other = (_flood(group, row, scale.flood_ms) for group in (encrypted, clear))
                found.append({
                    "updates_per_s": one["updates_per_s"], "clear_per_s": other["updates_per_s"], "ratio": other["updates_per_s"] / one["updates_per_s"],
                    "call_p50_us": one["call_p50_us"], "clear_p50_us": other["call_p50_us"],
                    "cpu_all_us": one["cpu_writer_us"] + one["cpu_replica_us"], "clear_cpu_us": other["cpu_writer_us"] + other["cpu_replica_us"],
                    "wrong": one["wrong"] + other["wrong"], "unconfirmed": one["unconfirmed"] + other["unconfirmed"],
                })  # fmt: skip
            yield row, found


def _closely(group: Group, row: Row, ms: int, rate: float) -> Repetition:
    """Commits, and what each of them takes by itself."""
    _reset(group, each=False)
    done = group.writer.do("update", threads=1, ms=ms, size=row.size, acks=row.acks, rate=rate, closely=True)
    _drain(group, int(done["sent"]))
    return {**done, "wrong": _wrong(group)}


def _flood(group: Group, row: Row, ms: int) -> Repetition:
    """Commits as fast as they go, and the time until the last replica has applied the last of them."""
    _reset(group, each=False)
    slept = _slept(group)
    used = _cpu(group)
    done = group.writer.do("update", threads=row.threads, ms=ms, size=row.size, acks=row.acks)
    sent = int(done["sent"])
    states = _drain(group, sent)
    cpu = [now - before for now, before in zip(_cpu(group), used, strict=True)]
    took_s = (max(state["last_ns"] for state in states) - done["start_ns"]) / 1e9
    fewest = min(int(state["deltas"]) for state in states)
    return {
        "updates_per_s": sent / took_s, "sent": sent, "seconds": took_s, "call_p50_us": done["call_p50_us"], "call_p99_us": done["call_p99_us"],
        "cpu_writer_us": cpu[0] / sent * 1e6, "cpu_replica_us": sum(cpu[1:]) / len(cpu[1:]) / sent * 1e6, "cpu_threads_us": done["threads_cpu_s"] / sent * 1e6,
        "deltas_a_message": sum(s["deltas"] for s in states) / max(1, sum(s["messages"] for s in states)),
        "by_record": sent - fewest, "unconfirmed": done["unconfirmed"], "wrong": _wrong(group), "slept": _slept(group) - slept,
    }  # fmt: skip


def _paced(group: Group, row: Row, ms: int) -> Repetition:
    """At a steady rate: how long until an update can be read on the slowest replica."""
    _reset(group, each=True)
    used = _cpu(group)
    done = group.writer.do("update", threads=1, ms=ms, size=row.size, acks=row.acks, rate=_PACED_PER_S)
    _drain(group, int(done["sent"]))
    cpu = [now - before for now, before in zip(_cpu(group), used, strict=True)]
    slowest: dict[int, int] = {}
    for node in group.replicas:
        for began, seen in node.do("seen")["seen"]:
            slowest[began] = max(seen - began, slowest.get(began, 0))
    latencies = sorted(slowest.values())
    sent = done["sent"]
    return {
        "p50_us": percentile(latencies, 0.5) / 1e3, "p99_us": percentile(latencies, 0.99) / 1e3, "call_p50_us": done["call_p50_us"],
        "call_p99_us": done["call_p99_us"], "cpu_all_us": sum(cpu) / sent * 1e6, "sent": sent, "unseen": sent - len(latencies),
        "unconfirmed": done["unconfirmed"], "wrong": _wrong(group),
    }  # fmt: skip


def _reset(group: Group, each: bool) -> None:
    for node in group.nodes:
        node.do("reset", each=each)


def _cpu(group: Group) -> list[float]:
    return [node.do("cpu")["cpu_s"] for node in group.nodes]


def _slept(group: Group) -> int:
    """How often a node's reactor was kept from running for so long that the node takes itself to have been paused."""
    return sum(int(node.do("statistics")["membership"]["slept"]) for node in group.nodes)


def _drain(group: Group, sent: int) -> list[dict[str, Any]]:
    """Wait until every replica has applied `sent` deltas, or (some travelled as whole records) nothing more comes."""
    moved, before = time.monotonic(), None
    while True:
        states = [node.do("state") for node in group.replicas]
        have = [(state["deltas"], state["records"]) for state in states]
        if min(deltas for deltas, _ in have) >= sent or time.monotonic() - moved > _SETTLE_S:
            return states
        if have != before:
            moved, before = time.monotonic(), have
        time.sleep(0.02)


def _wrong(group: Group, every: int = 1) -> int:
    """Sessions that any replica gives to an application otherwise than the writer."""
    ids = group.writer.do("ids", every=every)["ids"]
    for node in group.nodes:
        node.tell("digests", ids=ids)
    answers = [node.answer()["digests"] for node in group.nodes]
    return sum(1 for copies in zip(*answers, strict=True) if "" in copies or len(set(copies)) > 1)


# -- many sessions


def _memory(scale: Scale) -> Repetition:
    with Group(managers={"default": {"pack_after_s": _PACK_AFTER_S}}) as group:
        group.grow(2)
        before = [node.do("memory")["bytes"] for node in group.nodes]
        group.writer.do("create", sessions=scale.held, attributes=10, size=_HELD_BYTES)
        group.replicas[0].do("hold", sessions=scale.held)
        after = [node.do("memory", packed=True)["bytes"] for node in group.nodes]
        each = [(now - then) / scale.held for now, then in zip(after, before, strict=True)]
        counted = group.replicas[0].do("statistics")["managers"]["default"]["memory_bytes"] / scale.held
        return {"primary_bytes": each[0], "replica_bytes": each[1], "counted_bytes": counted, "sessions": scale.held, "wrong": _wrong(group, every=100)}


def _joins(scale: Scale, repetitions: int) -> list[Repetition]:
    """One donor, and one joiner after the other."""
    found: list[Repetition] = []
    with Group(managers={"default": {"pack_after_s": _PACK_AFTER_S}}) as group:
        donor = group.add()
        donor.do("meet", members=1)
        donor.do("create", sessions=scale.held, attributes=1, size=_JOIN_BYTES)
        donor.do("memory", packed=True)
        for _ in range(repetitions):
            used = donor.do("cpu")["cpu_s"]
            joiner = group.add()
            held = joiner.do("hold", sessions=scale.held)
            cpu = [donor.do("cpu")["cpu_s"] - used, joiner.do("cpu")["cpu_s"]]
            memory = joiner.do("memory")["bytes"]
            found.append({
                "from_spawn_s": (held["held_ns"] - joiner.spawned_ns) / 1e9, "from_start_s": (held["held_ns"] - held["started_ns"]) / 1e9,
                "from_contact_s": (held["held_ns"] - held["first_contact_ns"]) / 1e9, "cpu_donor_s": cpu[0], "cpu_joiner_s": cpu[1],
                "joiner_rss_mb": memory / 1e6, "sessions": scale.held, "wrong": _wrong(group, every=100),
            })  # fmt: skip
            group.drop(joiner)
            donor.do("meet", members=1)
    return found


def _rejoins(scale: Scale, repetitions: int) -> list[Repetition]:
    """Two nodes hold all sessions. One is stopped (SIGSTOP) until the other has dropped it; meanwhile one session in a hundred changes; then it goes on."""
    found: list[Repetition] = []
    with Group(managers={"default": {"pack_after_s": _PACK_AFTER_S}}) as group:
        group.grow(2)
        writer, away = group.nodes
        writer.do("create", sessions=scale.held, attributes=1, size=_JOIN_BYTES)
        away.do("hold", sessions=scale.held)
        for _ in range(repetitions):
            for node in group.nodes:
                node.do("memory", packed=True)
            before = _moved(away)
            stopped_ns = away.pause()
            writer.do("gone", name=away.name, since_ns=stopped_ns)
            changed = writer.do("change", every=_CHANGE_EVERY, size=_JOIN_BYTES)["changed"]
            of_writer, used = _moved(writer), _cpu_of(writer)
            time.sleep(max(0.0, scale.away_s - (time.monotonic_ns() - stopped_ns) / 1e9))
            woken_ns = away.resume()
            met = [node.do("meet", members=2) for node in (writer, away)]
            synced_ns = max(one["met_ns"] for one in met)
            now = [_moved(writer), _moved(away)]
            wire = now[0]["wire"] - of_writer["wire"]
            found.append({
                "from_wake_s": (synced_ns - woken_ns) / 1e9, "from_contact_s": (synced_ns - met[0]["last_contact_ns"]) / 1e9,
                "away_s": (woken_ns - stopped_ns) / 1e9, "wire_bytes": wire, "changed": changed, "changed_bytes": changed * _JOIN_BYTES,
                "wire_a_changed_byte": wire / (changed * _JOIN_BYTES), "partitions": sum(one["partitions"] for one in now) - of_writer["partitions"] - before["partitions"],
                "records": sum(one["records"] for one in now) - of_writer["records"] - before["records"], "cpu_writer_s": _cpu_of(writer) - used,
                "sessions": scale.held, "wrong": _wrong(group, every=_CHANGE_EVERY),
            })  # fmt: skip
    return found


def _moved(node: Process) -> dict[str, int]:
    """Totals of a node: bytes in and out on its links, records sent, and partitions that differed in the rounds it led."""
    statistics = node.do("statistics")
    channel, manager = statistics["channel"], statistics["managers"]["default"]
    return {
        "wire": channel.get("bytes_in", 0) + channel.get("bytes_out", 0), "records": manager["records_sent"], "partitions": manager["partitions_differing"],
    }  # fmt: skip


def _cpu_of(node: Process) -> float:
    used: float = node.do("cpu")["cpu_s"]
    return used


def _losses(scale: Scale) -> list[Repetition]:
    """Kill one of three idle nodes, and see when each of the others has dropped it."""
    found: list[Repetition] = []
    with Group() as group:
        for _ in range(scale.losses):
            group.grow(3)
            killed = group.nodes[-1]
            at = killed.kill()
            group.drop(killed)
            seen = [_gone(node, killed) for node in group.nodes]
            found.append({"first_ms": (min(seen) - at) / 1e6, "last_ms": (max(seen) - at) / 1e6})
    return found


def _gone(node: Process, killed: Process) -> int:
    at: int = node.do("gone", name=killed.name)["gone_ns"]
    return at
