"""The session of a request in asyncio: without waiting where this node may say, else when the others have answered (`hearing.py`)."""

from __future__ import annotations

from collections.abc import Callable

from ..base import SessionManager
from ..hearing import confirmed, heard
from ..session import Session
from ..summaries import LoginHere
from ..throttle import Origin
from .cookies import Ticket
from .policy import Front

__all__ = ["confirmed", "heard", "log_in", "opened"]


async def opened(front: Front, ticket: Ticket, origin: Origin) -> Session:
    """The session of a request. Without waiting, unless others have to be asked. Raises `SessionUnavailable` where none can be had."""
    session = front.local(ticket, origin)
    if session is not None:
        return session
    try:
        manager = front.manager
        settings = manager.settings
        limit_s = 3 * max(settings.lookup_timeout_s, settings.read_your_writes_wait_s) + 1.0 + (settings.lock_timeout_s if ticket.in_turn else 0.0)
        opener = front.opener(ticket)
        return await heard(lambda give: opener.open_soon(ticket.id, ticket.token, give), limit_s, manager.unknown, manager.release)
    except Exception as error:
        return front.instead(error)


async def log_in(manager: SessionManager, session: Session, principal: str, **about: str) -> None:
    """`session.login` without blocking the loop, where other nodes may have to be asked first (`principal_sessions_policy = "refuse"`). Raises what that raises."""

    def begin(give: Callable[[list[LoginHere]], None]) -> None:
        if not manager.users.login_soon(principal, give):
            give([])

    found: list[LoginHere] = await heard(begin, manager.settings.ack_timeout_s + 1.0, list)
    manager.users.login(session, found, principal, **about)
