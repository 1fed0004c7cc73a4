"""WSGI: `environ["caterwaul.session"]`.

    application = SessionMiddleware(application, manager)

The status and headers that the application gives to `start_response` are kept until its first body bytes (or its end), as
PEP 3333 asks of servers; the session is committed then, so what an application writes before its first `yield` counts.
A list or tuple means that the application is done, and is passed on as it is. A commit that wants confirmations waits
here, in the request's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ..base import SessionManager
from ..errors import SessionUnavailable
from ..session import Session
from ..throttle import Origin
from .cookies import CookieSettings, Ticket
from .policy import RETRY_AFTER_S, Front, Visit, unavailable, wait

__all__ = ["SessionMiddleware", "open_visit"]

StartResponse = Callable[..., Callable[[bytes], object]]
App = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


class SessionMiddleware:
    """Gives each request of `app` its session.

    An exception that leaves `app` saves nothing. `SessionUnavailable` that leaves it before the headers becomes 503 or 429.
    `manager`, `no_touch`: see `Front`.
    """

    def __init__(
        self, app: App, manager: SessionManager | Callable[[], SessionManager], cookie: CookieSettings | None = None, *, no_touch: Sequence[str] = ()
    ) -> None:
        self._app = app
        self.front = Front(manager, cookie, no_touch)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        try:
            visit = open_visit(self.front, environ)
        except SessionUnavailable as error:
            status, headers, refusal = _refusal(error)
            start_response(status, headers)
            return [refusal]
        environ["caterwaul.session"] = visit.session
        environ["caterwaul.visit"] = visit  # for frameworks that have more to say about it
        response = _Response(visit, start_response)
        try:
            body = self._app(environ, response.start)
            if type(body) in (list, tuple) or type(body) is environ.get("wsgi.file_wrapper"):
                response.finish()
                visit.release()
                return body
        except SessionUnavailable as error:
            return response.unavailable(error)
        except BaseException:
            response.fail()
            raise
        return _Body(body, response)


def open_visit(front: Front, environ: dict[str, Any], in_turn: bool = True) -> Visit:
    """The request begins: its session, opened. Waits if other nodes have to be asked. Without `in_turn` it waits for no other request, nor does one for it."""
    path, origin = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""), origin_of(environ)
    ticket = front.ticket((environ.get("HTTP_COOKIE", ""),), path, lambda: environ.get("HTTP_USER_AGENT", ""))
    if ticket.in_turn and (not in_turn or "caterwaul.visit" in environ):  # a request does not wait for itself
        ticket = ticket._replace(in_turn=False)
    visit = front.admit(ticket, _opened(front, ticket, origin), path, origin)
    if visit.wanted is not None:
        with visit.kept():
            visit.sign_on(_opened(*visit.wanted, origin))
    return visit


def _opened(front: Front, ticket: Ticket, origin: Origin) -> Session:
    session = front.local(ticket, origin)
    return front.open(ticket) if session is None else session


def origin_of(environ: dict[str, Any]) -> Origin:
    """Who asks, for the limits of one client."""
    return environ.get("REMOTE_ADDR", ""), environ.get("HTTP_X_FORWARDED_FOR", "")


def _refusal(error: SessionUnavailable) -> tuple[str, list[tuple[str, str]], bytes]:
    status, body = unavailable(error)
    return status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body))), ("Retry-After", str(RETRY_AFTER_S))], body


class _Response:
    """Holds the headers back until the session is committed."""

    __slots__ = ("_head", "_start", "_write", "visit")

    def __init__(self, visit: Visit, start_response: StartResponse) -> None:
        self.visit = visit
        self._start = start_response
        self._head: tuple[str, list[tuple[str, str]], Any] | None = None
        self._write: Callable[[bytes], object] | None = None  # the server's, once the headers are out of our hands

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        """The application's `start_response`."""
        if self._write is not None:
            return self._start(status, headers, exc_info)  # too late; the server raises `exc_info`
        if self._head is not None and exc_info is None:
            raise AssertionError("start_response was called twice without exc_info")
        self._head = (status, headers, exc_info)
        return self.write

    def write(self, data: bytes) -> object:
        """The `write` of PEP 3333 for old applications."""
        self.send()
        assert self._write is not None, "write comes from start"
        return self._write(data)

    def send(self) -> None:
        """Commit, then hand the headers to the server. Without `start` before it, nothing: the server will complain."""
        if self._write is not None or self._head is None:
            return
        self.save()
        status, headers, exc_info = self._head
        headers = self.visit.headers(headers)
        self._write = self._start(status, headers, exc_info) if exc_info else self._start(status, headers)
        self._head = None  # exc_info refers to frames

    def finish(self) -> None:
        """The application is done: send the headers, or commit what was written after them."""
        if self._write is not None:
            self.save()
        else:
            self.send()

    def save(self) -> None:
        receipt = self.visit.save()
        if receipt is not None:
            wait(receipt)

    def fail(self) -> None:
        self.visit.fail()
        self.visit.release()

    def unavailable(self, error: SessionUnavailable) -> list[bytes]:
        """The answer 503 or 429, or the exception again when the headers are out."""
        self.visit.fail()
        status, headers, body = _refusal(error)
        try:
            if self._write is not None:
                raise error
            self._head = None
            self.start(status, headers)
            self.send()
        finally:
            self.visit.release()
        return [body]


class _Body:
    """The application's iterable: commits before its first bytes, and again at its end."""

    __slots__ = ("_body", "_iterator", "_response")

    def __init__(self, body: Iterable[bytes], response: _Response) -> None:
        self._body = body
        self._iterator: Iterator[bytes] | None = None
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        response = self._response
        try:
            if self._iterator is None:
                self._iterator = iter(self._body)
            for chunk in self._iterator:
                if chunk or response._write is not None:
                    response.send()
                    return chunk
            response.finish()
        except SessionUnavailable as error:
            self._iterator = iter(())
            return response.unavailable(error)[0]
        except BaseException:
            response.fail()
            raise
        raise StopIteration

    def close(self) -> None:
        response = self._response
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
            if response._write is not None:
                response.save()
        finally:
            response.visit.release()
