"""A counter in a session, under aiohttp's own server.

python examples/aiohttp_app.py a 8001 &
python examples/aiohttp_app.py b 8002 &
curl -c jar -b jar http://127.0.0.1:8001/
curl -c jar -b jar http://127.0.0.1:8002/
"""

from __future__ import annotations

import os
import sys

from aiohttp import web

from caterwaul import ClusterManager, CookieSettings
from caterwaul.managers.web.aiohttp import get_session, setup

name = sys.argv[1] if __name__ == "__main__" else f"w{os.getpid()}"
cluster = ClusterManager(os.environ.get("CATERWAUL_CONFIG"), **{"node.name": name})


async def count(request: web.Request) -> web.Response:
    session = await get_session(request)
    session["count"] = session.get("count", 0) + 1
    return web.json_response({"count": session["count"], "node": name})


app = web.Application()
app.router.add_get("/", count)
app.cleanup_ctx.append(cluster.lifespan)
setup(app, cluster.manager, CookieSettings(name="sid", secure=False))  # plain HTTP, for this example only

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[2]), print=None)
