"""The shop itself: a plain Flask application whose cart is in the session. It knows nothing of balancers and replication; `gunicorn_conf.py` starts its node. What is
below the shop on its page, and the two buttons that kill, are for whoever wants to see a cart outlive its server."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import Any

from flask import Flask, abort, g, redirect, render_template, request, session, url_for
from jinja2 import ChoiceLoader, FileSystemLoader

from caterwaul import ClusterManager, CookieSettings
from caterwaul.cluster.demo.page import LOOK, colour, of_another_site  # the look of the demo's page
from caterwaul.managers.web.cookies import read_cookie
from caterwaul.managers.web.flask import CaterwaulSession
from examples.shop.hosts import WORKERS, Host, hosts

GOODS = {
    "yarn": ("Ball of yarn", 4),
    "mouse": ("Felt mouse", 6),
    "bell": ("Small bell", 3),
    "catnip": ("Catnip", 5),
    "cushion": ("Window cushion", 24),
    "box": ("Empty box", 0),
}
COOKIE = CookieSettings(name="sid", secure=False)  # plain HTTP, on this machine only

app = Flask(__name__)
app.jinja_loader = ChoiceLoader([app.jinja_loader, FileSystemLoader(LOOK)])  # type: ignore[list-item, assignment]
app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
app.jinja_env.globals.update(colour=colour, WORKERS=WORKERS)


@cache
def cluster() -> ClusterManager:
    """The node of this process, which the worker's hook starts after the fork."""
    return ClusterManager(os.environ["SHOP_CONFIG"])


CaterwaulSession(app, lambda: cluster().manager(), cookie=COOKIE, no_touch=["/cluster"])


# -- the shop


@app.get("/")
def show() -> str:
    cart: dict[str, int] = session.get("cart", {})
    lines = [(name, *GOODS[name], number) for name, number in cart.items()]
    return render_template(
        "shop.html", goods=GOODS, lines=lines, total=sum(price * number for _, _, price, number in lines), put=request.args.get("put"), nonce=g.nonce,
        moved_from=_moved_from(), killed=request.args.get("killed", type=int), **_seen(),
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
    return _home(put=name)


# -- what runs it


@app.get("/cluster")
def seen() -> str:
    """The lower part of the page, which asks for it once a second."""
    return render_template("cluster.html", **_seen())


@app.post("/kill")
def kill() -> Any:
    """End a worker of this host (`pid`), or all of the host with its node (`host`), as a crash would; this process when its answer is out."""
    host = _here()
    if request.form.get("host") == host.name:
        pids, answer = [os.getppid(), *host.pids], _home()  # gunicorn first: it would start other workers
    else:
        pid = request.form.get("pid", type=int)
        pids = [pid] if pid in host.workers else []  # it is dead already
        answer = _home(killed=pid)
    _end(pid for pid in pids if pid != os.getpid())
    if os.getpid() in pids:
        answer.call_on_close(lambda: _end([os.getpid()]))
    return answer


@app.get("/health/ready")
def ready() -> Any:
    """What the balancer asks for."""
    return ("ready\n", 200) if cluster().is_ready else ("not ready\n", 503)


def _here() -> Host:
    name = cluster().name.partition("+")[0]
    return next(host for host in hosts(cluster()) if host.name == name)


def _seen() -> dict[str, Any]:
    return {"hosts": hosts(cluster()), "here": _here().name, "pid": os.getpid()}


def _moved_from() -> str:
    """The host that served this session until now, if it was another; a form's answer passes it on to the page."""
    route = read_cookie(COOKIE, (request.headers.get("Cookie", ""),)).route
    names = [host.name for host in hosts(cluster()) if host.name != _here().name]
    return next((name for name in (route, request.args.get("from", "")) if name in names), "")


def _home(**query: Any) -> Any:
    return redirect(url_for("show", **{"from": _moved_from() or None}, **query), 303)


def _end(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@app.before_request
def before() -> None:
    g.nonce = secrets.token_urlsafe(12)
    if request.method == "POST" and of_another_site(request.environ):
        abort(403)


@app.after_request
def after(answer: Any) -> Any:
    answer.headers["Content-Security-Policy"] = (
        f"default-src 'none'; img-src data:; style-src 'nonce-{g.nonce}'; script-src 'nonce-{g.nonce}'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    return answer
