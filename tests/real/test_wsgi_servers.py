"""The examples as users run them: the frameworks' own servers, gunicorn, uWSGI, waitress and `twist web`, as real processes that are killed, recycled and reloaded.

A node of the test watches who comes, who goes, and whether they said so.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .processes import Cluster, free_port, until

ROOT = Path(__file__).parents[2]


class Server:
    """A server process and its children, none of which is left behind."""

    def __init__(self, command: list[str], port: int, environ: dict[str, str]) -> None:
        self.port = port
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `end`)
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    @property
    def log(self) -> str:
        return os.pread(self._log.fileno(), 1 << 20, 0).decode("utf-8", "replace")

    @property
    def answers(self) -> int:
        """The process that answers somebody without a session; 0: none does."""
        assert self.process.poll() is None, self.log
        browser = Browser()
        with contextlib.suppress(OSError, http.client.HTTPException):
            browser.cart(self.port)
        return browser.pid

    @property
    def listens(self) -> bool:
        assert self.process.poll() is None, self.log
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
            return True
        return False

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """All of them, without a word."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def end(self) -> None:
        self.kill()
        self._log.close()


class Browser:
    """Keeps its cookies, follows redirects, and comes back to whichever port it is told to."""

    def __init__(self) -> None:
        self.cookies: dict[str, str] = {}
        self.pid = 0  #: who answered last

    def get(self, port: int, path: str) -> tuple[int, str]:
        for _ in range(5):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", path, headers={"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())} if self.cookies else {})
            answer = connection.getresponse()
            body = answer.read().decode()
            for value in answer.headers.get_all("Set-Cookie", []):
                name, _, rest = value.partition("=")
                self.cookies[name] = rest.partition(";")[0].strip('"')
            connection.close()
            if answer.status not in (301, 302, 303):
                return answer.status, body
            path = "/" + answer.headers["Location"].partition("//")[2].partition("/")[2] if "//" in answer.headers["Location"] else answer.headers["Location"]
        raise AssertionError("redirects without end")

    def cart(self, port: int, path: str = "/") -> str:
        status, body = self.get(port, path)
        assert status == 200, body
        found = re.search(r"cart: (.*) \(process (\d+)\)", body)
        assert found is not None, body
        self.pid = int(found[2])
        return found[1]


