"""Virtual time: one queue of events for the world, and each process's own view of it.

The queue is a heap of plain tuples in the order (time, sequence), so events of one instant run in the order in which they
were put in, on every machine and under every hash seed. A `ProcessClock` is what one process takes for time: monotonic,
with an offset and a rate of its own. While its process is stopped (SIGSTOP) its calls do not run; on `resume` those that
came due run late, in order, before anything else, as a reactor's do after SIGCONT. A monotonic clock never goes back; the
`wall` clock may, by any step, and nobody may base a timeout on it: `NoWallClock` makes sure that the product does not look.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from types import TracebackType
from typing import Any

from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

__all__ = ["DelayedCall", "EventQueue", "NoWallClock", "ProcessClock"]

_WALL_EPOCH_S = 1_700_000_000.0


class EventQueue:
    """`now`: virtual seconds since the world began."""

    __slots__ = ("_heap", "_next", "now", "ran")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[Any], object], Any]] = []
        self._next = count().__next__
        self.now = 0.0
        self.ran = 0  #: events so far

    def at(self, when: float, act: Callable[[Any], object], argument: Any) -> None:
        """`act(argument)` at this time; a time that has passed means: as the last event of now."""
        heappush(self._heap, (when if when > self.now else self.now, self._next(), act, argument))

    def run_until(self, until: float) -> None:
        """Run all events up to and including this time, and be there."""
        heap, ran = self._heap, 0
        try:
            while heap and heap[0][0] <= until:
                self.now, _, act, argument = heappop(heap)
                ran += 1
                act(argument)
        finally:
            self.ran += ran
        self.now = until

    def __len__(self) -> int:
        return len(self._heap)


@implementer(IDelayedCall)
class DelayedCall:
    """`time` is in the process's seconds, `due` in the world's; an event of the queue that is not for `due` is out of date."""

    __slots__ = ("_clock", "args", "called", "due", "func", "kwargs", "time")

    def __init__(self, clock: ProcessClock, at: float, func: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._clock = clock
        self.time = at
        self.due = 0.0
        self.func: Callable[..., object] | None = func
        self.args = args
        self.kwargs = kwargs
        self.called = False

    def active(self) -> bool:
        return self.func is not None

    def getTime(self) -> float:
        return self.time

    def cancel(self) -> None:
        self._check()
        self.func = None
        del self._clock.calls[self]

    def reset(self, secondsFromNow: float) -> None:
        self._check()
        self.time = self._clock.seconds() + secondsFromNow
        self._clock.schedule(self)

    def delay(self, secondsLater: float) -> None:
        self._check()
        self.time += secondsLater
        self._clock.schedule(self)

    def _check(self) -> None:
        if self.func is None:
            raise AlreadyCalled if self.called else AlreadyCancelled


@implementer(IReactorTime)
class ProcessClock:
    """`offset_s`: what the process's monotonic clock says at the beginning of the world."""

    def __init__(self, queue: EventQueue, offset_s: float = 0.0) -> None:
        self.queue = queue
        self.calls: dict[DelayedCall, None] = {}
        self.paused = False
        self.dead = False
        self.wall_reads = 0
        self._world_anchor = queue.now
        self._own_anchor = queue.now + offset_s
        self._rate = 1.0
        self._floor = self._own_anchor  # a call that runs has its time reached, whatever rounding says
        self._wall_offset = _WALL_EPOCH_S - offset_s
        self._late: list[DelayedCall] = []

    # -- IReactorTime

    def seconds(self) -> float:
        now = self._own_anchor + (self.queue.now - self._world_anchor) * self._rate
        return now if now > self._floor else self._floor

    def callLater(self, delay: float, callable: Callable[..., object], *args: Any, **kw: Any) -> DelayedCall:  # noqa: A002
        if not delay >= 0:
            raise AssertionError(f"{delay} is not greater than or equal to 0 seconds")
        call = DelayedCall(self, self.seconds() + delay, callable, args, kw)
        if self.dead:
            call.func = None
        else:
            self.calls[call] = None
            self.schedule(call)
        return call

    def getDelayedCalls(self) -> list[DelayedCall]:
        return list(self.calls)

    # -- faults

    def set_rate(self, rate: float) -> None:
        """From now on the clock runs this much faster (1.01) or slower (0.99) than the world's."""
        self._own_anchor, self._world_anchor, self._rate = self.seconds(), self.queue.now, rate
        late = set(self._late)
        for call in self.calls:
            if call not in late:
                self.schedule(call)

    def step_wall(self, by_s: float) -> None:
        """Somebody set the date. Nothing that is monotonic notices."""
        self._wall_offset += by_s

    def wall(self) -> float:
        """What `time.time()` would say. The product must not ask: `wall_reads` counts."""
        self.wall_reads += 1
        return self.seconds() + self._wall_offset

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        """Run what is late, in order: those calls only that came due while paused, as one pass of a reactor does."""
        self.paused = False
        late, self._late = self._late, []
        for call in late:
            if call.func is not None and call.due <= self.queue.now:
                self._run(call)

    def die(self) -> None:
        """No call of this process runs any more."""
        self.dead = True
        for call in self.calls:
            call.func = None
        self.calls.clear()
        self._late.clear()

    # -- running

    def schedule(self, call: DelayedCall) -> None:
        now = self.queue.now
        due = self._world_anchor + (call.time - self._own_anchor) / self._rate
        call.due = due if due > now else now
        self.queue.at(call.due, self._due, call)

    def _due(self, call: DelayedCall) -> None:
        if call.func is None or call.due != self.queue.now:
            return
        if self.paused:
            self._late.append(call)
        else:
            self._run(call)

    def _run(self, call: DelayedCall) -> None:
        if call.time > self._floor:
            self._floor = call.time
        func, call.func, call.called = call.func, None, True
        del self.calls[call]
        func(*call.args, **call.kwargs)  # type: ignore[misc]


class NoWallClock:
    """While entered, a module of the product that asks the machine for the time fails with `AssertionError`."""

    _NAMES = ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "sleep")

    def __init__(self) -> None:
        self._real: dict[str, Any] = {}

    def __enter__(self) -> None:
        self._real = {name: getattr(time, name) for name in self._NAMES}
        for name, real in self._real.items():
            setattr(time, name, _guarded(name, real))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for name, real in self._real.items():
            setattr(time, name, real)


def _guarded(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(*args: Any) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        assert caller.partition(".")[0] != "caterwaul", f"{caller} asks time.{name}: time comes from reactor.seconds()"
        return real(*args)

    return guarded
