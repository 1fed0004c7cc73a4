"""Django's idioms, through its test client, over real managers."""

from __future__ import annotations

import asyncio
import gc
import io
import weakref
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib import admin, messages
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import WSGIHandler
from django.core.management import call_command
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.test import Client, override_settings
from django.urls import path
from django.utils import timezone
from django.utils.safestring import SafeString, mark_safe

from caterwaul.managers.errors import LoginRefused
from caterwaul.managers.merging_types import Counter
from caterwaul.managers.settings import ManagerSettings
from caterwaul.managers.web.cookies import CookieSettings
from caterwaul.managers.web.django import SessionStore, replace_sessions, the_manager
from caterwaul.membership.errors import LocalError

from .. import django_project
from ..contract.delta_world import DeltaWorld, OneBrowser

NODE: Any = None  #: for `CATERWAUL_MANAGER` by name


def the_node() -> Any:
    return NODE


class Shop(OneBrowser):
    """A project's views, and one browser that asks whichever node it is told to."""

    def __init__(self, settings: ManagerSettings | None = None) -> None:
        super().__init__(settings)
        self.node = self.world.node()
        self.urlpatterns = [path("", lambda request: self.view(request)), path("admin/", admin.site.urls)]
        self.client = Client(raise_request_exception=False)

    def do(self, view: Any, node: str = "node1", **settings: Any) -> Any:
        def answer(request: Any) -> Any:
            made = view(request)
            return made if isinstance(made, HttpResponse | StreamingHttpResponse) else HttpResponse(str(made))

        self.view = answer
        with self.at(node), override_settings(**settings):
            self.client.handler._middleware_chain = None  # settings of the cookie are read with the middleware
            answer = self.client.get("/")
        self.world.carry()
        return answer

    def at(self, node: str = "node1") -> Any:
        return override_settings(CATERWAUL_MANAGER=lambda: self.world.node(node), ROOT_URLCONF=self)

    @property
    def cookie(self) -> str:
        return str(self.client.cookies["sessionid"].value)


def fill(request: Any) -> str:
    request.session["cart"] = ["apple"]
    return "filled"


def look(request: Any) -> str:
    return repr(sorted((name, value) for name, value in request.session.items() if name[0] != "_"))


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def at_node1(shop: Shop) -> Iterator[Shop]:
    with shop.at():
        yield shop


def test_the_session_goes_on_on_another_node_and_its_key_is_its_id(shop: Shop) -> None:
    answer = shop.do(fill)
    assert answer["Cache-Control"] == "no-store"
    assert shop.cookie == f"{shop.id}.node1"
    assert shop.do(look, "node2").content == b"[('cart', ['apple'])]"
    assert shop.do(lambda request: request.session.session_key, "node2").content.decode() == shop.id
    assert shop.cookie == f"{shop.id}.node2"


def test_what_is_changed_inside_a_value_is_saved_and_what_is_not_changed_is_not(shop: Shop) -> None:
    shop.do(fill)
    writes = shop.writes()
    shop.do(look)
    shop.do(fill)
    assert shop.writes() == writes
    shop.do(lambda request: request.session["cart"].append("pear"))
    assert shop.writes() == writes + 1
    assert shop.do(look, "node2").content == b"[('cart', ['apple', 'pear'])]"


def test_modified_says_so_where_only_what_was_set_is_saved() -> None:
    def add(request: Any) -> str:
        request.session["cart"].append("pear")
        request.session.modified = True
        return ""

    shop = Shop(ManagerSettings(save_mode="on_set"))
    shop.do(fill)
    shop.do(lambda request: request.session["cart"].append("lost"))
    shop.do(add)
    assert shop.do(look).content == b"[('cart', ['apple', 'pear'])]"


def test_attributes_that_merge_and_safe_strings_can_be_in_a_session(shop: Shop) -> None:
    def count(request: Any) -> str:
        request.session.setdefault("views", Counter()).add(1)
        request.session["title"] = mark_safe("<b>shop</b>")
        return str(int(request.session["views"]))

    assert [shop.do(count, node).content for node in ("node1", "node2")] == [b"1", b"2"]
    assert shop.do(lambda request: type(request.session["title"]) is SafeString, "node2").content == b"True"


def test_a_value_that_cannot_travel_is_refused_where_it_is_set(shop: Shop) -> None:
    def refuse(request: Any) -> str:
        with pytest.raises(LocalError, match=r"session\['when'\]: object of type object"):
            request.session["when"] = object()
        return "refused"

    assert shop.do(refuse).content == b"refused"


