"""The channel: messages in, messages out, to and from the members this process has a link with.

Everything happens in the reactor's thread, in steps: while one step runs (a chunk of frames from a peer, a flush asked
for by another thread) nothing is written; at its end each link that got something to say, confirmations included, makes
one write. A receiver that raises `RemoteError`, or fails, costs the connection its frame came over, and the link its
epoch: the frame is not confirmed, and both ends reconcile instead of trying the same frame for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..membership.channel import Message, Receiver, Waiter
from ..membership.codec import decode
from ..membership.driver import Driver
from ..membership.errors import RemoteError
from ..membership.member import Member
from .errors import HandshakeRefused
from .frames import ACK, CONTROL, DATA, REFUSE, Frame
from .handshake import ACCEPTED, DIALLED, Answer, Greeting, Handshake
from .link import Link
from .meeting import Address, Links, Meeting
from .pipeline import Parcel, Pipeline, cost
from .redial import Dial, Expired, Redial
from .requests import Requests
from .settings import ChannelSettings
from .stages import Stage
from .transport import Connection, Endpoints, PlainTcp, connect, listen

__all__ = ["GroupChannel"]

_log = Logger()

_UNANNOUNCED = ("", "?")  # membership and requests: every member has them
_DIALS_MAX = 256  # dials under way at most; a hint beyond it is forgotten, another will come


class GroupChannel:
    """`membership.channel.Channel` over TCP.

    `reactor` provides IReactorTCP, IReactorTime and `callFromThread`; its `seconds` must be monotonic. `stages` are the
    application's own, in outbound order, the same on all members. `bind_host`: where to listen, `me.host` if empty.
    Hooks, set by the node: `on_traffic(uid)` for every chunk of bytes from a member, `on_refused(uid)` when nobody
    listens any more where a member was, `on_announce(me)` when the managers attached here have changed.
    """

    def __init__(
        self, me: Member, settings: ChannelSettings, cluster: str, reactor: Any, *, rng: Random, entropy: Callable[[int], bytes],
        endpoints: Endpoints | None = None, bind_host: str = "", stages: Sequence[Stage] = (),
    ) -> None:  # fmt: skip
        self._me = me
        self._settings = settings
        self._cluster = cluster
        self._reactor = reactor
        self._endpoints = endpoints or PlainTcp()
        self._bind_host = bind_host or me.host
        self._links = Links(cluster, entropy, outbox_max_bytes=settings.outbox_max_bytes, message_max_bytes=settings.message_max_bytes)
        self._pipeline = Pipeline(
            chunk_bytes=settings.chunk_bytes, message_max_bytes=settings.message_max_bytes,
            compress_above_bytes=settings.compress_above_bytes, stages=stages,
        )  # fmt: skip
        self._inbound_always = bool(stages)
        self._redial = Redial(min_s=settings.reconnect_min_s, max_s=settings.reconnect_max_s, rng=rng)
        self._driver = Driver(self._redial, reactor, self._perform)
        self._receivers: dict[str, Receiver] = {}
        self._connections: dict[bytes, Connection] = {}  # the one that carries the link to this member
        self._open: set[Connection] = set()  # every socket, in whatever phase
        self._dials: dict[Address, bytes | None] = {}  # under way, up to the end of the handshake; the member if it is known
        self._attempts: dict[Address, Deferred[Any]] = {}  # dials whose connection is not made yet
        self._degraded: set[bytes] = set()
        self._step = 0  # depth of steps; nothing is written while it is not 0
        self._touched: dict[bytes, Link] = {}  # links with something to write at the end of the step
        self._port: IListeningPort | None = None
        self._stopped: Deferred[None] | None = None
        self._counts: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        self._totals: Counter[str] = Counter()  # of links that are gone
        self.on_traffic: Callable[[bytes], None] = _nothing
        self.on_refused: Callable[[bytes], None] = _nothing
        self.on_announce: Callable[[Member], None] = _nothing
        self._requests = Requests(self, reactor)
        self.request = self._requests.request
        self.serve = self._requests.serve
        self.attach("?", self._requests)

    # -- life

    def start(self) -> Deferred[None]:
        """Listen. The Deferred fires when `port` is known; it fails with `LocalError` if the port cannot be had."""
        self._driver.start()
        self._requests.start()

        def listening(port: IListeningPort) -> None:
            self._port = port
            host: Any = port.getHost()
            self._me = replace(self._me, port=host.port)

        return listen(self._endpoints, self._reactor, self._bind_host, self._me.port, self._accept).addCallback(listening)

    def stop(self) -> Deferred[None]:
        """Stop listening, write what the transports take at once, close everything. Fires when all sockets are gone, after `handshake_timeout_s` at most."""
        if self._stopped is not None:
            return self._stopped
        self._stopped = Deferred()
        if self._port is not None:
            self._port.stopListening()
        for connection in list(self._connections.values()):
            connection.flush()
        for uid in sorted(self._links.by_uid):
            self.close(uid, "stopping")
        for attempt in list(self._attempts.values()):
            attempt.cancel()
        for connection in list(self._open):
            self._close(connection, "")
        self._requests.stop()
        self._finish()
        return self._stopped

    @property
    def port(self) -> int:
        return self._me.port

    # -- membership.channel.Channel

    @property
    def me(self) -> Member:
        return self._me

    def attach(self, name: str, receiver: Receiver) -> None:
        self._receivers[name] = receiver
        self._announce()

    def detach(self, name: str) -> None:
        self._receivers.pop(name, None)
        self._announce()

    def send(self, to: Iterable[bytes], message: Message) -> None:
        parcels: list[Parcel] | None = None
        size = 0
        by_uid = self._links.by_uid
        for uid in to:
            link = by_uid.get(uid)
            if link is None:
                if uid != self._me.uid:
                    _fail(uid, message.waiters)
                continue
            if parcels is None:
                parcels = self._pipeline.outbound(message)
                size = cost(parcels)
            self._counts["messages_out"] += 1
            failed = link.put(parcels, message, size)
            if failed:
                _fail(uid, failed)
            self._touch(uid, link)

    def close(self, uid: bytes, reason: str) -> None:
        connection = self._connections.get(uid)
        self._redial.forget(uid)
        self._degraded.discard(uid)
        self._touched.pop(uid, None)
        if connection is not None:
            self._close(connection, f"closed: {reason}")
            self._detach(uid)
        link = self._links.by_uid.get(uid)
        if link is not None:
            self._totals.update(_link_counts(link))
            _fail(uid, self._links.remove(uid))
        self._driver.rearm()

    def dial(self, host: str, port: int) -> None:
        address = (host, port)
        link = self._links.at(address)
        if address == self._me.address or (link is not None and link.connected):
            return
        self._dial(address, link.member.uid if link is not None else None)

    def is_degraded(self, uid: bytes) -> bool:
        return uid in self._degraded or uid not in self._connections

    def degrade(self, uid: bytes) -> None:
        if uid in self._connections:
            self._degraded.add(uid)

    def wake(self, flush: Callable[[], None]) -> None:
        self._reactor.callFromThread(self._run, flush)

    def now_ms(self) -> int:
        return int(self._reactor.seconds() * 1000)

    def backlog_bytes(self, uid: bytes) -> int:
        """What waits in the outbox for this member, unsent or unconfirmed; 0 for one without a link."""
        link = self._links.by_uid.get(uid)
        return link.outbox.backlog if link is not None else 0

    def statistics(self) -> dict[str, Any]:
        """Totals since the start, and what is held now. `refusals`: handshakes refused, by code, whoever refused."""
        totals = Counter(self._totals)
        for link in self._links.by_uid.values():
            totals.update(_link_counts(link))
        links = self._links.by_uid.values()
        return {
            **self._counts, **totals, **self._redial.statistics(), **self._requests.statistics(),
            "links": len(links), "connections": len(self._connections), "sockets": len(self._open), "degraded": len(self._degraded),
            "backlog_bytes": sum(link.outbox.backlog for link in links), "dirty_keys": sum(link.outbox.dirty_count for link in links),
            "refusals": dict(self._refusals),
        }  # fmt: skip

    # -- steps

    def _run(self, act: Callable[[], None]) -> None:
        """Run `act` as one step."""
        self._step += 1
        try:
            act()
        except Exception:
            _log.failure("a flush failed; the channel goes on")
            self._counts["failures"] += 1
        finally:
            self._end_step()

    def _touch(self, uid: bytes, link: Link) -> None:
        self._touched[uid] = link
        if not self._step:
            self._step = 1
            self._end_step()

    def _end_step(self) -> None:
        """Write what the step left to be written. Asking for refills makes more, and so does what a refill says."""
        if self._step > 1:
            self._step -= 1
            return
        try:
            while self._touched:
                uid, link = self._touched.popitem()
                if link.connected and link.outbox.wants_refill():
                    self._refill(uid, link)
                connection = self._connections.get(uid)
                if connection is not None:
                    connection.flush()
        finally:
            self._step = 0

    def _refill(self, uid: bytes, link: Link) -> None:
        while (dirty := link.outbox.take_dirty()) is not None:
            name, keys, waiters = dirty
            receiver = self._receivers.get(name)
            size = 0
            try:
                for message in receiver.refill(link.member, keys, waiters) if receiver is not None else ():
                    parcels = self._pipeline.outbound(message)
                    charge = cost(parcels)
                    link.outbox.put_refilled(parcels, message, charge)
                    size += charge
            except Exception:
                _log.failure("receiver {name!r} failed to refill; the link begins anew", name=name)
                self._reset(uid, "internal: refill failed")
                return
            if receiver is None:
                _fail(uid, waiters)
            self._counts["refills"] += 1
            link.outbox.refilled(len(keys), size)

    # -- what connections report (transport.Host)

    def handshake(self, connection: Connection) -> Handshake:
        self._open.add(connection)
        self._redial.guard(connection, self._reactor.seconds() + self._settings.handshake_timeout_s)
        self._driver.rearm()
        return Handshake(ACCEPTED if connection.offer is None else DIALLED, self._me.uid, self._cluster)

    def greeted(self, connection: Connection, greeting: Greeting) -> None:
        now = self._reactor.seconds()
        self._links.refuse_duplicate(self._me, greeting, now, self._dials.__contains__)
        self._replace(greeting.member.uid)
        self._opened(connection, self._links.admit(self._me, greeting, now))

    def answered(self, connection: Connection, answer: Answer) -> None:
        assert connection.offer is not None
        assert connection.address is not None
        self._replace(answer.member.uid)
        self._opened(connection, self._links.conclude(connection.offer, connection.address, answer, self._reactor.seconds()))

    def frames(self, connection: Connection, frames: Sequence[Frame], size: int) -> None:
        link = connection.link
        assert link is not None
        uid = link.member.uid
        link.bytes_in += size
        link.frames_in += len(frames)
        self._degraded.discard(uid)
        self.on_traffic(uid)
        self._step += 1
        try:
            for frame in frames:
                if frame[0] in (CONTROL, DATA):
                    payload = link.accept(frame)
                    if payload is not None:
                        self._deliver(link, payload, frame)
                        if connection.is_closed:  # the receiver closed it, or failed
                            break
                        link.applied(frame)
                else:
                    self._other(uid, link, frame)
            self._touched[uid] = link
        finally:
            self._end_step()

    def broken(self, connection: Connection, error: RemoteError) -> None:
        link = connection.link
        if isinstance(error, HandshakeRefused):
            self._refused(connection, error)
        elif link is not None:
            self._counts["remote_errors"] += 1
            _log.warn("{peer}: {error}; closing the connection", peer=link.member, error=error)
            self._reset(link.member.uid, f"malformed: {error}")
        else:
            self._refused(connection, HandshakeRefused("malformed", str(error)))

    def lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._redial.release(connection)
        link = connection.link
        if link is not None and self._connections.get(link.member.uid) is connection:
            self._detach(link.member.uid)
        elif link is None and connection.address is not None:
            self._dial_ended(connection.address)
        self._driver.rearm()
        self._finish()

    # -- connections

    def _accept(self) -> Connection | None:
        half_open = sum(connection.link is None and connection.offer is None for connection in self._open)
        if self._stopped is not None or half_open >= self._settings.unauthenticated_max:
            self._refusals["busy"] += 1
            return None
        return Connection(self, self._settings.ahead_bytes)

    def _dial(self, address: Address, uid: bytes | None) -> None:
        if self._stopped is not None or address in self._dials or len(self._dials) >= _DIALS_MAX:
            return
        self._dials[address] = uid
        connection = Connection(self, self._settings.ahead_bytes, address, self._links.offer(self._me, address))

        def failed(failure: Failure) -> None:
            known = self._dials.get(address)
            self._counts["dials_failed"] += 1
            self._dial_ended(address)
            if known is not None and failure.check(Refused):
                self.on_refused(known)

        attempt = connect(self._endpoints, self._reactor, address, self._settings.connect_timeout_s, connection)
        self._attempts[address] = attempt
        attempt.addErrback(failed)
        if attempt.called:
            del self._attempts[address]
        else:
            attempt.addCallback(lambda _: self._attempts.__delitem__(address))

    def _dial_ended(self, address: Address) -> None:
        """A dial ended without a link. (One that made a link is taken out by `_opened`.)"""
        uid = self._dials.pop(address, None)
        if uid is not None and uid not in self._connections:
            self._redial.failed(self._reactor.seconds(), uid)
            self._driver.rearm()

    def _opened(self, connection: Connection, meeting: Meeting) -> None:
        link = meeting.link
        uid = link.member.uid
        self._dials.pop(connection.address or ("", 0), None)
        self._redial.release(connection)
        self._redial.opened(self._reactor.seconds(), uid)
        self._driver.rearm()
        self._connections[uid] = connection
        self._counts["links_resumed" if meeting.resumed else "links_begun"] += 1
        connection.establish(link, meeting.answer)
        self._step += 1
        try:
            _confirm(uid, meeting.confirmed)
            _fail(uid, meeting.failed)
            self._tell(lambda receiver: receiver.link_opened(link.member, meeting.resumed))
            if self._links.by_uid.get(uid) is link:
                self._touched[uid] = link
        finally:
            self._end_step()

    def _replace(self, uid: bytes) -> None:
        """A new connection of this member takes the place of the one it has."""
        old = self._connections.get(uid)
        if old is not None:
            self._close(old, "duplicate: replaced by a newer connection")
            self._detach(uid)

    def _detach(self, uid: bytes) -> None:
        """The link to this member has no connection any more."""
        del self._connections[uid]
        self._degraded.discard(uid)
        link = self._links.by_uid[uid]
        link.lost()
        self._redial.lost(self._reactor.seconds(), uid, link.dialled)
        self._driver.rearm()
        self._tell(lambda receiver: receiver.link_lost(link.member))

    def _reset(self, uid: bytes, reason: str) -> None:
        """Something here went wrong with this link: close its connection and begin anew with the next one."""
        connection = self._connections.get(uid)
        link = self._links.by_uid.get(uid)
        if link is not None:
            _fail(uid, link.discard())
        if connection is not None:
            self._close(connection, reason)
            self._detach(uid)

    def _close(self, connection: Connection, reason: str) -> None:
        connection.close(reason)
        if connection in self._open:
            self._redial.guard(connection, self._reactor.seconds() + self._settings.handshake_timeout_s)
            self._driver.rearm()

    def _perform(self, effect: Dial | Expired) -> None:
        if isinstance(effect, Expired):
            assert isinstance(effect.token, Connection)
            if not effect.token.is_closed:
                self._counts["handshakes_expired"] += 1
            effect.token.abort()
        else:
            link = self._links.by_uid.get(effect.uid)
            if link is not None and not link.connected:
                self._dial(link.member.address, effect.uid)

    def _refused(self, connection: Connection, error: HandshakeRefused) -> None:
        self._refusals[error.code] += 1
        count = self._refusals[error.code]
        if error.code != "duplicate" and count & (count - 1) == 0:  # the 1st, 2nd, 4th, 8th...: a peer that goes on does not fill the log
            _log.warn("handshake with {where}: {error} ({count} times so far)", where=connection.where, error=error, count=count)

    def _finish(self) -> None:
        if self._stopped is not None and not self._open and not self._stopped.called:
            self._driver.stop()
            self._stopped.callback(None)

    # -- frames

    def _deliver(self, link: Link, payload: bytes, frame: Frame) -> None:
        _, _, now_ms, flags, _ = frame
        if flags or self._inbound_always:
            payload = self._pipeline.inbound(payload, flags)
        message = decode(payload)
        if type(message) is not list or len(message) < 2 or type(message[0]) is not str or type(message[1]) is not int:
            raise RemoteError("message: not an array [receiver, op, ...]")
        self._counts["messages_in"] += 1
        receiver = self._receivers.get(message[0])
        if receiver is None:
            self._counts["messages_unknown"] += 1
            return
        try:
            receiver.received(link.member, message, self.now_ms() - now_ms)
        except RemoteError:
            raise
        except Exception:
            _log.failure("receiver {name!r} failed on a message of {peer}; the link begins anew", name=message[0], peer=link.member)
            self._counts["failures"] += 1
            self._reset(link.member.uid, "internal: a receiver failed")

    def _other(self, uid: bytes, link: Link, frame: Frame) -> None:
        if frame[0] == ACK:
            _confirm(uid, link.acknowledged(frame[1], frame[2]))
        elif frame[0] == REFUSE:
            _log.info("{peer} closes the connection: {reason}", peer=link.member, reason=frame[1][:300])
            self._counts["closed_by_peer"] += 1
        else:
            raise RemoteError("HELLO on an established connection")

    def _tell(self, what: Callable[[Receiver], None]) -> None:
        """Something happened that all receivers are told of; one that fails keeps it from nobody else."""
        for name in sorted(self._receivers):
            receiver = self._receivers.get(name)
            try:
                if receiver is not None:
                    what(receiver)
            except Exception:
                _log.failure("receiver {name!r} failed on an event of a link", name=name)
                self._counts["failures"] += 1

    def _announce(self) -> None:
        managers = sorted(name for name in self._receivers if name not in _UNANNOUNCED)
        if managers != sorted(self._me.managers):
            self._me = self._me.with_payload(managers=managers)
            self.on_announce(self._me)


def _nothing(_: object) -> None:
    """A hook nobody has set."""


def _confirm(uid: bytes, messages: Iterable[Message]) -> None:
    for message in messages:
        for waiter in message.waiters:
            waiter.confirmed(uid)


def _fail(uid: bytes, waiters: Iterable[Waiter]) -> None:
    for waiter in waiters:
        waiter.failed(uid)


def _link_counts(link: Link) -> dict[str, int]:
    return {
        "frames_in": link.frames_in, "frames_out": link.frames_out, "bytes_in": link.bytes_in, "bytes_out": link.bytes_out,
        "repeats": link.repeats, "messages_dropped": link.outbox.dropped,
    }  # fmt: skip
