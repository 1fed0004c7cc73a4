"""One simulated world: a seed, and everything that follows from it.

All chance comes from `rng(purpose)`, a source of its own for each purpose, so that one more draw in one place changes nothing
in another. Nothing here reads a clock, a hash order or the machine. A world is a context manager: while it is entered, an
error that anybody logs (Twisted logs what it catches, the product logs what must not happen) ends the run, and so does any
exception out of an event; both come as `SimulationError` with the seed, the time and the last events.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from random import Random
from types import TracebackType

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from zope.interface import implementer

from .clock import EventQueue, NoWallClock
from .network import Network
from .reactor import SimReactor
from .trace import Trace

__all__ = ["SimulationError", "World"]


class SimulationError(AssertionError):
    """A run failed; the text says which seed, when, and what happened last."""


class World:
    """`counters`: what happened how often, faults among them. `notes` reach the digest."""

    def __init__(self, seed: int | str) -> None:
        self.seed = seed
        self.queue = EventQueue()
        self.counters: Counter[str] = Counter()
        self.trace = Trace(self.queue)
        self.network = Network(self.queue, self.rng("network"), self.counters, self.trace)
        self._guard = NoWallClock()
        self._errors = _Errors()
        self._broken: SimulationError | None = None
        self._offsets = self.rng("clock offsets")

    @property
    def now(self) -> float:
        return self.queue.now

    def rng(self, purpose: str) -> Random:
        return Random(f"{self.seed}/{purpose}")

    def process(self, name: str, address: str, kind: type[SimReactor] = SimReactor) -> SimReactor:
        """A new process on the host of this address, with a monotonic clock that begins anywhere."""
        self.note(f"process {name} on {address}")
        return kind(self.network.host(address), name, self._offsets.uniform(0.0, 1e6))

    def note(self, text: str) -> None:
        self.trace.note(text)

    def digest(self) -> str:
        return self.trace.digest()

    # -- running

    def run_until(self, until: float) -> None:
        try:
            self.queue.run_until(until)
        except Exception as error:
            if self._broken is None and not isinstance(error, SimulationError):
                raise self.error(f"{type(error).__name__}: {error}") from error
            raise self._broken or error from None
        if self._broken is not None:
            raise self._broken
        if self._errors.texts:
            raise self.error("errors were logged:\n" + "\n".join(self._errors.texts))

    def run_for(self, seconds: float) -> None:
        self.run_until(self.queue.now + seconds)

    def run_until_true(self, condition: Callable[[], object], limit_s: float, step_s: float = 0.01) -> float:
        """Run until the condition holds, looked at every `step_s`; says how long it took. `SimulationError` after `limit_s`."""
        begin = self.queue.now
        while not condition():
            if self.queue.now - begin >= limit_s:
                raise self.error(f"not true within {limit_s} s: {getattr(condition, '__name__', condition)}")
            self.run_until(self.queue.now + step_s)
        return self.queue.now - begin

    def fail(self, what: str) -> None:
        """End the run with this error, at this moment, whoever catches what is raised here."""
        if self._broken is None:
            self._broken = self.error(what)
            self.queue.at(self.queue.now, self._stop, self._broken)
        raise self._broken

    @staticmethod
    def _stop(error: SimulationError) -> None:
        raise error

    def error(self, what: str) -> SimulationError:
        return SimulationError(f"seed {self.seed}, at {self.queue.now:.6f} s: {what}\n{self.trace.tail()}")

    # -- watching

    def __enter__(self) -> World:
        globalLogPublisher.addObserver(self._errors)
        self._guard.__enter__()
        gc.disable()  # a coroutine of a process that is dead ends with an error when it is collected, and nobody knows when that is
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._guard.__exit__(kind, error, trace)
        globalLogPublisher.removeObserver(self._errors)
        gc.enable()


@implementer(ILogObserver)
class _Errors:
    """Keeps, as text, what was logged as an error."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_level", LogLevel.info) >= LogLevel.error or event.get("isError"):
            failure = event.get("log_failure")
            self.texts.append(formatEvent(event) + (f"\n{failure.getTraceback()}" if failure is not None else ""))
