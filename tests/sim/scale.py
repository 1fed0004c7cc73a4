"""``python -m tests.sim.scale``: what a member of a large cluster has to do each second, idle and at ten writes a second of each member.

The plan past one machine. Up to `--complete` members are all simulated whole. Above that only a few, the *measured* ones, are: they see all members, have
a link with each, and get everything that all would send them. The others have links with the measured members only, and place sessions by
the view of all, so that of what they write just that share travels which the measured members would get. Both ways give the same
figures where both can be run (``--members 60 --measured 4`` and ``--complete 60``); for `delta` without comparing in the background, which
would give the others what they lack of each other.

CPU is that of the measured members' events in this process, simulated sockets (a few microseconds for each read and write) included.
Compare sizes and managers with each other; the benchmarks have what a real process needs.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import click
from twisted.internet.task import LoopingCall

from caterwaul.managers.session import Session
from caterwaul.membership.view import View, ViewChanged

from .clock import DelayedCall
from .network import Host
from .node import SimCluster, SimNode
from .reactor import SimReactor
from .world import World

__all__ = ["measure"]

_SETTLE_S, _WINDOW_S = 15.0, 30.0  # a window is one period of background comparing
_NEVER_S = 3600.0
_SESSIONS = 20  # of each member
_VALUE = b"x" * 100
_KINDS = ("delta", "backup", "partitioned")
_cpu_ns = time.thread_time_ns


class _Metered(SimReactor):
    """Counts the CPU time of what happens in this process."""

    used_ns = 0

    def charge(self, act: Callable[..., object], *arguments: Any) -> None:
        began = _cpu_ns()
        try:
            act(*arguments)
        finally:
            self.used_ns += _cpu_ns() - began

    def readable(self, sock: Any) -> None:
        self.charge(super().readable, sock)

    def _write(self, sock: Any) -> None:
        self.charge(super()._write, sock)

    def _run(self, call: DelayedCall) -> None:
        self.charge(super()._run, call)

    def _run_thread_calls(self, nothing: None, resuming: bool = False) -> None:
        self.charge(super()._run_thread_calls, nothing, resuming)


class _Other(SimNode):
    """Has links with the measured members only; its managers are given the view of all."""

    def _event(self, event: object) -> None:
        if not isinstance(event, ViewChanged):
            super()._event(event)


class _Cluster(SimCluster):
    """The first `measured` nodes are metered."""

    def __init__(self, world: World, size: int, measured: int, **settings: Any) -> None:
        self.measured = measured
        self._hosts: list[Host] = []
        super().__init__(world, size, up=0, **settings)
        world.network.audience = self._audience
        for number in range(size):
            self._hosts.append(self.host(number))
        for number in range(size):
            self.start(number)
            if number >= measured:
                self._keep_apart(self.nodes[number])
        self._core = frozenset(self._hosts[:measured])

    def _audience(self, sender: Host) -> Sequence[Host]:
        return self._hosts if sender in self._hosts[: self.measured] else self._hosts[: self.measured]

    def process(self, node: int, name: str, address: str) -> SimReactor:
        return self.world.process(name, address, _Metered if node < self.measured else SimReactor)

    def make(self, node: int, *arguments: Any) -> SimNode:
        return (SimNode if node < self.measured else _Other)(*arguments)

    def _keep_apart(self, node: SimNode) -> None:
        """It dials nobody but the measured."""
        assert node.membership is not None
        group = node.membership._group
        known = {host.address for host in self._hosts[: self.measured]}
        needless = group._is_needless
        group._is_needless = lambda address, uid: address[0] not in known or needless(address, uid)  # type: ignore[method-assign]

    def place(self) -> None:
        """The others' managers learn who there is."""
        everybody = [node.me for node in self.nodes.values()]
        for number, node in self.nodes.items():
            if number >= self.measured:
                full = View.of(2, everybody)
                node.manager.view_changed(ViewChanged(View.of(1, [node.me]), full))

    def is_complete(self) -> bool:
        return all(node.is_ready and len(node.view) == self.size for number, node in self.nodes.items() if number < self.measured)


class _Application:
    """Writes to its sessions in turn."""

    def __init__(self, node: SimNode, rate: float) -> None:
        self._node = node
        self._ids: list[str] = []
        self._turn = 0
        self._loop = LoopingCall(self._write)
        self._loop.clock = node.reactor
        self._loop.start(1.0 / rate, now=False)

    def _write(self) -> None:
        begins = len(self._ids) < _SESSIONS
        self._turn += 1
        session_id = None if begins else self._ids[self._turn % _SESSIONS]
        self._node.manager.open_deferred(session_id).addCallback(self._change)

    def _change(self, session: Session) -> None:
        manager = self._node.manager
        if not session.unknown:
            session["a"] = _VALUE + b"%d" % self._turn
            manager.commit(session)
            if len(self._ids) < _SESSIONS and session.id is not None:
                self._ids.append(session.id)
        manager.release(session)


