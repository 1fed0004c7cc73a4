"""The contract of web fronts where requests of one session overlap: a slow one, and another that begins and ends within it."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from caterwaul.managers.web.cookies import CookieSettings

from .fronts import Answer, Call, Driven, Handler, Page, count, cycle, end, look

SETTINGS = [CookieSettings(), CookieSettings(max_age_s=600)]


def login(session: Any) -> Page:
    cycle(session)
    session["user"] = "ann"
    return Page()


def logout(session: Any) -> Page:
    end(session)
    return Page()


def write(session: Any) -> None:
    session["slow"] = session.get("n")


def read(session: Any) -> None:
    session.get("n")


class ParallelContract(Driven):
    """For every manager. `node2` is where the slow request is, if it is not where the other one is."""

    def overlap(self, world: Any, slow: Any, quick: Handler, settings: CookieSettings, elsewhere: bool = False) -> tuple[Any, Any, str]:
        """(answer of the slow request, answer of the quick one, cookie that both came with)."""
        node = world.node("node1")
        cookie = self.get(node, count, settings=settings).cookie
        assert cookie is not None
        got = []

        def outer(session: Any) -> Page:
            read(session)
            got.append(self.get(world.node("node1"), quick, cookie, settings=settings))
            slow(session)
            return Page(b"slow")

        answer = self.get(world.node("node2") if elsewhere else node, outer, cookie, settings=settings)
        assert (answer.status, answer.body) == (200, b"slow") or (answer.status == 400 and self.interrupts)
        return answer, got[0], cookie

    @pytest.mark.parametrize("settings", SETTINGS, ids=["session", "aged"])
    @pytest.mark.parametrize("slow", [read, write])
    @pytest.mark.parametrize("elsewhere", [False, True])
    def test_a_slow_request_does_not_undo_a_logout(self, world: Any, slow: Any, settings: CookieSettings, elsewhere: bool) -> None:
        answer, _, cookie = self.overlap(world, slow, logout, settings, elsewhere)
        assert answer.cookie in (None, ""), "it does not give the browser the dead id again"
        assert world.count() == 0
        assert self.get(world.node(), look, cookie, settings=settings).body == b"[]"

    @pytest.mark.parametrize("settings", SETTINGS, ids=["session", "aged"])
    @pytest.mark.parametrize("slow", [read, write])
    @pytest.mark.parametrize("elsewhere", [False, True])
    def test_a_slow_request_does_not_undo_a_login(self, world: Any, slow: Any, settings: CookieSettings, elsewhere: bool) -> None:
        answer, at_login, cookie = self.overlap(world, slow, login, settings, elsewhere)
        assert answer.all("Set-Cookie") == [], "the browser keeps the new id"
        assert at_login.cookie is not None
        assert self.get(world.node(), look, at_login.cookie, settings=settings).body == b"[('n', 1), ('user', 'ann')]"
        assert self.get(world.node(), look, cookie, settings=settings).body == b"[]"


class ThreadsContract(Driven):
    """Of fronts that are driven in a thread each."""

    def test_two_threads_on_one_session_both_keep_their_changes(self, world: Any) -> None:
        node = world.node()
        cookie = self.begin(node)
        barrier = threading.Barrier(2, timeout=10)
        answers: list[Answer] = []

        def run(name: str) -> None:
            def handler(session: Any) -> Page:
                barrier.wait()
                session[name] = session["n"]
                barrier.wait()
                return Page()

            answers.append(self.drive(Call(node, handler, [f"__Host-sid={cookie}"])))

        threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [answer.status for answer in answers] == [200, 200]
        assert world.contents(cookie.partition(".")[0]) == {"n": 1, "a": 1, "b": 1}
