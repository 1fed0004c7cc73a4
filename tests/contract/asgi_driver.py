"""An ASGI server in memory that complains of every breach of the protocol: one HTTP request, or one WebSocket, to an application."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from .fronts import Answer, Call

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


def scope_of(call: Call, kind: str = "http", **more: Any) -> dict[str, Any]:
    headers = [(b"host", b"shop"), *((b"cookie", value.encode("latin-1")) for value in call.cookies)]  # type: ignore[union-attr]
    if call.forwarded:
        headers.append((b"x-forwarded-for", call.forwarded.encode()))
    return {
        "type": kind, "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "scheme": "https", "path": call.path, "raw_path": call.path.encode(),
        "query_string": b"", "root_path": "", "headers": headers, "client": (call.client, 4711), "server": ("shop", 443), "state": {}, "extensions": {},
        **({"method": call.method} if kind == "http" else {"subprotocols": []}), **more,
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
    """One request to `application`."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.answer: Answer | None = None
        self.over = False
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
            assert self.answer is None, "two heads"
            assert type(message["status"]) is int
            self.answer = Answer(message["status"], check_headers(message.get("headers", ())), b"", self.call.node.commits)
        else:
            assert message["type"] == "http.response.body"
            assert self.answer is not None, "a body without a head"
            body = message.get("body", b"")
            assert type(body) is bytes
            self.answer.body += body if self.call.method != "HEAD" else b""
            self.over = not message.get("more_body", False)


def serve_asgi(application: Any, call: Call) -> Answer:
    """What the browser gets. While the application waits, the other nodes answer and confirm."""

    async def main() -> Answer:
        exchange = Exchange(call)
        task = asyncio.ensure_future(application(scope_of(call), exchange.receive, exchange.send))
        await attend(call.node, task, lambda: exchange.answer is None)
        if task.exception() is not None and exchange.answer is None:
            return Answer(500, [], b"")
        assert exchange.answer is not None, "no response"
        assert exchange.over or task.exception() is not None, "the response has no end"
        return exchange.answer

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
