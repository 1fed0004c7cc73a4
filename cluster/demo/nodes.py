"""The demo's cluster: node processes, kept alive by a supervisor, behind the embedded proxy, in this process.

Every demo has a multicast port, a cluster name and a secret of its own, so that two of them on one machine never meet. A node's
configuration is a file like anybody's; its HTTP port is fixed, so that a replacement is found where its predecessor was.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater

from ...membership.errors import LocalError
from ..balancer import BalancerSettings, Node, NodeDown, NodeUp, ReverseProxy
from ..security.keyring import make_secret, write_secrets
from ..supervisor import Exited, Started, Supervisor
from .page import COOKIE, MANAGER

__all__ = ["DROP_S", "HEARTBEAT_S", "DemoCluster", "Event", "Layout"]

HEARTBEAT_S, DROP_S = 0.5, 3.0  # the defaults of membership, named here because the check sleeps longer than them
_HOST = "127.0.0.1"
_LOOK_S = 0.05

Event = NodeUp | NodeDown | Started | Exited

_CONFIGURATION = """\
[node]
name = "{name}"
weight = {weight}

[cluster]
name = "{cluster}"

[security]
secret_file = "{secret_file}"

[membership]
multicast_port = {multicast_port}
heartbeat_interval_s = {heartbeat}
drop_time_s = {drop}

[managers.{manager}]
type = "{type}"
backups = {backups}

[managers.{manager}.cookie]
name = "{cookie}"
secure = false

[store]
url = {store}

