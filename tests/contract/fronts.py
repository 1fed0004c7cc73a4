"""The contract of web fronts: every front passes every test, driven as its server would drive it.

A subclass gives `drive`: one request, through the front's real protocol, to a *handler*. A handler takes the session and
returns a `Page`; an iterator for a body is a streaming response, whose items are made after the headers have left.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from caterwaul.managers.errors import LoginRefused, SessionError
from caterwaul.managers.settings import ManagerSettings
from caterwaul.managers.throttle import Throttle
from caterwaul.managers.web.cookies import CookieSettings

Headers = Sequence[tuple[str, str]]
ID_LENGTH = 43
NO_ID = "A" * ID_LENGTH


@dataclass
class Page:
    """What a handler answers."""

    body: bytes | Iterator[bytes] = b"hello"
    status: int = 200
    headers: Headers = ()


@dataclass
class Answer:
    """What the browser got."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    commits_at_head: int = 0  #: how many commits the manager had seen when the first header byte left

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def cookie(self) -> str | None:
        """The value of the session's cookie, if the answer sets one."""
        found = [value for value in self.all("Set-Cookie") if value.startswith("__Host-sid=")]
        assert len(found) <= 1
        return found[0].split(";")[0].partition("=")[2] if found else None


Handler = Callable[[Any], Page]


@dataclass
class Call:
    """One request for `drive`."""

    node: Any
    handler: Handler
    cookies: Headers | Sequence[str] = field(default=())  #: values of the Cookie field
    method: str = "GET"
    path: str = "/shop"
    no_touch: Sequence[str] = ()
    settings: CookieSettings | None = None
    client: str = "192.0.2.1"
    forwarded: str = ""  #: X-Forwarded-For
    agent: str = ""  #: User-Agent


def count(session: Any) -> Page:
    session["n"] = session.get("n", 0) + 1
    return Page(b"%d" % session["n"])


def end(session: Any) -> None:
    """A logout, by the name that the framework gives it."""
    session.flush() if hasattr(session, "flush") else session.invalidate()


def cycle(session: Any) -> None:
    """A new id at login."""
    session.cycle_key() if hasattr(session, "cycle_key") else session.cycle_id()


def crumbs(cookie: str) -> set[str]:
    """What a `Set-Cookie` says: frameworks order it, and quote nothing, each in their way."""
    return {part.strip().replace('=""', "=") for part in cookie.split(";")}


def look(session: Any) -> Page:
    return Page(repr(sorted(session.items())).encode())


def ignore(session: Any) -> Page:
    return Page()


def together(act: Callable[[], Answer]) -> list[Answer]:
    """Twice, in two threads."""
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda: answers.append(act())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


class Driven:
    """Subclasses give `drive`."""

    interrupts = False  #: a request whose session was ended meanwhile is told so

    def drive(self, call: Call) -> Answer:
        raise NotImplementedError

    def drive_twice(self, call: Call) -> list[Answer]:
        """The same request in two threads at once."""
        return together(lambda: self.drive(call))

    def get(self, node: Any, handler: Handler, cookie: str | None = None, **more: Any) -> Answer:
        cookies = [f"theme=dark; __Host-sid={cookie}"] if cookie is not None else []
        answer = self.drive(Call(node, handler, **{"cookies": cookies, **more}))
        assert node.open_now == [], "the request is over, so its session is released"
        return answer

    def begin(self, node: Any) -> str:
        cookie = self.get(node, count).cookie
        assert cookie is not None
        return cookie


