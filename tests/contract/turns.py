"""The contract of web fronts where requests of one session take turns (`managers.NAME.turns`)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.task import deferLater

from caterwaul.managers.settings import ManagerSettings

from .delta_world import DeltaWorld
from .fronts import Answer, Call, Driven, Handler, Page, count, cycle, end, ignore, look


class TurnsContract(Driven):
    """Of every front."""

    locks = "thread"

    @pytest.fixture
    def refusing_turns(self) -> DeltaWorld:
        return DeltaWorld(ManagerSettings(turns="refuse"))

    @pytest.fixture
    def queueing(self) -> DeltaWorld:
        return DeltaWorld(ManagerSettings(turns="queue"))

    def within(self, node: Any, cookie: str, brought: str | None, outer: Handler = ignore, **more: Any) -> tuple[Answer, Answer]:
        """(answer of a request that comes while another one goes on, answer of that)."""
        answers: list[Answer] = []

        def handler(session: Any) -> Page:
            session.get("n")
            answers.append(self.drive(Call(node, count, [] if brought is None else [f"__Host-sid={brought}"])))
            return outer(session)

        answers.append(self.get(node, handler, cookie, **more))
        return answers[0], answers[1]

    def test_a_second_request_of_a_session_gets_429_while_the_first_goes_on(self, refusing_turns: Any) -> None:
        node = refusing_turns.node()
        cookie, other = self.begin(node), self.begin(node)
        refused, answer = self.within(node, cookie, cookie)
        assert (refused.status, refused.all("Retry-After"), refused.all("Set-Cookie")) == (429, ["1"], [])
        assert b"being served" in refused.body
        assert answer.status == 200
        for brought in (other, None):
            served, answer = self.within(node, cookie, brought)
            assert (served.status, answer.status) == (200, 200)
        assert self.get(node, look, cookie).body == b"[('n', 1)]"
        assert node.open_failures == 0

    def test_a_turn_is_given_back_however_the_request_ends(self, refusing_turns: Any) -> None:
        def stream(session: Any) -> Page:
            def body() -> Iterator[bytes]:
                yield b"first"
                session["late"] = True
                yield b"last"

            return Page(body())

        def login(session: Any) -> Page:
            cycle(session)
            return Page()

        def logout(session: Any) -> Page:
            end(session)
            return Page()

        node = refusing_turns.node()
        cookie = self.begin(node)
        for handler in (count, look, stream, ignore, lambda session: Page(b"", 500), lambda session: Page(b"", 404)):
            assert self.get(node, handler, cookie).status in (200, 404, 500)
            assert len(node.manager.in_turn.turns) == 0
        after = self.get(node, login, cookie).cookie
        for brought in (cookie, after):
            assert self.get(node, look, brought).status == 200
        assert self.get(node, logout, after).status == 200
        for brought in (after, "A" * 43):
            assert self.get(node, look, brought).status == 200
        refusing_turns.make_unknown(cookie.partition(".")[0])
        assert self.get(node, look, cookie).status == 200
        assert (len(node.manager.in_turn.turns), node.manager.in_turn.turns.refused) == (0, 0)

    def test_an_event_stream_that_has_begun_holds_nobody_up(self, refusing_turns: Any) -> None:
        node = refusing_turns.node()
        cookie = self.begin(node)
        statuses: list[int] = []

        def stream(session: Any) -> Page:
            def body() -> Iterator[bytes]:
                yield b"data: 1\n\n"
                beside = threading.Thread(target=lambda: statuses.append(self.drive(Call(node, count, [f"__Host-sid={cookie}"])).status))
                beside.start()  # this thread may run a loop
                beside.join(10)
                yield b"data: 2\n\n"

            session.get("n")
            return Page(body(), 200, [("Content-Type", "text/event-stream")])

        assert self.get(node, stream, cookie).body == b"data: 1\n\ndata: 2\n\n"
        assert statuses == [200]

    def test_a_second_request_waits_and_reads_what_the_first_wrote(self, queueing: Any) -> None:
        node = queueing.node()
        cookie = self.begin(node)
        turns = node.manager.in_turn.turns
        take, queued, order = turns.take, threading.Event(), []

        def taking(*wanted: Any) -> Any:
            turn, is_first = take(*wanted)
            if not is_first:
                queued.set()
            return turn, is_first

        def plain(session: Any) -> Page:
            order.append("begin")
            n = session["n"]
            assert queued.wait(10), "the other one waits by now"
            session["n"] = n + 1
            order.append("end")
            return Page()

        turns.take = taking
        handler: Any = plain
        if self.locks == "deferred":  # one thread, so the other one comes later
            queued.set()
            handler = lambda session: deferLater(queueing.net.clock, 0.1, plain, session)  # noqa: E731
        answers = self.drive_twice(Call(node, handler, [f"__Host-sid={cookie}"]))
        assert [answer.status for answer in answers] == [200, 200]
        assert order == ["begin", "end"] * 2
        assert queueing.contents(cookie.partition(".")[0]) == {"n": 3}
        assert (turns.waits, len(turns)) == (1, 0)

    def test_who_has_waited_too_long_gets_503(self, queueing: Any) -> None:
        node = queueing.node()
        cookie = self.begin(node)
        queueing.time_passes = True
        refused, answer = self.within(node, cookie, cookie)
        assert (refused.status, refused.all("Set-Cookie"), answer.status) == (503, [], 200)
        assert 4.9 < queueing.net.clock.seconds() < 5.2
        assert self.get(node, count, cookie).body == b"2"
