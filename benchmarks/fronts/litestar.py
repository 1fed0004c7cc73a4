"""Litestar."""

from __future__ import annotations

from typing import Any

from litestar import Litestar, MediaType, Request, get
from litestar.params import FromPath

from caterwaul.managers.web.litestar import SessionPlugin

from .driving import Asgi, Driver
from .work import COOKIE, Sessions, handle

__all__ = ["drive"]


def drive(sessions: Sessions) -> Driver:
    plugins = [] if sessions.manager is None else [SessionPlugin(sessions.manager, COOKIE)]
    return Asgi(Litestar([_page], plugins=plugins, openapi_config=None))


@get("/{what:str}", media_type=MediaType.TEXT)
async def _page(request: Request[Any, Any, Any], what: FromPath[str]) -> bytes:
    return handle(what, request.scope.get("caterwaul.session"))
