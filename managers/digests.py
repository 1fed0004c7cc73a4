"""What two members compare before anything else: one sum for each partition of what both hold.

A partition's *inventory* is the (key, digest) of each whole session in it, by key; its *sum* is a hash of that, eight zero
bytes for an empty one. So sums are equal if and only if contents are (but for one chance in 2**64), and equal contents under
other keys, or swapped between two keys, do not cancel out. A change costs one mark (`Replica.changed`, a byte per partition); the sum of a marked
partition is made anew when a round asks for it, and not before.

A sum of the digests modulo 2**64, corrected by the difference, would want the digest that each session went in with to be kept, forty bytes a
session; without them the partition has to be read anyway, and then one hash over its inventory costs less than mixing the key into every digest.

Where everybody holds everything one row of sums serves all peers. Elsewhere each peer has a row, of the partitions of which we share
something with it: reading a partition makes its sums for all of them at once, so the cost is that of copies, not of members.

A tombstone leaves inventories and sums when nine tenths of its retention are over, by our clock: long before anybody forgets
it, so nobody is given again what it has just dropped. Two clocks see that moment at slightly different times. Meanwhile the sums of its
partition differ and inventories pass, but no records: who still counts the tombstone does not offer it in its last hundredth to a member that does
not name it, and who no longer counts it still compares it when the other does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b

from .entry import Entry, is_whole
from .heads import LIVE, Head
from .messages import DIGEST_BYTES, SUM_BYTES
from .placement import HEAD, PARTITIONS, WHOLE
from .replica import Replica

__all__ = ["Digests", "Sharers", "digest"]

Sharers = Callable[[bytes, bytes], Iterable[tuple[bytes, int]]]  #: (key, named primary) -> (peer, what placement says that both hold: `HEAD` or `WHOLE`)

_READ_AT_ONCE = 1000  # sessions read to make sums in one go: some 5 ms under the manager's lock
_DOUBTED_AT_ONCE = 32  # of 4096 partitions: each once an hour, at one call in 30 s
_NEVER = 2**63
_MARKED = b"\1" * PARTITIONS
_ZERO = bytes(SUM_BYTES)


def digest(head: Head | None, body: bytes | None) -> bytes:
    """8 bytes that differ when two copies of a session do. Ages are not part of it."""
    hashed = blake2b(body or b"", digest_size=DIGEST_BYTES)
    if head is not None and head.state != LIVE:
        hashed.update(b"%d %d " % (head.state, head.counter) + head.origin)
    elif head is not None:
        hashed.update(b"%d " % head.counter + head.origin + head.primary)
    return hashed.digest()


class Digests:
    """A part of the manager's core, under its lock. Times are ms of our monotonic clock.

    `sharers` says with whom an entry is shared; None: all entries with everybody.
    """

    def __init__(self, replica: Replica, retention_ms: int, sharers: Sharers | None = None) -> None:
        self._replica = replica
        self._sharers = sharers
        self._counted_ms = retention_ms * 9 // 10
        self._offered_ms = retention_ms * 89 // 100
        self._row = bytearray(PARTITIONS * SUM_BYTES)  # where all is shared with everybody: the sums
        self._rows: dict[bytes, dict[int, bytes]] = {}  # else by peer: the sums of partitions with something shared
        self._with: dict[int, tuple[bytes, ...]] = {}  # the peers that have a sum of this partition
        self._ages_ms = [_NEVER] * PARTITIONS  # when the next tombstone leaves the partition's sum
        self._ages_at_ms = _NEVER  # the first of those
        self._doubted = 0
        self.read = 0  #: sessions read to make sums or inventories
        self._mark_all()

    @property
    def uniform(self) -> bool:
        """Everything is shared with everybody."""
        return self._sharers is None

    def placed(self, sharers: Sharers | None) -> None:
        """The placement has changed: what is shared may be something else."""
        if sharers is None and self._sharers is None:
            return
        self._sharers = sharers
        self._rows.clear()
        self._with.clear()
        self._row = bytearray(PARTITIONS * SUM_BYTES)
        self._mark_all()

    def doubt_some(self) -> None:
        """The sums of a few partitions are made anew though nothing says that they have changed; the next call takes the next ones."""
        at = self._doubted
        self._replica.changed[at : at + _DOUBTED_AT_ONCE] = _MARKED[at : at + _DOUBTED_AT_ONCE]
        self._doubted = (at + _DOUBTED_AT_ONCE) % PARTITIONS

    def sums(self, peer: bytes, start: int, stop: int, now_ms: int) -> tuple[int, bytes]:
        """(how far, the sums of partitions `start` to there): at most to `stop`, and no further than can be read in one go."""
        stop = self._freshen(start, stop, now_ms)
        return stop, self._sums(peer, start, stop)

    def differing(self, peer: bytes, start: int, theirs: bytes, now_ms: int) -> tuple[int, list[int]]:
        """(how far they were compared, which partitions differ), for the peer's sums of the partitions from `start` on."""
        stop = self._freshen(start, start + len(theirs) // SUM_BYTES, now_ms)
        mine = self._sums(peer, start, stop)
        if mine == theirs[: len(mine)]:
            return stop, []
        return stop, [start + at // SUM_BYTES for at in range(0, len(mine), SUM_BYTES) if mine[at : at + SUM_BYTES] != theirs[at : at + SUM_BYTES]]

    def inventory(self, peer: bytes, number: int, now_ms: int, to_the_end: bool = False) -> list[tuple[bytes, bytes]]:
        """(key, digest) of all that we share with this peer in a partition, by key; `to_the_end`: with tombstones of any age."""
        return self._items(peer, self._read(number, now_ms, to_the_end))

    def offers(self, entry: Entry, now_ms: int, again: bool) -> bool:
        """Whether a peer with which we share this, and that does not name it, should get it. `again`: it had it, as far as this member knows."""
        head = entry.head
        return head is None or head.state == LIVE or now_ms < head.ended_ms + (self._offered_ms if again else self._counted_ms)

    def _sums(self, peer: bytes, start: int, stop: int) -> bytes:
        if self._sharers is None:
            return bytes(self._row[start * SUM_BYTES : stop * SUM_BYTES])
        sums = bytearray((stop - start) * SUM_BYTES)
        for number, hashed in self._rows.get(peer, {}).items():
            if start <= number < stop:
                sums[(number - start) * SUM_BYTES : (number - start + 1) * SUM_BYTES] = hashed
        return bytes(sums)

    def _mark_all(self) -> None:
        """All that hold something: the sums of the others are zero, or marked."""
        changed = self._replica.changed
        for number, partition in enumerate(self._replica.partitions):
            if partition:
                changed[number] = 1

    def _freshen(self, start: int, stop: int, now_ms: int) -> int:
        """Make the sums that have changed since. How far they are right now."""
        changed, partitions = self._replica.changed, self._replica.partitions
        if now_ms >= self._ages_at_ms:
            for number, leaves_ms in enumerate(self._ages_ms):
                if now_ms >= leaves_ms:
                    changed[number] = 1
            self._ages_at_ms = min((leaves_ms for leaves_ms in self._ages_ms if now_ms < leaves_ms), default=_NEVER)
        left = _READ_AT_ONCE
        number = changed.find(1, start, stop)
        while number >= 0:
            if left <= 0:
                return number
            left -= len(partitions[number])
            self._read(number, now_ms)
            number = changed.find(1, number + 1, stop)
        return stop

    def _read(self, number: int, now_ms: int, to_the_end: bool = False) -> list[tuple[bytes, Entry, bytes]]:
        """The partition's whole entries that count, by key, with their digests. Its sums are right after it."""
        replica = self._replica
        partition = replica.partitions[number]
        if not partition:  # as most are while there are few sessions
            self._sum_up(number, [])
            self._ages_ms[number] = _NEVER
            replica.changed[number] = 0
            return []
        ages_ms = _NEVER
        found: list[tuple[bytes, Entry, bytes]] = []
        for key in sorted(partition):
            entry = partition[key]
            if not is_whole(entry) and (self._sharers is None or entry.head is None):
                continue
            head = entry.head
            if head is not None and head.state != LIVE and not to_the_end:
                leaves_ms = head.ended_ms + self._counted_ms
                if now_ms >= leaves_ms:
                    continue
                ages_ms = min(ages_ms, leaves_ms)
            found.append((key, entry, digest(head, replica.body_of(entry))))
        self.read += len(found)
        if not to_the_end:
            self._sum_up(number, found)
            self._ages_ms[number] = ages_ms
            self._ages_at_ms = min(self._ages_at_ms, ages_ms)
            replica.changed[number] = 0
        return found

    def _sum_up(self, number: int, found: list[tuple[bytes, Entry, bytes]]) -> None:
        if self._sharers is None:
            items = b"".join([key + hashed for key, _, hashed in found])
            self._row[number * SUM_BYTES : (number + 1) * SUM_BYTES] = blake2b(items, digest_size=SUM_BYTES).digest() if items else _ZERO
            return
        for peer in self._with.pop(number, ()):
            del self._rows[peer][number]
        inventories: dict[bytes, list[bytes]] = {}
        for peer, key, hashed in self._shared(found):
            inventories.setdefault(peer, []).append(key + hashed)
        for peer, inventory in inventories.items():
            self._rows.setdefault(peer, {})[number] = blake2b(b"".join(inventory), digest_size=SUM_BYTES).digest()
        if inventories:
            self._with[number] = tuple(inventories)

    def _shared(self, found: list[tuple[bytes, Entry, bytes]]) -> Iterator[tuple[bytes, bytes, bytes]]:
        """(peer, key, digest of what both hold)."""
        assert self._sharers is not None
        for key, entry, hashed in found:
            whole = is_whole(entry)
            for peer, depth in self._sharers(key, entry.primary):
                if depth == WHOLE and whole:
                    yield peer, key, hashed
                elif depth == HEAD and entry.head is not None:
                    yield peer, key, digest(entry.head, None)

    def _items(self, peer: bytes, found: list[tuple[bytes, Entry, bytes]]) -> list[tuple[bytes, bytes]]:
        """What counts between us and this peer."""
        if self._sharers is None:
            return [(key, hashed) for key, _, hashed in found]
        return [(key, hashed) for uid, key, hashed in self._shared(found) if uid == peer]
