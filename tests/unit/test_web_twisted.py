"""The twisted.web front where time matters: responses held for confirmations, look-ups, lost connections, producers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from caterwaul.managers.web.twisted_web import SessionRequest, SessionSite

from ..contract.double import Node, World

ID = "A" * 43


class Leaf(Resource):
    isLeaf = True

    def __init__(self, render: Callable[[Any], Any]) -> None:
        super().__init__()
        self.render = render


class Browser:
    """One connection to a site."""

    def __init__(self, node: Node, root: Any, **more: Any) -> None:
        resource = root if isinstance(root, Resource) else Leaf(root)
        self.site = SessionSite(resource, node, reactor=Clock(), **more)
        self.channel = self.site.buildProtocol(IPv4Address("TCP", "192.0.2.1", 4711))
        self.transport = StringTransport()
        self.channel.makeConnection(self.transport)

    def send(self, cookie: str = "", method: str = "GET", path: str = "/") -> bytes:
        field = f"Cookie: __Host-sid={cookie}\r\n" if cookie else ""
        self.channel.dataReceived(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{field}\r\n".encode())
        return self.transport.value()

    def close(self) -> None:
        self.channel.connectionLost(Failure(ConnectionDone()))


class Pull:
    """A pull producer that writes its chunks one by one, as static.File does."""

    def __init__(self, request: Any, chunks: list[bytes]) -> None:
        self.request = request
        self.chunks = chunks
        self.stopped = False

    def resumeProducing(self) -> None:
        self.request.write(self.chunks.pop(0))
        if not self.chunks:
            self.request.unregisterProducer()
            self.request.finish()

    def stopProducing(self) -> None:
        self.stopped = True


def confirmed_write(request: Any) -> Any:
    request.caterwaul_session.acks = "one"
    request.caterwaul_session["n"] = 1
    return request


class TestHolding:
    def test_writes_and_finish_wait_in_order_for_the_confirmation(self, node: Node) -> None:
        def render(request: Any) -> Any:
            confirmed_write(request)
            for chunk in (b"one", b"two", b"three"):
                request.write(chunk)
            request.finish()
            return NOT_DONE_YET

        browser = Browser(node, render)
        assert browser.send() == b""
        assert len(node.open_now) == 1
        node.receipts[0].confirm()
        raw = browser.transport.value()
        assert raw.index(b"Set-Cookie") < raw.index(b"one") < raw.index(b"two") < raw.index(b"three") < raw.index(b"0\r\n\r\n")
        assert node.open_now == []

    def test_a_response_without_a_body_waits_too(self, node: Node) -> None:
        def render(request: Any) -> Any:
            confirmed_write(request).setResponseCode(204)
            request.finish()
            return NOT_DONE_YET

        browser = Browser(node, render)
        assert browser.send() == b""
        node.receipts[0].confirm()
        assert browser.transport.value().startswith(b"HTTP/1.1 204")

    def test_head_with_held_chunks_sends_none_of_them(self, node: Node) -> None:
        def render(request: Any) -> Any:
            confirmed_write(request)
            request.write(b"one")
            request.write(b"two")
            request.finish()
            return NOT_DONE_YET

        browser = Browser(node, render)
        browser.send(method="HEAD")
        node.receipts[0].confirm()
        assert b"Set-Cookie" in browser.transport.value()
        assert browser.transport.value().endswith(b"\r\n\r\n")

    def test_a_producer_is_let_loose_after_the_confirmation(self, node: Node) -> None:
        made: list[Pull] = []

        def render(request: Any) -> Any:
            confirmed_write(request).setHeader(b"Content-Length", b"6")
            made.append(Pull(request, [b"one", b"two"]))
            request.registerProducer(made[0], True)
            return NOT_DONE_YET

        browser = Browser(node, render)
        assert browser.send() == b""
        node.receipts[0].confirm()
        made[0].resumeProducing()
        made[0].resumeProducing()
        assert browser.transport.value().endswith(b"\r\n\r\nonetwo")
        assert node.open_now == []

    def test_the_end_of_a_stream_waits_for_what_was_written_after_the_headers(self, world: World, node: Node) -> None:
        def render(request: Any) -> Any:
            session = request.caterwaul_session
            session["n"] = 1
            request.write(b"first")
            session.acks = "all"
            session["late"] = True
            request.finish()
            return NOT_DONE_YET

        browser = Browser(node, render)
        assert browser.send().endswith(b"first\r\n")
        (session_id,) = world.sessions
        assert world.contents(session_id) == {"n": 1, "late": True}
        node.receipts[1].confirm()
        assert browser.transport.value().endswith(b"0\r\n\r\n")
        assert node.open_now == []

    def test_strict_acks_that_did_not_come_are_an_error_page_in_place_of_the_held_one(self, node: Node) -> None:
        browser = Browser(node, lambda request: confirmed_write(request) and b"all is well")
        browser.send()
        node.receipts[0].refuse(RuntimeError("not confirmed"))
        raw = browser.transport.value()
        assert raw.startswith(b"HTTP/1.1 500")
        assert b"all is well" not in raw
        assert node.open_now == []

    def test_strict_acks_that_did_not_come_at_the_end_of_a_stream_break_it_off(self, node: Node) -> None:
        def render(request: Any) -> Any:
            request.caterwaul_session["n"] = 1
            request.write(b"first")
            confirmed_write(request).caterwaul_session["n"] = 2
            request.finish()
            return NOT_DONE_YET

        browser = Browser(node, render)
        browser.send()
        node.receipts[1].refuse(RuntimeError("not confirmed"))
        assert browser.transport.disconnecting
        assert not browser.transport.value().endswith(b"0\r\n\r\n")
        browser.close()
        assert node.open_now == []

    def test_an_exception_while_the_response_is_held_replaces_it(self, node: Node) -> None:
        def render(request: Any) -> Any:
            confirmed_write(request).write(b"half a page")
            raise RuntimeError("planted by the test")

        browser = Browser(node, render)
        browser.send()
        node.receipts[0].confirm()
        raw = browser.transport.value()
        assert raw.startswith(b"HTTP/1.1 500")
        assert b"half a page" not in raw
        assert node.open_now == []


class TestLookUps:
    def test_the_session_is_there_before_the_tree_is_walked(self, world: World, node: Node) -> None:
        seen: list[Any] = []

        class Root(Resource):
            def getChild(self, path: bytes, request: Request) -> Resource:
                seen.append(request.caterwaul_session)
                return Leaf(lambda request: b"found")

        world.make_remote(ID)
        browser = Browser(node, Root())
        assert browser.send(ID, path="/x") == b""
        assert seen == []
        node.answer()
        assert browser.transport.value().endswith(b"found")
        assert len(seen) == 1

    def test_a_look_up_that_fails_is_an_error_page(self, world: World, node: Node) -> None:
        world.make_remote(ID)
        browser = Browser(node, lambda request: b"never")
        browser.send(ID)
        node.lookups[0][0].errback(RuntimeError("planted by the test"))
        assert browser.transport.value().startswith(b"HTTP/1.1 503")

    @pytest.mark.parametrize("fails", [False, True])
    def test_a_connection_lost_during_the_look_up_releases_and_renders_nothing(self, world: World, node: Node, fails: bool) -> None:
        rendered: list[Any] = []
        world.make_remote(ID)
        browser = Browser(node, rendered.append)
        browser.send(ID)
        browser.close()
        if fails:
            node.lookups[0][0].errback(RuntimeError("planted by the test"))
        else:
            node.answer()
        assert rendered == []
        assert node.open_now == []


class TestLostConnections:
    def test_a_lost_connection_releases_the_session_and_drops_what_was_not_committed(self, world: World, node: Node) -> None:
        def render(request: Any) -> Any:
            request.caterwaul_session["n"] = 1
            return NOT_DONE_YET

        browser = Browser(node, render)
        browser.send()
        assert len(node.open_now) == 1
        browser.close()
        assert node.open_now == []
        assert world.sessions == {}

    def test_writes_after_it_go_nowhere(self, world: World, node: Node) -> None:
        requests: list[Any] = []
        browser = Browser(node, lambda request: requests.append(request) or NOT_DONE_YET)
        browser.send()
        browser.close()
        requests[0].caterwaul_session["n"] = 1
        requests[0].write(b"late")
        assert (node.commits, browser.transport.value()) == (0, b"")

    def test_a_confirmation_after_it_finishes_nothing(self, node: Node) -> None:
        browser = Browser(node, lambda request: confirmed_write(request) and b"page")
        browser.send()
        browser.close()
        (waiting,) = node.receipts[0].waiting
        failures: list[Any] = []
        node.receipts[0].confirm()
        waiting.addErrback(failures.append)
        assert (failures, browser.transport.value(), node.open_now) == ([], b"", [])

    def test_a_confirmation_after_it_sends_nothing_and_stops_the_held_producer(self, node: Node) -> None:
        made: list[Pull] = []

        def render(request: Any) -> Any:
            made.append(Pull(confirmed_write(request), [b"one"]))
            request.registerProducer(made[0], False)
            return NOT_DONE_YET

        browser = Browser(node, render)
        browser.send()
        browser.close()
        node.receipts[0].confirm()
        assert made[0].stopped
        assert browser.transport.value() == b""
        assert node.open_now == []


def test_a_get_that_stands_in_for_head_commits_once_and_before_the_headers(node: Node) -> None:
    class OnlyGet(Resource):
        isLeaf = True

        def render_GET(self, request: Any) -> bytes:
            request.caterwaul_session["n"] = 1
            return b"body"

        render_HEAD = None

    resource = OnlyGet()
    resource.render = lambda request: Resource.render(resource, request)  # type: ignore[method-assign]
    browser = Browser(node, resource)
    raw = browser.send(method="HEAD")
    assert raw.startswith(b"HTTP/1.1 200")
    assert b"Set-Cookie" in raw
    assert b"body" not in raw
    assert node.commits == 1


def test_one_connection_serves_request_after_request(world: World, node: Node) -> None:
    def render(request: Any) -> Any:
        request.caterwaul_session["n"] = 1
        return b"done"

    browser = Browser(node, render)
    browser.send()
    browser.send()
    assert browser.transport.value().count(b"HTTP/1.1 200") == 2
    assert len(world.sessions) == 2


def test_an_own_request_class_derives_from_ours(node: Node) -> None:
    class Mine(SessionRequest):
        mine = True

    browser = Browser(node, lambda request: b"%d" % request.mine, requestFactory=Mine)
    assert browser.send().endswith(b"1")


def test_cookies_set_by_either_way_stay_beside_ours(node: Node) -> None:
    def render(request: Any) -> Any:
        request.addCookie("a", "1")
        request.responseHeaders.addRawHeader("Set-Cookie", "b=2")
        request.caterwaul_session["n"] = 1
        return b""

    raw = Browser(node, render).send()
    assert raw.count(b"Set-Cookie:") == 3


def test_a_request_for_the_server_itself_needs_no_session(node: Node) -> None:
    raw = Browser(node, lambda request: b"").send(method="OPTIONS", path="*")
    assert raw.startswith((b"HTTP/1.1 200", b"HTTP/1.1 405"))
    assert node.open_now == []
