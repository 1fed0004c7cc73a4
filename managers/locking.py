"""`session.lock()`: what a request does with a lock, in a thread, in asyncio, in Twisted. Who grants it, and when: `locks.py`.

The lock is against lost updates of one attribute by requests at the same time, all of which take it. So three things belong together: to be
alone; to see what the one before has written, which may still be on its way here when its lock comes free (it names its commits, and
they are waited for as those of a browser's token are); and to commit before it is given back. A holder whose lease is over is told so when
it commits. That is a look at a clock before the commit, and not a proof: a process that is stopped just after it commits late all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from twisted.internet.defer import Deferred, ensureDeferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python import threadable
from twisted.python.failure import Failure
from twisted.python.threadable import isInIOThread

from ..membership.channel import Channel
from ..membership.errors import LocalError
from .committing import Committing
from .core import SessionCore
from .errors import LockLost, LockTimeout, SessionEnded, SessionError, SessionUnknown
from .hearing import blocked, confirmed, heard
from .lock import PoliteLock
from .locks import LOCK_MAX_S
from .opening import Opening
from .receipts import DONE, DROPPED, Receipt
from .renewal import first_key
from .session import Session
from .tokens import Written, short_of, uncovered

__all__ = ["Grant", "Granting", "Locks", "free_lock"]

_AGAIN_S = 0.05
_GRACE_S = 2.0  # for a reactor that is busy when the time is over


@dataclass(slots=True, eq=False)
class Grant:
    """A lock that somebody here holds. `until`: in seconds of the node's clock, by our own count. `told`: who has to hear that it is given back."""

    manager: str
    key: bytes
    serial: int
    until: float
    written: Written
    sleeps: int  #: `Locks.sleeps` of when it was granted
    told: set[bytes] = field(default_factory=set)
    lost: bool = False  #: whatever the clock says


class Granting(Protocol):
    """Where managers get locks, of the node. Reactor's thread."""

    def acquire(self, manager: str, key: bytes, lease_s: float, timeout_s: float) -> Deferred[Grant]:
        """Fails with `LockTimeout`. To cancel it gives the lock back."""

    def release(self, grant: Grant, written: Written) -> None:
        """It is free. `written`: commits that whoever gets it next has to see."""

    def statistics(self, manager: str) -> dict[str, int]:
        """Counters."""


