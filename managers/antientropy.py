"""Reconcile: two members compare what both should hold, and send each other what differs.

One operation for every occasion: a joiner (one side is empty), a member that comes back, a link with a new epoch, a lost
member whose last words reached only some of us. The member with the lower uid leads. Range by range of partitions it
sends its *sums* (`digests.py`), the other names the partitions whose sums *differ*; of those, and only those, it sends its *inventory*
(a digest per session); the other sends the records that differ or are missing there, then says
how far it *covered* and which keys it wants; the leader sends those, and goes on. One range is under way at a time: that
is the flow control, and live deltas pass in between, since merging makes order irrelevant. After the last range the
leader says *synced*, and each counts the other as in sync.

Of two copies that differ nobody knows which is the newer, and mostly it is one of them. So the follower keeps back what has not been used there since the
two were in sync last, and sends it only if the leader's copy, when it has come, turns out to lack something (`_owed`); and the leader does not send back
what, merged, has become the follower's copy.

Where everybody holds everything, the first round with a member goes without sums: mostly one side is empty, and they would be made in
vain. So does every round with a member that speaks protocol 1 only.

Several members lead a joiner at once, each from another place of the circle of partitions, so that the joiner gets each
record about once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

from ..membership.channel import Message
from ..membership.effects import Send
from .changes import KEY_BYTES
from .digests import Digests, digest
from .entry import Entry, is_whole
from .messages import AT_ONCE, Differ, Inventory, Session, Speaker, Sums
from .placement import HEAD, NOTHING, PARTITIONS, WHOLE, partition_of
from .replica import Replica

__all__ = ["SUMS_SINCE", "AntiEntropy"]

SUMS_SINCE = 2  #: the protocol version that knows sums
_RANGE_KEYS = 512  # keys in one inventory, unless one partition has more
_RANGE_BYTES = 256 * 1024  # bytes of records answered to one inventory, unless one partition has more
_MESSAGE_BYTES = 64 * 1024  # bytes of records in one message
_NEVER = -(2**63)
_MET_MAX = 4096  # members remembered to have been in sync with: one that is forgotten costs one round without sums


class _Round:
    """The leader's side with one peer. While `todo` has partitions an inventory is under way, else sums are."""

    __slots__ = ("again", "answered", "by_sums", "counts", "left", "moved", "number", "old", "start", "stop", "todo")

    def __init__(self, number: int, start: int, old: bool, by_sums: bool) -> None:
        self.number = number
        self.start = start  # of what is not compared yet
        self.left = PARTITIONS  # partitions not compared yet, around the circle
        self.todo: list[int] = []  # partitions that differ, and are not covered yet
        self.stop = start  # of the range under way
        self.old = old  # the peer counts tombstones to their end
        self.by_sums = by_sums
        self.again: int | None = None  # another round is to follow, with this protocol version
        self.answered = False
        self.counts = True  # at its end the peer is in sync with us
        self.moved = True  # since the background looked

    def compared(self, stop: int, differing: list[int]) -> None:
        self.left -= stop - self.start
        self.start = stop % PARTITIONS
        self.todo = differing
        self.answered = self.moved = True

    def covered(self, stop: int) -> None:
        del self.todo[: bisect_left(self.todo, stop)]
        self.answered = self.moved = True