[web]
listen = "{host}:{port}"
application = "caterwaul.cluster.demo.app:application"
manager = "{manager}"
"""


@dataclass(frozen=True)
class Layout:
    """What the demo's nodes are: `nodes` that serve users and hold sessions, or `data` nodes that hold them and `web` nodes (lite members) that serve.

    `manager`: its type, with so many `backups`. `store`: the URL of a store behind them; empty: none.
    """

    nodes: int = 3
    data: int = 0
    web: int = 0
    manager: str = "delta"
    backups: int = 2
    store: str = ""

    @property
    def holding(self) -> list[str]:
        """Names of the nodes that hold sessions."""
        kind, number = ("data", self.data) if self.data else ("node", self.nodes)
        return [f"{kind}{n}" for n in range(1, number + 1)]

    @property
    def serving(self) -> list[str]:
        """Names of the nodes that the proxy sends users to."""
        return [f"web{n}" for n in range(1, self.web + 1)] or self.holding

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys((*self.holding, *self.serving)))


class DemoCluster:
    """`start` and `stop`; in between `url`, and every node by name. Reactor thread only."""

    def __init__(self, reactor: Any, layout: Layout, port: int, logs: Path | None = None, listener: Callable[[Event], None] = lambda event: None) -> None:
        """`port` 0: any free one. `logs`: a directory where the nodes' output is kept, made if it is not there."""
        self.layout = layout
        self._reactor = reactor
        self._port = port
        self._logs = logs
        self._files: dict[str, IO[str]] = {}
        self._directory = Path(tempfile.mkdtemp(prefix="caterwaul-demo-"))
        self._listening: IListeningPort | None = None
        self.supervisor = Supervisor(reactor, listener, self._log_line)
        self.proxy = ReverseProxy(reactor, BalancerSettings(cookie=COOKIE.name, probe_timeout_s=1.0, retry_non_idempotent=True), listener)
        ports = _free_ports(socket.SOCK_STREAM, len(layout.names))
        self.addresses = {name: (_HOST, port) for name, port in zip(layout.names, ports, strict=True)}
        self.multicast_port = _free_ports(socket.SOCK_DGRAM, 1)[0]
        self.name = f"demo-{secrets.token_hex(4)}"
        self._secret_file = self._directory / "secret"
        write_secrets(self._secret_file, [make_secret()], replace=False)

    @property
    def url(self) -> str:
        assert self._listening is not None, "not started"
        return f"http://{_HOST}:{self._listening.getHost().port}"  # type: ignore[attr-defined]

    def node_url(self, name: str) -> str:
        """Where this node itself answers, past the proxy."""
        host, port = self.addresses[name]
        return f"http://{host}:{port}"

    def pid(self, name: str) -> int | None:
        return self.supervisor.pid(name)

    def start(self) -> None:
        """Listen, and start the processes. Raises `LocalError` if the port is taken."""
        try:
            self._listening = self._reactor.listenTCP(self._port, self.proxy.site, interface=_HOST)
        except CannotListenError as error:
            raise LocalError(
                f"port {self._port}, asked for with --port, cannot be used: {os.strerror(error.socketError.errno)}; --port 0 takes a free one"
            ) from None
        if self._logs is not None:
            self._logs.mkdir(parents=True, exist_ok=True)
        self.proxy.start()
        for name in self.layout.names:
            self._add(name)
        self.supervisor.startService()

    def grow(self, name: str) -> None:
        """One more node, of the same kind as the others of that name."""
        self.addresses[name] = (_HOST, _free_ports(socket.SOCK_STREAM, 1)[0])
        self._add(name)

    def _add(self, name: str) -> None:
        host, port = self.addresses[name]
        layout, path = self.layout, self._directory / f"{name}.toml"
        serves = name in layout.serving
        path.write_text(
            _CONFIGURATION.format(
                name=name, weight=int(not layout.web or not serves), cluster=self.name, multicast_port=self.multicast_port, heartbeat=HEARTBEAT_S, drop=DROP_S,
                secret_file=self._secret_file, manager=MANAGER, type=layout.manager, backups=layout.backups, cookie=COOKIE.name, host=host, port=port, store=json.dumps(layout.store),
            )
        )  # fmt: skip
        level = "warn" if self._logs is None else "info"  # an access log that nobody reads costs both sides
        self.supervisor.add(name, [sys.executable, "-m", "twisted", f"--log-level={level}", "--log-format=text", "caterwaul", "--config", str(path)])
        if serves:
            self.proxy.add(Node(name, host, port))

    async def wait_ready(self, timeout_s: float) -> None:
        """Until the proxy may use every node. Raises `LocalError` with what a node printed last, if that takes too long or one keeps dying."""
        deadline = self._reactor.seconds() + timeout_s
        while True:
            missing = [name for name in self.layout.serving if not self.proxy.is_up(name)]
            if not missing:
                return
            name = missing[0]
            if self._reactor.seconds() > deadline or self.supervisor.restarts(name) > 1:
                printed = "\n  ".join(self.supervisor.last_lines(name)[-12:])
                why = f"does not start ({self.supervisor.restarts(name)} restarts)" if self.supervisor.restarts(name) else f"is not ready after {timeout_s:g} s"
                raise LocalError(f"{name} {why}; it printed last:\n  {printed}")
            await deferLater(self._reactor, _LOOK_S)

    async def stop(self) -> None:
        """End every process that was started, and wait for it."""
        if self._listening is not None:
            await _deferred(self._listening.stopListening())
        await self.proxy.stop()
        await self.supervisor.stopService()
        for file in self._files.values():
            with suppress(OSError):
                file.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _log_line(self, name: str, line: str) -> None:
        if self._logs is None:
            return
        if name not in self._files:
            self._files[name] = (self._logs / f"{name}.log").open("a", encoding="utf-8", buffering=1)
        self._files[name].write(f"{line}\n")


async def _deferred(result: Any) -> None:
    if isinstance(result, Deferred):
        await result


def _free_ports(kind: socket.SocketKind, number: int) -> list[int]:
    """Ports of loopback that nobody uses now."""
    sockets = [socket.socket(socket.AF_INET, kind) for _ in range(number)]
    try:
        for each in sockets:
            each.bind((_HOST, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
