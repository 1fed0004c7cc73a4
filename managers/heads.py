"""A head: what must never be in doubt about a session. Is it live, and if not, why; who is its primary; who holds it.

Heads change when a session is created, taken over or ended, never per commit, and travel in the control lane ahead of
data. They outlive the record: the head of an ended session is its *tombstone*, kept for `retention`, so that no late
delta, no healed partition and no restarted holder brings the session back.

Merging is by state first: invalidated and id-changed beat everything; expired beats live only if the activity it knew of
covers the record; then the higher version. Heads are immutable values, and the live ones are shared (a node that creates
a million sessions makes one head).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from ..membership.errors import RemoteError
from ..membership.member import UID_BYTES

__all__ = [
    "EXPIRED",
    "ID_CHANGED",
    "INVALIDATED",
    "LIVE",
    "REASONS",
    "Cover",
    "Head",
    "creator",
    "head_from_wire",
    "head_to_wire",
    "live_head",
    "revived",
    "winner",
]

LIVE, EXPIRED, INVALIDATED, ID_CHANGED = 0, 1, 2, 3
REASONS = ("live", "expired", "invalidated", "id changed")

_HOLDERS_MAX = 64
Ours = Callable[[int], int]  #: a sender's ms -> our ms
COUNTER_MAX = 2**53  # far above any real count, and still exact where others keep numbers as doubles


class Cover(NamedTuple):
    """The activity an expiry had seen: version map and touch counters, both ``{origin uid: counter}``."""

    applied: dict[bytes, int]
    touches: dict[bytes, int]

    def covers(self, applied: dict[bytes, int], touches: tuple[Any, ...]) -> bool:
        """Whether all of a record's map and touches (flat tuple, see `record.py`) had been seen."""
        mine = self.applied
        if any(mine.get(origin, 0) < counter for origin, counter in applied.items()):
            return False
        return all(self.touches.get(touches[i], -1) >= touches[i + 1] for i in range(0, len(touches), 3))


class Head(NamedTuple):
    """`holders` is empty; of an id that was replaced and whose grace is over it is the key that the session goes on under (`renewal.py`). `ended_ms`: our monotonic
    clock when it ended (0: live)."""

    state: int
    counter: int
    origin: bytes
    primary: bytes
    holders: tuple[bytes, ...] = ()
    cover: Cover | None = None
    ended_ms: int = 0

    @property
    def version(self) -> tuple[int, bytes]:
        return self.counter, self.origin

    @property
    def final(self) -> bool:
        """Ended by somebody's will; nothing revives it."""
        return self.state >= INVALIDATED


@lru_cache(maxsize=4096)
def live_head(counter: int, origin: bytes, primary: bytes, holders: tuple[bytes, ...] = ()) -> Head:
    return Head(LIVE, counter, origin, primary, holders)


def head_to_wire(head: Head) -> list[Any]:
    cover = None if head.cover is None else [head.cover.applied, head.cover.touches]
    return [head.state, head.counter, head.origin, head.primary, list(head.holders), cover, head.ended_ms]


def _is_counters(value: object) -> bool:
    return type(value) is dict and all(
        type(origin) is bytes and len(origin) == UID_BYTES and type(counter) is int and 0 <= counter <= COUNTER_MAX for origin, counter in value.items()
    )


def head_from_wire(wire: object, ours: Ours) -> Head:
    """Check and build; `ours` turns the sender's times into ours. Raises `RemoteError`."""
    if type(wire) is not list or len(wire) < 7:
        raise RemoteError("head: not an array of 7")
    state, counter, origin, primary, holders, cover, ended_ms = wire[:7]
    if not (
        type(state) is int and 0 <= state <= ID_CHANGED
        and type(counter) is int and 0 < counter <= COUNTER_MAX
        and type(origin) is bytes and len(origin) == UID_BYTES
        and type(primary) is bytes and len(primary) == UID_BYTES
        and type(holders) is list and len(holders) <= _HOLDERS_MAX
        and all(type(uid) is bytes and len(uid) == UID_BYTES for uid in holders)
        and type(ended_ms) is int and abs(ended_ms) <= COUNTER_MAX
    ):  # fmt: skip
        raise RemoteError("head: malformed")
    if state == LIVE:
        return live_head(counter, origin, primary, tuple(holders))
    seen = None
    if state == EXPIRED:
        if type(cover) is not list or len(cover) != 2 or not _is_counters(cover[0]) or not _is_counters(cover[1]):
            raise RemoteError("head: an expiry without what it covers")
        seen = Cover(cover[0], cover[1])
    return Head(state, counter, origin, primary, tuple(holders), seen, ours(ended_ms))


def winner(mine: Head, theirs: Head) -> Head:
    """The head of the two that stands, where the record does not matter (not one live and one expired)."""
    if mine.final != theirs.final:
        return mine if mine.final else theirs
    return theirs if theirs.version > mine.version else mine


def creator(head: Head | None) -> bytes | None:
    """As far as a head tells."""
    return head.origin if head is not None and head.counter == 1 else None


def revived(expiry: Head) -> Head:
    """The head of a session that outlives this expiry, the same whoever finds out; its next end will be another than this."""
    return live_head(expiry.counter + 1, expiry.origin, expiry.primary)
