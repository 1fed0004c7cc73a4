"""A chat over WebSockets, on any number of nodes, with nothing but ASGI.

    python examples/chat.py a 8001 &
    python examples/chat.py b 8002 &

Open http://127.0.0.1:8001/ and http://127.0.0.1:8002/ in two browsers. Who somebody is lies in the session; what was said lies in a map that all nodes
share. Kill a node, and its people go on with the other (the page tries 8001, then 8002). Log out, and every open page of that session is told.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any
from urllib.parse import parse_qs

import uvicorn

from caterwaul import ClusterManager, CookieSettings
from caterwaul.cluster.lifespan import NodeLifespan
from caterwaul.managers.web.asgi import SessionMiddleware

name = sys.argv[1] if __name__ == "__main__" else f"w{os.getpid()}"
cluster = ClusterManager(os.environ.get("CATERWAUL_CONFIG"), **{"node.name": name, "maps": {"chat": {}}})
KEPT = 50  # lines

PAGE = """<!doctype html><meta charset="utf-8"><title>Chat</title>
<form id="in"><input name="name" placeholder="your name" required><button>come in</button></form>
<form id="say" hidden><input name="text" autocomplete="off"><button>say</button> <button type="button" id="out">log out</button></form>
<pre id="lines"></pre>
<script>
const ports = [location.port, ...["8001", "8002"].filter(port => port != location.port)];
let socket, at = 0;
const show = text => lines.textContent += text + "\\n";
function connect() {
    socket = new WebSocket(`ws://${location.hostname}:${ports[at % ports.length]}/ws`);
    socket.onopen = () => { window.in.hidden = true; say.hidden = false; lines.textContent = ""; };
    socket.onmessage = event => show(event.data);
    socket.onclose = event => {
        if (event.code == 4001) { show(event.reason); window.in.hidden = false; say.hidden = true; }
        else if (!say.hidden) { at += 1; setTimeout(connect, 300); }
    };
}
window.in.onsubmit = async event => { event.preventDefault(); await fetch("/login", {method: "POST", body: new URLSearchParams(new FormData(window.in))}); connect(); };
say.onsubmit = event => { event.preventDefault(); socket.send(say.text.value); say.text.value = ""; };
out.onclick = () => fetch("/logout", {method: "POST"});
connect();
</script>
"""


class Room:
    """The sockets of this node, and the lines of all."""

    def __init__(self) -> None:
        self.listeners: set[asyncio.Queue[str]] = set()
        self.listening = False

    def enter(self) -> asyncio.Queue[str]:
        """What is said from now on, after what was said before."""
        if not self.listening:
            self.listening, loop = True, asyncio.get_running_loop()
            cluster.map("chat").listen(lambda event: None if event.removed else loop.call_soon_threadsafe(self.heard, event.key))
        queue: asyncio.Queue[str] = asyncio.Queue()
        for _, line in sorted(cluster.map("chat").items()):
            queue.put_nowait(line)
        self.listeners.add(queue)
        return queue

    def heard(self, key: str) -> None:
        line = cluster.map("chat").get(key)
        for queue in self.listeners if line else ():
            queue.put_nowait(line)

    def say(self, line: str) -> None:
        lines = cluster.map("chat")
        lines[f"{time.time_ns():020}-{name}"] = line
        for old in sorted(lines)[:-KEPT]:
            lines.pop(old, None)


room = Room()


async def talk(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    user = scope["caterwaul.session"].principal
    if user is None:
        await send({"type": "websocket.close"})
        return
    await send({"type": "websocket.accept"})
    queue = room.enter()

    async def forward() -> None:
        while True:
            await send({"type": "websocket.send", "text": await queue.get()})

    forwarding = asyncio.create_task(forward())
    try:
        while (message := await receive())["type"] == "websocket.receive":
            room.say(f"{user} ({name}): {message['text']}")
    finally:
        room.listeners.discard(queue)
        forwarding.cancel()


async def page(scope: Any, receive: Any, send: Any) -> None:
    session, body = scope["caterwaul.session"], (await receive()).get("body", b"")
    if (scope["method"], scope["path"]) == ("POST", "/login"):
        session.login(parse_qs(body.decode())["name"][0])
    elif (scope["method"], scope["path"]) == ("POST", "/logout"):
        session.invalidate()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
    await send({"type": "http.response.body", "body": PAGE.encode()})


async def chat(scope: Any, receive: Any, send: Any) -> None:
    await (talk if scope["type"] == "websocket" else page)(scope, receive, send)


app = NodeLifespan(SessionMiddleware(chat, cluster.manager, CookieSettings(name="sid", secure=False)), cluster)  # plain HTTP, for this example only

if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
