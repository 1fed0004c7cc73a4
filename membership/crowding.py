"""Counts what is dear in CBOR before it is decoded: an empty array is one byte on the wire, and 64 in memory.

Of what members say to each other nothing large has more than one array or map in eight bytes. What has more is an attack on memory
and on the reactor's time (a mebibyte of empty arrays takes a third of a second to decode), and is refused while it is still bytes.

Three looks, each only if the one before could not tell: few bytes; few bytes that could begin something dear, wherever they stand;
and a walk from item to item, which skips what strings contain. It believes nothing: it stops where the data is not well-formed, which
is as far as the decoder gets.
"""

from __future__ import annotations

__all__ = ["BYTES_EACH", "COUNT_MAX", "FREE", "is_crowded"]

FREE = 16384  #: so many arrays, maps, tags and simple values are allowed whatever the size
BYTES_EACH = 8  #: and one more for each of so many bytes
COUNT_MAX = 1 << 20  #: but never more than this

_SHORTEST = {1: 24, 2: 2**8, 4: 2**16, 8: 2**32}  # what is shorter than this needs fewer of them
_ARGUMENT = {24: 1, 25: 2, 26: 4, 27: 8}  # low five bits of a first byte: bytes of the length or number that follow
_TEXT, _BYTES, _SIMPLE = 3, 2, 7  # major types, the high three bits; those between text and simple are dear


def _item_bytes(first: int) -> int:
    """Of an item that begins so, without what is nested in it; 0: its length stands behind, or there is no such item."""
    major, low = first >> 5, first & 31
    if low < 24:
        return 1 + low * (major in (_BYTES, _TEXT))
    return 1 + _ARGUMENT[low] if low in _ARGUMENT and major not in (_BYTES, _TEXT) else 0


def _is_dear(first: int) -> bool:
    if first >> 5 == _SIMPLE:
        return first & 31 < 20 or first == 0xF8  # the others are true, false, null, undefined and floats
    return first >> 5 > _TEXT


_ITEM_BYTES = bytes(map(_item_bytes, range(256)))
_DEAR = bytes(map(_is_dear, range(256)))
_CHEAP = bytes(first for first in range(256) if not _DEAR[first])


def is_crowded(data: bytes) -> bool:
    """Whether there are more arrays, maps, tags and simple values in it than may be."""
    size = len(data)
    if size <= FREE:
        return False
    left = min(FREE + size // BYTES_EACH, COUNT_MAX)
    return len(data.translate(None, _CHEAP)) > left and _has_more(data, left)


def _has_more(data: bytes, left: int) -> bool:
    at, size, item_bytes, dear = 0, len(data), _ITEM_BYTES, _DEAR
    while at < size:
        first = data[at]
        skip = item_bytes[first]
        if skip:
            if dear[first]:
                if not left:
                    return True
                left -= 1
            at += skip
            continue
        width = _ARGUMENT.get(first & 31)
        if width is None or first >> 5 not in (_BYTES, _TEXT):
            return False
        at += 1 + width
        if at > size:
            return False
        length = int.from_bytes(data[at - width : at], "big")
        if length < _SHORTEST[width]:
            return True  # nobody spells it so long, but to have it looked at for long
        at += length
    return False
