"""Faults: a schedule drawn from the seed, and the hand that applies it.

The safety phase is cut into windows. Swarm testing: which classes are on is drawn anew for each window (one class that
never rests would hide what another one shows), and every class is dealt to at least one window, so no seed leaves one
out. `draw` is a pure function of its random source; `Injector` applies a schedule to a cluster and, at the end of the phase,
ends all that is still going on. A fault that cannot be applied to its node (it is down) goes to
the next one, one that can be applied to none or had no effect is tried again later; what was applied is
counted as ``fault:KIND``, and `missing` names the classes that had no effect: such a run proves nothing and is void.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from random import Random
from typing import Protocol

from .network import Host, Path
from .reactor import SimReactor
from .world import World

__all__ = ["KINDS", "Fault", "Injector", "Target", "draw", "missing"]

#: Each class of faults, and the counter that shows that it did something.
KINDS = {
    "datagram_loss": "datagrams_lost",
    "datagram_delay": "datagrams_delayed",
    "datagram_duplicate": "datagrams_duplicated",
    "datagram_reorder": "datagrams_reordered",
    "datagram_corrupt": "datagrams_corrupted",
    "deaf": "datagrams_unheard",
    "mute": "datagrams_muted",
    "stream_clog": "streams_clogged",
    "stream_cut": "streams_cut",
    "stream_one_way": "streams_holed",
    "stream_black_hole": "streams_holed",
    "partition": "datagrams_cut",
    "partition_one_way": "datagrams_cut",
    "swizzle_clog": "streams_clogged",
    "crash_process": "crashes",
    "crash_host": "crashes",
    "pause_short": "pauses",
    "pause_long": "pauses",
    "clock_skew": "clocks_skewed",
    "clock_step": "clocks_stepped",
}
_WEATHER = {
    "datagram_loss": "loss",
    "datagram_delay": "delay_s",
    "datagram_duplicate": "duplicate",
    "datagram_reorder": "reorder",
    "datagram_corrupt": "corrupt",
}
_SHORTEST = {"pause_long": 1.2, "deaf": 0.5, "mute": 0.5, "partition": 0.3, "partition_one_way": 0.3}  # drop times; others may be a moment
_LONGEST = {"pause_short": 0.6, "pause_long": 3.0, "deaf": 4.0, "mute": 4.0, "partition": 3.5, "partition_one_way": 3.5}
_EXTRA_RATE = 0.2  # how often a class is on in a window to which it was not dealt
_POSTPONE_S = 0.5


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """From `at` to `until` (world seconds). `nodes`: whom it befalls (for ways: from the first to the second; for partitions: one side)."""

    at: float
    until: float
    kind: str
    nodes: tuple[int, ...] = ()
    amount: float = 0.0


class Target(Protocol):
    """The cluster to be harmed: nodes 0 to `size` - 1, each alone on its host."""

    size: int

    def host(self, node: int) -> Host: ...

    def reactor(self, node: int) -> SimReactor | None:
        """The node's present life; None while it is down."""

    def crash(self, node: int, whole_host: bool) -> None:
        """Kill it. With `whole_host` its machine falls silent."""

    def start(self, node: int) -> None:
        """A new life on the same address, the machine up."""


def draw(rng: Random, size: int, begin: float, end: float, drop_time_s: float, windows: int = 4) -> list[Fault]:
    """A schedule for `size` nodes, in order. Every fault ends by `end`."""
    hands: list[list[str]] = [[] for _ in range(windows)]
    kinds = list(KINDS)
    rng.shuffle(kinds)
    for index, kind in enumerate(kinds):
        hands[index % windows].append(kind)
    for hand in hands:
        hand.extend(kind for kind in KINDS if kind not in hand and rng.random() < _EXTRA_RATE)
    width = (end - begin) / windows
    faults: list[Fault] = []
    for number, hand in enumerate(hands):
        for kind in hand:
            for _ in range(rng.choice((1, 1, 2, 3))):
                at = begin + number * width + rng.random() * width
                faults.extend(_drawn(rng, kind, size, at, begin, end, drop_time_s))
    return sorted(faults)


