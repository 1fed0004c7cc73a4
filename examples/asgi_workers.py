"""A cart in a session, under several ASGI workers that are lite members beside their host's node:

    caterwaul node --config node.toml &                                           # with `workers = "lite"` in its table [node]
    NODE_TOML=node.toml uvicorn --workers 4 examples.asgi_workers:app             # or hypercorn --workers 4
    curl -L -c jar -b jar http://127.0.0.1:8000/add/apple

Each worker imports this module after it was started, and its lifespan starts a node of its own.
"""

from __future__ import annotations

import os

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from caterwaul import ClusterManager, CookieSettings
from caterwaul.managers.web.starlette import SessionMiddleware

cluster = ClusterManager(os.environ.get("NODE_TOML"))


async def add(request: Request) -> Response:
    request.session.setdefault("cart", []).append(request.path_params["thing"])
    return RedirectResponse("/", 303)


async def show(request: Request) -> Response:
    return PlainTextResponse(f"cart: {' '.join(request.session.get('cart', []))} (process {os.getpid()})\n")


app = Starlette(
    routes=[Route("/", show), Route("/add/{thing}", add)],
    middleware=[Middleware(SessionMiddleware, cluster.manager, CookieSettings(name="session", secure=False))],  # plain HTTP, for this example only
    lifespan=cluster.lifespan,
)
