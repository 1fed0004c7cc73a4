"""aiohttp as its users write it, through its own test server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import CookieJar, WSMsgType, web
from aiohttp.test_utils import TestClient, TestServer

from caterwaul import CookieSettings
from caterwaul.managers.base import SessionManager
from caterwaul.managers.web.aiohttp import SESSION, SESSION_ENDED, TRY_AGAIN, commit, get_session, new_session, reopen, setup

from ..contract.asgi_driver import run

PLAIN = CookieSettings(name="sid", secure=False)


def browse(manager: SessionManager, app: web.Application, story: Callable[[Any], Awaitable[None]]) -> None:
    """Serve it, and have a browser act."""

    async def main() -> None:
        setup(app, manager, PLAIN, no_touch=["/news"])
        async with TestClient(TestServer(app), cookie_jar=CookieJar(unsafe=True)) as browser:
            await story(browser)

    run(main)
    assert manager.statistics()["in_use"] == 0


async def show(request: web.Request) -> web.Response:
    return web.json_response(dict(await get_session(request)))


async def add(request: web.Request) -> web.Response:
    session = await get_session(request)
    assert session is request[SESSION]
    session.setdefault("cart", []).append(request.match_info["item"])
    return web.json_response(session["cart"])


async def logout(request: web.Request) -> web.Response:
    (await get_session(request)).invalidate()
    raise web.HTTPFound("/")


def shop(**more: Any) -> web.Application:
    app = web.Application(**more)
    app.add_routes([web.get("/", show), web.get("/add/{item}", add), web.get("/logout", logout)])
    return app


def test_nested_changes_are_found_and_a_redirect_carries_the_cookie(manager: SessionManager) -> None:
    async def story(browser: Any) -> None:
        assert await (await browser.get("/add/apple")).json() == ["apple"]
        assert await (await browser.get("/add/pear")).json() == ["apple", "pear"]
        assert await (await browser.get("/")).json() == {"cart": ["apple", "pear"]}
        assert manager.count == 1
        assert await (await browser.get("/logout")).json() == {}
        assert manager.count == 0

    browse(manager, shop(), story)


def test_a_login_empties_the_session_and_changes_its_id(manager: SessionManager) -> None:
    async def login(request: web.Request) -> web.Response:
        session = await new_session(request)
        session["user"] = "ann"
        return web.Response()

    async def story(browser: Any) -> None:
        first = (await browser.get("/add/apple")).cookies["sid"].value
        second = (await browser.get("/login")).cookies["sid"].value
        assert second != first
        assert await (await browser.get("/")).json() == {"user": "ann"}

    app = shop()
    app.add_routes([web.get("/login", login)])
    browse(manager, app, story)


def test_sub_applications_and_middlewares_see_the_session_and_may_replace_the_response(manager: SessionManager) -> None:
    @web.middleware
    async def pages(request: web.Request, handler: Any) -> web.StreamResponse:
        (await get_session(request))["pages"] = (await get_session(request)).get("pages", 0) + 1
        try:
            response: web.StreamResponse = await handler(request)
        except web.HTTPNotFound:
            return web.Response(text="nothing here", status=404)
        return response

    async def story(browser: Any) -> None:
        missing = await browser.get("/missing")
        assert (missing.status, "sid" in missing.cookies) == (404, True)
        assert await (await browser.get("/inner/")).json() == {"pages": 2}

    app = shop(middlewares=[pages])
    app.add_subapp("/inner/", shop())
    browse(manager, app, story)


def test_a_crash_saves_nothing(manager: SessionManager) -> None:
    async def crash(request: web.Request) -> web.Response:
        (await get_session(request))["half"] = True
        raise RuntimeError("planted by the test")

    async def story(browser: Any) -> None:
        answer = await browser.get("/crash")
        assert (answer.status, "sid" in answer.cookies) == (500, False)
        assert manager.count == 0

    app = shop()
    app.add_routes([web.get("/crash", crash)])
    browse(manager, app, story)


def test_an_unknown_session_is_answered_503_also_where_a_stream_would_begin(manager: SessionManager) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        (await get_session(request))["n"] = 1
        return web.StreamResponse()

    async def story(browser: Any) -> None:
        for path in ("/stream", "/add/apple"):
            answer = await browser.get(path)
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")

    manager.open_local = lambda session_id, token="": manager.unknown()  # type: ignore[method-assign]
    app = shop()
    app.add_routes([web.get("/stream", stream)])
    browse(manager, app, story)


async def talk(request: web.Request) -> web.WebSocketResponse:
    session = await get_session(request)
    if request.query:
        session.update(request.query)
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        if message.data == "reopen":
            session = await reopen(request)
            assert session is request[SESSION]
        else:
            session["said"] = message.data
            await commit(request)
        await socket.send_json(dict(session))
    return socket


def talking() -> web.Application:
    app = shop()
    app.add_routes([web.get("/ws", talk), web.get("/news", talk)])
    return app


def test_websockets_share_the_session_and_are_closed_when_it_ends(manager: SessionManager) -> None:
    async def story(browser: Any) -> None:
        async with browser.ws_connect("/ws?name=ann") as socket:
            await socket.send_str("hello")
            assert await socket.receive_json() == {"name": "ann", "said": "hello"}
            await browser.get("/add/apple")
            await socket.send_str("reopen")
            assert await socket.receive_json() == {"name": "ann", "said": "hello", "cart": ["apple"]}
            await browser.get("/logout")
            for flush in manager._channel.woken:  # type: ignore[attr-defined]
                flush()
            closed = await socket.receive()
            assert (closed.type, closed.data, closed.extra) == (WSMsgType.CLOSE, SESSION_ENDED, "session invalidated")

    browse(manager, talking(), story)


def test_a_websocket_is_in_use_unless_its_path_keeps_nothing_alive(manager: SessionManager) -> None:
    async def story(browser: Any) -> None:
        await browser.get("/add/apple")
        for path, in_use in (("/ws", 1), ("/news", 0)):
            async with browser.ws_connect(path) as socket:
                assert manager.statistics()["in_use"] == in_use
                await socket.send_str("reopen")
                assert await socket.receive_json() == {"cart": ["apple"]}
                assert manager.statistics()["in_use"] == in_use

    browse(manager, talking(), story)


def test_a_websocket_that_writes_to_an_unknown_session_is_told_to_try_again(manager: SessionManager) -> None:
    async def story(browser: Any) -> None:
        async with browser.ws_connect("/ws") as socket:
            await socket.send_str("hello")
            closed = await socket.receive()
            assert (closed.type, closed.data) == (WSMsgType.CLOSE, TRY_AGAIN)

    manager.open_local = lambda session_id, token="": manager.unknown()  # type: ignore[method-assign]
    browse(manager, talking(), story)
