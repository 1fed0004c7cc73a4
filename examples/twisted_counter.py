"""A counter in a session, in a Twisted program that runs its own reactor.

python examples/twisted_counter.py a 8001 &
python examples/twisted_counter.py b 8002 &
curl -c jar -b jar http://127.0.0.1:8001/
curl -c jar -b jar http://127.0.0.1:8002/
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react
from twisted.web.resource import Resource

from caterwaul import ClusterManager, CookieSettings
from caterwaul.managers.web.twisted_web import SessionRequest, SessionSite


class Counter(Resource):
    isLeaf = True

    def render_GET(self, request: SessionRequest) -> bytes:
        session = request.caterwaul_session
        session["count"] = session.get("count", 0) + 1
        return f"{session['count']}\n".encode()


async def serve(reactor: Any, name: str, port: str) -> None:
    await deferLater(reactor, 0)  # until it runs; a cluster that is started before would run it in a thread
    cluster = ClusterManager(node={"name": name})
    await cluster.start()  # inside the reactor nothing blocks
    site = SessionSite(Counter(), cluster.manager(), CookieSettings(name="sid", secure=False))
    reactor.listenTCP(int(port), site, interface="127.0.0.1")
    await Deferred()  # until Ctrl-C; the cluster is left when the reactor stops


if __name__ == "__main__":
    react(lambda reactor, *arguments: Deferred.fromCoroutine(serve(reactor, *arguments)), sys.argv[1:])
