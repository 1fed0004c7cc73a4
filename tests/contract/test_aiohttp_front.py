"""aiohttp under the contract of fronts: its own protocol over a transport in memory."""

from __future__ import annotations

import asyncio
from inspect import isawaitable
from typing import Any

import pytest
from aiohttp import web

from caterwaul.managers.web.aiohttp import get_session, setup

pytest.register_assert_rewrite("tests.contract.fronts", "tests.contract.parallel", "tests.contract.sharing")

from .asgi_driver import attend, run  # noqa: E402
from .fronts import Answer, Call, FrontContract, RoamingContract, count  # noqa: E402
from .parallel import ParallelContract, ThreadsContract  # noqa: E402
from .sharing import SharingContract  # noqa: E402
from .test_fronts import locking, parse, raw_request, refusing, roaming, shared, world  # noqa: E402, F401


class Wire(asyncio.Transport):
    """Remembers what was written, and how many commits the node had seen when the first byte was."""

    def __init__(self, call: Call) -> None:
        super().__init__({"peername": (call.client, 4711)})
        self._call = call
        self.written = b""
        self.seen = 0
        self.closed = asyncio.get_running_loop().create_future()

    def write(self, data: Any) -> None:
        if not self.written:
            self.seen = self._call.node.commits
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return bool(self.closed.done())

    def close(self) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    abort = close

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class TestAiohttp(FrontContract, RoamingContract, ParallelContract, ThreadsContract, SharingContract):
    """`await get_session(request)`."""

    locks = "task"

    def drive(self, call: Call) -> Answer:
        return run(lambda: self.exchange(call))

    async def exchange(self, call: Call) -> Answer:
        runner = web.AppRunner(self.application(call), access_log=None)
        await runner.setup()
        try:
            assert runner.server is not None
            protocol, wire = runner.server(), Wire(call)
            protocol.connection_made(wire)
            protocol.data_received(raw_request(call).replace(b"Host: shop", b"Host: shop\r\nConnection: close"))
            await attend(call.node, wire.closed, lambda: not wire.written)
            protocol.connection_lost(None)
        finally:
            await runner.cleanup()
        return parse(wire.written, wire.seen)

    def application(self, call: Call) -> web.Application:
        async def handler(request: web.Request) -> web.StreamResponse:
            page = call.handler(await get_session(request))
            if isawaitable(page):
                page = await page
            if isinstance(page.body, bytes):
                return web.Response(body=page.body, status=page.status, headers=[*page.headers])
            first = next(page.body)  # aiohttp's headers leave when the handler says so
            response = web.StreamResponse(status=page.status, headers=[*page.headers])
            await response.prepare(request)
            await response.write(first)
            for chunk in page.body:
                await response.write(chunk)
            return response

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        setup(app, call.node, call.settings, no_touch=call.no_touch)
        return app

    @pytest.mark.parametrize("value", ["", "short", "A" * 42, "A" * 44, "A" * 43 + ".", "A" * 43 + "." + "x" * 17, "Ä" * 43, '"' + "A" * 43 + '"'])
    def test_a_malformed_cookie_is_treated_as_absent(self, world: Any, value: str) -> None:  # noqa: F811
        super().test_a_malformed_cookie_is_treated_as_absent(world, value)

    def test_a_cookie_that_is_no_http_is_refused_by_aiohttp(self, world: Any) -> None:  # noqa: F811
        assert self.get(world.node(), count, "A" * 43 + "\x01").status == 400

    def test_raising_a_redirect_commits_as_returning_it_does(self, world: Any) -> None:  # noqa: F811
        def login(session: Any) -> Any:
            session["user"] = "ann"
            raise web.HTTPSeeOther("/home")

        answer = self.get(world.node("node1"), login)
        assert (answer.status, answer.all("Location"), answer.commits_at_head) == (303, ["/home"], 1)
        assert self.get(world.node("node2"), count, answer.cookie).cookie is not None
        assert world.contents(answer.cookie.partition(".")[0]) == {"user": "ann", "n": 1}
