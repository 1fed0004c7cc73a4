"""A session manager: what applications and web fronts use, around a core that decides.

Three kinds of callers meet here, under one lock. *Application threads* open sessions (a lock, a dictionary) and commit
them: they apply their own commit, put the encoded delta into the outbox, and go on. *The reactor* takes the outbox in
batches, feeds what members say to the core, and performs its effects after it has let go of the lock. *Waiters* block on
a receipt or a look-up that the reactor ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from ..membership.channel import Channel, Message, Waiter
from ..membership.driver import Driver
from ..membership.effects import Effect, Send
from ..membership.member import Member
from ..membership.view import View, ViewChanged
from .changes import batch_prefix, encode_delta
from .core import SessionCore
from .errors import SessionError, SessionUnknown
from .heads import ID_CHANGED
from .listeners import AttributeChanged, Listeners
from .lock import PoliteLock
from .lookup import LookupEnded
from .messages import DELTAS
from .opening import Opening
from .outbox import ManagerOutbox
from .placement import Placement
from .receipts import DONE, DROPPED, Receipt, Waiting, needed_confirmations
from .session import Session, key_of
from .settings import ManagerSettings
from .summaries import summaries
from .touches import Touching
from .values import ValueTypes

__all__ = ["SessionManager"]

_log = Logger()
_HEADS_AT_ONCE = 500


class SessionManager:
    """Methods without another word are for any thread.

    `strategy(view, me)` is the placement. `asleep_s`: after so long without a tick this process does not trust its copies.
    """

    def __init__(
        self,
        name: str,
        channel: Channel,
        settings: ManagerSettings,
        strategy: Callable[[View, bytes], Placement],
        *,
        clock: IReactorTime,
        entropy: Callable[[int], bytes] = os.urandom,
        types: ValueTypes | None = None,
        asleep_s: float = 3.0,
    ) -> None:
        self.name = name
        self.settings = settings
        self.types = types or ValueTypes()
        self._channel = channel
        self._clock = clock
        self._uid = channel.me.uid
        self._lock = PoliteLock()
        self._core = SessionCore(self._uid, name, settings, strategy, View.of(0, [channel.me]), int(asleep_s * 1000), channel.now_ms())
        self._outbox = ManagerOutbox(name, batch_prefix(name, DELTAS, self._uid))
        self._touching = Touching(settings)
        self._waitings: list[Waiting] = []
        self._listeners = Listeners(self._uid, self.types)
        self._driver = Driver(self, clock, self._perform)
        self._armed_ms = 0
        self._level = settings.acks
        self.commits = self.commits_dropped = self.deltas_received = 0
        self._opening = Opening(self._core, channel, self._lock, self._react, partial(Session, settings, self.types, entropy))
        self.open_local = self._opening.open_local
        self.open = self._opening.open
        self.open_deferred = self._opening.open_deferred
        self.release = self._opening.release

    # -- life, in the reactor's thread

    @property
    def me(self) -> Member:
        return self._channel.me

    def start(self) -> None:
        self._channel.attach(self.name, self)
        self._driver.start()

    def flush(self) -> None:
        """Send what is waiting. Before the farewell; `stop` comes after it, so that nobody is told "applied" of what is ignored."""
        self._flush()

    def stop(self) -> None:
        """Leave the channel. Sessions stay readable."""
        self._flush()
        self._driver.stop()
        self._channel.detach(self.name)
        with self._lock:
            waitings, self._waitings = self._waitings, []
        for waiting in waitings:
            waiting.expire()
        self._opening.stop()

    def view_changed(self, change: ViewChanged) -> None:
        """The members of our domain that announce this manager."""
        self._react(lambda now_ms: self._core.view_changed(now_ms, change))

    def slept(self, seconds: float) -> None:
        """This process stood still for longer than the drop time."""
        self._react(self._core.slept)

    # -- committing

    def commit(self, session: Session, acks: str | int | None = None, touch: bool = True) -> Receipt:
        """Apply and replicate what the request changed. Never blocks; ask the receipt.

        `acks` overrides the manager's level; without `touch`, reading alone does not keep the session alive. A commit to a
        session that another request or member has ended is dropped and counted; its receipt is not `satisfied`. Raises
        `SessionUnknown`, `SessionError` (limits), `ValueRefused` (a nested value that cannot travel).
        """
        if session.unknown:
            raise SessionUnknown("the session may exist on members that do not answer")
        if session.ending:
            return self._commit_ending(session)
        changes = session.changes()
        if not changes:
            if touch and session.accessed and not session.new:
                self._touch(session.key)
            return DONE
        level = self._level if acks is None else acks
        waiting = None if level in ("none", 0) else self._waiting(level)
        if not self._write(session.key, changes, session, waiting):
            return DROPPED
        return DONE if waiting is None else waiting

    def _write(self, key: bytes, changes: dict[str, bytes | None], session: Session, waiting: Waiting | None) -> bool:
        now_ms = self._channel.now_ms()
        replica, outbox = self._core.replica, self._outbox
        with self._lock:
            entry = replica.get(key)
            if entry is None:
                if not session.new:
                    self.commits_dropped += 1
                    return False
                if session.previous_id is None and replica.live >= self.settings.sessions_max:  # a new id is no new session
                    raise SessionError(f"{replica.live} sessions are held already (sessions_max)")
                session.created_ms = session.created_ms or now_ms
            elif entry.head is not None:
                if entry.head.state:
                    self.commits_dropped += 1
                    return False
                if entry.head.primary != self._uid and entry.head.primary not in self._core.placement.view:
                    outbox.put_head(key, replica.take_over(key, entry))
            counter, previous, seen, created = replica.commit(key, changes, now_ms, session.created_ms)
            session.committed(changes, (counter, self._uid))
            delta = encode_delta(key, counter, previous, seen, changes, now_ms, session.created_ms if created else None)
            outbox.put(key, delta, waiting.ear if waiting is not None else None)
            if None in changes.values():
                self._prune(key)
            if created or replica.fresh:
                self._core.settle_fresh(now_ms)
            if waiting is not None and waiting.needs_wait:
                self._waitings.append(waiting)
            if self._listeners:
                replica.events += [AttributeChanged(key, name, value is None) for name, value in changes.items() if name[:1] != "\0"]  # type: ignore[misc]
            self.commits += 1
            armed, outbox.armed = outbox.armed, True
        if not armed:
            self._channel.wake(self._flush)
        return True

    def _prune(self, key: bytes) -> None:
        entry = self._core.replica.get(key)
        record = self._core.replica.record(key, entry) if entry is not None else None
        if record is not None and entry is not None and record.wants_pruning and (entry.head is None or entry.head.primary == self._uid):
            record.prune()
            self._outbox.put_state(key)

    def _waiting(self, level: str | int, messages: int = 1, everybody: bool = False) -> Waiting:
        """A receipt for the members that can answer now."""
        placement, synced, channel = self._core.placement, self._core.entropy.in_sync, self._channel
        peers = placement.peers()
        able = [uid for uid in peers if (everybody or uid in synced) and not channel.is_degraded(uid)]
        needed = len(able) if everybody else needed_confirmations(level, len(peers))
        names = {uid: placement.view.by_uid[uid].name for uid in peers}
        expires_ms = channel.now_ms() + int(self.settings.ack_timeout_s * 1000)
        return Waiting(needed, names, able, expires_ms, self.settings.strict_acks and not everybody, messages)

    def _commit_ending(self, session: Session) -> Receipt:
        """Invalidation, or the end of the old id: its head goes to everybody that can answer, and is waited for."""
        ended_key = key_of(session.previous_id) if session.previous_id is not None else session.key
        state = session.ending
        if session.new and session.previous_id is None:
            session.committed({}, (0, b""))
            return DONE  # it never was more than this request's
        changes = session.changes() if state == ID_CHANGED else {}
        now_ms = self._channel.now_ms()
        with self._lock:
            entry = self._core.replica.held(ended_key) if state == ID_CHANGED else None
            record = self._core.replica.record(ended_key, entry) if entry is not None else None
            contents = session.contents(changes, record.registers) if record is not None else {}
            waiting = self._waiting("all", messages=2 if contents else 1, everybody=True)  # the old id's end, and what the new one holds
            head = self._core.replica.end(ended_key, state, now_ms)
            if head is None:
                self.commits_dropped += 1
                session.dropped()
                return DROPPED
            self._outbox.put_head(ended_key, head, waiting.ear)
            self._core.settle_fresh(now_ms)
            if waiting.needs_wait and not contents:
                self._waitings.append(waiting)
            if contents:
                session.new = True
                self._write(session.key, contents, session, waiting)
            else:
                session.committed({}, (0, b""))
                session.new = state == ID_CHANGED  # empty: it begins with its first write
            armed, self._outbox.armed = self._outbox.armed, True
        if not armed:
            self._channel.wake(self._flush)
        return waiting

    def _touch(self, key: bytes) -> None:
        """The session was used. Told to the others after `save_period_s`, at the latest."""
        now_ms = self._channel.now_ms()
        with self._lock:
            entry = self._core.replica.held(key)
            if entry is None:
                return
            self._touching.touch(key, entry, self._uid, now_ms)

    # -- the reactor's side

    def _flush(self) -> None:
        """Everything that commits have left since the last time, to everybody that holds it."""
        with self._lock:
            taken = self._outbox.take()
            peers = self._core.placement.peers()
            say = self._core.say
            messages: list[Message] = []
            failed: list[Waiter] = []
            for i in range(0, len(taken.heads), _HEADS_AT_ONCE):
                last = i + _HEADS_AT_ONCE >= len(taken.heads)
                messages.append(say.heads(taken.heads[i : i + _HEADS_AT_ONCE], taken.heads_waiters if last else ()))
            messages += taken.deltas
            if taken.dirty:
                states = self._core.refill(list(taken.dirty), taken.dirty_waiters)
                messages += states
                if not states:
                    failed = taken.dirty_waiters  # their sessions have ended since: the heads say so
            touches = self._touching.take(self._channel.now_ms(), self._core.replica)
            messages += [say.touches(some) for some in touches]
        for waiter in failed:
            for uid in peers:
                waiter.failed(uid)
        if peers:
            for message in messages:
                self._channel.send(peers, message)
        self._tell()
        self._rearm()

    def received(self, peer: Member, message: list[Any], offset_ms: int) -> None:
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
        if self._core.replica.events:
            self._tell()
        self._rearm()

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, Send):
            self._channel.send(effect.to, effect.message)
        elif isinstance(effect, LookupEnded):
            self._opening.ended(*effect.event)  # type: ignore[misc]
        else:
            raise AssertionError(f"unknown effect {effect!r}")

    def _tell(self) -> None:
        with self._lock:
            events, self._core.replica.events = self._core.replica.events, []
        if self._listeners:
            for event in events:
                self._listeners.tell(event, self._core.placement.view)

    # -- time, for the driver

    def tick(self, now: float) -> list[Effect]:
        now_ms = self._channel.now_ms()
        with self._lock:
            effects = self._core.tick(now_ms)
            late = [waiting for waiting in self._waitings if waiting.needs_wait and now_ms >= waiting.expires_ms]
            self._waitings = [waiting for waiting in self._waitings if waiting.needs_wait and now_ms < waiting.expires_ms]
        for waiting in late:
            for uid in waiting.expire():
                self._channel.degrade(uid)
        if self._touching.is_due(now_ms):
            self._flush()
        elif self._core.replica.events:
            self._tell()
        return effects

    def deadline(self) -> float:
        now_ms = self._channel.now_ms()
        self._armed_ms = self._deadline_ms()
        return self._clock.seconds() + max(1, self._armed_ms - now_ms) / 1000

    def _deadline_ms(self) -> int:
        times = [self._core.deadline_ms]
        if self._touching.next_ms is not None:
            times.append(self._touching.next_ms)
        waitings = self._waitings
        if waitings:
            times.append(waitings[0].expires_ms)
        return min(times)

    def _rearm(self) -> None:
        if self._deadline_ms() < self._armed_ms:
            self._driver.rearm()

    # -- knowing

    @property
    def in_sync(self) -> bool:
        """Reconciled with every member that holds what we hold."""
        with self._lock:
            return self._core.in_sync

    def is_in_sync_with(self, uid: bytes) -> bool:
        return uid == self._uid or uid in self._core.entropy.in_sync

    @property
    def count(self) -> int:
        """Live sessions held."""
        return self._core.replica.live

    def listen(self, kind: type, callback: Callable[[Any], None], replicas: bool = False) -> None:
        """Call `callback(event)` in the reactor's thread for events of this kind (`listeners.py`); `replicas`: on every member."""
        self._listeners.add(kind, callback, replicas)

    def summaries(self, limit: int = 100, after: bytes = b"") -> list[dict[str, Any]]:
        """Sessions by key, for operators: never ids or values."""
        with self._lock:
            return summaries(self._core, limit, after, self._channel.now_ms())

    def statistics(self) -> dict[str, int]:
        core, replica = self._core, self._core.replica
        return {
            "sessions": replica.live, "tombstones": replica.tombstones, "commits": self.commits, "commits_dropped": self.commits_dropped,
            "deltas_received": self.deltas_received, "conflicts": replica.conflicts, "gaps": replica.gaps, "repeats": replica.repeats,
            "late_deltas_dropped": replica.dropped, "tombstones_forgotten": replica.forgotten, "revivals": replica.revivals, "expired": core.expiry.expired,
            "expiry_questions": core.expiry.asked, "lookups": core.lookups.asked, "lookup_timeouts": core.lookups.timeouts,
            "reconcile_rounds": core.entropy.rounds, "records_sent": core.entropy.records_sent, "record_bytes_sent": core.entropy.bytes_sent,
            "listener_errors": self._listeners.errors, "in_use": len(core.in_use), "driver_errors": self._driver.errors,
        }  # fmt: skip
