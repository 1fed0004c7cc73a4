"""uvicorn, hypercorn and aiohttp with the applications of `examples/`: nodes that live as long as their worker, and a user who goes on when one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import connect

from .processes import Cluster, Node, free_port, until
from .servers import ROOT, Browser, Server, configuration, meet

UVICORN = ("-m", "uvicorn", "--port", "PORT", "--log-level", "warning")
HYPERCORN = ("-m", "hypercorn", "--bind", "127.0.0.1:PORT", "--log-level", "warning")
APP = "examples.fastapi_app:app"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """With one node that watches."""
    with Cluster(manager={"read_your_writes": "cluster"}) as made:
        made.start("watch")
        yield made


@pytest.fixture
def config(cluster: Cluster, tmp_path: Path) -> Path:
    return configuration(cluster, tmp_path, **{"managers.default": {"read_your_writes": "cluster"}})


def farewells(watch: Node) -> int:
    """How many members have left with a farewell."""
    return sum(len(change["clean"]) for change in watch.do("changes"))


def kill(node: str) -> None:
    """SIGKILL for a worker, whose node is named by its process id."""
    os.kill(int(node[1:]), signal.SIGKILL)


def leave(server: Server) -> None:
    """SIGTERM, and an end in good order: nothing on standard error."""
    server.signal(signal.SIGTERM)
    server.exit_code()
    assert "Traceback" not in server.log
    assert "Error" not in server.log, server.log


def fill(browser: Browser, servers: list[Server], items: str) -> None:
    """A request for each letter, to the servers in turn; each must see all before it."""
    for number, item in enumerate(items):
        server = servers[number % len(servers)]
        seen = browser.post(server, f"/cart/{item}")
        assert seen["cart"][-1] == item
        assert "".join(browser.get(servers[(number + 1) % len(servers)], "/cart")["cart"]) == "".join(seen["cart"])


@pytest.mark.parametrize("server", [UVICORN, HYPERCORN], ids=["uvicorn", "hypercorn"])
def test_a_user_goes_on_with_the_next_server_and_servers_leave_with_a_farewell(cluster: Cluster, config: Path, server: Any) -> None:
    watch, browser = cluster.nodes[0], Browser()
    with Server([*server, APP], config) as a, Server([*server, APP], config) as b:
        meet(cluster, 3, a, b)
        fill(browser, [a, b], "wool")
        browser.post(a, "/login/ann")
        kill(browser.get(a, "/cart")["node"])
        assert browser.get(b, "/cart")["user"] == "ann"
        fill(browser, [b], "yarn")
        assert "".join(browser.get(b, "/cart")["cart"]) == "woolyarn"
        until(lambda: len(watch.names) == 2, what="the killed one is noticed")
        assert farewells(watch) == 0
        leave(b)
        until(lambda: len(watch.names) == 1)
        assert farewells(watch) == 1


@pytest.mark.parametrize("server", [UVICORN, HYPERCORN], ids=["uvicorn", "hypercorn"])
def test_each_worker_is_a_node_and_their_user_does_not_notice_which_one_answers(cluster: Cluster, config: Path, server: Any) -> None:
    watch, browser = cluster.nodes[0], Browser()
    with Server([*server, "--workers", "2", APP], config) as one:
        workers = meet(cluster, 3, one)
        fill(browser, [one], "wool")
        asked = {browser.get(one, "/cart")["node"] for _ in range(20)}
        assert asked <= set(workers)
        leave(one)
        until(lambda: len(watch.names) == 1)
        assert farewells(watch) == 2


def test_a_worker_that_is_killed_is_replaced_and_its_users_go_on(cluster: Cluster, config: Path) -> None:
    """uvicorn starts another in its place (hypercorn ends all)."""
    browser = Browser()
    with Server([*UVICORN, "--workers", "2", "--timeout-worker-healthcheck", "1", APP], config) as one:
        before = meet(cluster, 3, one)
        fill(browser, [one], "wool")
        kill(before[0])
        until(lambda: before[0] not in cluster.nodes[0].names)
        assert "".join(until(lambda: patient(browser, one))["cart"]) == "wool"
        after = meet(cluster, 3)
        assert before[1] in after
        assert before[0] not in after
        leave(one)


def test_a_new_server_has_what_the_others_hold_before_its_first_answer(tmp_path: Path) -> None:
    with Cluster() as cluster:
        watch, browser = cluster.start("watch"), Browser()
        held = watch.do("fill", count=2000)
        browser.cookie = held[-1]
        with Server([*UVICORN, APP], configuration(cluster, tmp_path)) as one:
            until(lambda: patient(browser, one), what="its first answer")
            assert browser.cookie == f"{held[-1]}.{meet(cluster, 2)[0]}", "it knew the session"


def test_a_worker_that_has_served_enough_leaves_with_a_farewell(cluster: Cluster, config: Path) -> None:
    watch = cluster.nodes[0]
    with Server([*UVICORN, "--limit-max-requests", "5", APP], config) as one:
        meet(cluster, 2, one)
        until(lambda: one.answers("/health") is None or not one.is_running, what="its end")
        one.exit_code()
        until(lambda: watch.names == ["watch"])
        assert farewells(watch) == 1


def test_a_frozen_node_holds_the_request_that_wants_its_word_and_no_other(cluster: Cluster, tmp_path: Path) -> None:
    config = configuration(cluster, tmp_path, **{"managers.default": {"acks": "one", "ack_timeout_s": 1.5}})
    watch, browser = cluster.nodes[0], Browser()
    with Server([*UVICORN, APP], config) as one:
        meet(cluster, 2, one)
        took: list[float] = []

        def write() -> None:
            began = time.monotonic()
            browser.post(one, "/login/ann")
            browser.post(one, "/cart/wool")
            took.append(time.monotonic() - began)

        browser.post(one, "/cart/yarn")
        watch.signal(signal.SIGSTOP)
        writing = threading.Thread(target=write)
        writing.start()
        others = []
        while writing.is_alive():
            began = time.monotonic()
            assert Browser().get(one, "/health")["members"]
            others.append(time.monotonic() - began)
        watch.signal(signal.SIGCONT)
        assert took[0] > 1.4
        assert len(others) > 20
        assert sorted(others)[len(others) // 2] < 0.1
        assert max(others) < 1.0


def patient(browser: Browser, server: Server) -> Any:
    """A connection that the killed worker had taken is lost; the browser asks again."""
    try:
        return browser.get(server, "/cart")
    except (OSError, HTTPException):
        return None


def chatting(server: Server, cookie: str) -> Any:
    return connect(f"ws://127.0.0.1:{server.port}/ws", additional_headers={"Cookie": f"sid={cookie}"})


def knows(server: Server, cookie: str) -> bool:
    """Whether it lets this user in: that others see all nodes does not say that these two see each other."""
    try:
        with chatting(server, cookie):
            return True
    except (WebSocketException, OSError):
        return False


def test_the_chat_goes_on_with_the_next_node_and_a_logout_closes_every_socket(cluster: Cluster, tmp_path: Path) -> None:
    config = configuration(cluster, tmp_path)
    with Server(["examples/chat.py", "a", "PORT"], config) as a, Server(["examples/chat.py", "b", "PORT"], config) as b:
        assert meet(cluster, 3, a, b, path="/") == ["a", "b"]
        ann, bob = Browser(), Browser()
        ann.post(a, "/login", "name=ann")
        bob.post(b, "/login", "name=bob")
        until(lambda: knows(b, ann.cookie) and knows(a, bob.cookie), what="the nodes have met")
        with chatting(a, ann.cookie) as hers, chatting(b, bob.cookie) as his:
            hers.send("hello")
            assert (hers.recv(10), his.recv(10)) == ("ann (a): hello", "ann (a): hello")
            his.send("hello ann")
            assert hers.recv(10) == his.recv(10) == "bob (b): hello ann"
            a.kill()
            with pytest.raises(ConnectionClosed):
                hers.recv(10)
            with chatting(b, ann.cookie) as again:
                assert [again.recv(10) for _ in range(2)] == ["ann (a): hello", "bob (b): hello ann"]
                again.send("still here")
                assert again.recv(10) == his.recv(10) == "ann (b): still here"
                ann.post(b, "/logout")
                with pytest.raises(ConnectionClosed) as closed:
                    again.recv(10)
                assert closed.value.rcvd is not None
                assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "session invalidated")
                his.send("gone")
                assert his.recv(10) == "bob (b): gone"
        leave(b)


@pytest.mark.parametrize("server", [UVICORN, HYPERCORN], ids=["uvicorn", "hypercorn"])
def test_a_logout_on_another_node_closes_the_socket_too(cluster: Cluster, tmp_path: Path, server: Any) -> None:
    config = configuration(cluster, tmp_path)
    with Server([*server, "examples.chat:app"], config) as a, Server([*server, "examples.chat:app"], config) as b:
        meet(cluster, 3, a, b, path="/")
        ann = Browser()
        ann.post(a, "/login", "name=ann")
        until(lambda: knows(b, ann.cookie), what="the other node knows her")
        with chatting(a, ann.cookie) as socket:
            ann.post(b, "/logout")
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(10)
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "session invalidated")
        for each in (a, b):
            leave(each)


def test_the_other_examples_run_by_one_command_each(cluster: Cluster, tmp_path: Path) -> None:
    config = configuration(cluster, tmp_path, **{"managers.default": {"acks": "all"}})  # a is killed right after its answer
    stories: dict[str, Any] = {
        "starlette_app": (lambda user, server: user.post(server, "/", "meow"), "/", {"said": ["meow"], "flash": None}),
        "litestar_app": (lambda user, server: user.post(server, "/todo/sleep"), "/todo", {"todo": ["sleep"]}),
        "aiohttp_app": (lambda user, server: user.get(server, "/"), "/", {"count": 2}),
    }
    for example, (act, path, shown) in stories.items():
        with Server([f"examples/{example}.py", "a", "PORT"], config) as a, Server([f"examples/{example}.py", "b", "PORT"], config) as b:
            assert meet(cluster, 3, a, b, path=path) == ["a", "b"]
            browser = Browser()
            act(browser, a)
            a.kill()
            assert browser.get(b, path) == {**shown, "node": "b"}
            until(lambda: cluster.nodes[0].names == ["b", "watch"])
            leave(b)
        until(lambda: cluster.nodes[0].names == ["watch"])


def test_a_node_that_cannot_start_ends_the_server_with_the_reason(cluster: Cluster, tmp_path: Path) -> None:
    taken = cluster.nodes[0].about["port"]
    config = configuration(cluster, tmp_path, node={"port": taken})
    for server in (UVICORN, HYPERCORN):
        with Server([*server, APP], config) as one:
            one.exit_code()
            assert "node.port" in one.log
            assert str(taken) in one.log


def run(program: str) -> list[str]:
    """The lines it printed; it must end by itself, well, and say nothing else."""
    command = [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_the_node_may_share_the_servers_loop() -> None:
    """Twisted's reactor on asyncio's own loop: one thread for all."""
    lines = run(
        f"""
        import asyncio, threading
        from twisted.internet import asyncioreactor, main
        from caterwaul import ClusterManager
        from caterwaul.managers.web.asgi import SessionMiddleware

        async def app(scope, receive, send):
            session = scope["caterwaul.session"]
            session["n"] = session.get("n", 0) + 1
            session.acks = "one"
            await send({{"type": "http.response.start", "status": 200, "headers": []}})
            await send({{"type": "http.response.body", "body": b"%d" % session["n"]}})

        async def ask(middleware, cookie):
            sent = []
            async def send(message):
                sent.append(message)
            headers = [(b"cookie", cookie)] if cookie else []
            await middleware({{"type": "http", "path": "/", "headers": headers, "client": None}}, None, send)
            got = [value.split(b";")[0] for name, value in sent[0]["headers"] if name == b"set-cookie"]
            return sent[1]["body"], got[0] if got else cookie

        async def serve():
            reactor = asyncioreactor.AsyncioSelectorReactor(asyncio.get_running_loop())
            main.installReactor(reactor)
            reactor.startRunning(installSignalHandlers=False)
            common = dict(cluster={{"name": "one-loop"}}, membership={{"multicast_port": {free_port()}}}, admin={{"socket": ""}})
            a, b = (ClusterManager(node={{"name": name}}, **common) for name in "ab")
            async with a.lifespan(), b.lifespan():
                while not all(len(each.members) == 2 and each.is_ready for each in (a, b)):
                    await asyncio.sleep(0.01)
                cookie = None
                for node in (a, b, a):
                    body, cookie = await ask(SessionMiddleware(app, node.manager), cookie)
                    print(body.decode())
                print([thread.name for thread in threading.enumerate() if "reactor" in thread.name], a.is_ready)

        asyncio.run(serve())
        """
    )
    assert lines == ["1", "2", "3", "[] True"]


def test_waiting_for_confirmations_in_another_thread_does_not_hold_the_loop() -> None:
    """The usual shape: the reactor in its own thread. 50 requests wait for the other node at the same time."""
    lines = run(
        f"""
        import asyncio
        from caterwaul import ClusterManager
        from caterwaul.managers.web.asgi import SessionMiddleware

        async def app(scope, receive, send):
            scope["caterwaul.session"]["n"] = 1
            scope["caterwaul.session"].acks = "all"
            await send({{"type": "http.response.start", "status": 200, "headers": []}})
            await send({{"type": "http.response.body", "body": b""}})

        async def serve():
            common = dict(cluster={{"name": "two-threads"}}, membership={{"multicast_port": {free_port()}}}, admin={{"socket": ""}})
            a, b = (ClusterManager(node={{"name": name}}, **common) for name in "ab")
            async with a.lifespan(), b.lifespan():
                while not all(len(each.members) == 2 and each.is_ready for each in (a, b)):
                    await asyncio.sleep(0.01)
                middleware = SessionMiddleware(app, a.manager)
                async def send(message): ...
                scope = {{"type": "http", "path": "/", "headers": [], "client": None}}
                await asyncio.gather(*(middleware(scope, None, send) for _ in range(50)))
                print(a.manager().count, b.manager().count, a.manager().statistics()["in_use"])

        asyncio.run(serve())
        """
    )
    assert lines == ["50 50 0"]
