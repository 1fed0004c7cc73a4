"""An ASGI response on its way out: committed before its headers leave, and again before its last bytes do.

The headers are kept until there is a body, as ASGI asks of servers (not all do it), so what an application writes before its first
bytes counts. Not those of an event stream: its first event may be an hour away, and the browser wants to know that it is connected.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from ..errors import SessionUnavailable
from .policy import RETRY_AFTER_S, Visit, unavailable
from .waiting import confirmed

__all__ = ["App", "Message", "Receive", "Response", "Scope", "Send", "refuse"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Response:
    """Commits where the response must not go on without."""

    def __init__(self, visit: Visit, send: Send, settle: Callable[[], None], prefix: str = "http.response") -> None:
        self.visit = visit
        self.started = False  #: the headers have left
        self.unavailable: SessionUnavailable | None = None  #: why a commit was refused; frameworks may hide it behind errors of their own
        self._head: Message | None = None
        self._send = send
        self._settle = settle
        self._start, self._body = prefix + ".start", prefix + ".body"

    async def send(self, message: Message) -> None:
        """The application's `send`."""
        kind = message["type"]
        if kind == self._start and not self.started:
            self._head = message
            if is_event_stream(message):
                await self._leave()
                self.visit.end_turn()
            return
        if self._head is not None:
            await self._leave()
        elif kind == self._body and not message.get("more_body", False):
            await self.save()
        await self._send(message)

    async def finish(self) -> None:
        """The application has returned."""
        if self._head is not None:
            await self._leave()  # without a body; the server will complain
        else:
            await self.save()

    async def _leave(self) -> None:
        await self.save()
        head, self._head = self._head, None
        assert head is not None
        self.started = True
        await self._send({**head, "headers": session_headers(self.visit, head.get("headers", ()))})

    async def save(self) -> None:
        """Commit, and wait for those that must confirm."""
        try:
            self._settle()
            await confirmed(self.visit.save())
        except SessionUnavailable as error:
            self.unavailable = error
            self.visit.fail()
            raise
        except Exception:
            self.visit.fail()
            raise


def session_headers(visit: Visit, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of a response with the session's."""
    kept, shared = [], []
    for pair in headers:
        name, value = pair
        if name.lower() in (b"vary", b"cache-control"):
            shared.append((name.decode("latin-1"), value.decode("latin-1")))
        else:
            kept.append((bytes(name), bytes(value)))
    return [*kept, *((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in visit.headers(shared))]


def is_event_stream(head: Message) -> bool:
    return any(name.lower() == b"content-type" and value.startswith(b"text/event-stream") for name, value in head.get("headers", ()))


async def refuse(send: Send, error: SessionUnavailable, prefix: str = "http.response") -> None:
    """The answer 503 or 429."""
    status, body = unavailable(error)
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body)), (b"retry-after", b"%d" % RETRY_AFTER_S)]
    await send({"type": prefix + ".start", "status": int(status[:3]), "headers": headers})
    await send({"type": prefix + ".body", "body": body})
