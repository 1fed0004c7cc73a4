"""What happened in a world, as a digest and as the last lines for people.

Every event that could differ between two runs goes into the digest: what arrived where and when (its length and checksum),
each fault, each note of a node or a checker. Two runs of a seed with one digest did the same.
"""

from __future__ import annotations

from collections import deque
from hashlib import blake2b
from struct import Struct
from zlib import crc32

from .clock import EventQueue

__all__ = ["Trace"]

_pack = Struct("<dsIII").pack


class Trace:
    """`recent`: how many events `tail` can show."""

    def __init__(self, queue: EventQueue, recent: int = 200) -> None:
        self._queue = queue
        self._hash = blake2b(digest_size=16)
        self._update = self._hash.update
        self._recent: deque[tuple[float, bytes, int, bytes | str]] = deque(maxlen=recent)

    def data(self, kind: bytes, number: int, data: bytes) -> None:
        """Bytes arrived at socket `number`; `kind` is one letter."""
        now = self._queue.now
        self._update(_pack(now, kind, number, len(data), crc32(data)))
        self._recent.append((now, kind, number, data))

    def note(self, text: str) -> None:
        now = self._queue.now
        self._update(_pack(now, b"n", 0, len(text), 0) + text.encode())
        self._recent.append((now, b"n", 0, text))

    def digest(self) -> str:
        return self._hash.hexdigest()

    def tail(self) -> str:
        """The last events, a line each."""
        return "\n".join(
            f"{at:12.6f} {what}" if isinstance(what, str) else f"{at:12.6f} {kind.decode()} #{number} {len(what)} B {what[:48].hex()}"
            for at, kind, number, what in self._recent
        )
