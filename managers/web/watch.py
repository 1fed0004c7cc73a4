"""The sessions of open WebSockets: kept alive while they are open, and told when the session has ended elsewhere.

A member that holds a session hears of its end at once. One that does not (a lite member, `backup`, `partitioned`) only hears that
its copy is stale, and an end can fall between opening and watching. So each open socket also looks after its session every few seconds, as a request would do: in
memory where that will do, by asking where it will not. That look is also the touch that keeps the session alive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from threading import Lock

from ..base import SessionManager
from ..hearing import calling
from ..listeners import SessionDestroyed
from ..session import Session

__all__ = ["Watch", "Watched"]

_LOOK_S = 5.0  # the longest that a socket outlives its session, for some 10 microseconds a look

_LOOK_MIN_S = 0.05


class Watch:
    """All sockets of a front. Any thread."""

    def __init__(self, manager: SessionManager) -> None:
        self.manager = manager
        self._lock = Lock()
        self._watched: dict[bytes, tuple[Watched, ...]] = {}
        manager.listen(SessionDestroyed, self._destroyed, replicas=True)

    def begin(self, session: Session, touches: bool, over: Callable[[str], None]) -> Watched:
        """From the socket's loop, where `over(reason)` will be called, once, if the session ends; until `Watched.stop`. `touches`: keep it alive."""
        watched = Watched(self.manager, session, touches, over, self)
        self.keep(watched)
        watched.look()  # after that nothing can be missed
        return watched

    @property
    def count(self) -> int:
        """Open sockets with a session."""
        with self._lock:
            return sum(map(len, self._watched.values()))

    def keep(self, watched: Watched) -> None:
        """It hears of the end of its key from now on."""
        with self._lock:
            self._watched[watched.key] = (*self._watched.get(watched.key, ()), watched)

    def forget(self, watched: Watched) -> None:
        """It hears nothing any more."""
        with self._lock:
            left = tuple(one for one in self._watched.pop(watched.key, ()) if one is not watched)
            if left:
                self._watched[watched.key] = left

    def _destroyed(self, event: SessionDestroyed) -> None:
        with self._lock:
            watched = self._watched.get(event.key, ())
        for one in watched:
            one.destroyed(event.reason)


class Watched:
    """The session of one open socket. Its loop's thread, except `destroyed`."""

    def __init__(self, manager: SessionManager, session: Session, touches: bool, over: Callable[[str], None], watch: Watch) -> None:
        self.key = session.key
        self._manager = manager
        self._session = session
        self._touches = touches
        self._over: Callable[[str], None] | None = over
        self._forget, self._keep = watch.forget, watch.keep
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def destroyed(self, reason: str) -> None:
        """It has ended. Any thread."""
        calling(self._loop, self._end, reason)

    def stop(self) -> None:
        """The socket is closed. Repeats are harmless."""
        self._over = None
        if self._timer is not None:
            self._timer.cancel()
        self._forget(self)

    def look(self) -> None:
        if self._over is None:
            return
        manager, session = self._manager, self._session
        manager.follow(session)
        if session.key != self.key:
            self._forget(self)
            self.key = session.key
            self._keep(self)
        if self._touches:
            manager.touch(session)
        limit_s = session.max_idle_s
        self._timer = self._loop.call_later(max(_LOOK_MIN_S, min(_LOOK_S, limit_s / 10)) if limit_s else _LOOK_S, self.look)
        live = manager.is_live(session)
        if live is None:
            manager.open_soon(session.id, session.token, self._told)
        elif not live:
            self._end("ended")

    def _told(self, found: Session) -> None:
        """In the reactor's thread."""
        if not calling(self._loop, self._seen, found):
            self._manager.release(found)

    def _seen(self, found: Session) -> None:
        gone = found.id is None and not found.unknown
        self._manager.release(found)
        if gone:
            self._end("ended")

    def _end(self, reason: str) -> None:
        if self._over is not None:
            over = self._over
            self.stop()
            over(reason)
