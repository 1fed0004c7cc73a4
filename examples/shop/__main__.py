"""A shop on two hosts behind the embedded balancer, all on this machine:

    python -m examples.shop [PORT]         # 8080 unless given; Ctrl-C ends everything

    balancer --+-- web1: gunicorn, four workers -- node that holds sessions
               +-- web2: gunicorn, four workers -- node that holds sessions

Each host has one configuration file, which its node and its workers read (`node.workers = "lite"`). Kill what you like: a worker or a whole host
with the buttons on the page, anything from a terminal; what dies is started again.
"""

from __future__ import annotations

import secrets
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.task import deferLater, react

from caterwaul.cluster.balancer import BalancerSettings, Node, ReverseProxy
from caterwaul.cluster.supervisor import Supervisor

HOSTS = ("web1", "web2")
ROOT = Path(__file__).parents[2]
START_S = 60.0

CONFIGURATION = """\
[node]
name = "{host}"
port = {port}
machine = "{host}"
workers = "lite"

[cluster]
name = "{cluster}"

[security]
secret_file = "{secret}"

[membership]
discovery = ["static"]
seeds = [{seeds}]

[managers.default]
read_your_writes = "cluster"
acks = "one"

[admin]
socket = ""
"""


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


async def serve(reactor: Any, directory: Path, port: int) -> None:
    supervisor, proxy = Supervisor(reactor), ReverseProxy(reactor, BalancerSettings(probe_timeout_s=1.0))
    over: Deferred[None] = Deferred()

    async def finish() -> None:
        over.callback(None)
        await gatherResults([maybeDeferred(listening.stopListening), proxy.stop(), supervisor.stopService()])

    listening = reactor.listenTCP(port, proxy.site, interface="127.0.0.1")
    reactor.addSystemEventTrigger("before", "shutdown", lambda: Deferred.fromCoroutine(finish()))
    proxy.start()
    ports = free_ports(2 * len(HOSTS))
    secret = directory / "secret"
    secret.touch(0o600)
    secret.write_text(secrets.token_urlsafe(32))
    for host, node_port, web_port in zip(HOSTS, ports[: len(HOSTS)], ports[len(HOSTS) :], strict=True):
        config = directory / f"{host}.toml"
        seeds = ", ".join(f'"127.0.0.1:{each}"' for each in ports[: len(HOSTS)])
        config.write_text(CONFIGURATION.format(host=host, port=node_port, cluster=directory.name, secret=secret, seeds=seeds))
        supervisor.add(f"{host} node", [sys.executable, "-c", "from caterwaul.cluster.cli import main; main()", "node", "--config", str(config)])
        gunicorn = [
            "-m",
            "gunicorn",
            "--chdir",
            str(ROOT),
            "-c",
            "examples/shop/gunicorn_conf.py",
            "-e",
            f"SHOP_CONFIG={config}",
            "-e",
            f"SHOP_HOSTS={' '.join(HOSTS)}",
            "-b",
            f"127.0.0.1:{web_port}",
        ]
        supervisor.add(f"{host} gunicorn", [sys.executable, *gunicorn, "examples.shop.app:app"])
        proxy.add(Node(host, "127.0.0.1", web_port, prefork=True))
    supervisor.startService()
    deadline = reactor.seconds() + START_S
    while not all(proxy.is_up(host) for host in HOSTS):
        if reactor.seconds() > deadline or over.called:
            printed = "\n".join(line for host in HOSTS for line in supervisor.last_lines(f"{host} gunicorn"))
            raise SystemExit(f"the shop does not open; it printed last:\n{printed}")
        await deferLater(reactor, 0.05)
    print(f"the shop is open: http://127.0.0.1:{listening.getHost().port}", flush=True)
    await over


def main(reactor: Any, *arguments: str) -> Deferred[None]:
    directory = tempfile.TemporaryDirectory(prefix="shop-")
    port = int(arguments[0]) if arguments else 8080
    return Deferred.fromCoroutine(serve(reactor, Path(directory.name), port)).addBoth(lambda result: (directory.cleanup(), result)[1])


if __name__ == "__main__":
    react(main, sys.argv[1:])
