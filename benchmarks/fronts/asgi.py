"""Plain ASGI."""

from __future__ import annotations

from typing import Any

from caterwaul.managers.web.asgi import SessionMiddleware

from .driving import Asgi, Driver
from .work import COOKIE, Sessions, handle

__all__ = ["drive"]


def drive(sessions: Sessions) -> Driver:
    return Asgi(_application if sessions.manager is None else SessionMiddleware(_application, sessions.manager, COOKIE))


async def _application(scope: Any, receive: Any, send: Any) -> None:
    body = handle(scope["path"][1:], scope.get("caterwaul.session"))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
