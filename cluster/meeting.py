"""Two ends meet: does the link between them resume, begin anew, or is this connection one too many.

The table of links and the rules of the handshake that need it. When both ends dial at once the lower uid's connection
wins: its acceptor side refuses the other's as a *duplicate* while its own dial is under way or has just succeeded. At any
other time a new connection replaces the old one: its dialler has lost the old one, and this end has not noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..membership.channel import Message, Waiter
from ..membership.errors import RemoteError
from ..membership.member import Member
from .errors import HandshakeRefused
from .handshake import EPOCH_BYTES, Answer, Greeting, encode_answer, encode_greeting
from .link import Link

__all__ = ["Address", "Links", "Meeting", "Offer"]

_SETTLED_AFTER_S = 2.0  # two dials that cross do so within a round trip; ten times a slow one
_ALIASES_MAX = 1024  # other names of members; one that is forgotten costs one more handshake

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Offer:
    """What a dialler said about epochs, kept until the answer comes. `hello`: the encoded frame."""

    epoch: bytes | None
    fresh: bytes
    peer: bytes | None
    hello: bytes


@dataclass(frozen=True, slots=True)
class Meeting:
    """A link that has a connection now. `confirmed`: messages the peer turned out to have; `failed`: waiters of what is lost."""

    link: Link
    resumed: bool
    confirmed: list[Message]
    failed: list[Waiter]
    answer: bytes = b""  #: the acceptor's HELLO


class Links:
    """All links of this process by uid. `entropy(n)` gives n random bytes."""

    def __init__(self, cluster: str, entropy: Callable[[int], bytes], *, outbox_max_bytes: int, message_max_bytes: int) -> None:
        self._cluster = cluster
        self._entropy = entropy
        self._bounds = {"outbox_max_bytes": outbox_max_bytes, "message_max_bytes": message_max_bytes}
        self.by_uid: dict[bytes, Link] = {}
        self._uid_at: dict[Address, bytes] = {}  # addresses that led to a member, besides the one it announces

    def at(self, address: Address) -> Link | None:
        """The link to the member known to answer at this address."""
        uid = self._uid_at.get(address)
        if uid is not None:
            return self.by_uid.get(uid)
        return next((link for link in self.by_uid.values() if link.member.address == address), None)

    def is_taken(self, address: Address) -> bool:
        """Whether a connected member announces this address."""
        return any(link.connected and link.member.address == address for link in self.by_uid.values())

    def remove(self, uid: bytes) -> list[Waiter]:
        """Forget a link. Returns the waiters of everything lost."""
        link = self.by_uid.pop(uid, None)
        self._uid_at = {address: at for address, at in self._uid_at.items() if at != uid}
        return link.discard() if link is not None else []

    def offer(self, me: Member, address: Address) -> Offer:
        """The greeting for a dial of this address."""
        link = self.at(address)
        epoch, peer, received = (link.epoch, link.peer_epoch, (link.received[0], link.received[1])) if link else (None, None, (0, 0))
        fresh = self._entropy(EPOCH_BYTES)
        return Offer(epoch, fresh, peer, encode_greeting(me, self._cluster, epoch=epoch, fresh=fresh, peer=peer, received=received))

    def refuse_duplicate(self, me: Member, greeting: Greeting, now: float, is_dialling: Callable[[Address], bool]) -> None:
        """Raises `HandshakeRefused` if this end's own connection to that member is to win."""
        peer = greeting.member
        if peer < me:
            return
        link = self.by_uid.get(peer.uid)
        young = link is not None and link.connected and link.dialled and now < link.settled_at
        if young or is_dialling(peer.address):
            raise HandshakeRefused("duplicate", "both ends dialled, the lower uid's connection wins")

    def admit(self, me: Member, greeting: Greeting, now: float) -> Meeting:
        """Accept a dialler: its link resumes or begins."""
        link = self._link_to(greeting.member)
        resumed = link.resumes(greeting.epoch, greeting.peer, greeting.received)
        confirmed: list[Message] = []
        failed: list[Waiter] = []
        if resumed:
            confirmed = link.resume(greeting.received)
        else:
            failed = link.begin(self._entropy(EPOCH_BYTES), greeting.fresh)
        link.dialled, link.settled_at = False, now + _SETTLED_AFTER_S
        assert link.epoch is not None
        answer = Answer(me, greeting.version, resumed, link.epoch, (link.received[0], link.received[1]))
        return Meeting(link, resumed, confirmed, failed, encode_answer(me, self._cluster, answer))

    def conclude(self, offer: Offer, address: Address, answer: Answer, now: float) -> Meeting:
        """The acceptor answered. Raises `RemoteError` when it resumes what this end no longer has."""
        link = self._link_to(answer.member)
        if address != answer.member.address:
            if len(self._uid_at) >= _ALIASES_MAX:
                del self._uid_at[next(iter(self._uid_at))]
            self._uid_at[address] = answer.member.uid
        confirmed: list[Message] = []
        failed: list[Waiter] = []
        if answer.resume:
            if not link.resumes(answer.epoch, offer.epoch, answer.received):
                raise RemoteError("resumes a link that has ended here meanwhile")
            confirmed = link.resume(answer.received)
        else:
            failed = link.begin(offer.fresh, answer.epoch)
        link.dialled, link.settled_at = True, now + _SETTLED_AFTER_S
        return Meeting(link, answer.resume, confirmed, failed)

    def _link_to(self, member: Member) -> Link:
        link = self.by_uid.get(member.uid)
        if link is None:
            link = self.by_uid[member.uid] = Link(member, **self._bounds)
        else:
            link.member = member
        return link
