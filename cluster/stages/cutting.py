"""Cuts a message into pieces, so that urgent frames can go between them, and puts the pieces together again.

Pieces are views of one payload: however many members get it, its bytes are there once.
"""

from __future__ import annotations

from ...membership.errors import RemoteError

__all__ = ["Assembly", "cut"]

_PIECE_MEAN_MIN = 512  # a message in pieces smaller than this on average is an attack on memory: half of the smallest `chunk_bytes`


def cut(payload: bytes, piece_max: int) -> list[bytes | memoryview]:
    """At least one piece, none larger than `piece_max`; all but the last are full."""
    if len(payload) <= piece_max:
        return [payload]
    view = memoryview(payload)
    return [view[at : at + piece_max] for at in range(0, len(payload), piece_max)]


class Assembly:
    """The pieces of one lane's current message, bounded by `size_max` bytes."""

    __slots__ = ("_pieces", "_size", "_size_max")

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._pieces: list[bytes] = []
        self._size = 0

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def add(self, piece: bytes, more: bool) -> bytes | None:
        """The whole message once its last piece is there. Raises `RemoteError` when it grows too large."""
        size = self._size + len(piece)
        if size > self._size_max or len(self._pieces) > self._size_max // _PIECE_MEAN_MIN:
            raise RemoteError(f"message: larger than {self._size_max} bytes")
        self._pieces.append(piece)
        self._size = size
        if more:
            return None
        whole = b"".join(self._pieces)
        self.clear()
        return whole

    def clear(self) -> None:
        self._pieces = []
        self._size = 0
