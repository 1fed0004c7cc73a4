"""The reverse proxy against nodes that refuse, break, hang and stream: real sockets, the reactor in a thread."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from typing import Any

import pytest
from twisted.internet.threads import blockingCallFromThread

from caterwaul.cluster.balancer import BalancerSettings, Node, NodeUp, ReverseProxy
from caterwaul.cluster.embedding import find_reactor
from caterwaul.cluster.web import NOT_SERVED

_OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n%s"


class _Backend:
    """A node of one thread per connection. `answer(head, body)`: bytes to send; None: break the connection; `hang`: say nothing."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: list[tuple[bytes, bytes]] = []
        self.answer: Callable[[bytes, bytes], bytes | None] = lambda head, body: ok(name.encode())
        self.hangs = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for each in (self._listening, *self._connections):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection.makefile("rb") as stream:
                while line := stream.readline():
                    head, length = line, 0
                    while (line := stream.readline()) not in (b"\r\n", b""):
                        head += line
                        if line.lower().startswith(b"content-length:"):
                            length = int(line.split(b":")[1])
                    body = stream.read(length)
                    if self.hangs.is_set():
                        continue
                    if b" /health" in head:
                        connection.sendall(ok(b"ready"))
                        continue
                    self.seen.append((head, body))
                    answer = self.answer(head, body)
                    if answer is None or answer.endswith(b"<cut>"):
                        connection.sendall((answer or b"").removesuffix(b"<cut>"))
                        connection.shutdown(socket.SHUT_RDWR)
                        return
                    connection.sendall(answer)
        except OSError:
            pass


def ok(body: bytes, headers: bytes = b"") -> bytes:
    return _OK % (len(body), headers, body)


class _World:
    """Two nodes behind a proxy, all found ready."""

    def __init__(self, prefork: bool = False, **settings: Any) -> None:
        self.reactor = find_reactor()
        self.nodes = {name: _Backend(name) for name in ("node1", "node2")}
        ready = threading.Semaphore(0)
        self.port = 0

        def start() -> None:
            chosen = BalancerSettings(probe_timeout_s=0.5, response_timeout_s=5.0, **settings)
            self.proxy = ReverseProxy(self.reactor, chosen, lambda event: ready.release() if isinstance(event, NodeUp) else None)
            self.proxy.start()
            for name, backend in self.nodes.items():
                self.proxy.add(Node(name, "127.0.0.1", backend.port, prefork))
            self._listening = self.reactor.listenTCP(0, self.proxy.site, interface="127.0.0.1")
            self.port = self._listening.getHost().port

        blockingCallFromThread(self.reactor, start)  # type: ignore[arg-type]
        for _ in self.nodes:
            assert ready.acquire(timeout=5)

    def close(self) -> None:
        blockingCallFromThread(self.reactor, self._listening.stopListening)  # type: ignore[arg-type]
        blockingCallFromThread(self.reactor, self.proxy.stop)  # type: ignore[arg-type]
        for backend in self.nodes.values():
            backend.close()

    def ask(self, method: str = "GET", target: str = "/", body: bytes | None = None, route: str = "node1", **headers: str) -> tuple[HTTPResponse, bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, target, body, {"Cookie": f"sid={'a' * 43}.{route}", **headers})
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()


@pytest.fixture
def world() -> Iterator[_World]:
    world = _World()
    yield world
    world.close()