class Shop:
    """A cluster with a watching node, and the servers of a test."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster = cluster
        self.watch = cluster.start("watch")
        self.servers: list[Server] = []
        self.toml = directory / "node.toml"
        self.toml.write_text(
            f'''
            [cluster]
            name = "{cluster.name}"
            [membership]
            multicast_port = {cluster.membership["multicast_port"]}
            heartbeat_interval_s = 0.25
            [security]
            secret_file = "{cluster.secret_file}"
            [admin]
            socket = ""
            [managers.default]
            read_your_writes = "cluster"
            acks = "one"  # a worker is killed right after its answer
            '''
        )
        assert self.watch.about

    def start(self, *command: str, name: str = "", port: int = 0, path: str = "") -> Server:
        port = port or free_port()
        arguments = [argument.replace("PORT", str(port)) for argument in command]
        server = Server(
            arguments,
            port,
            {"NODE_TOML": str(self.toml), "NODE": name, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), path))), "PYTHONUNBUFFERED": "1"},
        )
        self.servers.append(server)
        return server

    @property
    def names(self) -> list[str]:
        return [name for name in self.watch.names if name != "watch"]

    def gone(self) -> tuple[int, int]:
        """How many have left so far with a farewell, and how many without."""
        changes = self.watch.do("changes")
        clean = sum(len(change["clean"]) for change in changes)
        return clean, sum(len(change["gone"]) for change in changes) - clean


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with Cluster() as cluster:
        shop = Shop(cluster, tmp_path)
        try:
            yield shop
        finally:
            for server in shop.servers:
                server.end()


@pytest.mark.parametrize("example", ["flask_app", "klein_app", "pyramid_app", "django_app"])
def test_a_user_whose_server_is_killed_goes_on_with_the_next(shop: Shop, example: str) -> None:
    command = ["runserver", "--noreload", "127.0.0.1:PORT"] if example == "django_app" else []
    a, b = (shop.start(f"examples/{example}.py", *(command or [name, "PORT"]), name=name) for name in "ab")
    for server in (a, b):
        until(lambda server=server: server.answers, 40, f"{example} answers")  # type: ignore[misc]
    until(lambda: sorted(shop.names) == ["a", "b"])
    browser = Browser()
    assert browser.cart(a.port, "/add/apple") == "apple"
    assert browser.cart(b.port, "/add/pear") == "apple pear"
    a.kill()
    assert browser.cart(b.port) == "apple pear"
    assert browser.cart(b.port, "/add/plum") == "apple pear plum"
    if example != "klein_app":
        assert browser.cart(b.port, "/logout") == ""
    until(lambda: shop.gone() == (0, 1), what="a death without a farewell")


GUNICORN = ("-m", "gunicorn", "--no-control-socket", "-b", "127.0.0.1:PORT", "-c", "examples/gunicorn_conf.py")


def test_gunicorn_gives_each_forked_worker_a_node_and_stops_them_in_order(shop: Shop) -> None:
    server = shop.start(*GUNICORN, "examples.flask_app:app")
    until(lambda: len(shop.names) == 2, 40, "a node for each worker, none for the arbiter")
    until(lambda: server.answers)
    browser, pids = Browser(), set()
    for count in range(1, 9):  # whichever worker it comes to
        assert browser.cart(server.port, "/add/x") == " ".join(["x"] * count)
        pids.add(browser.pid)
    os.kill(browser.pid, signal.SIGKILL)
    until(lambda: shop.gone() == (0, 1), what="a worker was killed")
    assert browser.cart(server.port, "/add/x") == " ".join(["x"] * 9)
    until(lambda: len(shop.names) == 2, 20, "gunicorn has started another")
    server.signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    until(lambda: shop.gone() == (2, 1), what="both workers say farewell")


def test_a_recycled_gunicorn_worker_leaves_with_a_farewell(shop: Shop) -> None:
    server = shop.start(*GUNICORN, "--worker-class", "sync", "--workers", "1", "--threads", "1", "--max-requests", "5", "examples.flask_app:app")
    until(lambda: len(shop.names) == 1, 40)
    browser = Browser()
    pids = set()
    for count in range(1, 9):
        until(lambda: server.listens)
        assert browser.cart(server.port, "/add/x") == " ".join(["x"] * count), server.log
        pids.add(browser.pid)
    assert len(pids) >= 2, "the worker was recycled meanwhile"
    until(lambda: shop.gone()[0] >= 1, what="the old one left with a farewell")
    assert shop.gone()[1] == 0


UWSGI = shutil.which("uwsgi", path=Path(sys.executable).parent)
RUN = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"


def start_uwsgi(shop: Shop, *more: str) -> Server:
    if UWSGI is None:
        pytest.skip("uWSGI is not installed; pip builds it where there is a C compiler")
    common = ("--http-socket", "127.0.0.1:PORT", "--master", "--die-on-term", "--need-app", "--home", sys.prefix)
    return shop.start("-c", RUN, UWSGI, *common, *more, "--module", "examples.uwsgi_app:app")


def test_uwsgi_gives_each_forked_worker_a_node_and_stops_them_in_order(shop: Shop) -> None:
    server = start_uwsgi(shop, "--processes", "2", "--enable-threads")
    until(lambda: len(shop.names) == 2, 40, "a node for each worker, none for the master")
    first = [int(name.rpartition("-")[2]) for name in shop.names]
    until(lambda: server.answers)
    browser = Browser()
    for count in range(1, 9):  # whichever worker it comes to
        assert browser.cart(server.port, "/add/x") == " ".join(["x"] * count)
    os.kill(browser.pid, signal.SIGKILL)
    until(lambda: shop.gone() == (0, 1), what="a worker was killed")
    assert browser.cart(server.port, "/add/x") == " ".join(["x"] * 9)
    until(lambda: len(shop.names) == 2, 20, "uWSGI has started another")
    until(lambda: server.answers not in (0, *first), 20, "which serves; before that uWSGI forgets that it should end")
    server.signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    until(lambda: sum(shop.gone()) == 3, what="both workers are gone; now and then uWSGI ends one before it has said farewell")


def test_a_recycled_uwsgi_worker_leaves_with_a_farewell(shop: Shop) -> None:
    server = start_uwsgi(shop, "--processes", "1", "--enable-threads", "--max-requests", "5", "--min-worker-lifetime", "0")
    until(lambda: len(shop.names) == 1, 40)
    browser = Browser()
    pids = set()
    for count in range(1, 9):
        assert browser.cart(server.port, "/add/x") == " ".join(["x"] * count), server.log
        pids.add(browser.pid)
    assert len(pids) >= 2, "the worker was recycled meanwhile"
    until(lambda: shop.gone()[0] >= 1, what="the old one left with a farewell")
    assert shop.gone()[1] == 0


TWIST = ("-m", "twisted", "--log-format", "text", "web", "--listen", "tcp:PORT:interface=127.0.0.1", "--wsgi")
EARLY = """
import os

