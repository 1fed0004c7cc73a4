"""A node for as long as an asyncio server serves: started in the worker before its first request, left with a farewell after its last.

Starlette, FastAPI and Litestar take `cluster.lifespan` as it is, aiohttp in its `cleanup_ctx`. An ASGI application without a
lifespan (Django's, a bare function) is wrapped in `NodeLifespan`. Each worker process of a server runs its own, so each has its own node.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from .embedding import inside_reactor

__all__ = ["NodeLifespan", "Startable", "node_lifespan"]

_READY_S = 10.0  # then it serves all the same: who is asked for a session that is not here asks the others
_LOOK_S = 0.02

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Startable(Protocol):
    """A `ClusterManager`."""

    def start(self) -> Deferred[None]: ...
    def stop(self) -> Deferred[None]: ...
    @property
    def is_ready(self) -> bool: ...


@asynccontextmanager
async def node_lifespan(cluster: Startable) -> AsyncIterator[None]:
    """Start the node, and stop it afterwards; asyncio's loop turns meanwhile. Raises what `start` raises.

    Goes on when the node holds what the others do, at most 10 s later: a server takes requests after this, and not before their sessions are here.
    """
    await _done(cluster.start)
    try:
        loop = asyncio.get_running_loop()
        until = loop.time() + _READY_S
        while not cluster.is_ready and loop.time() < until:
            await asyncio.sleep(_LOOK_S)
        yield
    finally:
        await _done(cluster.stop)


class NodeLifespan:
    """An ASGI application that runs the node beside `app`, which sees nothing of the lifespan."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], cluster: Startable) -> None:
        self.app = app
        self.cluster = cluster

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        ends = "startup"
        try:
            await receive()
            async with node_lifespan(self.cluster):
                await send({"type": "lifespan.startup.complete"})
                await receive()
                ends = "shutdown"
        except Exception as error:
            await send({"type": f"lifespan.{ends}.failed", "message": str(error)})
            raise
        await send({"type": "lifespan.shutdown.complete"})


async def _done(act: Callable[[], Deferred[None]]) -> None:
    """Where the loop is the reactor's own, what comes back tells when; anywhere else the call blocks, so a thread makes it."""
    if inside_reactor():
        await act().asFuture(asyncio.get_running_loop())
    else:
        await asyncio.to_thread(act)
