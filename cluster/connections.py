"""Which connection carries which link: accepting, dialling, dialling again, and what becomes of a connection that fails.

The channel above hears of links only: one has a connection now, it has none any more, frames came. That a second
connection replaces the first, that one of two crossing dials is refused, and who dials again when, is settled here, with
the cores `Links` (does a link resume) and `Redial` (every deadline).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from random import Random
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..membership.driver import Driver
from ..membership.errors import RemoteError
from ..membership.member import Member
from ..membership.rate import Rate
from .errors import HandshakeRefused
from .frames import Frame
from .handshake import ACCEPTED, DIALLED, Answer, Greeting, Handshake
from .link import Link
from .meeting import Address, Links, Meeting, Offer
from .redial import Dial, Expired, Redial
from .security.admission import Admission, Identity
from .settings import ChannelSettings
from .transport import Connection, Endpoints, connect, listen

__all__ = ["Carried", "Connections"]

_log = Logger()

_LOOK_S = 2.0  # a peer that owes confirmations and has said nothing between two looks is degraded: known within four seconds
_LOOKS_MAX = 5  # ... and in a black hole after so many: TCP alone would wait up to a minute between repeats, and as long again after it has healed
_DIALS_MAX = 256  # dials under way at most; a hint beyond it is forgotten, another will come


class Carried(Protocol):
    """What is told of links: the channel."""

    on_refused: Callable[[bytes], None]  #: nobody listens where this member was
    on_shut_out: Callable[[bytes], None]  #: what this member was admitted with counts no more

    @property
    def lock(self) -> AbstractContextManager[Any]: ...

    @property
    def me(self) -> Member: ...

    def link_opened(self, meeting: Meeting) -> None:
        """The link has a connection, on which nothing has been written or read yet."""

    def link_lost(self, link: Link) -> None:
        """It has none any more."""

    def link_reset(self, link: Link) -> None:
        """A peer broke the protocol: discard what is under way."""

    def frames(self, connection: Connection, frames: Sequence[Frame], size: int) -> None: ...

    def degrade(self, uid: bytes) -> None:
        """This member owes confirmations, and is silent."""

    def now_ms(self) -> int: ...


class _Heard(NamedTuple):
    """At the last look: bytes that had come in, whether confirmations were awaited, and at how many looks before nothing new had come."""

    bytes_in: int
    was_awaiting: bool
    silences: int


class Connections:
    """`transport.Host`. `by_uid`: the connection that carries the link to a member; `links`: all links. Reactor thread only."""

    def __init__(
        self, carried: Carried, settings: ChannelSettings, cluster: str, reactor: Any, endpoints: Endpoints, *, rng: Random, entropy: Callable[[int], bytes]
    ) -> None:
        self._carried = carried
        self.lock = carried.lock
        self._settings = settings
        self._cluster = cluster
        self._reactor = reactor
        self._endpoints = endpoints
        self.links = Links(cluster, entropy, outbox_max_bytes=settings.outbox_max_bytes, message_max_bytes=settings.message_max_bytes)
        self.by_uid: dict[bytes, Connection] = {}
        self._open: dict[Connection, None] = {}  # every socket, in whatever phase, in order
        self._admitted: dict[bytes, Identity] = {}  # what each member was admitted with last, connected or not
        self._heard: dict[bytes, _Heard] = {}
        self._dials: dict[Address, bytes | None] = {}  # under way, up to the end of the handshake; the member if it is known
        self._attempts: dict[Address, Deferred[Any]] = {}  # those of them whose connection is not made yet
        self._redial = Redial(min_s=settings.reconnect_min_s, max_s=settings.reconnect_max_s, rng=rng)
        self._driver = Driver(self._redial, reactor, self._perform)
        self._port: IListeningPort | None = None
        self._stopped: Deferred[None] | None = None
        self._counts: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        self._accepting = Rate(settings.accepts_per_s, settings.unauthenticated_max)  # by address; who is admitted has cost nothing
        self.frames = carried.frames
        self.now_ms = carried.now_ms

    # -- the channel calls these

    def start(self, host: str, port: int) -> Deferred[int]:
        """Listen; fires with the port. Fails with `LocalError` if it cannot be had."""
        self._driver.start()

        def listening(port: IListeningPort) -> int:
            self._port = port
            address: Any = port.getHost()
            return int(address.port)

        return listen(self._endpoints, self._reactor, host, port, self._accept).addCallback(listening)

    def stop(self) -> Deferred[None]:
        """Close everything; fires when all sockets are gone. What transports hold is still written, for `handshake_timeout_s` at most."""
        if self._stopped is None:
            self._stopped = Deferred()
            for attempt in list(self._attempts.values()):
                attempt.cancel()
            for connection in list(self._open):
                self._close(connection, "")
            if self._port is not None:
                maybeDeferred(self._port.stopListening).addCallback(self._port_closed)
            self._finish()
        return self._stopped

    def dial(self, address: Address) -> None:
        """Dial, unless whoever is there has a link with a connection, or is being dialled."""
        link = self.links.at(address)
        if link is None:
            self._dial(address, None)
        elif not link.connected:
            self._dial(address, link.member.uid)

    def forget(self, uid: bytes) -> None:
        """Do not dial this member again."""
        self._admitted.pop(uid, None)
        self._redial.forget(uid)
        self._driver.rearm()

    def drop(self, uid: bytes, reason: str) -> None:
        """Close the connection of this member, if it has one; the link stays."""
        connection = self.by_uid.get(uid)
        if connection is not None:
            self._close(connection, reason)
            self._detach(uid)

    def statistics(self) -> dict[str, Any]:
        return {
            **self._counts, **self._redial.statistics(), "connections": len(self.by_uid), "sockets": len(self._open), "refusals": dict(self._refusals),
        }  # fmt: skip

    def readmit(self, *, renew: bool = False) -> None:
        """Secrets or certificates have changed: whoever would not be admitted any more is cut off. A node that is known by name is no member any more, connected
        or not; one that only holds a secret may have another, and come again. `renew`: this node has another certificate itself, so every connection is made anew
        (links resume), or others would go on knowing it by the old one."""
        with self.lock:
            for uid in sorted(self.by_uid) if renew else ():
                self.drop(uid, "renewed: another certificate")
            for connection in list(self._open):
                if connection.link is None and connection.identity is not None and not self._endpoints.admits(connection.identity):
                    connection.abort()
            for uid, identity in sorted(self._admitted.items()):
                if not self._endpoints.admits(identity):
                    self._shut_out(uid, identity)

    def _shut_out(self, uid: bytes, identity: Identity) -> None:
        self._refusals["revoked"] += 1
        _log.warn("{peer}: what it was admitted with ({credential}) counts no more", peer=self.links.by_uid[uid].member, credential=identity.credential)
        self.drop(uid, "revoked: secret or certificate")
        if identity.name:
            self._carried.on_shut_out(uid)

    # -- connections call these (transport.Host)

    def made(self, connection: Connection) -> None:
        self._open[connection] = None
        self._guard(connection)

    def admission(self, connection: Connection) -> Admission:
        return self._endpoints.admission(connection.transport, self._carried.me.uid, dialled=connection.offer is not None)

    def handshake(self, connection: Connection) -> Handshake:
        assert connection.identity is not None, "admitted"
        if not self._endpoints.admits(connection.identity):  # it was begun before that changed
            raise HandshakeRefused("revoked", "what this connection was admitted with counts no more")
        if connection.accepted_from:
            self._accepting.give_back(self._reactor.seconds(), connection.accepted_from)
        return Handshake(ACCEPTED if connection.offer is None else DIALLED, self._carried.me.uid, self._cluster)

    def greeted(self, connection: Connection, greeting: Greeting) -> None:
        me, now = self._carried.me, self._reactor.seconds()
        self._identify(connection, greeting.member)
        self.links.refuse_duplicate(me, greeting, now, self._dials.__contains__)
        self.drop(greeting.member.uid, "duplicate: replaced by a newer connection")
        self._opened(connection, self.links.admit(me, greeting, now))

    def answered(self, connection: Connection, answer: Answer) -> None:
        assert connection.offer is not None
        assert connection.address is not None
        self._identify(connection, answer.member)
        self.drop(answer.member.uid, "duplicate: replaced by a newer connection")
        try:
            meeting = self.links.conclude(connection.offer, connection.address, answer, self._reactor.seconds())
        except RemoteError:
            self._carried.link_reset(self.links.by_uid[answer.member.uid])  # or the next handshake would fail in the same way
            raise
        expected = self._dials.pop(connection.address, None)
        self._opened(connection, meeting)
        if expected is not None and expected != answer.member.uid:
            self._displaced(expected)

    def broken(self, connection: Connection, error: RemoteError) -> None:
        link = connection.link
        if link is None:
            self._refused(connection, error if isinstance(error, HandshakeRefused) else HandshakeRefused("malformed", str(error)))
            return
        self._counts["remote_errors"] += 1
        _log.warn("{peer}: {error}; closing the connection", peer=link.member, error=error)
        self._carried.link_reset(link)
        self.drop(link.member.uid, f"malformed: {error}")

    def lost(self, connection: Connection, why: str) -> None:
        self._open.pop(connection, None)
        if why and connection.link is None and self._stopped is None and (connection.identity is None or connection.offer is not None):
            self._refused(connection, HandshakeRefused("admission", f"the other end closed it, or what it said was not to be understood: {why}"))
        self._redial.release(connection)
        self._driver.rearm()
        link = connection.link
        if link is not None:
            if self.by_uid.get(link.member.uid) is connection:
                self._detach(link.member.uid)
        elif connection.address is not None:
            self._dial_ended(connection.address)
        self._finish()

    # -- inside

    def _identify(self, connection: Connection, member: Member) -> None:
        """Raises `HandshakeRefused` if that is not who was admitted, or somebody else is known as that member."""
        assert connection.identity is not None, "admitted"
        connection.identity.require(member)
        known = self.links.by_uid.get(member.uid)
        if known is not None and connection.identity.name and known.member.name != member.name:
            raise HandshakeRefused("identity", f"{member.name!r} says it is the process {member.uid.hex()[:8]}, which is {known.member.name!r}")

    def _accept(self, address: str) -> Connection | None:
        if self._stopped is not None:
            return None
        if not self._accepting.take(self._reactor.seconds(), address):
            self._count_refusal("rate", address, "too many connections without admission (channel.accepts_per_s)")
            return None
        half_open = [other for other in self._open if other.link is None and other.offer is None and not other.is_closed]
        if len(half_open) >= self._settings.unauthenticated_max:  # the oldest goes: a real handshake takes milliseconds
            self._count_refusal("busy", half_open[0].where, "too many connections without a handshake (channel.unauthenticated_max)")
            half_open[0].abort()
        connection = self._connection()
        connection.accepted_from = address
        return connection

    def _connection(self, address: Address | None = None, offer: Offer | None = None) -> Connection:
        return Connection(self, self._settings.ahead_bytes, address, offer, has_handshake=self._endpoints.has_handshake)

    def _dial(self, address: Address, uid: bytes | None) -> None:
        if self._stopped is not None or address in self._dials or len(self._dials) >= _DIALS_MAX:
            if uid is not None and self._stopped is None:  # not now: the dial under way may be another's, and no end of it brings this one back
                self._redial.failed(self._reactor.seconds(), uid)
                self._driver.rearm()
            return
        self._dials[address] = uid
        connection = self._connection(address, self.links.offer(self._carried.me, address))

        def failed(failure: Failure) -> None:
            self._counts["dials_failed"] += 1
            self._dial_ended(address)
            if uid is not None and failure.check(Refused):
                self._carried.on_refused(uid)

        attempt = connect(self._endpoints, self._reactor, address, self._settings.connect_timeout_s, connection)
        attempt.addErrback(failed)
        if not attempt.called:
            self._attempts[address] = attempt
            attempt.addCallback(lambda _: self._attempts.__delitem__(address))

    def _dial_ended(self, address: Address) -> None:
        """A dial came to nothing."""
        uid = self._dials.pop(address, None)
        if uid is not None and uid not in self.by_uid:
            self._redial.failed(self._reactor.seconds(), uid)
            self._driver.rearm()

    def _opened(self, connection: Connection, meeting: Meeting) -> None:
        uid = meeting.link.member.uid
        self._redial.release(connection)
        self._redial.opened(self._reactor.seconds(), uid)
        self._driver.rearm()
        assert connection.identity is not None, "admitted"
        self.by_uid[uid] = connection
        self._admitted[uid] = connection.identity
        self._watch(uid, meeting.link)
        self._counts["links_resumed" if meeting.resumed else "links_begun"] += 1
        connection.establish(meeting.link, meeting.answer)
        self._carried.link_opened(meeting)

    def _detach(self, uid: bytes) -> None:
        """The link to this member has no connection any more."""
        del self.by_uid[uid]
        del self._heard[uid]
        self._redial.release(uid)
        link = self.links.by_uid[uid]
        link.lost()
        self._redial.lost(self._reactor.seconds(), uid, link.dialled)
        self._driver.rearm()
        self._carried.link_lost(link)

    def _close(self, connection: Connection, reason: str) -> None:
        """Close; a peer that does not take what is still to be written is not waited for longer than for a handshake."""
        connection.close(reason)
        if connection in self._open:
            self._guard(connection)

    def _guard(self, connection: Connection) -> None:
        self._redial.guard(connection, self._reactor.seconds() + self._settings.handshake_timeout_s)
        self._driver.rearm()

    def _perform(self, effect: Dial | Expired) -> None:
        with self.lock:
            self._perform_locked(effect)

    def _perform_locked(self, effect: Dial | Expired) -> None:
        if isinstance(effect, Dial):
            link = self.links.by_uid.get(effect.uid)
            if link is not None and not link.connected:
                if self.links.is_taken(link.member.address):
                    self._displaced(effect.uid)
                else:
                    self._dial(link.member.address, effect.uid)
        elif isinstance(effect.token, Connection):
            self._counts["handshakes_expired"] += not effect.token.is_closed
            effect.token.abort()
        else:
            self._look(effect.token)

    def _displaced(self, uid: bytes) -> None:
        """Another process answers where this member was: to membership the same as if nobody did."""
        self._redial.failed(self._reactor.seconds(), uid)
        self._driver.rearm()
        self._carried.on_refused(uid)

    def _watch(self, uid: bytes, link: Link, silences: int = 0) -> None:
        self._heard[uid] = _Heard(link.bytes_in, link.is_awaiting, silences)
        self._redial.guard(uid, self._reactor.seconds() + _LOOK_S)
        self._driver.rearm()

    def _look(self, uid: bytes) -> None:
        """A peer that lives confirms what it gets. One that owes confirmations and says nothing at all is waited for by nobody, and soon cut off."""
        link, connection, heard = self.links.by_uid[uid], self.by_uid[uid], self._heard[uid]
        if not heard.was_awaiting or heard.bytes_in != link.bytes_in:
            self._watch(uid, link)
        elif heard.silences + 1 < _LOOKS_MAX:
            self._carried.degrade(uid)
            self._watch(uid, link, heard.silences + 1)
        else:
            self._counts["silences"] += 1
            seconds = _LOOK_S * _LOOKS_MAX
            _log.warn("{peer} has been silent for {seconds:g} s with confirmations outstanding; dialling it again", peer=link.member, seconds=seconds)
            connection.abort()
            self._detach(uid)

    def _refused(self, connection: Connection, error: HandshakeRefused) -> None:
        self._count_refusal(error.code, connection.where, str(error))

    def _count_refusal(self, code: str, where: str, why: str) -> None:
        self._refusals[code] += 1
        count = self._refusals[code]
        if code != "duplicate" and count & (count - 1) == 0:  # the 1st, 2nd, 4th, 8th...: a peer that goes on does not fill the log
            _log.warn("handshake with {where}: {why} ({count} times so far)", where=where, why=why, count=count)

    def _port_closed(self, _: object) -> None:
        self._port = None
        self._finish()

    def _finish(self) -> None:
        if self._stopped is not None and self._port is None and not self._open and not self._stopped.called:
            self._driver.stop()
            self._stopped.callback(None)
