"""From hints and proofs to views: the whole of membership, without I/O.

Multicast is a hint, TCP the proof. A heartbeat, a discovery or another member's word can only cause a dial; who finished
the authenticated handshake (`linked`) is a member, until the detector says it is gone, its farewell comes, or another
incarnation links from the same address. Each real change makes one `ViewChanged` (own domain) and one
`EveryoneChanged` (the whole group).

Nobody has to be told often: whoever meets a newcomer gives it the list of all members and tells a few others of it, those that are nearest to it by
the XOR of the uids (Maymounkov & Mazieres, Kademlia, 2002), so that all who meet it tell the same; in a large group only its nearest give the list. Every
`seed_retry_s` one member drawn by lot gets the list again, and one address that was lost without farewell is dialled
again. That is constant work for each member, whatever the size, and it heals a partition even where nothing but links tells members of
each other.

A tick that comes two heartbeats late means that *we* slept (a stopped process, a paused machine): the heartbeats of the
others wait unread in the socket, so nobody is judged before they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from random import Random
from typing import Any

from .channel import Waiter
from .detector import Detector, Gone
from .dialling import Dialler
from .domains import own_domain
from .effects import Close, Effect, Notify, Send
from .errors import LocalError, RemoteError
from .member import Member
from .messages import KNOWN_MAX, Announcement, Farewell, Heartbeat, Known, decode_control, to_message
from .networks import in_networks
from .settings import MembershipSettings
from .view import View, ViewChanged

__all__ = ["Beat", "EveryoneChanged", "Group", "Slept", "Stopped"]

_LEFT_MAX = 1024  # incarnations remembered as left; one is forgotten long after its last datagram has arrived
_FEW, _TOLD, _TELLERS = 8, 4, 64  # a newcomer is made known to four (to all, of eight), and 64 tell it of all the others
_LOST_S = 86400.0  # an address lost without farewell is tried for a day, as long as tombstones last


@dataclass(frozen=True, slots=True)
class Beat:
    """Effect: send this heartbeat datagram (not sealed yet) to the group."""

    datagram: bytes


@dataclass(frozen=True, slots=True)
class EveryoneChanged:
    """As `ViewChanged`, for the members of all domains (console, balancer)."""

    before: View
    after: View
    clean: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True)
class Slept:
    """This process did not run for about so many seconds; what it holds may be out of date."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Stopped:
    """The farewell had its time; links may close."""


