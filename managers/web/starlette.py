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

from typing import cast

from starlette.requests import HTTPConnection

from ..session import Session
from . import asgi
from .asgi_socket import SESSION_ENDED, TRY_AGAIN, SessionClosed, SessionSocket

__all__ = ["SESSION_ENDED", "TRY_AGAIN", "Session", "SessionClosed", "SessionMiddleware", "SessionSocket", "get_session", "get_socket"]


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