# --- login, logout, admin ---


def test_admin_login_and_logout_across_nodes(shop: Shop) -> None:
    call_command("migrate", verbosity=0)
    from django.contrib.auth.models import User

    User.objects.filter(username="ann").delete()
    User.objects.create_superuser("ann", password="secret")
    browser = Client()
    with shop.at():
        assert checks.run_checks() == []
        browser.get("/admin/login/")
        assert "sessionid" not in browser.cookies, "a form to look at is no session"
        answer = browser.post("/admin/login/?next=/admin/", {"username": "ann", "password": "secret"})
        assert answer.status_code == 302
        assert answer.cookies["sessionid"]["max-age"] == "1209600"
        store = SessionStore(browser.cookies["sessionid"].value)
        assert store.principal == str(User.objects.get(username="ann").pk)
    with shop.at("node2"):
        assert b"Site administration" in browser.get("/admin/").content
        cookie = browser.cookies["sessionid"].value
        answer = browser.post("/admin/logout/")
        assert answer.cookies["sessionid"].value == ""
    with shop.at():
        browser.cookies["sessionid"] = cookie
        assert browser.get("/admin/").status_code == 302, "the old cookie is worth nothing"
    assert shop.world.count() == 0


def test_a_login_gives_what_was_there_a_new_key_and_ends_the_old_one(shop: Shop) -> None:
    shop.do(fill)
    old = shop.id
    shop.do(lambda request: request.session.cycle_key())
    assert shop.id != old
    assert not shop.world.holds(old)
    assert shop.do(look, "node2").content == b"[('cart', ['apple'])]"


def test_a_flush_takes_effect_at_once_and_what_follows_is_another_session(shop: Shop) -> None:
    def again(request: Any) -> bool:
        before = request.session.session_key
        request.session.flush()
        gone = not request.session.exists(before)
        request.session["user"] = "ann"
        return gone

    shop.do(fill)
    old = shop.id
    assert shop.do(again).content == b"True"
    assert shop.id != old
    assert shop.world.contents(shop.id) == {"user": "ann"}
    assert shop.do(lambda request: request.session.flush()).cookies["sessionid"].value == ""
    assert shop.world.count() == 0


def test_the_test_cookie_and_messages(shop: Shop) -> None:
    def test(request: Any) -> str:
        worked = request.session.test_cookie_worked()
        request.session.set_test_cookie()
        return str(worked)

    with override_settings(MESSAGE_STORAGE="django.contrib.messages.storage.session.SessionStorage"):
        assert [shop.do(test).content, shop.do(test, "node2").content] == [b"False", b"True"]
        shop.do(lambda request: messages.info(request, "saved"))
        assert shop.do(lambda request: [str(message) for message in messages.get_messages(request)], "node2").content == b"['saved']"


# --- expiry ---


@pytest.mark.parametrize(("expiry", "age"), [(0, ""), (60, 60), (timedelta(hours=1), 3600), (None, 1209600)])
def test_the_cookie_is_as_old_as_the_session_may_get(shop: Shop, expiry: Any, age: Any) -> None:
    def expire(request: Any) -> float:
        request.session.set_expiry(expiry)
        request.session["a"] = 1
        return float(request.session.visit.session.max_idle_s)

    assert abs(int(shop.do(expire).cookies["sessionid"]["max-age"] or 0) - (age or 0)) <= 1
    idle = shop.do(lambda request: request.session.visit.session.max_idle_s, "node2")
    assert abs(float(idle.content) - (age or 1209600)) <= 1


def test_a_date_ends_the_session_though_it_is_used(shop: Shop) -> None:
    def until(request: Any) -> str:
        request.session.set_expiry(timezone.now() + timedelta(milliseconds=1))
        return ""

    shop.do(fill)
    shop.do(until)
    old = shop.id
    assert shop.do(look, "node2").content == b"[]"
    assert not shop.world.holds(old)


def test_without_expiry_the_browser_forgets_when_it_is_closed(shop: Shop) -> None:
    assert shop.do(fill, SESSION_EXPIRE_AT_BROWSER_CLOSE=True).cookies["sessionid"]["max-age"] == ""


