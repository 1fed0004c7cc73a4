"""Who may hold the lock of a session, and who is next: the table of one member, for the sessions whose locks it grants.

The best ranked member of a session's partition grants its lock, whoever serves or leads the session: that follows from the view alone, and moves
only when members come or go. Whoever asks waits in a queue, first come, first served. A lock is *leased*: it is free when its
holder gives it back, is gone from the view, or lets its lease run out, which is measured here, from the grant on. The holder measures a tenth
less (`OWN_PART`), and from no later: it knows when it asked, and is told how long it waited here, so the time that messages took is the holder's loss. So it knows
before anybody else is granted the lock, if the two clocks run at one speed, within that tenth.

Who gives a lock back says which commits were made under it, `{author: counter}`; who gets it next hears of them, and waits until it has them.

Another view may have another member grant a lock. That one asks everybody first for *claims*: what they hold or have held a moment ago, and what
they have granted. Who has been asked by a member that ranks above it grants nothing there any more, even if it does not see that member yet.
So two do not grant the same lock, whenever each of them hears of a change. Until they have answered, or had the time to, the table is held up: nobody in its queues is
granted a lock either. Nothing here is voted on: the two sides of a partition both grant. When they meet again a lock may have two holders; it is free when both are done.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from math import ceil
from typing import Any, NamedTuple, Protocol

from ..membership.effects import Effect
from .tokens import Written

__all__ = [
    "ELSEWHERE",
    "FULL",
    "GRANTED",
    "LATE",
    "LOCK_MAX_S",
    "OWN_PART",
    "Answered",
    "Asker",
    "Claim",
    "LockTable",
    "SessionLock",
    "read_claims",
    "read_written",
    "write_claims",
    "write_written",
]

GRANTED, LATE, ELSEWHERE, FULL = range(4)  #: the lock is yours; it was not free in time; ask another member; too many ask here
LOCK_MAX_S = 3600.0  #: the longest lease
OWN_PART = 0.9  #: of its lease that a holder counts on
_KEPT_S = 30.0  # after its last use: by then everybody has what was written under it
_AUTHORS_MAX = 64
_KEY_BYTES, _UID_BYTES, _SHORT_BYTES = 16, 16, 6
_COUNTER_MAX = 2**63


class SessionLock(Protocol):
    """What `session.lock()` gives (`locking.py`): the session to this request alone, for a block of code. Once each, one inside another not at all.

        with session.lock():                    # in a thread
            session["n"] += 1

        async with session.lock():              # in a coroutine, of asyncio or of Twisted
            session["n"] += 1

        session.lock().run(add)                 # Twisted: a Deferred of what `add(session)` gives, which may be a Deferred

    What the request has changed before is committed first. Then the session is read again: it holds what those had written who had the lock before. What is
    changed in the block is committed at its end, and dropped if that is left by an exception. Entering raises `LockTimeout`, `SessionEnded`,
    `SessionUnknown`, and `SessionError` where it would block a loop; leaving raises `LockLost`, and what a commit raises. A session that is new needs no
    lock: its id is known to nobody else, and it is committed when the request is over, as always.
    """

    gives: Any  #: what the block is given; fronts hand out their own

    def __enter__(self) -> Any: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None: ...

    def __aenter__(self) -> Awaitable[Any]: ...

    def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> Awaitable[None]: ...

    def run(self, act: Callable[[Any], Any]) -> Any:
        """Reactor's thread."""

    def check(self) -> None:
        """Raises `LockLost` if it is not ours any more."""


class Asker(NamedTuple):
    """One request that wants a lock: its member, and that member's number for it."""

    uid: bytes
    serial: int


class Claim(NamedTuple):
    """This one holds the lock for so many seconds more; 0: it has given it back. `written`: under it, by it and those before."""

    key: bytes
    asker: Asker
    left_s: float
    written: Written


@dataclass(frozen=True, slots=True)
class Answered:
    """Effect: tell who asked. `written`: what it has to have seen before it goes on."""

    key: bytes
    asker: Asker
    verdict: int
    written: Written


class _Lock:
    __slots__ = ("forget_at", "holders", "last", "queue", "told", "written")

    def __init__(self) -> None:
        self.holders: dict[Asker, float] = {}  # -> until when; one, or those whom the sides of a partition have let in
        self.queue: dict[Asker, tuple[float, float]] = {}  # -> (lease, when it gives up), in order
        self.written: Written = {}
        self.told: tuple[Asker, Written] | None = None  # the last grant: if `written` is still this very object, who was told gives back all of it
        self.last: Asker | None = None  # who held it before
        self.forget_at: float | None = None


