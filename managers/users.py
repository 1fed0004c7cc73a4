"""Who is logged in: what a manager's applications and the rest of the cluster ask and do about principals.

The core's `Logins` (`principals.py`) knows which sessions here are whose, and which logins are over. This is the shell around it: any thread, under the
manager's lock. Ending everything of a principal is one new epoch, which the node's `EpochBook` spreads; what it ends it need not find.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.python.threadable import isInIOThread

from ..membership.channel import Channel
from ..membership.errors import LocalError
from .committing import Committing
from .confirming import PRESENT
from .core import SessionCore
from .entry import Audited
from .errors import LoginRefused, SessionError
from .heads import LIVE
from .lock import PoliteLock
from .principals import EPOCHS, YOUNGEST, Epoch, number_bytes
from .receipts import DONE, DROPPED, Joined, Receipt
from .record import LOGIN, LOGIN_NUMBER
from .session import Session
from .summaries import LoginHere, logins_here

__all__ = ["EpochBook", "Users"]


class EpochBook(Protocol):
    """Where managers read epochs, and write new ones. `current`: by principal's key. `on_change(key)` is called in the reactor's thread when one has grown."""

    current: Mapping[bytes, Epoch]
    on_change: list[Callable[[bytes], object]]

    @property
    def has_joined(self) -> bool:
        """Whether all epochs are here that the others had when this member came. Any thread."""

    @property
    def is_loaded(self) -> bool:
        """Whether those are here that a store had of times when there was no member. Any thread."""

    def reserve(self) -> Epoch:
        """What the next epoch will be. Any thread."""

    def advance(self, whose: bytes, reserved: Epoch) -> Receipt:
        """Every login of this principal that does not know of the reserved epoch is over. Any thread, never waits: the receipt says who knows."""


class Users:
    """`made` builds a session (arguments after `entropy`); `attend` is run in the reactor's thread after events or a new deadline."""

    def __init__(
        self,
        name: str,
        core: SessionCore,
        channel: Channel,
        lock: PoliteLock,
        committing: Committing,
        epochs: EpochBook | None,
        made: Callable[..., Session],
        attend: Callable[[], None],
    ) -> None:
        self._name = name
        self._core = core
        self._channel = channel
        self._lock = lock
        self._committing = committing
        self._epochs = epochs
        self._made = made
        self._attend = attend
        settings = core.settings
        self._most = settings.principal_sessions_max if settings.principal_sessions_policy == "refuse" else 0
        #: Asks the other members for the sessions of a principal (by key), the youngest login first. Reactor's thread; None: there are none to ask.
        self.ask: Callable[[bytes], Deferred[list[LoginHere]]] | None = None

    def start(self) -> None:
        """Hear of epochs from now on. Reactor's thread."""
        if self._epochs is not None:
            epochs = self._epochs
            epochs.on_change.append(self._epoch_changed)
            self._core.logins.epochs_are_known = lambda: epochs.has_joined

    def _epoch_changed(self, whose: bytes) -> None:
        """Logins here may be over. Reactor's thread."""
        with self._lock:
            self._core.expiry.look_soon(self._core.logins.affected(whose), self._channel.now_ms())
        self._attend()

    def end_all(self, principal: str | None, but: Session | None = None) -> Receipt:
        """End all sessions of this principal, on every member; None: of everybody who is logged in. `but`: this one stays, if its own login is not over
        already, and is committed.

        Never blocks; the receipt is `satisfied` when all members that can answer know of it: none of them serves such a session any more. `unconfirmed` names
        those that cannot. Sessions on the other side of a partition end when it heals, also those that log in there meanwhile. Raises `LocalError` where
        there is no node underneath, and what `commit` raises (the others have ended then).
        """
        reserved, kept = self._book().reserve(), DONE
        try:
            if but is not None and but.id is not None and but.principal is not None and principal in (None, but.principal):
                kept = self._keep(but, but.principal, reserved)  # goes out before the epoch
        finally:
            ended = self._advance(self._core.logins.key_of(principal), reserved)
        return Joined((kept, ended))

    def end_shared(self, tag: bytes) -> Receipt:
        """End a login that applications share: its sessions in all of them, on every member. As `end_all`."""
        return self._advance(tag, self._book().reserve())

    def _book(self) -> EpochBook:
        if self._epochs is None:
            raise LocalError(f"manager {self._name!r} is not part of a node: nobody keeps the epochs of its principals")
        return self._epochs

    def _advance(self, whose: bytes, reserved: Epoch) -> Receipt:
        me = self._channel.me.uid
        deaf = [member.name for member in self._core.placement.view if EPOCHS not in member.managers and member.uid != me]
        ended = self._book().advance(whose, reserved)
        return Joined((ended,), deaf) if deaf else ended

    def _keep(self, session: Session, principal: str, reserved: Epoch) -> Receipt:
        with self._lock:
            lasting = self._core.logins.lasting(principal, session.hidden(LOGIN), reserved)
        if lasting is not None:
            session.write(LOGIN, lasting)
        return self._committing.commit(session, session.acks)

    def stamp(self, principal: str, about: Mapping[str, str], key: bytes, asks: bool, origin: tuple[str, str] | None = None) -> tuple[bytes, bytes]:
        """What a login of this principal in the session of this key is to say, and its number (`Logins.stamp`). Raises `LoginRefused`; `asks`: other members are asked
        about that, if need be. `origin`: of the request; None: it has not asked for a login, and is not told on."""
        if self._most:
            try:
                self._check(principal, key, asks)
            except LoginRefused:
                if origin is not None:
                    self._refused(principal, about, origin)
                raise
        with self._lock:
            return self._core.logins.stamp(principal, about)

    # -- where a login too many is refused

    def login_deferred(self, session: Session, principal: str, **about: str) -> Deferred[None]:
        """`session.login`, in the reactor's thread. Fails with what that raises, `LoginRefused` for one."""

        def answered(found: list[LoginHere]) -> None:
            self.login(session, found, principal, **about)

        found = self._found(principal)
        return succeed([]).addCallback(answered) if found is None else found.addCallback(answered)

    def login_soon(self, principal: str, give: Callable[[list[LoginHere]], object]) -> bool:
        """From any thread: ask the others now, and have `give(found)` called in the reactor's thread, for `login`. False: there is nothing to ask."""
        if not self._must_ask:
            return False

        def ask() -> None:
            found = self._found(principal)
            if found is None:
                give([])
            else:
                found.addCallback(give).addErrback(lambda _: give([]))

        self._channel.wake(ask)
        return True

    def login(self, session: Session, found: list[LoginHere], principal: str, **about: str) -> None:
        """`session.login`, now that others have answered. Raises what that raises."""
        try:
            self._refuse(principal, found, session.key)
        except LoginRefused:
            self._refused(principal, about, session.origin)
            raise
        session.admitted = principal
        session.login(principal, **about)

    def _refused(self, principal: str, about: Mapping[str, str], origin: tuple[str, str]) -> None:
        with self._lock:
            self._core.replica.events.append(Audited("refused", b"", principal, about, "limit", origin))
        self._channel.wake(self._attend)

    @property
    def _must_ask(self) -> bool:
        return bool(self._most) and self.ask is not None and not self._core.placement.sees_all

    def _found(self, principal: str) -> Deferred[list[LoginHere]] | None:
        """Reactor's thread."""
        return self.ask(self._core.logins.key_of(principal)) if self._must_ask and self.ask is not None else None

    def _check(self, principal: str, key: bytes, asks: bool) -> None:
        """Raises `LoginRefused`."""
        here = self.logins_of([self._core.logins.key_of(principal)])
        self._refuse(principal, here if self._core.placement.sees_all else [login for login in here if login.leads], key)
        if not asks or not self._must_ask:
            return
        if isInIOThread() or _in_asyncio():
            raise SessionError(
                "a login may have to wait for other nodes: use `await log_in(manager, session, ...)` of caterwaul.managers.web.waiting, or `manager.login_deferred`"
            )
        heard: SimpleQueue[list[LoginHere]] = SimpleQueue()
        self.login_soon(principal, heard.put)
        with suppress(Empty):  # the question ends by itself, if the reactor is alive
            self._refuse(principal, heard.get(timeout=self._core.settings.ack_timeout_s + 1.0), key)

    def _refuse(self, principal: str, found: list[LoginHere], key: bytes) -> None:
        others = [login for login in found if login.key != key] if self._most else []
        if self._most and len(others) >= self._most:
            raise LoginRefused(principal, [login.shown() for login in others])

    # -- for the other members (`cluster/logins.py`)

    def logins_of(self, whose: Sequence[bytes]) -> list[LoginHere]:
        """The sessions of these principals (`principal_key`) that are held here."""
        with self._lock:
            return [login for one in whose for login in logins_here(self._core, one, self._channel.now_ms())]

    def principals_here(self) -> list[bytes]:
        """Keys of all principals who have sessions here."""
        with self._lock:
            return self._core.logins.principals()

    def has_number(self, key: bytes) -> bool:
        """Whether the login of this session is held here and has one."""
        with self._lock:
            return 0 < self._core.logins.number(key) < YOUNGEST

    def number_login(self, key: bytes, whose: bytes, number: int) -> Receipt:
        """The login of this session, held here and this principal's, gets its number, now that it is known, and never another one. Who counts sessions after that waits for the receipt: numbers are
        told in the data lane, which questions overtake."""
        if self.has_number(key):
            return DONE
        with self._lock:
            entry = self._core.replica.held(key)
            record = self._core.replica.record(key, entry) if entry is not None else None
        if record is None or entry is None or entry.principal != whose:
            return DROPPED
        session = self._made("", key, record.registers.copy(), entry.created_ms, record.size)
        session.write(LOGIN_NUMBER, number_bytes(number))
        return self._committing.commit(session, PRESENT, touch=False)

    def end_login(self, key: bytes, whose: bytes) -> Receipt:
        """End this session, if it is this principal's (`b""`: whoever's). If its login is shared that ends too: it would log in again by itself."""
        with self._lock:
            renewed = self._core.renewals.of(key)
            key = key if renewed is None else renewed.key
            entry, tag = self._core.replica.get(key), self._core.logins.tag(key)
        if whose and (entry is None or entry.principal != whose):
            return DROPPED
        ended = self._committing.end(key, "limit" if whose else "administrator")
        return ended if tag is None or ended is DROPPED else Joined((ended, self.end_shared(tag)))

    # -- at the end of this member

    def led(self) -> list[bytes]:
        """Keys of the live sessions that this member leads, whoever they are of."""
        with self._lock:
            placement, me = self._core.placement, self._core.me
            return [
                key
                for key, entry in self._core.replica.entries(0)
                if entry.body is not None and (entry.head is None or entry.head.state == LIVE) and placement.primary(key, entry.primary) == me
            ]


def _in_asyncio() -> bool:
    """Whether this thread turns a loop, which must not wait."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
