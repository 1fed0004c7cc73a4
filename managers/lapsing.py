"""Ends by time where all servers share a store: the store is told first, and the sessions' listeners only if it agrees.

A copy in memory knows nothing of what other servers did with the session. So whoever thinks that its time is over, or that its login is, loads what is stored, merges it, and, if it is over still,
replaces exactly that by its end (compare-and-set). If another server has used the session meanwhile, its save came first, the end is refused, and nothing has happened. Of several
that end it at once one is not refused: that one tells. What was used lately may not say so in the store yet, so an idle session gets as long again as servers may take to save its use.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from .core import SessionCore
from .entry import Audited, Outcome
from .expiry import deadline_of
from .fetching import Fetching, batched
from .heads import EXPIRED, ID_CHANGED, INVALIDATED, LIVE, Head
from .lock import PoliteLock
from .renewal import read_renewed
from .stores.store import StoreError
from .stores.worker import StoreWorker
from .storing import Storing

__all__ = ["Lapsing"]

_log = Logger()


class _End(NamedTuple):
    head: Head
    by: str  #: see `Audited`


class Lapsing:
    """Of one manager. Reactor thread. `touch_ms`: how long a server may keep a use of a session to itself."""

    def __init__(
        self,
        core: SessionCore,
        lock: PoliteLock,
        fetching: Fetching,
        storing: Storing,
        worker: StoreWorker,
        flush: Callable[[], None],
        touch_ms: int,
        now_ms: Callable[[], int],
        ahead_ms: Callable[[], int],
    ) -> None:
        self._core = core
        self._lock = lock
        self._fetching = fetching
        self._storing = storing
        self._worker = worker
        self._flush = flush
        self._touch_ms = touch_ms
        self._now_ms = now_ms
        self._ahead_ms = ahead_ms
        self._keys: dict[bytes, None] = {}  # to be looked at, in their order
        self._is_busy = False
        self.ending: set[bytes] = set()  #: what the store is just told that it is over; until it has answered these stay in memory, for who listens

    def look(self, key: bytes) -> None:
        """Its time seems to be over."""
        self._keys[key] = None
        if not self._is_busy:
            self._is_busy = True
            Deferred.fromCoroutine(self._look()).addErrback(_complain).addBoth(self._looked)

    def _looked(self, _: object) -> None:
        self._is_busy = False

    async def _look(self) -> None:
        while self._keys:
            keys, self._keys = self._keys, {}
            for some in batched(keys):
                await self.end(some)

    async def end(self, keys: Collection[bytes]) -> None:
        """Those of these whose time is over. Fails with `StoreError`; then nobody knows, and it is found out when the store answers again."""
        found = await self._fetching.loaded(keys)
        replica = self._core.replica
        with self._lock:
            ends = {key: end for key in found if key not in self.ending and (end := self._end_of(key)) is not None}
            saves = [self._storing.ending(key, end.head, found[key].revision, self._ahead_ms()) for key, end in ends.items()]
            self.ending.update(ends)
        try:
            revisions = await self._worker.call(self._worker.store.save_many, saves) if saves else {}
        except StoreError:
            with self._lock:
                replica.written.update(ends)  # the next save meets the end, if it is there
            raise
        finally:
            self.ending.difference_update(ends)
        with self._lock:
            for key, revision in revisions.items():
                self._ended(key, ends[key], revision)
            self._core.settle_fresh(self._now_ms())
        self._flush()

    def _end_of(self, key: bytes) -> _End | None:
        """What would end the session of this key, if it is over, and here as it is in the store."""
        core, now_ms = self._core, self._now_ms()
        entry = core.replica.held(key)
        record = core.replica.record(key, entry) if entry is not None else None
        if entry is None or record is None or not self._storing.has_all(key, entry):
            return None
        if core.logins.is_out(key, entry):
            return _End(core.replica.end_of(key, entry, INVALIDATED, now_ms), core.logins.ender(key, entry))
        renewed = read_renewed(record.registers)
        deadline, by_age = deadline_of(entry, record, core.expiry.limits)
        if deadline is None or now_ms < deadline + (0 if by_age else 2 * self._touch_ms) or (key in core.in_use and renewed is None):
            return None
        if renewed is not None:
            return _End(core.replica.end_of(key, entry, ID_CHANGED, now_ms, renewed.key), "")
        return _End(core.replica.end_of(key, entry, EXPIRED, now_ms), "")

    def _ended(self, key: bytes, end: _End, revision: bytes) -> None:
        """The store has it."""
        core = self._core
        entry = core.replica.held(key)
        if entry is None:
            return  # somebody has ended it here, or has seen this end there
        who = core.logins.who(key) if end.head.state != ID_CHANGED else None
        had_more = key in core.replica.written
        core.replica.merge_head(key, end.head, Outcome())
        entry.stored = revision
        if entry.head is None or entry.head.state == LIVE:
            return  # a request has used it at the last moment, and saves that
        if not had_more:
            core.replica.written.discard(key)
        core.expiry.expired += end.head.state == EXPIRED
        core.logins.ended += end.head.state == INVALIDATED
        if who is not None:
            core.replica.events.append(Audited("expired" if end.head.state == EXPIRED else "ended", key, *who, end.by))


def _complain(failure: Failure) -> None:
    if not failure.check(StoreError):
        _log.failure("sessions whose time is over could not be ended", failure=failure)
