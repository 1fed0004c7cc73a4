"""Errors of sessions and of what they hold. All are local: the caller or the data on this machine is the cause."""

from __future__ import annotations

from ..membership.errors import LocalError

__all__ = ["NotConfirmed", "SessionEnded", "SessionError", "SessionRefused", "SessionUnavailable", "SessionUnknown", "ValueDamaged", "ValueRefused"]


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
    """No new session: this member holds as many as it may (`status` 503), or this client has begun too many (429). Those that exist go on."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class NotConfirmed(SessionError):
    """With `strict_acks`: fewer members confirmed than the commit asked for. The write was made and goes on being replicated."""


class ValueRefused(LocalError):
    """A value cannot be replicated; the text names the path inside it, `session["cart"][2]["when"]`."""


class ValueDamaged(LocalError):
    """Stored bytes are no value that this process can decode; the text is safe to log (no contents)."""
