"""What every application under measurement does in a request, whatever its framework and wherever its sessions are.

    begin        ten attributes of 100 characters: a session
    read         one of them is read
    change       one is read and another text set in its place
    change-one   the same, and the answer waits until one other member has confirmed it

The answer is always the attribute (100 bytes), so that driving needs no more of HTTP than where the head ends, and so that it can be seen whether every
change was kept: the attribute counts them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from caterwaul.managers.base import SessionManager
from caterwaul.managers.web.cookies import CookieSettings

__all__ = ["ATTRIBUTES", "BEGIN", "BODY_BYTES", "CHANGE", "CHANGE_ONE", "COOKIE", "READ", "Sessions", "handle"]

BEGIN, READ, CHANGE, CHANGE_ONE = "begin", "read", "change", "change-one"
ATTRIBUTES = 10
BODY_BYTES = 100
COOKIE = CookieSettings(name="sid", secure=False)

_CHANGED = "a3"


@dataclass(frozen=True)
class Sessions:
    """Where an application has its sessions: ours, Redis on this port of loopback, or (neither) it has none."""

    manager: SessionManager | None = None
    redis_port: int = 0


def handle(what: str, session: Any) -> bytes:
    """The body of the answer. `session`: the framework's mapping; None in an application without."""
    if session is None:
        return _text(0)
    if what == BEGIN:
        for i in range(ATTRIBUTES):
            session[f"a{i}"] = _text(0).decode()
    value: str = session[_CHANGED]
    if what in (CHANGE, CHANGE_ONE):
        session[_CHANGED] = value = _text(int(value) + 1).decode()
    if what == CHANGE_ONE:
        session.acks = "one"
    return value.encode()


def _text(number: int) -> bytes:
    return b"%0*d" % (BODY_BYTES, number)
