"""Settings in, one running node out: the only place that knows all parts.

Start: what other members and users would reach first listens last. The web port is bound (its address is announced), then
the channel's; managers attach; discovery makes the node known, from the next turn of the reactor on; the admin socket comes
last, as a start that fails may leave no file. Stop is the other way round: no more requests, the farewell (so that nobody
has to suspect us), managers, channel. A start that fails stops what it had started. A node runs once; another start is
another incarnation and another `Node`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from ..managers.backup import BackupManager
from ..managers.base import SessionManager
from ..managers.delta import DeltaManager
from ..managers.epochs import Epochs
from ..managers.maps import ReplicatedMap
from ..managers.memory import memory_bytes
from ..managers.partitioned import PartitionedManager
from ..managers.persistent import PersistentManager
from ..managers.principals import EPOCHS
from ..managers.settings import SSO, ManagerSettings
from ..managers.values import ValueTypes
from ..managers.web.single import SingleSignOn
from ..membership.channel import DATA, Message
from ..membership.codec import encode
from ..membership.errors import LocalError
from ..membership.group import Slept
from ..membership.member import UID_BYTES, Member
from ..membership.service import MembershipService, Subscriber
from ..membership.settings import MembershipSettings
from ..membership.told import Told
from ..membership.view import View, ViewChanged
from .admin import AdminService
from .admin_socket import socket_path
from .administration import Administration
from .audit import AuditLog
from .channel import GroupChannel
from .draining import SERVING, Drain, end_led
from .locks import LockDesk
from .logins import LoginDesk
from .rehearsal import Rehearsal
from .security.service import Security
from .settings import Settings
from .snapshots import SnapshotDesk
from .stores import NodeStores
from .transport import PlainTcp, TlsTcp
from .web import WebService
from .workers import is_worker

__all__ = ["Node"]

_log = Logger()
_KINDS: dict[str, type[Any]] = {"delta": DeltaManager, "backup": BackupManager, "partitioned": PartitionedManager, "persistent": PersistentManager}
_STORE_S = 3.0  # a node does not wait longer for a store that does not answer: it serves what the others have
_HEARTBEATS_HEARD = 2.5  # intervals after which whoever is there has been heard, one lost datagram allowed for
_DELIVER_S = 2.0  # at a stop: time for what is still in the outboxes
_END_OF_DATA = 255  # an operation that managers skip


def _nobody(_: object) -> None:
    """Tells nobody."""


def _tell(listener: Callable[..., object], *what: object) -> None:
    try:
        listener(*what)
    except Exception:  # whatever one of them runs into, the others have to hear of it all the same
        _log.failure("{listener!r} failed on {what!r}", listener=listener, what=what)


class Node:
    """One member of a cluster. Reactor thread, except `name`, `me`, `view`, `managers` and `is_ready`, which any thread may read.

    `reactor.seconds` must be monotonic (see `embedding.use_monotonic_time`). `types`: classes of the application's own that
    sessions may hold.
    """

    def __init__(self, settings: Settings, reactor: Any, *, types: ValueTypes | None = None, entropy: Callable[[int], bytes] = os.urandom) -> None:
        self.settings = settings
        self.managers: dict[str, SessionManager] = {}
        self.maps: dict[str, ReplicatedMap] = {}
        self.engines: dict[str, SessionManager] = {}  #: managers, and those underneath maps and epochs
        self.logins: LoginDesk | None = None  #: from the start on
        self.audits: dict[str, AuditLog] = {}
        self._locks: LockDesk | None = None
        retention_s = min((manager.retention_s for manager in settings.managers.values()), default=ManagerSettings.retention_s)
        is_shared = any(manager.type == "persistent" for manager in settings.managers.values())
        self._stores = NodeStores(settings.store, settings.cluster.name, retention_s, reactor, is_shared)
        self._kinds = {name: chosen.kind for name, chosen in settings.managers.items()}
        self._kinds |= {f"map:{name}": chosen.kind for name, chosen in settings.maps.items()} | {EPOCHS: "delta"}
        self._kinds |= {f"{SSO}{name}": chosen.for_manager().kind for name, chosen in settings.sso.items()}
        self.channel: GroupChannel | None = None
        self.membership: MembershipService | None = None
        self.security: Security | None = None  #: from the start on
        self._reactor = reactor
        self._types = types if types is not None else ValueTypes()
        self._entropy = entropy
        self._rng = Random(int.from_bytes(entropy(8), "big"))
        self._web = WebService(settings.web, reactor, self._is_leaving) if settings.web.listen else None
        self._admin: AdminService | None = None
        self.drain: Drain | None = None  #: from the start on
        self.rehearsal: Rehearsal | None = None
        self.snapshots: SnapshotDesk | None = None
        self.on_manager: Callable[[SessionManager], object] = _nobody  #: called with each manager of an application, before anybody meets it
        self.on_leave: Callable[[], object] | None = None  #: ends the process that is only this node; None: the process is somebody else's
        self._subscribers: list[Subscriber] = []
        self._stopped: Deferred[None] | None = None
        self._ready_at = 0.0  # others that exist are known by then

    # -- what others see

    @property
    def name(self) -> str:
        return self.settings.node.name

    @property
    def me(self) -> Member:
        """This node as a member. Raises `LocalError` before the start."""
        return self.running()[1].me

    @property
    def view(self) -> View:
        """Who is here now, this node among them; empty before the start."""
        return self.membership.view if self.membership is not None else View(0, ())

    @property
    def everyone(self) -> View:
        """The same of all domains."""
        return self.membership.everyone if self.membership is not None else View(0, ())

    @property
    def is_ready(self) -> bool:
        """Others had time to be found, every manager holds what it should, and a store behind it can be asked: balancers may send users here."""
        if self.membership is None or self._is_leaving() or (now := self._reactor.seconds()) < self._ready_at:
            return False
        asks = now < self._ready_at + _STORE_S
        return all(engine.in_sync and not (asks and engine.persistence and not engine.persistence.fetching.answers) for engine in self.engines.values())

    def _is_leaving(self) -> bool:
        return self._stopped is not None or (self.drain is not None and self.drain.state != SERVING)

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """From now on `callback(event)` in the reactor's thread for each event of membership; what is returned ends it."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback) if callback in self._subscribers else None

    # -- life

    def start(self) -> Deferred[None]:
        """Fires when the node listens and looks for others. Fails with `LocalError`, saying which part and which setting.

        It fails as soon as that is known, also before the reactor runs; what had been started is stopped by then or soon (`stop` says when).
        """
        return Deferred.fromCoroutine(self._start())

    def stop(self) -> Deferred[None]:
        """Leave and close. Fires after a few seconds at most; never fails; any number of times."""
        if self._stopped is None:
            self._stopped = Deferred.fromCoroutine(self._stop())
        waiting: Deferred[None] = Deferred()
        self._stopped.addBoth(lambda result: waiting.callback(None))
        return waiting

    def leave(self) -> Deferred[None]:
        """`stop`, after handing all sessions over if `node.drain_on_term` says so. What is not over in time is left to the other copies."""
        return Deferred.fromCoroutine(self._leave())

    async def _leave(self) -> None:
        drain, node = self.drain, self.settings.node
        if node.drain_on_term and drain is not None and self._stopped is None and len(self.view) > 1:
            drain.begin()
            if not await drain.done(node.drain_timeout_s):
                _log.warn("{left} sessions were not handed over within node.drain_timeout_s; their other copies take over", left=drain.report()["left"])
        await self.stop()

    async def _start(self) -> None:
        if self.channel is not None:
            raise LocalError("this node was started before; make another")
        if self.settings.node.insecure:
            _log.warn(
                "node.insecure is set: nothing between members is encrypted, and whoever reaches {host} can read and forge sessions",
                host=self.settings.node.host,
            )
        try:
            await self._start_parts()
        except BaseException:
            self.stop()  # not waited for: sockets close in a turn of the reactor, which may not have begun to run
            raise

    async def _start_parts(self) -> None:
        settings = self.settings
        payload: dict[str, Any] = {"pid": os.getpid()}
        kinds = {name: kind for name, kind in self._kinds.items() if kind != "delta"}
        if kinds:
            payload["kinds"] = kinds
        if self._web is not None:
            payload["http"] = self._web.start()
        me = self._member(payload)
        self.security = security = self._make_security(me.uid)
        self.channel = channel = GroupChannel(
            me, settings.channel, settings.cluster.name, self._reactor, rng=self._rng, entropy=self._entropy,
            endpoints=PlainTcp() if security.guard is None else TlsTcp(security.guard),
        )  # fmt: skip
        await channel.start()
        security.start(channel, self._reactor)
        epochs = self._start_epochs(channel)
        for name, logins in settings.sso.items():
            self._start_engine(f"{SSO}{name}", logins.for_manager(), epochs)
        for name, chosen in settings.managers.items():
            self.managers[name] = manager = self._start_engine(name, chosen, epochs, self.on_manager)
            self.audits[name] = AuditLog(manager, self.name)
            if chosen.sso:
                manager.single = SingleSignOn(self.engines[f"{SSO}{chosen.sso}"], settings.sso_cookies[chosen.sso], chosen.sso_reauthenticate)
        for name, shared in settings.maps.items():
            self.maps[name] = ReplicatedMap(name, self._start_engine(f"map:{name}", shared.for_manager()), shared.buckets)
        if self._web is not None:
            self._web.serve(self, self.managers[settings.web.manager], settings.cookies[settings.web.manager])
        self.membership = membership = MembershipService(
            channel.me, self._discoverable(security), settings.cluster.name, channel, self._reactor, rng=self._rng, sealer=security.sealer,
            seed_port=settings.node.port,
        )  # fmt: skip
        membership.subscribe(self._event)
        channel.on_traffic = membership.heard
        channel.on_refused = membership.unreachable
        channel.on_shut_out = membership.expel
        channel.on_announce = lambda me: membership.announce(me) if membership.running else None
        membership.startService()
        shared_logins = {name: engine for name, engine in self.engines.items() if name.startswith(SSO)}
        self.logins = LoginDesk(channel, {**self.managers, **shared_logins}, self._reactor)
        if settings.membership.discovery:
            self._ready_at = self._reactor.seconds() + _HEARTBEATS_HEARD * settings.membership.heartbeat_interval_s
        self._locks = LockDesk(channel, self.managers, self._reactor, self._ready_at)
        placed = {name: engine for name, engine in self.engines.items() if engine is not epochs}  # epochs stay here whatever the weight
        self.drain = Drain(channel, placed, settings.node.weight, settings.node.drain_notice_s, self._reactor)
        self.rehearsal = Rehearsal(channel, placed, self._reactor)
        self.snapshots = SnapshotDesk(channel, self.engines, settings.cluster.name)
        self._start_admin()
        self._stores.attend(self.engines.values(), lambda: self._reactor.seconds() >= self._ready_at)
        _log.info("{me} of cluster {cluster!r} is listening, {guarded}", me=channel.me, cluster=settings.cluster.name, guarded=security.description)

    def _make_security(self, uid: bytes) -> Security:
        return Security(self.settings.security, self.settings.node, self.settings.cluster.name, uid, self._entropy)

    def _discoverable(self, security: Security) -> MembershipSettings:
        """The settings of membership, without multicast where nothing seals it."""
        found = self.settings.membership
        if security.sealer is not None or "multicast" not in found.discovery:
            return found
        _log.warn("multicast stays off: the certificates came without a multicast.secret; this node finds others only by {others}", others=found.discovery)
        return replace(found, discovery=[method for method in found.discovery if method != "multicast"])

    def _start_epochs(self, channel: GroupChannel) -> Epochs:
        keep_s = max((manager.retention_s for manager in self.settings.managers.values()), default=0.0)
        keep_s = max((keep_s, *(logins.for_manager().retention_s for logins in self.settings.sso.values())))
        asleep_s = self.settings.membership.drop_time_s
        store = self._stores.of(EPOCHS)
        self.engines[EPOCHS] = epochs = Epochs(channel, keep_s, clock=self._reactor, entropy=self._entropy, asleep_s=asleep_s, store=store)
        epochs.start()
        return epochs

    def _start_engine(
        self, name: str, settings: ManagerSettings, epochs: Epochs | None = None, prepare: Callable[[SessionManager], object] = _nobody
    ) -> SessionManager:
        if not settings.memory_max_bytes:
            settings = replace(settings, memory_max_bytes=memory_bytes() // 2 // max(1, len(self.settings.managers) + len(self.settings.maps)))
        manager: SessionManager = _KINDS[settings.type](
            name, self.channel, settings, clock=self._reactor, entropy=self._entropy, types=self._types,
            asleep_s=self.settings.membership.drop_time_s, kind=self._kinds[name], epochs=epochs, store=self._stores.of(name),
        )  # fmt: skip
        self.engines[name] = manager
        prepare(manager)
        manager.start()
        return manager

    def _start_admin(self) -> None:
        """A socket that the user named must work; without the automatic one, a node is as good."""
        assert self.security is not None, "started before"
        self._admin = admin = AdminService(Administration(self), self.security, self._reactor)
        admin.listen()
        path = socket_path(self.settings.admin.socket, self.name)
        if path is None:
            return
        try:
            admin.listen_unix(path)
        except LocalError as error:
            if self.settings.admin.socket != "auto":
                raise
            _log.warn("{error}; `caterwaul members` will not find this node", error=error)

    async def _stop(self) -> None:
        parts: list[Callable[[], Any]] = [] if self.drain is None else [self.drain.stop]
        if self._web is not None:
            parts.append(self._web.stop)
        parts.append(lambda: end_led(self.managers.values(), self._reactor))
        parts += [self.engines[name].flush for name in sorted(self.engines)] + ([] if self._locks is None else [self._locks.stop])
        parts.append(lambda: DeferredList([engine.persistence.stop() for engine in self.engines.values() if engine.persistence is not None]))
        if self.channel is not None and self.membership is not None:
            self.channel.on_announce = _nobody  # that managers detach is no news: the farewell says more
            parts += [self._deliver, self.membership.stopService]
        parts += [self.engines[name].stop for name in sorted(self.engines)] + [self._stores.stop]
        if self.security is not None:
            parts.append(self.security.stop)
        if self.channel is not None:
            parts.append(self.channel.stop)
        if self._admin is not None:
            parts.append(self._admin.stop)
        parts += [audit.stop for audit in self.audits.values()]
        for stop in parts:
            try:
                ended = stop()
                if ended is not None:
                    await ended
            except Exception:  # whatever one part runs into, the others have to be stopped
                _log.failure("a part of the node did not stop cleanly")

    def _deliver(self) -> Deferred[None]:
        """Fires when the members that answer have applied all we sent, or after a while: the farewell must not overtake the last deltas."""
        channel, membership = self.running()
        delivered: Deferred[None] = Deferred()
        told = Told(
            {member.uid for member in membership.view if not channel.is_degraded(member.uid)} - {channel.me.uid},
            lambda: delivered.callback(None),
        )
        for name in sorted(self.engines):  # no receiver knows this operation; the data lane confirms it after all that went before
            channel.send(sorted(told.uids), Message(name, DATA, encode([name, _END_OF_DATA]), waiters=(told,)))
        told.check()
        return delivered.addTimeout(_DELIVER_S, self._reactor, lambda result, timeout: None)

    def _member(self, payload: dict[str, Any]) -> Member:
        node = self.settings.node
        return Member(
            uid=self._entropy(UID_BYTES), name=node.name, host=node.host, port=0 if is_worker(node) else node.port, domain=node.domain, zone=node.zone,
            machine=node.machine, weight=node.weight, payload=payload,
        )  # fmt: skip

    def _event(self, event: object) -> None:
        match event:
            case ViewChanged():
                for name, engine in sorted(self.engines.items()):
                    kind = self._kinds[name]
                    part = ViewChanged(event.before.announcing(name, kind), event.after.announcing(name, kind), event.clean)
                    _tell(engine.view_changed, part)
                    if self._locks is not None:
                        _tell(self._locks.view_changed, name, part)
                if self.logins is not None:
                    _tell(self.logins.view_changed, event)
                for member in event.appeared:
                    self._compare_kinds(member)
                    if member.name == self.name and member.uid != self.me.uid:
                        _log.warn("{member} has the same node.name as this node: sticky balancers cannot tell them apart", member=member)
            case Slept(seconds) if seconds >= self.settings.membership.drop_time_s:  # shorter, and nobody has acted without us
                for _, engine in sorted(self.engines.items()):
                    _tell(engine.slept, seconds)
                if self._locks is not None:
                    _tell(self._locks.slept)
        for subscriber in list(self._subscribers):
            _tell(subscriber, event)

    def _compare_kinds(self, member: Member) -> None:
        for name, kind in sorted(self._kinds.items()):
            if name in member.managers and member.kind_of(name) != kind:
                _log.warn(
                    "{member} runs {name!r} as {theirs}, this node as {kind}: they do not replicate to each other; make what its table in "
                    "the configuration says of type, backups and buckets equal on all nodes",
                    member=member, name=name, theirs=member.kind_of(name), kind=kind,
                )  # fmt: skip

    def running(self) -> tuple[GroupChannel, MembershipService]:
        """What it has from its start on. Raises `LocalError` before."""
        if self.channel is None or self.membership is None:
            raise LocalError("the node is not started")
        return self.channel, self.membership

    def end(self) -> bool:
        """End the process if it is nothing but this node, and say whether it is; an application's own process goes on, with a node that holds nothing."""
        if self.on_leave is not None:
            self._reactor.callFromThread(self.on_leave)  # after the answer
        return self.on_leave is not None

    def statistics(self) -> dict[str, Any]:
        """Counters of all parts."""
        channel, membership = self.running()
        return {
            "node": {"name": self.name, "uid": channel.me.uid.hex(), "ready": self.is_ready, "view": membership.view.number},
            "membership": membership.statistics(),
            "channel": channel.statistics(),
            "security": self.security.statistics() if self.security is not None else {},
            "admin": self._admin.statistics() if self._admin is not None else {},
            "managers": {name: engine.statistics() for name, engine in sorted(self.engines.items())},
            "audit": {name: audit.statistics() for name, audit in sorted(self.audits.items())},
        }
