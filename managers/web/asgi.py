"""ASGI: `scope["caterwaul.session"]`, in HTTP requests and WebSockets.

    application = SessionMiddleware(application, cluster.manager)

The session is committed before `http.response.start` leaves, before the last bytes of the body do (for what a streaming response
wrote), and when the application returns (for its background tasks). Waiting for other nodes, to find a session or to have a commit confirmed, holds this
request only, never the loop (`waiting.py`). WebSockets: `asgi_socket.py`. Lifespan passes through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from ..base import SessionManager
from ..errors import SessionUnavailable
from ..session import Session
from .asgi_response import App, Receive, Response, Scope, Send, refuse
from .asgi_socket import SessionSocket
from .cookies import CookieSettings, Ticket
from .policy import Front, Visit
from .waiting import opened
from .watch import Watch

__all__ = ["SessionMiddleware"]


class SessionMiddleware:
    """Gives each request and WebSocket of `app` its session.

    `manager`: a session manager, or a function that returns it, called at the first request: applications are put together
    before their node is started. An exception that leaves `app` saves nothing. `SessionUnavailable` that leaves it before the
    headers becomes 503 or 429. `no_touch`: see `Front`; a WebSocket there does not keep its session alive.
    """

    keys: tuple[str, ...] = ("caterwaul.session",)  #: where in the scope it is put

    def __init__(
        self, app: App, manager: SessionManager | Callable[[], SessionManager], cookie: CookieSettings | None = None, *, no_touch: Sequence[str] = ()
    ) -> None:
        self.app = app
        self._manager = manager
        self._cookie = cookie
        self._no_touch = no_touch

    @cached_property
    def front(self) -> Front:
        manager = self._manager
        return Front(manager() if callable(manager) else manager, self._cookie, self._no_touch)

    @cached_property
    def watch(self) -> Watch:
        return Watch(self.front.manager)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            await self._http(scope, receive, send)
        elif kind == "websocket":
            await SessionSocket(self, await self.admit(scope), scope, receive, send).run()
        else:
            await self.app(scope, receive, send)

    async def admit(self, scope: Scope, ticket: Ticket | None = None) -> Visit:
        """The session of this scope, opened; `ticket`: instead of its cookies."""
        front, cookies, forwarded = self.front, [], []
        for name, value in scope["headers"]:
            if name == b"cookie":
                cookies.append(value.decode("latin-1"))
            elif name == b"x-forwarded-for":
                forwarded.append(value.decode("latin-1"))
        ticket = ticket or front.ticket(cookies)
        client = scope.get("client")
        origin = (client[0] if client else "", ",".join(forwarded))
        session = await opened(front, ticket, origin)
        return front.admit(ticket, session, scope["path"], origin)

    def scope_with(self, scope: Scope, session: Session, **more: Any) -> Scope:
        """A copy, as ASGI asks of middleware."""
        return {**scope, **dict.fromkeys(self.keys, session), **more}

    def settle(self, scope: Scope, session: Session) -> None:
        """Before each commit: what the application put in place of its session goes into it. Frameworks that have such ways override this."""

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        visit = await self.admit(scope)
        inner = self.scope_with(scope, visit.session)
        response = Response(visit, send, lambda: self.settle(inner, visit.session))
        try:
            await self.app(inner, receive, response.send)
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
