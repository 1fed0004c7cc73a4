"""What is held: one `Entry` a session, in a dictionary per partition. How it changes is `replica.py`'s.

An entry has a head, the record (a `Record` while it is used, one bytes object while it is idle), and times in our monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterator

from .entry import Entry
from .placement import PARTITIONS, partition_of
from .record import Record

__all__ = ["Held"]


class Held:
    """Guarded by the manager's lock. Keys are 16 bytes."""

    def __init__(self) -> None:
        self.partitions: list[dict[bytes, Entry]] = [{} for _ in range(PARTITIONS)]
        self.live = self.tombstones = 0
        self.bytes = 0  #: what all of it takes, about (`budget.py`)
        self.in_use: set[bytes] = set()  #: used, and so unpacked, since the last sweep (`packing.py`)

    def get(self, key: bytes) -> Entry | None:
        return self.partitions[key[0] << 4 | key[1] >> 4].get(key)

    def primary_of(self, key: bytes) -> bytes:
        """The member that the session's head names; `b""` if none is known."""
        entry = self.get(key)
        return entry.primary if entry is not None else b""

    def record(self, key: bytes, entry: Entry) -> Record | None:
        """The entry's record, unpacked."""
        body = entry.body
        if type(body) is bytes:
            entry.body = body = Record.unpack(body)
            self.in_use.add(key)
        return body  # type: ignore[return-value]

    def held(self, key: bytes) -> Entry | None:
        """The entry if it is a live session with its whole record."""
        entry = self.get(key)
        is_absent = entry is None or entry.body is None or (type(entry.body) is Record and entry.body.partial)
        return None if is_absent else entry

    def has_ended(self, key: bytes) -> bool:
        """Whether somebody has ended it, so that nothing can bring it back."""
        entry = self.get(key)
        return entry is not None and entry.head is not None and entry.head.final

    def body_of(self, entry: Entry) -> bytes | None:
        """The packed record, or None."""
        return entry.body.pack() if type(entry.body) is Record else entry.body  # type: ignore[return-value]

    def entries(self, start: int = 0, stop: int = PARTITIONS) -> Iterator[tuple[bytes, Entry]]:
        """Entries by partition, then key."""
        for partition in self.partitions[start:stop]:
            if partition:
                for key in sorted(partition):
                    yield key, partition[key]

    def _remove(self, key: bytes) -> Entry | None:
        entry = self.partitions[partition_of(key)].pop(key, None)
        self.bytes -= entry.weight if entry is not None else 0
        return entry

    def weigh(self, entry: Entry) -> None:
        """It has come, or changed."""
        self.bytes -= entry.weight
        entry.weight = entry.weigh()
        self.bytes += entry.weight
