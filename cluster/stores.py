"""The stores of one node: for each of its session managers, maps and epochs a space of what `[store]` names, asked in threads of their own.

Spaces carry the cluster's name, so that several clusters may share a database. A store is opened by the first call of it, in its thread: a node starts, and serves, without its store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from ..managers.principals import EPOCHS
from ..managers.stores.opening import open_store
from ..managers.stores.settings import StoreSettings
from ..managers.stores.worker import StoreWorker
from .security.store_keys import store_secrets, store_url

__all__ = ["NodeStores"]

_THREADS_MAX = 8


class NodeStores:
    """Reactor thread. Raises `LocalError` for a URL that names no store."""

    def __init__(self, settings: StoreSettings, cluster: str, reactor: Any) -> None:
        self._settings = settings
        self._cluster = cluster
        self._reactor = reactor
        self._workers: list[StoreWorker] = []
        self._pool: ThreadPool | None = None
        self._secrets: dict[str, Any] = {}

    def of(self, engine: str) -> tuple[StoreWorker, StoreSettings] | None:
        """What the engine of this name is given; None: there is no store."""
        settings = self._settings
        url = store_url(settings)
        if not url:
            return None
        if self._pool is None:
            self._secrets = store_secrets(Path(settings.secret_file) if settings.secret_file else None)
            self._pool = ThreadPool(0, _THREADS_MAX, "caterwaul store")
            self._pool.start()
        store = open_store(url, f"{self._cluster}/{engine}", timeout_s=settings.timeout_s, encrypt=settings.encrypt, **self._secrets)
        worker = StoreWorker(store, settings.timeout_s, self._reactor, self._run)
        self._workers.append(worker)
        return worker, replace(settings, load=True) if engine == EPOCHS else settings  # nobody asks for an epoch that he does not know

    def _run(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        assert self._pool is not None, "made with the first store"
        return deferToThreadPool(self._reactor, self._pool, function, *arguments)

    def stop(self) -> None:
        """Let go of all. A thread that hangs ends by itself."""
        for worker in self._workers:
            if self._pool is not None:
                self._pool.callInThread(worker.store.close)
        if self._pool is not None:
            self._reactor.callInThread(self._pool.stop)  # which waits for its threads
        self._workers, self._pool = [], None
