"""Seeing that the application is told of a session's end: once where there is no fault, at least once otherwise.

Who ends a session may be a data node without an application, and the application's members may hold no copy. So a member announces for which managers it *listens*
(``payload["ends"]``), and the member that ends a session is its *executor*: it chooses who is told (the session's primary if that listens, else one of those who do, by the
session's key) and sends it the end with the final contents. The link's confirmation says that its listeners have been called; until it comes, the executor tells whoever is there then.

The other holders are *witnesses*: they keep what they had of the session for a while, and if the executor is lost, or too old to know of this, the first of them does its
part. A member that listens remembers what it has told, so repeats are told once. One that is chosen, and leads the session itself, need not wait to be told.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from ..membership.effects import Effect, Notify, Send
from ..membership.errors import RemoteError
from ..membership.view import ViewChanged
from .entry import Destroyed
from .heads import LIVE, Head, Ours
from .messages import Speaker, read_ends
from .placement import WHOLE, Placement
from .record import Record
from .replica import Replica

__all__ = ["EndToTell", "Flight", "Notices"]

_GIVE_UP_MS = 60_000  # an application whose last member restarts hears of what ended meanwhile
_AGAIN_MS = 500
_BATCH_BYTES = 64 * 1024
_KEPT_MAX_BYTES = 16 * 1024 * 1024
_NOTICE_BYTES = 512  # besides the contents
_REMEMBERED = 10_000

_Mark = tuple[bytes, int]  # a session ends once for each counter of its head, whoever ends it


class EndToTell(Notify):
    """`event` is (key, head, contents or None): listeners here are to hear of it."""


class _Notice:
    __slots__ = ("body", "head", "key", "size", "to", "until_ms")

    def __init__(self, key: bytes, head: Head, body: Record | bytes | None, until_ms: int) -> None:
        self.key = key
        self.head = head
        self.body = body
        self.until_ms = until_ms
        self.to = b""  #: who is to be told; `b""`: nobody yet
        self.size = _NOTICE_BYTES + (0 if body is None else len(body) if isinstance(body, bytes) else body.size)

    @property
    def mark(self) -> _Mark:
        return self.key, self.head.counter

    def packed(self) -> bytes | None:
        return self.body.pack() if isinstance(self.body, Record) else self.body


class Flight(NamedTuple):
    """One message under way: the waiter of its confirmation."""

    notices: Sequence[_Notice]
    to: bytes
    settled: Callable[[Flight, bool], None]

    def confirmed(self, uid: bytes) -> None:
        self.settled(self, True)

    def failed(self, uid: bytes) -> None:
        self.settled(self, False)


class Notices:
    """A part of the manager's core. `keep_ms`: how long witnesses keep what they had, longer than a loss goes unnoticed. `on_settled` is called, in the reactor's thread
    and without the lock, when a message was confirmed or failed; the shell answers with `settled`. `hears`: the application listens here."""

    def __init__(self, me: bytes, speaker: Speaker, replica: Replica, placement: Placement, keep_ms: int) -> None:
        self.me = me
        self.hears = False
        self.on_settled: Callable[[Flight, bool], None] = lambda flight, told: None
        self._say = speaker
        self._replica = replica
        self._placement = placement
        self._keep_ms = keep_ms
        self._hearing: frozenset[bytes] = frozenset()  # members that announce that they listen
        self._able: frozenset[bytes] = frozenset()  # and those that know of this at all
        self._ours: dict[_Mark, _Notice] = {}
        self._witnessed: dict[_Mark, _Notice] = {}
        self._queues: dict[bytes, dict[_Mark, _Notice]] = {}  # of ours, what is to be sent, by member; none is empty
        self._under_way: Counter[bytes] = Counter()  # messages to a member that it has not confirmed
        self._kept_bytes = 0
        self._again_ms: int | None = None
        self._told: OrderedDict[_Mark, None] = OrderedDict()
        self.told = self.dropped = 0

    def __len__(self) -> int:
        """Ends that this member has to see told."""
        return len(self._ours)

    # -- what happens here

    def ended(self, events: Iterable[object], now_ms: int) -> list[Effect]:
        """Of these events the ends of sessions."""
        if not self._hearing and not self.hears:
            return []
        effects: list[Effect] = []
        for happened in events:
            if isinstance(happened, Destroyed):
                effects += self._ended(happened.key, happened.head, happened.entry.body, now_ms)
        return effects + self._send()

    def _ended(self, key: bytes, head: Head, body: Record | bytes | None, now_ms: int) -> list[Effect]:
        is_ours = self._executor(key, head) == self.me
        if (is_ours or head.primary == self.me) and self._choose(key, head) == self.me:
            return self._tell(key, head, body)
        if is_ours:
            return self._entrust(_Notice(key, head, body, now_ms + _GIVE_UP_MS))
        if body is not None and not (isinstance(body, Record) and body.partial):
            notice = _Notice(key, head, body, now_ms + self._keep_ms)
            self._put(self._witnessed, notice)
        return []

    def view_changed(self, change: ViewChanged, placement: Placement, now_ms: int) -> list[Effect]:
        """Who listens may be others now; and who is gone without a farewell may have left an end untold."""
        self._placement = placement
        name = self._say.name
        others = [member for member in change.after if member.uid != self.me]
        self._hearing = frozenset(member.uid for member in others if name in (member.ends or ()))
        self._able = frozenset(member.uid for member in others if member.ends is not None)
        effects: list[Effect] = []
        if any(member.uid not in change.clean for member in change.disappeared):
            for notice in list(self._witnessed.values()):
                if notice.head.origin not in change.clean and self._executor(notice.key, notice.head) == self.me:
                    self._drop(self._witnessed, notice)
                    notice.until_ms = now_ms + _GIVE_UP_MS
                    effects += self._entrust(notice)
        for uid in [uid for uid in self._queues if uid not in self._hearing]:
            for notice in self._queues.pop(uid).values():
                notice.to = b""
        return effects + self._reassign() + self._send()

    def settled(self, flight: Flight, told: bool, now_ms: int) -> list[Effect]:
        """A message was confirmed, or will never be."""
        self._under_way[flight.to] -= 1
        if not self._under_way[flight.to]:
            del self._under_way[flight.to]
        for notice in flight.notices:
            if told:
                self._drop(self._ours, notice)
            else:
                notice.to = b""
                self._again_ms = now_ms + _AGAIN_MS
        return self._send()

    def received(self, now_ms: int, peer: bytes, message: list[Any], ours: Ours) -> list[Effect]:
        """An executor tells us. What it leaves out we have, or had a moment ago, as the session's primary."""
        effects: list[Effect] = []
        ends = read_ends(message[2], ours)
        for _, _, body in ends:
            if body is not None:
                Record.unpack(body)  # raises, before anybody is told anything
        for key, head, body in ends:
            if head.state == LIVE:
                raise RemoteError("end: of a session that lives")
            entry = self._replica.get(key)
            mine: Any = body if body is not None or entry is None else entry.body
            effects += self._tell(key, head, mine)
        return effects

    def tick(self, now_ms: int) -> list[Effect]:
        for kept in (self._witnessed, self._ours):
            for notice in list(kept.values()):
                if now_ms < notice.until_ms:
                    break
                self._drop(kept, notice)
                self.dropped += kept is self._ours
        if self._again_ms is None or now_ms < self._again_ms:
            return []
        self._again_ms = None
        return self._reassign() + self._send()

    def flush(self, now_ms: int) -> list[Effect]:
        """This member leaves: what is to be told goes out, whatever is under way."""
        return self._send(everything=True)

    @property
    def deadline_ms(self) -> int | None:
        firsts = (next(iter(kept.values()), None) for kept in (self._ours, self._witnessed))
        times = [notice.until_ms for notice in firsts if notice is not None]
        return min([*times, *(() if self._again_ms is None else (self._again_ms,))], default=None)

    # -- who

    def _choose(self, key: bytes, head: Head) -> bytes:
        """Who is to be told; `b""`: nobody listens now."""
        if head.primary in self._hearing or (self.hears and head.primary == self.me):
            return head.primary
        listening = (*self._hearing, self.me) if self.hears else tuple(self._hearing)
        return max(listening, key=lambda uid: blake2b(key + uid, digest_size=8).digest(), default=b"")

    def _executor(self, key: bytes, head: Head) -> bytes:
        candidates = (head.origin, *self._placement.holders(key, head.primary))
        return next((uid for uid in candidates if uid == self.me or uid in self._able), b"")

    # -- telling

    def _tell(self, key: bytes, head: Head, body: Record | bytes | None) -> list[Effect]:
        mark = (key, head.counter)
        if mark in self._told:
            return []
        self._told[mark] = None
        if len(self._told) > _REMEMBERED:
            self._told.popitem(last=False)
        self.told += 1
        return [EndToTell((key, head, body))]

    def _entrust(self, notice: _Notice) -> list[Effect]:
        """It is ours to see it told."""
        self._put(self._ours, notice)
        return self._assign(notice)

    def _assign(self, notice: _Notice) -> list[Effect]:
        notice.to = self._choose(notice.key, notice.head)
        if notice.to == self.me:
            self._drop(self._ours, notice)
            return self._tell(notice.key, notice.head, notice.body)
        if notice.to and notice.mark in self._ours:
            self._queues.setdefault(notice.to, {})[notice.mark] = notice
        return []

    def _reassign(self) -> list[Effect]:
        return [effect for notice in list(self._ours.values()) if not notice.to for effect in self._assign(notice)]

    def _send(self, everything: bool = False) -> list[Effect]:
        """One message at a time to each: what gathers meanwhile is the next."""
        effects: list[Effect] = []
        for uid in list(self._queues):
            while uid in self._queues and (everything or not self._under_way[uid]):
                effects.append(self._batch(uid, self._queues[uid]))
                if not self._queues[uid]:
                    del self._queues[uid]
        return effects

    def _batch(self, uid: bytes, queue: dict[_Mark, _Notice]) -> Send:
        some: list[_Notice] = []
        size = 0
        for notice in queue.values():
            size += notice.size
            if some and size > _BATCH_BYTES:
                break
            some.append(notice)
        for notice in some:
            del queue[notice.mark]
        self._under_way[uid] += 1
        flight = Flight(some, uid, lambda flight, told: self.on_settled(flight, told))
        return Send((uid,), self._say.ends([(one.key, one.head, None if self._has(uid, one) else one.packed()) for one in some], (flight,)))

    def _has(self, uid: bytes, notice: _Notice) -> bool:
        """Whether this member has the contents itself."""
        return uid == notice.head.primary and self._placement.depth(uid, notice.key, uid) == WHOLE

    # -- keeping

    def _put(self, kept: dict[_Mark, _Notice], notice: _Notice) -> None:
        self._drop(kept, notice)
        kept[notice.mark] = notice
        self._kept_bytes += notice.size
        for over in (self._witnessed, self._ours):
            while self._kept_bytes > _KEPT_MAX_BYTES and over:
                self._drop(over, next(iter(over.values())))
                self.dropped += over is self._ours

    def _drop(self, kept: dict[_Mark, _Notice], notice: _Notice) -> None:
        gone = kept.pop(notice.mark, None)
        if gone is not None:
            self._kept_bytes -= gone.size
            queue = self._queues.get(gone.to, {})
            if queue.pop(gone.mark, None) is not None and not queue:
                del self._queues[gone.to]
