"""Every front under the contract of fronts."""

from __future__ import annotations

import asyncio
import inspect
import io
from collections.abc import Callable
from typing import Any
from wsgiref.handlers import SimpleHandler
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import flask
import pytest
from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import re_path
from klein import Klein
from pyramid.config import Configurator
from pyramid.response import Response as PyramidResponse
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from caterwaul.managers.settings import ManagerSettings
from caterwaul.managers.web.cookies import CookieSettings
from caterwaul.managers.web.flask import CaterwaulSession
from caterwaul.managers.web.klein import SessionProcurer
from caterwaul.managers.web.pyramid import SessionFactory
from caterwaul.managers.web.twisted_web import SessionSite
from caterwaul.managers.web.wsgi import SessionMiddleware

pytest.register_assert_rewrite("tests.contract.fronts", "tests.contract.sharing")

from .. import django_project  # noqa: F401, E402  (its settings)
from ..lock_net import LockNet  # noqa: E402
from .delta_world import DeltaWorld, SharedWorld  # noqa: E402
from .double import World  # noqa: E402
from .fronts import Answer, Call, FrontContract, RoamingContract, count, ignore, look, together  # noqa: E402
from .sharing import SharingContract  # noqa: E402

REASONS = {200: "OK", 303: "See Other", 404: "Not Found", 500: "Internal Server Error"}


@pytest.fixture(params=[World, DeltaWorld], ids=["double", "delta"])
def world(request: Any) -> Any:
    """The same contract over the double that the unit tests use, and over real managers: so the double is honest."""
    return request.param()


@pytest.fixture
def roaming() -> Any:
    return DeltaWorld(ManagerSettings(read_your_writes="cluster"))


@pytest.fixture
def refusing() -> Any:
    return DeltaWorld(ManagerSettings(principal_sessions_max=1, principal_sessions_policy="refuse"))


@pytest.fixture
def shared() -> Any:
    return SharedWorld()


@pytest.fixture
def locking() -> Any:
    return DeltaWorld(net=LockNet(2))


def parse(raw: bytes, commits_at_head: int) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    if ("transfer-encoding", "chunked") in [(name.lower(), value) for name, value in headers]:
        body = dechunk(body)
    return Answer(int(first.split()[1]), headers, body, commits_at_head)


def dechunk(body: bytes) -> bytes:
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        whole, body = whole + body[:length], body[length + 2 :]
    return whole


class Watched(io.BytesIO):
    """Notes what `look` says when the first byte is written."""

    def __init__(self, look: Callable[[], int]) -> None:
        super().__init__()
        self.look = look
        self.seen: int | None = None

    def write(self, data: Any) -> int:
        if self.seen is None:
            self.seen = self.look()
        return super().write(data)


def serve_wsgi(application: Any, call: Call) -> Answer:
    """One request through wsgiref's own handler, its complaints being errors."""
    environ: dict[str, Any] = {"REQUEST_METHOD": call.method, "PATH_INFO": call.path, "SCRIPT_NAME": "", "QUERY_STRING": "", "SERVER_PROTOCOL": "HTTP/1.1"}
    if call.cookies:
        environ["HTTP_COOKIE"] = "; ".join(call.cookies)  # type: ignore[arg-type]
    environ["REMOTE_ADDR"] = call.client
    if call.forwarded:
        environ["HTTP_X_FORWARDED_FOR"] = call.forwarded
    if call.agent:
        environ["HTTP_USER_AGENT"] = call.agent
    setup_testing_defaults(environ)
    out, errors = Watched(lambda: call.node.commits), io.StringIO()
    handler = SimpleHandler(io.BytesIO(), out, errors, environ)
    handler.origin_server = True
    handler.http_version = "1.1"
    handler.run(application)
    assert "AssertionError" not in errors.getvalue(), errors.getvalue()
    return parse(out.getvalue(), out.seen or 0)


class WSGI(FrontContract, RoamingContract, SharingContract):
    """`write` is PEP 3333's for old applications; else the body is returned."""

    imperative = False

    def drive(self, call: Call) -> Answer:
        def application(environ: dict[str, Any], start_response: Any) -> Any:
            page = call.handler(environ["caterwaul.session"])
            write = start_response(f"{page.status} {REASONS[page.status]}", [("Content-Type", "text/plain"), *page.headers])
            body = [page.body] if isinstance(page.body, bytes) else page.body
            if call.method == "HEAD":
                return []
            if self.imperative:
                for chunk in body:
                    write(chunk)
                return []
            return body

        inner = self.wrap(application)
        return serve_wsgi(validator(SessionMiddleware(inner, call.node, call.settings, no_touch=call.no_touch)), call)

    def wrap(self, application: Any) -> Any:
        return application


class TestWSGI(WSGI):
    """Bodies as they are: lists are passed on, generators are wrapped."""


class TestWSGIValidated(WSGI):
    """The middleware is a good server to the application, too."""

    def wrap(self, application: Any) -> Any:
        return validator(application)


class TestWSGIWrite(WSGI):
    """Applications that use `write`."""

    imperative = True


