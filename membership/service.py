"""Membership as a running thing: the group core, its driver, its discoveries, and who listens.

To the channel it is the receiver of the empty name; the channel also tells it of every frame (`heard`) and of refused
redials (`unreachable`). Upwards it offers the view and its changes. Effects are queued and performed one after the other:
what a subscriber does in answer to an event (announcing something, say) happens after all others have had the event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any

from twisted.application.service import Service
from twisted.internet.abstract import isIPAddress
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from .channel import Channel, Message, Waiter
from .detector import MemberCleared, MemberSuspected
from .dialling import Dial
from .discovery.base import Carrier, Discovery
from .discovery.dns import DnsDiscovery
from .discovery.file import FileDiscovery
from .discovery.multicast import MulticastDiscovery
from .discovery.static import StaticDiscovery
from .driver import Driver
from .effects import Close, Effect, Notify, Send
from .errors import LocalError, RemoteError
from .group import Beat, Group, Slept, Stopped
from .member import Member
from .messages import RECEIVER, decode_heartbeat
from .sealing import DatagramSealer
from .settings import MembershipSettings
from .told import Told
from .view import View, ViewChanged

__all__ = ["MembershipService", "Subscriber", "discoveries_of"]

_log = Logger()
_COMPLAINT_S = 10.0  # bad datagrams are free for whoever sends them, so they may not fill our log

#: Gets `ViewChanged`, `EveryoneChanged`, `MemberSuspected`, `MemberCleared`, `Slept`, `Stopped`; in the reactor's thread.
Subscriber = Callable[[object], None]


class MembershipService(Service):
    """Runs once, from `startService` to `stopService`. In the reactor's thread, except `view`, `everyone` and `me`, which any thread may read.

    `sealer`: of datagrams, `PlainDatagrams` for one that seals nothing; None: this member sends none and believes none. `discoveries`: instead of
    those that the settings name. `seed_port`: of addresses without one; 0: this member's. Raises `LocalError` for settings that cannot work.
    """

    def __init__(
        self, me: Member, settings: MembershipSettings, cluster: str, channel: Channel, reactor: Any, *,
        rng: Random, sealer: DatagramSealer | None, discoveries: Sequence[Discovery] | None = None, seed_port: int = 0,
    ) -> None:  # fmt: skip
        self._channel = channel
        self._reactor = reactor
        self._sealer = sealer
        self._group = Group(me, settings, cluster, rng)
        self._driver = Driver(_Batches(self._group), reactor, self._perform)
        self._discoveries = list(discoveries) if discoveries is not None else discoveries_of(me, settings, reactor, self.datagram, seed_port)
        self._subscribers: list[Subscriber] = []
        self._effects: deque[Effect] = deque()
        self._performing = False
        self._started = self._finished = False
        self._stopped: Deferred[None] | None = None
        self._told: Told | None = None  # who has our farewell
        self._complain_at = 0.0
        self._began_at = 0.0
        self._datagram_at: float | None = None  # when a good one of somebody else came last; None: never
        self._counts = dict.fromkeys(("datagrams", "unsealed", "malformed", "subscriber_errors"), 0)

    # -- what others see

    @property
    def me(self) -> Member:
        """This process as it announces itself now; handshakes carry it."""
        return self._group.me

    @property
    def view(self) -> View:
        """The members of this domain, this process among them."""
        return self._group.view

    @property
    def everyone(self) -> View:
        """The members of all domains, this process among them."""
        return self._group.everyone

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """From now on `callback(event)`; what is returned ends it. An exception in a callback is logged, counted and harms nobody else."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback) if callback in self._subscribers else None

    def announce(self, me: Member) -> None:
        """Tell everybody what this member says of itself now. Raises `LocalError` if it were another one, or elsewhere."""
        self._run(self._group.announce(me))

    def statistics(self) -> dict[str, Any]:
        """Totals since the start. `multicast_silent_s`: since when no other member has been heard by datagram; None where there is no multicast, or nobody else."""
        has_multicast = any(isinstance(discovery, Carrier) for discovery in self._discoveries)
        since = self._datagram_at if self._datagram_at is not None else self._began_at
        silent_s = round(self._reactor.seconds() - since, 1) if has_multicast and len(self.everyone) > 1 else None
        return {
            **self._group.statistics(), **self._counts, "multicast_silent_s": silent_s,
            "discovery_errors": sum(discovery.errors for discovery in self._discoveries), "driver_errors": self._driver.errors,
        }  # fmt: skip

    # -- life

    def startService(self) -> None:
        """Raises `LocalError` if a discovery cannot start (then nothing stays started), or at a second start."""
        if self._started:
            raise LocalError("membership was started before; a new start is a new incarnation and takes a new Member and service")
        self._started = True
        self._began_at = self._reactor.seconds()
        super().startService()  # type: ignore[no-untyped-call]
        self._channel.attach(RECEIVER, self)
        self._driver.start()
        try:
            for discovery in self._discoveries:
                discovery.start(self._found)
        except LocalError:
            self._finish()
            raise

    def stopService(self) -> Deferred[None] | None:
        """Farewell to all, then fire: when every member has it (or has closed its link), or after `probe_timeout_s`. Links may be closed after that."""
        if not self.running:
            return self._stopped
        super().stopService()  # type: ignore[no-untyped-call]
        for discovery in self._discoveries:
            discovery.stop()
        done: Deferred[None] = Deferred()
        self._stopped = done
        self._told = told = Told(self.everyone.by_uid.keys() - {self.me.uid}, self._finish)
        self._run(self._group.stop(self._reactor.seconds(), (told,)))
        told.check()
        return done

    def _finish(self) -> None:
        """The farewell is through, or had its time; or the start failed. Comes once from each of those who wait for it."""
        if self._finished:
            return
        self._finished = True
        self._driver.stop()
        for discovery in self._discoveries:
            discovery.stop()
        self._channel.detach(RECEIVER)
        if self.running:
            super().stopService()  # type: ignore[no-untyped-call]
        if self._stopped is not None:
            self._stopped.callback(None)

    # -- from the network

    def datagram(self, data: bytes) -> None:
        """A datagram of the group, from anybody. Never raises."""
        self._counts["datagrams"] += 1
        opened = self._sealer.open(data) if self._sealer is not None else None
        if opened is None:
            self._counts["unsealed"] += 1
            return self._complain("a seal that is not ours, forged, repeated or late")
        try:
            heartbeat = decode_heartbeat(opened)
        except RemoteError as error:
            self._counts["malformed"] += 1
            return self._complain(str(error))
        now = self._reactor.seconds()
        if heartbeat.uid != self.me.uid:
            self._datagram_at = now
        return self._run(self._group.heard(now, heartbeat))

    def _complain(self, why: str) -> None:
        now = self._reactor.seconds()
        if self._complain_at <= now:
            self._complain_at = now + _COMPLAINT_S
            _log.info("ignored datagrams: {unsealed} sealed otherwise, {malformed} malformed so far; the last one: {why}", why=why, **self._counts)

    def _found(self, host: str, port: int) -> None:
        self._run(self._group.found(self._reactor.seconds(), host, port))

    # -- from the channel

    def heard(self, uid: bytes) -> None:
        """A frame came from this member. The hot path."""
        self._group.traffic(self._reactor.seconds(), uid)

    def unreachable(self, uid: bytes) -> None:
        """The connection to this member broke, and nobody listens at its address any more (ECONNREFUSED)."""
        self._run(self._group.unlinked(self._reactor.seconds(), uid, True))

    def expel(self, uid: bytes) -> None:
        """What this member was admitted with counts no more."""
        self._run(self._group.expel(self._reactor.seconds(), uid))

    def received(self, peer: Member, message: list[Any], offset_ms: int) -> None:
        self._run(self._group.received(self._reactor.seconds(), peer.uid, message))

    def link_opened(self, peer: Member, resumed: bool) -> None:
        self._run(self._group.linked(self._reactor.seconds(), peer))

    def link_lost(self, peer: Member) -> None:
        self._run(self._group.unlinked(self._reactor.seconds(), peer.uid, False))
        if self._told is not None:
            self._told.confirmed(peer.uid)  # who takes our farewell closes the link

    def refill(self, peer: Member, keys: Iterable[bytes], waiters: Sequence[Waiter]) -> Iterable[Message]:
        """Never asked: our messages name no keys."""
        for waiter in waiters:
            waiter.failed(peer.uid)
        return ()

    # -- effects

    def _run(self, effects: Iterable[Effect]) -> None:
        self._driver.run((effects,))

    def _perform(self, batch: Iterable[Effect]) -> None:
        self._effects.extend(batch)
        if self._performing:
            return
        self._performing = True
        try:
            while self._effects:
                self._perform_one(self._effects.popleft())
        finally:
            self._performing = False

    def _perform_one(self, effect: Effect) -> None:
        match effect:
            case Beat(datagram):
                self._beat(datagram)
            case Send(to, message):
                self._channel.send(to, message)
            case Dial(host, port):
                self._channel.dial(host, port)
            case Close(uid, reason):
                self._channel.close(uid, reason)
            case Notify(event):
                self._notify(event)
            case _:
                raise AssertionError(f"membership does not know the effect {effect!r}")

    def _beat(self, datagram: bytes) -> None:
        carriers = [discovery for discovery in self._discoveries if isinstance(discovery, Carrier)]
        if carriers and self._sealer is not None:
            sealed = self._sealer.seal(datagram)
            for carrier in carriers:
                carrier.send(sealed)

    def _notify(self, event: object) -> None:
        _log_event(event)
        for subscriber in list(self._subscribers):
            try:
                subscriber(event)
            except Exception:
                self._counts["subscriber_errors"] += 1
                _log.failure("a subscriber of membership failed on {event}", event=type(event).__name__)
        if isinstance(event, Stopped):
            self._finish()


