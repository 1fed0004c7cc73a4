"""Litestar as its users write it, through its own test client."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from litestar import Litestar, Request, WebSocket, get, post, websocket
from litestar.background_tasks import BackgroundTask
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency, Provide
from litestar.exceptions import NotAuthorizedException, WebSocketDisconnect
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath
from litestar.response import Response
from litestar.status_codes import HTTP_200_OK
from litestar.testing import TestClient

from caterwaul.managers.base import SessionManager
from caterwaul.managers.web.litestar import SESSION_ENDED, TRY_AGAIN, Session, SessionPlugin, SessionSocket, get_session, get_socket

AnyRequest = Request[Any, Any, Any]


def browsing(manager: SessionManager, *handlers: Any, **more: Any) -> Any:
    app = Litestar([show, *handlers], plugins=[SessionPlugin(manager)], openapi_config=None, **more)
    return TestClient(app, base_url="https://shop.local", raise_server_exceptions=False)


@get("/", sync_to_thread=False)
def show(request: AnyRequest) -> dict[str, Any]:
    return dict(request.session)


@pytest.fixture
def browser(manager: SessionManager) -> Iterator[Any]:
    with browsing(manager, add, fill, empty, refuse, crash, later, put_wrong) as client:
        yield client


@post("/add/{item:str}", status_code=HTTP_200_OK)
async def add(request: AnyRequest, item: FromPath[str]) -> list[str]:
    request.session.setdefault("cart", []).append(item)
    return request.session["cart"]  # type: ignore[no-any-return]


@post("/fill")
async def fill(request: AnyRequest) -> None:
    request.set_session({"cart": ["pear"], "user": "ann"})


@post("/empty")
async def empty(request: AnyRequest) -> None:
    request.clear_session()


@get("/refuse")
async def refuse(request: AnyRequest) -> None:
    request.session["tries"] = request.session.get("tries", 0) + 1
    raise NotAuthorizedException


@get("/crash")
async def crash(request: AnyRequest) -> None:
    request.session["tries"] = 100
    raise RuntimeError("planted by the test")


@get("/later")
async def later(request: AnyRequest) -> Response[str]:
    async def mail() -> None:
        request.session["mailed"] = True

    return Response("soon", background=BackgroundTask(mail))


@dataclass
class Wrong:
    cart: str


@post("/wrong")
async def put_wrong(request: AnyRequest) -> None:
    request.set_session(Wrong("pear"))


def test_nested_changes_are_found(browser: Any) -> None:
    assert browser.post("/add/apple").json() == ["apple"]
    assert browser.post("/add/pear").json() == ["apple", "pear"]
    assert browser.get("/").json() == {"cart": ["apple", "pear"]}


def test_set_session_replaces_the_contents_and_keeps_the_id(browser: Any) -> None:
    browser.post("/add/apple")
    before = browser.cookies["__Host-sid"]
    browser.post("/fill")
    assert browser.get("/").json() == {"cart": ["pear"], "user": "ann"}
    assert browser.cookies["__Host-sid"] == before


def test_clear_session_ends_it(browser: Any, manager: SessionManager) -> None:
    browser.post("/fill")
    assert manager.count == 1
    browser.post("/empty")
    assert manager.count == 0
    assert "__Host-sid" not in browser.cookies
    assert browser.get("/").json() == {}


def test_a_session_is_a_dictionary(browser: Any) -> None:
    browser.post("/fill")
    assert browser.post("/wrong").status_code == 500
    assert browser.get("/").json() == {"cart": ["pear"], "user": "ann"}


def test_an_http_exception_is_a_page_and_a_crash_is_none(browser: Any) -> None:
    assert browser.get("/refuse").status_code == 401
    assert browser.get("/crash").status_code == 500
    assert browser.get("/").json() == {"tries": 1}


def test_what_background_tasks_write_is_saved(browser: Any) -> None:
    browser.post("/fill")
    browser.get("/later")
    assert browser.get("/").json() == {"cart": ["pear"], "user": "ann", "mailed": True}


def test_guards_and_dependencies_see_the_session(manager: SessionManager) -> None:
    def members_only(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        if "user" not in connection.session:
            raise NotAuthorizedException

    @get("/member", guards=[members_only])
    async def member(session: NamedDependency[Session], request: AnyRequest) -> str:
        assert session is request.session
        return str(session["user"])

    with browsing(manager, member, fill, dependencies={"session": Provide(get_session)}) as browser:
        assert browser.get("/member").status_code == 401
        browser.post("/fill")
        assert browser.get("/member").text == "ann"


def test_unknown_sessions_are_answered_503(manager: SessionManager) -> None:
    manager.open_local = lambda session_id, token="": manager.unknown()  # type: ignore[method-assign]
    with browsing(manager, fill) as browser:
        answer = browser.post("/fill")
        assert (answer.status_code, answer.headers["Retry-After"], answer.text[:11]) == (503, "1", "The session")


def test_websockets_share_the_session_and_are_closed_when_it_ends(manager: SessionManager) -> None:
    @websocket("/ws")
    async def talk(socket: WebSocket[Any, Any, Any], session: NamedDependency[Session], saved: NamedDependency[SessionSocket]) -> None:
        await socket.accept()
        assert socket.session is session
        try:
            while True:
                session["said"] = await socket.receive_text()
                await saved.commit()
                await socket.send_json(dict(session))
        except WebSocketDisconnect as gone:
            left.append(gone.code)

    left: list[int] = []
    provided = {"session": Provide(get_session), "saved": Provide(get_socket)}
    with browsing(manager, talk, fill, empty, dependencies=provided) as browser:
        browser.post("/fill")
        with browser.websocket_connect("wss://shop.local/ws") as talking:
            talking.send_text("hello")
            assert talking.receive_json() == {"cart": ["pear"], "user": "ann", "said": "hello"}
            assert browser.get("/").json()["said"] == "hello"
            browser.post("/empty")
            for flush in manager._channel.woken:  # type: ignore[attr-defined]
                flush()
            with pytest.raises(WebSocketDisconnect) as closed:
                talking.receive_json()
            assert closed.value.code == SESSION_ENDED
    assert left == [SESSION_ENDED]


def test_a_websocket_that_writes_to_an_unknown_session_is_told_to_try_again(manager: SessionManager) -> None:
    @websocket("/ws")
    async def talk(socket: WebSocket[Any, Any, Any]) -> None:
        await socket.accept()
        socket.session["n"] = 1

    manager.open_local = lambda session_id, token="": manager.unknown()  # type: ignore[method-assign]
    with browsing(manager, talk) as browser, browser.websocket_connect("wss://shop.local/ws") as talking:
        with pytest.raises(WebSocketDisconnect) as closed:
            talking.receive_json()
        assert closed.value.code == TRY_AGAIN