class RoamingContract(Driven):
    """`read_your_writes = "cluster"`: `roaming` is a world whose link from node1 to node2 can be held."""

    def test_each_response_that_wrote_sets_a_token_and_others_leave_the_cookie_alone(self, roaming: Any) -> None:
        node = roaming.node()
        cookie = self.begin(node)
        assert len(cookie) == ID_LENGTH + len(":.node1") + 22
        again = self.get(node, count, cookie)
        assert again.body == b"2"
        assert again.cookie not in (None, cookie)
        assert self.get(node, look, again.cookie).cookie is None

    def test_a_redirect_to_another_node_waits_for_what_was_written_before_it(self, roaming: Any) -> None:
        cookie = self.begin(roaming.node())
        roaming.net.hold(0, 1)
        answer = self.get(roaming.node(), count, cookie)
        roaming.net.clock.callLater(0.2, roaming.net.let_go)
        shown = self.get(roaming.node("node2"), look, answer.cookie)
        assert shown.body == b"[('n', 2)]"
        assert roaming.net.clock.seconds() < 0.4

    def test_a_session_begun_just_now_is_found_on_another_node(self, roaming: Any) -> None:
        roaming.net.hold(0, 1)
        cookie = self.begin(roaming.node())
        roaming.net.clock.callLater(0.2, roaming.net.let_go)
        assert self.get(roaming.node("node2"), count, cookie).body == b"2"

    def test_after_the_longest_wait_the_application_is_told(self, roaming: Any) -> None:
        def tell(session: Any) -> Page:
            return Page(f"{session['n']} {session.stale}".encode())

        cookie = self.begin(roaming.node())
        roaming.net.hold(0, 1)
        answer = self.get(roaming.node(), count, cookie)
        shown = self.get(roaming.node("node2"), tell, answer.cookie)
        assert shown.body == b"1 True"
        assert shown.cookie is None
        assert 0.4 < roaming.net.clock.seconds() < 0.6
        assert self.get(roaming.node(), tell, answer.cookie).body == b"2 False"

    def test_reading_elsewhere_leaves_the_cookie_to_the_node_it_names_while_that_is_there(self, roaming: Any) -> None:
        cookie = self.begin(roaming.node())
        assert self.get(roaming.node("node2"), look, cookie).cookie is None
        roaming.net.kill(0)
        assert self.get(roaming.node("node2"), look, cookie).cookie == cookie.replace(".node1", ".node2")

    def test_writing_elsewhere_names_both_nodes_commits(self, roaming: Any) -> None:
        cookie = self.begin(roaming.node())
        answer = self.get(roaming.node("node2"), count, cookie)
        assert answer.cookie is not None
        assert answer.cookie.endswith(".node2")
        assert len(answer.cookie) > len(cookie)

    def test_a_forged_token_changes_nothing_and_is_taken_away(self, roaming: Any) -> None:
        cookie = self.begin(roaming.node())
        session_id = cookie[:ID_LENGTH]
        for forged in ("x", "A" * 22, "A" * 4000, "!"):
            answer = self.get(roaming.node("node2"), look, f"{session_id}:{forged}.node1")
            assert answer.body == b"[('n', 1)]"
            assert answer.cookie == f"{session_id}.node2"
        assert roaming.net.clock.seconds() == 0

    def test_what_a_stream_writes_after_its_headers_no_cookie_can_name(self, roaming: Any) -> None:
        def handler(session: Any) -> Page:
            def body() -> Iterator[bytes]:
                yield b"first"
                session["late"] = True
                yield b"last"

            return Page(body())

        cookie = self.begin(roaming.node())
        answer = self.get(roaming.node(), handler, cookie)
        assert (answer.body, answer.cookie) == (b"firstlast", None)
        assert roaming.contents(cookie[:ID_LENGTH]) == {"n": 1, "late": True}


def log_in(who: str) -> Handler:
    """As the framework has it: Django says who when it has given the session a new id."""

    def login(session: Any) -> Page:
        if hasattr(session, "login"):
            session.login(who)
        else:
            cycle(session)
            session.principal = who
        return Page()

    return login


def log_out(session: Any) -> Page:
    end(session)
    return Page()


def who(session: Any) -> Page:
    return Page(f"{session.principal} {session.signed_on}".encode())


class Browser:
    """With the cookies of two applications on two hosts of one domain, and that of the logins they share."""

    def __init__(self, front: Driven, world: Any) -> None:
        self.front = front
        self.world = world
        self.jars: dict[str, dict[str, str]] = {"shop": {}, "blog": {}, "domain": {}}
        self.answer: Answer | None = None

    def get(self, application: str, node: str, handler: Handler, **more: Any) -> str:
        jar, domain = self.jars[application], self.jars["domain"]
        cookies = "; ".join(f"{name}={value}" for name, value in (jar | domain).items())
        at = self.world.node(node, application)
        self.answer = answer = self.front.drive(Call(at, handler, **{"cookies": [cookies] if cookies else [], **more}))
        assert at.open_now == [], "the request is over, so its session is released"
        assert self.world.entries_in_use == 0
        for value in answer.all("Set-Cookie"):
            name, _, rest = value.partition("=")
            kept = domain if name == "__Secure-sso" else jar
            said, _, attributes = rest.partition(";")
            assert ("domain=example.org" in attributes.lower()) == (name == "__Secure-sso")
            kept.pop(name, None) if "max-age=0" in attributes.lower() else kept.__setitem__(name, said)
        assert answer.status == 200
        return answer.body.decode()


