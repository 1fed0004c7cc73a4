"""The embedded sticky reverse proxy: `Balancer` decides, twisted.web carries.

A request is read whole (at most `body_max_bytes`), so that it can be sent a second time; an answer is streamed, with
back-pressure, once its head is here. What happens when a node fails depends on how much of the request it can have seen:

- It refused the connection, or answered that it does not serve (`web.py`): it did nothing, so any request goes to the next node.
- It broke the connection, or was silent, before the head of its answer: GET, HEAD and the other methods that HTTP calls
  idempotent go to the next node. A POST does not (nginx and HAProxy do the same by default): the node may have done it.
  Its user gets 502 with `Retry-After`, unless `retry_non_idempotent` says that the application's writes can be repeated.
  Where several processes take turns behind its address (`Node.prefork`), it is the first to be tried once more.
- It broke in the middle of an answer: the client's connection is cut, so that half an answer never looks like a whole one.

The proxy is the outermost one: it replaces the `X-Forwarded-*` that a client sent, and passes `Host` and cookies unchanged.
Upgrades (WebSocket) are not passed on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IConsumer, IPushProducer, IReactorTCP, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, HTTPConnectionPool, ResponseDone
from twisted.web.http import NO_BODY_CODES, PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgentEndpointFactory, IBodyProducer, INonQueuedRequestFactory, IResponse
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site
from zope.interface import directlyProvides, implementer

from ...membership.driver import Driver
from ...membership.effects import Notify
from ..web import NOT_SERVED
from .choice import Balancer, BalancerSettings, GiveUp, Node, NodeDown, NodeUp, Probe

__all__ = ["BytesProducer", "ReverseProxy"]

_log = Logger()
_IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"})
_REFUSED_METHODS = frozenset({b"CONNECT", b"TRACE"})  # tunnels, and echoes of headers that scripts must not see
_NOT_PASSED = frozenset(
    {b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer"}
    | {b"transfer-encoding", b"upgrade", b"content-length", b"expect", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"forwarded"}
)


@implementer(IBodyProducer)
class BytesProducer:
    """A request's body that is in memory."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None: ...

    def stopProducing(self) -> None: ...

    def resumeProducing(self) -> None: ...


class _NotServed(ConnectError):
    """The node does not serve at the moment"""


class _OneEnded(Exception):
    """A connection broke, to one of several processes"""


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """One dial and its outcome at once: `HostnameEndpoint`, the default, tells of a refusal 0.3 s late, when no other address can follow."""

    def __init__(self, reactor: Any, timeout_s: float) -> None:
        self._reactor = reactor
        self._timeout_s = timeout_s

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        host = uri.host.decode("ascii").strip("[]")
        kind = TCP6ClientEndpoint if ":" in host else TCP4ClientEndpoint
        endpoint: IStreamClientEndpoint = kind(self._reactor, host, uri.port, self._timeout_s)
        return endpoint


