"""Opening sessions: from memory where this member may answer, by a look-up of the keepers where it may not.

`open_local` never waits; None says that somebody has to be asked. `open` waits in a thread, `open_deferred` in the
reactor. An answer of *unknown* gives a session that reads as empty and refuses writes; it stands for at most a second,
and after `unknown_for_s` the session counts as gone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from threading import Event

from twisted.internet.defer import Deferred

from ..membership.channel import Channel
from ..membership.effects import Effect
from .core import SessionCore
from .lock import PoliteLock
from .messages import FOUND, GONE, UNSURE
from .replica import Entry
from .session import Session, key_of

__all__ = ["Opening"]

_UNKNOWN_STANDS_MS = 1000
_UNKNOWN_MAX = 4096
_is_id = re.compile(r"[A-Za-z0-9_-]{43}").fullmatch


class Opening:
    """`react` runs a step of the core and performs its effects (reactor thread); `made` builds a session (arguments after `entropy`)."""

    def __init__(
        self,
        core: SessionCore,
        channel: Channel,
        lock: PoliteLock,
        react: Callable[[Callable[[int], list[Effect]]], None],
        made: Callable[..., Session],
    ) -> None:
        self._core = core
        self._channel = channel
        self._lock = lock
        self._react = react
        self._made = made
        self._timeout_s = core.settings.lookup_timeout_s
        self._unknown_for_ms = core.settings.unknown_for_s * 1000
        self._callbacks: dict[bytes, list[Callable[[int], None]]] = {}
        self._unknown: dict[bytes, tuple[int, int]] = {}  # key -> (first, last) time it was called unknown
        self._stopped = False

    def open_local(self, session_id: str | None) -> Session | None:
        """The session as far as this member may say by itself: found, or a new one. None: somebody must be asked. Any thread, never waits."""
        if session_id is None or not _is_id(session_id):
            return self._made()
        key = key_of(session_id)
        now_ms = self._channel.now_ms()
        with self._lock:
            entry, trusted = self._core.trusted(key, now_ms)
            if not trusted:
                first, last = self._unknown.get(key, (now_ms, -_UNKNOWN_STANDS_MS))
                if now_ms - last >= _UNKNOWN_STANDS_MS or entry is not None:
                    return None
                return self._lost_or_unknown(first, now_ms)
            self._unknown.pop(key, None)
            return self._made() if entry is None else self._bind(session_id, key, entry)

    def open(self, session_id: str | None) -> Session:
        """The same, asking the keepers if need be. Any thread but the reactor's; waits `lookup_timeout_s` at most."""
        session = self.open_local(session_id)
        if session is not None:
            return session
        assert session_id is not None
        answered = Event()
        verdicts: list[int] = []

        def answer(verdict: int) -> None:
            verdicts.append(verdict)
            answered.set()

        key = key_of(session_id)
        self._channel.wake(lambda: self._ask(key, answer))
        answered.wait(self._timeout_s + 1.0)  # the look-up ends by itself sooner, if the reactor is alive
        return self._answered(session_id, key, verdicts[0] if verdicts else UNSURE)

    def open_deferred(self, session_id: str | None) -> Deferred[Session]:
        """The same in the reactor's thread."""
        result: Deferred[Session] = Deferred()
        session = self.open_local(session_id)
        if session is not None:
            result.callback(session)
            return result
        assert session_id is not None
        known_id, key = session_id, key_of(session_id)
        self._ask(key, lambda verdict: result.callback(self._answered(known_id, key, verdict)))
        return result

    def release(self, session: Session) -> None:
        """The request is over: the session is not in use by it any more. Repeats are harmless."""
        key, session.opened = session.opened, b""
        if key:
            with self._lock:
                in_use = self._core.in_use
                left = in_use.get(key, 1) - 1
                if left:
                    in_use[key] = left
                else:
                    in_use.pop(key, None)

    def _bind(self, session_id: str, key: bytes, entry: Entry) -> Session:
        record = self._core.replica.record(key, entry)
        assert record is not None
        session = self._made(session_id, key, record.registers.copy(), entry.created_ms, record.size)
        session.opened = key
        in_use = self._core.in_use
        in_use[key] = in_use.get(key, 0) + 1
        return session

    def _ask(self, key: bytes, callback: Callable[[int], None]) -> None:
        if self._stopped:
            callback(UNSURE)
            return
        self._callbacks.setdefault(key, []).append(callback)
        self._react(lambda now_ms: self._core.ask_keepers(key, now_ms))

    def ended(self, key: bytes, verdict: int) -> None:
        """The look-up of this key is over."""
        for callback in self._callbacks.pop(key, ()):
            callback(verdict)

    def stop(self) -> None:
        """Nobody will answer any more: whoever waits, and whoever asks from now on, hears unknown."""
        self._stopped = True
        for key in list(self._callbacks):
            self.ended(key, UNSURE)

    def _answered(self, session_id: str, key: bytes, verdict: int) -> Session:
        """What the keepers' verdict means for the request."""
        now_ms = self._channel.now_ms()
        with self._lock:
            if verdict == GONE:
                self._core.replica.settle_partial(key)  # nobody has more of it
            entry = self._core.servable(key, now_ms)
            if verdict == UNSURE or (verdict == FOUND and entry is None and self._core.trusted(key, now_ms) == (None, False)):
                first, last = self._unknown.pop(key, (now_ms, now_ms))
                if now_ms - last >= self._unknown_for_ms:
                    first = now_ms  # that was another time
                if len(self._unknown) >= _UNKNOWN_MAX:
                    self._unknown.pop(next(iter(self._unknown)))
                self._unknown[key] = (first, now_ms)
                return self._lost_or_unknown(first, now_ms)
            self._unknown.pop(key, None)
            return self._made() if entry is None else self._bind(session_id, key, entry)

    def _lost_or_unknown(self, first_ms: int, now_ms: int) -> Session:
        if now_ms - first_ms >= self._unknown_for_ms:
            return self._made()
        return self._made(unknown=True)