def measure(kind: str, members: int, measured: int, rate: float = 10.0) -> dict[str, Any]:
    """Per measured member and second: frames and bytes in and out of links, datagrams in, CPU ms; idle, and at `rate` writes a second of each member."""
    manager: dict[str, Any] = {"type": kind}
    if kind == "delta" and measured < members:
        manager["reconcile_period_s"] = _NEVER_S  # the others lack what each of them writes: comparing would find that, and mend it
    settings = {"managers": {"default": manager}, "membership": {"members_max": max(256, members)}}
    with World(f"scale {kind} {members}") as world:
        world.trace.data = _unheard  # type: ignore[method-assign]  # nobody compares these runs byte by byte
        cluster = _Cluster(world, members, measured, **settings)
        met_s = world.run_until_true(cluster.is_complete, 120.0, 0.5)
        cluster.place()
        world.run_for(_SETTLE_S)
        gc.freeze()  # a thousand nodes in one process: looking for garbage among them would be charged to whoever runs then
        gc.disable()
        idle = _window(world, cluster)
        for _, node in sorted(cluster.nodes.items()):
            _Application(node, rate)
        world.run_for(_SETTLE_S)
        busy = _window(world, cluster)
        gc.enable()
        gc.unfreeze()
        return {"manager": kind, "members": members, "measured": measured, "met_s": round(met_s, 1), "idle": idle, "busy": busy}


def _unheard(*_: object) -> None:
    """Leaves no trace."""


def _window(world: World, cluster: _Cluster) -> dict[str, float]:
    before = _totals(cluster)
    world.run_for(_WINDOW_S)
    return {name: round((now - before[name]) / cluster.measured / _WINDOW_S, 3) for name, now in _totals(cluster).items()}


def _totals(cluster: _Cluster) -> dict[str, float]:
    nodes = [cluster.nodes[number] for number in range(cluster.measured)]
    channels = [node.statistics()["channel"] for node in nodes]
    return {
        "frames_out": sum(one["frames_out"] for one in channels), "frames_in": sum(one["frames_in"] for one in channels),
        "bytes_out": sum(one["bytes_out"] for one in channels), "bytes_in": sum(one["bytes_in"] for one in channels),
        "datagrams_in": sum(node.statistics()["membership"]["datagrams"] for node in nodes),
        "cpu_ms": sum(node.reactor.used_ns for node in nodes) / 1e6,  # type: ignore[attr-defined]
    }  # fmt: skip


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--members", "sizes", type=click.IntRange(2), multiple=True, default=(100, 300, 1000), show_default=True, help="Sizes of the cluster.")
@click.option("--manager", "kinds", type=click.Choice(_KINDS), multiple=True, default=_KINDS, show_default=True, help="Types of session manager.")
@click.option("--measured", type=click.IntRange(1), default=4, show_default=True, help="Members that are simulated whole.")
@click.option("--complete", type=click.IntRange(0), default=0, show_default=True, help="Up to this size all members are.")
@click.option("--delta-max", type=click.IntRange(2), default=100, show_default=True, help="No larger for delta, where everybody tells everybody everything.")
@click.option("--json", "as_json", is_flag=True, help="One JSON value on standard output.")
def main(sizes: Sequence[int], kinds: Sequence[str], measured: int, complete: int, delta_max: int, as_json: bool) -> None:
    """Simulate large clusters, and print what one member does each second: with nothing to do, and at ten writes a second of each member."""
    found = []
    if not as_json:
        click.echo(_line("manager", "members", "", *_totals_names()))
    for kind in kinds:
        for size in sizes:
            if kind == "delta" and size > delta_max:
                continue
            began = time.monotonic()
            one = measure(kind, size, size if size <= complete else min(measured, size))
            found.append(one)
            if not as_json:
                for load in ("idle", "busy"):
                    click.echo(_line(kind, size, load, *(one[load][name] for name in _totals_names())))
            click.echo(f"{kind}, {size} members: {time.monotonic() - began:.0f} s", err=True)
    if as_json:
        json.dump(found, sys.stdout, indent=1)


def _totals_names() -> list[str]:
    return ["frames_out", "frames_in", "bytes_out", "bytes_in", "datagrams_in", "cpu_ms"]


def _line(*cells: Any) -> str:
    return "".join(f"{cell if isinstance(cell, str) else f'{cell:.4g}' if isinstance(cell, float) else cell:>14}" for cell in cells)


if __name__ == "__main__":
    main()
