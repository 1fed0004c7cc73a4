"""Waiting in asyncio for what the reactor's thread brings: a session that others were asked for, the confirmations of a commit.

The node's reactor turns in a thread of its own, or is asyncio's loop itself; both look the same from here. Nothing blocks the
loop: a request is begun from its thread, and the answer comes back by `call_soon_threadsafe`. An answer that nobody waits for any more
(the request was cancelled, the loop is closed) is given back, so that a session is not in use for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from ..base import SessionManager
from ..receipts import Receipt
from ..session import Session
from ..summaries import LoginHere
from ..throttle import Origin
from .cookies import Ticket
from .policy import Front

__all__ = ["confirmed", "heard", "log_in", "opened"]

T = TypeVar("T")

_CONFIRMED_S = 120.0  # as in `receipts.py`: the manager ends every wait much sooner; this is for a reactor that has died


async def opened(front: Front, ticket: Ticket, origin: Origin) -> Session:
    """The session of a request. Without waiting, unless others have to be asked; never raises."""
    session = front.local(ticket, origin)
    if session is not None:
        return session
    manager = front.manager
    settings = manager.settings
    limit_s = 3 * max(settings.lookup_timeout_s, settings.read_your_writes_wait_s) + 1.0
    return await heard(lambda give: manager.open_soon(ticket.id, ticket.token, give), limit_s, manager.unknown, manager.release)


async def confirmed(receipt: Receipt | None) -> None:
    """Wait for those that a commit asked for. Raises `NotConfirmed` with `strict_acks`."""
    if receipt is not None and receipt.needs_wait:
        await heard(lambda give: receipt.when_final(lambda: give(None)), _CONFIRMED_S, lambda: None)
        receipt.wait()  # it is final: raises or returns


async def log_in(manager: SessionManager, session: Session, principal: str, **about: str) -> None:
    """`session.login` without blocking the loop, where other nodes may have to be asked first (`principal_sessions_policy = "refuse"`). Raises what that raises."""

    def begin(give: Callable[[list[LoginHere]], None]) -> None:
        if not manager.users.login_soon(principal, give):
            give([])

    found: list[LoginHere] = await heard(begin, manager.settings.ack_timeout_s + 1.0, list)
    manager.users.login(session, found, principal, **about)


async def heard(
    begin: Callable[[Callable[[T], None]], None], limit_s: float, otherwise: Callable[[], T], unwanted: Callable[[T], object] = lambda value: None
) -> T:
    """What `begin(give)` gives, from whatever thread `give(value)` is called; `otherwise()` if that has not been within `limit_s`.

    `unwanted(value)` gets what comes too late.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[T] = loop.create_future()

    def take(value: T) -> None:
        if found.done():
            unwanted(value)
        else:
            found.set_result(value)

    def give(value: T) -> None:
        if not calling(loop, take, value):
            unwanted(value)

    def give_up() -> None:
        if not found.done():
            found.set_result(otherwise())

    begin(give)
    timer = loop.call_later(limit_s, give_up)
    try:
        return await found
    except asyncio.CancelledError:
        if found.done() and not found.cancelled():
            unwanted(found.result())
        raise
    finally:
        timer.cancel()


def calling(loop: asyncio.AbstractEventLoop, act: Callable[..., object], *arguments: Any) -> bool:
    """From any thread: have the loop call this. False: it is closed."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(act, *arguments)
        return True
    return False
