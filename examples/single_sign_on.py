"""Two Flask applications that share their logins: one login, one logout. Two nodes:

    python examples/single_sign_on.py a 8001 &
    python examples/single_sign_on.py b 8002 &
    curl -c jar -b jar http://127.0.0.1:8001/shop/login/ann
    curl -c jar -b jar http://127.0.0.1:8002/blog/            # ann, without a login
    curl -c jar -b jar http://127.0.0.1:8002/blog/logout
    curl -c jar -b jar http://127.0.0.1:8001/shop/            # nobody

What makes it so is in SETTINGS. Over plain HTTP cookies cannot have `__Host-` names; in production say nothing of them.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from flask import Flask, request, session
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.serving import run_simple

from caterwaul import ClusterManager
from caterwaul.managers.web.flask import CaterwaulSession

SETTINGS = {
    "managers": {"shop": {"sso": "main"}, "blog": {"sso": "main"}},
    "sso": {"main": {"cookie": {"name": "sso", "secure": False}}},
}


def application(name: str, cluster: ClusterManager) -> Flask:
    app = Flask(name)
    app.config["SESSION_COOKIE_NAME"] = name
    CaterwaulSession(app, cluster.manager(name))

    @app.route("/")
    def show() -> str:
        return f"{name}: {session.principal or 'nobody'}\n"  # type: ignore[attr-defined]

    @app.route("/login/<who>")
    def login(who: str) -> str:
        """Where a real application looks at a password."""
        session.login(who, address=request.remote_addr or "")  # type: ignore[attr-defined]
        return show()

    @app.route("/logout")
    def logout() -> str:
        session.clear()
        return f"{name}: goodbye\n"

    return app


def run(node: str, port: int) -> None:
    cluster = ClusterManager(os.environ.get("CATERWAUL_CONFIG"), **{"node.name": node}, **SETTINGS)
    cluster.start()
    cluster.wait_ready()
    applications: Any = {f"/{name}": application(name, cluster) for name in ("shop", "blog")}
    run_simple("127.0.0.1", port, DispatcherMiddleware(Flask("nothing"), applications), threaded=True)


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]))
