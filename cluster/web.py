"""A node that serves a WSGI application itself: table `[web]`, for `twistd caterwaul` and `caterwaul node`.

The application runs in a pool of threads of its own. It finds its session in ``environ["caterwaul.session"]`` and the node
in ``environ["caterwaul.node"]``. The directory the node was started in is importable, as other servers have it.

How a node leaves without an error for anybody, whether or not balancers have noticed by then:

1. From the moment it drains or stops, each answer says ``Connection: close``: kept connections end, and none of them in the middle of a request.
2. At the stop it refuses new connections, which shows any balancer that it must go elsewhere, and goes on serving on the connections there are until nobody asks any more.
3. Who asks even then is told, by a header of the answer, that the request was not looked at: it may be sent elsewhere, whatever it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from math import inf
from threading import Thread
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater
from twisted.python.threadpool import ThreadPool
from twisted.web.resource import Resource
from twisted.web.server import Request, Site
from twisted.web.wsgi import WSGIResource

from ..managers.base import SessionManager
from ..managers.web.cookies import CookieSettings
from ..managers.web.wsgi import SessionMiddleware
from ..membership.errors import LocalError
from .crosschecks import split_address
from .tables import WebSettings
from .wrapping import is_asgi, recognise, refuse_other_kinds, wrapped

__all__ = ["NOT_SERVED", "WebService", "load_application"]

#: A header of an answer: nothing was done about the request.
NOT_SERVED = b"Caterwaul-Not-Served"

_QUIET_S = 0.5  # no request for so long: whoever sends them has noticed
_SERVE_ON_S = 2.0  # at a stop: longest wait for that
_REQUESTS_S = 2.0  # at a stop: time for requests that run; a commit waits for confirmations less than that

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class WebService:
    """Listens from `start` to `stop`; answers 503 until `serve` says with which sessions. Reactor thread. `is_leaving`: whether balancers should go elsewhere."""

    def __init__(self, settings: WebSettings, reactor: Any, is_leaving: Callable[[], bool]) -> None:
        self._settings = settings
        self._reactor = reactor
        self._application: App | None = None
        self._pool = ThreadPool(0, settings.threads, "caterwaul-web")
        self._site = _Site(reactor, is_leaving)
        self._port: IListeningPort | None = None

    def start(self) -> str:
        """The address it listens on, ``host:port``. Raises `LocalError` when the application or the port cannot be had."""
        self._application = load_application(self._settings.application)
        if is_asgi(self._application):
            raise LocalError(f"web.application: {self._settings.application} is an ASGI application, and a node serves WSGI; see `caterwaul wrap`")
        if self._settings.wrap:
            recognise(self._application)
        address = split_address(self._settings.listen, None)
        assert address is not None, "checked with the settings"
        host, port = address
        try:
            bound: Any = self._reactor.listenTCP(port, self._site, interface=host)
        except CannotListenError as error:
            raise LocalError(f"web.listen asks for TCP port {port} on {host}, which cannot be had: {error.socketError}") from None
        self._pool.start()
        self._port = bound
        port = bound.getHost().port
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def serve(self, node: object, manager: SessionManager, cookie: CookieSettings) -> None:
        """From now on requests reach the application."""
        assert self._application is not None, "started"
        if self._settings.wrap:
            application = _with_node(wrapped(self._application, manager, cookie), node)
        else:
            application = SessionMiddleware(_with_node(self._application, node), manager, cookie)
        self._site.resource = WSGIResource(self._reactor, self._pool, application)

    async def stop(self) -> None:
        """Take no more connections; requests that run, and those that still come, are answered, a while."""
        port, self._port = self._port, None
        if port is not None:
            await maybeDeferred(port.stopListening)
            await self._quiet()
            self._site.resource = _NotServing()  # type: ignore[no-untyped-call]
            ended: Deferred[None] = Deferred()
            Thread(target=self._join, args=(ended,), name="caterwaul-web-stop", daemon=True).start()
            await ended.addTimeout(_REQUESTS_S, self._reactor, lambda result, timeout: None)

    async def _quiet(self) -> None:
        """Until no request has come for a moment, or it takes too long."""
        until = self._reactor.seconds() + _SERVE_ON_S
        while (left := min(self._site.asked_at + _QUIET_S, until) - self._reactor.seconds()) > 0:
            await deferLater(self._reactor, left)

    def _join(self, ended: Deferred[None]) -> None:
        """In a thread of its own: a request needs the reactor to write its response and to hear who confirmed."""
        self._pool.stop()
        self._reactor.callFromThread(lambda: None if ended.called else ended.callback(None))


class _Site(Site):
    """Ends each connection with the answer to its next request while the node is leaving."""

    displayTracebacks = False

    def __init__(self, clock: Any, is_leaving: Callable[[], bool]) -> None:
        super().__init__(_NotServing())  # type: ignore[no-untyped-call]
        self._clock = clock
        self._is_leaving = is_leaving
        self.asked_at = -inf  #: when the last request came

    def getResourceFor(self, request: Request) -> Any:
        self.asked_at = self._clock.seconds()
        if self._is_leaving():
            request.setHeader(b"connection", b"close")
            request.channel.persistent = False  # so that this end closes, and does not only announce it
        return super().getResourceFor(request)  # type: ignore[no-untyped-call]

    def log(self, request: Any) -> None:
        """Balancers keep access logs; one more costs each request."""


class _NotServing(Resource):
    """Before the sessions are there, and on connections that outlive the stop."""

    isLeaf = True

    def render(self, request: Request) -> bytes:
        request.setResponseCode(503)
        request.setHeader(NOT_SERVED, b"1")
        request.setHeader(b"retry-after", b"1")
        request.setHeader(b"connection", b"close")
        return b"this node does not serve at the moment\n"


@cache  # what a function makes is made once
def load_application(name: str) -> App:
    """The callable that ``module:callable`` names, or what ``module:function()`` gives. Raises `LocalError`."""
    module_name, _, path = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = import_module(module_name)
    except ImportError as error:
        raise LocalError(f"web.application: module {module_name} cannot be imported: {error}") from error
    makes = path.endswith("()")
    for part in path.removesuffix("()").split("."):
        found = getattr(found, part, None)
    if callable(found) and makes:
        found = found()
    refuse_other_kinds(found)
    if not callable(found):
        raise LocalError(f"web.application: {module_name} has no callable {path}")
    return found  # type: ignore[no-any-return]


def _with_node(application: App, node: object) -> App:
    def with_node(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ["caterwaul.node"] = node
        return application(environ, start_response)

    return with_node
