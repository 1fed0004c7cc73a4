"""Requests to an application in this process, the way its server gives them to it, without a server and without sockets.

A driver's `ask` sends one request and gives the answer back; `time` sends many, one after the other, and says how long each took: from
handing it over until the last byte of the answer came. What a server would do besides is not in it. Requests are put together before the clock starts.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.testing import StringTransport
from twisted.internet.threads import blockingCallFromThread

from .work import BODY_BYTES, COOKIE

__all__ = ["Answer", "Asgi", "Driver", "Raw", "TwistedWeb", "Wsgi", "parse"]

_clock = time.perf_counter_ns


class Answer(NamedTuple):
    status: int
    cookie: str | None  #: that the answer sets
    body: bytes


class Driver(Protocol):
    def ask(self, what: str, cookie: str | None) -> Answer: ...

    def time(self, what: str, cookies: Sequence[str]) -> list[int]:
        """Nanoseconds of each request, one for each cookie. Raises `RuntimeError` when one is not answered with 200."""


class Wsgi:
    """A WSGI application."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self._heads: list[tuple[str, list[tuple[str, str]]]] = []

    def ask(self, what: str, cookie: str | None) -> Answer:
        self._heads.clear()
        body = self._answered(_environ(what, cookie))
        status, headers = self._heads[0]
        return Answer(int(status[:3]), _cookie(headers), body)

    def time(self, what: str, cookies: Sequence[str]) -> list[int]:
        self._heads.clear()
        calls = []
        for environ in [_environ(what, cookie) for cookie in cookies]:
            began = _clock()
            self._answered(environ)
            calls.append(_clock() - began)
        _all_well(int(status[:3]) for status, _ in self._heads)
        return calls

    def _answered(self, environ: dict[str, Any]) -> bytes:
        """As servers do: the whole iterable, then its `close`."""
        body = self._app(environ, self._start)
        try:
            return b"".join(body)
        finally:
            close = getattr(body, "close", None)
            if close is not None:
                close()

    def _start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        self._heads.append((status, headers))
        return io.BytesIO().write


class Asgi:
    """An ASGI application, in one loop of its own."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app
        self._runner = asyncio.Runner()
        self._sent: list[Any] = []

    def ask(self, what: str, cookie: str | None) -> Answer:
        async def one() -> None:
            await self._app(_scope(what, cookie), _receive, self._send)

        self._sent.clear()
        self._runner.run(one())
        head, *bodies = self._sent
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in head["headers"]]
        return Answer(head["status"], _cookie(headers), b"".join(message.get("body", b"") for message in bodies))

    def time(self, what: str, cookies: Sequence[str]) -> list[int]:
        calls = []

        async def all_of_them() -> None:
            for scope in [_scope(what, cookie) for cookie in cookies]:
                began = _clock()
                await self._app(scope, _receive, self._send)
                calls.append(_clock() - began)

        self._sent.clear()
        self._runner.run(all_of_them())
        _all_well(message["status"] for message in self._sent if "status" in message)
        return calls

    async def _send(self, message: Any) -> None:
        self._sent.append(message)


class Raw:
    """An asyncio protocol that speaks HTTP: `make()` gives it, in the loop. One connection, kept alive."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._runner = asyncio.Runner()
        self._transport = _AsyncioTransport()
        self._runner.run(self._connect(make))

    async def _connect(self, make: Callable[[], Any]) -> None:
        self._protocol = await make()
        self._protocol.connection_made(self._transport)

    def ask(self, what: str, cookie: str | None) -> Answer:
        return parse(self._runner.run(self._sent(_raw(what, cookie))))

    def time(self, what: str, cookies: Sequence[str]) -> list[int]:
        calls, answers = [], []

        async def all_of_them() -> None:
            for raw in [_raw(what, cookie) for cookie in cookies]:
                began = _clock()
                answers.append(await self._sent(raw))
                calls.append(_clock() - began)

        self._runner.run(all_of_them())
        _all_well(int(answer[9:12]) for answer in answers)
        return calls

    async def _sent(self, raw: bytes) -> bytes:
        answer = self._transport.expect()
        self._protocol.data_received(raw)
        return await answer


