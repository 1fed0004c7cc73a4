"""Runs any core: feeds it the time, performs its effects in order, and owns its one timer.

The only place that calls `callLater`. A core says in `deadline()` when it wants its next `tick`; after every input the
driver moves the one `DelayedCall` there. Two traps are closed here: an exception in a tick is counted and logged and the
loop goes on (a `LoopingCall` would be dead for good), and a core that asks to be woken "now" for ever is a bug that fails
loudly instead of hanging the reactor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from .effects import Effect

__all__ = ["Core", "Driver"]

_log = Logger()
_RETRY_S = 0.5  # after a tick that raised: soon, and not at once


class Core(Protocol):
    def tick(self, now: float) -> Iterable[Effect]: ...

    def deadline(self) -> float | None:
        """When to tick next, in the driver's seconds; None: only inputs matter."""


class Driver:
    """`clock.seconds()` must be monotonic. Reactor thread only."""

    def __init__(self, core: Core, clock: IReactorTime, perform: Callable[[Any], None]) -> None:
        self._core = core
        self._clock = clock
        self._perform = perform
        self._call: IDelayedCall | None = None
        self._running = False
        self.errors = 0  #: ticks and effects that raised

    def start(self) -> None:
        self._running = True
        self._arm()

    def stop(self) -> None:
        self._running = False
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None

    def run(self, effects: Iterable[Effect]) -> None:
        """Perform the effects that an input returned, then set the timer anew."""
        for effect in effects:
            self._perform(effect)
        self._arm()

    def rearm(self) -> None:
        """The core's deadline changed by something that had no effects."""
        self._arm()

    def _tick(self) -> None:
        self._call = None
        now = self._clock.seconds()
        try:
            effects = list(self._core.tick(now))
            deadline = self._core.deadline()
            if deadline is not None and deadline <= now:
                raise AssertionError(f"{type(self._core).__name__} wants a tick at {deadline}, it is {now} already")
            for effect in effects:
                self._perform(effect)
        except BaseException:  # a library in Rust that gets no memory raises no Exception
            self.errors += 1
            _log.failure("{core} failed in a tick; it goes on", core=type(self._core).__name__)
            self._arm(not_before=now + _RETRY_S)
        else:
            self._arm()

    def _arm(self, not_before: float = 0.0) -> None:
        if not self._running:
            return
        deadline = self._core.deadline()
        if deadline is None:
            if self._call is not None and self._call.active():
                self._call.cancel()
            self._call = None
            return
        now = self._clock.seconds()
        delay = max(0.0, max(deadline, not_before) - now)
        if self._call is not None and self._call.active():
            if abs(self._call.getTime() - (now + delay)) < 0.0005:
                return
            self._call.cancel()
        self._call = self._clock.callLater(delay, self._tick)