def test_saving_every_request_renews_the_cookie_and_keeps_the_session_alive(shop: Shop) -> None:
    shop.do(fill)
    assert "sessionid" not in shop.do(lambda request: "").cookies
    touches = shop.world.touches(shop.id)
    assert shop.do(lambda request: "", SESSION_SAVE_EVERY_REQUEST=True).cookies["sessionid"]["max-age"] == "1209600"
    assert shop.world.touches(shop.id) == touches + 1


def test_clearsessions_has_nothing_to_do(at_node1: Shop) -> None:
    call_command("clearsessions")
    asyncio.run(SessionStore.aclear_expired())


# --- streams ---


def test_a_stream_writes_to_its_end_and_a_file_is_left_alone(shop: Shop) -> None:
    def stream(request: Any) -> Any:
        def body() -> Iterator[bytes]:
            yield b"a"
            request.session["late"] = True
            yield b"b"

        return StreamingHttpResponse(body())

    shop.do(fill)
    answer = shop.do(stream)
    with shop.at():
        assert answer.getvalue() == b"ab"
    assert shop.do(look).content == b"[('cart', ['apple']), ('late', True)]"
    shop.do(lambda request: FileResponse(io.BytesIO(b"file"))).close()
    assert [manager.statistics()["in_use"] for manager in shop.world.net.managers] == [0, 0]


# --- trouble ---


def test_a_session_that_is_unknown_reads_as_empty_and_a_write_or_a_logout_is_503(shop: Shop) -> None:
    shop.do(fill)
    shop.world.make_unknown(shop.id)
    before = shop.cookie
    assert shop.do(look).content == b"[]"
    for view in (fill, lambda request: request.session.flush(), lambda request: request.session.cycle_key()):
        refused = shop.do(view)
        assert (refused.status_code, refused["Retry-After"]) == (503, "1")
    assert shop.cookie == before
    assert shop.world.contents(shop.id) == {"cart": ["apple"], **shop.world.contents(shop.id)}


def test_a_request_goes_without_the_garbage_collector(shop: Shop) -> None:
    seen: list[Any] = []

    def page(request: Any) -> str:
        seen.append(weakref.ref(request))
        return fill(request)

    alone = {"MIDDLEWARE": ["caterwaul.managers.web.django.SessionMiddleware"]}  # Django's own keep requests alive, some of them
    shop.do(page, **alone)
    gc.collect()
    gc.disable()
    try:
        answer = shop.do(page, **alone)
        del answer.wsgi_request, answer.context, answer  # the test client's
        assert seen[1]() is None
    finally:
        gc.enable()


def test_an_error_saves_nothing_and_leaves_nothing_open(shop: Shop) -> None:
    def broken(request: Any) -> str:
        request.session["half"] = True
        raise RuntimeError("planted by the test")

    assert shop.do(broken).status_code == 500
    assert shop.world.count() == 0
    assert [manager.statistics()["in_use"] for manager in shop.world.net.managers] == [0, 0]


# --- setting up ---


def test_djangos_own_middleware_works_too_with_the_id_alone_in_the_cookie(shop: Shop) -> None:
    middleware = ["django.contrib.sessions.middleware.SessionMiddleware", *django_project.SETTINGS["MIDDLEWARE"][1:]]  # type: ignore[index]
    shop.do(fill, MIDDLEWARE=middleware)
    assert len(shop.cookie) == 43
    assert shop.do(look, "node2", MIDDLEWARE=middleware).content == b"[('cart', ['apple'])]"
    with shop.at():
        assert shop.client.session["cart"] == ["apple"], "the test client's own view of it"
    shop.do(look)
    with shop.at():
        assert shop.client.session["cart"] == ["apple"], "also out of a cookie with a route"
    assert [manager.statistics()["in_use"] for manager in shop.world.net.managers] == [0, 0]


def test_a_store_without_a_request_reads_and_writes(at_node1: Shop) -> None:
    store = SessionStore()
    store["a"] = 1
    store.save()
    other = SessionStore(store.session_key)
    assert dict(other.items()) == {"a": 1}
    other["b"] = 2
    other.save()
    assert SessionStore(store.session_key).keys() == {"a", "b"}


