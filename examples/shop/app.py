"""The shop itself: a plain Flask application whose cart is in the session. It knows nothing of hosts, workers or balancers; `gunicorn_conf.py` starts its node."""

from __future__ import annotations

import os
import signal
from functools import cache
from typing import Any

from flask import Flask, abort, redirect, render_template, request, session

from caterwaul import ClusterManager, CookieSettings
from caterwaul.managers.web.flask import CaterwaulSession

GOODS = {
    "yarn": ("Ball of yarn", 4),
    "mouse": ("Felt mouse", 6),
    "bell": ("Small bell", 3),
    "catnip": ("Catnip", 5),
    "cushion": ("Window cushion", 24),
    "box": ("Empty box", 0),
}

app = Flask(__name__)


@cache
def cluster() -> ClusterManager:
    """The node of this process, which the worker's hook starts after the fork."""
    return ClusterManager(os.environ["SHOP_CONFIG"])


CaterwaulSession(app, lambda: cluster().manager(), cookie=CookieSettings(name="sid", secure=False))  # plain HTTP, on this machine only


@app.get("/")
def show() -> str:
    cart: dict[str, int] = session.get("cart", {})
    lines = [(name, *GOODS[name], number) for name, number in cart.items()]
    return render_template(
        "shop.html", goods=GOODS, lines=lines, total=sum(price * number for _, _, price, number in lines), host=cluster().name.partition("+")[0], pid=os.getpid(),
        members=[(member.name, member.route, member.weight, member.payload.get("pid")) for member in cluster().members],
    )  # fmt: skip


@app.post("/cart/<name>")
def put(name: str) -> Any:
    """One more of it, or with `less` one less."""
    if name not in GOODS:
        abort(404)
    cart = session.setdefault("cart", {})
    cart[name] = cart.get(name, 0) + (-1 if "less" in request.form else 1)  # a change inside a value, which is found
    if cart[name] < 1:
        del cart[name]
    return redirect("/", 303)


@app.post("/kill")
def kill() -> Any:
    """End the worker that answers, as a crash would, when its answer is out."""
    answer = redirect("/", 303)
    answer.call_on_close(lambda: os.kill(os.getpid(), signal.SIGKILL))
    return answer


@app.get("/health/ready")
def ready() -> Any:
    """What the balancer asks for."""
    return ("ready\n", 200) if cluster().is_ready else ("not ready\n", 503)
