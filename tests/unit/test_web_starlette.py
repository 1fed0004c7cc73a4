"""Starlette and FastAPI as their users write them, through Starlette's own test client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, WebSocket
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from caterwaul.managers.base import SessionManager
from caterwaul.managers.errors import SessionUnavailable
from caterwaul.managers.web.starlette import SESSION_ENDED, Session, SessionMiddleware, SessionSocket, get_session, get_socket

CurrentSession = Annotated[Session, Depends(get_session)]
CurrentSocket = Annotated[SessionSocket, Depends(get_socket)]


def client(app: Any, **more: Any) -> TestClient:
    return TestClient(app, base_url="https://shop", **more)


def started(manager: SessionManager) -> FastAPI:
    app = FastAPI()
    app.add_middleware(SessionMiddleware, manager=manager)
    return app


def test_flash_messages_and_what_else_is_written_for_starlettes_own_session(manager: SessionManager) -> None:
    async def flash(request: Request) -> Response:
        request.session.setdefault("_messages", []).append("saved")
        request.session.update({"a": 1, "b": 2})
        request.session["a"] += 1
        return RedirectResponse("/show", 303)

    async def show(request: Request) -> Response:
        messages = request.session.pop("_messages", [])
        return JSONResponse({"messages": messages, "rest": dict(request.session), "has": "a" in request.session})

    async def clear(request: Request) -> Response:
        request.session.clear()
        return PlainTextResponse("")

    app = Starlette(routes=[Route("/flash", flash), Route("/show", show), Route("/clear", clear)], middleware=[Middleware(SessionMiddleware, manager)])
    browser = client(app)
    assert browser.get("/flash").json() == {"messages": ["saved"], "rest": {"a": 2, "b": 2}, "has": True}
    assert browser.get("/show").json() == {"messages": [], "rest": {"a": 2, "b": 2}, "has": True}
    browser.get("/clear")
    assert browser.get("/show").json() == {"messages": [], "rest": {}, "has": False}


def test_fastapi_endpoints_of_both_kinds_get_the_session_as_a_dependency_and_as_an_attribute(manager: SessionManager) -> None:
    app = started(manager)
    router = APIRouter(prefix="/cart")

    @router.post("/{item}")
    async def add(item: str, session: CurrentSession) -> list[str]:
        session.setdefault("cart", []).append(item)
        return session["cart"]  # type: ignore[no-any-return]

    @router.get("/")
    def show(session: CurrentSession, request: Request) -> dict[str, Any]:
        assert request.session is session
        return {"cart": session.get("cart", [])}

    app.include_router(router)
    browser = client(app)
    assert browser.post("/cart/apple").json() == ["apple"]
    assert browser.post("/cart/pear").json() == ["apple", "pear"]
    assert browser.get("/cart/").json() == {"cart": ["apple", "pear"]}
    assert client(app).get("/cart/").json() == {"cart": []}


def test_login_changes_the_id_and_logout_ends_it(manager: SessionManager) -> None:
    app = started(manager)

    @app.post("/login")
    async def login(session: CurrentSession) -> None:
        session.login("ann")

    @app.post("/logout")
    async def logout(session: CurrentSession) -> None:
        session.invalidate()

    @app.get("/")
    async def who(session: CurrentSession) -> str | None:
        session.setdefault("seen", 1)
        return session.principal

    browser = client(app)
    browser.get("/")
    before = browser.cookies["__Host-sid"]
    browser.post("/login")
    assert browser.cookies["__Host-sid"] != before
    assert browser.get("/").json() == "ann"
    browser.post("/logout")
    assert "__Host-sid" not in browser.cookies
    assert browser.get("/").json() is None


def test_what_background_tasks_and_closing_dependencies_write_is_saved(manager: SessionManager) -> None:
    app = started(manager)

    async def counted(session: CurrentSession) -> AsyncIterator[None]:
        yield
        session["closed"] = session.get("closed", 0) + 1

    def mail(session: Session) -> None:
        session["mailed"] = True

    @app.get("/", dependencies=[Depends(counted)])
    async def page(session: CurrentSession, tasks: BackgroundTasks) -> dict[str, Any]:
        shown = dict(session)
        session["pages"] = session.get("pages", 0) + 1
        tasks.add_task(mail, session)
        return shown

    browser = client(app)
    assert browser.get("/").json() == {}
    assert browser.get("/").json() == {"pages": 1, "mailed": True, "closed": 1}


def test_an_http_exception_is_a_page_and_a_crash_is_none(manager: SessionManager) -> None:
    app = started(manager)

    @app.get("/denied")
    async def denied(session: CurrentSession) -> None:
        session["tries"] = session.get("tries", 0) + 1
        raise HTTPException(403)

    @app.get("/crash")
    async def crash(session: CurrentSession) -> None:
        session["tries"] = 100
        raise RuntimeError("planted by the test")

    @app.get("/tries")
    async def tries(session: CurrentSession) -> int:
        return session.get("tries", 0)  # type: ignore[no-any-return]

    browser = client(app, raise_server_exceptions=False)
    assert browser.get("/denied").status_code == 403
    assert browser.get("/crash").status_code == 500
    assert browser.get("/tries").json() == 1


def test_unknown_sessions_are_answered_503_by_the_middleware_or_as_the_application_likes(manager: SessionManager) -> None:
    manager.open_local = lambda session_id, token="": manager.unknown()  # type: ignore[method-assign]
    app = started(manager)

    @app.get("/")
    async def page(session: CurrentSession) -> None:
        session["n"] = 1

    answer = client(app).get("/")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")

    async def own(request: Request, error: Exception) -> Response:
        return PlainTextResponse("come back", 503)

    app.add_exception_handler(SessionUnavailable, own)
    app.middleware_stack = None
    assert client(app).get("/").text == "come back"


def test_other_middleware_and_mounted_applications_see_the_same_session(manager: SessionManager) -> None:
    async def visits(request: Request, call_next: Any) -> Response:
        request.session["visits"] = request.session.get("visits", 0) + 1
        response: Response = await call_next(request)
        request.session["answered"] = response.status_code
        return response

    async def page(request: Request) -> Response:
        return JSONResponse(dict(request.session))

    inner = Starlette(routes=[Route("/page", page)])
    app = Starlette(routes=[Mount("/inner", inner)], middleware=[Middleware(SessionMiddleware, manager), Middleware(BaseHTTPMiddleware, dispatch=visits)])
    browser = client(app)
    browser.get("/inner/page")
    assert browser.get("/inner/page").json() == {"visits": 2, "answered": 200}


def test_websockets_share_the_session_and_are_closed_when_it_ends(manager: SessionManager) -> None:
    app = started(manager)

    @app.websocket("/ws")
    async def talk(websocket: WebSocket, session: CurrentSession, socket: CurrentSocket) -> None:
        await websocket.accept()
        assert websocket.session is session
        try:
            while True:
                session["said"] = await websocket.receive_text()
                await socket.commit()
                await websocket.send_json(dict(session))
        except WebSocketDisconnect as gone:
            left.append((gone.code, gone.reason))

    @app.get("/")
    async def page(session: CurrentSession) -> dict[str, Any]:
        session.setdefault("name", "ann")
        return dict(session)

    @app.get("/logout")
    async def logout(session: CurrentSession) -> None:
        session.invalidate()

    left: list[Any] = []
    browser = client(app)
    with browser:
        browser.get("/")
        with browser.websocket_connect("wss://shop/ws") as websocket:
            websocket.send_text("hello")
            assert websocket.receive_json() == {"name": "ann", "said": "hello"}
            assert browser.get("/").json() == {"name": "ann", "said": "hello"}
            browser.get("/logout")
            for flush in manager._channel.woken:  # type: ignore[attr-defined]
                flush()
            with pytest.raises(WebSocketDisconnect) as closed:
                websocket.receive_json()
            assert (closed.value.code, closed.value.reason) == (SESSION_ENDED, "session invalidated")
    assert left == [(SESSION_ENDED, "session invalidated")]


def test_without_the_middleware_the_error_says_what_is_missing() -> None:
    app = FastAPI()

    @app.get("/")
    async def page(session: CurrentSession) -> None: ...

    with pytest.raises(KeyError, match=r"caterwaul\.session"):
        client(app).get("/")
