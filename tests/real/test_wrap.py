"""`caterwaul wrap`: applications that know nothing of Caterwaul, two processes each, one of which is killed."""

from __future__ import annotations

import signal
from pathlib import Path
from textwrap import dedent

import pytest

from .processes import Cluster, Command, until
from .servers import Browser, Server, configuration

#: Each counts the visits of a session, as its framework's users write it.
APPLICATIONS = {
    "flask": """
        from flask import Flask, session
        from werkzeug.middleware.proxy_fix import ProxyFix
        flask = Flask("shop")
        flask.config.update(SECRET_KEY="s", SESSION_COOKIE_NAME="sid")
        @flask.get("/")
        def count():
            session["count"] = session.get("count", 0) + 1
            return {"count": session["count"]}
        app = ProxyFix(flask)
    """,
    "django": """
        import django
        from django.conf import settings
        settings.configure(
            SECRET_KEY="s", ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SESSION_COOKIE_NAME="sid",
            MIDDLEWARE=["django.middleware.common.CommonMiddleware", "django.contrib.sessions.middleware.SessionMiddleware"],
            SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
        )
        django.setup()
        from django.core.wsgi import get_wsgi_application
        from django.http import JsonResponse
        from django.urls import path
        def count(request):
            request.session["count"] = request.session.get("count", 0) + 1
            return JsonResponse({"count": request.session["count"]})
        urlpatterns = [path("", count)]
        app = get_wsgi_application()
    """,
    "pyramid": """
        from pyramid.config import Configurator
        from pyramid.session import SignedCookieSessionFactory
        def count(request):
            request.session["count"] = request.session.get("count", 0) + 1
            return {"count": request.session["count"]}
        config = Configurator(session_factory=SignedCookieSessionFactory("s"))
        config.add_route("all", "/")
        config.add_view(count, route_name="all", renderer="json")
        app = config.make_wsgi_app()
    """,
    "fastapi": """
        from fastapi import FastAPI, Request
        from starlette.middleware.sessions import SessionMiddleware
        app = FastAPI()
        app.add_middleware(SessionMiddleware, secret_key="s", session_cookie="sid")
        @app.get("/")
        async def count(request: Request):
            request.session["count"] = request.session.get("count", 0) + 1
            return {"count": request.session["count"]}
    """,
    "wsgi": """
        def make():
            def app(environ, start_response):
                session = environ["caterwaul.session"]
                session["count"] = session.get("count", 0) + 1
                start_response("200 OK", [("Content-Type", "application/json")])
                return [b'{"count": %d}' % session["count"]]
            return app
    """,
    "asgi": """
        async def app(scope, receive, send):
            assert scope["type"] == "http"
            session = scope["caterwaul.session"]
            session["count"] = session.get("count", 0) + 1
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
            await send({"type": "http.response.body", "body": b'{"count": %d}' % session["count"]})
    """,
}
APPLICATIONS["django-asgi"] = APPLICATIONS["django"].replace("wsgi", "asgi")
BROKEN = """
    import contextlib
    from starlette.applications import Starlette
    @contextlib.asynccontextmanager
    async def lifespan(app):
        raise RuntimeError("no database")
        yield
    app = Starlette(lifespan=lifespan)
"""
#: A browser of these tests goes from one process to the other as no sticky balancer would send it, and what it wrote must outlive a kill right after the answer.
TABLES = {"managers.default": {"read_your_writes": "cluster", "acks": "all"}, "managers.default.cookie": {"name": "sid", "secure": False}}
#: What a library that is imported has to say of itself.
QUIET = ("ignore:'cgi' is deprecated", "ignore:pkg_resources is deprecated", "ignore:Deprecated call to")
WRAP = "import os, sys; os.chdir(sys.argv.pop(1)); from caterwaul.cluster.cli import main; main()"


def serve(directory: Path, config: Path, node: str, application: str, *more: str) -> Server:
    ignored = [word for warning in QUIET for word in ("-W", warning)]
    return Server([*ignored, "-c", WRAP, str(directory), "wrap", application, "--port", "PORT", "--config", str(config), "--set", f"node.name={node}", *more])


def count(browser: Browser, server: Server) -> int:
    found: int = browser.get(server, "/")["count"]
    return found


def together(first: Server, second: Server) -> bool:
    """Whether a session of one goes on with the other."""
    browser = Browser()
    return first.answers("/") is not None and second.answers("/") is not None and [count(browser, first), count(browser, second)] == [1, 2]


def test_a_wrapped_process_ends_when_its_node_is_drained(tmp_path: Path) -> None:
    for kind in ("asgi", "wsgi"):
        (tmp_path / f"{kind}_shop.py").write_text(dedent(APPLICATIONS[kind]))
    with Cluster() as cluster:
        config = configuration(cluster, tmp_path, **TABLES)
        sockets = ["--set", f"admin.socket={tmp_path}/a"], ["--set", f"admin.socket={tmp_path}/b"]
        with serve(tmp_path, config, "a", "asgi_shop:app", *sockets[0]) as first, serve(tmp_path, config, "b", "wsgi_shop:make()", *sockets[1]) as second:
            until(lambda: together(first, second), 30.0, f"two that know each other: {first.log} {second.log}")
            browser = Browser()
            assert count(browser, first) == 1
            with Command("drain", "--socket", f"{tmp_path}/a", "--timeout", "20") as drain:
                assert drain.exit_code(30) == 0, drain.log
            assert (first.exit_code(), "Traceback" in first.log) == (0, False)
            assert count(browser, second) == 2


def test_an_application_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(dedent(BROKEN))
    with Cluster() as cluster, serve(tmp_path, configuration(cluster, tmp_path), "a", "shop:app") as server:
        assert server.exit_code() == 1
        assert "no database" in server.log
        assert "caterwaul: shop:app did not start" in server.log


@pytest.mark.parametrize("kind", sorted(APPLICATIONS))
def test_a_user_of_an_unchanged_application_goes_on_when_its_process_dies(kind: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(dedent(APPLICATIONS[kind]))
    application = "shop:make()" if kind == "wsgi" else "shop:app"
    with Cluster() as cluster:
        config = configuration(cluster, tmp_path, **TABLES)
        with serve(tmp_path, config, "a", application) as first, serve(tmp_path, config, "b", application) as second:
            until(lambda: together(first, second), 30.0, f"two of {kind} that know each other: {first.log} {second.log}")
            browser = Browser()
            assert [count(browser, server) for server in (first, first, second, first)] == [1, 2, 3, 4]
            first.kill()
            assert [count(browser, second), count(browser, second)] == [5, 6]
            assert "on 127.0.0.1:" in second.log
            assert f"serving http://127.0.0.1:{second.port}" in second.log
            second.signal(signal.SIGTERM)
            assert (second.exit_code(), "Traceback" in second.log) == (0, False)
