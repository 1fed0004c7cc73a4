"""A node's own web server: it stops although requests run."""

from __future__ import annotations

from queue import Empty, SimpleQueue
from threading import Event
from time import monotonic
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock, StringTransport

from caterwaul.cluster.settings import Settings
from caterwaul.cluster.web import WebService
from caterwaul.managers.web.cookies import CookieSettings
from tests.doubles import Net

_begun, _go_on = Event(), Event()


def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    _begun.set()
    _go_on.wait(10)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


class Reactor(MemoryReactorClock):
    """Runs what threads ask for when it is turned."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: SimpleQueue[Any] = SimpleQueue()

    def callFromThread(self, call: Any, *args: Any, **keywords: Any) -> None:  # type: ignore[override]
        self.asked.put((call, args, keywords))

    def turn_until(self, done: Any) -> None:
        until = monotonic() + 10
        while not done() and monotonic() < until:
            try:
                call, args, keywords = self.asked.get(timeout=0.05)
            except Empty:
                continue
            call(*args, **keywords)


def test_a_stop_lets_a_running_request_write_its_response() -> None:
    """The response is written by the reactor, so a reactor that waited for the request's thread would wait for ever."""
    reactor = Reactor()
    settings = Settings.of(web={"listen": "127.0.0.1:8080", "application": f"{__name__}:application"})
    service = WebService(settings.web, reactor)
    service.start()
    service.serve(object(), Net(1).managers[0], CookieSettings())
    connection = reactor.tcpServers[0][1].buildProtocol(None)
    transport = StringTransport()
    connection.makeConnection(transport)
    connection.dataReceived(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert _begun.wait(10)
    stopped = Deferred.fromCoroutine(service.stop())
    assert not stopped.called
    _go_on.set()
    reactor.turn_until(lambda: stopped.called)
    assert stopped.called
    assert transport.value().endswith(b"ok")
    transport.clear()
    connection.dataReceived(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert transport.value().startswith(b"HTTP/1.1 503 ")  # nobody would answer it any more