def test_a_session_reaches_the_node_of_its_cookie_with_headers_and_body(world: _World) -> None:
    world.nodes["node2"].answer = lambda head, body: ok(body[::-1], b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\n")
    response, body = world.ask("POST", "/x?y=z", b"hello", "node2", **{"X-Forwarded-For": "6.6.6.6", "Connection": "x-secret", "X-Secret": "1", "X-Own": "2"})
    assert body == b"olleh"
    assert response.headers.get_all("Set-Cookie") == ["a=1", "b=2"]
    head, got = world.nodes["node2"].seen[0]
    lower = head.lower()
    assert got == b"hello"
    assert head.startswith(b"POST /x?y=z HTTP/1.1\r\n")
    assert b"x-forwarded-for: 127.0.0.1\r\n" in lower
    assert b"x-forwarded-proto: http\r\n" in lower
    assert b"host: 127.0.0.1:%d\r\n" % world.port in lower
    assert b"x-own: 2" in lower
    assert b"x-secret" not in lower
    assert b"6.6.6.6" not in lower


def test_a_node_that_refuses_is_replaced_for_every_method(world: _World) -> None:
    world.nodes["node1"].close()
    assert world.ask("POST", "/", b"x")[1] == b"node2"
    assert world.ask()[1] == b"node2"
    assert not world.proxy.is_up("node1")


def test_a_node_that_says_it_did_nothing_is_replaced_for_every_method(world: _World) -> None:
    world.nodes["node1"].answer = lambda head, body: b"HTTP/1.1 503 No\r\n%s: 1\r\nContent-Length: 2\r\n\r\nno" % NOT_SERVED
    response, body = world.ask("POST", "/", b"x")
    assert (response.status, body) == (200, b"node2")
    assert not response.headers.get(NOT_SERVED.decode())
    assert [len(node.seen) for node in world.nodes.values()] == [1, 1]


def test_another_503_is_the_applications_answer(world: _World) -> None:
    world.nodes["node1"].answer = lambda head, body: b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno"
    assert world.ask()[1] == b"no"
    assert world.nodes["node2"].seen == []


def test_a_get_whose_connection_breaks_is_answered_by_the_next_node(world: _World) -> None:
    world.nodes["node1"].answer = lambda head, body: None
    assert world.ask()[1] == b"node2"
    assert len(world.nodes["node1"].seen) == 1


def test_a_post_whose_connection_breaks_is_not_sent_twice(world: _World) -> None:
    world.nodes["node1"].answer = lambda head, body: None
    response, _ = world.ask("POST", "/", b"x")
    assert response.status == 502
    assert response.headers["Retry-After"] == "1"
    assert world.nodes["node2"].seen == []


def test_where_several_processes_take_turns_one_that_breaks_a_connection_is_not_all_of_them() -> None:
    world = _World(prefork=True)
    try:
        first, second = world.nodes.values()
        first.answer = lambda head, body: None if len(first.seen) == 1 else ok(b"another")
        assert world.ask()[1] == b"another"
        first.seen.clear()
        assert world.ask("POST", "/", b"x")[0].status == 502, "the process that ended may have done it"
        assert world.ask()[1] == b"another"
        assert (len(first.seen), second.seen, world.proxy.is_up("node1")) == (2, [], True)
        first.answer = lambda head, body: None
        assert world.ask()[1] == b"node2", "it is tried once more, and then another is"
        first.close()
        assert world.ask("POST", "/", b"x")[1] == b"node2"
        assert not world.proxy.is_up("node1")
    finally:
        world.close()


def test_a_post_is_sent_again_where_the_application_allows_it() -> None:
    world = _World(retry_non_idempotent=True)
    try:
        world.nodes["node1"].answer = lambda head, body: None
        assert world.ask("POST", "/", b"x")[1] == b"node2"
        assert world.nodes["node2"].seen[0][1] == b"x"
    finally:
        world.close()


def test_a_node_that_accepts_and_never_answers_is_given_up(world: _World) -> None:
    world.nodes["node1"].hangs.set()
    assert world.ask()[1] == b"node2"
    assert not world.proxy.is_up("node1")


def test_half_an_answer_never_looks_like_a_whole_one(world: _World) -> None:
    world.nodes["node1"].answer = lambda head, body: b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf<cut>"
    with pytest.raises((IncompleteRead, ConnectionError)):
        world.ask()


def test_a_long_answer_streams_through_unchanged(world: _World) -> None:
    long = bytes(range(256)) * 40_000
    world.nodes["node1"].answer = lambda head, body: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(long), long)
    assert world.ask()[1] == long


def test_a_body_over_the_limit_gets_413_and_reaches_no_node() -> None:
    world = _World(body_max_bytes=1024)
    try:
        assert world.ask("POST", "/", b"x" * 1024)[0].status == 200
        assert world.ask("POST", "/", b"x" * 1025)[0].status == 413
        assert len(world.nodes["node1"].seen) == 1
    finally:
        world.close()


def test_without_any_node_the_user_is_asked_to_come_again(world: _World) -> None:
    for backend in world.nodes.values():
        backend.close()
    response, _ = world.ask()
    assert response.status == 503
    assert response.headers["Retry-After"] == "1"


@pytest.mark.parametrize(("method", "target", "status"), [("CONNECT", "other:443", 405), ("TRACE", "/", 405), ("GET", "http://other/", 400)])
def test_the_proxy_is_no_way_to_elsewhere(world: _World, method: str, target: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", world.port), timeout=5) as connection:
        connection.sendall(f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 %d " % status)
    assert all(backend.seen == [] for backend in world.nodes.values())
