"""The ASGI fronts under the contract of fronts."""

from __future__ import annotations

from inspect import isawaitable
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI
from litestar import Litestar, Request, route
from litestar.datastructures import Cookie
from litestar.response import Response as LitestarResponse
from litestar.response import Stream
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from caterwaul.managers.web import starlette
from caterwaul.managers.web.asgi import SessionMiddleware
from caterwaul.managers.web.litestar import SessionPlugin
from caterwaul.managers.web.starlette import Session, get_session

pytest.register_assert_rewrite("tests.contract.fronts", "tests.contract.parallel", "tests.contract.sharing")

from .asgi_driver import scope_of, serve_asgi  # noqa: E402
from .fronts import Answer, Call, FrontContract, Page, RoamingContract, look  # noqa: E402
from .parallel import ParallelContract, ThreadsContract  # noqa: E402
from .sharing import SharingContract  # noqa: E402
from .test_fronts import locking, refusing, roaming, shared, world  # noqa: E402, F401


async def given(page: Any) -> Page:
    """Of a handler that may be a coroutine."""
    return await page if isawaitable(page) else page  # type: ignore[no-any-return]


class ASGI(FrontContract, RoamingContract, ParallelContract, ThreadsContract, SharingContract):
    """Subclasses give an application with its sessions."""

    locks = "task"

    def application(self, call: Call) -> Any:
        raise NotImplementedError

    def drive(self, call: Call) -> Answer:
        scope = scope_of("http", call.path, call.cookies, call.client, call.forwarded, call.agent, method=call.method)  # type: ignore[arg-type]
        got = serve_asgi(self.application(call), scope, call.node)
        return Answer(got.status, got.headers, got.body, got.seen)


class TestASGI(ASGI):
    """No framework."""

    def application(self, call: Call) -> Any:
        async def application(scope: Any, receive: Any, send: Any) -> None:
            assert (await receive())["type"] == "http.request"
            page = await given(call.handler(scope["caterwaul.session"]))
            headers = [(b"content-type", b"text/plain"), *((name.lower().encode(), value.encode()) for name, value in page.headers)]
            await send({"type": "http.response.start", "status": page.status, "headers": headers})
            if isinstance(page.body, bytes):
                await send({"type": "http.response.body", "body": page.body})
                return
            for chunk in page.body:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body"})

        return SessionMiddleware(application, call.node, call.settings, no_touch=call.no_touch)

    def test_http2_may_cut_cookies_into_fields_but_two_of_ours_are_two(self, world: Any) -> None:  # noqa: F811
        node = world.node()
        ours = f"__Host-sid={self.begin(node)}"
        assert self.get(node, look, cookies=["theme=dark", ours, "lang=en"]).body == b"[('n', 1)]"
        assert self.get(node, look, cookies=[ours, ours]).body == b"[]"


def starlette_response(page: Page) -> Response:
    response = Response(page.body, page.status) if isinstance(page.body, bytes) else StreamingResponse(page.body, page.status)
    for name, value in page.headers:
        response.headers.append(name, value)
    return response


class TestStarlette(ASGI):
    """`request.session`. Streams run in Starlette's pool of threads."""

    def application(self, call: Call) -> Any:
        async def endpoint(request: StarletteRequest) -> Response:
            return starlette_response(await given(call.handler(request.session)))

        middleware = Middleware(starlette.SessionMiddleware, call.node, call.settings, no_touch=call.no_touch)
        return Starlette(routes=[Route("/{path:path}", endpoint)], middleware=[middleware])


class TestStarletteThreads(ASGI):
    """Endpoints that are no coroutines."""

    locks = "thread"

    def application(self, call: Call) -> Any:
        def endpoint(request: StarletteRequest) -> Response:
            return starlette_response(call.handler(request.session))

        middleware = Middleware(starlette.SessionMiddleware, call.node, call.settings, no_touch=call.no_touch)
        return Starlette(routes=[Route("/{path:path}", endpoint)], middleware=[middleware])


class TestFastAPI(ASGI):
    """The session is a dependency."""

    def application(self, call: Call) -> Any:
        app = FastAPI()
        app.add_middleware(starlette.SessionMiddleware, manager=call.node, cookie=call.settings, no_touch=call.no_touch)

        @app.api_route("/{path:path}", methods=["GET", "HEAD"])
        async def endpoint(session: Annotated[Session, Depends(get_session)]) -> Response:
            return starlette_response(await given(call.handler(session)))

        return app


class TestLitestar(ASGI):
    """`request.session`."""

    def application(self, call: Call) -> Any:
        @route("/{path:path}", http_method=["GET", "HEAD"])
        async def endpoint(request: Request[Any, Any, Any]) -> LitestarResponse[Any]:
            page = await given(call.handler(request.session))
            made = LitestarResponse if isinstance(page.body, bytes) else Stream
            own = [Cookie(value.partition("=")[0], value=value.partition("=")[2]) for name, value in page.headers if name == "Set-Cookie"]
            headers = {name: value for name, value in page.headers if name != "Set-Cookie"}
            return made(page.body if call.method == "GET" else b"", status_code=page.status, headers=headers, cookies=own, media_type="text/plain")

        return Litestar([endpoint], plugins=[SessionPlugin(call.node, call.settings, no_touch=call.no_touch)])

    def test_the_applications_own_cookies_stay(self, world: Any) -> None:  # noqa: F811
        def handler(session: Any) -> Page:
            session["n"] = 1
            return Page(headers=[("Set-Cookie", "theme=dark"), ("Set-Cookie", "lang=en")])

        cookies = self.get(world.node(), handler).all("Set-Cookie")
        assert sorted(value.partition(";")[0].partition("=")[0] for value in cookies) == ["__Host-sid", "lang", "theme"]
