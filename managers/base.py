"""A session manager: what applications and web fronts use, around a core that decides.

Three kinds of callers meet here, under one lock. *Application threads* open sessions (a lock, a dictionary; `opening.py`)
and commit them (`committing.py`). *The reactor* feeds what members say to the core, keeps the time, and performs the core's
effects after it has let go of the lock. *Waiters* block on a receipt or a look-up that the reactor ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from ..membership.channel import Channel, Message, Waiter
from ..membership.driver import Driver
from ..membership.effects import Effect, Send
from ..membership.member import Member
from ..membership.view import View, ViewChanged
from .core import SessionCore
from .entry import Audited
from .expiry import SharedEnded, TimeSeemsOver
from .freshness import WaitEnded
from .in_turn import InTurn
from .listeners import AttributeChanged, Listeners, SessionDestroyed
from .lock import PoliteLock
from .locking import Locks
from .lookup import LookupEnded, StoreWanted
from .memory import memory_bytes
from .messages import DELTAS
from .notices import EndToTell
from .opening import Opening
from .persistence import Persistence
from .placement import Strategy
from .renewing import RenewingCommits
from .restoring import Restoring
from .session import Session
from .settings import ManagerSettings
from .snapshots import Snapshots
from .stores.settings import StoreSettings
from .stores.worker import StoreWorker
from .summaries import summaries
from .surveying import compare, items_of, page
from .throttle import Throttle
from .transient import Transients
from .users import EpochBook, Users
from .values import ValueTypes

__all__ = ["SessionManager"]

_log = Logger()


class SessionManager:
    """Methods without another word are for any thread.

    `strategy(view, me)` is the placement. `asleep_s`: after so long without a tick this process does not trust its copies. `kind`: what members announce
    that run this manager in the same way; what others say is ignored. `epochs`: of all principals (`epochs.py`). `store`: where it keeps sessions besides.
    """

    def __init__(
        self,
        name: str,
        channel: Channel,
        settings: ManagerSettings,
        strategy: Strategy,
        *,
        clock: IReactorTime,
        entropy: Callable[[int], bytes] = os.urandom,
        types: ValueTypes | None = None,
        asleep_s: float = 3.0,
        kind: str = "delta",
        epochs: EpochBook | None = None,
        store: tuple[StoreWorker, StoreSettings] | None = None,
    ) -> None:
        self.name, self.route = name, channel.me.route  #: what cookies call this node
        settings = settings if settings.memory_max_bytes else replace(settings, memory_max_bytes=memory_bytes() // 2)
        self._kind = kind
        self.settings = settings
        self.types = types or ValueTypes()
        self._channel = channel
        self._clock = clock
        self._uid = channel.me.uid
        self._lock = PoliteLock()
        self._core = SessionCore(
            self._uid, name, settings, strategy, View.of(0, [channel.me]), int(asleep_s * 1000), channel.now_ms(), {} if epochs is None else epochs.current
        )
        self._listeners = Listeners(self._uid, self.types, self._listened)
        self.listen, self.on = self._listeners.listen, self._listeners.on
        self._core.notices.on_settled = lambda flight, told: self._react(lambda now_ms: self._core.notices.settled(flight, told, now_ms))
        self._committing = RenewingCommits(name, self._core, channel, self._lock, self._listeners, self._attend, entropy)
        self.commit = self._committing.commit
        self.end = self._committing.end
        restoring = Restoring(self._core, channel, self._committing)
        self.snapshots = Snapshots(self._core, channel, self._lock, restoring, self.flush)
        self._driver = Driver(self, clock, self._perform)
        self.deltas_received = 0
        self.is_running = False  #: between `start` and `stop`; any thread
        self.open_failures = 0  #: requests that got no session, as fronts count them
        self._transients = Transients(settings)
        self._made: Callable[..., Session]
        self.locks: Locks  #: `session.lock()`
        #: Who is logged in.
        self.users = Users(name, self._core, channel, self._lock, self._committing, epochs, lambda *parts: self._made(*parts), self._attend)
        self._made = partial(
            self._transients.session_kind, settings, self.types, entropy, stamp=self.users.stamp, locked=lambda *wanted: self.locks.of(*wanted)
        )
        self.end_all = self.users.end_all
        self.login_deferred = self.users.login_deferred
        self.on_audit: Callable[[Audited], object] | None = None  #: hears what befalls logins, in the reactor's thread; applications `listen`
        #: The shared logins that its applications take part in (`web/single.py`'s `SingleSignOn`); None: none. The node sets it.
        self.single: Any = None
        self._opening = Opening(self._core, channel, self._lock, self._react, self._made, self._committing.lead)
        self.locks = Locks(name, self._core, channel, self._lock, self._committing, self._opening, clock)
        #: Opens sessions for requests that take turns; asked by fronts.
        self.in_turn = InTurn(self._opening, channel, self._lock, settings, clock)
        self.open_local, self.open = self._opening.open_local, self._opening.open
        self.open_deferred, self.open_soon = self._opening.open_deferred, self._opening.open_soon
        self.unknown = self._opening.unknown
        self.throttle = Throttle(settings, clock.seconds)  #: what one client may cost; asked by fronts
        self.release, self.is_primary = self._opening.release, self._opening.is_primary
        self.persistence = self._kept_in(store, restoring, epochs)

    def _kept_in(self, store: tuple[StoreWorker, StoreSettings] | None, restoring: Restoring, epochs: EpochBook | None) -> Persistence | None:
        if store is None:
            return None
        persistence = Persistence(self._core, self._channel, self._lock, self._committing, restoring, self.flush, *store, self._clock)
        self._opening.store = persistence.fetching
        self._core.finding.has_store = True
        if epochs is not None:
            persistence.fetching.ready = lambda: epochs.is_loaded  # what is stored may be of a login that is over
        return persistence

    # -- life, in the reactor's thread

    @property
    def me(self) -> Member:
        return self._channel.me

    @property
    def view(self) -> View:
        """The members that take part, this one among them."""
        return self._core.placement.view

    def start(self) -> None:
        self._announce()
        self.users.start()
        if self.persistence is not None:
            self.persistence.start()
        self._driver.start()
        self.in_turn.start()
        self.is_running = True

    def flush(self) -> None:
        """Send what is waiting. Before the farewell; `stop` comes after it, so that nobody is told "applied" of what is ignored."""
        self._committing.flush()
        self._react(self._core.notices.flush)

    def stop(self) -> None:
        """Leave the channel. Sessions stay readable."""
        self.is_running = False
        self._committing.flush()
        self._driver.stop()
        self._channel.detach(self.name)
        with self._lock:
            waitings, self._committing.confirming.waitings = self._committing.confirming.waitings, []
        for waiting in waitings:
            waiting.expire()
        self.in_turn.stop()
        self._opening.stop()

    def view_changed(self, change: ViewChanged) -> None:
        """The members of our domain that announce this manager."""
        self._react(lambda now_ms: self._core.view_changed(now_ms, change))
        if self.persistence is not None:
            self.persistence.storing.placed()

    def slept(self, seconds: float) -> None:
        """This process stood still for longer than the drop time."""
        self._react(self._core.slept)

    # -- the reactor's side

    def _attend(self) -> None:
        self._tell()
        self._rearm()

    def received(self, peer: Member, message: list[Any], offset_ms: int) -> None:
        if peer.kind_of(self.name) != self._kind:
            return  # it places sessions otherwise, and may be too old to know that we do
        if message[1] == DELTAS and len(message) > 3 and type(message[3]) is list:
            self.deltas_received += len(message[3])
        self._react(lambda now_ms: self._core.receive(now_ms, peer.uid, message, offset_ms))

    def link_opened(self, peer: Member, resumed: bool) -> None:
        self._react(lambda now_ms: self._core.link_opened(now_ms, peer.uid, resumed))

    def link_lost(self, peer: Member) -> None:
        self._react(lambda now_ms: self._core.link_lost(now_ms, peer.uid))

    def refill(self, peer: Member, keys: Iterable[bytes], waiters: Sequence[Waiter]) -> Iterable[Message]:
        with self._lock:
            messages = self._core.refill(list(keys), waiters)
        if not messages:
            for waiter in waiters:
                waiter.failed(peer.uid)
        return messages

    def _react(self, step: Callable[[int], Sequence[Effect]]) -> None:
        with self._lock:
            effects = step(self._channel.now_ms())
        for effect in effects:
            self._perform(effect)
        if self._core.replica.events or self._core.renewals.over:
            self._tell()
        self._rearm()

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, Send):
            self._channel.send(effect.to, effect.message)
        elif isinstance(effect, LookupEnded):
            self._opening.found(*effect.event)  # type: ignore[misc]
        elif isinstance(effect, StoreWanted):
            self._ask_store(*effect.event)  # type: ignore[misc]
        elif isinstance(effect, EndToTell):
            self._listeners.ended(*effect.event)  # type: ignore[misc]
        elif isinstance(effect, WaitEnded):
            self._opening.waited(*effect.event)  # type: ignore[misc]
        elif isinstance(effect, TimeSeemsOver):
            if self.persistence is not None:
                self.persistence.lapsing.look(effect.key)
        elif isinstance(effect, SharedEnded):
            self.users.end_shared(effect.tag)
        else:
            raise AssertionError(f"unknown effect {effect!r}")

    def _ask_store(self, peer: bytes, key: bytes) -> None:
        """For a member that asks for this session."""
        assert self.persistence is not None
        self.persistence.fetching.fetch(key, lambda verdict: self._react(lambda now_ms: self._core.finding.store_said(peer, key, verdict, now_ms)))

    def _tell(self) -> None:
        core, now_ms = self._core, self._channel.now_ms()
        with self._lock:
            effects = core.ended(core.renewals.ends(now_ms))
            events, core.replica.events = core.replica.events, []
            effects += core.notices.ended(events, now_ms)
        self._transients.ended(events)
        if self.on_audit is not None:
            for event in events:
                if type(event) is Audited:
                    self.on_audit(event)
        if self._listeners:
            for event in events:
                self._listeners.tell(event)
        for effect in effects:
            self._perform(effect)

    # -- time, for the driver

    def tick(self, now: float) -> list[Effect]:
        now_ms = self._channel.now_ms()
        with self._lock:
            effects = self._core.tick(now_ms)
            late = self._committing.confirming.take_late(now_ms)
        for waiting in late:
            for uid in waiting.expire():
                self._channel.degrade(uid)
        if self._committing.touching.is_due(now_ms):
            self._committing.flush()
        elif self._core.replica.events:
            self._tell()
        if self.persistence is not None:
            self.persistence.tick(now_ms)
        return effects

    def deadline(self) -> float:
        now_ms = self._channel.now_ms()
        self._committing.armed_ms = self._deadline_ms()
        return self._clock.seconds() + max(1, self._committing.armed_ms - now_ms) / 1000

    def _deadline_ms(self) -> int:
        times = [self._core.deadline_ms]
        if self._committing.touching.next_ms is not None:
            times.append(self._committing.touching.next_ms)
        waitings = self._committing.confirming.waitings
        if waitings:
            times.append(waitings[0].expires_ms)
        if self.persistence is not None:
            times.append(self.persistence.deadline_ms)
        return min(times)

    def _rearm(self) -> None:
        if self._deadline_ms() < self._committing.armed_ms:
            self._driver.rearm()

    # -- knowing

    @property
    def knows_all(self) -> bool:
        """Whether this member holds every session that there is."""
        return self._core.placement.sees_all

    @property
    def in_sync(self) -> bool:
        """Reconciled with every member that holds what we hold."""
        with self._lock:
            return self._core.in_sync

    def is_in_sync_with(self, uid: bytes) -> bool:
        return uid == self._uid or uid in self._core.entropy.in_sync

    def has_member(self, route: str) -> bool:
        """Whether a member that cookies call so takes part."""
        return any(member.route == route for member in self._core.placement.view)

    def remaining(self) -> tuple[int, int]:
        """While this member announces no weight: (sessions and tombstones that are not handed over yet, sessions that nobody else can hold)."""
        with self._lock:
            return self._core.remaining()

    @property
    def count(self) -> int:
        """Live sessions held."""
        return self._core.replica.live

    def age_s(self, session: Session) -> float:
        """Seconds since it was created; 0 before its first commit."""
        return max(0, self._channel.now_ms() - session.created_ms) / 1000 if session.created_ms else 0.0

    def touch(self, session: Session) -> None:
        """The session is in use, though nobody reads it: it goes on living. The others hear of it at most once in `save_period_s`."""
        if session.key and not session.new and not session.ended:
            self._committing._touch(session.key)

    def renew(self, session: Session) -> None:
        """For fronts, before they commit what a request did: if the session's id is older than `renewal_timeout_s`, the commit gives it the next one."""
        if self.settings.renewal_timeout_s and session.created_ms:
            session.renew(self._channel.now_ms() - session.created_ms, int(self.settings.renewal_timeout_s * 1000))

    def follow(self, session: Session) -> None:
        """Let a session that was opened with an id which was replaced meanwhile go on under the next one."""
        if self._core.renewals.old:
            self._committing.follow(session)

    def is_live(self, session: Session) -> bool | None:
        """Whether nobody has ended the session, or given it another id, since it was opened; None: others would have to be asked."""
        with self._lock:
            entry, trusted = self._core.trusted(session.key, self._channel.now_ms())
        return entry is not None if trusted else None

    def _listened(self, kind: type, replicas: bool) -> None:
        """There is a listener of this kind from now on."""
        if replicas and kind is AttributeChanged:
            self._core.telling.on = True
        if kind is SessionDestroyed and not replicas and not self._core.notices.hears:
            self._core.notices.hears = True
            self._channel.wake(lambda: self._announce() if self.is_running else None)

    def _announce(self) -> None:
        self._channel.attach(self.name, self, self._core.notices.hears)

    def summaries(self, limit: int = 100, after: bytes = b"") -> list[dict[str, Any]]:
        """Sessions by key, for operators: never ids or values."""
        with self._lock:
            return summaries(self._core, limit, after, self._channel.now_ms())

    def survey_page(self, after: bytes, limit: int) -> list[bytes]:
        """Items of what is held here (`surveying.py`); so `survey_items` for these keys. `survey_compare`: how ours are beside others' items."""
        with self._lock:
            return page(self._core, after, limit)

    def survey_items(self, keys: Sequence[bytes]) -> list[bytes]:
        with self._lock:
            return items_of(self._core, keys)

    def survey_compare(self, items: Sequence[bytes]) -> bytes:
        with self._lock:
            return compare(self._core, items)

    def statistics(self) -> dict[str, int]:
        core, replica = self._core, self._core.replica
        return {
            "sessions": replica.live, "tombstones": replica.tombstones, "memory_bytes": replica.bytes, "memory_max_bytes": core.budget.most_bytes, "commits": self._committing.commits, "commits_dropped": self._committing.dropped,
            "sessions_refused": self._committing.refused, "creations_refused": self.throttle.creations_refused, "lookups_refused": self.throttle.lookups_refused,
            "deltas_received": self.deltas_received, "conflicts": replica.conflicts, "gaps": replica.gaps, "repeats": replica.repeats,
            "late_deltas_dropped": replica.dropped, "tombstones_forgotten": replica.forgotten, "revivals": replica.revivals, "expired": core.expiry.expired,
            "expiry_questions": core.expiry.asked, "principals": len(core.logins), "logins_ended": core.logins.ended, "lookups": core.lookups.asked, "lookup_timeouts": core.lookups.timeouts,
            "token_waits": core.freshness.waits, "token_questions": core.freshness.asked, "stale_reads": self._opening.stale_reads,
            "reconcile_rounds": core.entropy.rounds, "partitions_differing": core.entropy.differing,
            "near_copies": len(core.moving.near), "near_hits": core.moving.near.hits, "near_stale": core.moving.near.stale,
            "copies_leaving": len(core.moving.handover.parting.leaving), "copies_dropped": core.moving.handover.parting.dropped,
            "records_sent": core.entropy.records_sent, "record_bytes_sent": core.entropy.bytes_sent,
            "listener_errors": self._listeners.errors, "ends_told": core.notices.told, "ends_to_tell": len(core.notices), "ends_untold": core.notices.dropped, "in_use": len(core.in_use), "driver_errors": self._driver.errors,
            "open_failures": self.open_failures, **self.locks.statistics(), **self.in_turn.statistics(), **({} if self.persistence is None else self.persistence.statistics()),
        }  # fmt: skip
