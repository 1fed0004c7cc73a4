"""Reconcile: two members compare what both should hold, and send each other what differs.

One operation for every occasion: a joiner (one side is empty), a member that comes back, a link with a new epoch, a lost
member whose last words reached only some of us. The member with the lower uid leads. Range by range of partitions it
sends its *inventory* (a digest per session); the other sends the records that differ or are missing there, then says
how far it *covered* and which keys it wants; the leader sends those, and goes on. One range is under way at a time: that
is the flow control, and live deltas pass in between, since merging makes order irrelevant. After the last range the
leader says *synced*, and each counts the other as in sync.

Several members lead a joiner at once, each from another place of the circle of partitions, so that the joiner gets each
record about once.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from ..membership.channel import Message
from ..membership.effects import Send
from .changes import KEY_BYTES
from .heads import LIVE, Head
from .messages import DIGEST_BYTES, Inventory, Session, Speaker
from .placement import PARTITIONS, partition_of
from .replica import Entry, Replica

__all__ = ["AntiEntropy", "digest"]

_RANGE_KEYS = 512  # keys in one inventory, unless one partition has more
_RANGE_BYTES = 256 * 1024  # bytes of records answered to one inventory, unless one partition has more
_MESSAGE_BYTES = 64 * 1024  # bytes of records in one message


def digest(head: Head | None, body: bytes | None) -> bytes:
    """8 bytes that differ when two copies of a session do. Ages are not part of it."""
    hashed = blake2b(body or b"", digest_size=DIGEST_BYTES)
    if head is not None and head.state != LIVE:
        hashed.update(b"%d %d " % (head.state, head.counter) + head.origin)
    elif head is not None:
        hashed.update(b"%d " % head.counter + head.origin + head.primary)
    return hashed.digest()


class _Round:
    """The leader's side with one peer."""

    __slots__ = ("left", "number", "start", "stop")

    def __init__(self, number: int, start: int) -> None:
        self.number = number
        self.start = start  # of the range under way
        self.stop = start
        self.left = PARTITIONS  # partitions not yet covered


class AntiEntropy:
    """A part of the manager's core. Methods return `Send`s."""

    def __init__(self, me: bytes, speaker: Speaker, replica: Replica) -> None:
        self.me = me
        self._say = speaker
        self._replica = replica
        self._rounds: dict[bytes, _Round] = {}
        self._following: dict[bytes, int] = {}  # the round each leader is in with us
        self._number = 0
        self.in_sync: set[bytes] = set()
        self.rounds = self.records_sent = self.bytes_sent = 0

    def begin(self, peer: bytes) -> list[Send]:
        """Reconcile with this member, from the beginning: as the leader, or by asking it to lead."""
        if self.me > peer:
            return [Send((peer,), self._say.offer())]
        self._number += 1
        self.rounds += 1
        start = int.from_bytes(blake2b(min(self.me, peer) + max(self.me, peer), digest_size=2).digest(), "big") % PARTITIONS
        self._rounds[peer] = _Round(self._number, start)
        return self._next(peer)

    def forget(self, peer: bytes) -> None:
        """The link to this member began anew, or it left."""
        self._rounds.pop(peer, None)
        self._following.pop(peer, None)
        self.in_sync.discard(peer)

    def offered(self, peer: bytes) -> list[Send]:
        """The follower wants a round. One that it has not answered yet will do: offers and answers come on one lane, in order."""
        round_ = self._rounds.get(peer)
        if self.me > peer or (round_ is not None and round_.left == PARTITIONS):
            return []
        return self.begin(peer)

    def inventory(self, peer: bytes, theirs: Inventory) -> list[Send]:
        """The follower's answer."""
        self._following[peer] = theirs.round
        sends: list[Send] = []
        records: list[Session] = []
        wants: list[bytes] = []
        items = theirs.items
        size = 0
        position = theirs.stop
        for number, partition in enumerate(self._replica.partitions[theirs.start : theirs.stop], theirs.start):
            if not partition:
                continue
            for key in sorted(partition):
                entry = partition[key]
                if not is_whole(entry):
                    continue
                body = self._replica.body_of(entry)
                other = items.pop(key, None)
                if other == digest(entry.head, body):
                    continue
                if other is not None:
                    wants.append(key)
                records.append(Session(key, entry.head, entry.created_ms, entry.touches, body))
                size += len(body or b"") + 64
            if size >= _RANGE_BYTES:
                position = number + 1
                break
        wants.extend(key for key in items if partition_of(key) < position)
        sends.extend(self._records(peer, records))
        sends.append(Send((peer,), self._say.covered(theirs.round, position, wants)))
        return sends

    def covered(self, peer: bytes, number: int, stop: int, wants: list[bytes]) -> list[Send]:
        """The leader goes on."""
        round_ = self._rounds.get(peer)
        if round_ is None or round_.number != number or not round_.start < stop <= round_.stop:
            return []
        sends = self.records(peer, wants)
        round_.left -= stop - round_.start
        round_.start = stop % PARTITIONS
        if round_.left > 0:
            return sends + self._next(peer)
        del self._rounds[peer]
        self.in_sync.add(peer)
        return [*sends, Send((peer,), self._say.synced(number))]

    def synced(self, peer: bytes, number: int) -> None:
        """The leader has finished a round; it counts unless the link began anew, or this process slept, since that began."""
        if self._following.pop(peer, None) == number:
            self.in_sync.add(peer)

    def records(self, peer: bytes, keys: list[bytes]) -> list[Send]:
        """The current state of these keys, as far as it is whole here."""
        sessions = []
        for key in keys:
            entry = self._replica.get(key)
            if entry is not None and is_whole(entry):
                sessions.append(Session(key, entry.head, entry.created_ms, entry.touches, self._replica.body_of(entry)))
        return self._records(peer, sessions)

    def messages(self, keys: list[bytes], waiters: Any = ()) -> list[Message]:
        """The same, addressed to nobody yet; the waiters go with the last message."""
        messages = [send.message for send in self.records(b"", keys)]
        if messages:
            messages[-1].waiters = waiters
        return messages

    def _next(self, peer: bytes) -> list[Send]:
        round_ = self._rounds[peer]
        end = min(PARTITIONS, round_.start + round_.left)
        items: list[tuple[bytes, bytes]] = []
        stop = end
        for number, partition in enumerate(self._replica.partitions[round_.start : end], round_.start):
            if not partition:
                continue
            for key in sorted(partition):
                entry = partition[key]
                if is_whole(entry):
                    items.append((key, digest(entry.head, self._replica.body_of(entry))))
            if len(items) >= _RANGE_KEYS:
                stop = number + 1
                break
        round_.stop = stop
        return [Send((peer,), self._say.inventory(round_.number, round_.start, stop, items))]

    def _records(self, peer: bytes, sessions: list[Session]) -> list[Send]:
        sends = []
        batch: list[Session] = []
        size = 0
        for session in sessions:
            batch.append(session)
            size += len(session.body or b"") + KEY_BYTES
            if size >= _MESSAGE_BYTES:
                sends.append(Send((peer,), self._say.records(batch)))
                self.bytes_sent += size
                batch, size = [], 0
        if batch:
            sends.append(Send((peer,), self._say.records(batch)))
            self.bytes_sent += size
        self.records_sent += len(sessions)
        return sends


def is_whole(entry: Entry) -> bool:
    """A tombstone, or a live session with its whole record: what others may be given."""
    if entry.body is None:
        return entry.head is not None and entry.head.state != LIVE
    return type(entry.body) is bytes or not entry.body.partial  # type: ignore[union-attr]
