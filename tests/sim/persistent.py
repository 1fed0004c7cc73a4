"""Sessions that live in a store which all nodes share, and nowhere else (`PersistentManager`), while nodes, their clocks and the store have troubles of all kinds.

The store is a database: what reaches it is done, whether or not whoever asked lives to hear of it; it can be down, slow, silent or forgetful, for all nodes or for one. Nodes are killed, stand still, are cut off
from each other, and their clocks go wrong a little. Users send requests to any node, several at a time, which take turns there; half of them take a while.

The story: calm; the store and the nodes in trouble, and in some seeds all of them killed at one moment in the middle of it; only nodes in trouble, so that who has its store has no excuse; peace, after which everything is
looked at; and in some seeds silence, until all has ended by itself.
In some seeds memory is smaller than the sessions, and in some a second request is refused and does not wait. What is promised is in `persistent_checkers.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from caterwaul.managers.errors import SessionError
from caterwaul.managers.merging_types import Counter as Sum
from caterwaul.managers.principals import principal_key
from caterwaul.managers.session import Session
from caterwaul.managers.stores.memory import MemoryStore
from caterwaul.managers.stores.store import StoreError

from .checkers import COUNTER
from .faults import Injector, draw
from .history import Add, Out, Write, token_in
from .node import SimNode
from .persistent_checkers import SharedStoreCheckers
from .persistent_history import Asked
from .reactor import SimReactor
from .stored import Shelf, StoredCluster
from .world import World

__all__ = ["Depot", "persistent"]

_NODES, _USERS, _RATE = 4, 24, 60.0
_IDLE_S, _TOUCH_S = 12.0, 1.2
_TURN_S, _ACK_S, _TIMEOUT_S, _DROP_TIME_S = 2.0, 0.8, 0.5, 1.5
_QUICK_S, _SLOW_S, _SILENT_S = (0.0005, 0.01), (0.2, 2.5), (0.5, 1.0)
_LOST = 0.2  # of the calls of a forgetful store
_STATES = ("down", "slow", "silent", "forgetful")
_FAULTS = ("crash_process", "crash_host", "pause_short", "pause_long", "clock_skew", "partition")
_CLOCKS_S = 1.0  # what walls' clocks are wrong by
_ALL_OVER_S = _IDLE_S + 2 * _TOUCH_S + 4.0  # by the slowest clock, too
_MOVES = 0.02  # of the requests of those who stay
_ATTRIBUTES = ("cart", "name", "page")


class Depot(Shelf):
    """The database. `cut`: addresses of hosts that do not reach it. A call that is lost is an error when its time is over, and nobody knows whether it was done."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.cut: set[str] = set()

    def space(self, name: str) -> MemoryStore:
        space = super().space(name)
        space.shared = True
        return space

    def is_wrong_for(self, address: str) -> bool:
        return self.state != "up" or address in self.cut

    def call(self, reactor: SimReactor, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        answered: Deferred[Any] = Deferred()
        queue, rng, counters = self._world.queue, self._rng, self._world.counters
        state = "silent" if reactor.host.address in self.cut else self.state
        takes_s = rng.uniform(*(_SLOW_S if state == "slow" else _QUICK_S))
        lost = "way" if state == "silent" else rng.choice(("way", "answer")) if state == "forgetful" and rng.random() < _LOST else ""
        counters["store calls"] += 1
        counters["store calls lost"] += bool(lost)

        def arrive(_: object) -> None:
            result: Any
            self._world.note(f"store {reactor.name} {getattr(arguments[0], '__name__', '')} {lost or state}")
            try:
                if lost == "way" or state == "down":
                    raise StoreError(f"the store is {state}")
                result = function(*arguments)
                if lost:
                    raise StoreError("no answer has come")
            except StoreError:
                counters["store errors"] += 1
                result = Failure()
            back_s = rng.uniform(*_SILENT_S) if lost else takes_s / 2
            queue.at(queue.now + back_s, lambda _: reactor.callLater(0.0, answered.callback, result), None)

        queue.at(queue.now + takes_s / 2, arrive, None)
        return answered


class _User:
    """`stays`: the balancer keeps it on a node, for a while."""

    __slots__ = ("id", "name", "node", "quiet_until", "reads_until", "stays", "writes")

    def __init__(self, name: str, stays: bool) -> None:
        self.name = name
        self.stays = stays
        self.id: str | None = None
        self.node: SimNode | None = None
        self.quiet_until = self.reads_until = 0.0
        self.writes = 0


class _Users:
    """Behind a balancer that knows who is up and ready."""

    def __init__(self, world: World, cluster: StoredCluster, checkers: SharedStoreCheckers) -> None:
        self._world, self._cluster, self._checkers = world, cluster, checkers
        self._rng = world.rng("users")
        self._all = [_User(f"u{number}", stays=number % 2 == 0) for number in range(_USERS)]
        self._running = False

    def stop(self) -> None:
        self._running = False

    def go_on(self) -> None:
        if not self._running:
            self._running = True
            self._world.queue.at(self._world.now, self._next, None)

    def _next(self, _: None) -> None:
        if not self._running:
            return
        now = self._world.now
        self._world.queue.at(now + self._rng.uniform(0.5, 1.5) / _RATE, self._next, None)
        user = self._rng.choice(self._all)
        ready = [node for _, node in sorted(self._cluster.nodes.items()) if node.is_ready and not node.reactor.paused]
        if not ready or now < user.quiet_until:
            return
        for _ in range(2 if self._rng.random() < 0.3 else 1):  # a page and what it fetches
            if not user.stays or user.node not in ready or self._rng.random() < _MOVES:
                user.node = self._rng.choice(ready)
            self._request(user, user.node)

    def _request(self, user: _User, node: SimNode) -> None:
        self._world.counters["requests"] += 1
        asked = self._checkers.asks(node, user.name, user.id)
        node.manager.in_turn.open_soon(user.id, "", lambda session: self._given(user, node, asked, session))

    def _given(self, user: _User, node: SimNode, asked: Asked, session: Session) -> None:
        if session.refusal is not None:
            self._world.counters[f"refused_{session.refusal.status}"] += 1
            self._checkers.refused(node, asked, session.refusal.status)
            self._over(node, asked, session)
            return
        self._checkers.given(node, asked, session)
        takes_s = self._rng.choice((0.0, 0.0, 0.0, self._rng.uniform(0.0, 0.1), self._rng.uniform(0.0, 0.1), self._rng.uniform(0.0, 0.8)))
        if takes_s:
            node.reactor.callLater(takes_s, self._act, user, node, asked, session)
        else:
            self._act(user, node, asked, session)

    def _over(self, node: SimNode, asked: Asked, session: Session) -> None:
        self._checkers.over(asked)
        node.manager.release(session)

    def _act(self, user: _User, node: SimNode, asked: Asked, session: Session) -> None:
        dice = self._rng.random() if self._world.now >= user.reads_until else 1.0
        if session.unknown:
            try:
                session["page"] = ""
            except SessionError as error:
                if error.status != 503:
                    self._checkers.fail("S7", f"{asked.life} answers {error.status}: {error}")
            self._over(node, asked, session)
        elif dice < 0.55:
            self._write(user, node, asked, session, self._rng.choice(_ATTRIBUTES))
        elif dice < 0.70:
            session.setdefault(COUNTER, Sum()).add(1)
            add = Add(session.id or "", self._world.now)
            self._commit(user, node, asked, session, add)
        elif dice < 0.73 and session.id is not None:
            self._cycle(user, node, asked, session)
        elif dice < 0.75 and session.id is not None:
            self._invalidate(user, node, asked, session)
        elif dice < 0.753:
            self._end_all(user, node)
            self._over(node, asked, session)
        else:
            if dice < 0.76:
                user.quiet_until = self._world.now + self._rng.uniform(0.4, 1.6) * _IDLE_S
            elif dice < 0.775:
                user.reads_until = self._world.now + self._rng.uniform(0.5, 1.5) * _IDLE_S
            node.manager.commit(session)
            if session.id is not None:
                self._checkers.used(asked.life, session.id)
            self._over(node, asked, session)

    def _write(self, user: _User, node: SimNode, asked: Asked, session: Session, attribute: str) -> None:
        user.writes += 1
        token = f"{user.name}:{attribute}:{user.writes}"
        before = session.get(attribute)
        if attribute == "cart" and before:  # a nested change, found by the commit
            parent = before[-1]
            before[:] = [*before[-2:], token]
        else:
            parent = before and token_in(before)
            session[attribute] = [token] if attribute == "cart" else token
        self._commit(user, node, asked, session, Write(token, parent, session.id or "", attribute, self._world.now))

    def _commit(self, user: _User, node: SimNode, asked: Asked, session: Session, did: Write | Add) -> None:
        ended_before = session.id is not None and self._checkers.of(session.id).end_stored
        dropped = node.manager._committing.dropped
        receipt = node.manager.commit(session)
        if node.manager._committing.dropped != dropped:
            self._world.counters["dropped"] += 1
            self._checkers.unsaved(node, session.id or "")
            self._over(node, asked, session)
            return
        if isinstance(did, Write):
            self._checkers.wrote(node, session, did)
        else:
            self._checkers.added(node, session, did)
        if user.id == asked.session_id:
            user.id = session.id

        def final(done: Any) -> None:
            self._checkers.final(node, did.at)
            self._checkers.saved(node, did, ended_before, done.satisfied)
            self._over(node, asked, session)

        receipt.deferred().addCallback(final)

    def _cycle(self, user: _User, node: SimNode, asked: Asked, session: Session) -> None:
        """By logging in, or for its own sake, and then the login is that of the old id."""
        at, logins, old = self._world.now, self._checkers.history.logins, asked.session_id or ""
        login = logins.get(old)
        if self._rng.random() < 0.6:
            session.login(user.name)
            login = user.name, dict(node.epochs.current.get(principal_key("default", user.name), {}))
        else:
            session.cycle_id()
        dropped = node.manager._committing.dropped
        receipt = node.manager.commit(session)
        if node.manager._committing.dropped != dropped:
            self._over(node, asked, session)
            return
        self._checkers.ends(old)
        self._checkers.cycled(node, session, login)
        contents = {name: token_in(session[name]) for name in session if name != COUNTER}
        if user.id == asked.session_id:
            user.id = session.id

        def final(done: Any) -> None:
            self._checkers.final(node, at)
            self._checkers.ended(node, old, done.satisfied)
            if done.satisfied:
                self._checkers.cycle_saved(session.id or "", at, contents)
            self._over(node, asked, session)

        receipt.deferred().addCallback(final)

    def _end_all(self, user: _User, node: SimNode) -> None:
        """Log out everywhere."""
        receipt = node.manager.end_all(user.name)
        out = Out(node.me.uid, node.epochs.ended, self._world.now, {node.reactor.name})
        self._checkers.outs(user.name, out)
        receipt.deferred().addCallback(lambda done: self._checkers.out_on(out, done.confirmed, done.satisfied))

    def _invalidate(self, user: _User, node: SimNode, asked: Asked, session: Session) -> None:
        at, session_id = self._world.now, asked.session_id or ""
        self._checkers.ends(session_id)
        session.invalidate()
        dropped = node.manager._committing.dropped
        receipt = node.manager.commit(session)
        if node.manager._committing.dropped != dropped:
            self._over(node, asked, session)
            return
        if user.id == session_id:
            user.id = None

        def final(done: Any) -> None:
            self._checkers.final(node, at)
            self._checkers.ended(node, session_id, done.satisfied)
            self._over(node, asked, session)

        receipt.deferred().addCallback(final)


def persistent(seed: int, manager: str = "persistent") -> Counter[str]:
    """See the top of the file. `manager` is not asked."""
    with World(seed) as world:
        depot, rng = Depot(world), world.rng("story")
        turns = "refuse" if seed % 3 == 0 else "queue"
        chosen = {
            "type": "persistent", "idle_timeout_s": _IDLE_S, "expire_check_s": 0.5, "turns": turns, "lock_timeout_s": _TURN_S, "ack_timeout_s": _ACK_S,
            "max_active": 10 if seed % 4 == 1 else 0, "max_idle_swap_s": rng.choice((0.0, 3.0, 60.0)),
        }  # fmt: skip
        cluster = StoredCluster(
            world, _NODES, depot, membership={"drop_time_s": _DROP_TIME_S, "heartbeat_interval_s": 0.3}, channel={"reconnect_max_s": 1.0},
            managers={"default": chosen}, store={"url": "memory:", "timeout_s": _TIMEOUT_S},
        )  # fmt: skip
        offsets = [rng.uniform(-_CLOCKS_S, _CLOCKS_S) for _ in range(_NODES)]
        cluster.on_start = lambda number, node: node.reactor.step_wall(offsets[number])
        for number, node in cluster.nodes.items():
            node.reactor.step_wall(offsets[number])
        checkers = SharedStoreCheckers(world, cluster, depot, idle_s=_IDLE_S, touch_s=_TOUCH_S, patience_s=_TURN_S, ack_s=_ACK_S, waits=turns == "queue")
        world.run_until_true(cluster.is_ready, 10.0)
        users = _Users(world, cluster, checkers)
        users.go_on()
        world.run_for(2.0)
        _trouble(world, cluster, depot, rng, 8.0)
        if seed % 2:
            _all_are_killed(world, cluster, rng)
        _trouble(world, cluster, depot, rng, 6.0)
        _nodes_are_in_trouble(world, cluster, depot, rng, 16.0)
        world.run_for(11.0)
        users.stop()
        world.run_for(_TOUCH_S + 3.0)
        checkers.settled()
        world.run_for(1.5)
        if seed % 4 == 0:
            world.run_for(_ALL_OVER_S)
            for node in cluster.nodes.values():
                assert node.manager.persistence is not None
                node.manager.persistence._purge_ms = 0  # it would look within a minute
            world.run_for(3.0)
            checkers.all_are_over()
        return world.counters


def _trouble(world: World, cluster: StoredCluster, depot: Depot, rng: Any, seconds: float) -> None:
    """With the store, and with nodes."""
    end = world.now + seconds
    injector = _harm(world, cluster, rng, end)
    while world.now < end:
        depot.state = rng.choice((*_STATES, "up"))
        depot.cut = {cluster.host(number).address for number in range(_NODES) if rng.random() < 0.2}
        world.counters[f"store {depot.state}"] += 1
        world.run_until(min(end, world.now + rng.uniform(0.2, 3.0)))
        if rng.random() < 0.3:
            _set_a_clock(cluster, rng)
    injector.heal()
    depot.state, depot.cut = rng.choice((depot.state, "up")), set()


def _nodes_are_in_trouble(world: World, cluster: StoredCluster, depot: Depot, rng: Any, seconds: float) -> None:
    """But not the store: the others serve as if nothing was."""
    depot.state, end = "up", world.now + seconds
    injector = _harm(world, cluster, rng, end)
    world.run_until(end)
    injector.heal()


def _harm(world: World, cluster: StoredCluster, rng: Any, end: float) -> Injector:
    faults = draw(rng, _NODES, world.now, end, _DROP_TIME_S, windows=2)
    return Injector(world, cluster, [fault for fault in faults if fault.kind in _FAULTS], down_max=2)


def _set_a_clock(cluster: StoredCluster, rng: Any) -> None:
    reactor = cluster.reactor(rng.randrange(_NODES))
    if reactor is not None:
        reactor.step_wall(rng.uniform(-0.5, 0.5))


def _all_are_killed(world: World, cluster: StoredCluster, rng: Any) -> None:
    for number in list(cluster.nodes):
        cluster.crash(number, whole_host=rng.random() < 0.5)
    world.counters["all killed"] += 1
    world.run_for(rng.uniform(0.0, 2.0))
    for number in range(_NODES):
        cluster.start(number)
