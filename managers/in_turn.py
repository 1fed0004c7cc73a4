"""Opening sessions for requests that take turns (`turns.py`): as `opening.py`, after the requests of the same session that came before.

The turn goes with the session that is given, and comes back when that is released, in the end of the request. A session that is dropped without that (an exception between
the two) gives its turn back when Python forgets it. Who is turned away gets a session that says so (`refusal`), which fronts answer with.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from ..membership.channel import Channel
from ..membership.driver import Driver
from ..membership.effects import Effect
from .errors import TurnRefused
from .hearing import blocked
from .lock import PoliteLock
from .opening import Opening, is_id
from .session import Session, key_of
from .settings import ManagerSettings
from .turns import Turn, Turns

__all__ = ["InTurn"]

_LOOK_S = 1.0  # for turns that nobody gave back, while somebody waits
_GRACE_S = 1.0  # for a reactor that is busy when the time is over


class _Held:
    """A turn, and the session that it goes with."""

    __slots__ = ("_owner", "_turn")

    def __init__(self, owner: InTurn, turn: Turn) -> None:
        self._owner = owner
        self._turn: Turn | None = turn

    def give_back(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            self._owner.give_back(turn)

    def __del__(self) -> None:  # in any thread, which may have any lock: so this takes none
        if self._turn is not None:
            self._owner.dropped.append(self._turn)


class InTurn:
    """Of one manager. Its methods are those of `Opening`, for the same threads; a request has to release what it was given."""

    def __init__(self, opening: Opening, channel: Channel, lock: PoliteLock, settings: ManagerSettings, clock: IReactorTime) -> None:
        self._opening = opening
        self._channel = channel
        self._lock = lock
        self._clock = clock
        self._waits = settings.turns != "refuse"
        self._patience_s = settings.lock_timeout_s
        self._limit_s = settings.lock_timeout_s + 3 * max(settings.lookup_timeout_s, settings.read_your_writes_wait_s) + _GRACE_S
        self.turns = Turns()
        self.dropped: deque[Turn] = deque()  #: of sessions that nobody released
        self._driver = Driver(self, clock, lambda effect: None)

    # -- opening

    def open_local(self, session_id: str | None, token: str = "") -> Session | None:
        """See `Opening.open_local`; also None where somebody else has the turn."""
        if session_id is None or not is_id(session_id):
            return self._opening.open_local(session_id, token)
        with self._lock:
            turn = self.turns.take_free(key_of(session_id))
        if turn is None:
            return None
        held = _Held(self, turn)
        session = self._opening.open_local(session_id, token)
        if session is None:
            held.give_back()
        else:
            session.turn = held
        return session

    def open(self, session_id: str | None, token: str = "") -> Session:
        """See `Opening.open`; waits `lock_timeout_s` besides."""
        return blocked(lambda give: self.open_soon(session_id, token, give), self._limit_s, self._opening.unknown, self._opening.release)

    def open_deferred(self, session_id: str | None, token: str = "") -> Deferred[Session]:
        """See `Opening.open_deferred`."""
        opened: Deferred[Session] = Deferred()
        self._queue(session_id, token, opened.callback)
        return opened

    def open_soon(self, session_id: str | None, token: str, give: Callable[[Session], None]) -> None:
        """See `Opening.open_soon`."""
        self._channel.wake(lambda: self._queue(session_id, token, give))

    def _queue(self, session_id: str | None, token: str, give: Callable[[Session], None]) -> None:
        """Reactor thread."""
        if session_id is None or not is_id(session_id):
            self._opening.open_deferred(session_id, token).addCallback(give)
            return

        def go(is_ours: bool) -> None:
            if is_ours:
                assert turn is not None, "whose else?"
                held = _Held(self, turn)
                self._opening.open_deferred(session_id, token).addCallback(lambda session: give(_with(session, held)))
            else:
                give(self._refused("requests of this session that came before were not over in time (lock_timeout_s)", 503))

        self._collect()
        with self._lock:
            turn, is_first = self.turns.take(key_of(session_id), self._clock.seconds() + self._patience_s, go, self._waits)
        if turn is None:
            give(self._refused("another request of this session is being served (turns)", 429))
        elif is_first:
            go(True)
        else:
            self._driver.rearm()

    def _refused(self, text: str, status: int) -> Session:
        session = self._opening.unknown()
        session.refusal = TurnRefused(text, status)
        return session

    # -- giving back

    def give_back(self, turn: Turn) -> None:
        """Any thread."""
        with self._lock:
            following = self.turns.give_back(turn)
        if following is not None:
            self._channel.wake(lambda: following.go(True))

    def _collect(self) -> None:
        while self.dropped:
            self.give_back(self.dropped.popleft())

    # -- time

    def start(self) -> None:
        self._driver.start()

    def stop(self) -> None:
        """Nobody waits any more."""
        self._driver.stop()
        self._turn_away(float("inf"))

    def tick(self, now: float) -> list[Effect]:
        self._collect()
        self._turn_away(now)
        return []

    def deadline(self) -> float | None:
        with self._lock:
            first = self.turns.deadline
        return None if first is None else min(first, self._clock.seconds() + _LOOK_S)

    def _turn_away(self, now: float) -> None:
        with self._lock:
            late = self.turns.late(now)
        for turn in late:
            turn.go(False)

    def statistics(self) -> dict[str, int]:
        """`turns_waited`: requests that waited for others of their session; `turns_refused`: those that were turned away."""
        return {"turns_waited": self.turns.waits, "turns_refused": self.turns.refused}


def _with(session: Session, held: _Held) -> Session:
    session.turn = held
    return session
