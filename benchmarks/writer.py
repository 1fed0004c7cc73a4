"""The application of a measurement: it makes sessions, then updates one attribute of one session per call, from some threads.

It runs in the node's process, as workers of a web server do: so what a call takes on the clock has in it what the reactor, and a store's threads, do with the
interpreter meanwhile. What a commit costs by itself is its thread's CPU (`closely`).
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterable
from typing import Any

from caterwaul.managers.base import SessionManager
from caterwaul.managers.receipts import Receipt
from caterwaul.managers.session import Session

from .figures import percentile

__all__ = ["STAMP", "Writer", "value_of"]

STAMP = struct.Struct(">QQ")  #: when the call began, ns, and how often this session was updated
_CREATE_AT_ONCE = 500  # sessions created between two waits for the replicas, so that no outbox fills


def value_of(size: int, number: int) -> bytes:
    """A new value of `size` bytes: now, a number, and zeros."""
    return STAMP.pack(time.monotonic_ns(), number) + bytes(size - STAMP.size)


class Writer:
    """Any thread; one at a time."""

    def __init__(self, manager: SessionManager) -> None:
        self._manager = manager
        self.ids: list[str] = []
        self._numbers: list[int] = []

    def create(self, sessions: int, attributes: int, size: int) -> None:
        manager = self._manager
        for i in range(sessions):
            session = manager.open(None)
            for k in range(attributes):
                session[f"a{k}"] = value_of(size, 0)
            wait = i % _CREATE_AT_ONCE == _CREATE_AT_ONCE - 1 or i == sessions - 1
            manager.commit(session, acks="all" if wait else "none").wait()
            manager.release(session)
            assert session.id is not None
            self.ids.append(session.id)
            self._numbers.append(0)

    def change(self, every: int, size: int) -> int:
        """One attribute of each `every`th session becomes something that cannot be compressed. How many sessions that are."""
        changed = self.ids[::every]
        for session_id in changed:
            session = self._manager.open(session_id)
            session["a0"] = os.urandom(size)
            self._manager.commit(session)
            self._manager.release(session)
        return len(changed)

    def update(self, threads: int, ms: int, size: int, acks: str, rate: float = 0.0, closely: bool = False) -> dict[str, Any]:
        """For `ms` milliseconds, as fast as it goes or `rate` a second over all threads. Thread i has sessions i, i + threads, ... `closely`: also what each commit takes, alone."""
        start = time.monotonic_ns()
        parts = [(_ClosePart if closely else _Part)(self._manager, self.ids, self._numbers, i, threads, size, acks) for i in range(threads)]
        period = int(1e9 * threads / rate) if rate else 0
        workers = [threading.Thread(target=part.run, args=(start, start + ms * 1_000_000, period)) for part in parts]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        end = time.monotonic_ns()
        for part in parts:
            if part.error is not None:
                raise part.error
        calls = sorted(call for part in parts for call in part.calls)
        return {
            "sent": len(calls), "start_ns": start, "end_ns": end, "call_p50_us": percentile(calls, 0.5) / 1e3, "call_p99_us": percentile(calls, 0.99) / 1e3,
            "unconfirmed": sum(part.unconfirmed for part in parts), "threads_cpu_s": sum(part.cpu_s for part in parts), **_commits(parts),
        }  # fmt: skip


class _Part:
    """What one application thread does."""

    def __init__(self, manager: SessionManager, ids: list[str], numbers: list[int], first: int, step: int, size: int, acks: str) -> None:
        self._manager, self._ids, self._numbers = manager, ids, numbers
        self._first, self._step, self._size, self._acks = first, step, size, acks
        self.calls: list[int] = []
        self.commits: list[tuple[int, int]] = []  # ns that each took: of this thread's CPU, and of the clock
        self.unconfirmed = 0
        self.cpu_s = 0.0
        self.error: Exception | None = None

    def run(self, start_ns: int, end_ns: int, period_ns: int) -> None:
        cpu = time.thread_time()
        try:
            self._run(start_ns, end_ns, period_ns)
        except Exception as error:
            self.error = error
        self.cpu_s = time.thread_time() - cpu

    def _run(self, start_ns: int, end_ns: int, period_ns: int) -> None:
        manager, ids, numbers, calls, clock = self._manager, self._ids, self._numbers, self.calls, time.monotonic_ns
        padding = bytes(self._size - STAMP.size)
        at, due = self._first, start_ns
        while True:
            began = clock()
            if period_ns:
                while began < due:
                    time.sleep((due - began) / 1e9)
                    began = clock()
                due += period_ns
            if began >= end_ns:
                return
            session = manager.open(ids[at])
            numbers[at] += 1
            session["a0"] = STAMP.pack(began, numbers[at]) + padding
            receipt = self._commit(session)
            if receipt.needs_wait:
                receipt.wait()
            if not receipt.satisfied:
                self.unconfirmed += 1
            manager.release(session)
            calls.append(clock() - began)
            at += self._step
            if at >= len(ids):
                at = self._first

    def _commit(self, session: Session) -> Receipt:
        return self._manager.commit(session, self._acks)


class _ClosePart(_Part):
    """Looks at the clocks before and after each commit, which takes half a microsecond itself."""

    def _commit(self, session: Session) -> Receipt:
        began, cpu = time.monotonic_ns(), time.thread_time_ns()
        receipt = self._manager.commit(session, self._acks)
        self.commits.append((time.thread_time_ns() - cpu, time.monotonic_ns() - began))
        return receipt


def _commits(parts: Iterable[_Part]) -> dict[str, float]:
    """What commits took by themselves, where somebody has looked."""
    commits = [commit for part in parts for commit in part.commits]
    times = {"commit_cpu": sorted(cpu for cpu, _ in commits), "commit": sorted(took for _, took in commits)}
    return {f"{name}_p{share}_us": percentile(found, share / 100) / 1e3 for name, found in times.items() for share in (50, 99)}