class SharedContract(Driven):
    """Single sign-on: `shared` is a world of two applications, shop and blog, on two nodes."""

    def test_who_logs_in_to_one_application_is_logged_in_to_the_other_and_out_of_both(self, shared: Any) -> None:
        browser, other = Browser(self, shared), Browser(self, shared)
        other.get("shop", "node1", log_in("bob"))
        browser.get("shop", "node1", log_in("ann"))
        assert browser.get("blog", "node2", who) == browser.get("shop", "node2", who) == "ann None"
        assert browser.get("blog", "node1", who) == "ann None"
        stolen = {name: dict(jar) for name, jar in browser.jars.items()}
        browser.get("blog", "node2", log_out)
        assert browser.jars == {"shop": stolen["shop"], "blog": {}, "domain": {}}
        browser.jars = stolen
        for application, node in (("shop", "node1"), ("shop", "node2"), ("blog", "node1"), ("blog", "node2")):
            assert browser.get(application, node, who) == "None None"
            assert other.get(application, node, who) == "bob None"

    def test_a_page_that_does_not_ask_who_is_there_begins_no_session(self, shared: Any) -> None:
        browser = Browser(self, shared)
        browser.get("shop", "node1", log_in("ann"))
        browser.get("blog", "node1", ignore)
        assert browser.answer is not None
        assert browser.answer.all("Set-Cookie") == browser.answer.all("Cache-Control") == []
        browser.get("blog", "node1", log_out)
        assert browser.get("shop", "node2", who) == "None None", "the logout of one who was not seen yet counts"

    def test_a_session_that_is_there_gets_a_new_id_with_the_login_of_another_application(self, shared: Any) -> None:
        browser = Browser(self, shared)
        browser.get("blog", "node1", count)
        planted = dict(browser.jars["blog"])
        browser.get("shop", "node1", log_in("ann"))
        assert browser.get("blog", "node1", lambda session: Page(f"{session.principal} {session['n']}".encode())) == "ann 1"
        assert browser.jars["blog"] != planted
        stranger = Browser(self, shared)
        stranger.jars["blog"] = planted
        assert stranger.get("blog", "node1", who) == "None None"

    def test_a_login_as_somebody_else_is_a_logout_before(self, shared: Any) -> None:
        browser = Browser(self, shared)
        browser.get("shop", "node1", log_in("ann"))
        browser.get("blog", "node1", who)
        before = dict(browser.jars["domain"])
        browser.get("shop", "node2", log_in("bob"))
        assert browser.jars["domain"] != before
        assert browser.get("blog", "node1", who) == browser.get("shop", "node1", who) == "bob None"
        browser.jars["domain"], browser.jars["blog"] = before, {}
        assert browser.get("blog", "node2", who) == "None None"

    def test_an_application_may_ask_for_the_password_again(self, shared: Any) -> None:
        shared.reauthenticates = {"blog"}
        browser = Browser(self, shared)
        browser.get("shop", "node1", log_in("ann"))
        assert browser.get("blog", "node1", who) == "None ann"
        before = dict(browser.jars["domain"])
        browser.get("blog", "node1", log_in("ann"))
        assert browser.jars["domain"] != before, "the id of what is shared changes with the login, and its login goes on"
        assert browser.get("shop", "node2", who) == browser.get("blog", "node2", who) == "ann None"
        browser.get("blog", "node1", log_out)
        assert browser.get("shop", "node2", who) == "None None"

    @pytest.mark.parametrize("shown", ["A" * ID_LENGTH, "short", ""])
    def test_a_made_up_login_is_nobodys(self, shared: Any, shown: str) -> None:
        browser = Browser(self, shared)
        browser.jars["domain"] = {"__Secure-sso": shown}
        assert browser.get("blog", "node1", who) == "None None"
        browser.get("blog", "node1", log_in("ann"))
        assert shown not in browser.jars["domain"].values()


