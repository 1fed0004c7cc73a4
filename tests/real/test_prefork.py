"""The recommended shape for servers of several processes: on each host one node that holds sessions, and workers beside it that hold none.

Two "hosts" on loopback: each a configuration file with a port and a machine of its own, `caterwaul node`, and gunicorn, uvicorn or hypercorn with two workers.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from .processes import Cluster, Command, free_port, until
from .test_security import Certified
from .test_wsgi_servers import GUNICORN, ROOT, Browser, Server

UVICORN = ("-m", "uvicorn", "--port", "PORT", "--workers", "2", "--timeout-worker-healthcheck", "1", "examples.asgi_workers:app")
HYPERCORN = ("-m", "hypercorn", "--bind", "127.0.0.1:PORT", "--workers", "2", "examples.asgi_workers:app")


class Host:
    """What one machine runs, from one file."""

    def __init__(self, name: str, cluster: Cluster, directory: Path, serve: Sequence[str]) -> None:
        self.name = name
        self.toml = directory / f"{name}.toml"
        tables: dict[str, dict[str, Any]] = {
            "node": {"name": name, "port": free_port(), "machine": name, "workers": "lite"},
            "cluster": {"name": cluster.name},
            "membership": cluster.membership,
            "security": {"secret_file": str(cluster.secret_file)},
            "admin": {"socket": str(directory / f"{name}.sock")},
            "managers.default": {"read_your_writes": "cluster", "acks": "all"},
        }
        lines = [f"[{table}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items()) for table, keys in tables.items()]
        self.toml.write_text("\n".join(lines))
        self._ending = contextlib.ExitStack()
        self.node = self.start_node()
        port = free_port()
        command = [argument.replace("PORT", str(port)) for argument in serve]
        self.server = Server(command, port, {"NODE_TOML": str(self.toml), "NODE": name, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"})
        self._ending.callback(self.server.end)

    def start_node(self) -> Command:
        self.node = self._ending.enter_context(Command("node", "--config", str(self.toml)))
        return self.node

    @property
    def port(self) -> int:
        return self.server.port

    def end(self) -> None:
        self._ending.close()


class Hosts:
    """Two of them, and a member without weight that watches: all copies are the hosts'."""

    def __init__(self, cluster: Cluster, directory: Path, serve: Sequence[str]) -> None:
        self.watch = cluster.start("watch", node={"weight": 0})
        self.a, self.b = (Host(name, cluster, directory, serve) for name in ("web1", "web2"))

    def meet(self) -> None:
        until(lambda: [len(self.workers(host)) for host in (self.a, self.b)] == [2, 2], 60, "two workers on each host")
        until(lambda: {"web1", "web2"} <= set(self.watch.names), 30, "and its node")
        for host in (self.a, self.b):
            until(lambda host=host: host.server.answers, 30)  # type: ignore[misc]

    def workers(self, host: Host) -> dict[int, str]:
        """Names of a host's workers by process id, as the watching node sees them."""
        return {int(name.rpartition("+")[2]): name for name in self.watch.names if name.startswith(f"{host.name}+")}

    def gone(self) -> tuple[int, int]:
        """How many have left so far with a farewell, and how many without."""
        changes = self.watch.do("changes")
        clean = sum(len(change["clean"]) for change in changes)
        return clean, sum(len(change["gone"]) for change in changes) - clean


@contextlib.contextmanager
def hosts_of(serve: Sequence[str], directory: Path) -> Iterator[Hosts]:
    with Cluster(manager={"read_your_writes": "cluster"}) as cluster, contextlib.ExitStack() as ending:
        made = Hosts(cluster, directory, serve)
        for host in (made.a, made.b):
            ending.callback(host.end)
        made.meet()
        yield made


def add(browser: Browser, host: Host, what: str) -> str:
    """The cart after that (or after nothing). A connection that a killed worker had taken is lost, so the browser asks again; what it adds is in the cart once."""
    while True:
        try:
            return browser.cart(host.port, f"/add/{what}" if what else "/")
        except (OSError, http.client.HTTPException):
            assert host.server.process.poll() is None, host.server.log