class TestWSGIGenerator(WSGI):
    """The application is a generator: nothing of it runs before the first item is asked for."""

    def wrap(self, application: Any) -> Any:
        def generator(environ: dict[str, Any], start_response: Any) -> Any:
            yield b""
            yield from application(environ, start_response)

        def started(environ: dict[str, Any], start_response: Any) -> Any:
            return generator(environ, start_response)

        return started


class TestFlask(FrontContract, RoamingContract, SharingContract):
    """A view of a Flask application, with `flask.session`."""

    def drive(self, call: Call) -> Answer:
        app = flask.Flask("shop")
        app.config.update(SESSION_COOKIE_NAME="__Host-sid", SESSION_COOKIE_SECURE=True)
        app.logger.disabled = True  # exceptions that tests plant
        CaterwaulSession(app, call.node, cookie=call.settings, no_touch=call.no_touch)

        @app.route("/<path:path>", methods=["GET", "HEAD", "POST"])
        def view(path: str) -> Any:
            page = call.handler(flask.session)
            body = page.body if isinstance(page.body, bytes) else flask.stream_with_context(page.body)
            response = flask.Response(body, page.status)
            for name, value in page.headers:
                response.headers.add(name, value)
            return response

        return serve_wsgi(validator(app), call)


class URLs:
    """A project's URLs, without a module of their own."""

    def __init__(self, *patterns: Any) -> None:
        self.urlpatterns = patterns


class Django(FrontContract, RoamingContract, SharingContract):
    """A view of a Django project, with `request.session`. Django saves nothing for a 5xx, and before a stream begins."""

    interrupts = True
    saves_error_pages = False
    streams_begin_sessions = False

    def view(self, call: Call) -> Any:
        def view(request: Any) -> Any:
            page = call.handler(request.session)
            made = HttpResponse if isinstance(page.body, bytes) else StreamingHttpResponse
            response = made(b"" if call.method == "HEAD" else page.body, status=page.status)
            for name, value in page.headers:
                if name == "Set-Cookie":
                    response.cookies.load(value)
                else:
                    response[name] = value
            return response

        return view

    def drive(self, call: Call) -> Answer:
        with self.settings(call):
            return self.serve(call)

    def drive_twice(self, call: Call) -> list[Answer]:
        with self.settings(call):
            return together(lambda: self.serve(call))

    def settings(self, call: Call) -> Any:
        cookie = call.settings or CookieSettings()
        return override_settings(
            CATERWAUL_MANAGER=lambda: call.node,
            CATERWAUL_NO_TOUCH=call.no_touch,
            ROOT_URLCONF=URLs(re_path("", self.view(call))),
            CATERWAUL_ROUTE=cookie.route,
            SESSION_COOKIE_NAME=cookie.name,
            SESSION_COOKIE_SECURE=cookie.secure,
            SESSION_EXPIRE_AT_BROWSER_CLOSE=not cookie.max_age_s,
            SESSION_COOKIE_AGE=cookie.max_age_s or 1209600,
        )

    def serve(self, call: Call) -> Answer:
        return serve_wsgi(WSGIHandler(), call)

    def test_a_cookie_with_an_age_is_renewed_whenever_the_session_is_used(self, world: Any) -> None:
        """Django's counts from the last change, unless `SESSION_SAVE_EVERY_REQUEST`."""
        settings = CookieSettings(max_age_s=600)
        cookie = self.get(world.node(), count, settings=settings).cookie
        assert self.get(world.node(), look, cookie, settings=settings).cookie is None
        assert self.get(world.node(), count, cookie, settings=settings).cookie == cookie
        with override_settings(SESSION_SAVE_EVERY_REQUEST=True):
            assert self.get(world.node(), ignore, cookie, settings=settings).cookie == cookie


class TestDjango(Django):
    """Under WSGI."""


async def serve_asgi(application: Any, call: Call) -> Answer:
    """One request as an ASGI server makes it: it listens for the client's going away meanwhile."""
    headers = [(b"cookie", value.encode("latin-1")) for value in call.cookies]
    if call.forwarded:
        headers.append((b"x-forwarded-for", call.forwarded.encode()))
    if call.agent:
        headers.append((b"user-agent", call.agent.encode()))
    scope = {"type": "http", "method": call.method, "path": call.path, "query_string": b"", "headers": headers, "client": (call.client, 4711)}
    answer = Answer(0, [], b"")
    asked = False

    async def receive() -> Any:
        nonlocal asked
        if asked:
            await asyncio.Event().wait()
        asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status, answer.commits_at_head = message["status"], call.node.commits
            answer.headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"]]
        else:
            answer.body += message.get("body", b"")

    await application(scope, receive, send)
    return answer


class TestDjangoASGI(Django):
    """An async view, with the session's async methods."""

    locks = "task"

    def view(self, call: Call) -> Any:
        """The handler's session is given as it is: what is in memory is read and written at once; ending and cycling wait in a thread."""
        made = super().view(call)

        async def view(request: Any) -> Any:
            if inspect.iscoroutinefunction(call.handler):
                page = await call.handler(request.session)
                return HttpResponse(page.body, status=page.status)
            response = await sync_to_async(made, thread_sensitive=False)(request)
            if response.streaming:
                chunks = iter(response.streaming_content)

                async def body() -> Any:
                    for chunk in chunks:
                        yield chunk

                response.streaming_content = body()
            return response

        return view

    def serve(self, call: Call) -> Answer:
        return asyncio.run(serve_asgi(ASGIHandler(), call))


