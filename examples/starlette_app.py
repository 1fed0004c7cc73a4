"""A guest book with flash messages, under Starlette: `request.session` as with Starlette's own middleware, but on every node.

python examples/starlette_app.py a 8001 &
python examples/starlette_app.py b 8002 &
curl -c jar -b jar -L -d "hello" http://127.0.0.1:8001/
curl -c jar -b jar http://127.0.0.1:8002/
"""

from __future__ import annotations

import os
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from caterwaul import ClusterManager, CookieSettings
from caterwaul.managers.web.starlette import SessionMiddleware

name = sys.argv[1] if __name__ == "__main__" else f"w{os.getpid()}"
cluster = ClusterManager(os.environ.get("CATERWAUL_CONFIG"), **{"node.name": name})


async def write(request: Request) -> Response:
    request.session.setdefault("said", []).append((await request.body()).decode())
    request.session["flash"] = "Thank you."
    return RedirectResponse("/", 303)  # wherever that goes: the session is there


async def read(request: Request) -> Response:
    return JSONResponse({"said": request.session.get("said", []), "flash": request.session.pop("flash", None), "node": name})


app = Starlette(
    routes=[Route("/", read), Route("/", write, methods=["POST"])],
    middleware=[Middleware(SessionMiddleware, cluster.manager, CookieSettings(name="sid", secure=False))],  # plain HTTP, for this example only
    lifespan=cluster.lifespan,
)

if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
