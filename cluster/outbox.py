"""What waits to be sent to one peer, bounded in bytes.

The bound covers everything kept for the peer: unsent here and, until confirmed, sent (the link charges and releases it).
At the bound the outbox stops holding messages that speak of sessions: their keys become *dirty*, a set per receiver.
Once the backlog has fallen to a quarter of the bound, the receivers are asked for the dirty keys' current state. So a
slow peer costs memory by the number of sessions, never by the number of updates. While any key is dirty, keyed messages
go the same way: the state that is asked for later includes them.

A dropped message's waiters stay with the last of its keys, which goes to the end of the order: when they are handed
on, all keys of their message have been.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice

from ..membership.channel import Message, Waiter
from .pipeline import Parcel, cost

__all__ = ["Outbox"]

_REFILL_KEYS_MAX = 256  # keys asked for at a time: enough to fill a frame with small records
_RECORD_BYTES = 4096  # guess of a record's size before the first refill


class Outbox:
    """One peer's.

    `queues`: the parcels of each lane that have no number yet. `begun`: whether a lane's first parcel is the rest of a
    message whose beginning has one. `backlog`: bytes charged, unsent and unconfirmed. `dropped`: messages that became dirty keys.
    """

    __slots__ = ("_bytes_max", "_dirty", "_low", "_record_bytes", "backlog", "begun", "dropped", "queues")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._low = bytes_max // 4
        self._dirty: dict[str, dict[bytes, list[Waiter] | None]] = {}
        self._record_bytes = _RECORD_BYTES
        self.queues: tuple[deque[Parcel], deque[Parcel]] = (deque(), deque())
        self.begun = [False, False]
        self.backlog = 0
        self.dropped = 0

    @property
    def is_waiting(self) -> bool:
        """Whether anything is unsent (dirty keys aside)."""
        return bool(self.queues[0] or self.queues[1])

    @property
    def is_dirty(self) -> bool:
        return bool(self._dirty)

    @property
    def dirty_count(self) -> int:
        return sum(len(keys) for keys in self._dirty.values())

    def is_full(self, size: int) -> bool:
        """Whether `size` more bytes would break the bound."""
        return self.backlog + size > self._bytes_max

    def put(self, parcels: Sequence[Parcel], message: Message, size: int) -> None:
        """Queue, or mark dirty when over the bound. `size` is `cost(parcels)`."""
        if self._dirty or self.backlog + size > self._bytes_max:
            if not self._dirty:
                self._spill()
            if message.keys:
                self._soil(message)
                return
        self.backlog += size
        self.queues[message.lane].extend(parcels)

    def put_refilled(self, parcels: Sequence[Parcel], message: Message, size: int) -> bool:
        """Queue the current state of keys that were dirty. False: it is larger than the room there was, and is to be put back."""
        if message.keys and self.backlog > self._low and self.backlog + size > self._bytes_max:
            return False
        self.backlog += size
        self.queues[message.lane].extend(parcels)
        return True

    def put_back(self, messages: Sequence[Message]) -> None:
        """The rest of a refill, from the first message without room on (none: nothing to do): its keys are dirty again, before all others.

        Before them, because those who wait for these may stand with keys that were not taken: they must not be told first.
        """
        if not messages:
            return
        name = messages[0].receiver
        behind = self._dirty.pop(name, {})
        for message in messages:
            self._soil(message)
        keys = self._dirty[name]
        for key, waiters in behind.items():
            held = keys.pop(key, None)
            keys[key] = [*(held or ()), *(waiters or ())] or None

    def wants_refill(self) -> bool:
        return bool(self._dirty) and self.backlog <= self._low

    def take_dirty(self) -> tuple[str, list[bytes], list[Waiter]] | None:
        """The next receiver to ask: its name, keys and waiters; None: nothing is dirty or there is no room yet."""
        if not self.wants_refill():
            return None
        name, keys = next(iter(self._dirty.items()))
        room = (self._bytes_max - self.backlog) // 2 // self._record_bytes
        taken = list(islice(keys, max(1, min(_REFILL_KEYS_MAX, room))))
        waiters: list[Waiter] = []
        for key in taken:
            waiters += keys.pop(key) or ()
        del self._dirty[name]
        if keys:
            self._dirty[name] = keys  # to the end: receivers take turns
        return name, taken, waiters

    def refilled(self, keys: int, size: int) -> None:
        """`keys` keys made `size` bytes: how many fit next time."""
        self._record_bytes = max(1, size // keys)

    def discard(self) -> list[Waiter]:
        """Forget everything; returns the waiters that will not be confirmed."""
        waiters = [waiter for queue in self.queues for parcel in queue if parcel[2] is not None for waiter in parcel[2].waiters]
        waiters += [waiter for keys in self._dirty.values() for held in keys.values() if held for waiter in held]
        self.queues[0].clear()
        self.queues[1].clear()
        self._dirty.clear()
        self.begun = [False, False]
        self.backlog = 0
        return waiters

    def _soil(self, message: Message) -> None:
        self.dropped += 1
        keys = self._dirty.setdefault(message.receiver, {})
        for key in message.keys:
            keys.setdefault(key)
        if message.waiters:
            last = message.keys[-1]
            held = keys.pop(last) or []
            held += message.waiters
            keys[last] = held

    def _spill(self) -> None:
        """Turn all unsent keyed messages into dirty keys, except one whose first pieces have been numbered already (only its rest is here)."""
        for lane, queue in enumerate(self.queues):
            begun = self.begun[lane]
            kept: list[Parcel] = []
            pieces: list[Parcel] = []
            for parcel in queue:
                pieces.append(parcel)
                message = parcel[2]
                if message is None:
                    continue
                if message.keys and not begun:
                    self.backlog -= cost(pieces)
                    self._soil(message)
                else:
                    kept += pieces
                pieces = []
                begun = False
            queue.clear()
            queue.extend(kept)
