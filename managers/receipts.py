"""Who has confirmed a commit, and who waits for it.

A level says how many *other* members must have applied the commit: `none`, `one`, `quorum` (with the writer a majority
of the copies that placement wants), `all`, or a number. Only members that can answer are waited for: in sync with us and
not degraded. If these cannot give the level, the receipt is final at once, as unconfirmed. A member that lets the time
run out is degraded, and nobody waits for it again until it answers: a frozen peer costs one wait.

Confirmations arrive in the reactor's thread; waiting is for any other thread (`wait`), for the reactor (`deferred`), or for
whatever else turns in a thread of its own, as asyncio's loop does (`when_final`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import Protocol

from twisted.internet.defer import Deferred

from ..membership.errors import LocalError
from .errors import NotConfirmed

__all__ = ["DONE", "DROPPED", "Joined", "Receipt", "Waiting", "needed_confirmations"]


_WAIT_MAX_S = 120.0  # the manager ends every wait much sooner; this is for a process whose reactor has died


def needed_confirmations(level: str | int, others: int, holding: bool = True) -> int:
    """Members besides the writer that a level wants, when placement wants copies on `others` of them. Raises `LocalError`.

    `holding`: the writer holds a copy too, which counts for a majority.
    """
    if level == "none" or level == 0:
        return 0
    if level == "one":
        return 1
    if level == "quorum":
        return max(1, (others + 1) // 2 if holding else others // 2 + 1)
    if level == "all":
        return max(1, others)
    try:
        number = int(level)
    except ValueError:
        number = -1
    if number < 0:
        raise LocalError(f"acks = {level!r}: use none, one, quorum, all, or a number of members")
    return number


class Receipt(Protocol):
    """What a commit gives back."""

    @property
    def needs_wait(self) -> bool:
        """Whether confirmations are still awaited."""

    @property
    def satisfied(self) -> bool:
        """Whether the wanted level was reached (always, when nothing was wanted)."""

    @property
    def confirmed(self) -> tuple[str, ...]:
        """Names of the members that have applied it."""

    @property
    def unconfirmed(self) -> tuple[str, ...]:
        """Names of the members that should hold it and have not confirmed."""

    def wait(self) -> Receipt:
        """Block until it is final. Not in the reactor's thread. Raises `NotConfirmed` with `strict_acks`."""

    def deferred(self) -> Deferred[Receipt]:
        """Fires in the reactor's thread when it is final."""

    def when_final(self, callback: Callable[[], None]) -> None:
        """Call `callback()` once: now if it is final, else in the reactor's thread when it is (then `wait` does not block). Any thread."""


class _Final:
    """A receipt that waits for nobody."""

    needs_wait = False
    confirmed: tuple[str, ...] = ()
    unconfirmed: tuple[str, ...] = ()

    def __init__(self, satisfied: bool) -> None:
        self.satisfied = satisfied

    def wait(self) -> Receipt:
        return self

    def deferred(self) -> Deferred[Receipt]:
        done: Deferred[Receipt] = Deferred()
        done.callback(self)
        return done

    def when_final(self, callback: Callable[[], None]) -> None:
        callback()


DONE: Receipt = _Final(True)  #: nothing was wanted
DROPPED: Receipt = _Final(False)  #: the session had ended


class _Ear:
    """The channel's `Waiter`: passes on what it hears of one message."""

    __slots__ = ("_receipt",)

    def __init__(self, receipt: Waiting) -> None:
        self._receipt = receipt

    def confirmed(self, uid: bytes) -> None:
        self._receipt.heard(uid)

    def failed(self, uid: bytes) -> None:
        self._receipt.missed(uid)


