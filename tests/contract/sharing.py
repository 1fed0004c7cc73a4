"""The contract of web fronts where requests share a session, and where there is none to be had.

What two requests at the same time do to one session, with and without its lock; what happens without a running manager; commits at each assignment;
and values that a process cannot decode.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from caterwaul.managers.merging_types import Counter, MergingSet
from caterwaul.managers.throttle import Throttle

from .fronts import Answer, Call, Page, count, ignore, look
from .turns import TurnsContract


class Parcel:
    """Of a class that not every process knows."""

    def __init__(self, text: str) -> None:
        self.text = text


def add(session: Any) -> None:
    session["n"] = session["n"] + 1


class SharingContract(TurnsContract):
    """`locking` is a world whose members grant locks, and go on by themselves while it is `moving`."""

    locks = "thread"  #: or "task", "deferred": the form of `session.lock()` that its requests use

    # --- two requests at once ---

    def nested(self, node: Any, cookie: str, outer: Callable[[Any], object], inner: Callable[[Any], object]) -> Answer:
        """`inner`'s request begins and ends while `outer`'s goes on."""

        def handler(act: Callable[[Any], object]) -> Callable[[Any], Page]:
            return lambda session: (act(session), Page())[1]

        def within(session: Any) -> Page:
            session.get("n")
            assert self.drive(Call(node, handler(inner), [f"__Host-sid={cookie}"])).status == 200
            outer(session)
            return Page()

        return self.get(node, within, cookie)

    def test_of_two_requests_at_once_that_set_one_attribute_the_last_commit_stands(self, world: Any) -> None:
        node = world.node()
        cookie = self.begin(node)
        assert self.nested(node, cookie, add, add).status == 200
        assert world.contents(cookie.partition(".")[0]) == {"n": 2}, "each had read 1: one addition is lost, and nothing else"

    def test_counters_and_sets_lose_nothing(self, locking: Any) -> None:
        def begin(session: Any) -> Page:
            session["hits"], session["seen"], session["n"] = Counter(), MergingSet(), 1
            return Page()

        def visit(page: str) -> Callable[[Any], None]:
            return lambda session: (session["hits"].add(1), session["seen"].add(page))[1]

        node = locking.node()
        cookie = self.get(node, begin).cookie
        assert cookie is not None
        assert self.nested(node, cookie, visit("a"), visit("b")).status == 200
        contents = locking.contents(cookie.partition(".")[0])
        assert (contents["hits"].value, set(contents["seen"])) == (2, {"a", "b"})

    def test_under_the_lock_two_requests_at_once_add_to_one_number_and_none_is_lost(self, locking: Any) -> None:
        node = locking.node()
        cookie = self.begin(node)
        barrier = threading.Barrier(2, timeout=10)

        def plain(session: Any) -> Page:
            assert session["n"] == 1
            barrier.wait()
            with session.lock() as locked:
                add(locked)
            return Page()

        async def task(session: Any) -> Page:
            assert session["n"] == 1
            barrier.wait()
            async with session.lock() as locked:
                add(locked)
            return Page()

        def deferred(session: Any) -> Any:
            assert session["n"] == 1
            return session.lock().run(add).addCallback(lambda _: Page())

        handler: Any = {"thread": plain, "task": task, "deferred": deferred}[self.locks]
        with locking.moving():
            answers = self.drive_twice(Call(node, handler, [f"__Host-sid={cookie}"]))
        assert [answer.status for answer in answers] == [200, 200]
        assert locking.contents(cookie.partition(".")[0]) == {"n": 3}

    # --- no session to be had ---

    def without_manager(self, node: Any, how: str, on_failure: str) -> None:
        node.settings = replace(node.settings, on_failure=on_failure)
        if how == "stopped":
            node.is_running = False
        else:

            def fail(*_: Any) -> Any:
                raise RuntimeError("planted by the test")

            node.open_local = fail

    @pytest.mark.parametrize("how", ["stopped", "broken"])
    def test_without_a_running_manager_the_answer_is_503_and_the_cookie_stays(self, world: Any, how: str) -> None:
        cookie = self.begin(world.node())
        node = world.node()
        self.without_manager(node, how, "error")
        for brought in (cookie, None):
            answer = self.get(node, count, brought)
            assert (answer.status, answer.all("Retry-After"), answer.all("Set-Cookie")) == (503, ["1"], [])
            assert b"not available" in answer.body
        assert node.open_failures == 2
        assert self.get(world.node(), count, cookie).body == b"2"

    @pytest.mark.parametrize("how", ["stopped", "broken"])
    def test_or_an_empty_session_that_forgets_and_the_cookie_stays(self, world: Any, how: str) -> None:
        def busy(session: Any) -> Page:
            assert dict(session) == {}
            assert getattr(session, "underneath", session).forgets
            session["late"] = [1]
            assert session["late"] == [1]
            return Page(b"empty")

        cookie = self.begin(world.node())
        node = world.node()
        self.without_manager(node, how, "serve-empty")
        for brought in (cookie, None):
            answer = self.get(node, busy, brought)
            assert (answer.status, answer.body, answer.all("Set-Cookie")) == (200, b"empty", [])
            assert self.get(node, ignore, brought).status == 200
        assert (node.commits, world.count()) == (0, 1)
        assert node.open_failures >= 2
        assert self.get(world.node(), look, cookie).body == b"[('n', 1)]"

    # --- commits at each assignment ---

    def test_with_immediate_writes_others_see_each_assignment_while_the_request_goes_on(self, locking: Any) -> None:
        def failing(session: Any) -> Page:
            session["n"] = 5
            del session["gone"]
            seen.append(self.drive(Call(locking.node(), look, [f"__Host-sid={cookie}"])).body)
            session["n"] = 6
            raise RuntimeError("planted by the test")

        def begin(session: Any) -> Page:
            session["n"] = session["gone"] = 1
            return Page()

        seen: list[bytes] = []
        cookie = self.get(locking.node(), begin).cookie
        assert cookie is not None
        node = locking.node()
        node.settings = replace(node.settings, write="immediate")
        assert self.get(node, failing, cookie).status == 500
        assert seen == [b"[('n', 5)]"]
        assert locking.contents(cookie.partition(".")[0]) == {"n": 6}
        before = node.commits
        assert self.get(node, count, cookie).body == b"7"
        assert node.commits == before + 1, "nothing is left to commit at the end"

    def test_with_immediate_writes_a_session_begins_with_its_first_and_limits_hold(self, locking: Any) -> None:
        node = locking.node()
        node.settings = replace(node.settings, write="immediate", creations_per_s=0.1)
        node.throttle = Throttle(node.settings, lambda: 0.0)
        cookie = self.begin(node)
        assert self.get(locking.node("node2"), look, cookie).body == b"[('n', 1)]"
        refused = self.get(node, count)
        assert (refused.status, refused.cookie) == (429, None)
        assert locking.count() == 1

    # --- values that cannot be decoded ---

    def test_a_value_that_this_process_cannot_decode_is_absent_and_stays_for_those_who_can(self, locking: Any) -> None:
        def begin(session: Any) -> Page:
            session["parcel"], session["n"] = Parcel("fragile"), 1
            return Page()

        def work(session: Any) -> Page:
            session["n"] = session["n"] + len(list(session.keys()))
            assert "parcel" not in session
            return Page(repr((sorted(session.keys()), session.get("parcel"), set(session.quarantined))).encode())

        def unpack(session: Any) -> Page:
            return Page(f"{session['parcel'].text} {session['n']} {set(session.quarantined)}".encode())

        knows, does_not = locking.node("node1"), locking.node("node2")
        knows.types.register(Parcel, "parcel", lambda parcel: parcel.text, Parcel)
        cookie = self.get(knows, begin).cookie
        answer = self.get(does_not, work, cookie)
        assert (answer.status, answer.body) == (200, b"(['n'], None, {'parcel'})")
        assert self.get(knows, unpack, cookie).body == b"fragile 2 set()"
