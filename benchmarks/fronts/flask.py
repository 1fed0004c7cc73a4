"""Flask; beside it Flask-Session with Redis, as it comes: a session's time to live in Redis is renewed by each request."""

from __future__ import annotations

from flask import Flask, Response, session

from caterwaul.managers.web.flask import CaterwaulSession

from .driving import Driver, Wsgi
from .work import COOKIE, Sessions, handle

__all__ = ["drive"]


def drive(sessions: Sessions) -> Driver:
    app = Flask(__name__)
    app.config["SESSION_COOKIE_NAME"] = COOKIE.name
    has_session = sessions != Sessions()
    if sessions.manager is not None:
        CaterwaulSession(app, sessions.manager)
    elif sessions.redis_port:
        _over_redis(app, sessions.redis_port)

    @app.get("/<what>")
    def page(what: str) -> Response:
        return Response(handle(what, session if has_session else None), mimetype="text/plain")

    return Wsgi(app)


def _over_redis(app: Flask, port: int) -> None:
    from flask_session import Session  # of the extra `bench`
    from redis import Redis

    app.config |= {"SESSION_TYPE": "redis", "SESSION_REDIS": Redis(host="127.0.0.1", port=port)}
    Session(app)
