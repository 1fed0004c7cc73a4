"""What stands in for a session manager where there is none, and the answers where a session cannot be had.

A process has no running manager before its node is started and after it was stopped; and opening a session may fail for reasons that are
not the request's. `managers.NAME.on_failure` says what a request gets then: 503, or an empty session that forgets what is written (`session.forgets`).
Either way the browser keeps its cookie, so its session is there when the manager is.
"""

from __future__ import annotations

import os

from ..errors import NotRunning, SessionUnavailable, TurnRefused
from ..locking import free_lock
from ..receipts import DONE, Receipt
from ..session import Session
from ..settings import ManagerSettings
from ..values import ValueTypes

__all__ = ["RETRY_AFTER_S", "NoManager", "unavailable"]

RETRY_AFTER_S = 1  # "unknown" is asked again after at most a second
_NOT_RUNNING = ("503 Service Unavailable", b"Sessions are not available at the moment. Please try again.\n")
_NOT_YOUR_TURN = ("429 Too Many Requests", b"Another request of this session is being served. Please try again.\n")
_UNAVAILABLE = {
    503: ("503 Service Unavailable", b"The session cannot be changed at the moment. Please try again.\n"),
    409: ("409 Conflict", b"You are logged in elsewhere as often as you may be. Log out there, and try again.\n"),
    429: ("429 Too Many Requests", b"Too many sessions from this address. Please try again.\n"),
}


def unavailable(error: SessionUnavailable) -> tuple[str, bytes]:
    """What it becomes: a status with words, and a body."""
    if isinstance(error, TurnRefused) and error.status == 429:
        return _NOT_YOUR_TURN
    return _NOT_RUNNING if isinstance(error, NotRunning) else _UNAVAILABLE[error.status]


class NoManager:
    """As much of `SessionManager` as the visit of such a request uses. Any thread."""

    def __init__(self) -> None:
        self.settings = ManagerSettings()
        self.types = ValueTypes()

    def open_local(self, session_id: str | None, token: str = "") -> Session:
        session = Session(self.settings, self.types, os.urandom, locked=free_lock)
        session.forgets = True
        return session

    def commit(self, session: Session, acks: str | int | None = None, touch: bool = True) -> Receipt:
        return DONE

    def release(self, session: Session) -> None:
        """Nobody keeps it."""

    def is_primary(self, session: Session) -> bool:
        return False

    def is_live(self, session: Session) -> bool | None:
        return None

    def age_s(self, session: Session) -> float:
        return 0.0
