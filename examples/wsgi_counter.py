"""A counter in a session, on any WSGI server; here the one of the standard library.

    python examples/wsgi_counter.py a 8001 &
    python examples/wsgi_counter.py b 8002 &
    curl -c jar -b jar http://127.0.0.1:8001/
    curl -c jar -b jar http://127.0.0.1:8002/        # goes on counting; kill a, and it still does

With gunicorn: `gunicorn --workers 1 --threads 8 'examples.wsgi_counter:build("a")'`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import make_server

from caterwaul import ClusterManager, CookieSettings
from caterwaul.managers.web.wsgi import SessionMiddleware


def counter(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    session = environ["caterwaul.session"]
    session["count"] = session.get("count", 0) + 1
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{session['count']}\n".encode()]


def build(name: str) -> SessionMiddleware:
    """The application with its sessions. Call it in the process that serves (after a fork, if the server forks)."""
    cluster = ClusterManager(node={"name": name})
    cluster.start()
    cookie = CookieSettings(name="sid", secure=False)  # plain HTTP, for this example only
    return SessionMiddleware(counter, cluster.manager(), cookie)


if __name__ == "__main__":
    name, port = sys.argv[1], int(sys.argv[2])
    with make_server("127.0.0.1", port, build(name)) as server:
        server.serve_forever()
