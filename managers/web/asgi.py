"""ASGI: `scope["caterwaul.session"]`, in HTTP requests and WebSockets.

    application = SessionMiddleware(application, cluster.manager)

The session is committed before `http.response.start` leaves, before the last bytes of the body do (for what a streaming response
wrote), and when the application returns (for its background tasks). Waiting for other nodes, to find a session or to have a commit
confirmed, holds this request only, never the loop (`waiting.py`). WebSockets: `asgi_socket.py`. Lifespan passes through.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import SessionUnavailable
from ..session import Session
from ..throttle import Origin
from .asgi_response import App, Receive, Response, Scope, Send, refuse
from .asgi_socket import SessionSocket, turn_away
from .cookies import CookieSettings
from .policy import Visit
from .sessions import ManagerOrFunction, Sessions

__all__ = ["SessionMiddleware"]


class SessionMiddleware:
    """Gives each request and WebSocket of `app` its session.

    `manager`: a session manager, or a function that returns it (`cluster.manager`), called at the first request. An exception that leaves `app` saves
    nothing. `SessionUnavailable` that leaves it before the headers becomes 503 or 429. `no_touch`: see `Front`; a WebSocket there does not keep its
    session alive.
    """

    keys: tuple[str, ...] = ("caterwaul.session",)  #: where in the scope it is put

    def __init__(self, app: App, manager: ManagerOrFunction, cookie: CookieSettings | None = None, *, no_touch: Sequence[str] = ()) -> None:
        self.app = app
        self.sessions = Sessions(manager, cookie, no_touch)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        cookies = (value.decode("latin-1") for name, value in scope["headers"] if name == b"cookie")
        try:
            visit = await self.sessions.admit(
                cookies, origin_of(scope), scope["path"], lambda: _agent_of(scope), kind == "http" and "caterwaul.visit" not in scope
            )
        except SessionUnavailable as error:
            await (refuse(send, error) if kind == "http" else turn_away(scope, send, error))
            return
        if kind == "http":
            await self._http(visit, scope, receive, send)
        else:
            await SessionSocket(self, visit, scope, receive, send).run()

    def entries(self, visit: Visit) -> dict[str, Any]:
        """What the application finds in its scope."""
        return {**dict.fromkeys(self.keys, visit.session), "caterwaul.visit": visit}

    def settle(self, scope: Scope, session: Session) -> None:
        """Before each commit: what the application put in place of its session goes into it. Frameworks that have such ways override this."""

    async def _http(self, visit: Visit, scope: Scope, receive: Receive, send: Send) -> None:
        scope = {**scope, **self.entries(visit)}  # a copy, as ASGI asks of middleware
        response = Response(visit, send, lambda: self.settle(scope, visit.session))
        try:
            await self.app(scope, receive, response.send)
            await response.finish()
        except Exception as error:
            visit.fail()
            unavailable = error if isinstance(error, SessionUnavailable) else response.unavailable
            if unavailable is None or response.started:
                raise
            await refuse(send, unavailable)
        except BaseException:
            visit.fail()
            raise
        finally:
            visit.release()


def _agent_of(scope: Scope) -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == b"user-agent"), "")


def origin_of(scope: Scope) -> Origin:
    """Who asks."""
    client = scope.get("client")
    forwarded = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
    return client[0] if client else "", ",".join(forwarded)