class AntiEntropy:
    """A part of the manager's core. Methods return `Send`s.

    `common(peer, key, named primary)`: what both this member and that one must hold of a session (`NOTHING`, `HEAD`, `WHOLE`).
    """

    def __init__(self, me: bytes, speaker: Speaker, replica: Replica, digests: Digests, common: Callable[[bytes, bytes, bytes], int]) -> None:
        self.me = me
        self._common = common
        self._say = speaker
        self._replica = replica
        self._digests = digests
        self._rounds: dict[bytes, _Round] = {}
        self._following: dict[bytes, int] = {}  # the round each leader is in with us
        self._met: dict[bytes, int] = {}  # members we were in sync with, and when that was last
        self._owed: dict[bytes, dict[bytes, bytes]] = {}  # by leader, the digest of its copy of what we have kept back
        self._number = 0
        self.doubts: Callable[[bytes], bool] = lambda key: False  #: whether our copy may be out of date; set by the core
        self.in_sync: set[bytes] = set()
        self.rounds = self.differing = self.records_sent = self.bytes_sent = 0

    def begin(self, peer: bytes, version: int, now_ms: int, stuck: bool = False) -> list[Send]:
        """Reconcile with this member, from the beginning: as the leader, or by asking it to lead. `version`: the protocol of its link.
        `stuck`: whatever is under way does not move any more.
        """
        if self.me > peer:
            return [Send((peer,), self._say.offer())]
        under_way = self._rounds.get(peer)
        if under_way is not None and not stuck:
            under_way.again = version  # after it: a link that crawls is not to be filled with sums, nor are they to be of before the occasion
            return []
        self._number += 1
        self.rounds += 1
        start = int.from_bytes(blake2b(min(self.me, peer) + max(self.me, peer), digest_size=2).digest(), "big") % PARTITIONS
        old = version < SUMS_SINCE
        self._rounds[peer] = _Round(self._number, start, old, not old and (peer in self._met or not self._digests.uniform))
        return self._next(peer, now_ms)

    def has_met(self, peer: bytes) -> bool:
        """Whether it was in sync with us at some time."""
        return peer in self._met

    def is_moving(self, peer: bytes) -> bool:
        """Whether a round with this member has got anywhere since this was asked before."""
        round_ = self._rounds.get(peer)
        if round_ is None:
            return False
        moved, round_.moved = round_.moved, False
        return moved

    def lost(self, peer: bytes, now_ms: int) -> None:
        """The connection of its link is gone, or we slept: if they have to compare, this is until when they were in sync."""
        if peer in self.in_sync:
            self._met[peer] = now_ms

    def forget(self, peer: bytes) -> None:
        """The link to this member began anew, or it left."""
        self._rounds.pop(peer, None)
        self._following.pop(peer, None)
        self._owed.pop(peer, None)
        self.in_sync.discard(peer)

    def doubt(self, peer: bytes, version: int, now_ms: int) -> list[Send]:
        """This process slept: what has been compared until now does not count."""
        self.lost(peer, now_ms)
        self.in_sync.discard(peer)
        self._following.pop(peer, None)
        self._owed.pop(peer, None)
        if peer in self._rounds:
            self._rounds[peer].counts = False
        return self.begin(peer, version, now_ms)

    def offered(self, peer: bytes, version: int, now_ms: int) -> list[Send]:
        """The follower wants a round. One that it has not answered yet will do: offers and answers come on one lane, in order."""
        round_ = self._rounds.get(peer)
        if self.me > peer or (round_ is not None and not round_.answered):
            return []
        return self.begin(peer, version, now_ms)

    def sums(self, peer: bytes, theirs: Sums, now_ms: int) -> list[Send]:
        """The follower's answer to sums."""
        sends = self._pay(peer)
        self._following[peer] = theirs.round
        stop, differing = self._digests.differing(peer, theirs.start, theirs.sums, now_ms)
        return [*sends, Send((peer,), self._say.differ(theirs.round, theirs.start, stop, differing))]

    def differ(self, peer: bytes, theirs: Differ, now_ms: int) -> list[Send]:
        """The leader goes on, with the inventories of what differs."""
        round_ = self._rounds.get(peer)
        if round_ is None or round_.number != theirs.round or round_.todo or theirs.start != round_.start or theirs.stop > round_.stop:
            return []
        self.differing += len(theirs.partitions)
        round_.compared(theirs.stop, theirs.partitions)
        return self._next(peer, now_ms)

    def inventory(self, peer: bytes, theirs: Inventory, now_ms: int) -> list[Send]:
        """The follower's answer to an inventory."""
        sends = self._pay(peer)
        self._following[peer] = theirs.round
        records: list[Session] = []
        wants: list[bytes] = []
        have: list[bytes] = []  # our digests of what is wanted
        owed: dict[bytes, bytes] = {}
        items = theirs.items
        size = 0
        position = theirs.stop
        again = theirs.only is not None
        synced_ms = self._met.get(peer, _NEVER) if again else _NEVER
        for number in range(theirs.start, theirs.stop) if theirs.only is None else theirs.only:
            partition = self._replica.partitions[number]
            if not partition:
                continue
            for key in sorted(partition):
                entry = partition[key]
                depth = self._common(peer, key, entry.primary)
                if depth == NOTHING and key not in items:
                    continue
                session = self._session(key, entry, depth)
                if session is None:
                    continue  # what is not whole here is fetched, if it is whole there
                other = items.pop(key, None)
                if other is None and not self._digests.offers(entry, now_ms, again):
                    continue
                body = session.body
                if other is not None:
                    mine = digest(session.head, body)
                    if other == mine:
                        continue
                    wants.append(key)
                    have.append(mine)
                    if body is not None and entry.last_access_ms < synced_ms:
                        owed[key] = other
                        continue
                records.append(session)
                size += len(body or b"") + 64
            if size >= _RANGE_BYTES:
                position = number + 1
                break
        wants.extend(key for key in items if partition_of(key) < position)
        self._owed[peer] = owed
        sends.extend(self._records(peer, records))
        sends.append(Send((peer,), self._say.covered(theirs.round, position, wants, have if again else None)))
        return sends

    def covered(self, peer: bytes, number: int, stop: int, wants: dict[bytes, bytes | None], now_ms: int) -> list[Send]:
        """The leader goes on. `wants`: keys, with the digest of the follower's copy as far as it told that."""
        round_ = self._rounds.get(peer)
        if round_ is None or round_.number != number or not round_.todo or not round_.todo[0] < stop <= round_.stop:
            return []
        sends = self.records(peer, [key for key, theirs in wants.items() if theirs is None or not self._is(key, theirs)])
        round_.covered(stop)
        return sends + self._next(peer, now_ms)

    def synced(self, peer: bytes, number: int, now_ms: int) -> list[Send]:
        """The leader has finished a round; it counts unless the link began anew, or this process slept, since that began. So may the next one have."""
        if self._following.get(peer) == number:
            del self._following[peer]
            self._is_in_sync(peer, now_ms)
        return self._pay(peer)

    def records(self, peer: bytes, keys: list[bytes]) -> list[Send]:
        """The current state of these keys, as far as it is whole here; the head alone where only that is here."""
        sessions = []
        for key in keys:
            entry = self._replica.get(key)
            if entry is None:
                continue
            alone = entry.body is None and self._common(peer, key, entry.primary) != WHOLE
            session = self._session(key, entry, HEAD if alone else WHOLE)
            if session is not None:
                sessions.append(session)
        return self._records(peer, sessions)

    def messages(self, keys: list[bytes], waiters: Any = ()) -> list[Message]:
        """The same, addressed to nobody yet, and after them what comes behind records; the waiters go with the last message."""
        messages = [send.message for send in self.records(b"", keys)]
        messages += [message for key in keys if (message := self._say.again(key)) is not None]
        if messages:
            messages[-1].waiters = waiters
        return messages

    def _next(self, peer: bytes, now_ms: int) -> list[Send]:
        """The next inventory; when all that differs is covered the next sums; when all is compared the end."""
        round_ = self._rounds[peer]
        if not round_.todo and round_.left:
            end = min(PARTITIONS, round_.start + round_.left)
            if round_.by_sums:
                round_.stop, sums = self._digests.sums(peer, round_.start, end, now_ms)
                return [Send((peer,), self._say.sums(round_.number, round_.start, sums))]
            answered = round_.answered
            round_.compared(end, list(range(round_.start, end)))
            round_.answered = answered
        if round_.todo:
            return [self._inventory(peer, round_, now_ms)]
        del self._rounds[peer]
        if round_.counts:
            self._is_in_sync(peer, now_ms)
        again = [] if round_.again is None else self.begin(peer, round_.again, now_ms)
        return [Send((peer,), self._say.synced(round_.number)), *again]

    def _is_in_sync(self, peer: bytes, now_ms: int) -> None:
        self.in_sync.add(peer)
        if len(self._met) >= _MET_MAX:
            self._met.clear()
        self._met[peer] = now_ms

    def _pay(self, peer: bytes) -> list[Send]:
        """The leader's copies of what was kept back have come: the sessions of which ours has more than those."""
        return self.records(peer, [key for key, theirs in self._owed.pop(peer, {}).items() if not self._is(key, theirs)])

    def _is(self, key: bytes, theirs: bytes) -> bool:
        """Whether our copy has this digest."""
        entry = self._replica.get(key)
        return entry is not None and digest(entry.head, self._replica.body_of(entry)) == theirs

    def _inventory(self, peer: bytes, round_: _Round, now_ms: int) -> Send:
        items: list[tuple[bytes, bytes]] = []
        todo = round_.todo
        taken = 0
        for number in todo:
            taken += 1
            if self._replica.partitions[number]:
                items += self._digests.inventory(peer, number, now_ms, round_.old)
                if len(items) >= _RANGE_KEYS:
                    break
        round_.stop = todo[taken - 1] + 1
        return Send((peer,), self._say.inventory(round_.number, todo[0], round_.stop, items, todo[:taken] if round_.by_sums else None))

    def _session(self, key: bytes, entry: Entry, depth: int) -> Session | None:
        """What is said of it: all, or only its head. None: it is not whole here, or not known well enough."""
        if depth == WHOLE:
            return Session(key, entry.head, entry.created_ms, entry.touches, self._replica.body_of(entry), self.doubts(key)) if is_whole(entry) else None
        return Session(key, entry.head, entry.created_ms, entry.touches, None) if entry.head is not None else None

    def _records(self, peer: bytes, sessions: list[Session]) -> list[Send]:
        sends = []
        batch: list[Session] = []
        size = 0
        for session in sessions:
            batch.append(session)
            size += len(session.body or b"") + KEY_BYTES
            if size >= _MESSAGE_BYTES or len(batch) >= AT_ONCE:
                sends.append(Send((peer,), self._say.records(batch)))
                self.bytes_sent += size
                batch, size = [], 0
        if batch:
            sends.append(Send((peer,), self._say.records(batch)))
            self.bytes_sent += size
        self.records_sent += len(sessions)
        return sends