class Waiting:
    """A receipt that is (or was) waited for.

    `names`: uid to name of every member that should hold the commit; `awaited`: those of them that can answer; each
    counts once it has confirmed its number of messages, one if none is given (the `ear` goes with each of them).
    """

    __slots__ = ("_awaited", "_callbacks", "_confirmed", "_names", "_needed", "_strict", "_turnstile", "ear", "expires_ms", "needs_wait")

    def __init__(self, needed: int, names: dict[bytes, str], awaited: Sequence[bytes] | Mapping[bytes, int], expires_ms: int, strict: bool) -> None:
        self._needed = needed
        self._names = names
        self._awaited = dict(awaited) if isinstance(awaited, Mapping) else dict.fromkeys(awaited, 1)
        self._confirmed: list[bytes] = []
        self._strict = strict
        self._callbacks: list[Callable[[], None]] = []
        self._turnstile = Lock()
        self.expires_ms = expires_ms
        self.ear = _Ear(self)
        self.needs_wait = 0 < needed <= len(self._awaited)
        if self.needs_wait:
            self._turnstile.acquire()

    @property
    def satisfied(self) -> bool:
        return len(self._confirmed) >= self._needed

    @property
    def confirmed(self) -> tuple[str, ...]:
        return tuple(self._names.get(uid, uid.hex()[:8]) for uid in tuple(self._confirmed))

    @property
    def unconfirmed(self) -> tuple[str, ...]:
        confirmed = set(self._confirmed)
        return tuple(name for uid, name in sorted(self._names.items()) if uid not in confirmed)

    # the channel's side, in the reactor's thread

    def heard(self, uid: bytes) -> None:
        left = self._awaited.get(uid, 0)
        if left > 1:
            self._awaited[uid] = left - 1
        elif left:
            del self._awaited[uid]
            self._confirmed.append(uid)
            self._settle()

    def missed(self, uid: bytes) -> None:
        if self._awaited.pop(uid, None) is not None:
            self._settle()

    def expire(self) -> list[bytes]:
        """The time is over. Returns who missed it, if it mattered."""
        if not self.needs_wait:
            return []
        late = sorted(self._awaited)
        self._awaited = {}
        self._settle()
        return late

    def _settle(self) -> None:
        if not self.needs_wait or (len(self._confirmed) < self._needed <= len(self._confirmed) + len(self._awaited)):
            return
        self.needs_wait = False
        self._turnstile.release()
        self._call_back()

    def _call_back(self) -> None:
        """Each callback is taken out by one thread only."""
        while True:
            try:
                callback = self._callbacks.pop(0)
            except IndexError:
                return
            callback()

    # the caller's side

    def wait(self) -> Receipt:
        if self._turnstile.acquire(timeout=_WAIT_MAX_S):
            self._turnstile.release()
        self._check()
        return self

    def deferred(self) -> Deferred[Receipt]:
        result: Deferred[Receipt] = Deferred()
        self.when_final(lambda: self._fire(result))
        return result

    def when_final(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)
        if not self.needs_wait:  # asked after appending: it may become final between the two
            self._call_back()

    def _fire(self, deferred: Deferred[Receipt]) -> None:
        try:
            self._check()
        except NotConfirmed as error:
            deferred.errback(error)
        else:
            deferred.callback(self)

    def _check(self) -> None:
        if self._strict and not self.satisfied:
            missing = ", ".join(self.unconfirmed) or "there is no other member"
            raise NotConfirmed(f"{len(self._confirmed)} of {self._needed} confirmations; missing: {missing}")


class Joined:
    """Several receipts in one. `deaf`: names of members that cannot confirm whatever happens."""

    def __init__(self, receipts: Sequence[Receipt], deaf: Sequence[str] = ()) -> None:
        self._receipts = receipts
        self._deaf = deaf

    @property
    def needs_wait(self) -> bool:
        return any(receipt.needs_wait for receipt in self._receipts)

    @property
    def satisfied(self) -> bool:
        return not self._deaf and all(receipt.satisfied for receipt in self._receipts)

    @property
    def confirmed(self) -> tuple[str, ...]:
        missing = set(self.unconfirmed)
        return tuple(sorted({name for receipt in self._receipts for name in receipt.confirmed} - missing))

    @property
    def unconfirmed(self) -> tuple[str, ...]:
        return tuple(sorted({*self._deaf, *(name for receipt in self._receipts for name in receipt.unconfirmed)}))

    def wait(self) -> Receipt:
        for receipt in self._receipts:
            receipt.wait()
        return self

    def deferred(self) -> Deferred[Receipt]:
        done: Deferred[Receipt] = Deferred()

        def fire() -> None:
            try:
                self.wait()
            except NotConfirmed as error:
                done.errback(error)
            else:
                done.callback(self)

        self.when_final(fire)
        return done

    def when_final(self, callback: Callable[[], None]) -> None:
        for receipt in self._receipts:
            callback = partial(receipt.when_final, callback)
        callback()