def _drawn(rng: Random, kind: str, size: int, at: float, begin: float, end: float, drop_time_s: float) -> Iterator[Fault]:
    longest = _LONGEST.get(kind, 2.5) * drop_time_s
    shortest = _SHORTEST.get(kind, 1.0 if kind in _WEATHER else 0.05) * drop_time_s
    lasts = min(rng.uniform(shortest, longest), end - begin)
    at = max(begin, min(at, end - lasts))
    until = at + lasts
    if kind == "swizzle_clog":
        struck = rng.sample(range(size), rng.randrange(2, size + 1))
        ends = [rng.uniform(at + lasts / 2, until) for _ in struck]
        for step, (node, healed) in enumerate(zip(struck, ends, strict=True)):
            yield Fault(at + step * lasts / (2 * len(struck)), healed, kind, (node,))
        return
    if kind in _WEATHER:
        yield Fault(at, until, kind, (), {"datagram_loss": rng.uniform(0.1, 0.9), "datagram_delay": rng.uniform(0.01, 1.0)}.get(kind, rng.uniform(0.1, 0.5)))
    elif kind.startswith("partition"):
        yield Fault(at, until, kind, tuple(sorted(rng.sample(range(size), rng.randrange(1, size)))))
    elif kind.startswith("stream_"):
        yield Fault(at, until, kind, tuple(rng.sample(range(size), 2)))
    elif kind == "clock_skew":
        yield Fault(at, until, kind, (rng.randrange(size),), rng.uniform(0.9, 1.1))
    elif kind == "clock_step":
        yield Fault(at, at, kind, (rng.randrange(size),), rng.choice((-1, 1)) * rng.choice((60.0, 3600.0, 86400.0)))
    else:
        yield Fault(at, until, kind, (rng.randrange(size),))


def missing(world: World) -> list[str]:
    """The classes of faults that were not applied, or had no effect."""
    seen = world.counters
    return [kind for kind, effect in KINDS.items() if not (seen[f"fault:{kind}"] and seen[effect])] + ([] if seen["restarts"] else ["restart"])


