"""Calls from other threads: in order, once each, and what wakes the reactor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from caterwaul.cluster.waking import Waking

COMES_BACK_S = 0.001


class Reactor(Clock):
    """Whose thread runs what it was woken for when the test says so."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.woken: list[Callable[[], None]] = []
        self.wakes = 0

    def callFromThread(self, call: Callable[[], None]) -> None:
        self.woken.append(call)
        self.wakes += 1

    def turn(self) -> None:
        woken, self.woken = self.woken, []
        for call in woken:
            call()


class Fixture:
    def __init__(self) -> None:
        self.reactor = Reactor()
        self.done: list[Any] = []
        self.waking = Waking(self.reactor, lambda call: call())

    def soon(self, what: Any, lazily: bool = False) -> None:
        self.waking.soon(lambda: self.done.append(what), lazily)

    def wait(self, seconds: float = COMES_BACK_S) -> None:
        self.reactor.advance(seconds)


def test_what_nobody_waits_for_wakes_the_reactor_once_a_millisecond() -> None:
    one = Fixture()
    for n in range(5):
        one.soon(n, lazily=True)
        one.reactor.turn()
        one.wait(COMES_BACK_S / 10)
    assert one.reactor.wakes == 1
    assert one.done == [0]
    one.wait()
    assert one.done == [0, 1, 2, 3, 4]


def test_the_reactor_comes_back_for_as_long_as_there_is_something() -> None:
    one = Fixture()
    one.soon(0, lazily=True)
    one.reactor.turn()
    for n in range(1, 5):
        one.soon(n, lazily=True)
        one.wait()
    assert (one.reactor.wakes, one.done) == (1, [0, 1, 2, 3, 4])
    one.wait()
    assert not one.reactor.getDelayedCalls()  # an idle process sleeps
    one.soon(5, lazily=True)
    assert one.reactor.wakes == 2


def test_what_somebody_waits_for_wakes_it_at_once_and_takes_along_what_came_before() -> None:
    one = Fixture()
    one.soon("a", lazily=True)
    one.reactor.turn()
    one.soon("b", lazily=True)
    one.soon("c")
    one.soon("d", lazily=True)
    one.reactor.turn()
    assert one.done == ["a", "b", "c", "d"]


def test_what_is_added_by_what_runs_comes_later() -> None:
    one = Fixture()
    one.waking.soon(lambda: one.soon("next"))
    one.reactor.turn()
    assert one.done == []
    one.reactor.turn()
    assert one.done == ["next"]


def test_when_it_stops_nothing_is_left_and_no_timer() -> None:
    one = Fixture()
    one.soon("a", lazily=True)
    one.reactor.turn()
    one.soon("b", lazily=True)
    one.waking.stop()
    assert one.done == ["a", "b"]
    assert not one.reactor.getDelayedCalls()
    one.soon("c", lazily=True)
    one.reactor.turn()
    assert one.done == ["a", "b", "c"]
    assert not one.reactor.getDelayedCalls()


def test_one_of_several_may_stop_it() -> None:
    one = Fixture()
    one.waking.soon(one.waking.stop)
    one.soon("a")
    one.reactor.turn()
    assert one.done == ["a"]


def test_what_fails_costs_only_itself() -> None:
    one = Fixture()
    one.soon("a", lazily=True)
    one.reactor.turn()

    def fail() -> None:
        raise MemoryError("planted by the test")

    one.waking.soon(fail, lazily=True)
    one.soon("b", lazily=True)
    one.wait()
    assert one.done == ["a", "b"]
    one.soon("c", lazily=True)
    one.wait()
    assert (one.reactor.wakes, one.done) == (1, ["a", "b", "c"])


def test_what_stops_it_from_inside_leaves_no_timer() -> None:
    one = Fixture()
    one.soon("a", lazily=True)
    one.reactor.turn()
    one.waking.soon(one.waking.stop, lazily=True)
    one.soon("b", lazily=True)
    one.wait()
    assert one.done == ["a", "b"]
    assert not one.reactor.getDelayedCalls()


STEPS = ["lazily", "at once", "adds lazily", "adds", "raises", "turn", "wait", "half", "stop", "stops"]


@given(st.lists(st.sampled_from(STEPS), max_size=60))
def test_everything_runs_once_in_its_order(steps: list[str]) -> None:
    one = Fixture()
    expected: list[Any] = []
    added: list[Any] = []

    def adds(n: int, lazily: bool) -> None:
        one.done.append(n)
        added.append((n, "more"))
        one.soon((n, "more"), lazily)

    def raises(n: int) -> None:
        one.done.append(n)
        raise RuntimeError("planted by the test")

    for n, step in enumerate(steps):
        match step:
            case "turn":
                one.reactor.turn()
            case "wait" | "half":
                one.wait(COMES_BACK_S / (1 if step == "wait" else 2))
            case "stop":
                one.waking.stop()
            case "stops":
                one.waking.soon(one.waking.stop)
            case "lazily" | "at once":
                expected.append(n)
                one.soon(n, step == "lazily")
            case "raises":
                expected.append(n)
                one.waking.soon(lambda n=n: raises(n), True)  # type: ignore[misc]
            case _:
                expected.append(n)
                one.waking.soon(lambda n=n, step=step: adds(n, "lazily" in step), True)  # type: ignore[misc]
    for _ in range(3):
        one.reactor.turn()
        one.wait()
    assert [what for what in one.done if isinstance(what, int)] == expected
    assert [what for what in one.done if not isinstance(what, int)] == added
