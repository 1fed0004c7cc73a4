"""The admin service over TCP: every route, without a token, with a wrong one, and with the right one. Requirement 57."""

from __future__ import annotations

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.web.resource import Resource

from caterwaul.cluster.admin import admin_resource
from caterwaul.cluster.admin_gate import Gate, GuardedSite, Limited
from caterwaul.membership.secret import Secret

from .test_admin import Node

TOKEN, OTHER = "right-token-of-32-bytes-and-more", "wrong-token-of-32-bytes-and-more"


def routes(resource: Resource, path: str = "") -> list[tuple[str, str]]:
    """(method, path) of everything that is served."""
    found = [(method.decode(), path) for method in getattr(resource, "allowedMethods", ())] if resource.isLeaf else []
    for name, child in sorted(resource.children.items()):
        found += routes(child, f"{path}/{name.decode()}")
    return found


ROUTES = routes(admin_resource(Node()))


class Server:
    def __init__(self, *, read_only: bool = False, known: bool = False) -> None:
        self.clock = MemoryReactorClock()
        self.node = Node()
        self.gate = Gate([Secret(TOKEN.encode())], read_only=read_only)
        self.site = GuardedSite(admin_resource(self.node), self.gate, self.clock, lambda request: known)
        self.site.startFactory()

    def ask(self, method: str, path: str, authorization: str = "", *, length: str = "Content-Length: 0", body: bytes = b"") -> int:
        """The status."""
        header = f"Authorization: {authorization}\r\n" if authorization else ""
        return self.say(f"{method} {path} HTTP/1.1\r\nHost: a\r\n{header}{length}\r\n\r\n".encode("latin-1") + body)

    def say(self, data: bytes) -> int:
        protocol = self.site.buildProtocol(None)
        self.transport = StringTransport()
        protocol.makeConnection(self.transport)
        protocol.dataReceived(data)
        return int(self.transport.value().split(b" ", 2)[1])


def test_there_are_routes_to_test() -> None:
    assert ("POST", "/leave") in ROUTES
    assert ("GET", "/sessions") in ROUTES
    assert len(ROUTES) > 12


@pytest.mark.parametrize(("method", "path"), [*ROUTES, ("GET", "/"), ("GET", "/none"), ("DELETE", "/members"), ("OPTIONS", "/members")])
@pytest.mark.parametrize(
    "authorization", ["", "Bearer", f"Bearer {OTHER}", "Bearer short", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}"]
)
def test_nothing_answers_without_the_token(method: str, path: str, authorization: str) -> None:
    server = Server()
    assert server.ask(method, path, authorization) == 401
    assert server.node.state == "serving"
    assert server.gate.refused == 1


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_everything_answers_with_it(method: str, path: str) -> None:
    assert Server().ask(method, path, f"Bearer {TOKEN}") not in (401, 403, 429)
    assert Server(known=True).ask(method, path) not in (401, 403, 429)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_what_changes_something_has_to_be_allowed(method: str, path: str) -> None:
    server = Server(read_only=True)
    assert (server.ask(method, path, f"bearer {TOKEN}") == 403) == (method == "POST")
    assert (Server(read_only=True, known=True).ask(method, path) == 403) == (method == "POST")
    assert server.node.state == "serving"


def test_who_guesses_is_slowed_and_nobody_else() -> None:
    gate = Gate([Secret(TOKEN.encode())], read_only=True)
    wrong = [gate.refusal(0.0, "10.0.0.1", f"Bearer {OTHER}", b"GET") for _ in range(12)]
    assert wrong == [401] * 10 + [429] * 2
    assert gate.refusal(0.0, "10.0.0.1", f"Bearer {TOKEN}", b"GET") == 0, "who has the token is not shut out by who has not"
    assert gate.refusal(0.0, "10.0.0.2", f"Bearer {OTHER}", b"GET") == 401
    assert gate.refusal(7.0, "10.0.0.1", f"Bearer {OTHER}", b"GET") == 401
    assert [gate.refusal(7.0, "10.0.0.2", f"Bearer {TOKEN}", b"GET") for _ in range(50)] == [0] * 50, "right ones cost nothing"


@pytest.mark.parametrize("authorization", ["", f"Bearer {TOKEN}"])
@pytest.mark.parametrize(
    "length", ["Content-Length: 1000000", "Transfer-Encoding: chunked", "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 9"]
)
def test_a_body_is_not_read(authorization: str, length: str) -> None:
    server = Server()
    assert server.ask("POST", "/drain", authorization, length=length, body=b"a=1&b=2&c") == 413
    assert server.transport.disconnecting
    assert server.node.state == "serving"


def test_what_is_no_text_is_no_token() -> None:
    assert Server().ask("GET", "/members", "Bearer \xff\xfe" * 20) == 401


def test_the_server_as_a_whole_is_behind_the_gate_too() -> None:
    assert Server().ask("OPTIONS", "*") == 401
    assert Server().ask("OPTIONS", "*", f"Bearer {TOKEN}") == 404


def test_more_connections_than_a_few_are_closed_at_once() -> None:
    limited = Limited(Server().site)
    limited.startFactory()
    made = []
    for _ in range(32):
        made.append(limited.buildProtocol(None))
        made[-1].makeConnection(StringTransport())
    assert limited.buildProtocol(None) is None
    made[0].connectionLost(Failure(ConnectionDone()))
    assert limited.buildProtocol(None) is not None
