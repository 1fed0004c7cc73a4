"""S5, as a look from outside: what every node holds, against what placement says it should hold.

Where every member holds everything, all copies are equal. Where some do: each session has one head, known to its keepers and
holders; its record is the same on every holder that the rank names; nobody else holds anything of it, but for near caches,
whose fresh copies are the same too; its primary is there. A tombstone may be anywhere, and nobody has a live copy beside it. Of a session that all its holders took with them
a head or some commits may be left, while any of those who would be asked calls it unknown.
"""

from __future__ import annotations

from typing import Any

from caterwaul.managers.base import SessionManager
from caterwaul.managers.entry import is_whole
from caterwaul.managers.heads import LIVE
from caterwaul.managers.placement import partition_of
from caterwaul.managers.replica import Entry

from .node import SimCluster, SimNode

__all__ = ["difference"]

_ENDS_MS = 1500  # holders ask about what is left once a second
_Copy = tuple[int, Any, bytes | None]  # state, version and primary, body


def difference(cluster: SimCluster, manager: str = "default") -> str:
    """What is wrong with the sessions of this manager, in one line; empty when all is as it should be."""
    nodes = [node for _, node in sorted(cluster.nodes.items())]
    held = {
        node.reactor.name: {key: (entry, _copy(node.engines[manager], entry)) for key, entry in node.engines[manager]._core.replica.entries()} for node in nodes
    }
    everywhere = all(node.engines[manager]._core.placement.everywhere for node in nodes)
    for key in sorted({key for copies in held.values() for key in copies}):
        copies = {name: found[key][1] for name, found in held.items() if key in found}
        entries = {name: found[key][0] for name, found in held.items() if key in found}
        if everywhere:
            wrong = (len(copies) != len(nodes) or len(set(copies.values())) != 1) and not _are_parts_in_doubt(nodes, manager, copies, entries)
        else:
            wrong = _is_misplaced(nodes, manager, key, copies, entries)
        if wrong:
            return f"{key.hex()[:8]}: " + ", ".join(f"{node.reactor.name} has {_short(copies.get(node.reactor.name))}" for node in nodes)
    return ""


def _are_parts_in_doubt(nodes: list[SimNode], manager: str, copies: dict[str, _Copy], entries: dict[str, Entry]) -> bool:
    """All who had the whole died, and who has heard some commits of it does not know yet that there is no more."""
    if any(copy[0] != LIVE or is_whole(entries[name]) for name, copy in copies.items()):
        return False
    return not _are_sure(nodes, manager)


def _are_sure(nodes: list[SimNode], manager: str) -> bool:
    """Whether all would call a session gone that nobody has, and had time to: it takes their answers to end one of which too little is left."""
    engines = [node.engines[manager] for node in nodes]
    return all(engine._core.sure(engine._channel.now_ms() - _ENDS_MS) for engine in engines)


def _is_misplaced(nodes: list[SimNode], manager: str, key: bytes, copies: dict[str, _Copy], entries: dict[str, Entry]) -> bool:
    fresh = {node.reactor.name for node in nodes if node.engines[manager]._core.moving.near.is_fresh(key)}
    weighty = [node for node in nodes if node.me.weight > 0]
    placement = weighty[0].engines[manager]._core.placement
    count = len(weighty) if placement.everywhere else min(1 + weighty[0].engines[manager]._core.settings.backups, len(weighty))
    names = {node.me.uid: node.reactor.name for node in nodes}
    keepers = [names.get(uid, "?") for uid in placement.keepers(partition_of(key))]
    if any(copy[0] != LIVE for copy in copies.values()):
        told = {node.reactor.name for node in weighty} if placement.everywhere else set(keepers)
        return any(copy[0] == LIVE for copy in copies.values()) or not told <= set(copies)
    heads = {copy[:2] for copy in copies.values()}
    if len(heads) != 1:
        return True
    if not any(copy[2] is not None and is_whole(entries[name]) for name, copy in copies.items()):
        return _are_sure(nodes, manager)
    named = next(iter(entries.values())).primary
    holders = [names.get(uid, "?") for uid in placement.holders(key, named)]
    if len(set(holders)) != count or not {*keepers, *holders} <= {node.reactor.name for node in weighty}:
        return True
    bodies = {copies[name][2] for name in holders if name in copies}
    required = {*keepers, *holders}
    return (
        not required <= set(copies) or not set(copies) - required <= fresh or any(copies[name][2] not in bodies for name in fresh & set(copies)) or len(bodies) != 1 or None in bodies
        or any(copies[name][2] is not None for name in copies if name not in (*holders, *fresh))
        or (placement.primary(key, named) != named and placement.moves_primary and not placement.everywhere)
    )  # fmt: skip


def _copy(manager: SessionManager, entry: Entry) -> _Copy:
    head = entry.head
    return (head.state, (head.version, head.primary), manager._core.replica.body_of(entry)) if head is not None else (LIVE, None, None)


def _short(copy: _Copy | None) -> str:
    if copy is None:
        return "nothing"
    state, head, body = copy
    return f"(state {state}, head {head and (head[0][0], head[0][1].hex()[:4], head[1].hex()[:4])}, body {body and body.hex()[-40:]})"