def test_the_async_methods_are_the_same(at_node1: Shop) -> None:
    async def use() -> list[Any]:
        store = SessionStore()
        await store.aset("a", 1)
        await store.asave()
        key = store.session_key
        other = SessionStore(key)
        found = [await other.aget("a"), await other.aexists(key)]
        await other.aset_expiry(60)
        await other.acycle_key()
        found += [other.session_key != key, await other.aexists(key), await other.aget_expiry_age()]
        await other.aflush()
        return [*found, other.session_key]

    assert asyncio.run(use()) == [1, True, True, False, 60, None]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"SESSION_COOKIE_SAMESITE": False}, "SESSION_COOKIE_SAMESITE"),
        ({"SESSION_COOKIE_NAME": "__Host-sid"}, "SESSION_COOKIE_.*__Host-sid needs secure"),
        ({"SESSION_ENGINE": "django.contrib.sessions.backends.cache"}, "SESSION_ENGINE = .*caterwaul.managers.web.django"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_their_name(shop: Shop, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=text):
        shop.do(fill, **settings)


def test_the_projects_settings_name_the_manager() -> None:
    global NODE
    NODE = DeltaWorld().node()
    with override_settings(CATERWAUL_MANAGER=f"{__name__}.the_node"):
        SessionStore().save()
    assert NODE.manager.count == 1
    with pytest.raises(ImproperlyConfigured, match="set CATERWAUL = "):
        SessionStore().save()


def test_a_project_is_wrapped_by_its_settings_or_refused() -> None:
    djangos = "django.contrib.sessions.middleware.SessionMiddleware"
    manager: Any = DeltaWorld().node()
    try:
        with override_settings(MIDDLEWARE=[djangos], SESSION_ENGINE="django.contrib.sessions.backends.file"):
            handler = WSGIHandler()
            replace_sessions(handler, manager, CookieSettings())
            assert (settings.SESSION_ENGINE, settings.MIDDLEWARE, the_manager()) == (
                "caterwaul.managers.web.django",
                ["caterwaul.managers.web.django.SessionMiddleware"],
                manager,
            )
            with pytest.raises(LocalError, match="MIDDLEWARE does not have django"):
                replace_sessions(handler, manager, CookieSettings())
        with override_settings(MIDDLEWARE=[djangos], SESSION_COOKIE_SAMESITE=False):
            handler = WSGIHandler()
            with pytest.raises(LocalError, match="cannot be wrapped: SESSION_COOKIE_SAMESITE = False"):
                replace_sessions(handler, manager, CookieSettings())
    finally:
        the_manager.forget()


def test_a_login_too_many_leaves_nobody_logged_in() -> None:
    call_command("migrate", verbosity=0)
    from django.contrib.auth import login
    from django.contrib.auth.models import User

    User.objects.filter(username="bob").delete()
    bob = User.objects.create_user("bob", password="secret")
    shop = Shop(ManagerSettings(principal_sessions_max=1, principal_sessions_policy="refuse"))

    def enter(request: Any) -> str:
        request.session["cart"] = ["apple"]
        try:
            login(request, bob, backend="django.contrib.auth.backends.ModelBackend")
        except LoginRefused as refused:
            return f"{request.user} {len(refused.sessions)}"
        return str(request.user)

    def look(request: Any) -> str:
        return f"{request.user} {request.session['cart']}"

    assert shop.do(enter).content == b"bob"
    first = shop.client
    shop.client = Client(raise_request_exception=False)
    assert shop.do(enter, "node2").content == b"AnonymousUser 1"
    assert shop.do(look).content == b"AnonymousUser ['apple']"
    shop.client = first
    assert shop.do(look, "node2").content == b"bob ['apple']"


def test_a_user_of_another_application_becomes_one_of_djangos_by_the_middleware_of_the_page() -> None:
    """That of docs/logins.md, which stands there as it is."""
    call_command("migrate", verbosity=0)
    from django.contrib.auth import SESSION_KEY, login
    from django.contrib.auth.models import User

    text = (Path(__file__).parents[2] / "docs" / "logins.md").read_text().partition("def signed_on(")[2].partition("```")[0]
    names: dict[str, Any] = {"SESSION_KEY": SESSION_KEY, "login": login, "User": User}
    exec(f"def signed_on({text}", names)
    User.objects.filter(username="eve").delete()
    eve = User.objects.create_user("eve", password="secret")
    shop = Shop()

    def look(request: Any) -> str:
        names["signed_on"](lambda request: None)(request)
        return str(request.user)

    def begin(request: Any) -> str:
        request.session["cart"] = 1
        request.session.principal = str(eve.pk)  # as if a login of another application had been taken
        return ""

    assert shop.do(look).content == b"AnonymousUser"
    shop.do(begin)
    assert shop.do(look).content == b"eve"
    assert shop.do(lambda request: str(request.user), "node2").content == b"eve"
