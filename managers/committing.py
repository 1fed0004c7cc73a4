"""Committing: what a request changed becomes one delta, on its way to every member that holds the session.

Whoever commits does everything itself: it applies the changes to the record, encodes the delta, puts it into the outbox.
The first to put something into an empty outbox also sees that it is taken (`_depart`), and takes along what others have put
there meanwhile. How it is taken decides about speed: by the committing thread, which is the shortest way
when somebody waits for confirmations or nothing else is going on; or by the reactor's next turn, which gathers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from ..membership.channel import Channel, Message, Waiter, fail
from .changes import batch_prefix, encode_delta
from .core import SessionCore
from .entry import Entry
from .errors import SessionError, SessionUnknown
from .heads import ID_CHANGED
from .listeners import AttributeChanged, Listeners
from .lock import PoliteLock
from .messages import DELTAS
from .outbox import ManagerOutbox
from .receipts import DONE, DROPPED, Receipt, Waiting, needed_confirmations
from .session import Session, key_of
from .tokens import SECRET_BYTES, TOKEN_KEY, add_commit, secret_of
from .touches import Touching

__all__ = ["Committing"]

_HEADS_AT_ONCE = 500
_QUIET_MS = 1  # an outbox that was taken longer ago is worth a write of its own; below, commits gather


class Committing:
    """Any thread, except where a method says otherwise.

    `attend`: run in the reactor's thread (by the channel's `wake`) after events or a new deadline. `waitings`: receipts that
    are waited for, by deadline. `armed_ms`: when the manager's timer goes off next; the manager sets it. `entropy` gives random bytes.
    """

    def __init__(
        self,
        name: str,
        core: SessionCore,
        channel: Channel,
        lock: PoliteLock,
        listeners: Listeners,
        attend: Callable[[], None],
        entropy: Callable[[int], bytes],
    ) -> None:
        self._core = core
        self._channel = channel
        self._lock = lock
        self._listeners = listeners
        self._attend = attend
        self._entropy = entropy
        self._writes_tokens = core.settings.read_your_writes == "cluster"
        self._uid = core.me
        self._settings = core.settings
        self._level = core.settings.acks
        self._outbox = ManagerOutbox(name, batch_prefix(name, DELTAS, core.me))
        self.touching = Touching(core.settings)
        self.waitings: list[Waiting] = []
        self.armed_ms = 0
        self._taken_ms = 0
        self.commits = self.dropped = 0

    def flush(self) -> None:
        """Take the outbox. Reactor's thread."""
        self._channel.run(self.transmit)
        self._attend()

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
        with self._lock:
            entry = self._writable(session)
            if entry is False:
                return DROPPED
            self._write(session.key, entry, changes, session, waiting)
            first, told = self._outbox.arm(), bool(self._core.replica.events)
        if first:
            self._depart(waiting, told)
        return DONE if waiting is None else waiting

    def _writable(self, session: Session) -> Entry | Literal[False] | None:
        """What is held of the session that a commit goes to (None: it is new); False: it has ended, and the commit is dropped. Raises `SessionError`."""
        replica = self._core.replica
        entry = replica.get(session.key)
        if entry is None:
            if not session.new:
                self.dropped += 1
                return False
            if session.previous_id is None and replica.live >= self._settings.sessions_max:  # a new id is no new session
                raise SessionError(f"{replica.live} sessions are held already (sessions_max)")
        elif entry.head is not None and entry.head.state:
            self.dropped += 1
            return False
        return entry

    def _write(self, key: bytes, entry: Entry | None, changes: dict[str, bytes | None], session: Session, waiting: Waiting | None) -> None:
        now_ms = self._channel.now_ms()
        replica, outbox = self._core.replica, self._outbox
        if entry is None:
            session.created_ms = session.created_ms or now_ms
        elif entry.head is not None and entry.head.primary != self._uid and entry.head.primary not in self._core.placement.view:
            outbox.put_head(key, replica.take_over(key, entry))
        if session.merging:
            record = replica.record(key, entry) if entry is not None else None
            session.settle(changes, record.registers if record is not None else {}, (record.counter + 1 if record is not None else 1, self._uid))
        secret = self._secret(key, entry, changes) if self._writes_tokens else None
        counter, previous, seen, created = replica.commit(key, changes, now_ms, session.created_ms)
        session.committed(changes, (counter, self._uid))
        if secret is not None:
            session.token = add_commit(session.token, secret, key, self._uid, counter)
        delta = encode_delta(key, counter, previous, seen, changes, now_ms, session.created_ms if created else None)
        outbox.put(key, delta, waiting.ear if waiting is not None else None)
        if None in changes.values():
            self._prune(key)
        if created or replica.fresh:
            self._core.settle_fresh(now_ms)
        if waiting is not None and waiting.needs_wait:
            self.waitings.append(waiting)
        if self._listeners:
            replica.events += [AttributeChanged(key, name, value is None) for name, value in changes.items() if name[:1] != "\0"]  # type: ignore[misc]
        self.commits += 1

    def _secret(self, key: bytes, entry: Entry | None, changes: dict[str, bytes | None]) -> bytes:
        """The secret of the session's tokens, which its first commit makes; a new id takes over that of the old one."""
        record = self._core.replica.record(key, entry) if entry is not None else None
        secret = secret_of(record.registers) if record is not None else changes.get(TOKEN_KEY)
        if secret is None:
            secret = changes[TOKEN_KEY] = self._entropy(SECRET_BYTES)
        return secret

    def _depart(self, waiting: Waiting | None, told: bool) -> None:
        """See that the outbox is taken: at once and here if somebody waits or it has been quiet, soon and in the reactor's thread otherwise.

        `told`: there are events, for listeners in the reactor's thread.
        """
        channel = self._channel
        if (waiting is not None or channel.now_ms() - self._taken_ms > _QUIET_MS) and channel.hasten(self.transmit):
            if told or (waiting is not None and waiting.expires_ms < self.armed_ms):
                channel.wake(self._attend)
        else:
            channel.wake(self.flush)

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
        expires_ms = channel.now_ms() + int(self._settings.ack_timeout_s * 1000)
        return Waiting(needed, names, able, expires_ms, self._settings.strict_acks and not everybody, messages)

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
            contents = session.contents(changes, record.registers, (record.counter + 1, self._uid)) if record is not None else {}
            waiting = self._waiting("all", messages=2 if contents else 1, everybody=True)  # the old id's end, and what the new one holds
            head = self._core.replica.end(ended_key, state, now_ms)
            if head is None:
                self.dropped += 1
                session.dropped()
                return DROPPED
            self._outbox.put_head(ended_key, head, waiting.ear)
            self._core.settle_fresh(now_ms)
            if waiting.needs_wait and not contents:
                self.waitings.append(waiting)
            if contents:
                session.new = True
                self._write(session.key, None, contents, session, waiting)
            else:
                session.committed({}, (0, b""))
                session.new = state == ID_CHANGED  # empty: it begins with its first write
            first = self._outbox.arm()
        if first:
            self._depart(waiting, True)
        return waiting

    def _touch(self, key: bytes) -> None:
        """The session was used. Told to the others after `save_period_s`, at the latest."""
        now_ms = self._channel.now_ms()
        with self._lock:
            entry = self._core.replica.held(key)
            if entry is None:
                return
            self.touching.touch(key, entry, self._uid, now_ms)

    def transmit(self) -> None:
        """Everything that commits have left since the last time, to everybody that holds it. Any thread, as a step of the channel."""
        now_ms = self._channel.now_ms()
        with self._lock:
            self._taken_ms = now_ms
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
            touches = self.touching.take(now_ms, self._core.replica)
            messages += [say.touches(some) for some in touches]
        if failed:
            self._channel.wake(partial(fail, failed, peers))
        if peers:
            for message in messages:
                self._channel.send(peers, message)
