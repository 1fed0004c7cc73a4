"""Starlette."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from caterwaul.managers.web.starlette import SessionMiddleware

from .driving import Asgi, Driver
from .work import COOKIE, Sessions, handle

__all__ = ["drive"]


def drive(sessions: Sessions) -> Driver:
    app = Starlette(routes=[Route("/{what}", _page)])
    if sessions.manager is not None:
        app.add_middleware(SessionMiddleware, manager=sessions.manager, cookie=COOKIE)
    return Asgi(app)


async def _page(request: Request) -> PlainTextResponse:
    return PlainTextResponse(handle(request.path_params["what"], request.scope.get("session")))
