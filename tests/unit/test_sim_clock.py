"""Virtual time behaves as the monotonic clock and the timers of a real process do."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from zope.interface.verify import verifyObject

from ..sim.clock import EventQueue, NoWallClock, ProcessClock


def test_events_of_one_instant_run_in_the_order_in_which_they_were_put_in() -> None:
    queue = EventQueue()
    seen: list[Any] = []
    for name in "abc":
        queue.at(1.0, seen.append, name)
    queue.at(0.5, seen.append, "first")
    queue.at(1.0, lambda _: queue.at(0.2, seen.append, "too late for its time, so last of now"), None)
    queue.run_until(1.0)
    assert seen == ["first", "a", "b", "c", "too late for its time, so last of now"]
    assert (queue.now, queue.ran, len(queue)) == (1.0, 6, 0)


def test_it_is_a_twisted_clock() -> None:
    clock = ProcessClock(EventQueue(), 17.0)
    assert verifyObject(IReactorTime, clock)
    assert verifyObject(IDelayedCall, clock.callLater(1.0, int))
    assert clock.seconds() == 17.0
    with pytest.raises(AssertionError):
        clock.callLater(-1.0, int)


def test_a_looping_call_beats_at_each_of_its_times() -> None:
    queue = EventQueue()
    clock = ProcessClock(queue)
    beats: list[float] = []
    loop = LoopingCall(lambda: beats.append(clock.seconds()))
    loop.clock = clock
    loop.start(1.0, now=False)
    queue.run_until(4.5)
    assert beats == [1.0, 2.0, 3.0, 4.0]


def test_calls_can_be_cancelled_reset_and_delayed_once_and_only_while_they_are_active() -> None:
    queue = EventQueue()
    clock = ProcessClock(queue)
    seen: list[Any] = []
    cancelled, reset, delayed = (clock.callLater(1.0, seen.append, name) for name in ("cancelled", "reset", "delayed"))
    cancelled.cancel()
    reset.reset(3.0)
    delayed.delay(1.0)
    assert (reset.getTime(), delayed.getTime(), clock.getDelayedCalls()) == (3.0, 2.0, [reset, delayed])
    queue.run_until(1.9)
    assert seen == []
    queue.run_until(9.0)
    assert seen == ["delayed", "reset"]
    assert not reset.active()
    assert clock.getDelayedCalls() == []
    with pytest.raises(AlreadyCalled):
        reset.cancel()
    with pytest.raises(AlreadyCancelled):
        cancelled.delay(1.0)


def test_a_call_brought_forward_runs_once() -> None:
    queue = EventQueue()
    clock = ProcessClock(queue)
    seen: list[Any] = []
    call = clock.callLater(5.0, seen.append, "x")
    call.reset(1.0)
    call.reset(5.0)
    queue.run_until(2.0)
    assert seen == []
    queue.run_until(10.0)
    assert seen == ["x"]


def test_a_paused_process_runs_its_late_calls_in_order_when_it_goes_on_and_its_clock_went_on() -> None:
    queue = EventQueue()
    clock = ProcessClock(queue)
    seen: list[Any] = []
    for delay in (3.0, 1.0, 2.0, 8.0):
        clock.callLater(delay, seen.append, delay)
    clock.pause()
    queue.run_until(5.0)
    assert seen == []
    clock.resume()
    assert (seen, clock.seconds()) == ([1.0, 2.0, 3.0], 5.0)
    queue.run_until(9.0)
    assert seen == [1.0, 2.0, 3.0, 8.0]


def test_a_late_call_may_cancel_another_late_one_and_what_it_starts_runs_after_it() -> None:
    queue = EventQueue()
    clock = ProcessClock(queue)
    seen: list[Any] = []

    def first() -> None:
        seen.append("first")
        other.cancel()
        clock.callLater(0.0, seen.append, "started late")

    clock.callLater(1.0, first)
    other = clock.callLater(2.0, seen.append, "cancelled")
    clock.pause()
    queue.run_until(5.0)
    clock.resume()
    assert seen == ["first"]
    queue.run_until(5.0)
    assert seen == ["first", "started late"]


def test_a_dead_process_runs_nothing_and_starts_nothing() -> None:
    queue = EventQueue()
    clock = ProcessClock(queue)
    seen: list[Any] = []
    clock.callLater(1.0, seen.append, "before")
    clock.die()
    assert not clock.callLater(1.0, seen.append, "after").active()
    queue.run_until(5.0)
    assert seen == []


def test_a_clock_that_is_fast_runs_its_calls_early_by_the_worlds_time() -> None:
    queue = EventQueue()
    clock = ProcessClock(queue)
    world_times: list[float] = []
    clock.callLater(10.0, lambda: world_times.append(queue.now))
    clock.set_rate(2.0)
    queue.run_until(20.0)
    assert world_times == [5.0]
    assert clock.seconds() == 40.0


def test_the_wall_clock_may_jump_and_the_monotonic_one_does_not_notice() -> None:
    queue = EventQueue()
    clock = ProcessClock(queue, 100.0)
    before = clock.wall()
    clock.step_wall(-3600.0)
    queue.run_until(1.0)
    assert clock.wall() == before - 3600.0 + 1.0
    assert (clock.seconds(), clock.wall_reads) == (101.0, 2)


@given(
    st.floats(0, 1e6),
    st.lists(st.tuples(st.floats(0.001, 5.0), st.floats(0.5, 2.0), st.booleans()), max_size=20),
    st.lists(st.floats(0.0, 30.0), min_size=1, max_size=10),
)
def test_no_clock_goes_back_and_no_call_is_early_by_its_own_clock(offset: float, steps: list[tuple[float, float, bool]], delays: list[float]) -> None:
    queue = EventQueue()
    clock = ProcessClock(queue, offset)
    early: list[float] = []
    for delay in delays:
        due = clock.seconds() + delay
        clock.callLater(delay, lambda due=due: early.append(due) if clock.seconds() < due else None)
    last = clock.seconds()
    for lasts, rate, paused in steps:
        clock.set_rate(rate)
        if paused:
            clock.pause()
        elif clock.paused:
            clock.resume()
        queue.run_until(queue.now + lasts)
        assert clock.seconds() >= last
        last = clock.seconds()
    if clock.paused:
        clock.resume()
    queue.run_until(queue.now + 100.0)
    assert early == []
    assert clock.getDelayedCalls() == []


def test_the_product_may_not_ask_the_machine_for_the_time() -> None:
    asks: dict[str, Any] = {"__name__": "caterwaul.membership.group", "time": time}
    with NoWallClock():
        assert time.monotonic() > 0
        with pytest.raises(AssertionError, match=r"caterwaul\.membership\.group asks time\.time"):
            exec("time.time()", asks)
    exec("now = time.time()", asks)
    assert asks["now"] > 0
