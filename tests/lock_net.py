"""A `Net` whose members grant each other locks: with the requests and the desk of each, as nodes have them."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import ensureDeferred

from caterwaul.cluster.locks import LockDesk
from caterwaul.cluster.requests import Requests
from caterwaul.managers.backup import BackupManager
from caterwaul.managers.delta import DeltaManager
from caterwaul.managers.partitioned import PartitionedManager
from caterwaul.managers.persistent import PersistentManager
from caterwaul.managers.session import Session, key_of
from caterwaul.managers.settings import ManagerSettings
from caterwaul.managers.stores.settings import StoreSettings
from caterwaul.membership.view import View, ViewChanged

from .doubles import MANAGER, Net

KINDS = {"delta": DeltaManager, "backup": BackupManager, "partitioned": PartitionedManager}


class LockNet(Net):
    def __init__(self, count: int, kind: str = "delta", seed: int = 0, **settings: Any) -> None:
        self.desks: list[LockDesk] = []
        self.requests: list[Requests] = []
        chosen = ManagerSettings(type=kind, idle_timeout_s=0, absolute_timeout_s=0, **settings)
        if kind == "persistent":
            super().__init__(count, chosen, seed=seed, kind=PersistentManager, store=StoreSettings(url="memory:"))
        else:
            super().__init__(count, chosen, seed=seed, kind=KINDS[kind])
        for number in range(count):
            self._equip(number)

    def _equip(self, number: int) -> None:
        channel: Any = self.channels[self.members[number].uid]
        requests = Requests(channel, self.clock)
        channel.request, channel.serve = requests.request, requests.serve
        channel.attach("?", requests)
        requests.start()
        self.requests.append(requests)
        self.desks.append(LockDesk(channel, {MANAGER: self.managers[number]}, self.clock))

    def show_view(self, number: int, after: View, clean: frozenset[bytes] = frozenset()) -> None:
        before = self.managers[number].view
        super().show_view(number, after, clean)
        if number < len(self.desks):
            self.desks[number].view_changed(MANAGER, ViewChanged(before, after, clean))

    def join(self) -> int:
        number = super().join()
        self._equip(number)
        return number

    def joining(self, early: list[int], before: View) -> int:
        """One more member, seen at first by these and by itself; the others go on with the view of before until `show_views`."""
        show, self.show_views = self.show_views, lambda *_: None  # type: ignore[method-assign]
        number = self.join()
        self.show_views = show  # type: ignore[method-assign]
        for one in [number, *early]:
            self.show_view(one, self.view())
        return number

    def part(self, one: int, other: int) -> None:
        super().part(one, other)
        for here, there in ((one, other), (other, one)):
            self.requests[here].link_lost(self.members[there])

    def kill(self, number: int) -> None:
        uid = self.members[number].uid
        for other, member in enumerate(self.members):
            if member.uid in self.alive and other != number:
                self.requests[other].link_lost(self.members[number])
        self.requests[number].stop()
        self.desks[number].stop()
        super().kill(number)
        self.channels[uid].woken.clear()

    def leave(self, number: int) -> None:
        self.desks[number].stop()
        super().leave(number)
        for other, member in enumerate(self.members):
            if member.uid in self.alive:
                self.requests[other].link_lost(self.members[number])

    def granter(self, session_id: str) -> int:
        """Who grants this session's lock."""
        uid = self.managers[min(n for n, m in enumerate(self.members) if m.uid in self.alive)].locks.granter(key_of(session_id))
        return next(number for number, member in enumerate(self.members) if member.uid == uid)


class Holder:
    """One request on a member that wants the lock of a session."""

    def __init__(self, net: LockNet, number: int, session: Session | str, **wanted: float) -> None:
        self.net = net
        self.number = number
        self.manager = net.managers[number]
        self.session = net.opened(number, session) if isinstance(session, str) else session
        self.over = False
        self.lock: Any = self.session.lock(**wanted)
        self.error: Exception | None = None
        self.held = False
        self.entering = ensureDeferred(self.lock.__aenter__())
        self.entering.addCallbacks(self._entered, self._failed)

    def _entered(self, given: object) -> None:
        self.held = True

    def _failed(self, failure: Any) -> None:
        self.error = failure.value

    def leave(self, error: Exception | None = None) -> None:
        """The end of its block."""
        self.held, self.over = False, True
        ensureDeferred(self.lock.__aexit__(type(error) if error else None, error, None)).addErrback(self._failed)
        self.manager.release(self.session)