class Injector:
    """Applies a schedule. `down_max`: nodes that may be crashed at one time."""

    def __init__(self, world: World, target: Target, faults: Sequence[Fault], down_max: int) -> None:
        self._world = world
        self._target = target
        self._down_max = down_max
        self._down: set[int] = set()
        self._weather: dict[str, list[float]] = {kind: [] for kind in _WEATHER}
        self._over = False
        for fault in faults:
            world.queue.at(fault.at, self._begin, fault)

    def heal(self) -> None:
        """The safety phase is over: nothing is wrong any more, every node is up, and the rest of the schedule is void."""
        self._over = True
        self._world.note("healed")
        self._world.network.heal()
        for node in range(self._target.size):
            reactor = self._target.reactor(node)
            if reactor is None:
                self._start(node)
            else:
                reactor.set_rate(1.0)
                if reactor.paused:
                    reactor.resume()

    # -- one fault

    def _begin(self, fault: Fault) -> None:
        if self._over:
            return
        counters, size = self._world.counters, self._target.size
        for step in range(size if len(fault.nodes) == 1 else 1):
            chosen = replace(fault, nodes=((fault.nodes[0] + step) % size,)) if step else fault
            before = counters[KINDS[fault.kind]]
            undo = self._apply(chosen)
            if undo is not None:
                counters[f"fault:{fault.kind}"] += 1
                self._world.note(f"{fault.kind} {chosen.nodes} {fault.amount:g} until {fault.until:.3f}")
                self._world.queue.at(fault.until, self._end, (undo, fault, before))
                return
        self._postpone(fault)

    def _end(self, begun: tuple[Callable[[], object], Fault, int]) -> None:
        undo, fault, before = begun
        if not self._over:
            undo()
            if self._world.counters[KINDS[fault.kind]] == before:
                self._postpone(fault)  # it met nothing that it could befall

    def _postpone(self, fault: Fault) -> None:
        self._world.counters["faults_postponed"] += 1
        later = replace(fault, at=self._world.now + _POSTPONE_S, until=self._world.now + _POSTPONE_S + fault.until - fault.at)
        self._world.queue.at(later.at, self._begin, later)

    def _apply(self, fault: Fault) -> Callable[[], object] | None:
        """Begin; what is returned ends it. None: it cannot be applied now."""
        kind = fault.kind
        if kind in _WEATHER:
            return self._worsen(kind, fault.amount)
        if kind.startswith("partition"):
            return self._part(fault)
        if kind.startswith("stream_"):
            return self._block(fault)
        if kind.startswith("crash"):
            return self._crash(fault)
        if kind in ("pause_short", "pause_long", "clock_skew", "clock_step"):
            return self._disturb(fault)
        host = self._target.host(fault.nodes[0])
        if kind == "deaf":
            host.deaf += 1
            return lambda: setattr(host, "deaf", host.deaf - 1)
        if kind == "mute":
            host.mute += 1
            return lambda: setattr(host, "mute", host.mute - 1)
        others = [node for node in range(self._target.size) if node not in fault.nodes]
        paths = [*self._ways(fault.nodes, others), *self._ways(others, fault.nodes)]  # swizzle_clog
        return _on_all(paths, Path.clog)

    def _worsen(self, kind: str, amount: float) -> Callable[[], object]:
        """Of several at one time the worst counts."""
        active = self._weather[kind]

        def end() -> None:
            active.remove(amount)
            setattr(self._world.network.weather, _WEATHER[kind], max(active, default=0.0))

        active.append(amount)
        setattr(self._world.network.weather, _WEATHER[kind], max(active))
        return end

    def _part(self, fault: Fault) -> Callable[[], object]:
        others = [node for node in range(self._target.size) if node not in fault.nodes]
        paths = self._ways(fault.nodes, others)
        if fault.kind == "partition":
            paths += self._ways(others, fault.nodes)
        open_streams, open_datagrams = _on_all(paths, Path.hole), _on_all(paths, Path.cut_datagrams)
        return lambda: (open_streams(), open_datagrams())

    def _block(self, fault: Fault) -> Callable[[], object] | None:
        one, other = fault.nodes
        if fault.kind == "stream_cut":
            pairs = [(one, other), *combinations(range(self._target.size), 2)]  # if these two have none, the next who have
            cut = any(self._world.network.reset_connections(self._target.host(a), self._target.host(b)) for a, b in pairs)
            return (lambda: None) if cut else None
        paths = self._ways([one], [other])
        if fault.kind == "stream_black_hole":
            paths += self._ways([other], [one])
        return _on_all(paths, Path.clog if fault.kind == "stream_clog" else Path.hole)

    def _crash(self, fault: Fault) -> Callable[[], object] | None:
        node = fault.nodes[0]
        if node in self._down or len(self._down) >= self._down_max:
            return None
        self._down.add(node)
        self._world.counters["crashes"] += 1
        self._target.crash(node, fault.kind == "crash_host")
        return lambda: self._start(node)

    def _start(self, node: int) -> None:
        self._down.discard(node)
        self._world.note(f"restart of {node}")
        self._world.counters["restarts"] += 1
        self._target.start(node)

    def _disturb(self, fault: Fault) -> Callable[[], object] | None:
        reactor = self._target.reactor(fault.nodes[0])
        if reactor is None:
            return None
        if fault.kind == "clock_step":
            reactor.step_wall(fault.amount)
            self._world.counters["clocks_stepped"] += 1
            return lambda: None
        if fault.kind == "clock_skew":
            reactor.set_rate(fault.amount)
            self._world.counters["clocks_skewed"] += 1
            return lambda: reactor.set_rate(1.0)
        if reactor.paused:
            return None
        self._world.counters["pauses"] += 1
        reactor.pause()
        return lambda: reactor.resume() if reactor.paused and not reactor.dead else None

    def _ways(self, sources: Sequence[int], targets: Sequence[int]) -> list[Path]:
        network, host = self._world.network, self._target.host
        return [network.path(host(source), host(target)) for source in sources for target in targets]


def _on_all(paths: list[Path], close: Callable[[Path, int], None]) -> Callable[[], object]:
    for path in paths:
        close(path, 1)

    def undo() -> None:
        for path in paths:
            close(path, -1)

    return undo
