"""What all requests of one asyncio application share: its front, and the watch over its WebSockets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

from ..base import SessionManager
from ..throttle import Origin
from .cookies import CookieSettings, Ticket
from .policy import Front, Visit
from .waiting import opened
from .watch import Watch

__all__ = ["ManagerOrFunction", "Sessions"]

#: A session manager, or a function that returns it.
ManagerOrFunction = SessionManager | Callable[[], SessionManager]


class Sessions:
    """`manager` may be a function, which is called at the first request: applications are put together before their node is started."""

    def __init__(self, manager: ManagerOrFunction, cookie: CookieSettings | None = None, no_touch: Sequence[str] = ()) -> None:
        self._manager = manager
        self._cookie = cookie
        self._no_touch = no_touch

    @cached_property
    def front(self) -> Front:
        return Front(self._manager, self._cookie, self._no_touch)

    @cached_property
    def watch(self) -> Watch:
        return Watch(self.front.manager)

    async def admit(self, cookies: Iterable[str], origin: Origin, path: str, agent: Callable[[], str], in_turn: bool = True) -> Visit:
        """The session that the `Cookie` fields of a request name, opened. `agent()`: its `User-Agent`. Without `in_turn` it waits for no other request, nor does one for it."""
        ticket = self.front.ticket(cookies, path, agent)
        return await self._open(ticket._replace(in_turn=ticket.in_turn and in_turn), origin, path)

    async def reopen(self, visit: Visit, path: str, frozen: bool) -> Visit:
        """The session of this visit opened again, with what others have written meanwhile; `frozen`: the headers are sent.

        The visit itself if it has none, or if nobody can say at the moment.
        """
        old = visit.session
        if old.id is None or old.new or old.ended:
            return visit
        found = await self._open(Ticket(old.id, token=old.token), ("", ""), path)
        if found.session.unknown:
            found.release()
            return visit
        found.session.turn, visit.session.turn = visit.session.turn, None
        visit.release()
        if frozen:
            found.session.freeze_id()
        if not found.keeps_alive:
            found.let_expire()
        return found

    async def _open(self, ticket: Ticket, origin: Origin, path: str) -> Visit:
        visit = self.front.admit(ticket, await opened(self.front, ticket, origin), path, origin)
        if visit.wanted is not None:
            with visit.kept():
                visit.sign_on(await opened(*visit.wanted, origin))
        return visit
