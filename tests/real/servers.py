"""Applications of `examples/` under real web servers, and a browser for them. They join a `Cluster` of `processes.py`, which watches them come and go."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from .processes import Cluster, _Child, free_port, until

ROOT = Path(__file__).parents[2]


def toml(value: Any) -> str:
    return json.dumps(value)  # of what the settings of tests hold, TOML is a superset


def configuration(cluster: Cluster, directory: Path, **tables: Mapping[str, Any]) -> Path:
    """A configuration file with which a `ClusterManager` joins this cluster."""
    whole: dict[str, Mapping[str, Any]] = {
        "cluster": {"name": cluster.name}, "admin": {"socket": ""}, "membership": cluster.membership, "security": {"secret_file": str(cluster.secret_file)}, **tables,
    }  # fmt: skip
    path = directory / "node.toml"
    path.write_text("\n".join(f"[{name}]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in table.items()) for name, table in whole.items()))
    return path


_OWN_GROUP = "import os, sys; os.setsid(); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"


class Server(_Child):
    """A web server; `command` is what follows `python`, with the port in place of PORT. It and its workers are a process group, which ends as a whole."""

    def __init__(self, command: Sequence[str], config: Path | str = "") -> None:
        self.port = free_port()
        environ = {**os.environ, "CATERWAUL_CONFIG": str(config), "PYTHONPATH": str(ROOT)}
        strict = ("-W", "error", "-W", "ignore::ResourceWarning")
        words = [part.replace("PORT", str(self.port)) for part in command]
        super().__init__([sys.executable, "-c", _OWN_GROUP, *strict, *words], environ=environ)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        super().end()

    def answers(self, path: str) -> Any:
        """What it says there; None: nothing."""
        try:
            return Browser().get(self, path)
        except (OSError, http.client.HTTPException):
            return None


class Browser:
    """Keeps the cookie `sid`. Each request is a connection of its own, so workers of one server take turns as the kernel likes."""

    def __init__(self) -> None:
        self.cookie = ""

    def get(self, server: Server, path: str, method: str = "GET", body: str = "") -> Any:
        """The decoded JSON of an answer 200 (or its text). Follows redirects."""
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        try:
            connection.request(method, path, body or None, {"Cookie": f"sid={self.cookie}"} if self.cookie else {})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        for value in answer.headers.get_all("Set-Cookie", []):
            name, _, rest = value.partition("=")
            if name == "sid":
                self.cookie = rest.partition(";")[0]
        if answer.status in (302, 303):
            return self.get(server, answer.headers["Location"])
        assert answer.status in (200, 201, 204), (answer.status, text, server.log)
        return json.loads(text) if answer.headers.get_content_type() == "application/json" else text.decode()

    def post(self, server: Server, path: str, body: str = "") -> Any:
        return self.get(server, path, "POST", body)


def meet(cluster: Cluster, count: int, *servers: Server, path: str = "/health") -> list[str]:
    """Wait until the nodes of the cluster see so many members, themselves among them, and these servers answer; names of the others."""
    own = {node.name for node in cluster.nodes}
    for node in cluster.nodes:
        until(lambda node=node: len(node.names) == count and node.do("is_ready"), 30.0, f"{node.name} sees {count}")  # type: ignore[misc]
    for server in servers:
        until(partial(server.answers, path), what="an answer")
    return sorted(set(cluster.nodes[0].names) - own)
