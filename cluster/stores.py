"""The stores of one node: for each of its session managers, maps and epochs a space of what `[store]` names, asked in threads of their own.

Spaces carry the cluster's name, so that several clusters may share a database. A store is opened by the first call of it, in its thread: a node starts, and serves, without its store. Before anything is
brought back, the node looks when the cluster used its store last (`store_clock.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from ..managers.base import SessionManager
from ..managers.principals import EPOCHS
from ..managers.settings import SSO
from ..managers.stores.opening import open_store
from ..managers.stores.settings import StoreSettings
from ..managers.stores.store import Store, StoreError
from ..managers.stores.worker import StoreWorker, breather
from .security.store_keys import store_secrets, store_url
from .store_clock import CLOCK, age_s, stamp
from .text_tables import time_text

__all__ = ["NodeStores"]

_log = Logger()
_THREADS_MAX = 8
_LOOK_S, _STAMP_S = 0.5, 60.0
_STOP_S = 1.0  # for calls that are under way, and to close; all that waited has had its time before


class _Pool(ThreadPool):
    """Its threads are daemons: one that hangs in a dead disk would keep the interpreter from ending."""

    threadFactory = staticmethod(partial(Thread, daemon=True))  # type: ignore[assignment]


class NodeStores:
    """Reactor thread. `retention_s`: how long ends of sessions are remembered. `is_shared`: sessions live in it alone, and outlive all nodes; so must their shared logins, and
    all ends, which are stored before they are confirmed then. Raises `LocalError` for what names no store."""

    def __init__(self, settings: StoreSettings, cluster: str, retention_s: float, reactor: Any, is_shared: bool = False) -> None:
        self._settings = settings
        self._cluster = cluster
        self._retention_s = retention_s
        self._is_shared = is_shared
        self._reactor = reactor
        self._workers: list[StoreWorker] = []
        self._pool: ThreadPool | None = None
        self._url = ""
        self._secrets: dict[str, Any] = {}
        self._clock: StoreWorker | None = None
        self._is_stopped = False
        self._looking: LoopingCall | None = None
        self.is_trusted: bool | None = None  #: whether what it shows may be brought back; None: nobody knows yet

    def of(self, engine: str) -> tuple[StoreWorker, StoreSettings] | None:
        """What the engine of this name is given; None: there is no store."""
        if not self._workers and not self._begin():
            return None
        return self._worker(engine), self.settings_of(engine)

    def settings_of(self, engine: str) -> StoreSettings:
        settings = self._settings
        if engine == EPOCHS:
            settings = replace(settings, load=True)  # nobody asks for an epoch that he does not know
        if self._is_shared and (engine == EPOCHS or engine.startswith(SSO)):
            settings = replace(settings, write="through")
        return settings

    def _begin(self) -> bool:
        self._url = store_url(self._settings)
        if self._url:
            self._secrets = store_secrets(Path(self._settings.secret_file) if self._settings.secret_file else None)
            self._clock = self._worker(CLOCK)
            self._looking = LoopingCall(self._look)
            self._looking.clock = self._reactor
            self._looking.start(_LOOK_S)
        return bool(self._url)

    def _worker(self, engine: str) -> StoreWorker:
        worker = StoreWorker(self._store(f"{self._cluster}/{engine}"), self._settings.timeout_s, self._reactor, self._run)
        worker.breather = breather
        self._workers.append(worker)
        return worker

    def _store(self, space: str) -> Store:
        return open_store(self._url, space, timeout_s=self._settings.timeout_s, encrypt=self._settings.encrypt, **self._secrets)

    def _run(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        if self._is_stopped:
            return fail(StoreError("the node has stopped"))
        if self._pool is None:
            self._pool = _Pool(0, _THREADS_MAX, "caterwaul store")
            self._pool.start()
        return deferToThreadPool(self._reactor, self._pool, function, *arguments)

    def attend(self, engines: Iterable[SessionManager], has_met: Callable[[], bool]) -> None:
        """Let them bring back what they may. `has_met()`: whether other nodes that exist are known by now.

        Where sessions live in the store only, their ends do too, and are not forgotten before them; and an end of logins harms nobody who comes too late for it.
        """
        for engine in engines:
            if engine.persistence is not None:
                engine.persistence.fetching.has_met = has_met
                if engine.name != EPOCHS and not engine.persistence.fetching.is_shared:
                    engine.persistence.fetching.is_trusted = lambda: self.is_trusted

    # -- whether it can be trusted

    def _look(self) -> Deferred[None]:
        clock = self._clock
        assert clock is not None, "begun"
        known: Deferred[None] = clock.call(self._age_s).addCallback(self._aged)
        return known.addErrback(self._unknown)

    def _age_s(self) -> float:
        """In a thread."""
        assert self._clock is not None, "begun"
        found = age_s(self._clock.store)
        if found <= self._retention_s or self.is_trusted:  # it was in use until it got into trouble, by a cluster that knows of all ends
            stamp(self._clock.store)
        return found

    def _aged(self, seconds: float) -> None:
        assert self._looking is not None, "begun"
        is_trusted = seconds <= self._retention_s
        if not is_trusted and self.is_trusted is None:
            _log.error(
                "{store} was used by cluster {cluster!r} {age} ago, and ends of sessions are remembered for {kept} (retention_s): sessions that users have ended since would live again, so nothing is "
                "brought back; `caterwaul store trust` says that it is right",
                store=self._clock.store.name if self._clock is not None else "", cluster=self._cluster, age=time_text(seconds), kept=time_text(self._retention_s),
            )  # fmt: skip
        if self.is_trusted is None or (is_trusted and not self.is_trusted):
            self._looking.interval = _STAMP_S
            self.is_trusted = is_trusted

    def _unknown(self, failure: Failure) -> None:
        if not failure.check(StoreError):
            _log.failure("the time of a store cannot be told", failure=failure)

    def stop(self) -> Deferred[None]:
        """Let go of all. Fires within a second or so, whatever a disk or a server does: who hangs there is left behind, and keeps no process."""
        self._is_stopped = True
        if self._looking is not None and self._looking.running:
            self._looking.stop()
        pool, self._pool = self._pool, None
        workers, self._workers = self._workers, []
        if pool is None:
            return succeed(None)
        for worker in workers:
            pool.callInThread(worker.store.close)
        ended: Deferred[None] = Deferred()
        Thread(target=self._join, args=(pool, ended), name="caterwaul store stop", daemon=True).start()
        return ended.addTimeout(_STOP_S, self._reactor, lambda result, timeout: self._hangs(workers))

    def _join(self, pool: ThreadPool, ended: Deferred[None]) -> None:
        """In a thread of its own: the pool waits for its threads."""
        pool.stop()
        self._reactor.callFromThread(ended.callback, None)

    def _hangs(self, workers: Sequence[StoreWorker]) -> None:
        name = workers[0].store.name if workers else "the store"
        _log.warn("{store}: a call has not ended {seconds:g} s after the node stopped; it is left behind", store=name, seconds=_STOP_S)
