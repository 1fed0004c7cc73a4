"""The users of `caterwaul demo --check`: each has a cookie, writes one pair after the other, and insists on an answer.

A visitor behaves like a browser: it keeps the cookie it was given last, one request at a time. Unlike one it sends a
write again until it was answered, with the same token, and notes how long that took.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlencode

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.web.client import Agent, HTTPConnectionPool, readBody
from twisted.web.http_headers import Headers

from ..balancer.proxy import BytesProducer
from .ledger import Ledger
from .page import COOKIE

__all__ = ["Answer", "Browser", "Visitor", "Visitors"]

_REQUEST_S = 15.0  # no answer in this time: send it again
_RETRY_S = 0.05  # pause before a request is sent again
_CONNECTIONS = 1000
_CONNECTION_S = 15.0  # an unused connection is closed before the server does it


@dataclass(frozen=True, slots=True)
class Answer:
    """A JSON answer: its status, contents, and the session cookie that came with it (empty: none)."""

    status: int
    content: dict[str, Any]
    cookie: str


class Browser:
    """Asks for JSON over kept connections. Reactor thread only."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._pool = HTTPConnectionPool(reactor)
        self._pool.maxPersistentPerHost = _CONNECTIONS
        self._pool.cachedConnectionTimeout = _CONNECTION_S  # type: ignore[assignment]
        self._pool.retryAutomatically = False
        self._agent = Agent(reactor, connectTimeout=_REQUEST_S, pool=self._pool)

    async def ask(self, url: str, *, cookie: str = "", form: dict[str, str] | None = None, timeout_s: float = _REQUEST_S) -> Answer:
        """GET, or POST a form. Raises what Twisted raises when there is no answer; cookies it cannot read count as none."""
        headers = Headers({"Accept": ["application/json"]})
        if cookie:
            headers.setRawHeaders("Cookie", [f"{COOKIE.name}={cookie}"])
        body = None
        if form is not None:
            headers.setRawHeaders("Content-Type", ["application/x-www-form-urlencoded"])
            body = BytesProducer(urlencode(form).encode())
        asked: Deferred[Any] = self._agent.request(b"GET" if body is None else b"POST", url.encode(), headers, body)
        response = await asked.addTimeout(timeout_s, self._reactor)
        text = await readBody(response).addTimeout(timeout_s, self._reactor)
        given = _cookie(response.headers.getRawHeaders("Set-Cookie", []))
        try:
            content = json.loads(text)
        except ValueError:
            content = {}
        return Answer(response.code, content if isinstance(content, dict) else {}, given)

    def close(self) -> Deferred[Any]:
        closed: Deferred[Any] = self._pool.closeCachedConnections()
        return closed


@dataclass
class Visitor:
    """One user. `node` is who answered last."""

    number: int
    cookie: str = ""
    node: str = ""
    asked_at: float = 0.0  #: when the request under way (or the last one) was first sent
    answered_at: float = 0.0
    failures: int = 0


@dataclass
class Visitors:
    """Everybody who writes through the proxy at `url`. `interval_s`: from one write of a visitor to its next."""

    reactor: Any
    browser: Browser
    url: str
    ledger: Ledger
    interval_s: float
    rng: random.Random
    everybody: list[Visitor] = field(default_factory=list)
    latencies: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})  #: seconds, by whether an ack was wanted
    failovers: list[float] = field(default_factory=list)  #: seconds until the first answer after `watch_failover`, of those whom that node had served
    failed_requests: int = 0
    problems: Counter[str] = field(default_factory=Counter)  #: what was wrong with those
    _stopping: bool = False
    _watched: dict[int, float] = field(default_factory=dict)
    _done: Deferred[list[None]] | None = None

    def start(self, number: int) -> None:
        """`number` visitors begin, spread over one interval."""
        self.everybody = [Visitor(index) for index in range(number)]
        self._done = gatherResults([Deferred.fromCoroutine(self._visit(visitor)) for visitor in self.everybody], consumeErrors=True)

    async def stop(self) -> None:
        """Nobody begins another write; returns when all have ended theirs. Raises the first unexpected error of a visitor."""
        self._stopping = True
        if self._done is not None:
            await self._done

    def watch_failover(self, node: str) -> int:
        """From now on note the next answer to each visitor of this node; how many they are."""
        affected = {visitor.number: self.reactor.seconds() for visitor in self.everybody if visitor.node == node}
        self._watched |= affected
        return len(affected)

    def unanswered(self) -> int:
        """Watched visitors that still have no answer."""
        return len(self._watched)

    def served_by(self) -> dict[str, int]:
        """How many visitors each node served last."""
        counts: dict[str, int] = {}
        for visitor in self.everybody:
            counts[visitor.node] = counts.get(visitor.node, 0) + 1
        return counts

    async def _visit(self, visitor: Visitor) -> None:
        clock: IReactorTime = self.reactor
        await deferLater(clock, self.rng.random() * self.interval_s)
        turn = visitor.number
        while not self._stopping:
            begun = clock.seconds()
            turn += 1
            await self._write(visitor, wants_ack=turn % 2 == 0)
            await deferLater(clock, max(0.0, begun + self.interval_s - clock.seconds()))

    async def _write(self, visitor: Visitor, wants_ack: bool) -> None:
        token = f"{visitor.number}.{self.rng.getrandbits(64):016x}"
        write = self.ledger.begin(visitor.number, token, wants_ack)
        form = {"name": write.name, "value": token, "acks": "one" if wants_ack else "none"}
        visitor.asked_at = self.reactor.seconds()
        while True:
            answer = await self._try(visitor, form)
            now = self.reactor.seconds()
            if answer is not None:
                break
            self.failed_requests += 1
            visitor.failures += 1
            if self._stopping and visitor.failures > 100:
                return
            await deferLater(self.reactor, _RETRY_S)
        visitor.failures = 0
        visitor.cookie = answer.cookie or visitor.cookie
        visitor.node, visitor.answered_at = answer.content["node"], now
        self.ledger.answer(write, now, visitor.node, answer.content["confirmed"])
        self.latencies[wants_ack].append(now - visitor.asked_at)
        killed_at = self._watched.pop(visitor.number, None)
        if killed_at is not None:
            self.failovers.append(now - max(visitor.asked_at, killed_at))

    async def _try(self, visitor: Visitor, form: dict[str, str]) -> Answer | None:
        try:
            answer = await self.browser.ask(f"{self.url}/set", cookie=visitor.cookie, form=form)
        except Exception as error:  # whatever broke: a user would click again
            self.problems[type(error).__name__] += 1
            return None
        if answer.status == 200 and "confirmed" in answer.content:
            return answer
        self.problems[f"{answer.status} {answer.content.get('error', '')}".strip()] += 1
        return None


def _cookie(headers: list[str]) -> str:
    for header in headers:
        try:
            morsel = SimpleCookie(header).get(COOKIE.name)
        except CookieError:
            continue
        if morsel is not None:
            return morsel.value
    return ""
