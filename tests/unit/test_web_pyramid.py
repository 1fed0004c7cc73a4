"""Pyramid's idioms, over real managers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from markupsafe import Markup
from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPForbidden, HTTPFound
from pyramid.interfaces import ISession, ISessionFactory
from pyramid.request import Request
from pyramid.response import FileResponse, Response
from zope.interface.verify import verifyObject

from caterwaul.managers.errors import SessionUnavailable
from caterwaul.managers.settings import ManagerSettings
from caterwaul.managers.web.cookies import CookieSettings
from caterwaul.managers.web.pyramid import SessionFactory

from ..contract.delta_world import OneBrowser


class Shop(OneBrowser):
    """One application on each node, and one browser."""

    def __init__(self, settings: ManagerSettings | None = None, configure: Any = None) -> None:
        super().__init__(settings)
        self.configure = configure or (lambda config: None)
        self.apps = {name: self.app(name) for name in ("node1", "node2")}

    def app(self, node: str) -> Any:
        def view(request: Any) -> Any:
            made = self.view(request)
            return made if isinstance(made, Response) else Response(str(made))

        with Configurator() as config:
            config.include("caterwaul.managers.web.pyramid")
            config.set_session_factory(SessionFactory(lambda: self.world.node(node), CookieSettings(name="sid", secure=False)))  # type: ignore[arg-type, return-value]
            config.add_route("all", "/")
            config.add_view(view, route_name="all")
            self.configure(config)
            return config.make_wsgi_app()

    def do(self, view: Any, node: str = "node1", **options: Any) -> Any:
        self.view = view
        request = Request.blank("/", **options)
        if self.cookie:
            request.headers["Cookie"] = f"sid={self.cookie}"
        response = request.get_response(self.apps[node])
        response.body  # noqa: B018  (read to its end)
        if response.app_iter is not None and hasattr(response.app_iter, "close"):
            response.app_iter.close()
        for value in response.headers.getall("Set-Cookie"):
            self.cookie = value.partition(";")[0].partition("=")[2]
        self.world.carry()
        return response


def fill(request: Any) -> str:
    request.session["cart"] = ["apple"]
    return "filled"


def look(request: Any) -> str:
    return repr(sorted(request.session.items()))


def test_the_interfaces_are_those_of_pyramid() -> None:
    seen: list[bool] = []

    def view(request: Any) -> str:
        seen.append(verifyObject(ISession, request.session))
        return ""

    Shop().do(view)
    assert seen == [True]
    assert verifyObject(ISessionFactory, SessionFactory(lambda: None))  # type: ignore[arg-type, return-value]


def test_the_session_goes_on_on_another_node_and_changes_inside_are_found() -> None:
    shop = Shop()
    shop.do(fill)
    shop.do(lambda request: request.session["cart"].append("pear"), "node2")
    assert shop.do(look).text == "[('cart', ['apple', 'pear'])]"
    assert shop.in_use() == [0, 0]


def test_changed_says_so_where_only_what_was_set_is_saved() -> None:
    def add(request: Any) -> str:
        request.session["cart"].append("pear")
        request.session.changed()
        return ""

    shop = Shop(ManagerSettings(save_mode="on_set"))
    shop.do(fill)
    shop.do(lambda request: request.session["cart"].append("lost"))
    shop.do(add)
    assert shop.do(look).text == "[('cart', ['apple', 'pear'])]"


def test_a_session_says_when_it_was_created() -> None:
    shop = Shop()
    assert abs(int(shop.do(lambda request: (fill(request), request.session.created)[1]).text) - time.time()) < 10
    shop.world.net.advance(100.0)
    assert abs(int(shop.do(lambda request: request.session.created, "node2").text) - (time.time() - 100)) < 10
    assert shop.do(lambda request: request.session.new).text == "False"


def test_flashed_messages_go_by_queue_and_are_shown_once() -> None:
    def flash(request: Any) -> str:
        request.session.flash("one")
        request.session.flash("one", allow_duplicate=False)
        request.session.flash("one")
        request.session.flash(Markup("<b>two</b>"), "other")
        return repr(request.session.peek_flash())

    shop = Shop()
    assert shop.do(flash).text == "['one', 'one']"
    assert shop.do(lambda request: request.session.pop_flash("other"), "node2").text == "[Markup('<b>two</b>')]"
    assert shop.do(lambda request: [request.session.pop_flash(), request.session.pop_flash()]).text == "[['one', 'one'], []]"


def test_csrf_tokens_are_kept_and_renewed_and_checked_by_pyramid() -> None:
    shop = Shop(configure=lambda config: config.set_default_csrf_options(require_csrf=True))
    token = shop.do(lambda request: request.session.get_csrf_token()).text
    assert len(token) == 40
    assert shop.do(lambda request: request.session.get_csrf_token(), "node2").text == token
    assert shop.do(lambda request: "posted", method="POST").status_int == 400
    assert shop.do(lambda request: "posted", method="POST", headers={"X-CSRF-Token": token}).text == "posted"
    assert shop.do(lambda request: request.session.new_csrf_token()).text != token


def test_invalidate_ends_the_session_and_another_takes_what_follows() -> None:
    def login(request: Any) -> str:
        request.session.invalidate()
        assert dict(request.session) == {}
        request.session["user"] = "ann"
        return ""

    shop = Shop()
    shop.do(fill)
    old = shop.id
    shop.do(login)
    assert not shop.world.holds(old)
    assert shop.world.contents(shop.id) == {"user": "ann"}
    assert shop.do(lambda request: request.session.invalidate()).headers["Set-Cookie"].startswith("sid=; Max-Age=0")
    assert shop.world.count() == 0


# --- answers that are exceptions ---


@pytest.mark.parametrize(("answer", "status"), [(HTTPFound("/home"), 302), (HTTPForbidden(), 403)])
def test_an_answer_that_is_raised_saves_the_session(answer: Exception, status: int) -> None:
    def view(request: Any) -> str:
        fill(request)
        raise answer

    shop = Shop()
    assert shop.do(view).status_int == status
    assert shop.world.count() == 1


def test_an_error_saves_nothing_with_an_error_page_or_without() -> None:
    def broken(request: Any) -> str:
        fill(request)
        raise RuntimeError("planted by the test")

    shop = Shop()
    with pytest.raises(RuntimeError, match="planted"):
        shop.do(broken)
    shop = Shop(configure=lambda config: config.add_exception_view(lambda error, request: Response("sorry", 500), context=RuntimeError))
    assert shop.do(broken).text == "sorry"
    assert (shop.world.count(), shop.in_use()) == (0, [0, 0])


def test_a_session_that_is_unknown_is_503_unless_the_application_says_otherwise() -> None:
    shop = Shop()
    shop.do(fill)
    shop.world.make_unknown(shop.id)
    for view in (fill, lambda request: request.session.invalidate()):
        refused = shop.do(view)
        assert (refused.status_int, refused.headers["Retry-After"]) == (503, "1")
    shop = Shop(
        configure=lambda config: (config.commit(), config.add_exception_view(lambda error, request: Response("come back", 503), context=SessionUnavailable))
    )
    shop.do(fill)
    shop.world.make_unknown(shop.id)
    assert shop.do(fill).text == "come back"


# --- streams ---


def test_a_stream_writes_to_its_end_and_a_file_is_left_alone(tmp_path: Any) -> None:
    def stream(request: Any) -> Any:
        session = request.session

        def body() -> Iterator[bytes]:
            yield b"a"
            session["late"] = True
            yield b"b"

        return Response(app_iter=body())

    shop = Shop()
    shop.do(fill)
    assert shop.do(stream).text == "ab"
    assert shop.do(look).text == "[('cart', ['apple']), ('late', True)]"
    (tmp_path / "file").write_bytes(b"contents")
    assert shop.do(lambda request: (fill(request), FileResponse(str(tmp_path / "file"), request))[1]).body == b"contents"
    assert shop.in_use() == [0, 0]
