"""What `caterwaul wrap` takes an application for, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from fastapi import FastAPI
from flask import Flask
from litestar import Litestar
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware as StarlettesOwn
from werkzeug.middleware.proxy_fix import ProxyFix

from caterwaul import CookieSettings, LocalError
from caterwaul.cluster.cli import main
from caterwaul.cluster.wrapping import is_asgi, recognise, wrapped
from caterwaul.managers.web import asgi, starlette, wsgi
from caterwaul.managers.web.flask import CaterwaulSession

ROOT = Path(__file__).parents[2]


def plain(environ: Any, start_response: Any) -> list[bytes]:
    return []


async def bare(scope: Any, receive: Any, send: Any) -> None: ...


def test_frameworks_are_recognised_inside_of_middleware_too(monkeypatch: pytest.MonkeyPatch) -> None:
    flask, api = Flask("a"), FastAPI()
    assert recognise(flask) == ("flask", flask)
    assert recognise(ProxyFix(ProxyFix(flask))) == ("flask", flask)
    assert recognise(api) == ("starlette", api)
    for name in ("django.core.wsgi", "django.core.asgi"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert recognise(plain) == ("", plain)
    assert [is_asgi(app) for app in (flask, api, plain, bare, Litestar([]))] == [False, True, False, True, True]


def test_what_would_keep_its_old_sessions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LocalError, match="is a class"):
        recognise(Flask)
    with pytest.raises(LocalError, match="Litestar cannot be replaced from outside: add SessionPlugin"):
        recognise(Litestar([]))
    with pytest.raises(LocalError, match="Quart cannot be replaced from outside: put SessionMiddleware"):
        recognise(type("Quart", (), {"__module__": "quart.app"})())
    monkeypatch.setitem(sys.modules, "django.core.wsgi", SimpleNamespace())  # type: ignore[arg-type]
    with pytest.raises(LocalError, match=r"Django is loaded, but .*plain.* does not show where its handler is"):
        recognise(plain)


def test_who_has_our_sessions_already_is_refused(manager: Any) -> None:
    flask = Flask("a")
    CaterwaulSession(flask, manager)
    ours = Starlette(middleware=[Middleware(starlette.SessionMiddleware, manager=manager)])
    for app in (flask, ours):
        with pytest.raises(LocalError, match="sessions already"):
            wrapped(app, manager, CookieSettings())


def test_starlettes_middleware_is_replaced_where_it_stands_with_its_cookie(manager: Any) -> None:
    other = Middleware(asgi.SessionMiddleware, manager=manager)
    told = {"session_cookie": "shop", "same_site": "strict", "max_age": None, "domain": "example.com", "path": "/shop"}
    app = Starlette(middleware=[other, Middleware(StarlettesOwn, "secret", **told)])  # type: ignore[arg-type]
    assert wrapped(app, manager, CookieSettings()) is app
    assert app.user_middleware[0] is other
    assert app.user_middleware[1].cls is starlette.SessionMiddleware
    assert app.user_middleware[1].kwargs["cookie"] == CookieSettings("shop", secure=False, same_site="Strict", path="/shop", domain="example.com")


def test_a_cookie_that_browsers_would_not_take_is_refused(manager: Any) -> None:
    app = Starlette(middleware=[Middleware(StarlettesOwn, "secret", same_site="none")])
    with pytest.raises(LocalError, match=r"SessionMiddleware of the application: cookie\.same_site: None needs secure"):
        wrapped(app, manager, CookieSettings())
    flask = Flask("a")
    flask.config["SESSION_COOKIE_SAMESITE"] = "None"
    with pytest.raises(LocalError, match="SESSION_COOKIE_"):
        wrapped(flask, manager, CookieSettings())


def test_anything_else_gets_its_session_from_the_middleware_of_its_kind(manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("django.core.wsgi", "django.core.asgi"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert isinstance(wrapped(plain, manager, CookieSettings()), wsgi.SessionMiddleware)
    assert isinstance(wrapped(bare, manager, CookieSettings()), asgi.SessionMiddleware)


def test_what_cannot_be_called_as_an_application_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("django.core.wsgi", "django.core.asgi"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    async def legacy(scope: Any) -> None: ...

    for wrong in (lambda request: None, legacy, print_nothing):
        with pytest.raises(LocalError, match="is neither a WSGI application"):
            recognise(wrong)
    assert recognise(lambda *arguments: None).framework == ""


def print_nothing() -> None: ...


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (
            "from aiohttp.web import Application\nit = Application()",
            "Application of aiohttp is neither a WSGI nor an ASGI application: call setup of caterwaul.managers.web.aiohttp",
        ),
        ("from klein import Klein\nit = Klein()", "Klein of klein is neither a WSGI nor an ASGI application: serve SessionSite"),
        ("from klein import Klein\nit = Klein().resource()", "Resource of twisted is neither a WSGI nor an ASGI application: serve it with SessionSite"),
        (
            "from twisted.web import resource, server\nit = server.Site(resource.Resource())",
            "Site of twisted is neither a WSGI nor an ASGI application: make it a SessionSite",
        ),
        (
            "from litestar import Litestar\nit = Litestar([])",
            "the sessions of Litestar cannot be replaced from outside: add SessionPlugin of caterwaul.managers.web.litestar",
        ),
    ],
    ids=["aiohttp", "klein", "klein-resource", "site", "litestar"],
)
def test_what_is_served_or_set_up_otherwise_is_refused_with_what_to_do_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str, told: str) -> None:
    """By the command, and where a node serves it. Each names a page that exists."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wrap_other", raising=False)
    (tmp_path / "wrap_other.py").write_text(made)
    done = CliRunner().invoke(main, ["wrap", "wrap_other:it"])
    (line,) = done.output.splitlines()
    assert (done.exit_code, line.startswith(f"caterwaul: {told}")) == (1, True), line
    assert (ROOT / line[line.index("docs/") :].rstrip(")")).exists()


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, *more: str) -> str:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "wrap_case.py").write_text("async def bare(scope, receive, send): ...\nnumber = 3\nclass Kind: __call__ = bare\n")
    done = CliRunner().invoke(main, ["wrap", f"wrap_case:{name}", *more])
    assert done.exit_code in (1, 2)
    return done.output.strip()


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, monkeypatch, "number") == "caterwaul: web.application: wrap_case has no callable number"
    assert "is a class" in run(tmp_path, monkeypatch, "Kind")
    assert run(tmp_path, monkeypatch, "bare", "--set", "node.nam=a") == "node.nam: no such setting; did you mean name?"
    assert run(tmp_path, monkeypatch, "bare", "--host", "example").startswith("web.listen: 'example:8000' is not address:port")
    for name in ("django.core.wsgi", "django.core.asgi"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "is an ASGI application, and those are served by uvicorn, which is not installed" in run(tmp_path, monkeypatch, "bare")
