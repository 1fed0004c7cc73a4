"""Calls of a store, in threads, and a circuit between: a store in trouble holds up nobody.

A call that fails, or has not returned long after its time, opens the circuit (Nygard, *Release It!*, 2007): calls fail at once for a pause, which doubles up to a few seconds while it goes on.
After it one call is let through, and its success closes the circuit. A thread that hangs in a call is not waited for; while too many do, nothing is called.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from time import perf_counter, sleep
from typing import Any, TypeVar

from twisted.internet import defer
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from .store import Store, StoreError

__all__ = ["THREADS_MAX", "StoreWorker", "breather"]

_log = Logger()
_T = TypeVar("_T")
THREADS_MAX = 4  #: of one store
_PAUSE_MIN_S, _PAUSE_MAX_S = 0.25, 4.0
_BUSY_S, _REST_S = 0.0005, 0.0002  # who wants the interpreter while a thread computes waits for 5 ms (`sys.getswitchinterval`), unless that rests
_PATIENCE = 2.5  # times a call's own timeout, which a store keeps "about"


class StoreWorker:
    """Reactor thread. `run(function, *arguments)` calls it in a thread and gives a Deferred. The store's `name` stands in messages."""

    def __init__(self, store: Store, timeout_s: float, clock: IReactorTime, run: Callable[..., Deferred[Any]]) -> None:
        self.store = store
        self._patience_s = timeout_s * _PATIENCE
        self._clock = clock
        self._run = run
        self._busy = 0  # calls in threads, those that hang among them
        self._pause_s = 0.0  # 0: the circuit is closed
        self._until_s = 0.0
        self._is_open = False
        self._opening = Lock()
        self.breather: Callable[[], Callable[[], None]] = lambda: (
            lambda: None
        )  #: what a thread calls now and then while it computes; one for each call (`breather`)
        self.errors = 0

    @property
    def is_closed(self) -> bool:
        """Whether calls go through as they come."""
        return not self._pause_s

    @property
    def is_callable(self) -> bool:
        """Whether a call would go through now."""
        return self._busy < THREADS_MAX and (not self._pause_s or self._clock.seconds() >= self._until_s)

    def call(self, function: Callable[..., _T], *arguments: Any) -> Deferred[_T]:
        """`function` of the store, in a thread. Fails with `StoreError` and nothing else."""
        if not self.is_callable:
            return fail(StoreError(f"{self.store.name} is in trouble, and is not asked for the moment"))
        if self._pause_s:
            self._until_s = self._clock.seconds() + self._pause_s  # nobody else, until this one is back
        self._busy += 1
        answer: Deferred[_T] = self._run(self._called, function, *arguments)
        answer.addBoth(self._returned)
        given: Deferred[_T] = Deferred()
        answer.addBoth(lambda result: given.callback(result) if not given.called else None)
        given.addTimeout(self._patience_s, self._clock)
        return given.addCallbacks(self._went_well, self._went_wrong, errbackArgs=(self.is_closed,))

    def _called(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """In a thread. The store is opened by its first call, and by the next one if that fails."""
        if not self._is_open:
            with self._opening:
                if not self._is_open:
                    self.store.open()
                    self._is_open = True
        return function(*arguments)

    def _returned(self, result: object) -> object:
        self._busy -= 1
        return result

    def _went_well(self, result: _T) -> _T:
        if self._pause_s:
            self._pause_s = 0.0
            _log.info("{store} answers again", store=self.store.name)
        return result

    def _went_wrong(self, failure: Failure, was_closed: bool) -> Failure:
        self.errors += 1
        if failure.check(defer.TimeoutError):
            failure = Failure(StoreError(f"{self.store.name} does not answer"))
        elif not failure.check(StoreError):
            _log.failure("{store} failed in a way that is a bug of ours", failure=failure, store=self.store.name)
            failure = Failure(StoreError(f"{self.store.name} failed: {failure.type.__name__ if failure.type else 'unknown'}"))
        if was_closed and self._pause_s:
            return failure  # of several calls that were under way the first has opened the circuit
        if not self._pause_s:
            _log.warn("{store} is in trouble: {error}; requests go on from memory, and what is to be stored waits", store=self.store.name, error=failure.value)
        self._pause_s = min(_PAUSE_MAX_S, 2 * self._pause_s or _PAUSE_MIN_S)
        self._until_s = self._clock.seconds() + self._pause_s
        return failure


def breather() -> Callable[[], None]:
    """For `StoreWorker.breather`: sleeps a moment where others may have waited for the interpreter."""
    began_s = perf_counter()

    def rest() -> None:
        nonlocal began_s
        if perf_counter() - began_s >= _BUSY_S:
            sleep(_REST_S)
            began_s = perf_counter()

    return rest