class TestPyramid(FrontContract, RoamingContract, SharingContract):
    """A view of a Pyramid application, with `request.session`."""

    streams_begin_sessions = False

    def drive(self, call: Call) -> Answer:
        def view(request: Any) -> Any:
            page = call.handler(request.session)
            response = PyramidResponse(status=page.status)
            if isinstance(page.body, bytes):
                response.body = page.body
            else:
                response.app_iter = page.body
            response.headerlist += page.headers
            return response

        with Configurator() as config:
            config.include("caterwaul.managers.web.pyramid")
            config.set_session_factory(SessionFactory(call.node, call.settings, no_touch=call.no_touch))
            config.add_route("all", "/{path:.*}")
            config.add_view(view, route_name="all")
            application = config.make_wsgi_app()
        return serve_wsgi(validator(application), call)


class Leaf(Resource):
    """Runs the handler of a call."""

    isLeaf = True

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def render(self, request: Any) -> Any:
        page = self.call.handler(request.caterwaul_session)
        if isinstance(page, Deferred):
            page.addCallback(lambda page: (request.write(page.body), request.finish())).addErrback(request.processingFailed)
            return NOT_DONE_YET
        request.setResponseCode(page.status)
        for name, value in page.headers:
            request.responseHeaders.addRawHeader(name, value)
        if isinstance(page.body, bytes):
            return page.body
        for chunk in page.body:
            request.write(chunk)
        request.finish()
        return NOT_DONE_YET


class WatchedTransport(StringTransport):
    """Notes what `look` says when the first byte is written."""

    def __init__(self, look: Callable[[], int]) -> None:
        super().__init__()
        self.look = look
        self.seen: int | None = None

    def write(self, data: bytes) -> None:
        if self.seen is None:
            self.seen = self.look()
        super().write(data)

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))


def raw_request(call: Call) -> bytes:
    cookies = "".join(f"Cookie: {value}\r\n" for value in call.cookies)
    forwarded = f"X-Forwarded-For: {call.forwarded}\r\n" if call.forwarded else ""
    agent = f"User-Agent: {call.agent}\r\n" if call.agent else ""
    return f"{call.method} {call.path} HTTP/1.1\r\nHost: shop\r\n{cookies}{forwarded}{agent}\r\n".encode("latin-1")


class TestTwistedWeb(FrontContract, RoamingContract, SharingContract):
    """A real HTTPChannel over a string."""

    threaded = False
    locks = "deferred"

    def drive(self, call: Call) -> Answer:
        transport = self.send(call)
        call.node.answer()
        for receipt in call.node.receipts:
            if receipt.waiting and not receipt.waited:
                assert transport.value() == b"", "nothing leaves before the confirmation"
                receipt.waited = True
                receipt.confirm()
        return parse(transport.value(), transport.seen or 0)

    def drive_twice(self, call: Call) -> list[Answer]:
        """The second begins while the first one waits."""
        with call.node.world._carrying:  # nothing moves in between
            transports = [self.send(call), self.send(call)]
        call.node.world.net.advance(0.5)
        return [parse(transport.value(), 0) for transport in transports]

    def send(self, call: Call) -> WatchedTransport:
        site = SessionSite(self.resource(call), call.node, call.settings, no_touch=call.no_touch, reactor=Clock())
        channel = site.buildProtocol(IPv4Address("TCP", call.client, 4711))
        transport = WatchedTransport(lambda: call.node.commits)
        transport.peerAddr = IPv4Address("TCP", call.client, 4711)
        channel.makeConnection(transport)
        channel.dataReceived(raw_request(call))
        return transport

    def resource(self, call: Call) -> Any:
        return Leaf(call)

    def test_session_cookies_in_two_fields_are_two_session_cookies(self, world: Any) -> None:
        node = world.node()
        cookie = self.begin(node)
        both = [f"__Host-sid={cookie}", f"__Host-sid={cookie}"]
        assert self.get(node, look, cookies=both).body == b"[]"


class TestKlein(TestTwistedWeb):
    """A route of a Klein application, with the data of an `ISession`."""

    def resource(self, call: Call) -> Any:
        app = Klein()
        procurer = SessionProcurer(beginOnGET=False)

        def answer(page: Any, request: Any) -> Any:
            request.setResponseCode(page.status)
            for name, value in page.headers:
                request.responseHeaders.addRawHeader(name, value)
            if isinstance(page.body, bytes):
                return page.body
            for chunk in page.body:
                request.write(chunk)
            return b""

        @app.route("/", branch=True)
        def route(request: Any) -> Any:
            handled = procurer.procureSession(request).addCallback(lambda session: maybeDeferred(call.handler, session.data))
            return handled.addCallback(answer, request)

        return app.resource()