class _BoundedRequest(Request):
    """Refuses a body over the limit before it is all here."""

    body_max_bytes = 0  #: set by the subclass that a proxy makes for itself
    _body_bytes = 0
    _refused = False
    channel: Any

    def gotLength(self, length: int | None) -> None:
        super().gotLength(length)  # type: ignore[no-untyped-call]
        if length is not None and length > self.body_max_bytes:
            self._refuse()

    def handleContentChunk(self, data: bytes) -> None:
        self._body_bytes += len(data)
        if self._body_bytes > self.body_max_bytes:
            self._refuse()
        else:
            super().handleContentChunk(data)  # type: ignore[no-untyped-call]

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if not self._refused:
            super().requestReceived(command, path, version)  # type: ignore[no-untyped-call]

    def _refuse(self) -> None:
        if not self._refused:
            self._refused = True
            self.channel.transport.write(b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.channel.loseConnection()


class ReverseProxy:
    """`site` is what to listen with; nodes come and go with `add` and `remove`. Reactor thread only."""

    def __init__(self, reactor: Any, settings: BalancerSettings | None = None, listener: Callable[[NodeUp | NodeDown], None] = lambda event: None) -> None:
        self.settings = settings or BalancerSettings()
        self._reactor: IReactorTCP = reactor
        self._clock = reactor
        self._listener = listener
        self._balancer = Balancer(self.settings)
        self._driver = Driver(self._balancer, reactor, self._perform)
        self._running = False
        self._waiting: dict[int, Deferred[Any]] = {}
        self._pool = HTTPConnectionPool(reactor)
        self._pool.maxPersistentPerHost = self.settings.idle_connections_max
        self._pool.cachedConnectionTimeout = self.settings.idle_connection_s  # type: ignore[assignment]
        self._pool.retryAutomatically = False  # it would retry on the node that just broke the connection
        self._agent = Agent.usingEndpointFactory(reactor, _Endpoints(reactor, self.settings.connect_timeout_s), self._pool)
        request = type("_ProxiedRequest", (_BoundedRequest,), {"body_max_bytes": self.settings.body_max_bytes})
        directlyProvides(request, INonQueuedRequestFactory)
        self.site = Site(_Proxied(self), requestFactory=request)
        self.site.displayTracebacks = False
        self.site.log = _no_log  # type: ignore[method-assign]  # the nodes keep access logs

    def start(self) -> None:
        self._running = True
        self._driver.start()

    def stop(self) -> Deferred[Any]:
        """Give up what is under way; fires when the idle connections are closed."""
        self._running = False
        self._driver.stop()
        for waiting in list(self._waiting.values()):
            waiting.cancel()
        closed: Deferred[Any] = self._pool.closeCachedConnections()
        return closed

    def add(self, node: Node) -> None:
        self._driver.run(self._balancer.add(self._clock.seconds(), node))

    def remove(self, name: str) -> None:
        self._driver.run(self._balancer.remove(name))

    def is_up(self, name: str) -> bool:
        return self._balancer.is_up(name)

    def statistics(self) -> dict[str, object]:
        return self._balancer.statistics()

    def choose(self, cookie: bytes | None, tried: set[str]) -> Node | None:
        return self._balancer.choose(cookie, tried) if self._running else None

    def send(self, node: Node, method: bytes, uri: bytes, headers: Headers, body: bytes) -> Deferred[IResponse]:
        """Ask this node; a failure marks it down. Raises `ValueError` for what is no HTTP request."""
        ticket = self._balancer.sent(self._clock.seconds(), node.name)

        def ended(result: Any) -> Any:
            if not isinstance(result, Failure) and result.headers.hasHeader(NOT_SERVED):
                result.deliverBody(_Discard())
                result = Failure(_NotServed())  # type: ignore[no-untyped-call]
            self._balancer.ended(ticket)
            self._driver.rearm()
            given_up = self._waiting.pop(ticket, None) is None
            if isinstance(result, Failure) and not given_up and self._running:
                one = node.prefork and not result.check(ConnectError)
                self._driver.run(self._balancer.failed(self._clock.seconds(), node.name, result.getErrorMessage(), one=one))
                if one:
                    result = Failure(_OneEnded())
            return result

        try:
            answer: Deferred[IResponse] = self._agent.request(method, _url(node, uri), headers, BytesProducer(body) if body else None)
        except ValueError:
            self._balancer.ended(ticket)
            raise
        self._waiting[ticket] = answer
        self._driver.rearm()
        return answer.addBoth(ended)

    def _perform(self, effect: Any) -> None:
        if isinstance(effect, Probe):
            self._probe(effect)
        elif isinstance(effect, GiveUp):
            waiting = self._waiting.pop(effect.ticket, None)
            if waiting is not None:
                waiting.cancel()
        elif isinstance(effect, Notify) and isinstance(effect.event, NodeUp | NodeDown):
            _log.info("{event}", event=effect.event)
            self._listener(effect.event)
        else:
            raise TypeError(f"unknown effect {effect!r}")

    def _probe(self, probe: Probe) -> None:
        answer = self._agent.request(b"GET", _url(probe.node, self.settings.probe_path.encode()), Headers({}))
        self._waiting[probe.ticket] = answer

        def answered(result: Any) -> None:
            if self._waiting.pop(probe.ticket, None) is None or not self._running:
                return
            if isinstance(result, Failure):
                problem: str | None = result.getErrorMessage()
            else:
                result.deliverBody(_Discard())
                problem = None if result.code == 200 else f"the probe was answered {result.code}"
            self._driver.run(self._balancer.probed(self._clock.seconds(), probe.ticket, problem))

        answer.addBoth(answered)


def _no_log(request: object) -> None: ...


def _url(node: Node, uri: bytes) -> bytes:
    host = f"[{node.host}]" if ":" in node.host else node.host
    return b"http://%s:%d%s" % (host.encode(), node.port, uri)


class _Discard(Protocol):
    def dataReceived(self, data: bytes) -> None: ...


class _Proxied(Resource):
    isLeaf = True

    def __init__(self, proxy: ReverseProxy) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._proxy = proxy

    def render(self, request: Request) -> int:
        if request.method in _REFUSED_METHODS or not request.uri.startswith(b"/"):
            _answer(request, 405 if request.method in _REFUSED_METHODS else 400, "Not passed on.")
        else:
            _Exchange(self._proxy, request).start()
        return NOT_DONE_YET


class _Exchange:
    """One request of a client, until a node has answered it or none is left."""

    def __init__(self, proxy: ReverseProxy, request: Request) -> None:
        self._proxy = proxy
        self._request = request
        self._cookie = request.getCookie(proxy.settings.cookie.encode())
        self._headers = _forwarded(request)
        self._body = request.content.read() if request.content is not None else b""
        self._may_repeat = request.method in _IDEMPOTENT or proxy.settings.retry_non_idempotent
        self._tried: set[str] = set()
        self._again: set[str] = set()  # those that were tried once more
        self._client_gone = False
        self._answer: Deferred[Any] | None = None

    def start(self) -> None:
        self._request.notifyFinish().addErrback(self._gone)
        self._try_next()

    def _gone(self, _: Failure) -> None:
        self._client_gone = True

    def _try_next(self) -> None:
        node = self._proxy.choose(self._cookie, self._tried)
        if node is None:
            _answer(self._request, 503, "No node answers.")
            return
        self._tried.add(node.name)
        try:
            answer = self._proxy.send(node, self._request.method, self._request.uri, self._headers, self._body)
        except ValueError:
            _answer(self._request, 400, "Not a valid request.")
            return
        answer.addCallbacks(self._answered, self._failed, errbackArgs=(node,)).addErrback(self._broken)

    def _answered(self, response: IResponse) -> None:
        if self._client_gone:
            response.deliverBody(_Discard())  # so that the connection can be used again
            return
        request = self._request
        request.setResponseCode(response.code, response.phrase)
        for name, values in response.headers.getAllRawHeaders():
            request.responseHeaders.setRawHeaders(name, values)
        if response.length is not UNKNOWN_LENGTH and request.method != b"HEAD" and response.code not in NO_BODY_CODES:
            request.setHeader(b"content-length", b"%d" % response.length)
        response.deliverBody(_Relay(request))

    def _failed(self, failure: Failure, node: Node) -> None:
        if self._client_gone:
            return
        if failure.check(_OneEnded) and node.name not in self._again:
            self._again.add(node.name)
            self._tried.discard(node.name)
        if self._may_repeat or failure.check(ConnectError):
            self._try_next()
        else:
            _answer(self._request, 502, "The node failed before it answered, and may have done what was asked.")

    def _broken(self, failure: Failure) -> None:
        _log.failure("the proxy failed to pass on an answer", failure)
        if not self._client_gone:
            self._request.loseConnection()


class _Relay(Protocol):
    """Passes an answer's body to the client, no faster than the client reads."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._client_gone = False

    def connectionMade(self) -> None:
        self._request.notifyFinish().addErrback(self._gone)
        self._request.registerProducer(IPushProducer(self.transport), True)

    def dataReceived(self, data: bytes) -> None:
        if not self._client_gone:
            self._request.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._client_gone:
            return
        self._request.unregisterProducer()
        if reason.check(ResponseDone, PotentialDataLoss):
            self._request.finish()
        else:
            self._request.loseConnection()  # half an answer must not look like a whole one

    def _gone(self, _: Failure) -> None:
        self._client_gone = True
        assert self.transport is not None
        self.transport.loseConnection()


def _forwarded(request: Request) -> Headers:
    headers = Headers()
    named = {token.strip().lower() for value in request.requestHeaders.getRawHeaders(b"connection", []) for token in value.split(b",")}
    for name, values in request.requestHeaders.getAllRawHeaders():
        if name.lower() not in _NOT_PASSED and name.lower() not in named:
            headers.setRawHeaders(name, values)
    headers.setRawHeaders(b"X-Forwarded-For", [request.getClientAddress().host.encode()])
    headers.setRawHeaders(b"X-Forwarded-Proto", [b"https" if request.isSecure() else b"http"])
    host = request.getHeader(b"host")
    if host:
        headers.setRawHeaders(b"X-Forwarded-Host", [host])
    return headers


def _answer(request: Request, code: int, text: str) -> None:
    request.setResponseCode(code)
    if code in (502, 503, 504):
        request.setHeader(b"retry-after", b"1")
    request.setHeader(b"content-type", b"text/plain; charset=utf-8")
    request.setHeader(b"cache-control", b"no-store")
    body = f"{text}\n".encode()
    request.setHeader(b"content-length", b"%d" % len(body))
    request.write(body)
    request.finish()
