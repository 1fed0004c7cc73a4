"""A cart in a Pyramid session, served by waitress. Two nodes:

python examples/pyramid_app.py a 8001 &
python examples/pyramid_app.py b 8002 &
curl -L -c jar -b jar http://127.0.0.1:8001/add/apple
curl -L -c jar -b jar http://127.0.0.1:8002/add/pear        # has the apple; kill a, and it still does
"""

from __future__ import annotations

import os
import sys
from typing import Any

import waitress
from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPFound
from pyramid.response import Response

from caterwaul import ClusterManager, CookieSettings
from caterwaul.managers.web.pyramid import SessionFactory


def show(request: Any) -> Response:
    said = "".join(f"{message}\n" for message in request.session.pop_flash())
    return Response(f"{said}cart: {' '.join(request.session.get('cart', []))} (process {os.getpid()})\n", content_type="text/plain")


def add(request: Any) -> Response:
    request.session.setdefault("cart", []).append(request.matchdict["thing"])
    request.session.flash(f"added {request.matchdict['thing']}")
    raise HTTPFound("/")


def logout(request: Any) -> Response:
    request.session.invalidate()
    raise HTTPFound("/")


def build(name: str) -> Any:
    """The application with its sessions. Call it in the process that serves."""
    cluster = ClusterManager(os.environ.get("NODE_TOML"), **{"node.name": name})
    cluster.start()
    cluster.wait_ready()
    with Configurator() as config:
        config.include("caterwaul.managers.web.pyramid")
        config.set_session_factory(SessionFactory(cluster.manager(), CookieSettings(name="sid", secure=False)))
        for view, pattern in ((show, "/"), (add, "/add/{thing}"), (logout, "/logout")):
            config.add_route(view.__name__, pattern)
            config.add_view(view, route_name=view.__name__)
        return config.make_wsgi_app()


if __name__ == "__main__":
    waitress.serve(build(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
