"""Browsers, and what serves them: the product's own `Front`, which every framework's front is made of, on simulated nodes.

A request takes a while if it is told to: it has opened its session, other requests come and go, and then it commits. That is a timer of its process: it
dies with it, and is late when it stood still. What the response says of cookies reaches the browser's jar, or is lost on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from caterwaul.managers.errors import SessionError
from caterwaul.managers.session import Session
from caterwaul.managers.web.cookies import CookieSettings, Ticket
from caterwaul.managers.web.policy import Front, Visit

from .node import SimCluster, SimNode
from .reactor import SimReactor
from .world import World

__all__ = ["Browser", "Site", "cookie_name"]

_ORIGIN = ("", "")
_DELETED = "; Max-Age=0"


def cookie_name(application: str) -> str:
    return f"__Host-{application}"


class Browser:
    """`jar`: cookies by name. `before`: jars of before, the latest last. `serving`: the process whose answer it waits for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.jar: dict[str, str] = {}
        self.before: list[dict[str, str]] = []
        self.node: int | None = None
        self.serving: SimReactor | None = None

    @property
    def waits(self) -> bool:
        return self.serving is not None and not self.serving.dead

    def take(self, headers: list[tuple[str, str]]) -> None:
        for name, value in headers:
            if name != "Set-Cookie":
                continue
            cookie, _, said = value.partition("=")
            before = dict(self.jar)
            if _DELETED in said:
                self.jar.pop(cookie, None)
            else:
                self.jar[cookie] = said.partition(";")[0]
            if self.jar != before:
                self.before = [*self.before[-5:], before]


class Site:
    """An application on all nodes of a cluster. `lost`: the share of responses that reach nobody."""

    def __init__(self, world: World, cluster: SimCluster, application: str, rng: Random, lost: float) -> None:
        self.application = application
        self._world = world
        self._cluster = cluster
        self._rng = rng
        self._lost = lost
        self._fronts: dict[str, Front] = {}

    def choose(self, browser: Browser, sticky: float) -> SimNode | None:
        """The node of its next request: one that is up and does not stand still."""
        up = [number for number, node in sorted(self._cluster.nodes.items()) if not node.reactor.paused and node.managers and node.membership is not None]
        if not up:
            return None
        if browser.node not in up or self._rng.random() > sticky:
            browser.node = self._rng.choice(up)
        return self._cluster.nodes[browser.node]

    def ticket(self, node: SimNode, jar: dict[str, str]) -> Ticket:
        return self._front(node).ticket(["; ".join(f"{name}={value}" for name, value in jar.items())], "/", str)

    def open(self, node: SimNode, ticket: Ticket, serve: Callable[[Visit], object]) -> None:
        """Serve a request: at once, or when others have been asked."""
        front = self._front(node)

        def admit(session: Session) -> None:
            visit = front.admit(ticket, session, "/", _ORIGIN)
            wanted = visit.wanted
            if wanted is None:
                serve(visit)
            else:
                self._opened(node, *wanted, lambda found: (visit.sign_on(found), serve(visit)))

        self._opened(node, front, ticket, admit)

    def later(self, node: SimNode, seconds: float, act: Callable[[], object]) -> None:
        if seconds:
            node.reactor.callLater(seconds, act)
        else:
            act()

    def finish(self, browser: Browser, visit: Visit, saved: Callable[[Any], object]) -> None:
        """Save, wait as far as the commit asks for it, and answer. `saved(receipt or None)` is called after the save. Raises what that raises, and nothing is open then."""
        try:
            receipt = visit.save()
        except SessionError:
            visit.fail()
            self._answer(browser, visit)
            raise
        saved(receipt)
        if receipt is not None and receipt.needs_wait:
            receipt.deferred().addCallback(lambda _: self._answer(browser, visit)).addErrback(self._broken)
        else:
            self._answer(browser, visit)

    def give_up(self, browser: Browser, visit: Visit) -> None:
        """A response that says that it does not work at the moment."""
        visit.fail()
        self._answer(browser, visit)

    def _answer(self, browser: Browser, visit: Visit) -> None:
        headers = visit.headers(())
        visit.release()
        browser.serving = None
        if self._rng.random() >= self._lost:
            browser.take(headers)

    def _opened(self, node: SimNode, front: Front, ticket: Ticket, give: Callable[[Session], object]) -> None:
        session = front.local(ticket, _ORIGIN)
        if session is not None:
            give(session)
            return
        assert node.channel is not None
        manager = front.manager
        node.channel.wake(lambda: manager.open_deferred(ticket.id, ticket.token).addCallback(give).addErrback(self._broken) and None)

    def _front(self, node: SimNode) -> Front:
        front = self._fronts.get(node.reactor.name)
        if front is None:
            manager = node.managers[self.application]
            front = self._fronts[node.reactor.name] = Front(manager, CookieSettings(name=cookie_name(self.application)))
        return front

    def _broken(self, failure: Any) -> None:
        self._world.fail(failure.getTraceback())
