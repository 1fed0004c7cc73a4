"""Compresses whole messages: zstd where the standard library has it (Python 3.14), else zlib.

How a message is compressed travels in the flags of its frames, so each end chooses for itself what it sends, and
understands what the other may send. Inflating stops at a bound before memory is spent: a bomb costs its sender the link.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable

from ...membership.errors import RemoteError

__all__ = ["NONE", "ZLIB", "ZSTD", "compress", "inflate"]

NONE, ZLIB, ZSTD = 0, 1, 2
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
    """``(how, bytes)``; `NONE` and the payload itself where compressing gains nothing."""
    if sys.version_info >= (3, 14):
        how, small = ZSTD, zstd.compress(payload, _LEVEL)
    else:
        how, small = ZLIB, zlib.compress(payload, _LEVEL)
    return (how, small) if len(small) < len(payload) else (NONE, payload)


def inflate(how: int, payload: bytes, size_max: int) -> bytes:
    """Raises `RemoteError` for data that is malformed, larger than `size_max` when inflated, or compressed in a way unknown here."""
    inflater = _inflaters.get(how)
    if inflater is None:
        raise RemoteError(f"message: compression {how} is not known here")
    out = inflater(payload, size_max)
    if len(out) > size_max:
        raise RemoteError(f"message: larger than {size_max} bytes when inflated")
    return out
