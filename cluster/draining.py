"""Leaving on purpose: everything that this node holds is handed over first.

A draining node announces that it has no weight. From that moment every member, this one too, places its sessions elsewhere: others
become their primaries, and this node parts from its copies as after any change of the view, from each when all who should hold it now
have confirmed it (`managers/handover.py`). Requests that still come are served, as by a lite member; readiness says no, so that balancers
send them elsewhere. Nothing here moves sessions: it announces, waits, and counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater

from ..managers.base import SessionManager

__all__ = ["DRAINED", "DRAINING", "SERVING", "Drain", "Holder", "end_led"]

SERVING, DRAINING, DRAINED = "serving", "draining", "drained"

_LOOK_S = 0.1
_ENDED_AT_ONCE = 1000


async def end_led(managers: Iterable[SessionManager], clock: Any) -> None:
    """End what a node leads that is about to stop, where its manager says so; in pieces, so that others hear meanwhile that it is there."""
    for manager in managers:
        led = manager.users.led() if manager.settings.expire_on_shutdown else []
        for at, key in enumerate(led):
            manager.end(key, "shutdown")
            if at % _ENDED_AT_ONCE == _ENDED_AT_ONCE - 1:
                await deferLater(clock, 0.0)


class Holder(Protocol):
    """What a session manager says of what is left."""

    def remaining(self) -> tuple[int, int]:
        """(sessions and tombstones not handed over yet, sessions that nobody else can hold)."""


class Announcer(Protocol):
    """The channel."""

    def announce(self, weight: int | None = None, **payload: Any) -> None: ...


class Drain:
    """One node's. Reactor thread. `weight`: what the node has when it does not drain. `notice_s`: the shortest drain, time for
    balancers to see that the node is not ready any more."""

    def __init__(self, announcer: Announcer, managers: Mapping[str, Holder], weight: int, notice_s: float, clock: Any) -> None:
        self._announcer = announcer
        self._managers = managers
        self._weight = weight
        self._notice_s = notice_s
        self._clock = clock
        self._began: float | None = None
        self._ended: float | None = None
        self._total = 0
        self._waiting: list[Deferred[bool]] = []
        self._look = LoopingCall(self._looked)
        self._look.clock = clock

    @property
    def state(self) -> str:
        if self._began is None:
            return SERVING
        return DRAINING if self._ended is None else DRAINED

    def begin(self) -> None:
        """Hand everything over. Harmless when that goes on already; begins again when something has been left, or has come since."""
        if self._began is not None and (self._ended is None or not any(map(any, self._remaining().values()))):
            return
        self._began, self._ended = self._clock.seconds(), None
        self._announcer.announce(0, draining=True)
        self._total = sum(left for left, _ in self._remaining().values())
        self._look.start(_LOOK_S)

    def cancel(self) -> None:
        """Take part again, as before."""
        if self._began is None:
            return
        self.stop()
        self._began = self._ended = None
        self._announcer.announce(self._weight, draining=False)

    def stop(self) -> None:
        """Look no more; who waits hears that it was in vain."""
        if self._look.running:
            self._look.stop()
        self._fire(False)

    def done(self, timeout_s: float) -> Deferred[bool]:
        """Fires with True when everything that others can hold is handed over, with False after `timeout_s` or when the drain is cancelled."""
        result: Deferred[bool] = Deferred()
        if self.state == DRAINING:
            self._waiting.append(result)
        else:
            result.callback(self.state == DRAINED and not any(left for left, _ in self._remaining().values()))
        return result.addTimeout(timeout_s, self._clock, lambda value, timeout: False)

    def report(self) -> dict[str, Any]:
        """JSON: `state`, how many sessions and tombstones there were (`total`) and are `left`, how many are `stranded` (nobody else can hold
        them), `seconds` so far, and the same by manager."""
        remaining = self._remaining() if self._began is not None else dict.fromkeys(sorted(self._managers), (0, 0))
        until = self._clock.seconds() if self._ended is None else self._ended
        return {
            "state": self.state,
            "total": self._total,
            "left": sum(left for left, _ in remaining.values()),
            "stranded": sum(stranded for _, stranded in remaining.values()),
            "seconds": round(until - self._began, 3) if self._began is not None else 0.0,
            "managers": {name: {"left": left, "stranded": stranded} for name, (left, stranded) in remaining.items()},
        }

    def _remaining(self) -> dict[str, tuple[int, int]]:
        return {name: self._managers[name].remaining() for name in sorted(self._managers)}

    def _looked(self) -> None:
        assert self._began is not None, "begun"
        left = sum(left for left, _ in self._remaining().values())
        self._total = max(self._total, left)
        now = self._clock.seconds()
        if not left and now - self._began >= self._notice_s:
            self._ended = now
            self._look.stop()
            self._fire(True)

    def _fire(self, handed_over: bool) -> None:
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            if not deferred.called:
                deferred.callback(handed_over)
