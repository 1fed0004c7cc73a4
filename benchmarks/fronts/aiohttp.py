"""aiohttp, by the bytes of its own server's protocol."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from caterwaul.managers.web.aiohttp import get_session, setup

from .driving import Driver, Raw
from .work import COOKIE, Sessions, handle

__all__ = ["drive"]


def drive(sessions: Sessions) -> Driver:
    async def page(request: web.Request) -> web.Response:
        session = None if sessions.manager is None else await get_session(request)
        return web.Response(body=handle(request.match_info["what"], session), content_type="text/plain")

    async def make() -> Any:
        app = web.Application()
        app.router.add_get("/{what}", page)
        if sessions.manager is not None:
            setup(app, sessions.manager, COOKIE)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        assert runner.server is not None, "set up"
        return runner.server()

    return Raw(make)