class Locks:
    """Of one manager. `desk` is the node's, from its start on."""

    def __init__(self, name: str, core: SessionCore, channel: Channel, lock: PoliteLock, committing: Committing, opening: Opening, clock: IReactorTime) -> None:
        self.name = name
        self.core = core
        self.channel = channel
        self.settings = core.settings
        self.commit = committing.commit
        self._lock = lock
        self._opening = opening
        self._clock = clock
        self.desk: Granting | None = None
        self.taken = self.timeouts = self.lost = 0  #: about, threads may race

    def of(self, session: Session, timeout_s: float | None, lease_s: float | None) -> _Held:
        settings = self.settings
        timeout_s = settings.lock_timeout_s if timeout_s is None else timeout_s
        lease_s = settings.lock_lease_s if lease_s is None else lease_s
        if not (0 <= timeout_s <= LOCK_MAX_S and 0 < lease_s <= LOCK_MAX_S):
            raise SessionError(f"session.lock(timeout_s={timeout_s!r}, lease_s={lease_s!r}): seconds, the lease above 0, neither above {LOCK_MAX_S:.0f}")
        return _Held(self, session, timeout_s, lease_s)

    def granter(self, key: bytes, but: bytes = b"") -> bytes:
        """Who grants the lock of this session: `Placement.granter`. Reactor's thread."""
        return self.core.placement.granter(key, but)

    @property
    def sleeps(self) -> int:
        """See `SessionCore.sleeps`. Any thread."""
        return self.core.sleeps(self.channel.now_ms())

    def is_ours(self, grant: Grant) -> bool:
        """Whether its lease runs, and this process has not stood still for so long that others may have given it up. Any thread."""
        return not grant.lost and self._clock.seconds() < grant.until and grant.sleeps == self.sleeps

    def take(self, session_id: str, key: bytes, timeout_s: float, lease_s: float) -> Deferred[tuple[Grant, Session]]:
        """The lock of this key, and the session as those have left it who had it before. Reactor's thread."""
        return ensureDeferred(self._take(session_id, key, timeout_s, lease_s))

    def give_back(self, grant: Grant, written: Written) -> None:
        """Any thread."""
        self.channel.wake(lambda: self.desk.release(grant, written) if self.desk is not None else None)

    def unwanted(self, taken: Any) -> None:
        """Came when nobody waited any more. Any thread."""
        if not isinstance(taken, Failure):
            self._opening.release(taken[1])
            self.give_back(taken[0], taken[0].written)

    def entered(self, taken: Any) -> tuple[Grant, dict[str, Any]]:
        """The lock, and what the session holds. Raises what the taking failed with."""
        if isinstance(taken, Failure):
            taken.raiseException()
        grant, fresh = taken
        self.taken += 1
        self._opening.release(fresh)
        return grant, fresh.base()

    async def _take(self, session_id: str, key: bytes, timeout_s: float, lease_s: float) -> tuple[Grant, Session]:
        if self.desk is None:
            raise LocalError(f"manager {self.name!r} is not part of a node: there is nobody to grant locks")
        until = self._clock.seconds() + timeout_s
        try:
            grant = await self.desk.acquire(self.name, key, lease_s, timeout_s)
        except LockTimeout:
            self.timeouts += 1
            raise
        try:
            session = await self._opening.reopen(session_id, grant.written)
            while session.unknown and self._clock.seconds() < min(until, grant.until):
                await deferLater(self._clock, _AGAIN_S)
                session = await self._opening.reopen(session_id, grant.written)
            if session.unknown:
                raise SessionUnknown("what the holder of the lock before has written cannot be had at the moment; try again")
            if session.id is None:
                raise SessionEnded("this session has ended while its lock was waited for")
            if not self.is_ours(grant):
                self._opening.release(session)
                raise LockTimeout("the lock was lost again before what its holder before has written was here; try again")
            grant.written = self._here(grant, session.key)
            return grant, session
        except BaseException:
            self.desk.release(grant, grant.written)
            raise

    def _here(self, grant: Grant, key: bytes) -> Written:
        """Of the commits that were waited for those that are there. The others went with their author: nobody has to wait for them again."""
        with self._lock:
            entry = self.core.replica.held(key)
            record = self.core.replica.record(grant.key, entry) if entry is not None else None
        missing = uncovered(grant.written, record.applied) if record is not None else {}
        return {short: counter for short, counter in grant.written.items() if short not in missing}

    def statistics(self) -> dict[str, int]:
        """`locks_granted` to anybody by this node, `locks_taken` by requests of this one."""
        granted = self.desk.statistics(self.name) if self.desk is not None else {}
        return {"locks_taken": self.taken, "lock_timeouts": self.timeouts, "locks_lost": self.lost, **granted}


