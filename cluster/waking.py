"""Waking the reactor from other threads, and not more often than it helps.

A thread that wakes the reactor pays a system call, and then for the reactor's thread, which takes the interpreter while the other has work to do: for a web server that is
a third of what a session's change costs. Mostly nobody waits for what is to be done. So when the reactor has done such a thing, it comes back by itself a
millisecond later, and again while there is something each time; what comes up meanwhile wakes nobody, and leaves together (as interrupts are coalesced: Mogul and Ramakrishnan, 1997).

What the reactor is woken for it does in the order in which it came, whether somebody waits for it or not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from twisted.logger import Logger

from ..membership.driver import Driver
from ..membership.effects import Effect

__all__ = ["Waking"]

_log = Logger()
_COMES_BACK_S = 0.001


class Waking:
    """Any thread calls `soon`; the rest is the reactor's thread's. `run` runs one call. `reactor`: IReactorTime and `callFromThread`."""

    def __init__(self, reactor: Any, run: Callable[[Callable[[], None]], None]) -> None:
        self._reactor = reactor
        self._run = run
        self._calls = deque[tuple[Callable[[], None], bool]]()
        self._comes_at: float | None = None  # by itself; whoever adds a call and still reads a time has added it before the reactor looked for the last time
        self._stopped = False
        self._driver = Driver(self, reactor, lambda effect: None)
        self._driver.start()

    def soon(self, call: Callable[[], None], lazily: bool = False) -> None:
        """Run it in the reactor's thread. `lazily`: nobody waits for it, so a millisecond does not matter."""
        self._calls.append((call, lazily))
        if not lazily or self._comes_at is None:
            self._reactor.callFromThread(self._drain)

    def _drain(self) -> None:
        if self._ran() and self._comes_at is None and not self._stopped:
            self._comes_at = self._reactor.seconds() + _COMES_BACK_S
            self._driver.rearm()

    def _ran(self) -> bool:
        """Run what there is, not what that adds. Whether any of it was lazy."""
        lazy = False
        for _ in range(len(self._calls)):
            if not self._calls:
                break  # one of them has stopped us
            call, lazily = self._calls.popleft()
            lazy = lazy or lazily
            try:
                self._run(call)
            except BaseException:  # a library in Rust that gets no memory raises no Exception
                _log.failure("what the reactor was woken for failed; it goes on")
        return lazy

    def stop(self) -> None:
        """Run what is left, and come back no more."""
        self._comes_at, self._stopped = None, True
        self._driver.stop()
        self._ran()

    # -- for the driver

    def tick(self, now: float) -> Sequence[Effect]:
        if self._ran() and not self._stopped:
            self._comes_at = self._reactor.seconds() + _COMES_BACK_S
            return ()
        self._comes_at = None
        if self._calls:
            self._drain()
        return ()

    def deadline(self) -> float | None:
        return self._comes_at
