"""A cart in a Flask session. Two nodes:

    python examples/flask_app.py a 8001 &
    python examples/flask_app.py b 8002 &
    curl -L -c jar -b jar http://127.0.0.1:8001/add/apple
    curl -L -c jar -b jar http://127.0.0.1:8002/add/pear        # has the apple; kill a, and it still does

Under gunicorn, each worker a node: `gunicorn -c examples/gunicorn_conf.py 'examples.flask_app:app'`.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import Any

from flask import Flask, flash, get_flashed_messages, redirect, session

from caterwaul import ClusterManager
from caterwaul.managers.web.flask import CaterwaulSession

app = Flask(__name__)


@cache
def manager() -> Any:
    """This process's node. Called at the first request, or by the server's hook: after the fork, if it forks."""
    cluster = ClusterManager(os.environ.get("NODE_TOML"), **{"node.name": os.environ.get("NODE") or f"shop-{os.getpid()}"})
    cluster.start()
    cluster.wait_ready()
    return cluster.manager()


CaterwaulSession(app, manager)


@app.route("/")
def show() -> str:
    said = "".join(f"{message}\n" for message in get_flashed_messages())
    return f"{said}cart: {' '.join(session.get('cart', []))} (process {os.getpid()})\n"


@app.route("/add/<thing>")
def add(thing: str) -> Any:
    session.setdefault("cart", []).append(thing)  # a change inside a value, which Flask's own sessions miss
    flash(f"added {thing}")
    return redirect("/")


@app.route("/logout")
def logout() -> Any:
    session.clear()
    return redirect("/")


if __name__ == "__main__":
    os.environ["NODE"] = sys.argv[1]
    app.run(port=int(sys.argv[2]))
