"""twisted.web: `request.caterwaul_session`.

    site = SessionSite(root, manager)

`Request.getSession` cannot wait, so the session is opened before the resource tree is walked: at once when this node holds
it, else after the answer of the keepers. The commit runs when the first byte (or `finish`) would send the headers; when it
asks for confirmations the response is *held*: writes, `finish` and producers wait in order until the receipt fires. A commit that is refused is
answered here, and what the application writes after that is dropped: raised into an application's late `write` it would reach nobody.
(twisted.web is mostly without annotations: hence the line for mypy.)
"""

# mypy: allow-untyped-calls
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.resource import IResource

from ..base import SessionManager
from ..errors import SessionUnavailable
from ..receipts import Receipt
from ..throttle import Origin
from .cookies import CookieSettings, Ticket
from .policy import EVENT_STREAM, RETRY_AFTER_S, Front, Visit, unavailable

__all__ = ["SessionRequest", "SessionSite"]


def _instead(reason: Failure, front: Front) -> Any:
    return front.instead(reason.value)  # type: ignore[arg-type]  # what opening raises is an Exception


class SessionRequest(server.Request):
    """A request with a session. Own request classes derive from this one and go to `SessionSite` as `requestFactory`."""

    caterwaul_session: Any = None  #: set before `getChild` and `render`

    _visit: Visit | None = None
    _committed = False  # the headers have what the session adds to them
    _held: list[bytes] | None = None  # what was written while a receipt is awaited
    _held_producer: tuple[Any, bool] | None = None
    _finishing = False
    _answered = False  # an error page has gone out in place of the application's response

    def process(self) -> None:
        channel: Any = self.channel  # HTTP/1.1 or a stream of HTTP/2; both know their site
        self.site = channel.site
        front: Front = channel.site.front
        cookies = (value.decode("latin-1") for value in self.requestHeaders.getRawHeaders(b"cookie", ()))
        ticket = front.ticket(cookies, self.path.decode("latin-1"), lambda: (self.getHeader(b"user-agent") or b"").decode("latin-1"))
        client: Any = self.getClientAddress()
        origin = (getattr(client, "host", ""), ",".join(value.decode("latin-1") for value in self.requestHeaders.getRawHeaders(b"x-forwarded-for", ())))
        try:
            session = front.local(ticket, origin)
        except Exception:
            self._not_opened(Failure())
            return
        if session is not None:
            self._opened(session, ticket, front, origin)
        else:
            assert ticket.id is not None, "only a well-formed id is looked up"
            opening: Deferred[Any] = maybeDeferred(front.opener(ticket).open_deferred, ticket.id, ticket.token)
            opening.addErrback(_instead, front).addCallback(self._opened, ticket, front, origin).addErrback(self._not_opened)

    def write(self, data: bytes) -> None:
        self._commit()
        if self._answered:
            return
        if self._held is None:
            super().write(data)
        else:
            self._held.append(data)

    def finish(self) -> None:
        if self._answered:
            return
        visit = self._visit
        if visit is None or self._disconnected:
            super().finish()
            return
        if self._held is None:
            if self._committed:
                self._hold(visit.save())  # what a streaming response wrote after its headers
            else:
                self._commit()
        if self._answered:
            return
        if self._held is not None:
            self._finishing = True
        else:
            super().finish()
            visit.release()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self._commit()  # now: a producer that was let loose could not be held
        if self._answered:
            producer.stopProducing()
        elif self._held is None:
            super().registerProducer(producer, streaming)
        else:
            self._held_producer = (producer, streaming)

    def unregisterProducer(self) -> None:
        if self._held_producer is not None:
            self._held_producer = None
        elif not self._answered:
            super().unregisterProducer()

    def connectionLost(self, reason: Failure) -> None:
        if self._visit is not None:
            self._visit.release()
        self._drop_producer()
        super().connectionLost(reason)

    def processingFailed(self, reason: Failure) -> Failure:
        if self._visit is not None:
            self._visit.fail()
        if self._held is not None:
            self._held.clear()  # its headers have not left, so the error page can take its place
        if reason.check(SessionUnavailable) is None or self.startedWriting:
            super().processingFailed(reason)
            return reason
        error: Any = reason.value
        status, body = unavailable(error)
        code, _, words = status.partition(" ")
        self.setResponseCode(int(code), words.encode())
        self.setHeader(b"Retry-After", b"%d" % RETRY_AFTER_S)
        self.setHeader(b"Content-Type", b"text/plain")
        self.setHeader(b"Content-Length", b"%d" % len(body))
        self.write(body)
        self.finish()
        return reason

    def _opened(self, session: Any, ticket: Ticket, front: Front, origin: Origin) -> None:
        visit = self._visit = front.admit(ticket, session, self.path.decode("latin-1"), origin)
        self.caterwaul_session = session
        if visit.wanted is None:
            self._begin(visit)
        else:
            shared, login = visit.wanted
            shared.manager.open_deferred(login.id, login.token).addCallback(visit.sign_on).addCallback(lambda _: self._begin(visit)).addErrback(
                self._not_opened
            )

    def _begin(self, visit: Visit) -> None:
        if self._disconnected:
            visit.release()
        else:
            super().process()

    def _not_opened(self, reason: Failure) -> None:
        if not self._disconnected:
            self.processingFailed(reason)

    def _commit(self) -> None:
        """The headers are about to leave: save, add what the session has to say, and hold the response if somebody must confirm."""
        visit = self._visit
        if visit is None or self._committed or self._inFakeHead or self._disconnected:
            return
        try:
            receipt = visit.save()
        except Exception:
            self.processingFailed(Failure())
            self._answered = True
            return
        self._committed = True
        if (self.responseHeaders.getRawHeaders("Content-Type") or [""])[-1].startswith(EVENT_STREAM):
            visit.end_turn()
        headers = self.responseHeaders
        before = [(name, value) for name in ("Vary", "Cache-Control") for value in headers.getRawHeaders(name, ())]
        for name, _ in before:
            headers.removeHeader(name)
        cookies = []
        for name, value in visit.headers(before):
            if name == "Set-Cookie":
                cookies.append(value.encode("ascii"))
            else:
                headers.addRawHeader(name, value)
        if cookies:  # Twisted puts `cookies` in place of the header, so all of them go there
            self.cookies = [*headers.getRawHeaders(b"Set-Cookie", ()), *self.cookies, *cookies]
        self._hold(receipt)

    def _hold(self, receipt: Receipt | None) -> None:
        if receipt is not None and receipt.needs_wait:
            self._held = []
            receipt.deferred().addCallbacks(self._resume, self._unconfirmed)

    def _resume(self, _: object) -> None:
        chunks, self._held = self._held or [], None
        if self._disconnected:
            return
        for chunk in chunks:
            self.write(chunk)
        if self._held_producer is not None:
            producer, self._held_producer = self._held_producer, None
            super().registerProducer(*producer)
        if self._finishing:
            self._finishing = False
            self.finish()

    def _unconfirmed(self, reason: Failure) -> None:
        """`strict_acks`: too few confirmed. An error page, or a response that visibly breaks off."""
        self._held = None
        self._finishing = False
        self._drop_producer()
        if self._disconnected:
            return
        if self.startedWriting:
            self.loseConnection()
        else:
            self.processingFailed(reason)

    def _drop_producer(self) -> None:
        if self._held_producer is not None:
            producer, self._held_producer = self._held_producer, None
            producer[0].stopProducing()


class SessionSite(server.Site):
    """A `Site` whose requests have sessions. Further arguments are `Site`'s; `no_touch`: see `Front`."""

    requestFactory = SessionRequest

    def __init__(
        self,
        resource: IResource,
        manager: SessionManager | Callable[[], SessionManager],
        cookie: CookieSettings | None = None,
        *args: Any,
        no_touch: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(resource, *args, **kwargs)
        self.front = Front(manager, cookie, no_touch)
