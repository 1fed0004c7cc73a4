"""A node's own web server: it stops although requests run, and although they still come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from threading import Event
from time import monotonic
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock, StringTransport

from caterwaul.cluster.settings import Settings
from caterwaul.cluster.web import NOT_SERVED, WebService
from caterwaul.managers.web.cookies import CookieSettings
from tests.doubles import Net

_begun, _go_on = Event(), Event()
_GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
_CLOSE = b"\r\nConnection: close\r\n"


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


class Served:
    """A service that serves, and says that it is leaving once `leaving` holds anything."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.leaving: list[object] = []
        settings = Settings.of(web={"listen": "127.0.0.1:8080", "application": f"{__name__}:application"})
        self.service = WebService(settings.web, self.reactor, lambda: bool(self.leaving))
        self.service.start()

    def serve(self) -> None:
        self.service.serve(object(), Net(1).managers[0], CookieSettings())

    def connect(self) -> tuple[Any, StringTransport]:
        connection, transport = self.reactor.tcpServers[0][1].buildProtocol(None), StringTransport()
        connection.makeConnection(transport)
        return connection, transport

    def ask(self, connection: Any, transport: StringTransport) -> bytes:
        """The answer to a GET on this connection."""
        transport.clear()
        connection.dataReceived(_GET)
        self.reactor.turn_until(lambda: transport.value().endswith(b"ok") or b" 503 " in transport.value())
        return transport.value()

    def closes(self, transport: StringTransport) -> bool:
        """Whether this end closes the connection, which it does after the last byte of an answer."""
        self.reactor.turn_until(lambda: transport.disconnecting)
        return transport.disconnecting

    def stop(self) -> Deferred[None]:
        self.leaving.append(True)
        return Deferred.fromCoroutine(self.service.stop())


@pytest.fixture
def make() -> Iterator[Callable[[], Served]]:
    """Makes services, and ends their threads, for which the process would wait."""
    made: list[Served] = []

    def make() -> Served:
        made.append(Served())
        return made[-1]

    yield make
    _go_on.set()
    for each in made:
        stopped = each.stop()
        each.reactor.advance(10)
        each.reactor.turn_until(lambda stopped=stopped: stopped.called)


@pytest.fixture
def served(make: Callable[[], Served]) -> Served:
    """One that serves, and whose application answers at once."""
    _go_on.set()
    served = make()
    served.serve()
    return served


def test_a_stop_lets_a_running_request_write_its_response(served: Served) -> None:
    """The response is written by the reactor, so a reactor that waited for the request's thread would wait for ever."""
    _begun.clear()
    _go_on.clear()
    connection, transport = served.connect()
    kept = served.connect()
    connection.dataReceived(_GET)
    assert _begun.wait(10)
    stopped = served.stop()
    served.reactor.advance(0.6)
    assert not stopped.called
    _go_on.set()
    served.reactor.turn_until(lambda: stopped.called)
    assert stopped.called
    assert transport.value().endswith(b"ok")
    assert NOT_SERVED in served.ask(*kept)  # nobody would answer it any more


def test_while_it_leaves_every_answer_ends_its_connection(served: Served) -> None:
    connection, transport = served.connect()
    assert _CLOSE not in served.ask(connection, transport)
    served.leaving.append(True)
    assert _CLOSE in served.ask(connection, transport)
    assert served.closes(transport)
    served.leaving.clear()  # the drain was cancelled
    assert _CLOSE not in served.ask(*served.connect())


def test_a_stop_answers_requests_that_still_come_until_none_has_come_for_a_moment(served: Served) -> None:
    """A balancer that has not noticed yet sends them on connections it has kept."""
    kept = [served.connect() for _ in range(4)]
    assert b" 200 " in served.ask(*kept[0])
    stopped = served.stop()
    for connection, transport in kept[1:3]:
        served.reactor.advance(0.4)
        assert b" 200 " in served.ask(connection, transport)
        assert served.closes(transport)
    served.reactor.advance(0.6)
    served.reactor.turn_until(lambda: stopped.called)
    assert stopped.called
    assert NOT_SERVED in served.ask(*kept[3])


def test_a_stop_that_nobody_disturbs_waits_for_nothing(served: Served) -> None:
    stopped = served.stop()
    served.reactor.turn_until(lambda: stopped.called)
    assert stopped.called


def test_a_stop_that_is_always_disturbed_does_not_take_for_ever(served: Served) -> None:
    kept = [served.connect() for _ in range(20)]
    assert b" 200 " in served.ask(*kept.pop())
    served.stop()
    answers = []
    while kept:
        answers.append(served.ask(*kept.pop()))
        served.reactor.advance(0.3)
    served_on = [b" 200 " in answer for answer in answers]
    assert served_on == [True] * 7 + [False] * 12
    assert all(NOT_SERVED in answer for answer in answers[7:])


def test_before_it_serves_it_says_that_nothing_was_done(make: Callable[[], Served]) -> None:
    served = make()
    answer = served.ask(*served.connect())
    assert b" 503 " in answer
    assert NOT_SERVED in answer
