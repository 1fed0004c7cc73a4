"""The lines with which the pages of the asyncio fronts begin work as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from .processes import free_port

DOCS = Path(__file__).parents[2] / "docs"

#: What the lines take for granted.
BEFORE = {
    "asgi": """
        async def app(scope, receive, send):
            session = scope["caterwaul.session"]
            session["count"] = session.get("count", 0) + 1
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": str(session["count"]).encode()})
        """,
    "fastapi": "from typing import Annotated; from fastapi import Depends, FastAPI",
    "litestar": "from litestar import Litestar, Request, get",
    "aiohttp": "from aiohttp import web",
}
#: Serves `app` and asks twice.
ASGI = """
    import asyncio
    async def main():
        events, said = asyncio.Queue(), asyncio.Queue()
        running = asyncio.ensure_future(app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, events.get, said.put))
        events.put_nowait({"type": "lifespan.startup"})
        assert (await said.get())["type"] == "lifespan.startup.complete"
        headers = [(b"host", b"shop")]
        for _ in range(2):
            sent = []
            async def receive():
                return {"type": "http.request", "body": b""}
            async def send(message):
                sent.append(message)
            scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "https", "path": "/", "raw_path": b"/",
                     "root_path": "", "query_string": b"", "headers": headers, "client": ("192.0.2.1", 1), "server": ("shop", 443), "state": {}}
            await app(scope, receive, send)
            print(sent[1]["body"].decode())
            headers += [(b"cookie", value.split(b";")[0]) for name, value in sent[0]["headers"] if name == b"set-cookie"]
        events.put_nowait({"type": "lifespan.shutdown"})
        await running
    asyncio.run(main())
    """
AIOHTTP = """
    import asyncio
    from aiohttp.test_utils import TestClient, TestServer
    async def main():
        app.router.add_get("/", page)
        async with TestClient(TestServer(app)) as browser:
            first = await browser.get("/")
            cookie = first.headers["Set-Cookie"].split(";")[0]
            for answer in (first, await browser.get("/", headers={"Cookie": cookie})):
                print(await answer.text())
    asyncio.run(main())
    """


@pytest.mark.parametrize("page", sorted(BEFORE))
def test_the_first_lines_of_a_page_work(page: str, tmp_path: Path) -> None:
    lines, imports = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)[:2]
    membership = f'[membership]\nmulticast_port = {free_port()}\n[admin]\nsocket = ""\n[cluster]\nname = "docs-{free_port()}"\n'
    (tmp_path / "node.toml").write_text(membership)
    program = "\n".join([imports, textwrap.dedent(BEFORE[page]), lines, textwrap.dedent(AIOHTTP if page == "aiohttp" else ASGI)])
    command = [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr, done.stdout.split()) == (0, "", ["1", "2"])
