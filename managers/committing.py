"""Committing: what a request changed becomes one delta, on its way to every member that holds the session.

Whoever commits does everything itself: it applies the changes to the record, encodes the delta, puts it into the outbox.
The first to put something into an empty outbox also sees that it is taken (`_depart`), and takes along what others have put
there meanwhile. How it is taken decides about speed: by the committing thread, which is the shortest way
when somebody waits for confirmations or nothing else is going on; or by one of the reactor's next turns, which gathers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from ..membership.channel import Channel, Message, Waiter, fail
from .changes import batch_prefix, encode_delta
from .confirming import Confirming
from .core import SessionCore
from .entry import Audited, Entry
from .errors import SessionRefused, SessionUnknown
from .heads import ID_CHANGED, INVALIDATED, live_head
from .listeners import AttributeChanged, Listeners, LoggedIn
from .lock import PoliteLock
from .messages import DELTAS
from .outbox import ManagerOutbox
from .placement import Groups, Uids
from .principals import read_login
from .receipts import DONE, DROPPED, Receipt, Waiting
from .record import LOGIN, PRINCIPAL, SEED
from .renewal import SEED_BYTES, id_marks
from .session import Session, key_of
from .tokens import SECRET_BYTES, TOKEN_KEY, add_commit, secret_of
from .touches import Touching

__all__ = ["Committing"]

_HEADS_AT_ONCE = 500
_QUIET_MS = 1  # an outbox that was taken longer ago is worth a write of its own; below, commits gather


class Committing:
    """Any thread, except where a method says otherwise.

    `attend`: run in the reactor's thread (by the channel's `wake`) after events or a new deadline. `armed_ms`: when the manager's timer goes off next; the manager sets it. `entropy` gives random bytes.
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
        self._renews = core.settings.renewal_timeout_s > 0
        self._writes_tokens = core.settings.read_your_writes == "cluster"
        self._uid = core.me
        self._settings = core.settings
        self._level = core.settings.acks
        self.outbox = ManagerOutbox(name, batch_prefix(name, DELTAS, core.me))
        self.touching = Touching(core.settings)
        self.confirming = Confirming(core, channel)
        self.armed_ms = 0
        self.hastens = True  #: committing threads may send themselves, or let the reactor take its time; else everything leaves by its next turn, in order
        self._taken_ms = 0
        self.commits = self.dropped = self.refused = 0

    def flush(self) -> None:
        """Take the outbox. Reactor's thread."""
        self._channel.run(self.transmit)
        self._attend()

    def commit(self, session: Session, acks: str | int | None = None, touch: bool = True) -> Receipt:
        """Apply and replicate what the request changed. Never blocks; ask the receipt.

        `acks` overrides the manager's level; without `touch`, reading alone does not keep the session alive. A commit to a
        session that another request or member has ended is dropped and counted; its receipt is not `satisfied`. Raises
        `SessionUnknown`, `SessionRefused` (limits), `LockLost`, `ValueRefused` (a nested value that cannot travel).
        """
        if session.unknown:
            raise SessionUnknown("the session may exist on members that do not answer")
        if session.held is not None:
            session.held.check()
        if session.ending:
            return self._commit_ending(session)
        changes = session.changes()
        if not changes:
            if touch and session.accessed and not session.new:
                self._touch(session.key)
            return DONE
        level = self._level if acks is None else acks
        waiting = None
        with self._lock:
            entry = self._writable(session)
            if entry is False:
                return DROPPED
            named = self._primary(session.key, entry)
            if level not in ("none", 0) and not self.confirming.is_alone:
                waiting = self.confirming.by_level(self._core.placement.holders(session.key, named), level)
            self._write(session.key, entry, named, changes, session, waiting)
            stored = self.confirming.stored(session.key)
            first, told = self.outbox.arm(waiting is not None), bool(self._core.replica.events)
        if first:
            self._depart(waiting, told)
        return self.confirming.joined(DONE if waiting is None else waiting, stored)

    def _writable(self, session: Session) -> Entry | Literal[False] | None:
        """What is held of the session that a commit goes to (None: it is new); False: it has ended, and the commit is dropped. Raises `SessionError`."""
        replica = self._core.replica
        entry = replica.get(session.key)
        if entry is None:
            if not session.new:
                self.dropped += 1
                return False
            if session.previous_id is None:  # a new id is no new session
                self._check_room()
        elif (entry.head is not None and entry.head.state) or self._is_logged_out(session, entry):
            self.dropped += 1
            return False
        return entry

    def _check_room(self) -> None:
        replica, budget = self._core.replica, self._core.budget
        if replica.live >= self._settings.sessions_max:
            self.refused += 1
            raise SessionRefused(f"{replica.live} sessions are held already (sessions_max)", 503)
        if budget.is_full:
            self.refused += 1
            raise SessionRefused(f"{replica.live} sessions take {replica.bytes} bytes of {budget.most_bytes} already (memory_max_bytes)", 503)

    def _is_logged_out(self, session: Session, entry: Entry) -> bool:
        """Its login is over, and this is not another one."""
        return entry.principal is not None and not session.logged_in and self._core.logins.is_over(session.key, entry)

    def _primary(self, key: bytes, entry: Entry | None) -> bytes:
        """Who is primary for this commit; this member becomes it where placement says so."""
        placement = self._core.placement
        if entry is None:
            return placement.appoint(key)
        if entry.head is not None and placement.leads(entry.head.primary):
            self._take_over(key, entry)
        return entry.primary

    def _take_over(self, key: bytes, entry: Entry) -> None:
        told, given = self._core.moving.take_over(key, entry, self._channel.now_ms())
        assert entry.head is not None
        self.outbox.put_head(told, key, entry.head)
        self.outbox.put_state(given, key)

    def lead(self, key: bytes) -> None:
        """This member serves the session from now on: it becomes its primary, if it still should."""
        with self._lock:
            entry = self._core.replica.held(key)
            if entry is None or entry.head is None or entry.head.state or not self._core.placement.leads(entry.head.primary):
                return
            self._take_over(key, entry)
            first = self.outbox.arm(False)
        if first:
            self._depart(None, False)

    def _write(self, key: bytes, entry: Entry | None, named: bytes, changes: dict[str, bytes | None], session: Session, waiting: Waiting | None) -> None:
        now_ms = self._channel.now_ms()
        replica, outbox, placement = self._core.replica, self.outbox, self._core.placement
        if entry is None:
            session.created_ms = session.created_ms or now_ms
        if session.merging:
            record = replica.record(key, entry) if entry is not None else None
            session.settle(changes, record.registers if record is not None else {}, replica.departed.next_version(key, record))
        if self._renews and SEED not in changes and session.hidden(SEED) is None:
            changes[SEED] = self._entropy(SEED_BYTES)
        secret = self._secret(key, entry, changes) if self._writes_tokens else None
        if session.logged_in or (PRINCIPAL in changes and changes[PRINCIPAL] is None):
            self._audit(key, changes, session)
        author, counter, previous, seen, created = replica.commit(key, changes, now_ms, session.created_ms, named)
        session.committed(changes, (counter, author))
        if secret is not None:
            session.token = add_commit(session.token, secret, key, author, counter)
        groups, ear = placement.others(key, named), waiting.ear if waiting is not None else None
        if author == self._uid:
            first = (session.created_ms, named if named != self._uid else None) if created else (None, None)
            outbox.put(groups, key, encode_delta(key, counter, previous, seen, changes, now_ms, *first), ear)
        else:
            outbox.put_state(groups, key, ear)  # a delta is its sender's own
        if created and not placement.everywhere:  # a delta implies the head; who keeps only that gets it so
            head = live_head(counter, self._uid, named)
            outbox.put_head(tuple(group for group in placement.heads(key, named) if group not in groups), key, head)
        if None in changes.values():
            self._prune(key)
        if created or replica.fresh:
            self._core.settle_fresh(now_ms)
        if self._core.moving.watchers or not placement.everywhere:
            self._core.moving.committed(key, named, now_ms)
        if waiting is not None:
            self.confirming.await_(waiting)
        if self._listeners:
            replica.events += [AttributeChanged(key, name, value is None) for name, value in changes.items() if name[:1] != "\0"]  # type: ignore[misc]
            if session.logged_in:
                replica.events.append(LoggedIn(key, session.principal or ""))  # type: ignore[arg-type]
        session.logged_in = False
        if self._core.renewals.old:
            self._core.renewals.wrote((key,))
        self.commits += 1

    def _audit(self, key: bytes, changes: dict[str, bytes | None], session: Session) -> None:
        """Somebody has logged in, or out of a session that goes on."""
        if session.logged_in:
            by, principal = "shared" if session.is_shared else "", (session.hidden(PRINCIPAL) or b"").decode("utf-8", "replace")
            self._core.replica.events.append(Audited("login", key, principal, read_login(session.hidden(LOGIN)).about, by, session.origin))
        elif (who := self._core.logins.who(key)) is not None:
            self._core.replica.events.append(Audited("logout", key, *who, origin=session.origin))

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
        if self.hastens and (waiting is not None or channel.now_ms() - self._taken_ms > _QUIET_MS) and channel.hasten(self.transmit):
            if told or (waiting is not None and waiting.expires_ms < self.armed_ms):
                channel.wake(self._attend)
        else:
            channel.wake(self.flush, lazily=waiting is None and self.hastens)

    def _prune(self, key: bytes) -> None:
        entry = self._core.replica.get(key)
        record = self._core.replica.record(key, entry) if entry is not None else None
        if record is not None and entry is not None and self._core.moving.prune(key, entry, record):
            self.outbox.put_state(self._core.placement.others(key, entry.primary), key)

    def _commit_ending(self, session: Session) -> Receipt:
        """Invalidation, or the end of the old id: its head goes to everybody that can answer, and is waited for."""
        ended_key = key_of(session.previous_id) if session.previous_id is not None else session.key
        state = session.ending
        if session.new and session.previous_id is None:
            session.committed({}, (0, b""))
            return DONE  # it never was more than this request's
        changes = session.changes() if state == ID_CHANGED else {}
        placement = self._core.placement
        with self._lock:
            replica = self._core.replica
            entry = replica.held(ended_key) if state == ID_CHANGED else None
            record = replica.record(ended_key, entry) if entry is not None else None
            contents = {}
            if record is not None:
                contents = session.contents(
                    changes, record.registers, replica.departed.next_version(ended_key, record), replica.departed.next_version(session.key, None)
                )
            named = placement.appoint(session.key)
            what, became = ("logout", b"") if state == INVALIDATED else ("id changed", session.key)
            told = Audited(what, ended_key, "", origin=session.origin, became=became)
            waiting = self._end(ended_key, state, told, placement.others(session.key, named) if contents else None)
            if waiting is None:
                self.dropped += 1
                session.dropped()
                return DROPPED
            if contents:
                if self._renews:
                    contents |= id_marks(self._entropy(SEED_BYTES), self._channel.now_ms() - session.created_ms)
                session.new = True
                self._write(session.key, None, named, contents, session, waiting)
            else:
                session.committed({}, (0, b""))
                session.new = state == ID_CHANGED  # empty: it begins with its first write
            stored = self.confirming.stored(ended_key, *((session.key,) if contents else ()))
            first = self.outbox.arm()
        if first:
            self._depart(waiting, True)
        return self.confirming.joined(waiting, stored)

    def end(self, key: bytes, by: str = "administrator") -> Receipt:
        """Invalidate the session of this key, held here, for good. Never blocks; not `satisfied` when there is none that lives, or not all confirmed that could.
        `by`: what is said of it to who is told (`Audited`)."""
        with self._lock:
            renewed = self._core.renewals.of(key)
            key = key if renewed is None else renewed.key
            waiting = self._end(key, INVALIDATED, Audited("ended", key, "", by=by))
            if waiting is None:
                return DROPPED
            stored = self.confirming.stored(key)
            first = self.outbox.arm()
        if first:
            self._depart(waiting, True)
        return self.confirming.joined(waiting, stored)

    def _end(self, key: bytes, state: int, audited: Audited, copied: Groups | None = None) -> Waiting | None:
        """The head says so, to all who must know; `audited` is told if somebody was logged in; `copied`: who gets what a new id holds, where there is one. None: there is no such session."""
        who = self._core.logins.who(key)
        head = self._core.replica.end(key, state, self._channel.now_ms())
        if head is None:
            return None
        if who is not None:
            self._core.replica.events.append(audited._replace(principal=who[0], about=who[1]))
        told = self._core.placement.heads(key, head.primary)
        waiting = self.confirming.by_groups(told, copied or ())
        self.outbox.put_head(told, key, head, waiting.ear)
        self._core.moving.watchers.changed((key,))
        self._core.settle_fresh(self._channel.now_ms())
        if copied is None:
            self.confirming.await_(waiting)
        return waiting

    def _touch(self, key: bytes) -> None:
        """The session was used. Told to the others after `save_period_s`, at the latest, and at once where its time would be over for them by then."""
        now_ms, period_ms = self._channel.now_ms(), self.touching.period_ms
        with self._lock:
            entry = self._core.replica.held(key)
            if entry is None:
                return
            hurries = now_ms - entry.last_access_ms > period_ms and self._core.expiry.is_near(key, entry, now_ms, 2 * period_ms)
            self.touching.touch(key, entry, self._uid, now_ms, hurries)
        if hurries:
            self._channel.wake(self.flush)

    def transmit(self) -> None:
        """Everything that commits have left since the last time, to everybody that holds it. Any thread, as a step of the channel."""
        now_ms = self._channel.now_ms()
        with self._lock:
            self._taken_ms = now_ms
            taken = self.outbox.take()
            messages: list[tuple[Uids, Message]] = []
            failed: list[tuple[list[Waiter], Uids]] = []
            for group, heads in taken.heads.items():
                for i in range(0, len(heads), _HEADS_AT_ONCE):
                    some = heads[i : i + _HEADS_AT_ONCE]
                    messages.append((group, self._core.say.heads([one[:2] for one in some], [one[2] for one in some if one[2] is not None])))
            for group, keys in taken.states.items():  # before deltas: who is to hold a session from now on needs their base
                waiters = [waiter for waiters in keys.values() for waiter in waiters]
                states = self._core.refill(list(keys), waiters)
                messages += ((group, state) for state in states)
                if not states:
                    failed.append((waiters, group))  # their sessions have ended since: the heads say so
            messages += taken.deltas
            for group, touches in self.touching.take(now_ms, self._core.replica, self._core.placement):
                messages.append((group, self._core.say.touches(touches)))
            messages += ((tuple(effect.to), effect.message) for effect in self._core.moving.tell_readers())
        for waiters, group in failed:
            if waiters:
                self._channel.wake(partial(fail, waiters, group))
        for group, message in messages:
            self._channel.send(group, message)