class FrontContract(SharedContract):
    """For every manager."""

    saves_error_pages = True  #: an error page that the application made is an answer like any other
    threaded = True  #: requests run in threads
    streams_begin_sessions = True  #: the headers leave with the first byte of a stream, not before it is begun

    # --- a user who is logged in elsewhere ---

    def test_a_login_too_many_is_answered_409_unless_the_application_answers(self, refusing: Any) -> None:
        first = self.get(refusing.node(), log_in("ann")).cookie
        node = refusing.node("node2")
        answer = self.get(node, log_in("ann"))
        assert (answer.status, answer.all("Set-Cookie")) == (409, [])

        def ask(session: Any) -> Page:
            try:
                return log_in("ann")(session)
            except LoginRefused as refused:
                session["asked"] = len(refused.sessions)
                return Page(b"end the other?")

        answer = self.get(node, ask)
        assert answer.body == b"end the other?"
        assert self.get(node, lambda session: Page(f"{session.principal} {session['asked']}".encode()), answer.cookie).body == b"None 1"
        assert self.get(node, who, first).body == b"ann None"

    # --- what one client may cost ---

    def throttled(self, world: Any) -> Any:
        """A node that lets an address begin two sessions, and show two ids that are none."""
        node = world.node()
        node.throttle = Throttle(ManagerSettings(creations_per_s=0.2, misses_per_s=0.2), lambda: 0.0)
        return node

    def test_an_address_that_begins_too_many_sessions_gets_no_more_and_others_do(self, world: Any) -> None:
        node = self.throttled(world)
        first = self.begin(node)
        self.begin(node)
        refused = self.get(node, count)
        assert (refused.status, refused.cookie, refused.all("Retry-After")) == (429, None, ["1"])
        assert world.count() == 2
        assert node.throttle.creations_refused == 1
        assert self.get(node, ignore).status == 200
        assert self.get(node, count, first).body == b"2", "what exists goes on"
        assert self.get(node, count, client="192.0.2.2").body == b"1"

    def test_a_client_behind_a_proxy_is_the_one_the_proxy_names(self, world: Any) -> None:
        node = self.throttled(world)
        for _ in range(2):
            assert self.get(node, count, client="10.0.0.9", forwarded="203.0.113.1, 198.51.100.7, 10.0.0.8").status == 200
        assert self.get(node, count, client="10.0.0.9", forwarded="203.0.113.2, 198.51.100.7, 10.0.0.8").status == 429, "what it wrote itself does not help it"
        assert self.get(node, count, client="10.0.0.9", forwarded="198.51.100.8, 10.0.0.8").status == 200
        assert [self.get(node, count, client="10.0.0.9").status for _ in range(5)] == [200] * 5, "a proxy that names nobody is everybody"

    def test_an_address_that_makes_ids_up_has_nobody_asked_for_more(self, world: Any) -> None:
        node = self.throttled(world)
        mine = self.begin(world.node())
        for letter in "BC":
            assert self.get(node, look, letter * ID_LENGTH).body == b"[]"
        elsewhere = "D" * ID_LENGTH
        world.make_remote(elsewhere)
        refused = self.get(node, count, elsewhere)
        assert (refused.status, refused.cookie) == (503, None), "unknown for the moment: its cookie stays"
        assert node.throttle.lookups_refused == 1
        assert self.get(node, look, mine).body == b"[('n', 1)]", "what is here is served"
        assert self.get(node, count, elsewhere, client="192.0.2.2").status == 200

    # --- creation ---

    def test_a_request_that_ignores_its_session_has_no_trace_of_it(self, world: Any) -> None:
        node = world.node()
        answer = self.get(node, ignore)
        assert (answer.status, answer.body) == (200, b"hello")
        assert answer.cookie is None
        assert answer.all("Vary") == answer.all("Cache-Control") == []
        assert world.count() == 0

    def test_reading_creates_no_session_but_the_answer_depends_on_the_cookie(self, world: Any) -> None:
        answer = self.get(world.node(), look)
        assert answer.cookie is None
        assert world.count() == 0
        assert (answer.all("Vary"), answer.all("Cache-Control")) == (["Cookie"], ["no-store"])

    def test_the_first_write_creates_the_session_and_sets_its_cookie(self, world: Any) -> None:
        answer = self.get(world.node(), count)
        assert answer.cookie is not None
        session_id = answer.cookie.partition(".")[0]
        assert len(session_id) == ID_LENGTH
        assert world.count() == 1
        assert world.contents(session_id) == {"n": 1}
        assert [crumbs(cookie) for cookie in answer.all("Set-Cookie")] == [crumbs(f"__Host-sid={session_id}.node1; Path=/; Secure; HttpOnly; SameSite=Lax")]
        assert (answer.all("Vary"), answer.all("Cache-Control")) == (["Cookie"], ["no-store"])

    def test_the_commit_runs_before_the_first_header_byte(self, world: Any) -> None:
        assert self.get(world.node(), count).commits_at_head == 1

    def test_a_write_before_the_first_streamed_byte_is_in_time_to_create(self, world: Any) -> None:
        if not self.streams_begin_sessions:
            return

        def handler(session: Any) -> Page:
            def body() -> Iterator[bytes]:
                session["late"] = True
                yield b"first"
                yield b"second"

            return Page(body())

        answer = self.get(world.node(), handler)
        assert answer.body == b"firstsecond"
        assert answer.cookie is not None
        assert answer.commits_at_head == 1

    # --- going on ---

    def test_what_was_written_is_read_back_on_the_same_node_without_a_new_cookie(self, world: Any) -> None:
        node = world.node()
        cookie = self.begin(node)
        answer = self.get(node, count, cookie)
        assert (answer.body, answer.cookie) == (b"2", None)
        assert (answer.all("Vary"), answer.all("Cache-Control")) == (["Cookie"], ["no-store"])

    def test_another_node_goes_on_and_puts_its_route_into_the_cookie(self, world: Any) -> None:
        cookie = self.begin(world.node("node1"))
        answer = self.get(world.node("node2"), count, cookie)
        assert answer.body == b"2"
        assert answer.cookie == cookie.replace(".node1", ".node2")

    def test_a_redirect_that_reaches_another_node_finds_what_was_written_before_it(self, world: Any) -> None:
        def login(session: Any) -> Page:
            session["user"] = "ann"
            return Page(b"", 303, [("Location", "/home")])

        answer = self.get(world.node("node1"), login)
        assert (answer.status, answer.commits_at_head) == (303, 1)
        assert [place.removeprefix("http://127.0.0.1") for place in answer.all("Location")] == ["/home"]
        assert self.get(world.node("node2"), look, answer.cookie).body == b"[('user', 'ann')]"

    def test_a_session_that_keepers_must_be_asked_for_is_there_before_the_handler_runs(self, world: Any) -> None:
        node = world.node()
        cookie = self.begin(node)
        world.make_remote(cookie.partition(".")[0])
        assert self.get(node, count, cookie).body == b"2"

    def test_a_nested_change_is_found_and_committed(self, world: Any) -> None:
        def fill(session: Any) -> Page:
            session["cart"] = {"items": [1]}
            return Page()

        def add(session: Any) -> Page:
            session["cart"]["items"].append(2)
            return Page()

        cookie = self.get(world.node(), fill).cookie
        self.get(world.node(), add, cookie)
        assert self.get(world.node("node2"), look, cookie).body == b"[('cart', {'items': [1, 2]})]"

    def test_a_request_decodes_only_what_it_reads(self, world: Any) -> None:
        class Noted:
            def __init__(self, name: str) -> None:
                self.name = name

        def decode(name: str) -> Noted:
            decoded.append(name)
            return Noted(name)

        def fill(session: Any) -> Page:
            for name in "abcdefghij":
                session[name] = Noted(name)
            return Page()

        def read(session: Any) -> Page:
            return Page(session["d"].name.encode())

        def replace(session: Any) -> Page:
            session["d"] = Noted("new")
            return Page()

        decoded: list[str] = []
        node = world.node()
        node.types.register(Noted, "noted", lambda noted: noted.name, decode)
        cookie = self.get(node, fill).cookie
        for handler, expected in ((ignore, []), (read, ["d"]), (replace, []), (read, ["new"])):
            decoded.clear()
            self.get(node, handler, cookie)
            assert decoded == expected

    def test_two_requests_at_once_that_change_different_attributes_both_survive(self, world: Any) -> None:
        node = world.node()
        cookie = self.begin(node)

        def outer(session: Any) -> Page:
            session["a"] = session["n"]

            def inner(other: Any) -> Page:
                other["b"] = other["n"]
                return Page()

            self.drive(Call(node, inner, [f"__Host-sid={cookie}"]))
            return Page()

        self.get(node, outer, cookie)
        assert self.get(node, look, cookie).body == b"[('a', 1), ('b', 1), ('n', 1)]"

    def test_two_threads_on_one_session_both_keep_their_changes(self, world: Any) -> None:
        """Real threads, meeting inside their requests."""
        if not self.threaded:
            return
        node = world.node()
        cookie = self.begin(node)
        barrier, names = threading.Barrier(2, timeout=10), ["a", "b"]

        def handler(session: Any) -> Page:
            name = names.pop()
            barrier.wait()
            session[name] = session["n"]
            barrier.wait()
            return Page()

        answers = self.drive_twice(Call(node, handler, [f"__Host-sid={cookie}"]))
        assert [answer.status for answer in answers] == [200, 200]
        assert world.contents(cookie.partition(".")[0]) == {"n": 1, "a": 1, "b": 1}

    def test_a_request_that_a_logout_overtakes_brings_nothing_back(self, world: Any) -> None:
        node = world.node()
        cookie = self.begin(node)

        def logout(session: Any) -> Page:
            end(session)
            return Page()

        def slow(session: Any) -> Page:
            session["late"] = session["n"]
            self.drive(Call(node, logout, [f"__Host-sid={cookie}"]))
            return Page()

        answer = self.get(node, slow, cookie)
        assert answer.status == (400 if self.interrupts else 200)
        assert answer.cookie is None
        assert not world.holds(cookie.partition(".")[0])
        assert self.get(node, look, cookie).body == b"[]"

    def test_a_request_that_a_login_overtakes_does_not_bring_the_old_id_back(self, world: Any) -> None:
        node = world.node()
        cookie = self.begin(node)
        logins: list[Answer] = []

        def login(session: Any) -> Page:
            cycle(session)
            session["user"] = "ann"
            return Page()

        def slow(session: Any) -> Page:
            session["late"] = session["n"]
            logins.append(self.drive(Call(node, login, [f"__Host-sid={cookie}"])))
            return Page()

        assert self.get(node, slow, cookie).cookie is None
        assert not world.holds(cookie.partition(".")[0])
        assert self.get(node, look, logins[0].cookie).body == b"[('n', 1), ('user', 'ann')]"

    def test_reads_keep_the_session_alive_but_not_where_the_path_says_so(self, world: Any) -> None:
        node = world.node()
        cookie = self.begin(node)
        session_id = cookie.partition(".")[0]
        before = world.touches(session_id)
        self.get(node, ignore, cookie)
        self.get(node, look, cookie, path="/poll/news", no_touch=["/poll/*"])
        assert world.touches(session_id) == before
        self.get(node, look, cookie, path="/news", no_touch=["/poll/*"])
        assert world.touches(session_id) == before + 1
        node.settings = replace(node.settings, no_touch_paths=["/feed"])
        for path in ("/feed", "/poll/news"):
            self.get(node, look, cookie, path=path, no_touch=["/poll/*"])
        assert world.touches(session_id) == before + 1
        self.get(node, count, cookie, path="/poll/news", no_touch=["/poll/*"])
        assert world.contents(session_id) == {"n": 2}

    @pytest.mark.parametrize("asked", [{"path": "/assets/a.css"}, {"agent": "Mozilla/5.0 (compatible; GoogleBOT/2.1)"}], ids=["path", "agent"])
    def test_where_no_session_is_opened_one_lasts_for_the_request(self, world: Any, asked: dict[str, str]) -> None:
        def busy(session: Any) -> Page:
            assert count(session).body == b"1"
            cycle(session)
            assert session["n"] == 1
            end(session)
            return Page()

        node = world.node()
        cookie = self.begin(node)
        node.settings = replace(node.settings, no_session_paths=["/assets/*", "/health"], no_session_agents=["*bot*"])
        commits = node.commits
        for handler in (count, busy):
            for brought in (cookie, None):
                answer = self.get(node, handler, brought, **asked)
                assert (answer.status, answer.all("Set-Cookie")) == (200, [])
        assert (node.commits, world.count()) == (commits, 1)
        assert self.get(node, count, cookie, path="/shop/assets/a.css", agent="Firefox").body == b"2"

    # --- streaming ---

    def test_a_change_after_the_headers_is_committed_at_the_end(self, world: Any) -> None:
        def handler(session: Any) -> Page:
            def body() -> Iterator[bytes]:
                yield b"first"
                session["late"] = True
                yield b"last"

            return Page(body())

        cookie = self.begin(world.node())
        assert self.get(world.node(), handler, cookie).body == b"firstlast"
        assert world.contents(cookie.partition(".")[0]) == {"n": 1, "late": True}

    def test_after_the_headers_no_session_is_created_and_no_id_changes(self, world: Any) -> None:
        refused: list[str] = []

        def handler(session: Any) -> Page:
            def body() -> Iterator[bytes]:
                yield b"first"
                with pytest.raises(SessionError) as caught:
                    cycle(session) if "n" in session else session.update({"late": True})
                refused.append(str(caught.value))

            return Page(body())

        assert self.get(world.node(), handler).cookie is None
        cookie = self.begin(world.node())
        self.get(world.node(), handler, cookie)
        assert len(refused) == 2
        assert world.count() == 1
        assert world.holds(cookie.partition(".")[0])

    # --- ends and changes of id ---

    def test_invalidating_clears_the_cookie_and_the_old_id_is_not_adopted(self, world: Any) -> None:
        def logout(session: Any) -> Page:
            end(session)
            return Page()

        node = world.node()
        cookie = self.begin(node)
        answer = self.get(node, logout, cookie)
        assert [crumbs(cookie) for cookie in answer.all("Set-Cookie")] == [crumbs("__Host-sid=; Max-Age=0; Path=/; Secure; HttpOnly; SameSite=Lax")]
        again = self.get(world.node("node2"), count, cookie)
        assert again.body == b"1"
        assert again.cookie is not None
        assert again.cookie.partition(".")[0] != cookie.partition(".")[0]

    def test_invalidating_a_session_the_browser_never_had_sets_nothing(self, world: Any) -> None:
        def both(session: Any) -> Page:
            session["a"] = 1
            end(session)
            return Page()

        assert self.get(world.node(), both).all("Set-Cookie") == []

    def test_cycling_the_id_sets_the_new_cookie_and_kills_the_old_id(self, world: Any) -> None:
        def login(session: Any) -> Page:
            cycle(session)
            session["user"] = "ann"
            return Page()

        node = world.node()
        old = self.begin(node)
        new = self.get(node, login, old).cookie
        assert new is not None
        assert new != old
        assert self.get(node, look, new).body == b"[('n', 1), ('user', 'ann')]"
        assert self.get(node, look, old).body == b"[]"

    def test_an_id_that_nobody_knows_is_never_adopted(self, world: Any) -> None:
        answer = self.get(world.node(), count, NO_ID)
        assert answer.body == b"1"
        assert not world.holds(NO_ID)
        assert answer.cookie is not None
        assert not answer.cookie.startswith(NO_ID)

    # --- unknown ---

    def test_an_unknown_session_reads_as_empty_and_its_cookie_is_neither_set_nor_cleared(self, world: Any) -> None:
        cookie = self.begin(world.node())
        world.make_unknown(cookie.partition(".")[0])
        answer = self.get(world.node("node2"), look, cookie)
        assert (answer.status, answer.body) == (200, b"[]")
        assert answer.all("Set-Cookie") == []

    def test_a_write_to_an_unknown_session_is_answered_503_with_retry_after(self, world: Any) -> None:
        cookie = self.begin(world.node())
        session_id = cookie.partition(".")[0]
        world.make_unknown(session_id)
        answer = self.get(world.node("node2"), count, cookie)
        assert answer.status == 503
        assert int(answer.all("Retry-After")[0]) >= 1
        assert answer.all("Set-Cookie") == []
        assert world.contents(session_id) == {"n": 1}

    # --- cookies that are none ---

    @pytest.mark.parametrize(
        "value", ["", "short", "A" * 42, "A" * 44, "A" * 43 + ".", "A" * 43 + "." + "x" * 17, "Ä" * 43, '"' + "A" * 43 + '"', "A" * 43 + "\x01"]
    )
    def test_a_malformed_cookie_is_treated_as_absent(self, world: Any, value: str) -> None:
        answer = self.get(world.node(), count, value)
        assert (answer.status, answer.body) == (200, b"1")
        assert answer.cookie is not None

    def test_of_two_session_cookies_neither_is_believed(self, world: Any) -> None:
        node = world.node()
        cookie = self.begin(node)
        answer = self.get(node, look, cookies=[f"__Host-sid={cookie}; __Host-sid={NO_ID}"])
        assert answer.body == b"[]"

    def test_without_routes_the_cookie_is_the_bare_id_on_every_node(self, world: Any) -> None:
        settings = CookieSettings(route=False)
        cookie = self.get(world.node("node1"), count, settings=settings).cookie
        assert cookie is not None
        assert len(cookie) == ID_LENGTH
        assert self.get(world.node("node2"), count, cookie, settings=settings).cookie is None

    def test_a_cookie_with_an_age_is_renewed_whenever_the_session_is_used(self, world: Any) -> None:
        settings = CookieSettings(max_age_s=600)
        cookie = self.get(world.node(), count, settings=settings).cookie
        assert self.get(world.node(), look, cookie, settings=settings).cookie == cookie
        assert self.get(world.node(), ignore, cookie, settings=settings).cookie is None

    # --- caches ---

    @pytest.mark.parametrize(
        ("theirs", "ours"),
        [("public, max-age=60", ["no-store"]), ("max-age=60", ["no-store"]), ("private, max-age=60", ["private, max-age=60"]), ("no-store", ["no-store"])],
    )
    def test_no_shared_cache_may_keep_what_the_session_shaped(self, world: Any, theirs: str, ours: list[str]) -> None:
        def handler(session: Any) -> Page:
            return Page(str(session.get("n")).encode(), headers=[("Cache-Control", theirs)])

        assert self.get(world.node(), handler).all("Cache-Control") == ours

    def test_a_page_that_ignores_the_session_keeps_its_cache_control(self, world: Any) -> None:
        def handler(session: Any) -> Page:
            return Page(headers=[("Cache-Control", "public, max-age=60"), ("Vary", "Accept")])

        answer = self.get(world.node(), handler, self.begin(world.node()))
        assert (answer.all("Cache-Control"), answer.all("Vary")) == (["public, max-age=60"], ["Accept"])

    def test_vary_is_added_to_and_not_repeated(self, world: Any) -> None:
        def handler(vary: str) -> Handler:
            return lambda session: Page(str(session.get("n")).encode(), headers=[("Vary", vary)])

        assert ", ".join(self.get(world.node(), handler("Accept")).all("Vary")) == "Accept, Cookie"
        assert self.get(world.node(), handler("Accept, cookie")).all("Vary") == ["Accept, cookie"]
        assert self.get(world.node(), handler("*")).all("Vary") == ["*"]

    # --- other answers ---

    def test_head_commits_and_sets_the_cookie_without_a_body(self, world: Any) -> None:
        answer = self.get(world.node(), count, method="HEAD")
        assert (answer.status, answer.body) == (200, b"")
        assert answer.cookie is not None
        assert answer.commits_at_head == 1

    @pytest.mark.parametrize("status", [404, 500])
    def test_an_error_page_that_the_application_made_commits_like_any_other(self, world: Any, status: int) -> None:
        def handler(session: Any) -> Page:
            session["seen"] = True
            return Page(b"sorry", status)

        answer = self.get(world.node(), handler)
        assert (answer.status, answer.body) == (status, b"sorry")
        assert (answer.cookie is not None) == (status < 500 or self.saves_error_pages)

    def test_an_exception_that_leaves_the_application_saves_nothing(self, world: Any) -> None:
        def handler(session: Any) -> Page:
            session["half"] = True
            raise RuntimeError("planted by the test")

        answer = self.get(world.node(), handler)
        assert answer.status == 500
        assert answer.cookie is None
        assert world.count() == 0

    def test_the_applications_own_cookies_stay(self, world: Any) -> None:
        def handler(session: Any) -> Page:
            session["n"] = 1
            return Page(headers=[("Set-Cookie", "theme=dark"), ("Set-Cookie", "lang=en")])

        answer = self.get(world.node(), handler)
        assert answer.all("Set-Cookie")[:2] == ["theme=dark", "lang=en"]
        assert len(answer.all("Set-Cookie")) == 3

    def test_a_commit_that_wants_confirmations_is_waited_for(self, world: Any) -> None:
        def handler(session: Any) -> Page:
            session["n"] = 1
            session.acks = "one"
            return Page(b"confirmed")

        node = world.node()
        answer = self.get(node, handler)
        assert (answer.status, answer.body) == (200, b"confirmed")
        assert [receipt.waited for receipt in node.receipts] == [True]
