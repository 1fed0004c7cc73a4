"""A WebSocket and its session, from `websocket.connect` to its end.

The session is opened before the application sees the socket, and stays in use, so alive, as long as that is open. It is
committed when the socket is accepted (a session that is new gets its cookie in the headers of that), whenever the application asks
for the next message, when the socket is closed, and when the application says so. What other requests change meanwhile is seen after
`reopen`. When the session ends elsewhere, by a logout, a login (which changes the id) or its absolute limit, the socket is closed with
4001: the application receives `websocket.disconnect`, and whatever it still sends raises.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from ..errors import SessionUnavailable
from ..receipts import DONE, Receipt
from ..session import Session
from .asgi_response import Message, Receive, Response, Scope, Send, refuse
from .policy import Visit
from .waiting import confirmed
from .watch import Watched

if TYPE_CHECKING:
    from .asgi import SessionMiddleware

__all__ = ["SESSION_ENDED", "TRY_AGAIN", "SessionClosed", "SessionSocket", "turn_away"]

SESSION_ENDED = 4001  #: close code: the session of this socket has ended, the reason says how; connecting again gets the browser's present one
TRY_AGAIN = 1013  #: close code: the session cannot be changed at the moment

_TRY_AGAIN = {"type": "websocket.close", "code": TRY_AGAIN, "reason": "the session cannot be changed at the moment"}


async def turn_away(scope: Scope, send: Send, error: SessionUnavailable) -> None:
    """The answer to a handshake, where the server can give one, else the end of it."""
    if "websocket.http.response" in scope.get("extensions", {}):
        await refuse(send, error, "websocket.http.response")
    else:
        await send(_TRY_AGAIN)


class SessionClosed(OSError):
    """Something was sent to a WebSocket that is closed since its session has ended. (ASGI: sending to who is gone raises `OSError`.)"""


class SessionSocket:
    """`scope["caterwaul.socket"]`. Of the loop that serves the socket."""

    def __init__(self, owner: SessionMiddleware, visit: Visit, scope: Scope, receive: Receive, send: Send) -> None:
        self._owner = owner
        self._visit = visit
        self._scope = {**scope, **owner.entries(visit), "caterwaul.socket": self}
        self._receive = receive
        self._send = send
        self._refusal: Response | None = None  # a page in answer to the handshake
        self._over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._watched: Watched | None = None
        self._receiving: asyncio.Task[Message] | None = None
        self._closing: asyncio.Task[None] | None = None
        self.unavailable = False  #: what closes the socket is `SessionUnavailable`, whatever a framework makes of that
        self._answered = self._closed = False  # accepted or refused; closed by either side

    # -- for the application

    @property
    def session(self) -> Session:
        """The session as it was when the socket, or it, was opened last, with what was done to it here."""
        return self._visit.session

    async def commit(self) -> Receipt:
        """Save what was changed, and wait for those that must confirm. Raises what `SessionManager.commit` raises, and `NotConfirmed`."""
        self._settle()
        receipt = self._visit.save()
        await confirmed(receipt)
        return DONE if receipt is None else receipt

    async def reopen(self) -> Session:
        """Commit, and open the session again, with what others have written meanwhile; in the scope it takes the place of the old one.

        As long as nobody can say what that is, the old one stays.
        """
        await self.commit()
        before = self._visit
        visit = self._visit = await self._owner.sessions.reopen(before, self._scope["path"], self._answered)
        self._scope.update(self._owner.entries(visit))
        if visit is not before and visit.session.id is None:
            self._end("ended")
        return visit.session

    # -- the application's side of the protocol

    async def receive(self) -> Message:
        await self.commit()
        if not self._over.done():
            task = self._receiving = self._receiving or asyncio.ensure_future(self._receive())
            await asyncio.wait((task, self._over), return_when=asyncio.FIRST_COMPLETED)
            if not self._over.done():
                self._receiving = None
                message = task.result()
                self._closed = self._closed or message["type"] == "websocket.disconnect"
                return message
        return {"type": "websocket.disconnect", "code": SESSION_ENDED, "reason": f"session {self._over.result()}"}

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind.startswith("websocket.http.response."):
            self._answered = True
            if self._refusal is None:
                self._refusal = Response(self._visit, self._send, self._settle, "websocket.http.response")
            await self._refusal.send(message)
            return
        if kind in ("websocket.accept", "websocket.close") and not self._over.done():
            await self.commit()
        if self._over.done():
            if kind == "websocket.close":
                return
            raise SessionClosed(f"the session of this WebSocket has ended: {self._over.result()}")
        if kind == "websocket.accept":
            cookies = [(b"set-cookie", value.encode("latin-1")) for name, value in self._visit.headers(()) if name == "Set-Cookie"]
            message = {**message, "headers": [*message.get("headers", ()), *cookies]}
            self._answered = True
            self._watch()
        if kind == "websocket.close":
            self._closed = True
            message = _TRY_AGAIN if self.unavailable else message
        await self._send(message)

    # -- its life

    async def run(self) -> None:
        try:
            if not self._visit.keeps_alive:
                self._visit.let_expire()
            self._watch()
            await self._owner.app(self._scope, self.receive, self.send)
            await (self._refusal.finish() if self._refusal is not None else self.commit())
        except SessionUnavailable as error:
            self._visit.fail()
            await self._unavailable(error)
        except SessionClosed:
            self._visit.fail()
        except BaseException:
            self._visit.fail()
            raise
        finally:
            await self._finish()

    def _settle(self) -> None:
        self._owner.settle(self._scope, self._visit.session)

    def _watch(self) -> None:
        """From the beginning, or since it was made, or got a new id, before the socket was accepted."""
        session, watched = self._visit.session, self._watched
        if session.id is None or session.new or session.ended or (watched is not None and watched.key == session.key):
            return
        if watched is not None:
            watched.stop()
        self._watched = self._owner.sessions.watch.begin(session, self._visit.keeps_alive, self._end)

    def _end(self, reason: str) -> None:
        session, watched = self._visit.session, self._watched
        if self._over.done() or session.ended:  # the application ended it itself, and may want to say something before it closes the socket
            return
        if session.id is not None and watched is not None and watched.key != session.key:
            return  # it has a new id from here
        self._over.set_result(reason)
        if not self._closed:
            self._closed = True
            self._closing = asyncio.ensure_future(self._send({"type": "websocket.close", "code": SESSION_ENDED, "reason": f"session {reason}"}))

    async def _unavailable(self, error: SessionUnavailable) -> None:
        if self._closed or (self._refusal is not None and self._refusal.started):
            raise error
        if self._refusal is not None or not self._answered:
            await turn_away(self._scope, self._send, error)
        else:
            await self._send(_TRY_AGAIN)

    async def _finish(self) -> None:
        if self._watched is not None:
            self._watched.stop()
        self._visit.release()
        if self._receiving is not None:
            self._receiving.cancel()
        for task in (self._receiving, self._closing):
            if task is not None:
                with suppress(Exception, asyncio.CancelledError):
                    await task
