"""A session outside of memory, in a snapshot or a store: what is written of one that lives, and of one that has ended.

What lives is *kept* as its record and two times, when it was made and when it was used last. What has ended is kept as its head, the tombstone,
so that what comes back from elsewhere does not live again. Times are those of the wall, in ms since 1970: no monotonic clock outlives a machine.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..membership.codec import decode, encode
from ..membership.errors import RemoteError
from .changes import KEY_BYTES
from .heads import Head, head_from_wire, head_to_wire, winner
from .messages import need
from .record import Record

__all__ = ["Kept", "KeptEnd", "is_end", "joined_items", "read_item"]

_MS_MAX = 2**53


class Kept(NamedTuple):
    """One that lives. `body`: its packed record."""

    key: bytes
    created_ms: int
    used_ms: int
    body: bytes

    def pack(self) -> bytes:
        return encode(list(self))


class KeptEnd(NamedTuple):
    """One that has ended; `head.ended_ms` is of the wall."""

    key: bytes
    head: Head

    def pack(self) -> bytes:
        return encode([self.key, 0, self.head.ended_ms, head_to_wire(self.head)])


def is_end(data: bytes) -> bool:
    """Whether this is kept of a session that has ended."""
    try:
        return isinstance(read_item(data), KeptEnd)
    except RemoteError:
        return False


def read_item(data: bytes) -> Kept | KeptEnd:
    """Raises `RemoteError` for what is neither. The record of a `Kept` is not looked into."""
    wire: Any = decode(data)
    need(type(wire) is list and len(wire) >= 4, "kept session")
    key, created_ms, used_ms, body = wire[:4]
    need(type(key) is bytes and len(key) == KEY_BYTES and all(type(ms) is int and 0 <= ms < _MS_MAX for ms in (created_ms, used_ms)), "kept session")
    if type(body) is bytes:
        return Kept(key, created_ms, used_ms, body)
    head = head_from_wire(body, lambda ms: ms)
    need(head.state != 0, "kept end")
    return KeptEnd(key, head)


def joined_items(mine: bytes, theirs: bytes) -> bytes:
    """Both in one, as members would merge them: what is kept of one session in two places. Raises `RemoteError` if one is malformed."""
    one, other = read_item(mine), read_item(theirs)
    if isinstance(one, KeptEnd) and isinstance(other, KeptEnd):
        return mine if winner(one.head, other.head) is one.head else theirs
    if isinstance(one, Kept) and isinstance(other, Kept):
        record = Record.unpack(one.body)
        record.merge(Record.unpack(other.body))
        return Kept(one.key, min(one.created_ms, other.created_ms), max(one.used_ms, other.used_ms), record.pack()).pack()
    live, end, packed = (one, other, theirs) if isinstance(one, Kept) else (other, one, mine)
    assert isinstance(live, Kept)
    assert isinstance(end, KeptEnd)
    is_over = end.head.cover is None or (live.used_ms <= end.head.ended_ms and end.head.cover.covers(Record.unpack(live.body).applied, ()))
    return packed if is_over else live.pack()
