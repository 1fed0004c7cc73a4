"""What applications hold: `ClusterManager`, one node of a cluster in this process.

    cluster = ClusterManager("node.toml")
    cluster.start()
    application = SessionMiddleware(application, cluster.manager())

It hides where the reactor runs. In a Twisted program (called in the reactor's thread) nothing blocks and the Deferred
tells when; everywhere else calls block until it is done, and the Deferred that comes back has fired already.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, succeed

from ..managers.base import SessionManager
from ..managers.changes import KEY_BYTES
from ..managers.errors import NotRunning
from ..managers.listeners import Callback, check_listener, decorator
from ..managers.maps import ReplicatedMap
from ..managers.values import ValueTypes
from ..membership.errors import LocalError
from ..membership.member import Member
from ..membership.view import View, ViewChanged
from .embedding import call_in_reactor, find_reactor, inside_reactor, lengthen_exit, require_this_process, running
from .lifespan import node_lifespan
from .logins import LoginDesk
from .node import Node
from .settings import Settings, load
from .workers import as_worker

__all__ = ["ClusterManager"]

T = TypeVar("T")
_STOP_S = 10.0  # more than the parts of a node allow themselves


class ClusterManager:
    """One node. Any thread may call anything; after a fork nothing works in the child, and says so.

    `settings`: a `Settings`, the path of a TOML file, or nothing; keywords change single tables or keys of it (see
    `Settings.of`). `types`: classes of the application's own that sessions may hold. Raises `SettingsError`.
    Several in one process are several nodes.
    """

    def __init__(self, settings: Settings | str | os.PathLike[str] | None = None, *, types: ValueTypes | None = None, **keywords: Any) -> None:
        if settings is None:
            self.settings = Settings.of(**keywords)
        elif isinstance(settings, Settings):
            self.settings = settings.changed(**keywords) if keywords else settings
        else:
            self.settings = load(settings, **keywords)
        self._types = types
        self._node: Node | None = None
        self._reactor: Any = None
        self._pid = 0
        self._callbacks: list[Callable[[ViewChanged], object]] = []
        self._listeners: dict[str, list[Callable[[SessionManager], None]]] = {}  # of `on`, by manager

    @property
    def name(self) -> str:
        """The node's name. Where `node.workers` is `lite`, from the start on the worker's own."""
        return self.settings.node.name

    # -- life

    def start(self, timeout_s: float = 30.0) -> Deferred[None]:
        """Listen and look for the other members; sessions can be served from then on.

        Raises `LocalError` (in the reactor's thread: the Deferred fails) when a port, the admin socket or the multicast
        group cannot be had, when it was started before, and in a process that inherited its reactor through a fork.
        """
        if self._node is not None:
            require_this_process(self._pid, "this ClusterManager")
            raise LocalError("this ClusterManager was started before; make another to start again")
        inside = inside_reactor()
        self._reactor = find_reactor()
        self._pid = os.getpid()
        if self.settings.node.workers == "lite":
            self.settings = as_worker(self.settings, self._pid)
        self._node = node = Node(self.settings, self._reactor, types=self._types)
        node.subscribe(self._event)
        node.on_manager = self._equip
        if inside:
            return self._started(node)
        call_in_reactor(self._reactor, lambda: self._started(node), timeout_s, "the start of the node")
        return succeed(None)

    def stop(self) -> Deferred[None]:
        """Leave the cluster: the others know at once (after a drain, if `node.drain_on_term` is set). Happens by itself when the reactor or
        the process ends in good order."""
        if self._node is None:
            return succeed(None)
        require_this_process(self._pid, "this ClusterManager")
        if inside_reactor():
            return self._node.leave()
        if running():
            call_in_reactor(self._reactor, self._node.leave, _STOP_S + self._drain_s, "the stop of the node")
        return succeed(None)

    def lifespan(self, app: object = None) -> AbstractAsyncContextManager[None]:
        """`async with cluster.lifespan():` the node is up, and has what the others hold. The argument is for servers that give their application: `FastAPI(lifespan=cluster.lifespan)`."""
        return node_lifespan(self)

    def drain(self, timeout_s: float = 60.0) -> Deferred[dict[str, Any]]:
        """Hand all sessions over to the other members; this node serves on as a lite member, until it is stopped.

        Fires with, or returns when called outside the reactor's thread as the Deferred's result, what `caterwaul drain --json` prints:
        `state` is `drained` when nothing is left, `draining` after `timeout_s`.
        """
        node = self._running()

        def drain() -> Deferred[dict[str, Any]]:
            handing_over = node.drain
            if handing_over is None:
                raise LocalError("the cluster is not started: its start failed, or is not over")
            handing_over.begin()
            return handing_over.done(timeout_s).addCallback(lambda _: handing_over.report())

        if inside_reactor():
            return drain()
        return succeed(call_in_reactor(self._reactor, drain, timeout_s + _STOP_S, "the drain"))

    def on_leave(self, end: Callable[[], object]) -> None:
        """This process is nothing but the node's: `caterwaul drain` ends it, when all is handed over, by calling this in the reactor's thread."""
        self._running().on_leave = end

    @property
    def _drain_s(self) -> float:
        node = self.settings.node
        return node.drain_timeout_s if node.drain_on_term else 0.0

    def _started(self, node: Node) -> Deferred[None]:
        self._reactor.addSystemEventTrigger("before", "shutdown", node.leave)
        lengthen_exit(self._drain_s)
        return node.start().addErrback(lambda failure: node.stop().addCallback(lambda _: failure))

    # -- use

    def manager(self, name: str = "default") -> SessionManager:
        """The session manager of that name. Raises `NotRunning` before the start, and `LocalError` for a name that the settings do not have."""
        on_failure = self.settings.managers[name].on_failure if name in self.settings.managers else "error"
        try:
            node = self._running()
        except LocalError as error:
            raise NotRunning(str(error), on_failure) from None
        if name in self.settings.managers and name not in node.managers:
            raise NotRunning("the cluster is not started: its start failed, or is not over", on_failure)
        if name not in node.managers:
            raise LocalError(f"no manager {name!r}: the settings have {', '.join(sorted(self.settings.managers))}")
        return node.managers[name]

    def map(self, name: str) -> ReplicatedMap:
        """The shared map of that name. Raises `LocalError` before the start, and for a name that the settings do not have."""
        node = self._running()
        if name not in self.settings.maps:
            raise LocalError(f"no map {name!r}: add a table [maps.{name}] to the settings of all nodes")
        if name not in node.maps:
            raise LocalError("the cluster is not started: its start failed, or is not over")
        return node.maps[name]

    def sessions_of(self, principal: str, manager: str = "default") -> Deferred[dict[str, Any]]:
        """The sessions in which this principal is logged in, asked of all members: ``{"principal", "sessions", "silent"}``, see
        `LoginDesk.sessions_of`. As with `start`, it has fired when it was called outside the reactor's thread."""
        return self._asked(lambda desk: desk.sessions_of(manager, principal), "asking for sessions")

    def end_session(self, key: str, manager: str = "default") -> Deferred[bool]:
        """End the session of this key (hexadecimal, as `sessions_of` gives it), wherever it is. Fires likewise, with whether it was held and all who
        can answer know. Raises `LocalError` for what is no key. All of a principal: `manager().end_all(principal)`."""
        try:
            which = bytes.fromhex(key)
        except ValueError:
            which = b""
        if len(which) != KEY_BYTES:
            raise LocalError(f"{key!r} is not the key of a session in hexadecimal")
        return self._asked(lambda desk: desk.end(manager, which), "ending a session")

    def _asked(self, question: Callable[[LoginDesk], Deferred[T]], what: str) -> Deferred[T]:
        desk = self._running().logins
        if desk is None:
            raise LocalError("the cluster is not started: its start failed, or is not over")
        if inside_reactor():
            return question(desk)
        return succeed(call_in_reactor(self._reactor, lambda: question(desk), _STOP_S, what))

    @property
    def me(self) -> Member:
        """This node as the others see it."""
        return self._running().me

    @property
    def view(self) -> View:
        """Who is here now, this node among them."""
        return self._running().view

    @property
    def members(self) -> list[Member]:
        """The members of the view, by name."""
        return sorted(self.view, key=lambda member: (member.name, member.uid))

    @property
    def everyone(self) -> list[Member]:
        """The members of all domains, by name: who can be met on this network, whether or not they hold our sessions."""
        return sorted(self._running().everyone, key=lambda member: (member.name, member.uid))

    @property
    def is_ready(self) -> bool:
        """This node holds what it should, so that balancers may send users here."""
        return self._running().is_ready

    def wait_ready(self, timeout_s: float = 10.0) -> bool:
        """Block until `is_ready`, at most that long, and return it. For a server that begins to take requests after this: until then a
        session that others hold may not be found here. Not in the reactor's thread, which raises `LocalError`."""
        if inside_reactor():
            raise LocalError("wait_ready would block the reactor, which makes the node ready; look at is_ready now and then")
        until = time.monotonic() + timeout_s
        while not self.is_ready and time.monotonic() < until:
            time.sleep(0.02)
        return self.is_ready

    def on_view_changed(self, callback: Callable[[ViewChanged], object]) -> Callable[[], None]:
        """From now on `callback(change)` in the reactor's thread (do not block it) when members come or go; what is returned ends it."""
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback) if callback in self._callbacks else None

    def on(self, kind: type, manager: str = "default", replicas: bool = False, **where: Any) -> Callable[[Callback], Callback]:
        """A decorator: the function below it hears of what happens to sessions, ``@cluster.on(SessionDestroyed, reason="expired")``. Also before the start, where
        modules are imported; then nothing is missed. The arguments after `manager` are those of `SessionManager.listen`. Raises `LocalError` for a manager that the settings do
        not have, and for what no listener can hear."""
        if manager not in self.settings.managers:
            raise LocalError(f"no manager {manager!r}: the settings have {', '.join(sorted(self.settings.managers))}")
        check_listener(kind, where)

        def listen(callback: Callable[[Any], object]) -> None:
            def begin(sessions: SessionManager) -> None:
                sessions.listen(kind, callback, replicas=replicas, **where)

            self._listeners.setdefault(manager, []).append(begin)
            if self._node is not None and manager in self._node.managers:
                begin(self._node.managers[manager])

        return decorator(listen)

    def _equip(self, sessions: SessionManager) -> None:
        for begin in self._listeners.get(sessions.name, ()):
            begin(sessions)

    def statistics(self) -> dict[str, Any]:
        """Counters of all parts, nested by part."""
        node = self._running()
        if inside_reactor():
            return node.statistics()
        found: dict[str, Any] = call_in_reactor(self._reactor, lambda: succeed(node.statistics()), _STOP_S, "reading statistics")
        return found

    def _running(self) -> Node:
        if self._node is None:
            raise LocalError("the cluster is not started: call start() first")
        require_this_process(self._pid, "this ClusterManager")
        return self._node

    def _event(self, event: object) -> None:
        if isinstance(event, ViewChanged):
            for callback in list(self._callbacks):
                callback(event)
