"""aiohttp: `await get_session(request)`, as users of aiohttp-session are used to, and `request[SESSION]`.

    app = web.Application()
    setup(app, cluster.manager)
    app.cleanup_ctx.append(cluster.lifespan)

A middleware of our own and not an `AbstractStorage` for aiohttp-session: that package cannot save for a response which was prepared in the
handler (streams, WebSockets), saves only what was assigned and not what was changed inside, and hands over the whole session to
be written over what other requests did to it. The code of handlers stays as it is but for the import.

A session is committed when a response is prepared in the handler, which is when its headers leave, and when the handler is done. What
the session has to say goes into the response that is sent in the end, whichever that is (`on_response_prepare`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from ..errors import SessionUnavailable
from ..receipts import DONE, Receipt
from ..session import Session
from .asgi_socket import SESSION_ENDED, TRY_AGAIN
from .cookies import CookieSettings
from .policy import EVENT_STREAM, RETRY_AFTER_S, Visit, unavailable
from .sessions import ManagerOrFunction, Sessions
from .waiting import confirmed
from .watch import Watched

__all__ = ["SESSION", "SESSION_ENDED", "TRY_AGAIN", "Session", "commit", "get_session", "new_session", "reopen", "setup"]

SESSION = web.RequestKey("caterwaul.session", Session)


def setup(app: web.Application, manager: ManagerOrFunction, cookie: CookieSettings | None = None, *, no_touch: Sequence[str] = ()) -> None:
    """Give each request of `app` and its sub-applications a session; outside of all other middlewares. Arguments: see `asgi.SessionMiddleware`."""
    sessions = Sessions(manager, cookie, no_touch)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = (request.remote or "", ",".join(request.headers.getall("X-Forwarded-For", ())))
        try:
            visit = await sessions.admit(
                request.headers.getall("Cookie", ()), origin, request.path, lambda: request.headers.get("User-Agent", ""), not _takes_no_turn(request)
            )
        except SessionUnavailable as error:
            return _refusal(error)
        return await _Request(sessions, request, visit).run(handler)

    app.middlewares.insert(0, middleware)
    app.on_response_prepare.append(_prepare)


def _takes_no_turn(request: web.Request) -> bool:
    """A WebSocket, or a request that has its session already."""
    return request.headers.get("Upgrade", "").lower() == "websocket" or _REQUEST in request


async def get_session(request: web.Request) -> Session:
    """The session of this request. Raises `KeyError` without `setup`."""
    return request[SESSION]


async def new_session(request: web.Request) -> Session:
    """The session, emptied and with a new id: for a login."""
    session = request[SESSION]
    session.clear()
    session.cycle_id()
    return session


async def commit(request: web.Request) -> Receipt:
    """Save now what was changed (a WebSocket's handler, after each message that changed something), and wait for those that must confirm.

    Raises what `SessionManager.commit` raises, and `NotConfirmed`.
    """
    return await request[_REQUEST].commit()


async def reopen(request: web.Request) -> Session:
    """Commit, and open the session again, with what others have written meanwhile; it takes the place of the old one.

    As long as nobody can say what that is, the old one stays.
    """
    return await request[_REQUEST].reopen()


class _Request:
    """One request. A WebSocket's lasts as long as the socket."""

    def __init__(self, sessions: Sessions, request: web.Request, visit: Visit) -> None:
        self._sessions = sessions
        self._request = request
        self.visit = visit
        self._watched: Watched | None = None
        self._closing: asyncio.Task[bool] | None = None
        self._prepared: web.StreamResponse | None = None
        request[SESSION] = visit.session
        request[_REQUEST] = self

    async def run(self, handler: Handler) -> web.StreamResponse:
        try:
            try:
                response = await handler(self._request)
            except web.HTTPException:  # an answer like any other
                await self.commit()
                raise
            await self.commit()
        except SessionUnavailable as error:
            self.visit.fail()
            return await self._refuse(error)
        except web.HTTPException:
            raise
        except BaseException:
            self.visit.fail()
            raise
        finally:
            if self._watched is not None:
                self._watched.stop()
            self.visit.release()
            if self._closing is not None:
                await self._closing
        return response

    async def commit(self) -> Receipt:
        receipt = self.visit.save()
        await confirmed(receipt)
        return DONE if receipt is None else receipt

    async def reopen(self) -> Session:
        await self.commit()
        before = self.visit
        visit = self.visit = await self._sessions.reopen(before, self._request.path, self._prepared is not None)
        self._request[SESSION] = visit.session
        if visit is not before and visit.session.id is None:
            self._end("ended")
        return visit.session

    async def prepare(self, response: web.StreamResponse) -> None:
        """The headers of this response are about to leave."""
        await self.commit()
        self._prepared = response
        headers, is_socket = response.headers, isinstance(response, web.WebSocketResponse)
        before = [(name, value) for name in ("Vary", "Cache-Control") for value in headers.popall(name, ())]
        for name, value in self.visit.headers(before):
            if not is_socket or name == "Set-Cookie" or (name, value) in before:
                headers.add(name, value)
        session = self.visit.session
        if response.content_type == EVENT_STREAM:
            self.visit.end_turn()
        if is_socket:
            if not self.visit.keeps_alive:
                self.visit.let_expire()
            if session.id is not None and not session.new and not session.ended:
                self._watched = self._sessions.watch.begin(session, self.visit.keeps_alive, self._end)

    def _end(self, reason: str) -> None:
        """The session of an open WebSocket has ended, unless the application did that itself. Its `receive` hears that the socket is closed."""
        if not self.visit.session.ended and isinstance(self._prepared, web.WebSocketResponse):
            self._closing = asyncio.ensure_future(self._prepared.close(code=SESSION_ENDED, message=f"session {reason}".encode()))

    async def _refuse(self, error: SessionUnavailable) -> web.StreamResponse:
        prepared = self._prepared
        if prepared is None:
            return _refusal(error)
        if not isinstance(prepared, web.WebSocketResponse):
            raise error
        await prepared.close(code=TRY_AGAIN, message=b"the session cannot be changed at the moment")
        return prepared


def _refusal(error: SessionUnavailable) -> web.Response:
    status, body = unavailable(error)
    return web.Response(status=int(status[:3]), body=body, content_type="text/plain", headers={"Retry-After": str(RETRY_AFTER_S)})


_REQUEST = web.RequestKey("caterwaul.request", _Request)


async def _prepare(request: web.Request, response: web.StreamResponse) -> None:
    found: Any = request.get(_REQUEST)
    if found is not None:
        await found.prepare(response)
