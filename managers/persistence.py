"""A manager's sessions and its store: when what is saved (`storing.py`), and what becomes of it.

The store is asked in threads (`stores/worker.py`) and answers in the reactor's, where the manager's lock is taken for what it says. One batch is saved at a time; while it is under way the next
one grows, so a slow store is written in larger batches, and not more often. One member tidies up what is over. What comes the other way is `fetching.py`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..membership.channel import Channel
from ..membership.effects import Send
from .committing import Committing
from .core import SessionCore
from .drafts import Draft, Undrawn, encoded
from .entry import Entry
from .fetching import Fetching, batched
from .heads import LIVE
from .kept import is_end
from .lapsing import Lapsing
from .lock import PoliteLock
from .placement import machine_of
from .receipts import Waiting
from .restoring import Restoring
from .stores.settings import StoreSettings
from .stores.store import BATCH_MAX, Save, Stored, StoreError
from .stores.worker import StoreWorker
from .storing import Storing

__all__ = ["Persistence"]

_log = Logger()
_STORE = b"store"  # as whom a receipt awaits it
_PURGE_MS, _PURGE_AGAIN_MS = 60_000, 1000
_SWEEP_MS = 20
_EMPTY_MAX = 20  # looks for something to save in one go, each a millisecond under the lock
_PASSIVATE_MS, _LATE_MAX = 20, 20  # between the 128 parts of a sweep; so many are made up for
_STOP_S = 5.0


class _Awaited(NamedTuple):
    receipt: Waiting
    is_end: bool  #: what is to be stored is that the session has ended


class _Saved(NamedTuple):
    revisions: Mapping[bytes, bytes]  #: of those that were saved
    broken: Mapping[bytes, Exception]  #: why others could not be encoded


class Persistence:
    """Of one manager. Reactor thread, except `statistics`."""

    def __init__(
        self,
        core: SessionCore,
        channel: Channel,
        lock: PoliteLock,
        committing: Committing,
        restoring: Restoring,
        flush: Callable[[], None],
        worker: StoreWorker,
        settings: StoreSettings,
        clock: IReactorTime,
    ) -> None:
        self._core = core
        self._channel = channel
        self._lock = lock
        self._worker = worker
        self._clock = clock
        self._loads, self._saves_at_stop = settings.load, settings.save_on_restart
        self._touching = committing.touching
        self.wall_s = time.time
        touch_ms = committing.touching.period_ms
        self.storing = Storing(core.me, core.replica, core.expiry.limits, int(core.settings.retention_s * 1000), touch_ms, lambda: core.placement)
        self.fetching = Fetching(core, channel, lock, restoring, flush, worker, self.storing, clock, self._ahead_ms)
        self.lapsing = Lapsing(core, lock, self.fetching, self.storing, worker, flush, touch_ms, channel.now_ms, self._ahead_ms)
        self._period_ms = max(50, int(settings.write_behind_s * 500))  # twice in that time, so that what waited is there when it is over
        self._idle_ms = int(core.settings.max_idle_backup_s * 1000)
        self._next_ms = channel.now_ms() + self._period_ms
        self._purge_ms = channel.now_ms() + _PURGE_MS
        self._passivate_ms = channel.now_ms()
        self._is_saving = self._is_purging = False
        self._stopped: Deferred[None] | None = None
        self._waiters: dict[bytes, list[_Awaited]] = {}  # receipts of changes that are to be saved
        self._aboard: dict[bytes, list[_Awaited]] = {}  # of those that are being saved
        core.replica.is_stored = True
        core.expiry.is_awaited = self.storing.lacks
        core.passivating.is_touched = committing.touching.is_pending
        if core.passivating.is_wanted:
            core.replica.unverified = set()
        if settings.write == "through":
            committing.confirming.stored_soon, committing.confirming.save = self._stored_soon, self.save

    def _ahead_ms(self) -> int:
        return int(self.wall_s() * 1000) - self._channel.now_ms()

    # -- life

    @property
    def is_loaded(self) -> bool:
        """Whether all that was stored when this member came is here, or at others, as far as it is loaded at all."""
        return self.fetching.is_complete or not self._loads

    def start(self) -> None:
        self.fetching.is_running = True

    def stop(self) -> Deferred[None]:
        """Save what waits (`save_on_restart`), while the store answers. Fires within some seconds."""
        if self._stopped is None:
            self._stopped = Deferred() if self._saves_at_stop else succeed(None)
            self._stopped.addTimeout(_STOP_S, self._clock, lambda result, timeout: None)
            self.fetching.is_running = False
            self.save()
        return self._stopped

    # -- time, for the manager's tick

    @property
    def deadline_ms(self) -> int:
        times = [self._next_ms]
        if self._loads:
            times.append(self.fetching.deadline_ms)
        if self._core.passivating.is_wanted:
            times.append(self._passivate_ms)
        return min(times)

    def tick(self, now_ms: int) -> None:
        if self._loads:
            self.fetching.tick(now_ms)
        if self._core.passivating.is_wanted:
            self._passivate(now_ms)
        if now_ms >= self._purge_ms:
            self._purge_ms = now_ms + _PURGE_MS
            self._purge()
        if now_ms < self._next_ms:
            return
        with self._lock:
            self.storing.sweep(now_ms)
            self._next_ms = now_ms + (_SWEEP_MS if self.storing.is_sweeping else self._period_ms)
        self.save()

    def _passivate(self, now_ms: int) -> None:
        if now_ms < self._passivate_ms or self._stopped is not None:
            return
        late = min(_LATE_MAX, (now_ms - self._passivate_ms) // _PASSIVATE_MS)
        self._passivate_ms = now_ms + _PASSIVATE_MS
        for _ in range(1 + late):
            with self._lock:
                effects = self._core.passivating.sweep(now_ms, self._has_all)
            for effect in effects:
                if isinstance(effect, Send):
                    self._channel.send(effect.to, effect.message)

    def _has_all(self, key: bytes, entry: Entry) -> bool:
        """Whether the store has this session as it is here, its last use included, and it is not about to end."""
        is_ending = key in self.lapsing.ending or self._core.logins.is_out(key, entry)
        return self.storing.has_all(key, entry) and not self._touching.is_pending(key) and not is_ending

    # -- saving

    def _stored_soon(self, key: bytes) -> Waiting:
        """A receipt for the save of what was just committed. Any thread, under the manager's lock; `save` is called after it."""
        now_ms, settings = self._channel.now_ms(), self._core.settings
        waiting = Waiting(1, {_STORE: "the store"}, [_STORE], now_ms + int(settings.ack_timeout_s * 1000), settings.strict_acks)
        self._waiters.setdefault(key, []).append(_Awaited(waiting, self._has_ended(key)))
        self.storing.hurry(key, now_ms)
        return waiting

    def _has_ended(self, key: bytes) -> bool:
        entry = self._core.replica.get(key)
        return entry is not None and entry.head is not None and entry.head.state != LIVE

    def save(self) -> None:
        """The next batch, unless one is under way."""
        if self._is_saving or (self._stopped is not None and self._stopped.called):
            return
        batch = self._next_batch()
        for _ in range(_EMPTY_MAX):  # marks of what others save are dropped by the way
            if batch or not (self.storing.waiting and self._worker.is_callable):
                break
            batch = self._next_batch()
        if batch:
            self._is_saving = True
            self._worker.call(self._save, batch).addCallback(self._saved, batch).addErrback(self._failed, [save.key for save in batch])
        else:
            self._idle()

    def _next_batch(self) -> list[Draft | Undrawn | Save]:
        left: list[tuple[Waiting, bool]] = []
        with self._lock:
            now_ms = self._channel.now_ms()
            while self._stopped is not None and self.storing.is_sweeping:
                self.storing.sweep(now_ms)
            self.storing.gather(now_ms, self._idle_ms if self._stopped is None else 0)
            while self._stopped is not None and self._core.replica.written:
                self.storing.gather(now_ms)
            batch = self.storing.batch(now_ms, self._ahead_ms()) if self._worker.is_callable else []
            for save in batch:
                if save.key in self._waiters:
                    self._aboard[save.key] = self._waiters.pop(save.key)
            for key in [key for key in self._waiters if not self.storing.lacks(key)]:  # it came from the store meanwhile, or is not here any more
                is_stored, has_ended = self.storing.has(key), self._has_ended(key)  # by somebody else: what was changed went with it
                left += ((waiting.receipt, is_stored and (waiting.is_end or not has_ended)) for waiting in self._waiters.pop(key))
        for receipt, is_stored in left:
            (receipt.heard if is_stored else receipt.missed)(_STORE)
        return batch

    def _save(self, batch: Sequence[Draft | Undrawn | Save]) -> _Saved:
        """In a thread of the store's."""
        saves, broken = encoded(batch, self._worker.breather())
        return _Saved(self._worker.store.save_many(saves) if saves else {}, broken)

    def _saved(self, saved: _Saved, batch: Sequence[Draft | Undrawn | Save]) -> None:
        for key, error in saved.broken.items():
            _log.error("session {key} cannot be stored before it changes: {error!r}", key=key.hex(), error=error)
        with self._lock:
            refused = self.storing.saved(batch, saved.revisions, saved.broken)
        for key in saved.revisions:
            for waiting in self._aboard.pop(key, ()):
                waiting.receipt.heard(_STORE)
        for key in saved.broken:
            for waiting in self._aboard.pop(key, ()):
                waiting.receipt.missed(_STORE)
        if refused:
            self._worker.call(self._worker.store.load, refused).addCallback(self._met, refused).addErrback(self._failed, refused)
        else:
            self._go_on()

    def _met(self, found: Mapping[bytes, Stored], refused: Sequence[bytes]) -> None:
        """The store has something else than we took it to have: merge it, and save what is here by then."""
        came = self.fetching.merge(found, refused)
        late: list[_Awaited] = []
        with self._lock:
            for key in refused:
                waiting = self._aboard.pop(key, [])
                if self._has_ended(key):  # by somebody else, and what was changed went with it
                    late += [one for one in waiting if not one.is_end]
                    waiting = [one for one in waiting if one.is_end]
                if waiting:
                    self._waiters.setdefault(key, []).extend(waiting)
                    self.storing.hurry(key, self._channel.now_ms())
        for one in late:
            one.receipt.missed(_STORE)
        self.fetching.tell(came)
        self._go_on()

    def _failed(self, failure: Failure, keys: Sequence[bytes]) -> None:
        if not failure.check(StoreError):
            _log.failure("what a store said could not be used", failure=failure)
        self._is_saving = False
        with self._lock:
            self.storing.failed(keys)
        for key in keys:
            for waiting in self._aboard.pop(key, ()):
                waiting.receipt.missed(_STORE)
        self._idle()

    def _go_on(self) -> None:
        """At once, if there is more than a batch, or somebody waits; else changes gather until their time comes."""
        self._is_saving = False
        if self.storing.is_pressed or self._stopped is not None:
            self.save()

    def _idle(self) -> None:
        """Nothing can be saved now. Whoever waited for what cannot hears so."""
        if not self._worker.is_callable:
            with self._lock:
                waiters, self._waiters = self._waiters, {}
                self.storing.urgent.clear()
            for some in waiters.values():
                for waiting in some:
                    waiting.receipt.missed(_STORE)
        if self._stopped is not None and not self._stopped.called and (self._worker.is_callable or not self.storing):
            self._stopped.callback(None)

    # -- what is over

    def _purge(self) -> None:
        """One member tidies a store that all share: ends that nobody has to remember go, and sessions that were left to it end, so that who listens hears of it."""
        if min(self._sharers()) == self._core.me and not self._is_purging and self._stopped is None and self.fetching.ready() and self.fetching.is_trusted():
            self._is_purging = True
            Deferred.fromCoroutine(self._purge_some()).addErrback(self._unpurged).addBoth(self._purged)

    def _sharers(self) -> list[bytes]:
        """Who writes to this store."""
        view, me = self._core.placement.view, self._core.me
        if self._worker.store.shared:
            return list(view.by_uid)
        here = view.by_uid.get(me)
        return [
            uid for uid, member in view.by_uid.items() if uid == me or (self.fetching.is_shared and here is not None and machine_of(member) == machine_of(here))
        ]

    def _unpurged(self, failure: Failure) -> None:
        if not failure.check(StoreError):
            _log.failure("a store could not be tidied", failure=failure)

    def _purged(self, _: object) -> None:
        self._is_purging = False

    async def _purge_some(self) -> None:
        store = self._worker.store
        over = await self._worker.call(store.expired, int(self.wall_s() * 1000))
        for keys in batched(over):
            found = await self._worker.call(store.load, keys)
            ends = {key: over[key] for key, item in found.items() if is_end(item.data)}
            if ends:
                await self._worker.call(store.delete, ends)
            live = {key: item for key, item in found.items() if key not in ends}
            if live and self.fetching.is_shared:
                await self.lapsing.end(live)
            elif live:
                await self.fetching.tell(self.fetching.merge(live, live, over_too=True))
        if len(over) == BATCH_MAX:
            self._purge_ms = self._channel.now_ms() + _PURGE_AGAIN_MS

    # -- knowing

    def statistics(self) -> dict[str, int]:
        """`store_waiting`: sessions with changes that the store lacks, `store_waiting_ms` the oldest of them; `store_open`: it is left alone for a while, after trouble."""
        with self._lock:
            storing = self.storing
            return {
                "store_waiting": len(storing), "store_waiting_ms": storing.oldest_ms(self._channel.now_ms()), "store_saves": storing.saves,
                "store_conflicts": storing.conflicts, "passivated": self._core.passivating.passivated, "store_loads": self.fetching.loads, "store_errors": self._worker.errors,
                "store_open": int(not self._worker.is_closed), "store_damaged": self._worker.store.damaged,
            }  # fmt: skip
