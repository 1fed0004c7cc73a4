"""A channel in memory: whole managers talk to each other in one thread and virtual time, with no cluster underneath.

`Net` carries messages between `MemoryChannel`s of members; `deliver()` moves what is under way until nothing is. Links
can be cut (what is sent meanwhile is lost, and the next link begins anew) and healed, and held in one direction: slow, and
up. Members join, leave and die. With `overtaking` the two lanes of a link overtake each other in both directions, as two
lanes of a clogged link do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater

from caterwaul.managers.base import SessionManager
from caterwaul.managers.core import SessionCore
from caterwaul.managers.delta import DeltaManager
from caterwaul.managers.digests import digest
from caterwaul.managers.entry import is_whole
from caterwaul.managers.epochs import Epochs
from caterwaul.managers.placement import PARTITIONS
from caterwaul.managers.principals import EPOCHS
from caterwaul.managers.session import Session
from caterwaul.managers.settings import ManagerSettings
from caterwaul.managers.stores.memory import MemoryStore
from caterwaul.managers.stores.settings import StoreSettings
from caterwaul.managers.stores.store import StoreError
from caterwaul.managers.stores.worker import StoreWorker
from caterwaul.membership.channel import Message, Receiver
from caterwaul.membership.codec import decode
from caterwaul.membership.member import Member
from caterwaul.membership.view import View, ViewChanged

MANAGER = "default"


def wrong_sums(manager: SessionManager, peer: bytes = b"") -> list[int]:
    """Partitions whose sum is not what it would be if it were made from nothing now."""
    core, now_ms = manager._core, manager._channel.now_ms()
    sums = _all_sums(manager, peer)
    return [number for number in range(PARTITIONS) if sums[number * 8 : number * 8 + 8] != true_sum(core, number, now_ms)]


def unmarked_changes(manager: SessionManager) -> list[int]:
    """Partitions of which a sum with some peer would be another if it were made anew: something changed there that nobody marked."""
    core = manager._core
    peers = core.placement.peers()
    before = {peer: _all_sums(manager, peer) for peer in peers}
    core.replica.changed[:] = bytes([1]) * PARTITIONS
    after = {peer: _all_sums(manager, peer) for peer in peers}
    return sorted({at // 8 for peer in peers for at in range(0, PARTITIONS * 8, 8) if before[peer][at : at + 8] != after[peer][at : at + 8]})


def wrong_weights(manager: SessionManager) -> str:
    """Where what is counted of memory is not what is held, though nothing was used for long enough to be packed; empty: nowhere."""
    replica = manager._core.replica
    total = sum(entry.weight for _, entry in replica.entries())
    if total != replica.bytes:
        return f"{replica.bytes} bytes are counted, {total} are in entries"
    wrong = [key.hex()[:8] for key, entry in replica.entries() if type(entry.body) is bytes and entry.weight != entry.weigh()]
    return f"wrong weights of {wrong[:5]}" if wrong else ""


def _all_sums(manager: SessionManager, peer: bytes) -> bytes:
    sums = b""
    while len(sums) < PARTITIONS * 8:
        sums += manager._core.digests.sums(peer, len(sums) // 8, PARTITIONS, manager._channel.now_ms())[1]
    return sums


def true_sum(core: SessionCore, number: int, now_ms: int) -> bytes:
    """By the words of PROTOCOL.md."""
    inventory = b""
    for key, entry in sorted(core.replica.partitions[number].items()):
        counts = entry.head is None or entry.head.state == 0 or now_ms < entry.head.ended_ms + core.settings.retention_s * 900
        if is_whole(entry) and counts:
            inventory += key + digest(entry.head, core.replica.body_of(entry))
    return blake2b(inventory, digest_size=8).digest() if inventory else bytes(8)


def member(number: int, **more: Any) -> Member:
    return Member(
        uid=bytes([number]) * 16, name=f"node{number}", host="127.0.0.1", port=4000 + number, payload={"managers": [MANAGER, EPOCHS], "ends": []}, **more
    )


class MemoryChannel:
    def __init__(self, net: Net, me: Member) -> None:
        self.me = me
        self._net = net
        self._receivers: dict[str, Receiver] = {}
        self.degraded: set[bytes] = set()
        self.woken: list[Callable[[], None]] = []
        self.lazily: list[bool] = []  # of each of these
        self.sent: list[tuple[bytes, list[Any]]] = []

    def attach(self, name: str, receiver: Receiver, listens: bool = False) -> None:
        self._receivers[name] = receiver
        if listens and name not in (self.me.ends or ()):
            self._net.announce(self.me.with_payload(ends=[*(self.me.ends or ()), name]))

    def detach(self, name: str) -> None:
        self._receivers.pop(name, None)

    def send(self, to: Iterable[bytes], message: Message) -> None:
        for uid in to:
            self.sent.append((uid, decode(message.payload)))
            self._net.carry(self.me.uid, uid, message)

    def close(self, uid: bytes, reason: str) -> None: ...

    def dial(self, host: str, port: int) -> None: ...

    def is_degraded(self, uid: bytes) -> bool:
        return uid in self.degraded or not self._net.linked(self.me.uid, uid)

    def degrade(self, uid: bytes) -> None:
        self.degraded.add(uid)

    def wake(self, flush: Callable[[], None], lazily: bool = False) -> None:
        self.woken.append(flush)
        self.lazily.append(lazily)

    def run(self, flush: Callable[[], None]) -> None:
        flush()

    def hasten(self, flush: Callable[[], None]) -> bool:
        return False

    def now_ms(self) -> int:
        return int(self._net.clock.seconds() * 1000) + self._net.skew_ms[self.me.uid]

    def deliver(self, sender: Member, message: Message, sent_ms: int) -> None:
        receiver = self._receivers.get(message.receiver)
        if receiver is not None:
            receiver.received(sender, decode(message.payload), self.now_ms() - sent_ms)
        self.degraded.discard(sender.uid)


class Net:
    """`count` members with a manager each, a `DeltaManager` unless `kind` is another. All hear each other from the start.

    `old`: numbers (from 0) of those that announce protocol 1. `epochs`: members keep those of principals too, as nodes do. `store`: all have one in memory besides,
    which answers in a millisecond of the clock; `stores`: that of others, who have died before `began_s`.
    """

    def __init__(
        self, count: int, settings: ManagerSettings | None = None, seed: int = 0, overtaking: bool = False, old: Collection[int] = (),
        kind: type[SessionManager] = DeltaManager, weights: Sequence[float] = (), epochs: bool = False, store: StoreSettings | None = None,
        stores: dict[str, MemoryStore] | None = None, began_s: float = 0.0,
    ) -> None:  # fmt: skip
        self.kind: Any = kind
        self.clock = Clock()
        self.clock.advance(began_s)
        self.overtaking = overtaking
        self.frozen: set[bytes] = set()
        self.rng = Random(seed)
        self.members = [
            member(number, versions=(1, 1) if number - 1 in old else (1, 2), weight=weights[number - 1] if weights else 1.0) for number in range(1, count + 1)
        ]
        self.skew_ms = {m.uid: m.uid[0] * 1000 for m in self.members}
        self.channels = {m.uid: MemoryChannel(self, m) for m in self.members}
        self.cut: set[frozenset[bytes]] = set()
        self.flights: dict[tuple[bytes, bytes], deque[tuple[Message, int]]] = {}
        self.held: set[tuple[bytes, bytes]] = set()
        self.settings = settings or ManagerSettings()
        self._more: list[list[SessionManager]] = []  # other managers of all members
        self.epochs: list[Epochs] = []  #: with `epochs`, one a member
        self._has_epochs = epochs
        self.store = store
        self.stores = {} if stores is None else stores  #: what is behind the managers of a name, on all members
        self.store_fails = False  #: it does not answer
        self.managers: list[SessionManager] = [self._manager(m) for m in self.members]
        self.alive = set(self.channels)
        for manager in self.managers:
            manager.start()
        self.show_views()
        self.deliver()

    def _manager(self, of: Member) -> SessionManager:
        channel = self.channels[of.uid]
        if not self._has_epochs:
            return self._stored(self.kind(MANAGER, channel, self.settings, clock=self.clock, entropy=self.rng.randbytes, store=self._store(MANAGER)))
        self.epochs.append(Epochs(channel, self.settings.retention_s, clock=self.clock, entropy=self.rng.randbytes, store=self._store(EPOCHS)))
        self._stored(self.epochs[-1]).start()
        manager = self.kind(MANAGER, channel, self.settings, clock=self.clock, entropy=self.rng.randbytes, epochs=self.epochs[-1], store=self._store(MANAGER))
        return self._stored(manager)

    def _store(self, name: str) -> tuple[StoreWorker, StoreSettings] | None:
        if self.store is None:
            return None
        store = self.stores.setdefault(name, MemoryStore("memory:", f"{id(self)} {name}"))
        return StoreWorker(store, self.store.timeout_s, self.clock, self._call), self.store

    def _stored(self, manager: SessionManager) -> SessionManager:
        if manager.persistence is not None:
            manager.persistence.wall_s = self.wall_s
        return manager

    def wall_s(self) -> float:
        """The time of the wall: that of the clock, and much more."""
        return 1.7e9 + self.clock.seconds()

    def _call(self, function: Any, *arguments: Any) -> Deferred[Any]:
        def called() -> Any:
            if self.store_fails:
                raise StoreError("it is down")
            return function(*arguments)

        return deferLater(self.clock, 0.001, called)

    def engines(self, number: int) -> list[SessionManager]:
        """All of one member: its manager, and what keeps its epochs."""
        return [self.managers[number], *self.epochs[number : number + 1], *(managers[number] for managers in self._more)]

    def add(self, name: str, settings: ManagerSettings, kind: type[SessionManager] = DeltaManager) -> list[SessionManager]:
        """One more manager on each member."""
        made: Any = kind
        managers: list[SessionManager] = [
            made(name, self.channels[m.uid], settings, clock=self.clock, entropy=self.rng.randbytes, epochs=self.epochs[number] if self.epochs else None)
            for number, m in enumerate(self.members)
        ]
        self._more.append(managers)
        for manager in managers:
            manager.start()
            manager.view_changed(ViewChanged(manager._core.placement.view, self.view(), frozenset()))
        self.deliver()
        return managers

    def view(self) -> View:
        return View.of(1, [m for m in self.members if m.uid in self.alive])

    def show_views(self, clean: frozenset[bytes] = frozenset()) -> None:
        for number, m in enumerate(self.members):
            if m.uid in self.alive:
                self.show_view(number, self.view(), clean)

    def show_view(self, number: int, after: View, clean: frozenset[bytes] = frozenset()) -> None:
        """One member (number from 0) sees this view from now on, the others do not yet."""
        for manager in self.engines(number):
            manager.view_changed(ViewChanged(manager._core.placement.view, after, clean))

    def linked(self, one: bytes, other: bytes) -> bool:
        return frozenset((one, other)) not in self.cut and other in self.alive

    def carry(self, sender: bytes, to: bytes, message: Message) -> None:
        if to == sender:
            return
        if not self.linked(sender, to):
            for waiter in message.waiters:
                waiter.failed(to)
            return
        self.flights.setdefault((sender, to), deque()).append((message, self.channels[sender].now_ms()))

    def deliver(self) -> None:
        """Flush every manager and carry messages until nothing moves."""
        while self.step():
            pass

    def step(self) -> bool:
        for uid in sorted(self.alive - self.frozen):
            channel = self.channels[uid]
            if channel.woken:
                channel.woken.pop(0)()
                return True
        ready = sorted(link for link, flight in self.flights.items() if flight and link[1] not in self.frozen and link not in self.held)
        if not ready:
            return False
        sender, to = self.rng.choice(ready)
        message, sent_ms = self._next(self.flights[sender, to])
        if to in self.alive:
            self.channels[to].deliver(self.channels[sender].me, message, sent_ms)
            for waiter in message.waiters:
                waiter.confirmed(to)
            self.channels[sender].degraded.discard(to)
        else:
            for waiter in message.waiters:
                waiter.failed(to)
        return True

    def _next(self, flight: deque[tuple[Message, int]]) -> tuple[Message, int]:
        """The next message of a link: in order, or (overtaking) the next of one of its lanes."""
        if not self.overtaking:
            return flight.popleft()
        lane = self.rng.choice(sorted({message.lane for message, _ in flight}))
        at = next(i for i, (message, _) in enumerate(flight) if message.lane == lane)
        taken = flight[at]
        del flight[at]
        return taken

    def opened(self, number: int, session_id: str | None = None) -> Session:
        """What a request on this member gets, asking others if it must; never *unknown*."""
        result: list[Session] = []
        self.managers[number].open_deferred(session_id).addCallback(result.append)
        self.wait(lambda: bool(result))
        assert not result[0].unknown
        return result[0]

    def wait(self, done: Callable[[], bool], seconds: float = 3.0) -> None:
        """Deliver, and let the store answer, until it is so."""
        self.deliver()
        end = self.clock.seconds() + seconds
        while not done():
            assert self.store is not None, "nobody is left who could answer"
            assert self.clock.seconds() < end, "the store does not answer"
            self.advance(0.001, 0.001)

    def visit(self, number: int, session_id: str | None = None, **attributes: Any) -> str:
        """A whole request on this member, which sets these; its session's id."""
        session = self.opened(number, session_id)
        session.update(attributes)
        receipt = self.managers[number].commit(session)
        self.wait(lambda: not receipt.needs_wait)
        self.managers[number].release(session)
        assert session.id is not None
        return session.id

    def advance(self, seconds: float, step_s: float = 0.05) -> None:
        """Let time pass, timers fire and messages travel."""
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end - 1e-9:
            self.clock.advance(min(step_s, end - self.clock.seconds()))
            self.deliver()

    def part(self, one: int, other: int) -> None:
        """Cut the link between two members (numbers from 0). What is under way is lost."""
        a, b = self.members[one].uid, self.members[other].uid
        self.cut.add(frozenset((a, b)))
        for link in ((a, b), (b, a)):
            for message, _ in self.flights.pop(link, ()):
                for waiter in message.waiters:
                    waiter.failed(link[1])
        for here, there in ((one, other), (other, one)):
            for manager in self.engines(here):
                manager.link_lost(self.members[there])

    def heal(self, one: int, other: int) -> None:
        self.cut.discard(frozenset((self.members[one].uid, self.members[other].uid)))
        self._link(one, other)

    def _link(self, one: int, other: int) -> None:
        for here, there in ((one, other), (other, one)):
            for manager in self.engines(here):
                manager.link_opened(self.members[there], False)

    def hold(self, sender: int, to: int) -> None:
        """What this member sends to that one stays under way until `let_go`."""
        self.held.add((self.members[sender].uid, self.members[to].uid))

    def let_go(self) -> None:
        """All held links move again."""
        self.held.clear()

    def kill(self, number: int) -> None:
        uid = self.members[number].uid
        self.alive.discard(uid)
        for link in [link for link in self.flights if uid in link]:
            for message, _ in self.flights.pop(link):
                for waiter in message.waiters if link[1] == uid else ():
                    waiter.failed(uid)
        for manager in self.engines(number):
            manager._driver.stop()
        self.show_views()

    def freeze(self, number: int) -> None:
        """It takes nothing from its links and answers nothing, and everybody still sees it, until `thaw`."""
        self.frozen.add(self.members[number].uid)

    def thaw(self, number: int) -> None:
        self.frozen.discard(self.members[number].uid)

    def leave(self, number: int) -> None:
        """Go with a farewell: what was waiting to be sent is sent first."""
        uid = self.members[number].uid
        self.managers[number].stop()
        self.deliver()
        self.alive.discard(uid)
        self.show_views(frozenset((uid,)))

    def announce(self, me: Member) -> None:
        """This member says something else of itself, and everybody hears of it."""
        number = self.members.index(me)
        self.members[number] = self.channels[me.uid].me = me
        if len(self.managers) == len(self.members):
            self.show_views()

    def reweigh(self, number: int, weight: int) -> None:
        """This member announces another weight, and everybody hears of it."""
        self.members[number] = self.channels[self.members[number].uid].me = replace(self.members[number], weight=weight)
        self.show_views()

    def join(self) -> int:
        """One more member. Links to all open, then all see it. Returns its number."""
        m = member(len(self.members) + 1)
        self.members.append(m)
        self.skew_ms[m.uid] = m.uid[0] * 1000
        self.channels[m.uid] = MemoryChannel(self, m)
        self.managers.append(self._manager(m))
        self.managers[-1].start()
        self.alive.add(m.uid)
        for number, other in enumerate(self.members[:-1]):
            if other.uid in self.alive:
                self._link(number, len(self.members) - 1)
        self.show_views()
        return len(self.members) - 1

    def sent(self, op: int) -> list[list[Any]]:
        """All messages of this operation that members have sent so far."""
        return [message for m in self.members for _, message in self.channels[m.uid].sent if message[1] == op]

    def everywhere(self, session_id: str) -> list[Session | None]:
        """The session as each live member gives it without asking anybody."""
        return [manager.open_local(session_id) for manager in self.managers if manager.me.uid in self.alive]

    def bodies(self) -> list[dict[bytes, tuple[object, bytes | None]]]:
        """All copies, to compare byte for byte. Commits whose record has not come are none."""
        result = []
        for manager in self.managers:
            if manager.me.uid in self.alive:
                replica = manager._core.replica
                copies = [(key, entry) for key, entry in replica.entries() if entry.body is None or is_whole(entry)]
                result.append({key: (entry.head and (entry.head.state, entry.head.version), replica.body_of(entry)) for key, entry in copies})
        return result
