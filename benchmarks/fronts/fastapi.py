"""FastAPI, with the session as a dependency."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi.responses import PlainTextResponse

from caterwaul.managers.web.starlette import Session, SessionMiddleware, get_session

from .driving import Asgi, Driver
from .work import COOKIE, Sessions, handle

__all__ = ["drive"]


def drive(sessions: Sessions) -> Driver:
    app = FastAPI(openapi_url=None)
    if sessions.manager is None:
        app.get("/{what}")(_bare_page)
    else:
        app.add_middleware(SessionMiddleware, manager=sessions.manager, cookie=COOKIE)
        app.get("/{what}")(_page)
    return Asgi(app)


async def _bare_page(what: str) -> PlainTextResponse:
    return PlainTextResponse(handle(what, None))


async def _page(what: str, session: Annotated[Session, Depends(get_session)]) -> PlainTextResponse:
    return PlainTextResponse(handle(what, session))
