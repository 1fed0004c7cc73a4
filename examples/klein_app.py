"""A cart in a Klein session. Two nodes:

    python examples/klein_app.py a 8001 &
    python examples/klein_app.py b 8002 &
    curl -L -c jar -b jar http://127.0.0.1:8001/add/apple
    curl -L -c jar -b jar http://127.0.0.1:8002/add/pear        # has the apple; kill a, and it still does

Handlers ask for a capability, `ICart`; an authorizer makes it out of the session's data.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from typing import Any

from klein import Authorization, Klein, Requirer
from klein.interfaces import ISession
from klein.storage.memory import declareMemoryAuthorizer
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react
from twisted.web.util import Redirect
from zope.interface import Interface, implementer

from caterwaul import ClusterManager, CookieSettings
from caterwaul.managers.web.klein import SessionProcurer
from caterwaul.managers.web.twisted_web import SessionSite


class ICart(Interface):
    """What somebody will buy."""


@implementer(ICart)
class Cart:
    def __init__(self, data: MutableMapping[str, Any]) -> None:
        self.things = data.setdefault("cart", [])


@declareMemoryAuthorizer(ICart)
def cart_of(interface: Any, session: Any, data: MutableMapping[str, Any]) -> Cart:
    return Cart(data)


app, requirer, procurer = Klein(), Requirer(), SessionProcurer.fromAuthorizers([cart_of])


@requirer.prerequisite([ISession])
def procure(request: Any) -> Deferred[Any]:
    return procurer.procureSession(request)


@requirer.require(app.route("/"), cart=Authorization(ICart))
def show(cart: Cart) -> str:
    return f"cart: {' '.join(cart.things)} (process {os.getpid()})\n"


@requirer.require(app.route("/add/<thing>"), cart=Authorization(ICart))
def add(cart: Cart, thing: str) -> Redirect:
    cart.things.append(thing)
    return Redirect(b"/")


async def serve(reactor: Any, name: str, port: str) -> None:
    await deferLater(reactor, 0)  # until it runs; a cluster that is started before would run it in a thread
    cluster = ClusterManager(os.environ.get("NODE_TOML"), **{"node.name": name})
    await cluster.start()
    while not cluster.is_ready:  # it does not know yet what others hold
        await deferLater(reactor, 0.05)
    site = SessionSite(app.resource(), cluster.manager(), CookieSettings(name="sid", secure=False))
    reactor.listenTCP(int(port), site, interface="127.0.0.1")
    await Deferred()


if __name__ == "__main__":
    react(lambda reactor, *arguments: Deferred.fromCoroutine(serve(reactor, *arguments)), sys.argv[1:])