@pytest.mark.parametrize("serve", [(*GUNICORN, "examples.flask_app:app"), UVICORN], ids=["gunicorn", "uvicorn"])
def test_workers_hold_nothing_and_a_user_survives_a_killed_worker_and_a_killed_node(serve: Sequence[str], tmp_path: Path) -> None:
    with hosts_of(serve, tmp_path) as hosts:
        a, b, watch = hosts.a, hosts.b, hosts.watch
        browser, identity, cart = visit(hosts)
        os.kill(browser.pid, signal.SIGKILL)
        until(lambda: hosts.gone() == (0, 1), what="a worker was killed")
        assert add(browser, a, "") == cart
        until(lambda: len(hosts.workers(a)) == 2, 30, "the server has started another")
        cart += " y"
        assert add(browser, a, "y") == cart
        assert browser.cart(b.port) == cart, "the other host has it"

        a.node.kill()
        until(lambda: hosts.gone() == (0, 2), what="the node of a host was killed")
        assert browser.cart(a.port) == cart
        cart += " z"
        assert add(browser, a, "z") == cart, "its workers go on with the other host's node"
        assert browser.cart(b.port) == cart
        os.kill(browser.pid if browser.pid in hosts.workers(a) else min(hosts.workers(a)), signal.SIGKILL)
        until(lambda: hosts.gone() == (0, 3))
        until(lambda: len(hosts.workers(a)) == 2, 30, "a worker that starts meanwhile finds the others too")
        assert add(browser, a, "") == cart

        a.start_node()
        until(lambda: "web1" in watch.names, 30)
        until(lambda: sorted(watch.do("holders", session=identity)) == ["web1", "web2"])
        assert add(browser, a, "w") == f"{cart} w"
        leave(hosts, (4, 3))


def test_workers_of_hypercorn_are_lite_members_too_and_go_on_without_their_node(tmp_path: Path) -> None:
    """It starts no other where a worker was killed, but ends all."""
    with hosts_of(HYPERCORN, tmp_path) as hosts:
        a, b, watch = hosts.a, hosts.b, hosts.watch
        browser, identity, cart = visit(hosts)
        a.node.kill()
        until(lambda: hosts.gone() == (0, 1), what="the node of a host was killed")
        cart += " y"
        assert add(browser, a, "y") == cart
        assert browser.cart(b.port) == cart
        a.start_node()
        until(lambda: "web1" in watch.names, 30)
        until(lambda: sorted(watch.do("holders", session=identity)) == ["web1", "web2"])
        leave(hosts, (4, 1))


def visit(hosts: Hosts) -> tuple[Browser, str, str]:
    """Somebody who was served by host `a`, with the id of the session, and the cart."""
    browser, pids, cart = Browser(), set(), ""
    for _ in range(8):  # whichever worker it comes to
        cart = f"{cart} x".strip()
        assert add(browser, hosts.a, "x") == cart
        pids.add(browser.pid)
        assert browser.cookies["session"].endswith(".web1"), "a balancer finds the host, and not one of its workers"
    assert pids <= set(hosts.workers(hosts.a))
    identity = browser.cookies["session"][:43]
    assert sorted(hosts.watch.do("holders", session=identity)) == ["web1", "web2"]
    return browser, identity, cart


def leave(hosts: Hosts, gone: tuple[int, int]) -> None:
    """Both servers end by SIGTERM."""
    for host in (hosts.a, hosts.b):
        host.server.signal(signal.SIGTERM)
        assert host.server.process.wait(30) in (0, -signal.SIGTERM), host.server.log
    until(lambda: hosts.gone() == gone, what="all four workers say farewell")
    assert sorted(hosts.watch.names) == ["watch", "web1", "web2"]


def test_a_worker_shows_the_certificate_of_its_node_and_is_shut_out_with_it(tmp_path: Path) -> None:
    port = free_port()
    with Certified(tmp_path, drop_time_s=1.0) as cluster:
        node, other = cluster.start("web1", port=port), cluster.start("web2")
        assert node.about
        worker = cluster.start("web1", port=port, node={"workers": "lite"})
        names = ["web1", f"web1+{worker.pid}", "web2"]
        for each in (node, other, worker):
            until(lambda each=each: each.names == names and each.do("is_ready"), 30)  # type: ignore[misc]
        written = worker.write({"cart": ["yarn"]}, acks="all")
        assert written["confirmed"] == ["web1", "web2"]
        assert other.read(written["id"])["values"] == {"cart": ["yarn"]}
        cluster.ca.revoke("web1")
        cluster.ca.publish(cluster.directory_of("web2"))
        until(lambda: other.names == ["web2"], what="the host is shut out, workers and all")


def test_workers_that_come_before_their_node_hold_sessions_until_it_is_there() -> None:
    port = free_port()
    with Cluster() as cluster:
        workers = [cluster.start("web1", port=port, node={"workers": "lite"}) for _ in range(2)]
        names = sorted(f"web1+{worker.pid}" for worker in workers)
        for worker in workers:
            until(lambda worker=worker: worker.names == names and worker.do("is_ready"), 30)  # type: ignore[misc]
        written = workers[0].write({"cart": ["yarn"]}, acks="all")
        node = cluster.start("web1", port=port)
        until(lambda: node.do("is_ready") and node.do("count") == 1, 30, "the node was given it")
        assert workers[1].do("holders", session=written["id"]) == ["web1"]
        for worker in workers:
            worker.kill()
        until(lambda: node.names == ["web1"])
        assert node.read(written["id"]) == {"unknown": False, "values": {"cart": ["yarn"]}}
