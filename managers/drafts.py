"""What a store is to be given of a session: taken under the manager's lock, encoded outside of it.

Encoding takes some twenty times as long as a copy of a record's dictionaries, whose values never change. So whoever has the lock takes a *draft*, and a thread of the store's
makes bytes of it while requests go on. What does not become bytes is reported and left out: the others of its batch are not held up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from .entry import Entry
from .expiry import deadline_of
from .kept import Kept
from .limits import Limits
from .record import Record
from .stores.store import Save

__all__ = ["ETERNAL_MS", "Draft", "Undrawn", "encoded"]

ETERNAL_MS = 2**53  #: until when what never ends by itself matters


class Draft(NamedTuple):
    """One that lives. `times`: an entry of its own, without head and record. `body`: packed, or a copy that nobody else has. `spare_ms`: for how long it matters after its time is over."""

    key: bytes
    times: Entry
    body: Record | bytes
    limits: Limits
    now_ms: int
    ahead_ms: int
    spare_ms: int
    replaces: bytes

    @property
    def size(self) -> int:
        """Bytes, about."""
        return len(self.body) if isinstance(self.body, bytes) else self.body.size

    def save(self) -> Save:
        """Any thread, without the lock. Raises `RemoteError` for a packed record that is none."""
        times, ahead_ms = self.times, self.ahead_ms
        record, packed = (Record.unpack(self.body), self.body) if isinstance(self.body, bytes) else (self.body, self.body.pack())
        kept = Kept(self.key, max(0, times.created_ms + ahead_ms), max(0, times.last_access_ms + ahead_ms), packed)
        deadline, _ = deadline_of(times, record, self.limits)
        return Save(self.key, kept.pack(), ETERNAL_MS if deadline is None else max(deadline, self.now_ms) + self.spare_ms + ahead_ms, self.replaces)


class Undrawn(NamedTuple):
    """One of which no draft could be made, by a fault of ours: as if it could not be encoded."""

    key: bytes
    error: Exception
    size: int = 0

    def save(self) -> Save:
        """Raises."""
        raise self.error


def encoded(drafts: Iterable[Draft | Undrawn | Save], rest: Callable[[], None]) -> tuple[list[Save], dict[bytes, Exception]]:
    """(saves, why others are none, by key). `rest()` is called after each, and may let others run."""
    saves: list[Save] = []
    broken: dict[bytes, Exception] = {}
    for draft in drafts:
        try:
            saves.append(draft if isinstance(draft, Save) else draft.save())
        except Exception as error:  # a fault of ours, in one session
            broken[draft.key] = error
        rest()
    return saves, broken
