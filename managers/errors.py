"""Errors of sessions and of what they hold. All are local: the caller or the data on this machine is the cause."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..membership.errors import LocalError

__all__ = [
    "LockLost",
    "LockTimeout",
    "LoginRefused",
    "NotConfirmed",
    "NotRunning",
    "SessionEnded",
    "SessionError",
    "SessionRefused",
    "SessionUnavailable",
    "SessionUnknown",
    "TurnRefused",
    "ValueDamaged",
    "ValueRefused",
]


class SessionError(LocalError):
    """A session was used in a way that it cannot be; the text says what to do."""


class SessionEnded(SessionError):
    """The session was invalidated, or another request or member ended it; nothing can be written to it any more."""


class SessionUnavailable(SessionError):
    """Not now, and perhaps soon: fronts answer with `status`, and the browser may try again."""

    status = 503


class SessionUnknown(SessionUnavailable):
    """Nobody who could know was reachable: the session may exist elsewhere, so nothing may be written in its place now. Try again soon."""


class SessionRefused(SessionUnavailable):
    """No new session: this member holds as many as it may (`status` 503), or this client has begun too many (429). Those that exist go on. See also `TurnRefused`."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class TurnRefused(SessionRefused):
    """Requests of one session take turns here (`managers.NAME.turns`): another one is being served (429), or those before were not over in time (503)."""


class LoginRefused(SessionUnavailable):
    """This principal is logged in elsewhere as often as it may be (`principal_sessions_policy = "refuse"`). The session is as it was before.

    `sessions`: those that are in the way, the youngest login first, as `ClusterManager.sessions_of` has them, without `node`. An application may show them, end one
    (`ClusterManager.end_session`), and log in again.
    """

    status = 409

    def __init__(self, principal: str, sessions: Sequence[dict[str, Any]]) -> None:
        super().__init__(f"{principal!r:.40} is logged in {len(sessions)} times, which is as often as it may be (principal_sessions_max)")
        self.principal = principal
        self.sessions = list(sessions)


class NotRunning(SessionUnavailable):
    """There is no running session manager in this process: its node is not started, or was stopped. `on_failure`: what its settings say, if they are known."""

    def __init__(self, text: str, on_failure: str = "error") -> None:
        super().__init__(text)
        self.on_failure = on_failure


class LockTimeout(SessionUnavailable):
    """`session.lock()` was not granted in time. Nothing was changed."""


class LockLost(SessionUnavailable):
    """The lease of `session.lock()` ran out, or this process stood still, before what was changed under it was committed: it is dropped."""


class NotConfirmed(SessionError):
    """With `strict_acks`: fewer members confirmed than the commit asked for. The write was made and goes on being replicated."""


class ValueRefused(LocalError):
    """A value cannot be replicated; the text names the path inside it, `session["cart"][2]["when"]`."""


class ValueDamaged(LocalError):
    """Stored bytes are no value that this process can decode; the text is safe to log (no contents)."""
