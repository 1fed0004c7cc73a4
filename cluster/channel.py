"""The channel: messages in, messages out, to and from the members this process has a link with.

Everything happens in steps: while one step runs (a chunk of frames from a peer, a flush asked for by another thread) nothing is written; at its
end each link that got something to say, confirmations included, makes one write. Steps run in the reactor's thread, under one lock; so another
thread that finds it free may make a step of its own (`hasten`), in which nobody is called back. A receiver that raises `RemoteError`, or fails,
costs the connection its frame came over, and the link its epoch: the frame is not confirmed, and both ends reconcile instead of trying the same frame for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from threading import RLock
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ..membership.channel import Message, Receiver, Waiter, confirm, fail
from ..membership.codec import decode
from ..membership.errors import RemoteError, printable
from ..membership.member import Member
from .connections import Connections
from .frames import ACK, CONTROL, DATA, REFUSE, Frame
from .link import Link
from .meeting import Meeting
from .pipeline import Parcel, Pipeline, cost
from .requests import Requests
from .settings import ChannelSettings
from .stages import Stage
from .transport import Connection, Endpoints, PlainTcp
from .waking import Waking

__all__ = ["GroupChannel"]

_log = Logger()
_UNANNOUNCED = ("", "?", "!")  # membership, requests and revoked certificates: no session managers


class GroupChannel:
    """`membership.channel.Channel` over TCP.

    `reactor` provides IReactorTCP, IReactorTime and `callFromThread`; its `seconds` must be monotonic. `stages` are the application's own, in outbound order, the
    same on all members. `bind_host`: where to listen, `me.host` if empty. Hooks, set by the node: `on_traffic(uid)` for every chunk of bytes from a member,
    `on_refused(uid)` when nobody listens where one was, `on_shut_out(uid)` when it is admitted no more, `on_announce(me)` when this member says something else of itself.
    """

    def __init__(
        self, me: Member, settings: ChannelSettings, cluster: str, reactor: Any, *, rng: Random, entropy: Callable[[int], bytes],
        endpoints: Endpoints | None = None, bind_host: str = "", stages: Sequence[Stage] = (),
    ) -> None:  # fmt: skip
        self._me = me
        self._reactor = reactor
        self._bind_host = bind_host or me.host
        self.lock = RLock()  #: taken before a manager's, never after
        self._pipeline = Pipeline(
            chunk_bytes=settings.chunk_bytes, message_max_bytes=settings.message_max_bytes,
            compress_above_bytes=settings.compress_above_bytes, stages=stages,
        )  # fmt: skip
        self._has_stages = bool(stages)
        self._connections = Connections(self, settings, cluster, reactor, endpoints or PlainTcp(), rng=rng, entropy=entropy)
        self._links = self._connections.links.by_uid
        self._receivers: dict[str, Receiver] = {}
        self._listening: dict[str, bool] = {}  # by their names, whether the application wants to hear of ends
        self._degraded: set[bytes] = set()
        self._step = 0  # depth of steps; nothing is written while it is not 0
        self._hasty = False  # the step runs in another thread than the reactor's
        self._touched: dict[bytes, Link] = {}  # links with something to write at the end of the step
        self._counts, self._gone = Counter[str](), Counter[str]()  # ours; of links that are gone
        self.on_traffic: Callable[[bytes], None] = _nothing
        self.on_refused: Callable[[bytes], None] = _nothing
        self.on_shut_out: Callable[[bytes], None] = _nothing
        self.on_announce: Callable[[Member], None] = _nothing
        self._waking = Waking(reactor, self.run)
        self.wake = self._waking.soon
        self._requests = Requests(self, reactor)
        self.request, self.serve = self._requests.request, self._requests.serve
        self.readmit = self._connections.readmit
        self.attach("?", self._requests)

    # -- life

    def start(self) -> Deferred[None]:
        """Listen. The Deferred fires when `port` is known; it fails with `LocalError` if the port cannot be had."""
        self._requests.start()

        def listening(port: int) -> None:
            self._me = replace(self._me, port=port)

        return self._connections.start(self._bind_host, self._me.port).addCallback(listening)

    def stop(self) -> Deferred[None]:
        """Stop listening, write what the transports take at once, close everything. Fires when all sockets are gone, after `handshake_timeout_s` at most."""
        with self.lock:
            self._waking.stop()
            for uid in sorted(self._links):
                self.close(uid, "stopping")
            self._requests.stop()
            return self._connections.stop()

    @property
    def port(self) -> int:
        return self._me.port

    # -- membership.channel.Channel

    @property
    def me(self) -> Member:
        return self._me

    def attach(self, name: str, receiver: Receiver, listens: bool = False) -> None:
        self._receivers[name] = receiver
        self._listening[name] = listens
        self.announce()

    def detach(self, name: str) -> None:
        self._receivers.pop(name, None)
        self.announce()

    def announce(self, weight: int | None = None, **payload: Any) -> None:
        """Change what this member says of itself: handshakes carry it from now on. The managers attached here are part of it."""
        managers = sorted(name for name in self._receivers if name not in _UNANNOUNCED)
        payload |= {"managers": managers, "ends": [name for name in managers if self._listening[name]]}
        me = replace(self._me.with_payload(**payload), weight=self._me.weight if weight is None else weight)
        if me.to_wire() != self._me.to_wire():
            self._me = me
            self.on_announce(me)

    def send(self, to: Iterable[bytes], message: Message) -> None:
        with self.lock:
            self._send(to, message)
            if not self._step:
                self._step = 1
                self._end_step(refill=False)

    def _send(self, to: Iterable[bytes], message: Message) -> None:
        parcels: list[Parcel] | None = None
        size, links, touched = 0, self._links, self._touched
        for uid in to:
            link = links.get(uid)
            if link is None:
                if uid != self._me.uid:
                    self._failed(uid, message.waiters)
                continue
            if parcels is None:
                parcels = self._pipeline.outbound(message)
                size = cost(parcels)
            failed = link.put(parcels, message, size)
            if failed:
                self._failed(uid, failed)
            touched[uid] = link

    def _failed(self, uid: bytes, waiters: Sequence[Waiter]) -> None:
        """These messages are lost. Waiters are told in the reactor's thread only."""
        if not self._hasty:
            fail(waiters, (uid,))
        elif waiters:
            self.wake(partial(fail, waiters, (uid,)))

    def close(self, uid: bytes, reason: str) -> None:
        with self.lock:
            connection = self._connections.by_uid.get(uid)
            if connection is not None:
                connection.flush()
            self._connections.drop(uid, f"closed: {reason}")
            self._connections.forget(uid)
            self._touched.pop(uid, None)
            link = self._links.get(uid)
            if link is not None:
                self._gone.update(link.statistics())
                fail(self._connections.links.remove(uid), (uid,))

    def dial(self, host: str, port: int) -> None:
        if (host, port) != self._me.address:
            self._connections.dial((host, port))

    def is_degraded(self, uid: bytes) -> bool:
        return uid in self._degraded or uid not in self._connections.by_uid

    def degrade(self, uid: bytes) -> None:
        if uid in self._connections.by_uid:
            self._degraded.add(uid)

    def backlog_bytes(self, uid: bytes) -> int:
        """Bytes kept for this member: unsent and unconfirmed, 0 if there is no link."""
        link = self._links.get(uid)
        return link.outbox.backlog if link is not None else 0

    def hasten(self, flush: Callable[[], None]) -> bool:
        if not self.lock.acquire(blocking=False):
            return False
        try:
            if self._step or not all(connection.is_idle for connection in self._connections.by_uid.values()):
                return False
            self._step = 1
            self._hasty = True
            try:
                flush()
            except Exception:
                _log.failure("a flush failed; the channel goes on")
                self._counts["failures"] += 1
            finally:
                self._end_hasty_step()
        finally:
            self.lock.release()
        return True

    def now_ms(self) -> int:
        return int(self._reactor.seconds() * 1000)

    def statistics(self) -> dict[str, Any]:
        """Totals since the start, and what is held now. `refusals`: handshakes refused, by code, whichever end refused."""
        links = list(self._links.values())
        totals = Counter(self._gone)
        for link in links:
            totals.update(link.statistics())
        return {
            **self._counts, **totals, **self._connections.statistics(), **self._requests.statistics(),
            "links": len(links), "degraded": len(self._degraded), "backlog_bytes": sum(link.outbox.backlog for link in links), "dirty_keys": sum(link.outbox.dirty_count for link in links),
        }  # fmt: skip

    # -- steps

    def run(self, act: Callable[[], None]) -> None:
        """Run `act` as one step."""
        with self.lock:
            self._step += 1
            try:
                act()
            except Exception:
                _log.failure("a flush failed; the channel goes on")
                self._counts["failures"] += 1
            finally:
                self._end_step()

    def _end_step(self, refill: bool = True) -> None:
        """Write what the step left to be written. Asking for refills makes more, and so does what a refill says.

        Not `refill`: the step was a receiver's own call, which is not to be called back from inside; it comes at once after.
        """
        if self._step > 1:
            self._step -= 1
            return
        connections, touched = self._connections.by_uid, self._touched
        try:
            while touched:
                uid, link = touched.popitem()
                if link.connected and link.outbox.wants_refill():
                    if refill:
                        self._refill(uid, link)
                    else:
                        self.wake(partial(touched.__setitem__, uid, link))
                connection = connections.get(uid)
                if connection is not None:
                    connection.flush()
        finally:
            self._step = 0

    def _end_hasty_step(self) -> None:
        """Write what idle connections take at once. The rest is for the reactor's thread."""
        connections, touched, later = self._connections.by_uid, self._touched, dict[bytes, Link]()
        try:
            while touched:
                uid, link = touched.popitem()
                later[uid] = link  # whatever happens now
                connection = connections.get(uid)
                if not link.outbox.wants_refill() and (connection is None or connection.hasten()):
                    del later[uid]
        finally:
            self._step, self._hasty = 0, False
            if later:
                self.wake(partial(touched.update, later))

    def _refill(self, uid: bytes, link: Link) -> None:
        for name, keys, waiters in iter(link.outbox.take_dirty, None):
            receiver = self._receivers.get(name)
            if receiver is None:
                fail(waiters, (uid,))
                continue
            size, outbox = 0, link.outbox
            left: list[Message] = []  # from the first one without room on: the last has the waiters
            try:
                for message in receiver.refill(link.member, keys, waiters):
                    parcels = self._pipeline.outbound(message)
                    charge = cost(parcels)
                    size += charge
                    if left or not outbox.put_refilled(parcels, message, charge):
                        left.append(message)
            except BaseException:  # see `_deliver`
                _log.failure("receiver {name!r} failed to refill; the link begins anew", name=name)
                fail(waiters, (uid,))
                self._fail_link(link, "internal: refill failed")
                return
            outbox.put_back(left)
            self._counts["refills"] += 1
            outbox.refilled(len(keys), size)

    def _fail_link(self, link: Link, reason: str) -> None:
        """Something here went wrong with this link: close its connection, and begin anew with the next."""
        self._counts["failures"] += 1
        self.link_reset(link)
        self._connections.drop(link.member.uid, reason)

    # -- what the connections tell (connections.Carried)

    def link_opened(self, meeting: Meeting) -> None:
        link = meeting.link
        uid = link.member.uid

        def tell() -> None:
            confirm(meeting.confirmed, uid)
            fail(meeting.failed, (uid,))
            self._tell(lambda receiver: receiver.link_opened(link.member, meeting.resumed))
            if self._links.get(uid) is link:
                self._touched[uid] = link

        self.run(tell)

    def link_lost(self, link: Link) -> None:
        self._degraded.discard(link.member.uid)
        self._tell(lambda receiver: receiver.link_lost(link.member))

    def link_reset(self, link: Link) -> None:
        fail(link.discard(), (link.member.uid,))

    def frames(self, connection: Connection, frames: Sequence[Frame], size: int) -> None:
        link = connection.link
        assert link is not None
        uid = link.member.uid
        link.bytes_in += size
        link.frames_in += len(frames)
        now_ms = self.now_ms()
        self._step += 1
        try:
            self.on_traffic(uid)
            for frame in frames:
                if connection.is_closed:  # a receiver closed it, or failed
                    return
                if frame[0] in (CONTROL, DATA):
                    payload = link.accept(frame)
                    if payload is not None:
                        self._deliver(link, payload, frame, now_ms)
                        if link.connected:
                            link.applied(frame)
                else:
                    self._other(uid, link, frame)
            if not connection.is_closed:
                self._touched[uid] = link
        finally:
            self._end_step()

    # -- inside

    def _deliver(self, link: Link, payload: bytes, frame: Frame, now_ms: int) -> None:
        flags = frame[3]
        if flags or self._has_stages:
            payload = self._pipeline.inbound(payload, flags)
        message = decode(payload)
        if type(message) is not list or len(message) < 2 or type(message[0]) is not str or type(message[1]) is not int:
            raise RemoteError("message: not an array [receiver, op, ...]")
        link.messages_in += 1
        receiver = self._receivers.get(message[0])
        if receiver is None:
            self._counts["messages_unknown"] += 1
            return
        try:
            receiver.received(link.member, message, now_ms - frame[2])
        except RemoteError:
            raise
        except BaseException:  # a library in Rust that gets no memory raises no Exception
            _log.failure("receiver {name!r} failed on a message of {peer}; the link begins anew", name=message[0], peer=link.member)
            self._fail_link(link, "internal: a receiver failed")

    def _other(self, uid: bytes, link: Link, frame: Frame) -> None:
        if frame[0] == ACK:
            self._degraded.discard(uid)
            confirm(link.acknowledged(frame[1], frame[2]), uid)
        elif frame[0] == REFUSE:
            _log.info("{peer} closes the connection: {reason}", peer=link.member, reason=printable(frame[1][:300]))
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


def _nothing(_: object) -> None:
    """A hook nobody has set."""
