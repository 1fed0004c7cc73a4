"""What a store takes: sessions of 1000 bytes, saved and loaded a second, one by one and 500 in a call.

    store-file-save-single, store-file-save-batch, store-file-load-single, store-file-load-batch; likewise memory, sqlite, postgresql, redis

One thread, and 5000 sessions that are there already: a save replaces one by what it was not, in turn. Every kind does what it would in production: files and
databases wait for the disk (the one of the directory for temporary files, see TMPDIR), Redis appends to its log and syncs it each second. A kind whose server or
library is not on this machine is left out, and it is said why.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

from caterwaul.managers.stores.opening import open_store
from caterwaul.managers.stores.store import NOTHING, Save, Store
from caterwaul.membership.errors import LocalError

from .figures import percentile
from .fronts.redis_server import RedisServer
from .postgresql_server import PostgresqlServer
from .processes import MeasureError

__all__ = ["KINDS", "WORKS", "rates"]

KINDS = ("memory", "file", "sqlite", "postgresql", "redis")
WORKS = ("save-single", "save-batch", "load-single", "load-batch")
_BATCH = 500
_BYTES = 1000
_TIMEOUT_S = 30.0  # nothing here is measured by giving up
_UNTIL_MS = 4_000_000_000_000


class _Missing(Exception):
    """Why a kind cannot be measured here."""


def rates(kind: str, works: Sequence[str], sessions: int, ms: int, repetitions: int, tell: Callable[[str], None]) -> dict[str, list[dict[str, float]]]:
    """The repetitions of each of these rows, each for `ms`. None where the kind is missing."""
    try:
        with _store(kind) as store:
            population = _Population(store, sessions)
            found: dict[str, list[dict[str, float]]] = {work: [] for work in works}
            for number in range(1 + repetitions):  # the first one warms up
                for work in works:
                    figures = _measured(population.save if work.startswith("save") else population.load, work.endswith("batch"), ms)
                    if number:
                        found[work].append(figures)
            return {work: [one | {"wrong": population.wrong()} for one in ones] for work, ones in found.items()}
    except _Missing as missing:
        tell(f"{missing}: skipping {', '.join(f'store-{kind}-{work}' for work in works)}")
        return {}


class _Population:
    """Sessions and their revisions. `save` and `load` take the next `number` of them."""

    def __init__(self, store: Store, sessions: int) -> None:
        self._store = store
        self._random = random.Random(1)
        self._keys = sorted(self._random.randbytes(16) for _ in range(sessions))
        self._random.shuffle(self._keys)
        self._revisions = dict.fromkeys(self._keys, NOTHING)
        self._turn = cycle(self._keys)
        self._lost = 0
        for _ in range(0, sessions, _BATCH):
            self.save(min(_BATCH, sessions))

    def _next(self, number: int) -> list[bytes]:
        return [next(self._turn) for _ in range(number)]

    def save(self, number: int) -> float:
        """Seconds."""
        keys = self._next(number)
        saves = [Save(key, self._random.randbytes(_BYTES), _UNTIL_MS, self._revisions[key]) for key in keys]
        began = time.perf_counter()
        saved = self._store.save_many(saves)
        took_s = time.perf_counter() - began
        self._lost += len(saves) - len(saved)
        self._revisions |= saved
        return took_s

    def load(self, number: int) -> float:
        keys = self._next(number)
        began = time.perf_counter()
        found = self._store.load(keys)
        took_s = time.perf_counter() - began
        self._lost += sum(1 for key in keys if key not in found or found[key].revision != self._revisions[key])
        return took_s

    def wrong(self) -> int:
        """Saves that were refused, and sessions that were not what was saved last."""
        return self._lost


def _measured(call: Callable[[int], float], in_batches: bool, ms: int) -> dict[str, float]:
    number = _BATCH if in_batches else 1
    took: list[float] = []
    used, end = time.process_time(), time.monotonic() + ms / 1000
    while time.monotonic() < end or not took:
        took.append(call(number))
    used = time.process_time() - used
    ordered = sorted(took)
    return {
        "sessions_per_s": number * len(took) / sum(took), "call_p50_us": percentile(ordered, 0.5) * 1e6, "call_p99_us": percentile(ordered, 0.99) * 1e6,
        "cpu_us": used / (number * len(took)) * 1e6, "sessions": number * len(took),
    }  # fmt: skip


@contextmanager
def _store(kind: str) -> Iterator[Store]:
    with ExitStack() as stack:
        try:
            url = _url(kind, stack)
            store = open_store(url, "bench", timeout_s=_TIMEOUT_S)
            stack.callback(store.close)
            store.open(create=True)
            store.clear()
        except (LocalError, MeasureError) as error:
            raise _Missing(str(error)) from error
        yield store


def _url(kind: str, stack: ExitStack) -> str:
    """Of a fresh place, that goes with the stack."""
    if kind == "redis":
        if not RedisServer.is_here():
            raise _Missing("no redis-server on the PATH")
        return f"redis://127.0.0.1:{stack.enter_context(RedisServer(appends=True)).port}"
    if kind == "postgresql":
        if not PostgresqlServer.is_here():
            raise _Missing("PostgreSQL is not installed")
        return stack.enter_context(PostgresqlServer()).url
    if kind in ("file", "sqlite"):
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="caterwaul-bench-")))
        return f"file://{directory}" if kind == "file" else f"sqlite:///{directory / 'sessions.db'}"
    return f"{kind}:bench"