from flask import Flask, session
from twisted.internet import reactor

from caterwaul import ClusterManager
from caterwaul.managers.web.flask import CaterwaulSession

app = Flask(__name__)
cluster = ClusterManager(os.environ["NODE_TOML"], **{"node.name": os.environ["NODE"]})
reactor.callWhenRunning(cluster.start)
CaterwaulSession(app, cluster.manager)


@app.route("/")
@app.route("/add/<thing>")
def show(thing=""):
    if thing:
        session.setdefault("cart", []).append(thing)
    return f"cart: {' '.join(session.get('cart', []))} (process {os.getpid()})"
"""


def test_twist_web_has_the_node_in_its_own_reactor_and_leaves_with_it(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "early.py").write_text(EARLY)
    lazy = shop.start(*TWIST, "examples.flask_app.app", name="lazy")
    until(lambda: lazy.listens, 40)
    assert shop.names == [], "the application is loaded before the reactor runs, so nothing has started yet"
    browser = Browser()
    assert browser.cart(lazy.port, "/add/apple") == "apple"
    early = shop.start(*TWIST, "early.app", name="early", path=str(tmp_path))
    until(lambda: shop.names == ["early", "lazy"], 40, "this one joins before its first request")
    until(lambda: early.answers)
    assert browser.cart(early.port, "/add/pear") == "apple pear"
    lazy.kill()
    until(lambda: shop.gone() == (0, 1), what="a death without a farewell")
    assert browser.cart(early.port) == "apple pear"
    early.signal(signal.SIGTERM)
    assert early.process.wait(30) == -signal.SIGTERM, "twist ends by the signal it got, after its services have stopped"
    until(lambda: shop.gone() == (1, 1), what="it says farewell although atexit never runs")
    assert "Traceback" not in early.log


def test_waitress_leaves_with_a_farewell_when_it_is_interrupted(shop: Shop) -> None:
    server = shop.start("examples/pyramid_app.py", "a", "PORT")
    until(lambda: server.answers, 40)
    server.signal(signal.SIGINT)
    server.process.wait(20)
    until(lambda: shop.gone() == (1, 0))


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_djangos_reloader_has_one_node_in_the_process_that_serves_and_the_next_goes_on(shop: Shop, tmp_path: Path) -> None:
    copy = tmp_path / "reloaded.py"
    shutil.copy(ROOT / "examples" / "django_app.py", copy)
    server = shop.start(str(copy), "runserver", "127.0.0.1:PORT", name="dev")
    until(lambda: server.listens, 40)
    assert shop.names == [], "nothing starts before the first request, in the reloader's own process never"
    browser = Browser()
    assert browser.cart(server.port, "/add/apple") == "apple"
    assert shop.names == ["dev"]
    first = browser.pid
    assert first != server.process.pid
    copy.write_text(copy.read_text() + "\n# changed\n")
    until(lambda: shop.gone()[0] + shop.gone()[1] == 1, 30, "the reloader ends the process that served")
    until(lambda: not exists(first), 30, "which may answer 503 in its last moment")
    until(lambda: server.answers not in (0, first), 40, "another serves")
    assert browser.cart(server.port, "/add/pear") == "apple pear"