class LockTable:
    """Core. Times are seconds of our monotonic clock. `askers_max`: holders and waiters in all. Between `hold_up` and `go_on` nobody in a queue is granted anything."""

    def __init__(self, askers_max: int) -> None:
        self._askers_max = askers_max
        self._locks: dict[bytes, _Lock] = {}
        self._times: list[tuple[float, bytes]] = []  # a heap: when to look at a lock; times of what is over stay until they come
        self.askers = 0  #: holders and waiters
        self.granted = self.expired = 0
        self._held_up = False

    # -- inputs

    def ask(self, now: float, key: bytes, asker: Asker, lease_s: float, patience_s: float) -> list[Effect]:
        """This one wants the lock, for so long, and waits for so long. To ask again is harmless: it keeps its place."""
        lock = self._locks.get(key)
        if lock is not None and asker in lock.holders and len(lock.holders) > 1:  # who asks is not inside, and others are
            del lock.holders[asker]
            self.askers -= 1
        if lock is not None and asker in lock.holders:  # our answer has not come; it counts its lease from the one that does
            return self._grant(now, key, lock, asker, lease_s)
        if (lock is None or asker not in lock.queue) and self.askers >= self._askers_max:
            return [Answered(key, asker, FULL, {})]
        lock = lock or self._locks.setdefault(key, _Lock())
        self.askers += asker not in lock.queue
        lock.queue[asker] = (lease_s, now + patience_s)
        heappush(self._times, (now + patience_s, key))
        return self._look(now, key)

    def release(self, now: float, key: bytes, asker: Asker, written: Written) -> list[Effect]:
        """It gives the lock back, or waits for it no more. `written`: instead of what it was told when it got it, and besides what others said since; empty if it never did."""
        lock = self._locks.get(key)
        if lock is None:
            return []
        effects: list[Effect] = []
        if lock.queue.pop(asker, None) is not None:
            self.askers -= 1
            effects.append(Answered(key, asker, ELSEWHERE, {}))  # nobody listens, but the question is over
        if asker in lock.holders:
            self._free(lock, asker)
            if written and lock.told is not None and lock.told[0] == asker and lock.told[1] is lock.written:
                lock.written = _bounded(written)
        self._learn(lock, written)  # late, perhaps, and made all the same
        return effects + self._look(now, key)

    def adopt(self, now: float, claims: Iterable[Claim], is_here: Callable[[bytes], bool]) -> list[Effect]:
        """What others say before we grant anything. Two may hold one lock, after a partition."""
        claims = list(claims)
        over = {(claim.key, claim.asker) for claim in claims if not claim.left_s}
        effects: list[Effect] = []
        for key, asker, left_s, written in claims:
            lock = self._locks.setdefault(key, _Lock())
            self._learn(lock, written)
            held = left_s > 0 and (key, asker) not in over and asker != lock.last and is_here(asker.uid)
            if held and now + left_s > lock.holders.get(asker, 0.0):
                self.askers += asker not in lock.holders
                lock.holders[asker] = now + left_s
                heappush(self._times, (now + left_s, key))
            elif asker in lock.holders and (key, asker) in over:
                self._free(lock, asker)
            effects += self._look(now, key)
        return effects

    def gone(self, now: float, uids: Iterable[bytes]) -> list[Effect]:
        """These members are not here any more: what they hold is free."""
        lost = set(uids)
        effects: list[Effect] = []
        for key, lock in list(self._locks.items()) if lost else ():
            for asker in [asker for asker in lock.queue if asker.uid in lost]:
                del lock.queue[asker]
                self.askers -= 1
                effects.append(Answered(key, asker, ELSEWHERE, {}))
            for asker in [asker for asker in lock.holders if asker.uid in lost]:
                self._free(lock, asker)
            effects += self._look(now, key)
        return effects

    def send_away(self, is_ours: Callable[[bytes], bool]) -> list[Effect]:
        """Whoever waits here for a lock that others grant now asks them. What is held stays known for a while: they will ask for it."""
        effects: list[Effect] = []
        for key, lock in self._locks.items():
            if lock.queue and not is_ours(key):
                effects += [Answered(key, asker, ELSEWHERE, {}) for asker in lock.queue]
                self.askers -= len(lock.queue)
                lock.queue.clear()
        return effects

    def hold_up(self) -> bool:
        """Others may have granted something: their claims come first. Gives whether anybody waits here."""
        self._held_up = True
        return any(lock.queue for lock in self._locks.values())

    def go_on(self, now: float) -> list[Effect]:
        """All claims are here."""
        self._held_up = False
        return [effect for key in [key for key, lock in self._locks.items() if lock.queue] for effect in self._look(now, key)]

    def tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while self._times and self._times[0][0] <= now:
            effects += self._look(now, heappop(self._times)[1])
        return effects

    def deadline(self) -> float | None:
        return self._times[0][0] if self._times else None

    # -- what is known

    def claims(self, now: float) -> list[Claim]:
        """All that is held, and who has given back last."""
        found = []
        for key, lock in self._locks.items():
            found += [Claim(key, asker, max(0.0, until - now), lock.written) for asker, until in lock.holders.items()]
            if not lock.holders and lock.last is not None:
                found.append(Claim(key, lock.last, 0.0, lock.written))
        return found

    # -- inside

    def _look(self, now: float, key: bytes) -> list[Effect]:
        """Whatever is due for this lock."""
        lock = self._locks.get(key)
        if lock is None:
            return []
        for asker in [asker for asker, until in lock.holders.items() if now >= until]:
            self.expired += 1
            self._free(lock, asker)
        effects: list[Effect] = []
        if not lock.holders and lock.queue and not self._held_up:
            asker = next(iter(lock.queue))
            effects += self._grant(now, key, lock, asker, lock.queue.pop(asker)[0])
        for asker in [asker for asker, (_, gives_up) in lock.queue.items() if now >= gives_up]:
            del lock.queue[asker]
            self.askers -= 1
            effects.append(Answered(key, asker, LATE, {}))
        if lock.holders or lock.queue:
            lock.forget_at = None
        elif lock.forget_at is None:
            lock.forget_at = now + _KEPT_S
            heappush(self._times, (lock.forget_at, key))
        elif now >= lock.forget_at:
            del self._locks[key]
        return effects

    def _grant(self, now: float, key: bytes, lock: _Lock, asker: Asker, lease_s: float) -> list[Effect]:
        self.granted += asker not in lock.holders
        lock.holders[asker], lock.forget_at, lock.told = now + lease_s, None, (asker, lock.written)
        heappush(self._times, (now + lease_s, key))
        return [Answered(key, asker, GRANTED, lock.written)]

    def _free(self, lock: _Lock, asker: Asker) -> None:
        del lock.holders[asker]
        lock.last = asker
        self.askers -= 1

    def _learn(self, lock: _Lock, written: Written) -> None:
        """These commits were made under it, too."""
        merged = _merged(lock.written, written)
        if merged is not lock.written:
            lock.written, lock.forget_at = merged, None