class _Batches:
    """The group as the driver sees it: all effects of a tick are one, so that nothing gets in between them."""

    def __init__(self, group: Group) -> None:
        self._group = group

    def tick(self, now: float) -> tuple[Effect, ...]:
        return (self._group.tick(now),)

    def deadline(self) -> float | None:
        return self._group.deadline()


def discoveries_of(me: Member, settings: MembershipSettings, reactor: Any, received: Callable[[bytes], None], port: int = 0) -> list[Discovery]:
    """Those that `settings.discovery` names. `received` gets datagrams; `port`: of addresses without one; 0: this member's. Raises `LocalError` for a list that is missing or malformed."""
    built: list[Discovery] = []
    port = port or me.port
    for kind in settings.discovery:
        match kind:
            case "multicast":
                interface = settings.multicast_interface or (me.host if isIPAddress(me.host) and me.host != "0.0.0.0" else "")
                built.append(MulticastDiscovery(settings, interface, reactor, received))
            case "static":
                built.append(StaticDiscovery(settings.seeds, port, settings.seed_retry_s, reactor))
            case "dns":
                built.append(DnsDiscovery(settings.dns_names, port, settings.dns_poll_s, reactor))
            case "file":
                built.append(FileDiscovery(settings.seeds_file, port, settings.file_poll_s, settings.seed_retry_s, reactor))
            case _:
                raise LocalError(f"membership.discovery: {kind!r} is none of multicast, static, dns, file")
    return built


def _log_event(event: object) -> None:
    match event:
        case ViewChanged(_, after):
            here, gone = [member.name for member in event.appeared], [member.name for member in event.disappeared]
            if here or gone:
                _log.info("view {number} of {size}: appeared {here}, disappeared {gone}", number=after.number, size=len(after), here=here, gone=gone)
        case MemberSuspected(member):
            _log.info("{member} is suspect", member=member)
        case MemberCleared(member):
            _log.info("{member} is cleared", member=member)
        case Slept(seconds):
            _log.warn("this process did not run for {seconds:.1f} s", seconds=seconds)
