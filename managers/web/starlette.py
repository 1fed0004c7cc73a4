"""Starlette and FastAPI: `request.session`, and a dependency.

    app = FastAPI(lifespan=cluster.lifespan)
    app.add_middleware(SessionMiddleware, manager=cluster.manager)

    @app.get("/")
    async def page(session: Annotated[Session, Depends(get_session)]): ...

It takes the place of `starlette.middleware.sessions.SessionMiddleware`: `request.session` and `websocket.session` are the replicated session, and
what is built on them (flash messages, CSRF tokens, OAuth clients) finds it. Added with `add_middleware` it is inside of Starlette's 500 page
and outside of its handlers of `HTTPException`: those pages save, a crash does not.
"""

from __future__ import annotations

from inspect import signature
from typing import Any, cast

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection

from ...membership.errors import LocalError
from ..base import SessionManager
from ..session import Session
from . import asgi
from .asgi_socket import SESSION_ENDED, TRY_AGAIN, SessionClosed, SessionSocket
from .cookies import CookieSettings

__all__ = ["SESSION_ENDED", "TRY_AGAIN", "Session", "SessionClosed", "SessionMiddleware", "SessionSocket", "get_session", "get_socket", "replace_sessions"]

_STARLETTES = "starlette.middleware.sessions"  # by name: it needs a library that is not there if nobody uses it


class SessionMiddleware(asgi.SessionMiddleware):
    """See `asgi.SessionMiddleware`."""

    keys = ("caterwaul.session", "session")


# Coroutines, as FastAPI would run functions in its pool of threads.


async def get_session(connection: HTTPConnection) -> Session:
    """The session of this request or WebSocket, also as a dependency. Raises `KeyError` without the middleware."""
    return cast(Session, connection.scope["caterwaul.session"])


async def get_socket(connection: HTTPConnection) -> SessionSocket:
    """`commit` and `reopen` for the session of this WebSocket. Raises `KeyError` in a request."""
    return cast(SessionSocket, connection.scope["caterwaul.socket"])


def replace_sessions(app: Starlette, manager: SessionManager, cookie: CookieSettings) -> None:
    """For `caterwaul wrap`: ours in the place of Starlette's middleware, with its cookie, or outermost if there is none. Raises `LocalError`."""
    if app.middleware_stack is not None:
        raise LocalError("the application has answered a request before its sessions could be replaced")
    for at, made in enumerate(app.user_middleware):
        kind: Any = made.cls
        if isinstance(kind, type) and issubclass(kind, SessionMiddleware):
            raise LocalError("the application has Caterwaul's sessions already")
        if getattr(kind, "__module__", "") == _STARLETTES:
            app.user_middleware[at] = Middleware(SessionMiddleware, manager=manager, cookie=_cookie_of(made))
            return
    app.add_middleware(SessionMiddleware, manager=manager, cookie=cookie)


def _cookie_of(made: Middleware) -> CookieSettings:
    """What Starlette's own was told."""
    given = signature(cast(Any, made.cls)).bind(None, *made.args, **made.kwargs)
    given.apply_defaults()
    told = given.arguments
    try:
        return CookieSettings(
            name=told["session_cookie"], secure=told["https_only"], same_site=told["same_site"].capitalize(), path=told["path"], domain=told["domain"] or "",
            max_age_s=told["max_age"] or 0, partitioned=told.get("partitioned", False),
        )  # fmt: skip
    except LocalError as error:
        raise LocalError(f"SessionMiddleware of the application: {error}") from None