class Group:
    """Core. `me`: this process. `cluster`: heartbeats of other clusters on the same group are ignored."""

    def __init__(self, me: Member, settings: MembershipSettings, cluster: str, rng: Random) -> None:
        self.me = me
        self._settings = settings
        self._cluster = cluster
        self._rng = rng
        self._interval_s = settings.heartbeat_interval_s
        self._heartbeat = Heartbeat.of(me, cluster).encode()
        self._detector = Detector(settings, rng)
        self._dialler = Dialler()
        self._members: dict[bytes, Member] = {}  # all domains, without me
        self._left: dict[bytes, None] = {}  # said farewell: that incarnation never comes back
        self._lost: dict[tuple[str, int], float] = {}  # address without farewell -> when to give it up
        self._beat_at: float | None = None  # None: at once
        self._remind_at = 0.0
        self._stop_at: float | None = None
        self._stopping = False
        self.view = View.of(1, [me])  #: my domain, with me
        self.everyone = View.of(1, [me])  #: all domains, with me
        self._counts = dict.fromkeys(
            ("heartbeats", "foreign", "refused", "outside", "appeared", "disappeared", "farewells", "replaced", "expelled", "slept"), 0
        )

    # -- hints

    def heard(self, now: float, heartbeat: Heartbeat) -> list[Effect]:
        """A datagram, so only a hint, whoever seems to have sent it."""
        if self._stopping or heartbeat.uid == self.me.uid:
            return []
        if heartbeat.cluster != self._cluster:
            self._counts["foreign"] += 1
            return []
        self._counts["heartbeats"] += 1
        if heartbeat.uid in self._members:
            return self._detector.heard(now, heartbeat.uid)
        self._hint(now, (heartbeat.host, heartbeat.port), heartbeat.uid)
        return self._dial(now)

    def found(self, now: float, host: str, port: int) -> list[Effect]:
        """A discovery knows of an address."""
        if self._stopping:
            return []
        self._hint(now, (host, port))
        return self._dial(now)

    def _hint(self, now: float, address: tuple[str, int], uid: bytes = b"") -> None:
        if address == self.me.address or self._is_needless(address, uid):
            return
        if uid and not self._may_be_at(address[0]):  # somebody else's word; without a uid it is the operator's
            self._counts["outside"] += 1
            return
        self._dialler.hint(now, address, uid)

    def _may_be_at(self, host: str) -> bool:
        return in_networks(host, self._settings.allowed_networks)

    def _dial(self, now: float) -> list[Effect]:
        return list(self._dialler.take(now, self._is_needless))

    def _is_needless(self, address: tuple[str, int], uid: bytes) -> bool:
        """Whether a dial there would meet somebody we have: this uid, or, if it is not known who is there, anybody."""
        if uid:
            return uid in self._members or uid in self._left or uid == self.me.uid
        return any(member.address == address for member in self._members.values())

    # -- links

    def linked(self, now: float, member: Member) -> list[Effect]:
        """The authenticated handshake with this process is done."""
        if self._stopping or member.uid == self.me.uid:
            return []
        known = self._members.get(member.uid)
        older = sorted(other.uid for other in self._members.values() if other.address == member.address and other.uid != member.uid)
        if known is None and (member.uid in self._left or len(self._members) - len(older) + 1 >= self._settings.members_max):
            self._counts["refused"] += 1
            return [Close(member.uid, "it said farewell" if member.uid in self._left else f"the group is full (members_max = {self._settings.members_max})")]
        if known is None and not self._may_be_at(member.host):
            self._counts["outside"] += 1
            return [Close(member.uid, f"its address {member.host} is in none of membership.allowed_networks")]
        effects: list[Effect] = []
        for uid in older:
            self._counts["replaced"] += 1
            effects += self._remove(now, uid, "another incarnation has its address")
        if known is None:
            self._counts["appeared"] += 1
            self._detector.add(now, member)
        changed = known is None or _announces_else(known, member)
        if changed:
            self._members[member.uid] = member
            self._detector.renew(member)
        self._lost.pop(member.address, None)
        effects += self._detector.linked(now, member.uid)
        if changed or older:
            effects += self._publish()
        if self._is_teller(member.uid):
            effects += self._tell((member.uid,), [other for other in self._members.values() if other.uid != member.uid])
        if known is None:
            reached = [uid for uid in sorted(self._members) if uid != member.uid and self._detector.is_linked(uid)]
            effects += self._tell(reached if len(reached) <= _FEW else nsmallest(_TOLD, reached, key=_distance(member.uid)), [member])
        return effects

    def _is_teller(self, newcomer: bytes) -> bool:
        """Whether it is ours to tell this member of all the others."""
        if len(self._members) <= _TELLERS:
            return True
        distance = _distance(newcomer)
        mine = distance(self.me.uid)
        return sum(distance(uid) < mine for uid in self._members if uid != newcomer) < _TELLERS

    def traffic(self, now: float, uid: bytes) -> None:
        """Any frame from it. The hot path; whatever follows from it follows at the next tick."""
        self._detector.alive(now, uid)

    def unlinked(self, now: float, uid: bytes, refused: bool) -> list[Effect]:
        """Its connection is gone. `refused`: and the redial found nobody listening."""
        if self._stopping or uid not in self._members:
            return []
        return self._settle(now, self._detector.unlinked(now, uid, refused))

    def received(self, now: float, uid: bytes, message: list[Any]) -> list[Effect]:
        """A control message over the link of `uid`. Raises `RemoteError` if it is malformed."""
        control = decode_control(message)
        if self._stopping or uid not in self._members:
            return []
        self._detector.alive(now, uid)
        match control:
            case Known(members):
                return self._known(now, members)
            case Farewell():
                return self._farewell(now, uid)
            case Announcement(member):
                return self._announced(uid, member)
        return self._settle(now, self._detector.received(now, uid, control))

    def _known(self, now: float, members: Iterable[tuple[bytes, str, int]]) -> list[Effect]:
        for uid, host, port in members:
            self._hint(now, (host, port), uid)
        return self._dial(now)

    def _farewell(self, now: float, uid: bytes) -> list[Effect]:
        self._counts["farewells"] += 1
        if len(self._left) >= _LEFT_MAX:
            del self._left[next(iter(self._left))]
        self._left[uid] = None
        address = self._members[uid].address
        effects = self._remove(now, uid, "farewell")
        self._lost.pop(address, None)
        return self._publish(frozenset((uid,))) + effects

    def _announced(self, uid: bytes, member: Member) -> list[Effect]:
        before = self._members[uid]
        if (member.uid, member.name, member.address, member.domain, member.versions) != (uid, before.name, before.address, before.domain, before.versions):
            raise RemoteError("membership: a member announced another identity")
        if not _announces_else(before, member):
            return []
        self._members[uid] = member
        self._detector.renew(member)
        return self._publish()

    def expel(self, now: float, uid: bytes) -> list[Effect]:
        """This member must not be one any more, whatever it says and however well it answers."""
        if self._stopping or uid not in self._members:
            return []
        self._counts["expelled"] += 1
        closes = self._remove(now, uid, "it is admitted no more")
        return self._publish() + closes

    # -- me

    def announce(self, member: Member) -> list[Effect]:
        """My own announcement becomes `member` (same identity). Raises `LocalError` for another identity."""
        if (member.uid, member.name, member.address, member.domain) != (self.me.uid, self.me.name, self.me.address, self.me.domain):
            raise LocalError("a member may announce another payload, weight or label, but stays who and where it is")
        if self._stopping or not _announces_else(self.me, member):
            return []
        self.me = member
        tell: list[Effect] = [Send(tuple(sorted(self._members)), to_message(Announcement(member)))] if self._members else []
        return tell + self._publish()

    def stop(self, now: float, waiters: Sequence[Waiter] = ()) -> list[Effect]:
        """Say farewell to all. From now on every input is ignored; after `probe_timeout_s` a tick gives `Stopped`."""
        if self._stopping:
            return []
        self._stopping = True
        self._stop_at = now + self._settings.probe_timeout_s
        return [Send(tuple(sorted(self._members)), to_message(Farewell(), tuple(waiters)))] if self._members else []

    # -- time

    def tick(self, now: float) -> list[Effect]:
        if self._stopping:
            over = self._stop_at is not None and self._stop_at <= now
            self._stop_at = None if over else self._stop_at
            return [Notify(Stopped())] if over else []
        effects: list[Effect] = []
        beat = self._beat_at is None or self._beat_at <= now
        if self._beat_at is not None and self._beat_at + 2 * self._interval_s <= now:
            self._counts["slept"] += 1
            self._detector.slept(now)
            effects.append(Notify(Slept(now - self._beat_at)))
        else:
            effects += self._settle(now, self._detector.tick(now, beat))
        if beat:
            self._beat_at = now + self._interval_s
            effects.append(Beat(self._heartbeat))
            if self._remind_at <= now:
                self._remind_at = now + self._settings.seed_retry_s
                effects += self._remind(now)
        return effects + self._dial(now)

    def deadline(self) -> float | None:
        """Before the first tick: 0, at once. After `stop`: the end of the farewell, then None."""
        if self._stopping:
            return self._stop_at
        if self._beat_at is None:
            return 0.0
        return min(at for at in (self._beat_at, self._detector.deadline(), self._dialler.deadline()) if at is not None)

    def _remind(self, now: float) -> list[Effect]:
        """Slow gossip: the list to one member, a dial to one lost address."""
        for address in [address for address, until in self._lost.items() if until <= now]:
            del self._lost[address]
        if self._lost:
            self._hint(now, self._rng.choice(sorted(self._lost)))
        reachable = [uid for uid in sorted(self._members) if self._detector.is_linked(uid)]
        if not reachable:
            return []
        lucky = self._rng.choice(reachable)
        return self._tell((lucky,), [member for member in self._members.values() if member.uid != lucky])

    # -- statistics and the rest

    def statistics(self) -> dict[str, int]:
        detector = self._detector
        return {
            **self._counts, "members": len(self.everyone), "hints_dropped": self._dialler.dropped, "probes": detector.probes,
            "suspicions": detector.suspicions, "cleared": detector.cleared, "refusals": detector.refusals,
        }  # fmt: skip

    def _settle(self, now: float, effects: Iterable[Effect]) -> list[Effect]:
        """The detector's effects, its judgements carried out: all that are gone make one view change, and then their links close."""
        settled: list[Effect] = []
        closes: list[Effect] = []
        for effect in effects:
            if isinstance(effect, Gone):
                closes += self._remove(now, effect.uid, "it does not answer, and nobody asked reaches it")
            else:
                settled.append(effect)
        return settled + self._publish() + closes if closes else settled

    def _remove(self, now: float, uid: bytes, reason: str) -> list[Effect]:
        member = self._members.pop(uid)
        self._detector.remove(uid)
        self._counts["disappeared"] += 1
        if len(self._lost) < self._settings.members_max:
            self._lost[member.address] = now + _LOST_S
        return [Close(uid, reason)]

    def _publish(self, clean: frozenset[bytes] = frozenset()) -> list[Effect]:
        """Called once after each real change."""
        everyone = View.of(self.everyone.number + 1, [self.me, *self._members.values()])
        effects: list[Effect] = []
        own = own_domain(self.me, everyone)
        if len(own) != len(self.view) or any(now is not then for now, then in zip(own, self.view, strict=True)):
            before, self.view = self.view, View(self.view.number + 1, own)
            effects.append(Notify(ViewChanged(before, self.view, clean & before.by_uid.keys())))
        before, self.everyone = self.everyone, everyone
        return [*effects, Notify(EveryoneChanged(before, everyone, clean))]

    def _tell(self, to: Sequence[bytes], about: Iterable[Member]) -> list[Effect]:
        entries = [(member.uid, member.host, member.port) for member in sorted(about)]
        if not to:
            return []
        return [Send(tuple(to), to_message(Known(tuple(entries[at : at + KNOWN_MAX])))) for at in range(0, len(entries), KNOWN_MAX)]


def _distance(uid: bytes) -> Callable[[bytes], int]:
    """From this member to others."""
    place = int.from_bytes(uid, "big")
    return lambda other: place ^ int.from_bytes(other, "big")


def _announces_else(before: Member, after: Member) -> bool:
    return before is not after and before.to_wire() != after.to_wire()
