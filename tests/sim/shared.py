"""The scene `maps`: a dictionary that all nodes share, under every fault that kills nobody.

As nobody dies, everything that was done counts, on whichever side of whatever broke: counters are exact, a set has what was added and
not removed, a plain entry is the last write of one of the nodes, and all nodes read the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from caterwaul.managers.errors import SessionUnknown
from caterwaul.managers.maps import MapEntry
from caterwaul.managers.merging_types import Counter as SharedCounter
from caterwaul.managers.merging_types import MergingSet
from caterwaul.managers.session import Session

from .faults import Injector, draw
from .node import SimCluster, SimNode
from .world import World

__all__ = ["SETTINGS", "maps"]

SETTINGS: dict[str, Any] = {"membership": {"drop_time_s": 1.5, "heartbeat_interval_s": 0.3}, "channel": {"reconnect_max_s": 1.0}}
_NODES = 5
_KEYS = 12  # of each kind
_PAUSE_S = 0.02
_UNTIL = 25.0
_AGREE_WITHIN_S = 10.0


class _Users:
    """Change entries on all nodes, and keep what must come of it."""

    def __init__(self, world: World, cluster: SimCluster) -> None:
        self._world, self._cluster = world, cluster
        self._rng = world.rng("users")
        self._number = 0
        self._running = True
        self.hits: Counter[str] = Counter()  #: by key, what was added
        self.tags: dict[str, set[str]] = {}  #: by key, what was added and not removed
        self.last: dict[str, dict[int, str | None]] = {}  #: by key and node, what it wrote last; None: removed
        world.queue.at(world.now, self._next, None)

    def stop(self) -> None:
        self._running = False

    def _next(self, _: None) -> None:
        if not self._running:
            return
        self._world.queue.at(self._world.now + self._rng.uniform(0.5, 1.5) * _PAUSE_S, self._next, None)
        number, which = self._rng.randrange(_NODES), self._rng.randrange(_KEYS)
        change = self._rng.choice((self._count, self._tag, self._set))
        node = self._cluster.nodes[number]
        if "shared" in node.maps and not node.reactor.paused:
            change(node, number, f"{which}")

    def _in(self, node: SimNode, key: str, change: Callable[[MapEntry], None]) -> None:
        """What `ReplicatedMap.entry` does, but that a request's thread waits there where others have to be asked, and here are no threads."""
        shared = node.maps["shared"]
        bucket_id = shared._id_of(key)
        manager = shared._manager

        def act(session: Session) -> None:
            if session.new and not session.unknown:
                session.adopt(bucket_id)
            try:
                change(MapEntry(session, key))
                manager.commit(session, touch=False)
                self._world.counters["operations"] += 1
            except SessionUnknown:
                self._world.counters["refused"] += 1
            finally:
                manager.release(session)

        session = manager.open_local(bucket_id)
        if session is not None:
            act(session)
        else:
            assert node.channel is not None
            node.channel.wake(lambda: manager.open_deferred(bucket_id).addCallback(act) and None)

    def _count(self, node: SimNode, _: int, which: str) -> None:
        key = f"hits {which}"

        def change(entry: MapEntry) -> None:
            if entry.value is None:
                entry.value = SharedCounter()
            entry.value.add(1)
            self.hits[key] += 1

        self._in(node, key, change)

    def _tag(self, node: SimNode, _: int, which: str) -> None:
        key = f"tags {which}"
        self._number += 1
        added = f"{self._number}"

        def change(entry: MapEntry) -> None:
            if entry.value is None:
                entry.value = MergingSet()
            tags = self.tags.setdefault(key, set())
            if len(entry.value) > 3:
                removed = self._rng.choice(sorted(entry.value))
                entry.value.discard(removed)
                tags.discard(removed)
            entry.value.add(added)
            tags.add(added)

        self._in(node, key, change)

    def _set(self, node: SimNode, number: int, which: str) -> None:
        key = f"plain {which}"
        self._number += 1
        token = f"{self._number}" if self._rng.random() < 0.9 else None

        def change(entry: MapEntry) -> None:
            if token is None:
                entry.remove()
            else:
                entry.value = token
            self.last.setdefault(key, {})[number] = token

        self._in(node, key, change)

    def wrong(self, found: dict[str, Any]) -> str:
        """What is not as it must be in what a node reads, in one line; empty: all is right."""
        for key, hits in sorted(self.hits.items()):
            if found.get(key) != hits:
                return f"{key} is {found.get(key)!r}, and {hits} were counted"
        for key, tags in sorted(self.tags.items()):
            if set(found.get(key, ())) != tags:
                return f"{key} is {sorted(found.get(key, ()))}, and should be {sorted(tags)}"
        for key, last in sorted(self.last.items()):
            if found.get(key) not in last.values():
                return f"{key} is {found.get(key)!r}, and the nodes wrote last {last}"
        return ""


def _read(world: World, node: SimNode) -> dict[str, Any]:
    """All entries, as this node gives them."""
    shared, found, waiting = node.maps["shared"], dict[str, Any](), set[str]()

    def take(session: Session, bucket_id: str) -> None:
        waiting.discard(bucket_id)
        if not session.unknown:
            found.update({key: _plain(value) for key, value in session.items()})
        shared._manager.release(session)

    for bucket_id in shared._ids:
        waiting.add(bucket_id)
        shared._manager.open_deferred(bucket_id).addCallback(take, bucket_id)
    world.run_until_true(lambda: not waiting, 2.0, 0.01)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, SharedCounter):
        return value.value
    return frozenset(value) if isinstance(value, MergingSet) else value


def maps(seed: int, manager: str) -> Counter[str]:
    """A map that all nodes hold (`delta`), or some by key (any other type)."""
    kind = "replicated" if manager == "delta" else "partitioned"
    with World(seed) as world:
        cluster = SimCluster(world, _NODES, maps={"shared": {"type": kind, "buckets": 8, "backups": 1}}, **SETTINGS)
        world.run_until_true(cluster.is_ready, 10.0)
        users = _Users(world, cluster)
        faults = [fault for fault in draw(world.rng("faults"), _NODES, world.now, _UNTIL, 1.5) if not fault.kind.startswith("crash")]
        injector = Injector(world, cluster, faults, down_max=0)
        world.run_until(_UNTIL)
        injector.heal()
        world.run_for(1.0)
        users.stop()
        healed = world.now
        world.run_until_true(cluster.is_ready, _AGREE_WITHIN_S)
        while True:
            found = [_read(world, node) for _, node in sorted(cluster.nodes.items())]
            wrong = next((f"n{number}: {what}" for number, what in enumerate(map(users.wrong, found)) if what), "")
            if not wrong and all(one == found[0] for one in found):
                world.counters["ms_to_agree"] += int((world.now - healed) * 1000)
                return world.counters
            if world.now > healed + _AGREE_WITHIN_S:
                world.fail(wrong or f"nodes read different entries: {_first_difference(found)}")
            world.run_for(0.5)


def _first_difference(found: list[dict[str, Any]]) -> str:
    key = next(key for key in sorted(set().union(*found)) if len({repr(one.get(key)) for one in found}) > 1)
    return f"{key} is " + ", ".join(repr(one.get(key)) for one in found)
