"""Plain WSGI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from caterwaul.managers.web.wsgi import SessionMiddleware

from .driving import Driver, Wsgi
from .work import COOKIE, Sessions, handle

__all__ = ["drive"]


def drive(sessions: Sessions) -> Driver:
    return Wsgi(_application if sessions.manager is None else SessionMiddleware(_application, sessions.manager, COOKIE))


def _application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    body = handle(environ["PATH_INFO"][1:], environ.get("caterwaul.session"))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