class _AsyncioTransport(asyncio.Transport):
    """Collects one answer at a time."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 80)})
        self._data = b""

    def expect(self) -> asyncio.Future[bytes]:
        self._data = b""
        self._answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        return self._answer

    def write(self, data: Any) -> None:
        self._data += data
        if _is_whole(self._data):
            self._answer.set_result(self._data)

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(list_of_data))

    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class TwistedWeb:
    """A `Site`, in the reactor's thread. One connection, kept alive; between two requests the reactor turns, as it would to read the next."""

    def __init__(self, reactor: Any, site: Any) -> None:
        self._reactor = reactor
        self._transport = _TwistedTransport(peerAddress=IPv4Address("TCP", "127.0.0.1", 1))
        blockingCallFromThread(reactor, self._connect, site)

    def _connect(self, site: Any) -> None:
        site.timeOut = None  # a bench is silent for longer
        self._channel = site.buildProtocol(self._transport.getPeer())
        self._channel.makeConnection(self._transport)

    def ask(self, what: str, cookie: str | None) -> Answer:
        return parse(self._in_reactor([_raw(what, cookie)])[0][1])

    def time(self, what: str, cookies: Sequence[str]) -> list[int]:
        found = self._in_reactor([_raw(what, cookie) for cookie in cookies])
        _all_well(int(answer[9:12]) for _, answer in found)
        return [took for took, _ in found]

    def _in_reactor(self, raws: list[bytes]) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = blockingCallFromThread(self._reactor, lambda: Deferred.fromCoroutine(self._sent(raws)))
        return found

    async def _sent(self, raws: list[bytes]) -> list[tuple[int, bytes]]:
        found = []
        for raw in raws:
            began = _clock()
            answer = self._transport.expect()
            self._channel.dataReceived(raw)
            data = await answer
            found.append((_clock() - began, data))
            await deferLater(self._reactor, 0)
        return found


class _TwistedTransport(StringTransport):
    """Collects one answer at a time."""

    def expect(self) -> Deferred[bytes]:
        self.clear()
        self._answer: Deferred[bytes] = Deferred()
        return self._answer

    def write(self, data: bytes) -> None:
        super().write(data)
        if _is_whole(self.value()):
            self._answer.callback(self.value())


def parse(raw: bytes) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    return Answer(int(first.split()[1]), _cookie((name, value.strip()) for name, _, value in (line.partition(":") for line in lines)), body)


def _is_whole(data: bytes) -> bool:
    end = data.find(b"\r\n\r\n")
    return end >= 0 and len(data) - end - 4 >= BODY_BYTES


def _all_well(statuses: Iterable[int]) -> None:
    others = sorted(set(statuses) - {200})
    if others:
        raise RuntimeError(f"the application answered {', '.join(map(str, others))}")


def _cookie(headers: Iterable[tuple[str, str]]) -> str | None:
    prefix = COOKIE.name + "="
    values = (value.strip() for name, value in headers if name.lower() == "set-cookie")
    return next((value[len(prefix) :].partition(";")[0] for value in values if value.startswith(prefix)), None)


def _field(cookie: str | None) -> str:
    return "theme=dark" if cookie is None else f"theme=dark; {COOKIE.name}={cookie}"


def _environ(what: str, cookie: str | None) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": f"/{what}", "QUERY_STRING": "", "SERVER_NAME": "shop", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "shop", "HTTP_COOKIE": _field(cookie), "wsgi.version": (1, 0), "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(), "wsgi.multithread": True, "wsgi.multiprocess": True, "wsgi.run_once": False,
    }  # fmt: skip


def _scope(what: str, cookie: str | None) -> dict[str, Any]:
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "method": "GET", "scheme": "http", "path": f"/{what}",
        "raw_path": f"/{what}".encode(), "query_string": b"", "root_path": "", "headers": [(b"host", b"shop"), (b"cookie", _field(cookie).encode())],
        "client": ("127.0.0.1", 1), "server": ("shop", 80), "state": {}, "extensions": {},
    }  # fmt: skip


def _raw(what: str, cookie: str | None) -> bytes:
    return f"GET /{what} HTTP/1.1\r\nHost: shop\r\nCookie: {_field(cookie)}\r\n\r\n".encode()


async def _receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}
