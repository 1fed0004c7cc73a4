"""Waiting for what the reactor's thread brings, in asyncio and in plain threads.

The node's reactor turns in a thread of its own, or is asyncio's loop itself; both look the same from here. Nothing blocks the
loop: something is begun from its thread, and the answer comes back by `call_soon_threadsafe`. An answer that nobody waits for any more
(a request was cancelled, the loop is closed, the time was over) is given back, so that a session or a lock is not in use for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Lock
from typing import Any, TypeVar

from .receipts import Receipt

__all__ = ["blocked", "calling", "confirmed", "heard"]

T = TypeVar("T")

_CONFIRMED_S = 120.0  # as in `receipts.py`: the manager ends every wait much sooner; this is for a reactor that has died


async def confirmed(receipt: Receipt | None) -> None:
    """Wait for those that a commit asked for. Raises `NotConfirmed` with `strict_acks`."""
    if receipt is not None and receipt.needs_wait:
        await heard(lambda give: receipt.when_final(lambda: give(None)), _CONFIRMED_S, lambda: None)
        receipt.wait()  # it is final: raises or returns


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


def blocked(begin: Callable[[Callable[[T], None]], None], limit_s: float, otherwise: Callable[[], T], unwanted: Callable[[T], object]) -> T:
    """`heard` in a thread that may wait."""
    given, guard = Event(), Lock()
    found: list[T] = []
    gone = False

    def give(value: T) -> None:
        with guard:
            late = gone
            if not late:
                found.append(value)
        if late:
            unwanted(value)
        given.set()

    try:
        begin(give)
        given.wait(limit_s)
    except BaseException:
        with guard:
            gone = True
        for value in found:
            unwanted(value)
        raise
    with guard:
        gone = True
    return found[0] if found else otherwise()
