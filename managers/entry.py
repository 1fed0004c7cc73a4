"""What is held of one session, and what is reported of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .heads import LIVE, Head
from .record import Record, Touches, last_access

__all__ = ["TOMBSTONE_BYTES", "Activated", "Audited", "Changed", "Created", "Destroyed", "Ended", "Entry", "InUse", "Outcome", "Passivated", "is_whole"]

# What it takes of memory besides its packed record, measured on CPython 3.11 with 100,000 of each (`make bench`, row memory).
_SESSION_BYTES = 650
_REGISTER_BYTES = 250  # of each attribute while the record is unpacked
TOMBSTONE_BYTES = 400
_COVERED_BYTES = 250  # for each origin that an expiry has seen


class Entry:
    """What is held of one session. `body` is None for a tombstone, and while only the head has arrived."""

    __slots__ = ("body", "created_ms", "head", "principal", "sent_ms", "stored", "touches", "weight")

    def __init__(self, head: Head | None, body: Record | bytes | None, created_ms: int, touches: Touches) -> None:
        self.head = head
        self.body = body
        self.created_ms = created_ms
        self.touches = touches
        self.sent_ms = created_ms  #: the last access of ours that the others were told
        self.principal: bytes | None = None  #: key of who is logged in (`principals.py`)
        self.stored = b""  #: the revision that a store has of it, as far as known (`storing.py`)
        self.weight = 0  #: bytes that it counts for (`budget.py`)

    @property
    def last_access_ms(self) -> int:
        return last_access(self.touches, self.created_ms)

    def weigh(self) -> int:
        """Bytes of memory that it takes, about: the packed record, or as much as it is unpacked, and what stands around it."""
        body = self.body
        if type(body) is bytes:
            return _SESSION_BYTES + len(body)
        if isinstance(body, Record):
            return _SESSION_BYTES + body.size + _REGISTER_BYTES * len(body.registers)
        if self.head is None or self.head.cover is None:
            return TOMBSTONE_BYTES
        return TOMBSTONE_BYTES + _COVERED_BYTES * len(self.head.cover.applied)

    @property
    def primary(self) -> bytes:
        """The member that the head names; `b""` while there is no head."""
        return self.head.primary if self.head is not None else b""


class Created(NamedTuple):
    """The session became known here; `by` is the member that created it, as far as known."""

    key: bytes
    by: bytes | None


class Changed(NamedTuple):
    """A merge changed this attribute here."""

    key: bytes
    name: str
    removed: bool


class Destroyed(NamedTuple):
    """The session ended; `entry` still has its final contents."""

    key: bytes
    entry: Entry
    head: Head


class Activated(NamedTuple):
    """A live session came into memory from a store or a snapshot."""

    key: bytes


class Passivated(NamedTuple):
    """A live session went from memory here; a store has it. `mine`: this member decided that."""

    key: bytes
    mine: bool


class Ended:
    """Effect: this session was ended here; the head goes to all that hold it."""

    __slots__ = ("head", "key")

    def __init__(self, key: bytes, head: Head) -> None:
        self.key = key
        self.head = head


class Audited(NamedTuple):
    """What befell a login. Told where it was done, once where there is no fault.

    `what`: `login`, `logout`, `expired`, `ended`, `id changed`, `refused`. `by`: who or what ended it: `administrator`, `limit`, `end_all`, `shared logout`, `shutdown`;
    of a `login`: `shared` for one that another application made. `about`: what the login said. `origin`: of the request, its connection's address and its `X-Forwarded-For`.
    """

    what: str
    key: bytes  #: 16 bytes, the hash of the session's id; empty where there is none
    principal: str
    about: Mapping[str, str] = {}
    by: str = ""
    origin: tuple[str, str] = ("", "")
    became: bytes = b""  #: the key that goes with a new id


class InUse(dict[bytes, int]):
    """How many open requests each session has here."""

    def add(self, key: bytes, requests: int) -> None:
        """So many more, or fewer."""
        left = self.get(key, 0) + requests
        if left > 0:
            self[key] = left
        else:
            self.pop(key, None)


class Outcome:
    """What merging could not settle alone (lists of keys). `grown`: where a record that came had something that ours had not."""

    __slots__ = ("grown", "spreads", "tells", "wants")

    def __init__(self) -> None:
        self.wants: list[bytes] = []
        self.tells: list[bytes] = []
        self.spreads: list[bytes] = []
        self.grown: list[bytes] = []

    def __bool__(self) -> bool:
        return bool(self.wants or self.tells or self.spreads)


def is_whole(entry: Entry) -> bool:
    """A tombstone, or a live session with its whole record: what others may be given."""
    if entry.body is None:
        return entry.head is not None and entry.head.state != LIVE
    return type(entry.body) is bytes or not entry.body.partial  # type: ignore[union-attr]
