"""Logins that applications share: what one logout, one limit and one fault do to all of them."""

from __future__ import annotations

from typing import Any

import pytest

from caterwaul.cluster.config import SettingsError
from caterwaul.cluster.settings import Settings
from caterwaul.managers.backup import BackupManager
from caterwaul.managers.base import SessionManager
from caterwaul.managers.delta import DeltaManager
from caterwaul.managers.partitioned import PartitionedManager
from caterwaul.managers.session import key_of
from caterwaul.managers.settings import SSO, ManagerSettings, SsoSettings
from caterwaul.managers.web.cookies import CookieSettings, Ticket
from caterwaul.managers.web.policy import Front, Visit
from caterwaul.managers.web.single import SingleSignOn, SsoCookieSettings
from tests.doubles import Net

from .test_managers_principals import heal, split

KINDS: dict[str, type[SessionManager]] = {"delta": DeltaManager, "backup": BackupManager, "partitioned": PartitionedManager}


class World:
    """Members that run two applications, a shop and a blog."""

    def __init__(self, count: int = 3, kind: str = "delta", shared: SsoSettings | None = None, **more: Any) -> None:
        chosen = ManagerSettings(**{"type": kind, "sso": "main", "unknown_for_s": 0.0, **more})
        self.net = Net(count, chosen, kind=KINDS[kind], epochs=True)
        self.applications = {"shop": self.net.managers, "blog": self.net.add("blog", chosen, KINDS[kind])}
        settings = (shared or SsoSettings()).for_manager()
        self.logins = self.net.add(f"{SSO}main", settings, KINDS[settings.type])
        self.cookie = SsoCookieSettings()
        for managers in self.applications.values():
            for manager, logins in zip(managers, self.logins, strict=True):
                manager.single = SingleSignOn(logins, self.cookie)


class Browser:
    def __init__(self, world: World) -> None:
        self.world = world
        self.tickets: dict[str, Ticket] = {}

    def begin(self, application: str, number: int) -> Visit:
        front = Front(self.world.applications[application][number], CookieSettings())
        ticket = Ticket(**{name: getattr(self.tickets.get(application, Ticket()), name) for name in ("id", "token", "found")}, shared=self.tickets.get("sso"))

        def opened(at: Front, ticket: Ticket) -> Any:
            found = at.local(ticket, ("", ""))
            if found is None:
                result: list[Any] = []
                at.manager.open_deferred(ticket.id, ticket.token).addCallback(result.append)
                self.world.net.deliver()
                if not result:
                    self.world.net.advance(1.0)
                found = result[0]
            return found

        visit = front.admit(ticket, opened(front, ticket), "/", ("", ""))
        if visit.wanted is not None:
            visit.sign_on(opened(*visit.wanted))
        return visit

    def finish(self, application: str, visit: Visit) -> Any:
        receipt = visit.save()
        for name, value in visit.headers(()):
            if name == "Set-Cookie":
                said = value.partition(";")[0].partition("=")[2]
                key = "sso" if value.startswith("__Host-sso=") else application
                session_id, _, token = said.rpartition(".")[0].partition(":") if key != "sso" else said.partition(":")
                self.tickets[key] = Ticket(session_id or None, "", int(bool(said)), token)
        visit.release()
        self.world.net.deliver()
        return receipt

    def log_in(self, application: str, number: int, who: str = "ann") -> None:
        visit = self.begin(application, number)
        visit.session.login(who, device="phone")
        self.finish(application, visit)

    def log_out(self, application: str, number: int) -> Any:
        visit = self.begin(application, number)
        visit.end()
        return self.finish(application, visit)

    def who(self, application: str, number: int) -> str | None:
        visit = self.begin(application, number)
        assert not visit.session.unknown
        found = visit.session.principal
        self.finish(application, visit)
        return found


