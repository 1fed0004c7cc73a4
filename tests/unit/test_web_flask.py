"""Flask's idioms, through its test client, over real managers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import flask
import pytest
from markupsafe import Markup

from caterwaul.managers.errors import SessionUnavailable
from caterwaul.managers.merging_types import Counter
from caterwaul.managers.settings import ManagerSettings
from caterwaul.managers.web.flask import CaterwaulSession
from caterwaul.membership.errors import LocalError

from ..contract.delta_world import DeltaWorld, OneBrowser

View = Callable[[], Any]


class Shop(OneBrowser):
    """One application on each node of a world, and one browser."""

    def __init__(self, settings: ManagerSettings | None = None, handlers: dict[type[Exception], Any] | None = None, **config: Any) -> None:
        super().__init__(settings)
        self.handlers = handlers or {}
        self.config = config
        self.apps = {name: self.app(name) for name in ("node1", "node2")}
        self.clients = {name: app.test_client() for name, app in self.apps.items()}

    def app(self, node: str) -> flask.Flask:
        app = flask.Flask("shop")
        app.logger.disabled = True
        app.config.update(self.config)
        CaterwaulSession(app, self.world.node(node))  # type: ignore[arg-type]
        for kind, handler in self.handlers.items():
            app.register_error_handler(kind, handler)
        app.add_url_rule("/", view_func=lambda: self.view(), endpoint="view")
        return app

    def do(self, view: View, node: str = "node1") -> Any:
        self.view = view
        client = self.clients[node]
        client.set_cookie("session", self.cookie) if self.cookie else client.delete_cookie("session")
        answer = client.get("/", buffered=True)  # read to its end and closed, as servers do
        for value in answer.headers.getlist("Set-Cookie"):
            self.cookie = value.partition(";")[0].partition("=")[2]
        return answer


def fill() -> str:
    flask.session["cart"] = ["apple"]
    return "filled"


def look() -> str:
    return repr(sorted(flask.session.items()))


def test_the_session_goes_on_on_another_node() -> None:
    shop = Shop()
    assert shop.do(fill).headers["Set-Cookie"].endswith("; Path=/; HttpOnly; SameSite=Lax"), "Flask's own defaults, and the one that browsers have"
    assert shop.do(look, "node2").text == "[('cart', ['apple'])]"


def test_what_is_changed_inside_a_value_is_saved_and_what_is_not_changed_is_not() -> None:
    shop = Shop()
    shop.do(fill)
    writes = shop.writes()
    shop.do(look)
    shop.do(lambda: str(flask.session.update(cart=["apple"])))
    assert shop.writes() == writes
    shop.do(lambda: str(flask.session["cart"].append("pear")))
    assert shop.writes() == writes + 1
    assert shop.do(look, "node2").text == "[('cart', ['apple', 'pear'])]"


def test_modified_says_so_where_only_what_was_set_is_saved() -> None:
    shop = Shop(ManagerSettings(save_mode="on_set"))
    shop.do(fill)

    def add(told: bool) -> str:
        flask.session["cart"].append("pear")
        flask.session.modified = told
        return ""

    shop.do(lambda: add(False))
    assert shop.do(look).text == "[('cart', ['apple'])]"
    shop.do(lambda: add(True))
    assert shop.do(look).text == "[('cart', ['apple', 'pear'])]"


def test_new_and_modified_tell() -> None:
    def tell() -> str:
        return f"{flask.session.new} {flask.session.modified} {'cart' in flask.session}"

    shop = Shop()
    assert shop.do(tell).text == "True False False"
    shop.do(fill)
    assert shop.do(tell).text == "False False True"


# --- permanent sessions ---


def stay() -> str:
    flask.session.permanent = True
    return repr(flask.session.max_idle_s)


def test_a_permanent_session_has_a_cookie_with_an_age_and_lives_as_long() -> None:
    shop = Shop(PERMANENT_SESSION_LIFETIME=timedelta(days=2))
    answer = shop.do(stay)
    assert "; Max-Age=172800;" in answer.headers["Set-Cookie"]
    assert answer.text == "172800.0"
    again = shop.do(look, "node2")
    assert "; Max-Age=172800;" in again.headers["Set-Cookie"]
    assert shop.do(lambda: repr(flask.session.max_idle_s), "node2").text == "172800.0"


def test_saying_permanent_in_each_request_replicates_once() -> None:
    shop = Shop()
    shop.do(stay)
    writes = shop.writes()
    shop.do(stay)
    assert shop.writes() == writes


def test_a_page_that_ignores_the_session_does_not_make_the_cookie_of_another_node_a_short_one() -> None:
    shop = Shop()
    shop.do(stay)
    answer = shop.do(lambda: "hello", "node2")
    assert "; Max-Age=2678400;" in answer.headers["Set-Cookie"], "the node's name in it has changed"
    assert "Set-Cookie" not in shop.do(lambda: "hello", "node2").headers


def test_no_longer_permanent_ends_with_the_browser() -> None:
    shop = Shop()
    shop.do(stay)

    def leave() -> str:
        flask.session.permanent = False
        return repr(flask.session.max_idle_s)

    assert shop.do(leave).text == "1800.0"
    assert "Set-Cookie" not in shop.do(look).headers


def test_a_session_is_not_made_by_saying_that_it_is_not_permanent() -> None:
    shop = Shop()

    def say() -> str:
        flask.session.permanent = False
        return ""

    assert "Set-Cookie" not in shop.do(say).headers


def test_without_refresh_the_age_counts_from_the_last_change() -> None:
    shop = Shop(SESSION_REFRESH_EACH_REQUEST=False)
    shop.do(stay)
    assert "Set-Cookie" not in shop.do(lambda: repr(flask.session.get("x"))).headers
    assert "; Max-Age=2678400;" in shop.do(fill).headers["Set-Cookie"]


# --- logout, login ---


def test_clear_is_a_logout() -> None:
    shop = Shop()
    shop.do(fill)
    gone = shop.id
    answer = shop.do(lambda: str(flask.session.clear()))
    assert answer.headers["Set-Cookie"].startswith("session=; Max-Age=0;")
    assert not shop.world.holds(gone)


def test_what_is_set_after_clear_goes_on_under_a_new_id() -> None:
    def login() -> str:
        flask.session.clear()
        flask.session["user"] = "ann"
        return ""

    shop = Shop()
    shop.do(fill)
    old = shop.id
    shop.do(login)
    assert shop.id != old
    assert not shop.world.holds(old)
    assert shop.world.contents(shop.id) == {"user": "ann"}


def test_a_login_names_whose_session_it_is_and_changes_the_id() -> None:
    shop = Shop()
    shop.do(fill)
    old = shop.id
    shop.do(lambda: str(flask.session.login("ann", device="a test")))
    assert not shop.world.holds(old)
    assert shop.do(lambda: f"{flask.session.principal} {look()}", "node2").text == "ann [('cart', ['apple'])]"


def test_taking_the_last_attribute_away_is_no_logout() -> None:
    shop = Shop()
    shop.do(fill)
    before = shop.cookie
    shop.do(lambda: str(flask.session.pop("cart")))
    assert shop.cookie == before
    assert shop.world.contents(shop.id) == {}


# --- flashing ---


def test_flashed_messages_are_shown_once_on_another_node_and_stay_markup() -> None:
    def flash() -> str:
        flask.flash("plain & simple")
        flask.flash(Markup("<b>saved</b>"), "warning")
        return ""

    def show() -> str:
        found = flask.get_flashed_messages(with_categories=True)
        return repr([(category, str(message), type(message).__name__) for category, message in found])

    shop = Shop()
    shop.do(flash)
    assert shop.do(show, "node2").text == "[('message', 'plain & simple', 'str'), ('warning', '<b>saved</b>', 'Markup')]"
    assert shop.do(show).text == "[]"


def test_attributes_that_merge_do_so_in_flask_too() -> None:
    def count() -> str:
        flask.session.setdefault("views", Counter()).add(1)
        return str(int(flask.session["views"]))

    shop = Shop()
    assert [shop.do(count, node).text for node in ("node1", "node2", "node1")] == ["1", "2", "3"]


# --- streaming ---


def test_a_stream_may_begin_a_session_before_its_first_byte_and_write_to_the_end() -> None:
    def stream() -> flask.Response:
        def body() -> Any:
            flask.session["first"] = 1
            yield "a"
            flask.session["last"] = 2
            yield "b"

        return flask.Response(flask.stream_with_context(body()))

    shop = Shop()
    assert shop.do(stream).text == "ab"
    assert shop.world.contents(shop.id) == {"first": 1, "last": 2}


# --- trouble ---


def test_a_session_that_is_unknown_reads_as_empty_and_a_write_is_503() -> None:
    shop = Shop()
    shop.do(fill)
    shop.world.make_unknown(shop.id)
    assert shop.do(look).text == "[]"
    for view in (fill, lambda: str(flask.session.clear())):
        refused = shop.do(view)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert "Set-Cookie" not in refused.headers
    assert shop.world.contents(shop.id) == {"cart": ["apple"]}


def test_an_application_may_say_itself_that_its_sessions_are_away() -> None:
    shop = Shop(handlers={SessionUnavailable: lambda error: ("come back", 503)})
    shop.do(fill)
    shop.world.make_unknown(shop.id)
    assert shop.do(fill).text == "come back"


def broken() -> str:
    flask.session["half"] = True
    raise RuntimeError("planted by the test")


def test_what_an_error_handler_takes_is_saved_and_what_none_takes_is_not() -> None:
    shop = Shop()
    assert shop.do(broken).status_code == 500
    assert (shop.cookie, shop.world.count()) == ("", 0)
    shop = Shop(handlers={RuntimeError: lambda error: ("sorry", 500)})
    assert shop.do(broken).text == "sorry"
    assert shop.world.contents(shop.id) == {"half": True}


def test_an_exception_passes_through_when_testing_and_nothing_is_saved_or_left_open() -> None:
    shop = Shop(TESTING=True)
    with pytest.raises(RuntimeError, match="planted"):
        shop.do(broken)
    assert shop.world.count() == 0
    assert [manager.statistics()["in_use"] for manager in shop.world.net.managers] == [0, 0]


def test_a_value_that_cannot_travel_is_refused_where_it_is_set() -> None:
    shop = Shop(TESTING=True)
    with pytest.raises(LocalError, match=r"session\['when'\]: object of type object"):
        shop.do(lambda: str(flask.session.update(when=object())))


# --- setting up ---


def test_the_test_clients_session_transaction() -> None:
    shop = Shop()
    client = shop.clients["node1"]
    with client.session_transaction() as session:
        session["user"] = "ann"
    shop.view = look
    assert client.get("/", buffered=True).text == "[('user', 'ann')]"
    with client.session_transaction() as session:
        assert session["user"] == "ann"
        session.clear()
    assert client.get("/", buffered=True).text == "[]"
    assert shop.world.count() == 0
    assert [manager.statistics()["in_use"] for manager in shop.world.net.managers] == [0, 0]


def test_the_applications_cookie_settings_are_honoured() -> None:
    shop = Shop(
        SESSION_COOKIE_NAME="__Secure-s", SESSION_COOKIE_SECURE=True, SESSION_COOKIE_HTTPONLY=False, SESSION_COOKIE_SAMESITE="Strict",
        SESSION_COOKIE_PATH="/shop", SESSION_COOKIE_DOMAIN="example.org", SESSION_COOKIE_PARTITIONED=True,
    )  # fmt: skip
    cookie = shop.do(fill).headers["Set-Cookie"]
    assert cookie == f"__Secure-s={shop.cookie}; Path=/shop; Domain=example.org; Secure; SameSite=Strict; Partitioned"


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"SESSION_COOKIE_PARTITIONED": True}, "SESSION_COOKIE_.*partitioned: needs secure"),
        ({"SESSION_COOKIE_NAME": "__Host-s"}, "SESSION_COOKIE_.*__Host-s needs secure"),
        ({"SESSION_COOKIE_SAMESITE": "None"}, "SESSION_COOKIE_.*None needs secure"),
        ({"SESSION_COOKIE_SAMESITE": "Perhaps"}, "SESSION_COOKIE_.*Perhaps"),
    ],
)
def test_cookie_settings_that_cannot_be_are_refused_with_their_name(config: dict[str, Any], text: str) -> None:
    with pytest.raises(LocalError, match=text):
        Shop(**config).do(fill)


def test_the_manager_may_be_made_by_the_first_request_of_the_process() -> None:
    made: list[Any] = []
    world, app = DeltaWorld(), flask.Flask("shop")

    def make() -> Any:
        made.append(world.node())
        return made[-1]

    sessions = CaterwaulSession(manager=make)
    sessions.init_app(app)
    app.add_url_rule("/", view_func=fill, endpoint="view")
    assert made == []
    threads = [threading.Thread(target=app.test_client().get, args=("/",), kwargs={"buffered": True}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    world.carry()
    assert world.count() == 4


def test_what_is_set_up_by_halves_or_twice_is_refused() -> None:
    sessions = CaterwaulSession(manager=DeltaWorld().node())  # type: ignore[arg-type]
    app = flask.Flask("shop")
    app.config["TESTING"] = True
    app.session_interface = sessions
    with pytest.raises(LocalError, match="set up the application with CaterwaulSession"):
        app.test_client().get("/")
    sessions.init_app(app)
    with pytest.raises(LocalError, match="already"):
        sessions.init_app(app)
    with pytest.raises(LocalError, match="needs a session manager"):
        CaterwaulSession(flask.Flask("other"))
