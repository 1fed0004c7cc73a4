"""The world of the fronts' contract over real `DeltaManager`s: two members, messages carried in memory."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, RLock, Thread
from typing import Any

from twisted.internet.defer import Deferred

from caterwaul.managers.receipts import DROPPED
from caterwaul.managers.session import Session, key_of
from caterwaul.managers.settings import SSO, ManagerSettings, SsoSettings
from caterwaul.managers.web.single import SingleSignOn, SsoCookieSettings

from ..doubles import Net


class DeltaWorld:
    """`node1` and `node2`, in sync after each request unless links are held."""

    def __init__(self, settings: ManagerSettings | None = None, epochs: bool = False, net: Net | None = None) -> None:
        self.net = net or Net(2, settings, epochs=epochs)
        self.unknown: set[str] = set()
        self.remote: set[str] = set()
        self.time_passes = False  #: while somebody waits for a turn
        self._touches: Counter[bytes] = Counter()
        self._carrying = RLock()  # a confirmation ends a request, whose release carries on
        for manager in self.net.managers:
            self._watch(manager)

    def node(self, name: str = "node1") -> DeltaNode:
        return DeltaNode(self, next(manager for manager in self.net.managers if manager.me.name == name))

    def count(self) -> int:
        (count,) = {manager.count for manager in self.net.managers}
        return count

    def holds(self, session_id: str) -> bool:
        return any(session is None or not session.new for session in self.net.everywhere(session_id))

    def contents(self, session_id: str) -> dict[str, Any]:
        first, second = (dict(session or {}) for session in self.net.everywhere(session_id))
        assert first == second
        return first

    def make_unknown(self, session_id: str) -> None:
        self.unknown.add(session_id)

    def make_remote(self, session_id: str) -> None:
        self.remote.add(session_id)

    def touches(self, session_id: str) -> int:
        return self._touches[key_of(session_id)]

    def carry(self) -> None:
        with self._carrying:
            self.net.deliver()

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Time passes and messages travel in a thread of their own, while others wait for what they bring."""
        over = Event()

        def move() -> None:
            while not over.wait(0.001):
                with self._carrying:
                    self.net.advance(0.01)

        thread = Thread(target=move)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        self.carry()

    def wait(self, opening: Deferred[Session]) -> Session:
        """Let time pass until the session is there."""
        found: list[Session] = []
        opening.addCallback(found.append)
        with self._carrying:
            while not found:
                self.net.advance(0.01)
        return found[0]

    def _watch(self, manager: Any) -> None:
        touch = manager._committing._touch

        def counted(key: bytes, *more: Any) -> None:
            self._touches[key] += 1
            touch(key, *more)

        manager._committing._touch = counted


class DeltaNode:
    """A manager under watch. Look-ups that the test asked for are answered when it says so."""

    def __init__(self, world: DeltaWorld, manager: Any) -> None:
        self.world = world
        self.manager = manager
        self.me, self.route = manager.me, manager.route
        self.settings = manager.settings
        self.types = manager.types
        self.throttle = manager.throttle
        self.single = manager.single
        self.open_now: list[Session] = []
        self.receipts: list[Watched] = []
        self.lookups: list[tuple[Deferred[Any], str, str]] = []
        self.commits = 0
        self.is_running = True
        self.open_failures = 0
        self.in_turn = InTurn(self)

    def is_live(self, session: Session) -> bool | None:
        return self.manager.is_live(session)  # type: ignore[no-any-return]

    def has_member(self, name: str) -> bool:
        return bool(self.manager.has_member(name))

    def age_s(self, session: Session) -> float:
        return float(self.manager.age_s(session))

    def unknown(self) -> Session:
        return self._opened(self.manager.unknown())

    def open_local(self, session_id: str | None, token: str = "") -> Session | None:
        if session_id in self.world.remote:
            return None
        if session_id in self.world.unknown:
            return self._opened(Session(self.settings, self.manager.types, os.urandom, unknown=True))
        session = self.manager.open_local(session_id, token)
        return None if session is None else self._opened(session)

    def open(self, session_id: str | None, token: str = "") -> Session:
        return self._opened(self.world.wait(self.manager.open_deferred(session_id, token)))

    def open_deferred(self, session_id: str, token: str = "") -> Deferred[Any]:
        self.lookups.append((Deferred(), session_id, token))
        return self.lookups[-1][0]

    def open_soon(self, session_id: str, token: str, give: Callable[[Session], object]) -> None:
        self.open_deferred(session_id, token).addCallback(give)

    def answer(self) -> None:
        while self.lookups:
            waiting, session_id, token = self.lookups.pop(0)
            waiting.callback(self.open(session_id, token))

    def _opened(self, session: Session) -> Session:
        self.open_now = [*self.open_now, session]
        return session

    def commit(self, session: Session, *options: Any, **more: Any) -> Any:
        self.commits += 1
        made = self.manager.commit(session, *options, **more)
        if made is DROPPED:
            return made
        receipt = Watched(self.world, made)
        self.receipts.append(receipt)
        return receipt

    def renew(self, session: Session) -> None:
        self.manager.renew(session)

    def follow(self, session: Session) -> None:
        self.manager.follow(session)

    def release(self, session: Session) -> None:
        self.open_now = [one for one in self.open_now if one is not session]
        self.manager.release(session)
        self.world.carry()


