"""From the store into memory: what a request misses, and at the start everything.

A request that finds a session neither here nor at another member waits until the store was asked; of many that ask at the same time one call is made. What the store does not answer is
*unknown*, as what members do not answer.

Where the store is what all servers share (`persistent.py`), every request asks it, and what is here is a cache (`is_shared`). What has not changed since is not even read then. What was
here as the store had it, and is not there any more, is gone.

A *pass* brings back everything: each member goes through all keys, and loads what is missing of the partitions that it keeps first; in a cluster that runs, nothing is. It
begins once this member has what the others have, and again when the view has changed: what the last holders took with them comes back too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..membership.channel import Channel
from ..membership.errors import RemoteError
from .core import SessionCore
from .errors import SessionError
from .kept import Kept, KeptEnd, read_item
from .lock import PoliteLock
from .messages import FOUND, GONE, UNSURE
from .placement import WHOLE, Placement, partition_of
from .record import Record
from .restoring import RESTORED, Restoring
from .stores.store import NOTHING, Stored, StoreError
from .stores.worker import StoreWorker
from .storing import Storing

__all__ = ["Fetching", "batched"]

_log = Logger()
_LISTED_AT_ONCE = 1000
_LOADED_AT_ONCE = 100  # items: their bytes are not known before
_FETCHED_AT_ONCE = 200
_ABSENT_MS = 1000  # for how long what the store had not is not asked for again
_ABSENT_MAX = 4096
_PASS_AGAIN_MS = 1000


class Fetching:
    """Of one manager. Reactor thread, except `may_find` and `answers`."""

    def __init__(
        self,
        core: SessionCore,
        channel: Channel,
        lock: PoliteLock,
        restoring: Restoring,
        flush: Callable[[], None],
        worker: StoreWorker,
        storing: Storing,
        clock: IReactorTime,
        ahead_ms: Callable[[], int],
    ) -> None:
        self._core = core
        self._channel = channel
        self._lock = lock
        self._restoring = restoring
        self._flush = flush
        self._worker = worker
        self._storing = storing
        self._clock = clock
        self._ahead_ms = ahead_ms
        self.ready: Callable[[], bool] = lambda: True  #: whether what decides about sessions is loaded; until then none is
        self.is_trusted: Callable[[], bool | None] = lambda: True  #: whether what the store has may be brought back at all; None: nobody knows yet
        self.has_met: Callable[[], bool] = lambda: True  #: whether others that exist are known by now
        self.is_running = False
        self.is_shared = False  #: the store knows better than this member
        self.is_complete = False  #: everything that was stored when this member came is here, or at others
        self._is_fetching = self._is_passing = False
        self._fetches: dict[bytes, list[Callable[[int], None]]] = {}
        self._absent: dict[bytes, int] = {}  # key -> when the store had nothing of it
        self._passed: Placement | None = None  # for which all was loaded
        self._pass_ms = 0
        self.loads = 0

    # -- merging what a store has

    def merge(self, found: Mapping[bytes, Stored], asked: Iterable[bytes], over_too: bool = False) -> list[bytes]:
        """Into memory, and what of `asked` the store lacks is noted. Returns the keys of what came, or grew here: see `tell`. `over_too`: as `Restoring.merge`."""
        replica = self._core.replica
        with self._lock:
            entries = ((key, replica.get(key)) for key in found)
            same = {key for key, entry in entries if entry is not None and self._storing.is_settled(key, found[key].revision)}
        items, damaged = _read({key: stored for key, stored in found.items() if key not in same})
        for key, error in damaged.items():
            _log.warn("{store}: session {key} is damaged, and put out of the way: {error}", store=self._worker.store.name, key=key.hex(), error=error)
        if damaged:
            bad = {key: found[key].revision for key in damaged}
            self._worker.call(self._worker.store.quarantine, bad).addErrback(lambda failure: None)
        with self._lock:
            bodies = {key: replica.body_of(entry) for key in items if (entry := replica.get(key)) is not None}
            news = {key: item for key, item in items.items() if isinstance(item, KeptEnd) or bodies.get(key) != item[0].body or self._was_used_since(item[0])}
            came = self._restoring.merge(news.values(), self._ahead_ms(), over_too=over_too)
            now_ms = self._channel.now_ms()
            asked = list(asked)
            for key in asked:
                if key in same:
                    continue
                item = items.get(key)
                revision = NOTHING if item is None else found[key].revision
                self._storing.met(key, item if item is None or isinstance(item, KeptEnd) else item[0], revision, self._ahead_ms(), now_ms)
            for key in {*asked, *items}:
                replica.verified(key)
            self.loads += sum(what == RESTORED for what in came.values())
            return [key for key in came if (entry := replica.get(key)) is not None and (entry.body is None or replica.body_of(entry) != bodies.get(key))]

    def _was_used_since(self, kept: Kept) -> bool:
        """Whether the store knows of a later use."""
        entry = self._core.replica.held(kept.key)
        return entry is not None and kept.used_ms - self._ahead_ms() > entry.last_access_ms

    async def loaded(self, keys: Collection[bytes]) -> dict[bytes, Stored]:
        """What the store has of these, which is merged here too, also what is over. Fails with `StoreError`."""
        before = self._known(keys)
        found = await self._worker.call(self._worker.store.load, keys)
        with self._lock:
            settled = [key for key in found if self._storing.is_settled(key, before[key])]
        self.merge(found, settled, over_too=True)
        return found

    def _known(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """The revisions that the store is known to have."""
        with self._lock:
            return {key: entry.stored if (entry := self._core.replica.get(key)) is not None else NOTHING for key in keys}

    def tell(self, keys: Iterable[bytes]) -> Deferred[Any]:
        """Fires when those who are to hold these have them, or did not answer."""
        with self._lock:
            receipt = self._restoring.tell(keys)
        self._flush()
        return receipt.deferred().addErrback(lambda failure: failure.trap(SessionError)) if receipt.needs_wait else succeed(None)

    # -- what a request misses

    def may_find(self, key: bytes, now_ms: int) -> bool:
        """Whether this member asks the store for what no member has: not if it is to be held by others only, who have looked there, and not twice at once."""
        placement = self._core.placement
        return placement.depth(self._core.me, key, placement.appoint(key)) == WHOLE and not self._knows_absent(key, now_ms)

    def _knows_absent(self, key: bytes, now_ms: int) -> bool:
        """Whether the store had nothing of it a moment ago."""
        at = None if self.is_shared else self._absent.get(key)
        return at is not None and now_ms - at < _ABSENT_MS

    def fetch(self, key: bytes, done: Callable[[int], None]) -> None:
        """Load it; `done(verdict)`: FOUND: it is where it belongs; GONE: there is none, or it has ended; UNSURE: the store does not answer."""
        if self._knows_absent(key, self._channel.now_ms()):
            done(GONE if self._core.replica.get(key) is None else FOUND)  # it may have come meanwhile
            return
        self._fetches.setdefault(key, []).append(done)
        if not self._is_fetching:
            self._fetch_next()

    def _fetch_next(self) -> None:
        keys = list(self._fetches)[:_FETCHED_AT_ONCE]
        if not keys:
            return
        self._is_fetching = True
        waiting = {key: self._fetches.pop(key) for key in keys}  # who asks from now on may know of something that this load has missed
        Deferred.fromCoroutine(self._fetch(waiting)).addErrback(_log_bugs)

    @property
    def answers(self) -> bool:
        """Whether the store is asked for what is missing here, or never will be; until then that is *unknown*. Any thread."""
        is_trusted = self.is_trusted()
        return is_trusted is False or (self.is_running and bool(is_trusted) and self.ready())

    async def _fetch(self, waiting: Mapping[bytes, list[Callable[[int], None]]]) -> None:
        keys = list(waiting)
        verdicts = dict.fromkeys(keys, UNSURE)
        try:
            if self.is_trusted() is False:
                verdicts = dict.fromkeys(keys, GONE)
            elif self.answers:
                before = self._known(keys)
                verdicts = self._bring(await self._worker.call(self._worker.store.load, keys), before)
        except StoreError:
            pass
        except Exception:
            _log.failure("what a store said could not be used")
        self._is_fetching = False
        for key, dones in waiting.items():
            for done in dones:
                try:
                    done(verdicts[key])
                except Exception:  # what one request runs into is not the others'
                    _log.failure("a request for session {key} failed when it was loaded", key=key.hex())
        if not self._is_fetching:
            self._fetch_next()

    def _bring(self, found: Mapping[bytes, Stored], before: Mapping[bytes, bytes]) -> dict[bytes, int]:
        """`before`: the keys, and what the store was known to have of them."""
        with self._lock:
            settled = [key for key, revision in before.items() if self._storing.is_settled(key, revision)]
            for key in settled:
                if self.is_shared and key not in found:
                    self._forget(key)
        came = self.merge(found, [key for key in settled if key in found])
        for key in before:
            self._core.replica.verified(key)
        replica = self._core.replica
        verdicts = {key: GONE if replica.get(key) is None else FOUND for key in before}  # also what is stored, and over
        for key in before:
            if verdicts[key] == GONE and not self.is_shared:
                self._absent.pop(key, None)
                if len(self._absent) >= _ABSENT_MAX:
                    del self._absent[next(iter(self._absent))]
                self._absent[key] = self._channel.now_ms()
        self.tell(came)
        return verdicts

    def _forget(self, key: bytes) -> None:
        """The store has lost it, or somebody has cleared it. What it never had, or what has changed here since, is to be saved."""
        entry = self._core.replica.held(key)
        if entry is not None and self._storing.has_all(key, entry):
            self._core.replica.passivate(key)

    # -- everything

    @property
    def deadline_ms(self) -> int:
        return self._pass_ms

    def tick(self, now_ms: int) -> None:
        if now_ms < self._pass_ms:
            return
        self._pass_ms = now_ms + (_PASS_AGAIN_MS if self.is_complete else _PASS_AGAIN_MS // 10)
        placement = self._core.placement
        if self._is_passing or placement is self._passed or not self._worker.is_callable:
            return
        if self.is_trusted() is False:
            self.is_complete = True
        if not (self.is_trusted() and self.has_met() and self._core.in_sync and self.ready()):
            return
        if self.is_complete and self._core.passivating.is_wanted:
            return  # what is not here was left to the store
        self._is_passing = True
        Deferred.fromCoroutine(self._pass(placement)).addErrback(_log_bugs).addBoth(self._pass_ended)

    def _brings(self, key: bytes, placement: Placement) -> bool:
        """Whether it is this member that brings it back. What never ends (epochs) decides about all else, so each member brings all of that for itself."""
        return self._core.eternal or placement.keepers(partition_of(key))[:1] in ((self._core.me,), ())

    def _pass_ended(self, _: object) -> None:
        self._is_passing = False

    async def _pass(self, placement: Placement) -> None:
        store, began_s, loads = self._worker.store, self._clock.seconds(), self.loads
        after = b""
        while self.is_running:
            keys = await self._worker.call(store.keys, after, _LISTED_AT_ONCE)
            with self._lock:
                missing = [key for key in keys if self._core.replica.get(key) is None and self._brings(key, placement)]
            for some in batched(missing):
                found = await self._worker.call(store.load, some)
                await self.tell(self.merge(found, found))
                await deferLater(self._clock, 0)  # requests come in between
            if not self._core.passivating.has_room:
                _log.info("{store} has more sessions than may be in memory; the others are loaded when they are asked for", store=store.name)
            if not keys or not self._core.passivating.has_room:  # fewer than asked for are no end: others write meanwhile
                self._passed, self.is_complete = placement, True
                break
            after = keys[-1]
        if self.loads > loads:
            seconds = self._clock.seconds() - began_s
            _log.info("{count} sessions came back from {store} in {seconds:.1f} s", count=self.loads - loads, store=store.name, seconds=seconds)


def batched(keys: Iterable[bytes]) -> Iterator[list[bytes]]:
    """So many as are loaded in one call."""
    left = list(keys)
    return (left[at : at + _LOADED_AT_ONCE] for at in range(0, len(left), _LOADED_AT_ONCE))


def _read(found: Mapping[bytes, Stored]) -> tuple[dict[bytes, tuple[Kept, Record] | KeptEnd], dict[bytes, RemoteError]]:
    """(what can be read, what cannot and why)."""
    items: dict[bytes, tuple[Kept, Record] | KeptEnd] = {}
    damaged: dict[bytes, RemoteError] = {}
    for key, stored in found.items():
        try:
            item = read_item(stored.data)
            if item.key != key:
                raise RemoteError("stored under another key")
            items[key] = (item, Record.unpack(item.body)) if isinstance(item, Kept) else item
        except RemoteError as error:
            damaged[key] = error
    return items, damaged


def _log_bugs(failure: Failure) -> None:
    if not failure.check(StoreError):
        _log.failure("what a store said could not be used", failure=failure)
