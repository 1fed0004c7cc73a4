"""The circuit between a node and its store."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from caterwaul.managers.stores.memory import MemoryStore
from caterwaul.managers.stores.store import StoreError
from caterwaul.managers.stores.worker import THREADS_MAX, StoreWorker, breather


def test_calls_that_fail_together_open_the_circuit_once_and_one_that_returns_closes_it() -> None:
    clock, threads = Clock(), list[Deferred[Any]]()

    def run(function: object, *arguments: object) -> Deferred[Any]:
        threads.append(Deferred())
        return threads[-1]

    worker = StoreWorker(MemoryStore("memory:", "circuit"), 1.0, clock, run)
    failures: list[object] = []
    for _ in range(THREADS_MAX):
        worker.call(worker.store.spaces).addErrback(failures.append)
    worker.call(worker.store.spaces).addErrback(failures.append)
    assert len(failures) == 1, "one call more than there are threads for"
    for thread in threads:
        thread.errback(StoreError("it is down"))
    assert len(failures) == 1 + THREADS_MAX
    assert not worker.is_callable
    clock.advance(0.26)
    assert worker.is_callable
    worker.call(worker.store.spaces).addErrback(failures.append)
    assert not worker.is_callable, "nobody else until this one is back"
    threads[-1].errback(StoreError("it is down yet"))
    clock.advance(0.26)
    assert not worker.is_callable
    clock.advance(0.26)
    found: list[object] = []
    worker.call(worker.store.spaces).addCallback(found.append)
    threads[-1].callback([])
    assert found == [[]]
    assert worker.is_closed


def test_a_thread_that_computes_rests_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = [0.0], list[float]()
    monkeypatch.setattr("caterwaul.managers.stores.worker.perf_counter", lambda: now[0])
    monkeypatch.setattr("caterwaul.managers.stores.worker.sleep", slept.append)
    rest = breather()
    for _ in range(100):
        now[0] += 0.0001
        rest()
    assert 10 <= len(slept) <= 25
    assert sum(slept) < 0.01, "it gets on with its work"