class _Held:
    """`SessionLock`."""

    def __init__(self, locks: Any, session: Session, timeout_s: float, lease_s: float) -> None:
        self._locks: Locks = locks  # None for sessions that need none
        self._session = session
        self._timeout_s = timeout_s
        self._lease_s = lease_s
        self._grant: Grant | None = None
        self._before: tuple[str, dict[str, Any]] = ("", {})
        self._key = b""  # of the lock: the same for all ids that follow from one another
        self.gives: Any = session

    # -- the three forms

    def __enter__(self) -> Any:
        if isInIOThread() or _in_task():
            raise SessionError(
                "`with session.lock()` would block the loop that runs here: use `async with session.lock()`, or `session.lock().run(...)` in Twisted"
            )
        receipt = self._prepare()
        if receipt is not None:
            receipt.wait()
            self._enter(blocked(self._begin, self._limit_s, self._too_late, self._locks.unwanted))
        return self.gives

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            self._leave(kind is not None).wait()
        finally:
            self._give_back()

    async def __aenter__(self) -> Any:
        receipt = self._prepare()
        if receipt is None:
            return self.gives
        if _in_task():
            await confirmed(receipt)
            self._enter(await heard(self._begin, self._limit_s, self._too_late, self._locks.unwanted))
        elif isInIOThread() or threadable.ioThread is None:
            await receipt.deferred()
            self._enter(await self._locks.take(self._before[0], self._key, self._timeout_s, self._lease_s))
        else:
            raise SessionError("`async with session.lock()` belongs into asyncio or Twisted; in a thread use `with session.lock()`")
        return self.gives

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            receipt = self._leave(kind is not None)
            if _in_task():
                await confirmed(receipt)
            else:
                await receipt.deferred()
        finally:
            self._give_back()

    def run(self, act: Callable[[Any], Any]) -> Deferred[Any]:
        async def whole() -> Any:
            async with self as session:
                return await maybeDeferred(act, session)

        return ensureDeferred(whole())

    # -- what they have in common

    def check(self) -> None:
        if self._grant is not None and not self._locks.is_ours(self._grant):
            self._locks.lost += 1
            raise LockLost("the lock of this session is lost: its lease ran out, or this process stood still; what was changed under it is not saved")

    @property
    def _limit_s(self) -> float:
        settings = self._locks.settings
        return self._timeout_s + 3 * max(settings.lookup_timeout_s, settings.read_your_writes_wait_s) + _GRACE_S

    def _prepare(self) -> Receipt | None:
        """Commit what was changed before; None: no lock is needed. Raises `SessionError`."""
        session = self._session
        session.accessed = True
        if session.unknown:
            raise SessionUnknown("the members that could know this session do not answer; try again in a moment")
        if session.ended:
            raise SessionEnded("this session has ended")
        if session.held is not None or self._grant is not None:
            raise SessionError("this request has the session's lock already; one lock() serves one block")
        if session.previous_id is not None:
            raise SessionError("the session's id was changed by this request: take the lock first, then change the id")
        if session.new or session.id is None:
            return None
        receipt = self._locks.commit(session, session.acks, touch=False) if session.modified else DONE
        if receipt is DROPPED:
            raise SessionEnded("this session has ended")
        self._before, self._key = (session.id, session.base()), first_key(session)
        return receipt

    def _begin(self, give: Callable[[Any], None]) -> None:
        def take() -> None:
            self._locks.take(self._before[0], self._key, self._timeout_s, self._lease_s).addBoth(give)

        self._locks.channel.wake(take)

    def _too_late(self) -> Failure:
        return Failure(LockTimeout(f"the lock was not granted within {self._timeout_s:g} s"))

    def _enter(self, taken: Any) -> None:
        session = self._session
        self._grant, registers = self._locks.entered(taken)
        session.reload(registers)
        session.held, session.last = self, None
        self._before = self._before[0], registers

    def _leave(self, failed: bool) -> Receipt:
        session = self._session
        if self._grant is None:
            return DONE
        try:
            if not failed:
                return self._locks.commit(session, session.acks, touch=False) if session.modified else DONE
        except BaseException:
            session.undo(*self._before)
            raise
        session.undo(*self._before)
        return DONE

    def _give_back(self) -> None:
        grant, self._grant = self._grant, None
        if grant is None:
            return
        session, written = self._session, dict(grant.written)
        session.held = None
        if session.last is not None and session.last[1]:
            counter, author = session.last
            written.pop(short_of(author), None)
            written[short_of(author)] = counter  # the latest comes last
        self._locks.give_back(grant, written)


def free_lock(session: Session, timeout_s: float | None, lease_s: float | None) -> _Held:
    """Of a session that is this request's alone whatever it does."""
    return _Held(None, session, 0.0, 1.0)


def _in_task() -> bool:
    """Whether asyncio runs this."""
    try:
        return asyncio.current_task() is not None
    except RuntimeError:  # no loop
        return False