def _merged(one: Written, other: Written) -> Written:
    """The same object if the other adds nothing."""
    more = {short: counter for short, counter in other.items() if counter > one.get(short, 0)}
    return _bounded({short: counter for short, counter in one.items() if short not in more} | more) if more else one


def _bounded(written: Written) -> Written:
    """The latest come last, and stay."""
    return dict(list(written.items())[-_AUTHORS_MAX:])


# -- on the wire: ``[key, uid, serial, ms left, [[author, counter], ...]]``


def write_claims(claims: Iterable[Claim]) -> list[Any]:
    return [[key, asker.uid, asker.serial, ceil(left_s * 1000), write_written(written)] for key, asker, left_s, written in claims]


def read_claims(wire: object) -> list[Claim] | None:
    """None: it is no usable answer."""
    if type(wire) is not list:
        return None
    found = []
    for one in wire:
        if type(one) is not list or len(one) < 5:
            return None
        key, uid, serial, left_ms, written = one[0], one[1], one[2], one[3], read_written(one[4])
        if not (_is_bytes(key, _KEY_BYTES) and _is_bytes(uid, _UID_BYTES) and _is_number(serial) and _is_number(left_ms)) or written is None:
            return None
        found.append(Claim(key, Asker(uid, serial), min(left_ms / 1000, LOCK_MAX_S / OWN_PART), written))
    return found


def write_written(written: Written) -> list[Any]:
    return [[short, counter] for short, counter in _bounded(written).items()]


def read_written(wire: object) -> Written | None:
    """None: it is nothing of the kind."""
    if type(wire) is not list or len(wire) > _AUTHORS_MAX:
        return None
    if not all(type(one) is list and len(one) == 2 and _is_bytes(one[0], _SHORT_BYTES) and _is_number(one[1]) for one in wire):
        return None
    return dict(wire)


def _is_bytes(value: object, length: int) -> bool:
    return type(value) is bytes and len(value) == length


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value < _COUNTER_MAX
