"""Three real nodes behind a proxy that keeps nobody on a node: each browser reads what it wrote a request ago."""

from __future__ import annotations

import json
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.threads import blockingCallFromThread

from caterwaul.cluster.balancer import BalancerSettings, Node, NodeUp, ReverseProxy
from caterwaul.cluster.embedding import find_reactor

from .processes import Command, free_port

_APPLICATION = """
import json

def application(environ, start_response):
    node, session = environ["caterwaul.node"], environ["caterwaul.session"]
    status, found = "200 OK", {}
    if environ["PATH_INFO"] == "/health/ready":
        status = "200 OK" if len(node.view) == 3 and node.is_ready else "503 Service Unavailable"
    else:
        found = {"node": node.name, "n": session.get("n", 0), "stale": session.stale or session.unknown}
        if environ["REQUEST_METHOD"] == "POST":
            session["n"] = found["n"] + 1
            session["padding"] = str(found["n"]) * 300_000  # slower than a request
    body = json.dumps(found).encode()
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of the proxy, once all nodes see each other."""
    (tmp_path / "roaming_application.py").write_text(_APPLICATION)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    multicast, name = free_port(socket.SOCK_DGRAM), f"real-{uuid.uuid4().hex[:12]}"
    up = threading.Semaphore(0)
    with ExitStack() as stack:
        addresses = {node: free_port() for node in "abc"}
        for node, http in addresses.items():
            settings = {
                "node.name": node, "cluster.name": name, "admin.socket": "", "membership.multicast_port": multicast, "membership.heartbeat_interval_s": 0.25,
                "managers.default.read_your_writes": "cluster", "managers.default.read_your_writes_wait_s": 5.0,
                "managers.default.cookie.name": "sid", "managers.default.cookie.secure": "false",
                "web.listen": f"127.0.0.1:{http}", "web.application": "roaming_application:application",
            }  # fmt: skip
            stack.enter_context(Command("node", *(f"--set={key}={value}" for key, value in settings.items())))
        reactor: Any = find_reactor()

        def start() -> tuple[ReverseProxy, Any]:
            chosen = BalancerSettings(cookie="nobodys", probe_interval_s=0.1)  # no session cookie for it: round robin
            proxy = ReverseProxy(reactor, chosen, lambda event: up.release() if isinstance(event, NodeUp) else None)
            proxy.start()
            for node, http in addresses.items():
                proxy.add(Node(node, "127.0.0.1", http))
            return proxy, reactor.listenTCP(0, proxy.site, interface="127.0.0.1")

        proxy, listening = blockingCallFromThread(reactor, start)  # type: ignore[arg-type]
        stack.callback(blockingCallFromThread, reactor, proxy.stop)  # type: ignore[arg-type]
        stack.callback(blockingCallFromThread, reactor, listening.stopListening)
        for _ in addresses:
            assert up.acquire(timeout=20)
        yield listening.getHost().port


class _Browser:
    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=10)
        self.cookie = ""
        self.nodes: set[str] = set()
        self.cookies_set = 0

    def ask(self, method: str) -> dict[str, Any]:
        self._connection.request(method, "/", headers={"Cookie": self.cookie} if self.cookie else {})
        response = self._connection.getresponse()
        found: dict[str, Any] = json.loads(response.read())
        given = response.headers["Set-Cookie"]
        if given is not None:
            self.cookie = given.partition(";")[0]
            self.cookies_set += 1
        self.nodes.add(found["node"])
        return found

    def close(self) -> None:
        self._connection.close()


def test_writes_and_reads_that_take_turns_on_three_nodes_are_never_stale_without_a_word(port: int) -> None:
    wrong: list[Any] = []
    browsers = [_Browser(port) for _ in range(4)]

    def run(browser: _Browser) -> None:
        for number in range(60):
            for method, expected in (("POST", number), ("GET", number + 1)):
                found = browser.ask(method)
                if found["n"] != expected or found["stale"]:
                    wrong.append((method, expected, found))

    threads = [threading.Thread(target=run, args=(browser,)) for browser in browsers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    for browser in browsers:
        assert browser.nodes == set("abc")
        assert browser.cookies_set == 60, "one for each write"
        browser.close()