class InTurn:
    """How a node opens sessions for requests that take turns. Who waits does so until another thread carries on, unless time passes."""

    def __init__(self, node: DeltaNode) -> None:
        self._node = node
        self._turns = node.manager.in_turn

    def open_local(self, session_id: str | None, token: str = "") -> Session | None:
        if session_id in self._node.world.unknown:
            return self._node.open_local(session_id, token)
        session = self._turns.open_local(session_id, token)
        return None if session is None else self._node._opened(session)

    def open(self, session_id: str | None, token: str = "") -> Session:
        given, sessions = Event(), []
        self.open_deferred(session_id, token).addCallback(lambda session: (sessions.append(session), given.set()))
        assert given.wait(10)
        return sessions[0]

    def open_deferred(self, session_id: str | None, token: str = "") -> Deferred[Session]:
        world = self._node.world
        with world._carrying:
            opening: Deferred[Session] = self._turns.open_deferred(session_id, token).addCallback(self._node._opened)
            world.carry()
            while world.time_passes and not opening.called:
                world.net.advance(0.01)
        return opening

    def open_soon(self, session_id: str, token: str, give: Callable[[Session], object]) -> None:
        self.open_deferred(session_id, token).addCallback(give)


class SharedWorld(DeltaWorld):
    """Two applications that share their logins."""

    def __init__(self) -> None:
        chosen = ManagerSettings(sso="main")
        super().__init__(chosen, epochs=True)
        self.applications = {"shop": self.net.managers, "blog": self.net.add("blog", chosen)}
        self.logins = self.net.add(f"{SSO}main", SsoSettings().for_manager())
        self.cookie = SsoCookieSettings(name="__Secure-sso", domain="example.org")
        self.reauthenticates: set[str] = set()

    def node(self, name: str = "node1", application: str = "shop") -> DeltaNode:
        number = next(number for number, m in enumerate(self.net.members) if m.name == name)
        node = DeltaNode(self, self.applications[application][number])
        logins: Any = SharedLogins(node, self.logins[number])
        node.single = SingleSignOn(logins, self.cookie, application in self.reauthenticates)
        return node

    @property
    def entries_in_use(self) -> int:
        return sum(len(manager._core.in_use) for manager in self.logins)


class SharedLogins:
    """What holds them, with receipts that the application's node shows."""

    def __init__(self, node: DeltaNode, manager: Any) -> None:
        self.node = node
        self.manager = manager

    def __getattr__(self, name: str) -> Any:
        return getattr(self.manager, name)

    @property
    def users(self) -> SharedLogins:
        return self

    def end_shared(self, tag: bytes) -> Watched:
        return self._watched(self.manager.users.end_shared(tag))

    def commit(self, *arguments: Any) -> Watched:
        return self._watched(self.manager.commit(*arguments))

    def _watched(self, receipt: Any) -> Watched:
        self.node.receipts.append(Watched(self.node.world, receipt))
        return self.node.receipts[-1]


class Watched:
    """A receipt; the other member hears of the commit when somebody waits."""

    def __init__(self, world: DeltaWorld, receipt: Any) -> None:
        self.world = world
        self.receipt = receipt
        self.waited = False
        self.waiting: list[Any] = []

    @property
    def needs_wait(self) -> bool:
        return bool(self.receipt.needs_wait)

    def wait(self) -> Any:
        self.waited = True
        self.confirm()
        return self.receipt.wait()

    def deferred(self) -> Any:
        self.waiting.append(self.receipt.deferred())
        return self.waiting[-1]

    def when_final(self, callback: Callable[[], None]) -> None:
        self.waiting.append(None)
        self.receipt.when_final(callback)

    @property
    def satisfied(self) -> bool:
        return bool(self.receipt.satisfied)

    def confirm(self) -> None:
        self.world.carry()
        assert self.receipt.satisfied


class OneBrowser:
    """What the tests of a framework begin with: its application on each node of a `world`, and one browser with one `cookie`."""

    cookie = ""

    def __init__(self, settings: ManagerSettings | None = None) -> None:
        self.world = DeltaWorld(settings)
        self.view: Any = None  #: what answers

    @property
    def id(self) -> str:
        return self.cookie.partition(".")[0].partition(":")[0]

    def writes(self) -> int:
        return sum(manager.statistics()["commits"] for manager in self.world.net.managers)

    def in_use(self) -> list[int]:
        return [manager.statistics()["in_use"] for manager in self.world.net.managers]
