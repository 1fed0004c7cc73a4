"""A to-do list in a session, under Litestar.

python examples/litestar_app.py a 8001 &
python examples/litestar_app.py b 8002 &
curl -c jar -b jar -X POST http://127.0.0.1:8001/todo/sleep
curl -c jar -b jar http://127.0.0.1:8002/todo
"""

from __future__ import annotations

import os
import sys
from typing import Any

import uvicorn
from litestar import Litestar, Request, delete, get, post
from litestar.params import FromPath

from caterwaul import ClusterManager, CookieSettings
from caterwaul.managers.web.litestar import SessionPlugin

name = sys.argv[1] if __name__ == "__main__" else f"w{os.getpid()}"
cluster = ClusterManager(os.environ.get("CATERWAUL_CONFIG"), **{"node.name": name})


@get("/todo")
async def todo(request: Request[Any, Any, Any]) -> dict[str, Any]:
    return {"todo": request.session.get("todo", []), "node": name}


@post("/todo/{what:str}")
async def add(request: Request[Any, Any, Any], what: FromPath[str]) -> None:
    request.session.setdefault("todo", []).append(what)


@delete("/todo")
async def forget(request: Request[Any, Any, Any]) -> None:
    request.clear_session()


app = Litestar(
    [todo, add, forget],
    plugins=[SessionPlugin(cluster.manager, CookieSettings(name="sid", secure=False))],  # plain HTTP, for this example only
    lifespan=[cluster.lifespan],
)

if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
