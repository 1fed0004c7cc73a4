"""A shopping cart in a session, under FastAPI. The node lives as long as the worker: each has its own.

    python examples/fastapi_app.py a 8001 &
    python examples/fastapi_app.py b 8002 &
    curl -c jar -b jar -X POST http://127.0.0.1:8001/cart/apple
    curl -c jar -b jar http://127.0.0.1:8002/cart                  # the same cart; kill a, and it still is

With several workers: `uvicorn --workers 4 examples.fastapi_app:app`, or `hypercorn --workers 4 examples.fastapi_app:app`.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI

from caterwaul import ClusterManager, CookieSettings
from caterwaul.managers.web.starlette import Session, SessionMiddleware, get_session

name = sys.argv[1] if __name__ == "__main__" else f"w{os.getpid()}"
cluster = ClusterManager(os.environ.get("CATERWAUL_CONFIG"), **{"node.name": name})
app = FastAPI(lifespan=cluster.lifespan)
app.add_middleware(SessionMiddleware, manager=cluster.manager, cookie=CookieSettings(name="sid", secure=False))  # plain HTTP, for this example only

CurrentSession = Annotated[Session, Depends(get_session)]


@app.get("/cart")
async def cart(session: CurrentSession) -> dict[str, Any]:
    return {"cart": session.get("cart", []), "user": session.principal, "node": name}


@app.post("/cart/{item}")
def add(item: str, session: CurrentSession) -> dict[str, Any]:
    session.setdefault("cart", []).append(item)  # nested changes are found
    return {"cart": session["cart"], "user": session.principal, "node": name}


@app.post("/login/{user}")
async def login(user: str, session: CurrentSession) -> None:
    session.login(user)  # with a new id, against fixation: the old one is dead on every node


@app.post("/logout")
async def logout(session: CurrentSession) -> None:
    session.invalidate()


@app.get("/health")
async def health() -> dict[str, Any]:
    return {"ready": cluster.is_ready, "members": [member.name for member in cluster.members]}


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
