"""What a session manager decides, without I/O: messages and ticks in, effects out.

Puts the parts together: the `Replica` merges, `AntiEntropy` compares, `Lookups` ask, `Expiry` ends, and the `Placement`
says who. Application threads do not come here (they commit through `base.py` straight into the replica); everything
a peer says does. Guarded by the manager's lock; times are ms of our monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..membership.channel import Message, Waiter
from ..membership.effects import Effect, Send
from ..membership.errors import RemoteError
from ..membership.member import PROTOCOL_MIN
from ..membership.view import View, ViewChanged
from . import messages as m
from .antientropy import AntiEntropy
from .budget import Budget
from .changes import check_deltas
from .comparing import Comparing
from .dialogue import Dialogue, Reader
from .digests import Digests
from .entry import Ended, Entry, InUse, Outcome, is_whole
from .expiry import Expiry
from .finding import Finding
from .freshness import Freshness
from .heads import LIVE, Head, Ours
from .moving import Moving
from .near import NearCache
from .notices import Notices
from .packing import Packing
from .passivating import Passivating
from .placement import Strategy, Uids, gather
from .principals import Epoch, Logins
from .record import Record
from .renewal import Renewals
from .replica import Replica
from .settings import ManagerSettings
from .sharing import Sharing
from .telling import Telling

__all__ = ["SessionCore"]

_LONG_AGO_MS = -(2**50)
_TICK_MS = 1000  # at the latest: a missing tick is how a request notices that this process was asleep
_WANTED_MAX, _WANT_AGAIN_MS = 4096, 1000  # fetches under way


class SessionCore:
    def __init__(
        self, me: bytes, name: str, settings: ManagerSettings, strategy: Strategy, view: View, asleep_ms: int, now_ms: int, epochs: Mapping[bytes, Epoch]
    ) -> None:
        self.me = me
        self.settings = settings
        self._strategy = strategy
        self.placement = strategy(view, me)
        self.say = m.Speaker(name)
        self.replica = Replica(me)
        self.in_use = InUse()  #: open requests by key
        self.eternal = False  #: no session of this manager ever ends, whatever a peer says
        self.budget = Budget(self.replica, settings.memory_max_bytes, settings.tombstones_max)
        near = NearCache(settings.near_cache_max)
        self._sharing = Sharing(me, near, self.placement)
        self.digests = Digests(self.replica, int(settings.retention_s * 1000), self._sharing.sharers)
        self.entropy = AntiEntropy(me, self.say, self.replica, self.digests, self._sharing.common)
        self.logins = Logins(settings.realm(name), self.replica, epochs, settings, self.placement, lambda: self.in_sync)
        self.expiry = Expiry(me, self.say, self.replica, settings, self.in_use, self.logins)
        self.moving = Moving(
            me, self.say, self.replica, self.entropy, near, self.placement, settings, lambda key: key in self.in_use or self.lookups.is_pending(key)
        )
        self.entropy.doubts = self.moving.doubts
        self.passivating = Passivating(me, self.say, self.replica, self.moving, settings, lambda key: key in self.in_use or self.lookups.is_pending(key))
        self._wanted: dict[bytes, int] = {}  # key -> when it may be asked for again
        self._doubt_until_ms = 0  # an unannounced loss: an absent session may exist
        self._slept, self._sleeps = False, 0  # sessions here may have ended meanwhile; how often that was noticed
        self._cut: set[bytes] = set()  # members whose link is down: what they do we do not hear
        self.freshness = Freshness(self.say, self.replica, self._cut, int(settings.read_your_writes_wait_s * 1000))
        ms = int(settings.lookup_timeout_s * 1000)
        self.finding = Finding(
            me, self.say, self.replica, self.entropy, ms, self.freshness, self.moving, self._cut, self.sure, self.awake, self.servable, self.logins, now_ms
        )
        self.lookups = self.finding.lookups
        self.telling = Telling(self.replica)
        self.renewals = Renewals(me, self.say, self.replica)
        self.notices = Notices(me, self.say, self.replica, self.placement, max(10_000, 3 * asleep_ms))
        self.packing = Packing(self.replica, int(settings.pack_after_s * 1000), now_ms)
        self.comparing = Comparing(me, self.entropy, self.digests, int(settings.reconcile_period_s * 1000), now_ms)
        self._asleep_ms, self._tick_ms = asleep_ms, min(_TICK_MS, asleep_ms * 2 // 3)
        self._ticked_ms = now_ms
        self._readers: dict[int, Reader] = {
            **Dialogue(self.entropy, self._version, self._check_sync).readers,
            m.DELTAS: self._deltas, m.RECORDS: self._records, m.TOUCHES: self._touches, m.HEADS: self._heads,
            m.LOOKUP: self._lookup, m.ANSWER: self._answer, m.ASK: self._ask, m.ACCESS: self._access,
            m.CHECK: self.moving.check, m.CHECKED: self.moving.checked, m.CHANGED: self.moving.changed, m.ENDS: self.notices.received, m.STORED: self.passivating.received,
        }  # fmt: skip

    # -- what is known

    @property
    def in_sync(self) -> bool:
        """Reconciled with every other member since the link to it began."""
        synced = self.entropy.in_sync
        return all(uid in synced for uid in self.placement.peers())

    def sure(self, now_ms: int) -> bool:
        """A session that is not here does not exist, as far as anybody can know."""
        awake = now_ms - self._ticked_ms <= self._asleep_ms or not self.placement.peers()  # not told of what was made while we stood still
        return awake and now_ms >= self._doubt_until_ms and not self._cut and self.in_sync

    def awake(self, now_ms: int) -> bool:
        """What is here has not ended or changed while we stood still (and the reactor may not have noticed yet that we did)."""
        return not self._slept and now_ms - self._ticked_ms <= self._asleep_ms

    def sleeps(self, now_ms: int) -> int:
        """How often this process stood still for so long that others may have taken it for dead, with the time that it has not noticed yet. Grows: they may have acted without it."""
        return self._sleeps + (now_ms - self._ticked_ms > self._asleep_ms)

    def trusted(self, key: bytes, now_ms: int) -> tuple[Entry | None, bool]:
        """(live session here or None, whether that may be served or called gone without asking anybody)."""
        entry = self.replica.get(key)
        if entry is None:
            return None, (self.placement.everywhere or not self.placement.peers()) and self.sure(now_ms)
        if entry.head is not None and entry.head.state != LIVE:
            return None, True
        if entry.principal is not None:
            if self.logins.is_over(key, entry):
                return None, True
            if not self.logins.epochs_are_known():
                return entry, False
        if not is_whole(entry):
            return None, False
        if not self.placement.peers():  # there is nobody to ask, who may have been lost with a later use of it
            over = self.expiry.is_over(key, entry, now_ms)
            return (None if over else entry), not over or self.sure(now_ms)
        if not self.awake(now_ms):
            return entry, False
        here = self.moving.near.use(key) if key in self.moving.near else self.placement.serves(key, entry.primary)
        return entry, here and not self.expiry.is_over(key, entry, now_ms) and not self.finding.must_ask(key, now_ms)

    def servable(self, key: bytes, now_ms: int) -> Entry | None:
        """What to serve once the keepers have been asked."""
        entry = self.replica.get(key)
        if entry is None or entry.body is None or not is_whole(entry) or self.expiry.is_over(key, entry, now_ms):
            return None
        if entry.principal is not None and not self.logins.epochs_are_known():
            return None  # its login may be over
        return entry

    def remaining(self) -> tuple[int, int]:
        """Of a member that parts from all it has; see `Handover.remaining`."""
        return (0, self.replica.live) if self.placement.everywhere else self.moving.handover.remaining(self.placement)

    # -- inputs

    def receive(self, now_ms: int, peer: bytes, message: list[Any], offset_ms: int) -> list[Effect]:
        """One message of a member. Raises `RemoteError`; then nothing of it was applied."""
        reader = self._readers.get(message[1])
        if reader is None:
            return []  # a newer peer's optional operation
        if len(message) < 3 and message[1] != m.OFFER:
            raise RemoteError("message too short")

        def ours(ms: int) -> int:
            """A peer's time in our clock: never in the future (nothing lives for ever by a wrong clock), never absurdly long ago."""
            return max(_LONG_AGO_MS, min(ms + offset_ms, now_ms))

        effects = reader(now_ms, peer, message, ours)
        if self.freshness.pending or self.freshness.silent:
            effects = [*effects, *self.freshness.heard(peer, message)]
        if self.replica.fresh:
            self.settle_fresh(now_ms)
        if self.renewals.late:
            effects = [*effects, *self.renewals.bring(self.placement)]
        return effects + self.moving.tell_readers()

    def settle_fresh(self, now_ms: int) -> None:
        """Schedule the ends of what is new."""
        fresh, self.replica.fresh = self.replica.fresh, []
        for key in fresh:
            self.renewals.note(key)
            self.expiry.look_soon(self.logins.note(key), now_ms)
            self.expiry.schedule(key, now_ms)
        self.replica.forget_over(self.budget.tombstones_max)

    def _deltas(self, now_ms: int, peer: bytes, message: list[Any], ours: Ours) -> list[Effect]:
        origin = message[2]
        if origin != peer or len(message) < 4:
            raise RemoteError("deltas: not the sender's own")
        check_deltas(message[3])
        outcome = Outcome()
        before = self.telling.before_deltas(message[3])
        self.replica.merge_deltas(origin, message[3], ours, outcome)
        self.telling.after(before)
        self.renewals.deltas(message[3], peer)
        effects = self._settle(peer, outcome, now_ms) if outcome else []
        effects += self._spread(self.moving.pruned(message[3]))
        if not self.placement.everywhere or self.moving.watchers:
            self.moving.merged([delta[0] for delta in message[3]], peer, now_ms)
            effects += self.moving.forward(peer, message[3])
        return effects

    def _records(self, now_ms: int, peer: bytes, message: list[Any], ours: Ours) -> list[Effect]:
        sessions = m.read_records(message[2], ours)
        self._check_eternal(session.head for session in sessions)
        records = [Record.unpack(session.body) if session.body is not None else None for session in sessions]  # all, before any is merged
        outcome = Outcome()
        before = self.telling.before_records(session.key for session in sessions if self.moving.is_held(session))
        led = self.moving.primaries(session.key for session in sessions)
        new = {session.key for session in sessions if session.body is not None and ((entry := self.replica.get(session.key)) is None or entry.body is None)}
        for session, record in zip(sessions, records, strict=True):
            self._wanted.pop(session.key, None)
            self.replica.merge_record(session.key, session.head, session.created_ms, session.touches, session.body, record, outcome)
        self.telling.after(before)
        self.renewals.records(sessions, records, peer)
        self.finding.shown(peer, (session.key for session in sessions if session.body is not None and not session.doubtful))
        heads = [(session.key, session.head) for session in sessions if session.head is not None]
        effects = self._settle(peer, outcome, now_ms) + self.moving.displaced(led, peer, heads) + self.moving.pass_on(sessions, outcome.grown, peer)
        doubtful = {session.key for session in sessions if session.doubtful}
        return effects + self.moving.came([session.key for session in sessions], new, doubtful, peer, now_ms)

    def _touches(self, now_ms: int, peer: bytes, message: list[Any], ours: Ours) -> list[Effect]:
        outcome = Outcome()
        for key, counter, ms in m.read_touches(message[2], ours):
            self.replica.touch(key, peer, counter, ms, outcome)
        return self._settle(peer, outcome, now_ms)

    def _heads(self, now_ms: int, peer: bytes, message: list[Any], ours: Ours) -> list[Effect]:
        outcome = Outcome()
        heads = m.read_heads(message[2], ours)
        self._check_eternal(head for _, head in heads)
        led = self.moving.primaries(key for key, _ in heads)
        for key, head in heads:
            self.replica.merge_head(key, head, outcome)
        outcome.wants = [key for key in outcome.wants if self.moving.needs_record(key)]
        effects = self._settle(peer, outcome, now_ms) + self.moving.displaced(led, peer, heads)
        effects += self.moving.deposed(key for key, old in led.items() if old == self.me)
        self.moving.merged([key for key, _ in heads], peer, now_ms)
        return effects

    def _check_eternal(self, heads: Iterable[Head | None]) -> None:
        if self.eternal and any(head is not None and head.state != LIVE for head in heads):
            raise RemoteError("an end of what never ends")

    def _settle(self, peer: bytes, outcome: Outcome, now_ms: int) -> list[Effect]:
        """What a merge left open: fetch, tell, or send to all."""
        effects: list[Effect] = []
        wants = []
        for key in dict.fromkeys(outcome.wants):
            if now_ms >= self._wanted.get(key, 0) and (len(self._wanted) < _WANTED_MAX or key in self._wanted):
                self._wanted[key] = now_ms + _WANT_AGAIN_MS
                wants.append(key)
        effects += [Send((peer,), self.say.want(part)) for part in m.parts(wants)]
        if outcome.tells:
            effects += self.entropy.records(peer, list(dict.fromkeys(outcome.tells)))
        if outcome.spreads:
            effects += self._spread(list(dict.fromkeys(outcome.spreads)), peer)
        return effects

    def _spread(self, keys: Sequence[bytes], giver: bytes = b"") -> list[Effect]:
        """Everybody who should know of the session gets all of it, and so does who gave occasion to it: that may hold an end that does not stand."""
        told: list[tuple[Uids, bytes]] = []
        for key in keys:
            groups = self.placement.heads(key, self.replica.primary_of(key))
            told += ((group, key) for group in groups)
            if giver and not any(giver in group for group in groups):
                told.append(((giver,), key))
        return [Send(group, message) for group, some in gather(told) for message in self.entropy.messages(some)]

    def _version(self, uid: bytes) -> int:
        """The protocol of the link with this member."""
        member = self.placement.view.by_uid.get(uid)
        return member.version if member is not None else PROTOCOL_MIN

    def _reconcile(self, uid: bytes, now_ms: int) -> list[Effect]:
        return list(self.entropy.begin(uid, self._version(uid), now_ms))

    def _check_sync(self) -> None:
        if not self.in_sync:
            return
        self._slept = False
        if self.placement.everywhere:
            self.moving.near.clear()  # of when this member held nothing; whatever they lacked has come

    def _lookup(self, now_ms: int, peer: bytes, message: list[Any], ours: Ours) -> list[Effect]:
        return self.finding.asked(peer, m.read_lookup(message), now_ms)

    def _answer(self, now_ms: int, peer: bytes, message: list[Any], ours: Ours) -> list[Effect]:
        return self.finding.answered(peer, *m.read_answer(message), now_ms)

    def _ask(self, now_ms: int, peer: bytes, message: list[Any], ours: Ours) -> list[Effect]:
        return [Send((peer,), self.say.access(self.expiry.asked_for(m.read_keys(message[2], "ask"))))]

    def _access(self, now_ms: int, peer: bytes, message: list[Any], ours: Ours) -> list[Effect]:
        outcome = Outcome()
        effects = self.expiry.answered(peer, m.read_access(message[2], ours), now_ms, outcome)
        return self.ended(effects) + self._settle(peer, outcome, now_ms)

    def ended(self, effects: Sequence[Effect]) -> list[Effect]:
        """Turn what expired into one message of heads for each group."""
        over = [effect for effect in effects if isinstance(effect, Ended)]
        self.moving.watchers.changed(effect.key for effect in over)
        told = gather((group, (effect.key, effect.head)) for effect in over for group in self.placement.heads(effect.key, effect.head.primary))
        rest = [effect for effect in effects if not isinstance(effect, Ended)]
        return rest + [Send(group, self.say.heads(part)) for group, heads in told for part in m.parts(heads)]

    def link_opened(self, now_ms: int, peer: bytes, resumed: bool) -> list[Effect]:
        self._cut.discard(peer)
        if resumed and not self._slept:
            return []
        self.entropy.forget(peer)
        self.moving.relinked(peer, now_ms)
        return self._reconcile(peer, now_ms) if peer in self.placement.peers() else []

    def link_lost(self, now_ms: int, peer: bytes) -> list[Effect]:
        if peer in self.placement.peers():
            self._cut.add(peer)
        self.moving.unlinked(peer, now_ms)
        self.entropy.lost(peer, now_ms)
        return self.lookups.cut(peer, now_ms) + self.freshness.lost(peer, left=False)

    def view_changed(self, now_ms: int, change: ViewChanged) -> list[Effect]:
        """Members came or went. A loss without a farewell casts doubt, and the survivors compare what each heard of it."""
        before, self.placement = self.placement, self._strategy(change.after, self.me)
        self.moving.placement = self._sharing.placement = self.logins.placement = self.placement
        told = self.notices.view_changed(change, self.placement, now_ms)
        if change.moves_nothing:
            return told
        healing = any(self.entropy.has_met(member.uid) for member in (*change.appeared, *change.disappeared) if member.uid not in change.clean)
        if self.placement.everywhere:
            self.moving.handover.clear()  # all that is here is in its place
        else:
            self.moving.handover.view_changed(now_ms, change, before, self.placement, self._strategy(change.after.without(self.me), self.me), healing)
        if not self.placement.uniform:
            self.comparing.hurry(now_ms, healing)
        effects: list[Effect] = [*told]
        peers = self.placement.peers()
        self.digests.placed(self._sharing.sharers)
        self._cut.intersection_update(peers)
        for member in change.disappeared:
            self.entropy.forget(member.uid)
            self.expiry.lost(member.uid)
            self.moving.left(member.uid, now_ms)
            effects += self.lookups.cut(member.uid, now_ms) + self.freshness.lost(member.uid, left=True)
        lost = [member for member in change.disappeared if member.uid not in change.clean] if before.peers() else []
        if lost or (change.disappeared and not self.placement.everywhere):  # new keepers may not know yet what they have to know
            self._doubt_until_ms = now_ms + int(self.settings.unknown_for_s * 1000)
        effects += [effect for key in self.renewals.left_by(lost, self.placement) for effect in self.finding.ask(key, now_ms)]
        new = {member.uid for member in change.appeared}
        holds = {uid for uid in change.after.by_uid if uid in before.view and before.is_lite(uid) and not self.placement.is_lite(uid)}
        for uid in peers:
            if uid in holds or self.me in holds:  # it had no weight, and holds sessions from now on
                effects += self.entropy.doubt(uid, self._version(uid), now_ms)
            elif uid in new or lost:  # of a loss each tells the other: what came from the lost until now is compared
                effects += self._reconcile(uid, now_ms)
        self._check_sync()
        return effects

    def slept(self, now_ms: int) -> list[Effect]:
        """This process stood still longer than it should: what it holds may be out of date until it has compared."""
        self._slept = True
        effects: list[Effect] = []
        for uid in self.placement.peers():
            effects += self.entropy.doubt(uid, self._version(uid), now_ms)
        self._check_sync()
        return effects

    def refill(self, keys: list[bytes], waiters: Sequence[Waiter]) -> list[Message]:
        """The current state of sessions that an outbox dropped."""
        return self.entropy.messages(keys, waiters)

    # -- time

    def tick(self, now_ms: int) -> list[Effect]:
        sleeps = self._sleeps
        self._sleeps, self._ticked_ms = self.sleeps(now_ms), now_ms  # at once: threads ask for both
        effects = self.slept(now_ms) if self._sleeps > sleeps and not self._slept else []
        effects += self.ended(self.expiry.tick(now_ms, self.placement)) + self.notices.tick(now_ms)
        if self.replica.fresh:
            self.settle_fresh(now_ms)
        effects += self.renewals.tick(now_ms, self.placement) + self.renewals.bring(self.placement)
        if not self.placement.everywhere:
            self.moving.near.most = 0 if self.budget.is_full else self.settings.near_cache_max
            moved, recover = self.moving.tick(now_ms)
            effects += moved
            effects += [effect for key, peers in recover for effect in self.finding.recover(key, peers, now_ms)]
        if now_ms >= self.comparing.due_ms:
            effects += self.comparing.begin(now_ms, ((uid, self._version(uid)) for uid in self.placement.peers()))
        if self.packing.tick(now_ms):
            self._wanted = {key: again for key, again in self._wanted.items() if again > now_ms}
        effects += [effect for key in self.packing.take_parts() for effect in self.finding.ask(key, now_ms)]
        effects += self.lookups.tick(now_ms) + self.freshness.tick(now_ms)  # last: nothing is dropped between an answer and its use
        return effects + self.moving.tell_readers()

    @property
    def deadline_ms(self) -> int:
        parts = (self.lookups, self.freshness, self.expiry, self.moving.handover, self.notices)
        times = (part.deadline_ms for part in parts)
        return min([self.packing.deadline_ms, self.comparing.due_ms, self._ticked_ms + self._tick_ms, *(t for t in times if t is not None)])
