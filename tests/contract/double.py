"""A cluster in one dictionary: what fronts may expect of a session manager, in the fewest lines that keep its promises.

`World` is what the contract suite of fronts drives; one over real nodes offers the same methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from secrets import token_urlsafe
from typing import Any

from twisted.internet.defer import Deferred

from caterwaul.managers.errors import SessionError, SessionUnknown
from caterwaul.managers.receipts import DROPPED
from caterwaul.managers.settings import ManagerSettings
from caterwaul.managers.throttle import Throttle
from caterwaul.managers.values import ValueTypes


class World:
    """Nodes that share everything at once."""

    def __init__(self) -> None:
        self.sessions: dict[str, dict[str, bytes]] = {}
        self.ended: set[str] = set()
        self.unknown: set[str] = set()
        self.remote: set[str] = set()  # known after a look-up only
        self.touched: list[str] = []
        self.types = ValueTypes()

    def node(self, name: str = "node1") -> Node:
        return Node(self, name)

    def contents(self, session_id: str) -> dict[str, Any]:
        return {name: self.types.decode(data) for name, data in self.sessions[session_id].items()}

    def count(self) -> int:
        return len(self.sessions)

    def holds(self, session_id: str) -> bool:
        return session_id in self.sessions

    def make_unknown(self, session_id: str) -> None:
        self.unknown.add(session_id)

    def make_remote(self, session_id: str) -> None:
        self.remote.add(session_id)

    def touches(self, session_id: str) -> int:
        return self.touched.count(session_id)


class Node:
    """One node's manager."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.route = name
        self.settings = ManagerSettings()
        self.types = world.types
        self.open_now: list[Session] = []
        self.receipts: list[Receipt] = []
        self.lookups: list[tuple[Deferred[Session], str]] = []
        self.commits = 0
        self.is_running = True
        self.open_failures = 0
        self.throttle = Throttle(self.settings, lambda: 0.0)
        self.single = None

    def unknown(self) -> Session:
        session = Session(self.world, None, unknown=True)
        self.open_now.append(session)
        return session

    def open_local(self, session_id: str | None, token: str = "") -> Session | None:
        if session_id in self.world.remote:
            return None
        return self._opened(session_id)

    def open(self, session_id: str, token: str = "") -> Session:
        return self._opened(session_id)

    def open_deferred(self, session_id: str, token: str = "") -> Deferred[Session]:
        self.lookups.append((Deferred(), session_id))
        return self.lookups[-1][0]

    def open_soon(self, session_id: str, token: str, give: Callable[[Session], object]) -> None:
        self.open_deferred(session_id, token).addCallback(give)

    def answer(self) -> None:
        """The keepers answer every look-up."""
        while self.lookups:
            waiting, session_id = self.lookups.pop(0)
            waiting.callback(self._opened(session_id))

    def commit(self, session: Session, acks: str | int | None = None, touch: bool = True) -> Any:
        self.commits += 1
        if not session.new and session.id not in self.world.sessions:
            return DROPPED
        session.commit()
        receipt = Receipt(acks not in (None, "none"))
        self.receipts.append(receipt)
        return receipt

    def is_live(self, session: Session) -> bool:
        return session.id not in self.world.ended

    def renew(self, session: Session) -> None: ...

    def follow(self, session: Session) -> None: ...

    def release(self, session: Session) -> None:
        self.open_now.remove(session)

    def _opened(self, session_id: str | None) -> Session:
        known = session_id if session_id in self.world.sessions else None
        session = Session(self.world, known, unknown=session_id in self.world.unknown)
        self.open_now.append(session)
        return session


class Receipt:
    """Confirmed when somebody waits in a thread; in the reactor when the test says so."""

    def __init__(self, needs_wait: bool) -> None:
        self.needs_wait = needs_wait
        self.waited = False
        self.waiting: list[Deferred[Receipt]] = []

    def wait(self) -> Receipt:
        self.waited = True
        return self

    def deferred(self) -> Deferred[Receipt]:
        self.waiting.append(Deferred())
        return self.waiting[-1]

    def when_final(self, callback: Callable[[], object]) -> None:
        self.deferred().addBoth(lambda _: callback())

    def confirm(self) -> None:
        for deferred in self.waiting:
            deferred.callback(self)

    def refuse(self, error: Exception) -> None:
        for deferred in self.waiting:
            deferred.errback(error)


class Session(MutableMapping[str, Any]):
    """One request's view; changes are found by comparing encodings."""

    def __init__(self, world: World, session_id: str | None, unknown: bool) -> None:
        self.id = None if unknown else session_id
        self.new = self.id is None
        self.unknown = unknown
        self.acks: str | int | None = None
        self.accessed = False
        self.token = ""
        self.last = None
        self.forgets = False
        self.at_once = None
        self.max_idle_s = 1800.0
        self.refusal = self.turn = None
        self.stale = False
        self.ended = False
        self.previous_id: str | None = None
        self._world = world
        self._base = dict(world.sessions.get(self.id or "", {}))
        self._live: dict[str, Any] = {}
        self._gone: set[str] = set()
        self._end = self._cycle = self._frozen = False

    # hash and equality by identity, for `open_now`
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def __getitem__(self, name: str) -> Any:
        self.accessed = True
        if name not in self._live:
            if name in self._gone:
                raise KeyError(name)
            self._live[name] = self._world.types.decode(self._base[name])
        return self._live[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._writes()
        self._world.types.encode(value, f'session["{name}"]')
        self.id = self.id or token_urlsafe(32)
        self._gone.discard(name)
        self._live[name] = value

    def __delitem__(self, name: str) -> None:
        self._writes()
        self[name]
        self._live.pop(name, None)
        self._gone.add(name)

    def __iter__(self) -> Iterator[str]:
        self.accessed = True
        return iter((self._base.keys() - self._gone) | self._live.keys())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def invalidate(self) -> None:
        self.accessed = True
        self.ended = self._end = True

    def cycle_id(self) -> None:
        self.accessed = True
        if self._frozen:
            raise SessionError("the headers have left: the id cannot change")
        self._cycle = not self.new

    def freeze_id(self) -> None:
        self._frozen = True

    @property
    def modified(self) -> bool:
        return self._end or self._cycle or bool(self._changes())

    def commit(self) -> None:
        world = self._world
        if self.ended:
            self._end = False
            world.sessions.pop(self.id or "", None)
            world.ended.add(self.id or "")
            return
        changes = self._changes()
        if self.id is not None and self.new and changes:
            self.new = False
            world.sessions[self.id] = {}
        if self.id is None or self.new:
            return
        if self._cycle:
            self._cycle = False
            self.previous_id, self.id = self.id, token_urlsafe(32)
            world.sessions[self.id] = world.sessions.pop(self.previous_id)
            world.ended.add(self.previous_id)
        stored = world.sessions[self.id]
        for name, data in changes.items():
            stored.pop(name, None) if data is None else stored.__setitem__(name, data)
        self._base = dict(stored)
        self._gone.clear()
        world.touched.append(self.id)

    def _writes(self) -> None:
        self.accessed = True
        if self.unknown:
            raise SessionUnknown("the session is unknown for now")
        if self.ended:
            raise SessionError("the session has ended")
        if self._frozen and self.id is None:
            raise SessionError("the headers have left: a session cannot be created")

    def _changes(self) -> dict[str, bytes | None]:
        found: dict[str, bytes | None] = {name: None for name in self._gone if name in self._base}
        for name, value in self._live.items():
            data = self._world.types.encode(value, f'session["{name}"]')
            if data != self._base.get(name):
                found[name] = data
        return found
