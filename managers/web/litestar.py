"""Litestar: `request.session` and `socket.session`.

    app = Litestar(handlers, plugins=[SessionPlugin(cluster.manager)], lifespan=[cluster.lifespan])

A plugin and its middleware, not a `Store` for Litestar's own: that one hands over a whole dictionary to be overwritten, adopts ids
that browsers make up, and cannot wait for confirmations. `request.set_session` replaces the contents, `request.clear_session` ends the session.

Litestar makes pages of exceptions inside of its middleware. So the plugin hears of them: one with a status below 500 is an answer, and
saves; anything else drops what was not committed yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from litestar import MediaType, Request, Response
from litestar.config.app import AppConfig
from litestar.exceptions import HTTPException
from litestar.middleware import DefineMiddleware
from litestar.plugins import InitPlugin
from litestar.types import Empty, Scope

from ..errors import SessionUnavailable, ValueRefused
from ..session import Session
from . import asgi
from .asgi_response import App
from .asgi_socket import SESSION_ENDED, TRY_AGAIN, SessionClosed, SessionSocket
from .cookies import CookieSettings
from .policy import RETRY_AFTER_S, Visit, unavailable
from .sessions import ManagerOrFunction, Sessions

__all__ = ["SESSION_ENDED", "TRY_AGAIN", "Session", "SessionClosed", "SessionMiddleware", "SessionPlugin", "SessionSocket", "get_session", "get_socket"]


class SessionMiddleware(asgi.SessionMiddleware):
    """Litestar makes one for each route; all share the plugin's `sessions`."""

    keys = ("caterwaul.session", "session")

    def __init__(self, app: App, sessions: Sessions) -> None:
        self.app = app
        self.sessions = sessions

    def settle(self, scope: Any, session: Session) -> None:
        """`set_session` and `clear_session` put something else into the scope."""
        given = scope["session"]
        if given is session:
            return
        scope["session"] = session
        if given is Empty or given is None:
            session.invalidate()
        elif isinstance(given, Mapping):
            for name in set(session) - set(given):
                del session[name]
            session.update(given)
        else:
            raise ValueRefused(f"set_session: a session is a dictionary, not {type(given).__name__}")


class SessionPlugin(InitPlugin):
    """Gives each request and WebSocket its session. `manager`, `cookie`, `no_touch`: see `asgi.SessionMiddleware`."""

    def __init__(self, manager: ManagerOrFunction, cookie: CookieSettings | None = None, *, no_touch: Sequence[str] = ()) -> None:
        self.sessions = Sessions(manager, cookie, no_touch)

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        app_config.middleware.insert(0, DefineMiddleware(cast(Any, SessionMiddleware), sessions=self.sessions))
        app_config.after_exception.append(_failed)
        app_config.exception_handlers.setdefault(SessionUnavailable, _try_again)
        return app_config


# Dependencies: Litestar(dependencies={"session": Provide(get_session)})


async def get_session(scope: Scope) -> Session:
    """The session of this request or WebSocket. Raises `KeyError` without the plugin."""
    return cast(Session, scope["caterwaul.session"])  # type: ignore[typeddict-item]


async def get_socket(scope: Scope) -> SessionSocket:
    """`commit` and `reopen` for the session of this WebSocket. Raises `KeyError` in a request."""
    return cast(SessionSocket, scope["caterwaul.socket"])  # type: ignore[typeddict-item]


async def _failed(error: Exception, scope: Scope) -> None:
    visit: Visit | None = scope.get("caterwaul.visit")  # type: ignore[assignment]
    if visit is not None and not (isinstance(error, HTTPException) and error.status_code < 500):
        visit.fail()
    socket: SessionSocket | None = scope.get("caterwaul.socket")  # type: ignore[assignment]
    if socket is not None and isinstance(error, SessionUnavailable):
        socket.unavailable = True


def _try_again(request: Request[Any, Any, Any], error: SessionUnavailable) -> Response[bytes]:
    return Response(unavailable(error)[1], media_type=MediaType.TEXT, status_code=error.status, headers={"Retry-After": str(RETRY_AFTER_S)})
