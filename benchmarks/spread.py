"""Sessions spread over members: what a write, a look-up and a joiner cost when not every member holds everything.

    nodes-backup-8n-1000B-none   one of eight nodes writes as fast as it goes: CPU of all nodes for each write
    lookup-partitioned           a node opens sessions that others hold: the first time, and again
    rebalance-backup             a fourth node joins three: bytes that move, against a fair share of all

The rows *nodes* of type `delta` stand beside the others for comparison.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from .processes import Group, Process

__all__ = ["BACKUPS", "KINDS", "NODES", "lookups", "rebalances", "rejoins", "writes"]

Repetition = dict[str, float]

KINDS = ("delta", "backup", "partitioned")
NODES = (2, 3, 4, 8)
BACKUPS = 1
_SETTLE_S = 60.0
_LOOK_S = 0.02


def _settings(kind: str, **more: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {"type": kind, **more}
    if kind != "delta":
        chosen["backups"] = BACKUPS
    return {"default": chosen}


def writes(kind: str, nodes: int, size: int, acks: str, sessions: int, ms: int, repetitions: int) -> list[Repetition]:
    """Commits as fast as they go, by one thread of one node, until all who hold the sessions have confirmed the last of them."""
    with Group(managers=_settings(kind)) as group:
        group.grow(nodes)
        group.writer.do("create", sessions=sessions, attributes=10, size=size)
        _write(group, kind, size, acks, min(500, ms))
        return [_write(group, kind, size, acks, ms) for _ in range(repetitions)]


def _write(group: Group, kind: str, size: int, acks: str, ms: int) -> Repetition:
    for node in group.nodes:
        node.do("reset")
    used = [_cpu(node) for node in group.nodes]
    done = group.writer.do("update", threads=1, ms=ms, size=size, acks=acks)
    _confirmed(group.writer)
    sent = done["sent"]
    last_ns = max(node.do("state")["last_ns"] for node in group.nodes[1:])
    cpu = [_cpu(node) - before for node, before in zip(group.nodes, used, strict=True)]
    return {
        "updates_per_s": sent / ((last_ns - done["start_ns"]) / 1e9), "call_p50_us": done["call_p50_us"], "call_p99_us": done["call_p99_us"],
        "cpu_writer_us": cpu[0] / sent * 1e6, "cpu_all_us": sum(cpu) / sent * 1e6, "unconfirmed": done["unconfirmed"], "wrong": _misplaced(group, kind),
    }  # fmt: skip


def _cpu(node: Process) -> float:
    used: float = node.do("cpu")["cpu_s"]
    return used


def _confirmed(node: Process) -> None:
    """Wait until nothing that this node has sent is unconfirmed: a frame is confirmed when it was applied."""
    end = time.monotonic() + _SETTLE_S
    while node.do("statistics")["channel"]["backlog_bytes"] and time.monotonic() < end:
        time.sleep(_LOOK_S)


def _misplaced(group: Group, kind: str) -> int:
    """Sessions without as many equal copies as there should be. Once what moves has had time to settle."""
    wanted = len(group.nodes) if kind == "delta" else min(len(group.nodes), BACKUPS + 1)
    keys = group.writer.do("keys")["keys"]
    end = time.monotonic() + _SETTLE_S
    while True:
        copies: dict[str, list[str]] = {key: [] for key in keys}
        for node in group.nodes:
            for key, digest in node.do("items")["items"]:
                if key in copies:
                    copies[key].append(digest)
        wrong = sum(1 for found in copies.values() if len(found) != wanted or len(set(found)) > 1)
        if not wrong or time.monotonic() > end:
            return wrong
        time.sleep(10 * _LOOK_S)


def lookups(kind: str, sessions: int, size: int, repetitions: int) -> list[Repetition]:
    """One node opens sessions that it does not hold, another one each time; and the same again, from its near cache if it has them there."""
    found: list[Repetition] = []
    with Group(managers=_settings(kind)) as group:
        group.grow(4)
        for number in range(repetitions):
            group.writer.do("create", sessions=sessions, attributes=10, size=size)
            ids = group.writer.do("ids")["ids"][-sessions:]
            reader = group.nodes[1 + number % 3]
            held = {key for key, _ in reader.do("items")["items"]}
            foreign = [one for one, key in zip(ids, group.writer.do("keys")["keys"][-sessions:], strict=True) if key not in held]
            first, again = reader.do("visit", ids=foreign), reader.do("visit", ids=foreign)
            found.append({
                "first_p50_us": first["p50_us"], "first_p99_us": first["p99_us"], "again_p50_us": again["p50_us"], "again_p99_us": again["p99_us"],
                "opened": len(foreign), "near_hits": again["near_hits"] - first["near_hits"], "missing": first["missing"] + again["missing"],
            })  # fmt: skip
    return found


def rebalances(kind: str, sessions: int, size: int, repetitions: int) -> list[Repetition]:
    """A fourth node joins three that hold `sessions`: until every session has its copies where placement wants them."""
    found: list[Repetition] = []
    with Group(managers=_settings(kind, pack_after_s=0.5)) as group:
        group.grow(3)
        for node in group.nodes:
            node.do("create", sessions=sessions // 3, attributes=1, size=size)
        for _ in range(repetitions):
            before = _sent(group.nodes)
            at = time.monotonic()
            joiner = group.add()
            joiner.do("meet", members=4)
            _settled(group.nodes)
            took = time.monotonic() - at
            moved = _sent(group.nodes) - before
            ideal = sessions * size * (1 + BACKUPS) / 4 if kind != "delta" else sessions * size
            found.append({
                "seconds": took, "moved_bytes": moved, "ideal_bytes": ideal, "moved_ideal": moved / ideal,
                "joiner_holds": len(joiner.do("items")["items"]), "sessions": sessions,
            })  # fmt: skip
            group.drop(joiner)
            for node in group.nodes:
                node.do("meet", members=3)
            _settled(group.nodes)
    return found


def rejoins(kind: str, sessions: int, size: int, away_s: float, change_every: int, repetitions: int) -> list[Repetition]:
    """One of four nodes that hold `sessions` is stopped, dropped, and goes on after a while; meanwhile some sessions change. Until all is in its place again."""
    found: list[Repetition] = []
    with Group(managers=_settings(kind, pack_after_s=0.5)) as group:
        group.grow(4)
        for node in group.nodes:
            node.do("create", sessions=sessions // 4, attributes=1, size=size)
        _settled(group.nodes)
        for _ in range(repetitions):
            *others, away = group.nodes
            held, before, of_away = len(away.do("items")["items"]), _sent(others), _sent([away])
            stopped_ns = away.pause()
            for node in others:
                node.do("gone", name=away.name, since_ns=stopped_ns)
            _settled(others)
            changed = sum(node.do("change", every=change_every, size=size)["changed"] for node in others)
            time.sleep(max(0.0, away_s - (time.monotonic_ns() - stopped_ns) / 1e9))
            of_loss = _sent(others) - before
            woken_ns = away.resume()
            for node in group.nodes:
                node.do("meet", members=4)
            took = (time.monotonic_ns() - woken_ns) / 1e9
            _settled(group.nodes)
            moved = _sent(group.nodes) - before - of_loss - of_away
            found.append({
                "in_sync_s": took, "settled_s": (time.monotonic_ns() - woken_ns) / 1e9, "away_s": (woken_ns - stopped_ns) / 1e9, "changed": changed,
                "loss_bytes": of_loss, "moved_bytes": moved, "held_bytes": held * size, "moved_held": moved / (held * size), "sessions": sessions,
                "wrong": _misplaced(group, kind),
            })  # fmt: skip
    return found


def _sent(nodes: Sequence[Process]) -> int:
    return sum(int(node.do("statistics")["managers"]["default"]["record_bytes_sent"]) for node in nodes)


def _settled(nodes: Sequence[Process]) -> None:
    """Wait until nobody parts from copies any more, or is given any, twice in a row."""
    quiet, last = 0, -1
    end = time.monotonic() + 2 * _SETTLE_S
    while quiet < 5 and time.monotonic() < end:
        statistics = [node.do("statistics")["managers"]["default"] for node in nodes]
        moved = sum(int(one["records_sent"]) for one in statistics)
        quiet = quiet + 1 if moved == last and not any(one["copies_leaving"] for one in statistics) else 0
        last = moved
        time.sleep(0.5)