@pytest.mark.parametrize("shared", ["delta", "partitioned"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_login_and_one_logout_on_all_members(kind: str, shared: str) -> None:
    world = World(4, kind, SsoSettings(type=shared))
    ann, bob = Browser(world), Browser(world)
    bob.log_in("shop", 0, "bob")
    ann.log_in("shop", 0)
    assert [ann.who(application, number) for number in range(4) for application in ("blog", "shop")] == ["ann"] * 8
    before = dict(ann.tickets)
    receipt = ann.log_out("blog", 3)
    assert receipt.satisfied
    ann.tickets = before
    assert [ann.who(application, number) for number in range(4) for application in ("blog", "shop")] == [None] * 8
    world.net.advance(3.0)
    assert {manager.count for manager in world.logins} <= {0, 1}
    assert [bob.who(application, number) for number in range(4) for application in ("blog", "shop")] == ["bob"] * 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_logout_reaches_the_other_side_of_a_partition_when_it_heals(kind: str) -> None:
    world = World(4, kind)
    ann = Browser(world)
    ann.log_in("shop", 0)
    assert ann.who("blog", 2) == "ann"
    world.net.advance(1.0)
    split(world.net, [0, 1], [2, 3])
    there = Browser(world)
    there.tickets = dict(ann.tickets)
    ann.log_out("shop", 1)
    del there.tickets["blog"]
    assert there.who("blog", 3) == "ann", "that side cannot know, and goes on"
    heal(world.net, [0, 1], [2, 3])
    world.net.advance(3.0)
    assert [there.who(application, number) for number in range(4) for application in ("shop", "blog")] == [None] * 8
    assert all(manager.count == 0 for manager in (*world.net.managers, *world.applications["blog"], *world.logins))


def test_the_end_of_a_session_by_time_ends_no_other_and_the_login_of_the_browser_goes_on() -> None:
    world = World(2, idle_timeout_s=100.0, absolute_timeout_s=0.0)
    ann = Browser(world)
    ann.log_in("shop", 0)
    assert ann.who("blog", 1) == "ann"
    for _ in range(4):
        world.net.advance(60.0, 1.0)
        assert ann.who("blog", 0) == "ann"
    first = ann.tickets["shop"].id
    assert first is not None
    assert world.net.opened(0, first).new, "the shop's has expired"
    assert ann.who("shop", 0) == "ann"
    assert ann.tickets["shop"].id != first


def test_the_login_of_the_browser_lives_while_any_application_is_used_and_not_longer() -> None:
    world = World(2, shared=SsoSettings(idle_timeout_s=200.0), idle_timeout_s=5000.0)
    ann = Browser(world)
    ann.log_in("shop", 0)
    for _ in range(5):
        world.net.advance(150.0, 1.0)
        assert ann.who("shop", 1) == "ann"
    assert ann.who("blog", 0) == "ann"
    world.net.advance(400.0, 1.0)
    assert [manager.count for manager in world.logins] == [0, 0]
    assert ann.who("shop", 1) == ann.who("blog", 0) == "ann", "its end ends no session"
    del ann.tickets["blog"]
    assert ann.who("blog", 0) is None


def test_an_absolute_limit_of_the_shared_login() -> None:
    world = World(2, shared=SsoSettings(idle_timeout_s=100.0, absolute_timeout_s=300.0))
    ann = Browser(world)
    ann.log_in("shop", 0)
    for _ in range(6):
        world.net.advance(60.0, 1.0)
        ann.who("shop", 0)
    assert [manager.count for manager in world.logins] == [0, 0]


def test_an_end_of_all_sessions_of_a_principal_is_one_in_all_applications() -> None:
    world = World()
    phone, laptop, bob = Browser(world), Browser(world), Browser(world)
    for browser, name in ((phone, "ann"), (laptop, "ann"), (bob, "bob")):
        browser.log_in("shop", 0, name)
        assert browser.who("blog", 1) == name
    world.applications["blog"][2].end_all("ann")
    world.net.deliver()
    for browser, name in ((phone, None), (laptop, None), (bob, "bob")):
        assert [browser.who("shop", number) for number in range(3)] == [browser.who("blog", number) for number in range(3)] == [name] * 3


@pytest.mark.parametrize("at", ["login", "offer"])
def test_a_login_that_is_shared_after_the_end_of_all_sessions_does_not_outlast_it(at: str) -> None:
    """It was made, or offered, before: the request was under way."""
    world = World(2)
    ann = Browser(world)
    visit = ann.begin("shop", 0)
    visit.session.login("ann")
    if at == "offer":
        ann.finish("shop", visit)
        visit = ann.begin("blog", 0)
    world.applications["shop"][1].end_all("ann")
    world.net.deliver()
    assert visit.session.principal == "ann"
    ann.finish("shop" if at == "login" else "blog", visit)
    world.net.advance(3.0)
    assert [ann.who(application, number) for number in range(2) for application in ("blog", "shop")] == [None] * 4


def test_an_administrators_end_of_one_session_is_the_end_of_its_login() -> None:
    world = World()
    ann = Browser(world)
    ann.log_in("shop", 0)
    assert ann.who("blog", 1) == "ann"
    session_id = ann.tickets["blog"].id
    assert session_id is not None
    ended = world.applications["blog"][1].users.end_login(key_of(session_id), b"")
    world.net.deliver()
    assert ended.satisfied
    assert ann.who("blog", 1) is None
    assert ann.who("shop", 0) is None


@pytest.mark.parametrize("whose", [b"", b"ann"])
def test_an_administrators_end_by_a_key_that_was_just_replaced_is_the_end_of_its_login(whose: bytes) -> None:
    world = World(2, renewal_timeout_s=100.0)
    ann = Browser(world)
    ann.log_in("shop", 0)
    old = ann.tickets["shop"].id
    assert old is not None
    world.net.advance(150.0, 1.0)
    visit = ann.begin("shop", 0)
    visit.session["seen"] = 1
    ann.finish("shop", visit)
    assert ann.tickets["shop"].id != old
    shop = world.applications["shop"][0]
    ended = shop.users.end_login(key_of(old), whose and shop._core.logins.key_of(whose))
    world.net.deliver()
    assert ended.satisfied
    assert [ann.who(application, number) for number in range(2) for application in ("blog", "shop")] == [None] * 4


@pytest.mark.parametrize("where", ["entry", "session"])
def test_one_login_too_many_ends_the_oldest_in_all_applications(where: str) -> None:
    world = World(2, shared=SsoSettings(principal_sessions_max=2 if where == "entry" else 0), principal_sessions_max=2 if where == "session" else 0)
    browsers = [Browser(world) for _ in range(3)]
    for browser in browsers:
        browser.log_in("shop", 0)
        assert browser.who("blog", 1) == "ann"
        world.net.advance(3.0)
    assert [(browser.who("shop", 1), browser.who("blog", 0)) for browser in browsers] == [(None, None), ("ann", "ann"), ("ann", "ann")]


def test_of_two_requests_at_once_that_take_the_login_both_see_it_and_nobody_is_logged_out() -> None:
    world = World(2)
    ann = Browser(world)
    visit = ann.begin("blog", 0)
    visit.session["guest"] = 1
    ann.finish("blog", visit)
    ann.log_in("shop", 0)
    first, second = ann.begin("blog", 0), ann.begin("blog", 0)
    assert first.session.principal == second.session.principal == "ann"
    ann.finish("blog", first)
    late = Browser(world)
    late.tickets = dict(ann.tickets)
    second.save()
    second.session["more"] = 1
    late.finish("blog", second)
    assert ann.who("blog", 1) == ann.who("shop", 1) == "ann"


def test_what_the_login_said_of_itself_is_said_of_the_session_that_takes_it() -> None:
    world = World(2)
    ann = Browser(world)
    ann.log_in("shop", 0)
    ann.who("blog", 1)
    blog = world.applications["blog"][1]
    (login,) = blog.users.logins_of([blog._core.logins.key_of("ann")])
    assert login.about == {"device": "phone"}


def test_settings_that_do_not_fit_are_refused() -> None:
    found = Settings.of(**{"managers": {"shop": {"sso": "main"}, "blog": {"sso": "main", "sso_reauthenticate": True}}, "sso.main.cookie.name": "__Host-one"})
    assert found.sso_cookies["main"].name == "__Host-one"
    assert found.changed(**{"node.name": "b"}).sso == found.sso
    with pytest.raises(SettingsError) as caught:
        Settings.of(
            managers={"shop": {"sso": "mian"}, "blog": {"sso": "main", "cookie": {"name": "__Host-sso"}}, "other": {"sso_reauthenticate": True}},
            sso={"main": {"idle_timeout_s": 50000.0}},
        )
    for line in (
        "managers.shop.sso: there is no table [sso.mian]",
        "managers.blog.cookie.name",
        "managers.other.sso_reauthenticate",
        "sso.main.idle_timeout_s",
    ):
        assert line in str(caught.value)


def elsewhere(world: World, browser: Browser) -> int:
    """A member that does not hold the browser's entry."""
    session_id = browser.tickets["sso"].id
    assert session_id is not None
    return next(number for number, manager in enumerate(world.logins) if manager._core.replica.held(key_of(session_id)) is None)


@pytest.mark.parametrize("kind", ["backup", "partitioned"])
def test_a_second_login_where_the_entry_is_not_held_ends_nothing_but_the_old_id(kind: str) -> None:
    world = World(5, kind, SsoSettings(type=kind))
    ann = Browser(world)
    ann.log_in("shop", 0)
    visit = ann.begin("blog", 0)
    assert visit.session.principal == "ann"
    visit.session["cart"] = 1
    ann.finish("blog", visit)
    old = Browser(world)
    old.tickets["sso"] = ann.tickets["sso"]
    ann.log_in("shop", elsewhere(world, ann))
    world.net.advance(3.0)
    assert ann.tickets["sso"].id != old.tickets["sso"].id
    visit = ann.begin("blog", 0)
    assert (visit.session.principal, dict(visit.session)) == ("ann", {"cart": 1})
    ann.finish("blog", visit)
    assert old.who("blog", 0) is None, "its id is worth nothing"
    ann.log_out("blog", 1)
    world.net.advance(3.0)
    assert [ann.who(application, number) for number in range(5) for application in ("blog", "shop")] == [None] * 10


@pytest.mark.parametrize("again", [None, "bob"])
def test_a_logout_where_the_entry_is_not_held_ends_that_too_if_it_is_another_login(again: str | None) -> None:
    world = World(5, "delta", SsoSettings(type="partitioned"))
    ann = Browser(world)
    ann.log_in("shop", 0)
    shop = ann.tickets["shop"]
    ann.tickets.clear()
    ann.log_in("blog", 0)
    ann.tickets["shop"] = shop
    there = Browser(world)
    there.tickets = dict(ann.tickets)
    number = elsewhere(world, ann)
    if again is None:
        ann.log_out("shop", number)
    else:
        ann.log_in("shop", number, again)
    world.net.advance(3.0)
    assert (ann.who("blog", 0), ann.who("shop", 0)) == (again, again)
    assert [there.who(application, number) for number in range(5) for application in ("blog", "shop")] == [None] * 10


@pytest.mark.parametrize("kind", KINDS)
def test_a_login_as_somebody_else_ends_the_login_of_its_session_also_where_the_browser_has_another_shared_cookie(kind: str) -> None:
    """Simulator, logins, partitioned, seed 2: the login that the cookie named was the same user's, so nobody was logged out."""
    world = World(3, kind)
    browser, other = Browser(world), Browser(world)
    browser.log_in("blog", 0, "ann")
    assert browser.who("shop", 1) == "ann"
    other.tickets = {"shop": browser.tickets.pop("shop")}
    del browser.tickets["sso"]
    browser.log_in("shop", 0, "bob")
    browser.log_in("blog", 1, "bob")
    assert other.who("shop", 2) is None
    assert browser.who("shop", 2) == browser.who("blog", 2) == "bob"
