"""A node that serves a WSGI application itself: table `[web]`, for `twistd caterwaul` and `caterwaul node`.

The application runs in a pool of threads of its own. It finds its session in ``environ["caterwaul.session"]`` and the node
in ``environ["caterwaul.node"]``. The directory the node was started in is importable, as other servers have it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from threading import Thread
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
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

__all__ = ["WebService", "load_application"]

_REQUESTS_S = 2.0  # at a stop: time for requests that run; a commit waits for confirmations less than that

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class WebService:
    """Listens from `start` to `stop`; answers 503 until `serve` says with which sessions. Reactor thread."""

    def __init__(self, settings: WebSettings, reactor: Any) -> None:
        self._settings = settings
        self._reactor = reactor
        self._application: App | None = None
        self._pool = ThreadPool(0, settings.threads, "caterwaul-web")
        self._site = Site(_NotServing())  # type: ignore[no-untyped-call]
        self._site.displayTracebacks = False
        self._site.log = _no_log  # type: ignore[method-assign,assignment]  # balancers keep access logs; one more costs each request
        self._port: IListeningPort | None = None

    def start(self) -> str:
        """The address it listens on, ``host:port``. Raises `LocalError` when the application or the port cannot be had."""
        self._application = load_application(self._settings.application)
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
        application = SessionMiddleware(_with_node(self._application, node), manager, cookie)
        self._site.resource = WSGIResource(self._reactor, self._pool, application)

    async def stop(self) -> None:
        """Take no more connections; requests that run are waited for, a while."""
        port, self._port = self._port, None
        if port is not None:
            await maybeDeferred(port.stopListening)
            self._site.resource = _NotServing()  # type: ignore[no-untyped-call]
            ended: Deferred[None] = Deferred()
            Thread(target=self._join, args=(ended,), name="caterwaul-web-stop", daemon=True).start()
            await ended.addTimeout(_REQUESTS_S, self._reactor, lambda result, timeout: None)

    def _join(self, ended: Deferred[None]) -> None:
        """In a thread of its own: a request needs the reactor to write its response and to hear who confirmed."""
        self._pool.stop()
        self._reactor.callFromThread(lambda: None if ended.called else ended.callback(None))


def _no_log(request: Request) -> None:
    """Keep no access log."""


class _NotServing(Resource):
    """Before the sessions are there, and on connections that outlive the stop."""

    isLeaf = True

    def render(self, request: Request) -> bytes:
        request.setResponseCode(503)
        request.setHeader(b"retry-after", b"1")
        request.setHeader(b"connection", b"close")
        return b"this node does not serve at the moment\n"


def load_application(name: str) -> App:
    """The callable that ``module:callable`` names. Raises `LocalError`."""
    module_name, _, path = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = import_module(module_name)
    except ImportError as error:
        raise LocalError(f"web.application: module {module_name} cannot be imported: {error}") from error
    for part in path.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise LocalError(f"web.application: {module_name} has no callable {path}")
    return found  # type: ignore[no-any-return]


def _with_node(application: App, node: object) -> App:
    def with_node(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ["caterwaul.node"] = node
        return application(environ, start_response)

    return with_node
