"""An ASGI server in memory that complains of every breach of the protocol: one HTTP request, or one WebSocket, to an application."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable
from functools import wraps
from typing import Any, TypeVar

T = TypeVar("T")

_GIVE_UP_S = 20.0


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """In a loop of its own; in another thread if this one runs a loop already (a request within a request)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main())
    results: list[T] = []
    thread = threading.Thread(target=lambda: results.append(asyncio.run(main())))
    thread.start()
    thread.join(_GIVE_UP_S)
    return results[0]


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A decorator: this test is a coroutine, and runs in a loop of its own."""

    @wraps(test)
    def in_its_own(*arguments: Any, **keywords: Any) -> None:
        run(lambda: test(*arguments, **keywords))

    return in_its_own


def scope_of(kind: str, path: str, cookies: Iterable[str] = (), client: str = "192.0.2.1", forwarded: str = "", agent: str = "", **more: Any) -> dict[str, Any]:
    headers = [(b"host", b"shop"), *((b"cookie", value.encode("latin-1")) for value in cookies)]
    if forwarded:
        headers.append((b"x-forwarded-for", forwarded.encode()))
    if agent:
        headers.append((b"user-agent", agent.encode()))
    return {
        "type": kind, "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "scheme": "https", "path": path, "raw_path": path.encode(),
        "query_string": b"", "root_path": "", "headers": headers, "client": (client, 4711), "server": ("shop", 443), "state": {}, "extensions": {},
        **({"method": "GET"} if kind == "http" else {"subprotocols": []}), **more,
    }  # fmt: skip


def check_headers(headers: Iterable[Any]) -> list[tuple[str, str]]:
    checked = []
    for name, value in headers:
        assert type(name) is type(value) is bytes
        assert name == name.lower()
        assert not name.startswith(b":")
        assert b"\n" not in value
        checked.append((name.decode("latin-1"), value.decode("latin-1")))
    return checked


class Exchange:
    """One request. `look()` is asked when the headers leave, for `seen`."""

    def __init__(self, head_only: bool = False, look: Callable[[], int] = lambda: 0) -> None:
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.body = b""
        self.seen = 0
        self.over = False
        self._head_only = head_only
        self._look = look
        self._asked = False

    async def receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        while not self.over:
            await asyncio.sleep(0.001)
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        assert not self.over, f"{message} after the end of the response"
        if message["type"] == "http.response.start":
            assert not self.status, "two heads"
            assert type(message["status"]) is int
            self.status, self.headers, self.seen = message["status"], check_headers(message.get("headers", ())), self._look()
        else:
            assert message["type"] == "http.response.body"
            assert self.status, "a body without a head"
            body = message.get("body", b"")
            assert type(body) is bytes
            self.body += b"" if self._head_only else body
            self.over = not message.get("more_body", False)


def serve_asgi(application: Any, scope: dict[str, Any], node: Any) -> Exchange:
    """One request to one of the nodes that the contract drives. While the application waits, the other nodes answer and confirm."""

    async def main() -> Exchange:
        exchange = Exchange(scope["method"] == "HEAD", lambda: node.commits)
        task = asyncio.ensure_future(application(scope, exchange.receive, exchange.send))
        await attend(node, task, lambda: not exchange.status)
        if task.exception() is not None and not exchange.status:
            exchange.status, exchange.over = 500, True  # as servers do
        assert exchange.status, "no response"
        assert exchange.over or task.exception() is not None, "the response has no end"
        return exchange

    return run(main)


async def attend(node: Any, task: asyncio.Future[Any], nothing_left: Callable[[], bool] = lambda: True) -> None:
    """Let the keepers answer and the others confirm until the task is done."""
    begun = asyncio.get_running_loop().time()
    while not task.done():
        node.answer()
        for receipt in list(node.receipts):
            if receipt.waiting and not receipt.waited:
                assert nothing_left(), "something left before the confirmation"
                receipt.confirm()
        await asyncio.sleep(0.0005)
        assert asyncio.get_running_loop().time() - begun < _GIVE_UP_S, "the application hangs"
    if not task.cancelled() and isinstance(task.exception(), AssertionError):
        raise task.exception()  # type: ignore[misc]


class Socket:
    """One WebSocket to `application`, from the browser's side. `pump` is called whenever something is waited for: it moves the cluster."""

    def __init__(self, application: Any, scope: dict[str, Any], pump: Callable[[], object]) -> None:
        self._pump = pump
        self._to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._to_app.put_nowait({"type": "websocket.connect"})
        self.sent: list[dict[str, Any]] = []  #: all that the application sent
        self.state = "connecting"
        self.task = asyncio.ensure_future(application(scope, self._to_app.get, self._send))

    async def _send(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if self.state == "closed":
            raise OSError("the browser is gone")
        allowed = {"connecting": ("websocket.accept", "websocket.close", "websocket.http.response.start"), "open": ("websocket.send", "websocket.close"),
                   "refused": ("websocket.http.response.body",)}  # fmt: skip
        assert kind in allowed[self.state], f"{kind} while {self.state}"
        if "headers" in message:
            check_headers(message["headers"])
        self.state = {"websocket.accept": "open", "websocket.close": "closed", "websocket.http.response.start": "refused"}.get(kind, self.state)
        self.sent.append(message)
        if kind == "websocket.close":
            self._to_app.put_nowait({"type": "websocket.disconnect", "code": message.get("code", 1000), "reason": message.get("reason", "")})

    async def until(self, condition: Callable[[], object], what: str = "it") -> None:
        """Let everything go on until this is so."""
        begun = asyncio.get_running_loop().time()
        while not condition():
            self._pump()
            await asyncio.sleep(0.001)
            if self.task.done() and not self.task.cancelled() and self.task.exception() is not None and not condition():
                raise self.task.exception()  # type: ignore[misc]
            assert asyncio.get_running_loop().time() - begun < _GIVE_UP_S, f"{what} does not happen; sent: {self.sent}"

    async def accepted(self) -> dict[str, Any]:
        await self.until(lambda: self.sent, "an answer to the handshake")
        return self.sent[0]

    def say(self, text: str) -> None:
        self._to_app.put_nowait({"type": "websocket.receive", "text": text})

    async def hear(self, text: str) -> None:
        await self.until(lambda: {"type": "websocket.send", "text": text} in self.sent, f"hearing {text!r}")

    async def ask(self, text: str, answer: str) -> None:
        self.say(text)
        await self.hear(answer)

    def leave(self, code: int = 1001) -> None:
        """The browser closes it."""
        self.state = "closed"
        self._to_app.put_nowait({"type": "websocket.disconnect", "code": code, "reason": ""})

    async def over(self) -> None:
        """Until the application has returned. Raises what left it."""
        await self.until(self.task.done, "the application's end")
        await self.task

    @property
    def closed(self) -> tuple[int, str] | None:
        """Code and reason of the application's close."""
        found = [(message["code"], message["reason"]) for message in self.sent if message["type"] == "websocket.close"]
        return found[0] if found else None

    @property
    def cookie(self) -> str | None:
        found = [value for name, value in check_headers(self.sent[0].get("headers", ())) if name == "set-cookie"]
        return found[0].split(";")[0].partition("=")[2] if found else None
