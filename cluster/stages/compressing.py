"""Compresses whole messages: zstd where the standard library has it (Python 3.14), else zlib.

How a message is compressed travels in the flags of its frames, so each end chooses for itself what it sends, and
understands what the other may send. Inflating stops at a bound before memory is spent: a bomb costs its sender the link.
That bound is four times what came, or a mebibyte; what would be more (a large message that says one thing again and again) is sent as it is.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable

from ...membership.errors import RemoteError

__all__ = ["NONE", "ZLIB", "ZSTD", "compress", "inflate"]

NONE, ZLIB, ZSTD = 0, 1, 2
_TIMES_MAX, _ALWAYS_BYTES = 4, 1 << 20  # what something compressed may become: as a frame costs, so does what is in it
_LEVEL = 1  # the link must not wait for the processor; a higher level gains a tenth and costs three times the time


def _inflate_zlib(payload: bytes, size_max: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        out = inflater.decompress(payload, size_max + 1)
    except zlib.error:
        raise RemoteError("message: malformed zlib data") from None
    if len(out) <= size_max and (not inflater.eof or inflater.unused_data):
        raise RemoteError("message: truncated or trailing zlib data")
    return out


_inflaters: dict[int, Callable[[bytes, int], bytes]] = {ZLIB: _inflate_zlib}

if sys.version_info >= (3, 14):
    from compression import zstd

    def _inflate_zstd(payload: bytes, size_max: int) -> bytes:
        inflater = zstd.ZstdDecompressor()
        try:
            out = inflater.decompress(payload, size_max + 1)
        except zstd.ZstdError:
            raise RemoteError("message: malformed zstd data") from None
        if len(out) <= size_max and (not inflater.eof or inflater.unused_data):
            raise RemoteError("message: truncated or trailing zstd data")
        return out

    _inflaters[ZSTD] = _inflate_zstd


def compress(payload: bytes) -> tuple[int, bytes]:
    """``(how, bytes)``; `NONE` and the payload itself where compressing gains nothing, or so much that nobody would inflate it."""
    if sys.version_info >= (3, 14):
        how, small = ZSTD, zstd.compress(payload, _LEVEL)
    else:
        how, small = ZLIB, zlib.compress(payload, _LEVEL)
    return (how, small) if len(small) < len(payload) <= _bound(small) else (NONE, payload)


def _bound(small: bytes) -> int:
    return max(_TIMES_MAX * len(small), _ALWAYS_BYTES)


def inflate(how: int, payload: bytes, size_max: int) -> bytes:
    """Raises `RemoteError` for data that is malformed, larger than `size_max` when inflated, or compressed in a way unknown here."""
    inflater = _inflaters.get(how)
    if inflater is None:
        raise RemoteError(f"message: compression {how} is not known here")
    size_max = min(size_max, _bound(payload))
    out = inflater(payload, size_max)
    if len(out) > size_max:
        raise RemoteError(f"message: larger than {size_max} bytes when inflated")
    return out
