"""Real nodes in a network that can be broken: each a process `caterwaul node` on a host of its own, with the settings users have by default.

    with Lab(3) as lab:
        lab.start()
        with lab.network.cut(0, 1):
            until(lambda: lab.nodes[0].state("b") == "degraded")

What a node sees is asked over its admin socket, a file, which no fault of a network concerns; its web port is reached over the second
network. `Lab` ends all processes and removes all it made, however the block ends, and adds to a failure what the nodes logged.
"""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from caterwaul.cluster.admin_socket import ask
from caterwaul.cluster.security.keyring import make_secret, write_secrets
from caterwaul.membership.errors import LocalError

from ..real.processes import Command, until
from . import limits
from .network import Network, Undo

__all__ = ["PORT", "WEB_PORT", "Lab", "LabNode", "seconds_until", "security", "wait"]

PORT, WEB_PORT = 4000, 8080
_ROOT = Path(__file__).parents[2]
_READY_S = 40.0  # on a busy machine an interpreter takes long to start
_LOGGED_CHARACTERS = 3000  # of each node, in a failure


def security(folder: Path) -> dict[str, Any]:
    """Settings that let a node listen outside loopback: a secret that all nodes of this folder share."""
    path = folder / "secret"
    if not path.exists():
        write_secrets(path, [make_secret()], replace=False)
    return {"security.secret_file": str(path)}


class LabNode:
    """A node by its host: the process that runs there now, and what it says of itself."""

    def __init__(self, name: str, host: str, address: str, managed: str, folder: Path, settings: Mapping[str, Any], prefix: Sequence[str]) -> None:
        """`prefix`: a program that starts the node."""
        self.name = name
        self.managed = managed
        self.socket = folder / f"{name}.sock"
        self._file = folder / f"{name}.toml"
        mine = {
            "node.name": name, "node.host": address, "node.port": PORT, "admin.socket": str(self.socket),
            "web.listen": f"{managed}:{WEB_PORT}", "web.application": "tests.faults.app:application",
            "managers.default.acks": "one", "managers.default.cookie.name": "sid", "managers.default.cookie.secure": False,
        }  # fmt: skip
        lines = {**mine, **security(folder), **settings}
        self._file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items()))
        self._prefix = ("ip", "netns", "exec", host, "env", f"PYTHONPATH={_ROOT}", *prefix)
        self._process: Command | None = None
        self._logs: list[str] = []

    # -- the process

    @property
    def process(self) -> Command:
        assert self._process is not None, "started"
        return self._process

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.is_running

    def start(self) -> float:
        """Returns when, and before it has started."""
        self.end()
        now = time.monotonic()
        self._process = Command("node", "-v", "--config", str(self._file), prefix=self._prefix)
        return now

    def kill(self) -> float:
        """SIGKILL. Returns when."""
        return self.process.kill()

    def pause(self) -> Undo:
        """SIGSTOP; undone by SIGCONT."""
        process = self.process
        process.signal(signal.SIGSTOP)
        return Undo(lambda: process.signal(signal.SIGCONT) if process.is_running else None)

    def descriptors(self, more: int) -> Undo:
        """It may open about so many descriptors more than it has open now."""
        return limits.descriptors(self.process.pid, more)

    def quota(self, part: float) -> Undo:
        """Its share of a processor."""
        return limits.cpu_quota(self.process.pid, part)

    def address_space(self, more_bytes: int) -> Undo:
        """It is given about so much memory more, and then none."""
        return limits.address_space(self.process.pid, more_bytes)

    def memory(self, more_bytes: int) -> limits.MemoryCap:
        """It may use about so much more than it uses now."""
        return limits.MemoryCap(self.process.pid, more_bytes)

    def end(self) -> None:
        if self._process is not None:
            self._logs.append(self._process.log)
            self._process.end()
            self._process = None

    @property
    def log(self) -> str:
        """Of all its processes."""
        return "\n".join([*self._logs, self._process.log if self._process is not None else ""])

    # -- what it says

    def ask(self, path: str, timeout_s: float = 5.0) -> Any:
        return ask(self.socket, path, timeout_s=timeout_s)

    def members(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("/members")["members"]
        return found

    def names(self) -> list[str]:
        return sorted(member["name"] for member in self.members())

    def state(self, other: str) -> str:
        """Of another member as this node sees it; empty if it does not."""
        return next((str(member["state"]) for member in self.members() if member["name"] == other), "")

    def lag_bytes(self, other: str) -> int:
        """What waits to be confirmed by another member."""
        return next((int(member["lag_bytes"]) for member in self.members() if member["name"] == other), 0)

    def statistics(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("/statistics")
        return found

    def view(self) -> int:
        """The number of its view: it grows by one with each change."""
        return int(self.statistics()["node"]["view"])

    @property
    def uid(self) -> str:
        return str(self.statistics()["node"]["uid"])

    def is_ready(self) -> bool:
        try:
            return bool(self.ask("/health/ready")["ready"])
        except LocalError:
            return False


class Lab:
    """`count` hosts with a node each, a, b, c ..., which `start` starts. A context manager."""

    def __init__(self, count: int, prefixes: Mapping[str, Sequence[str]] | None = None, **settings: Any) -> None:
        """`prefixes`: a program that starts the node of that name. `settings`: of all nodes, with `__` for each dot."""
        self.network = Network(count)
        self.nodes: list[LabNode] = []
        self._count = count
        self._prefixes = dict(prefixes or {})
        self._settings = {"cluster.name": f"faults-{id(self)}", **{key.replace("__", "."): value for key, value in settings.items()}}

    def __enter__(self) -> Lab:
        self.folder = Path(tempfile.mkdtemp(prefix="caterwaul-"))  # a short name: sockets take a hundred characters
        try:
            self.network.__enter__()
        except BaseException:
            shutil.rmtree(self.folder)
            raise
        self.nodes = [self._node(number) for number in range(self._count)]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            for node in self.nodes:
                node.end()
            if error is not None:
                for node in self.nodes:
                    error.add_note(f"--- {node.name} logged:\n{node.log[-_LOGGED_CHARACTERS:]}")
        finally:
            self.network.__exit__(kind, error, trace)
            shutil.rmtree(self.folder)

    def __getitem__(self, name: str) -> LabNode:
        return self.nodes["abcdefgh".index(name)]

    def _node(self, number: int, **settings: Any) -> LabNode:
        name, network = "abcdefgh"[number], self.network
        mine = {**self._settings, **settings}
        return LabNode(name, network.names[number], network.addresses[number], network.managed[number], self.folder, mine, self._prefixes.get(name, ()))

    def reconfigure(self, name: str, **settings: Any) -> LabNode:
        """Other settings for a node that does not run."""
        number = "abcdefgh".index(name)
        self.nodes[number].end()
        self.nodes[number] = self._node(number, **{key.replace("__", "."): value for key, value in settings.items()})
        return self.nodes[number]

    def start(self, names: str = "") -> None:
        """Start these, or all, and wait until they see each other and are in sync."""
        chosen = [self[name] for name in names] or self.nodes
        for node in chosen:
            node.start()
        self.meet(chosen, _READY_S)

    def meet(self, nodes: Iterable[LabNode] = (), timeout_s: float = 10.0) -> float:
        """Until these, or all, see just each other and are in sync. Returns how long it took."""
        nodes, begun = list(nodes) or self.nodes, time.monotonic()
        names = sorted(node.name for node in nodes)
        for node in nodes:
            until(lambda node=node: node.is_ready() and node.names() == names, begun + timeout_s - time.monotonic(), f"{node.name} sees {names}, in sync")  # type: ignore[misc]
            until(
                lambda node=node: all(member["state"] == "in sync" for member in node.members()),  # type: ignore[misc]
                begun + timeout_s - time.monotonic(),
                f"{node.name} is in sync with {names}",
            )
        return time.monotonic() - begun

    def views(self, names: str = "") -> dict[str, int]:
        return {node.name: node.view() for node in self._running(names)}

    def each(self, part: str, counter: str) -> dict[str, int]:
        """One counter of the statistics of all nodes that run."""
        return {node.name: int(node.statistics()[part][counter]) for node in self._running("")}

    def _running(self, names: str) -> Iterator[LabNode]:
        return (node for node in self.nodes if node.is_running and (not names or node.name in names))


def seconds_until(condition: Callable[[], object], timeout_s: float, what: str, since_s: float = 0.0) -> float:
    """How long it took from `since_s` on, or from now on. Fails when it is not within `timeout_s` of that."""
    begun = since_s or time.monotonic()
    until(condition, begun + timeout_s - time.monotonic(), what)
    return time.monotonic() - begun


def wait(until_s: float) -> None:
    """For a fault that is to last until then."""
    until(lambda: time.monotonic() >= until_s, until_s - time.monotonic() + 1.0)
