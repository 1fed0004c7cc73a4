"""CBOR for everything that travels between nodes: plain data in, plain data out, and nothing that surprises.

The only importer of cbor2 besides `managers/values.py` (which has tags of its own). The decoder profile refuses every
tag, indefinite lengths, duplicate keys, keys that are not text or bytes (colliding integers are a denial of service),
nesting beyond 32 and bytes after the item; and, before a byte is decoded, what is made of little else than arrays and maps
(`crowding`). A fresh decoder per call: a reused one leaked earlier messages (CVE-2025-68131). Limits on *size* are the caller's, before it calls.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any, NoReturn

import cbor2

from .crowding import is_crowded
from .errors import RemoteError

__all__ = ["DEPTH_MAX", "decode", "encode"]

DEPTH_MAX = 32


def _refuse(*_: object) -> NoReturn:
    raise ValueError("tags are refused")


_TAGS = (0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799)
_PROFILE: dict[str, Any] = {
    "max_depth": DEPTH_MAX,
    "allow_indefinite": False,
    "allow_duplicate_keys": False,
    "strict_hashable_types": True,
    "semantic_decoders": dict.fromkeys(_TAGS, _refuse),
    "tag_hook": _refuse,
}

encode = cbor2.dumps


def decode(data: bytes) -> Any:
    """One CBOR item, the whole of `data` and no more: None, bool, int, float, str, bytes, list, dict (or a CBOR simple value, which no schema accepts).

    Raises `RemoteError` and nothing else, whatever the bytes.
    """
    if is_crowded(data):
        raise RemoteError(f"malformed CBOR: too many arrays and maps in {len(data)} bytes")
    stream = BytesIO(data)
    try:
        value = cbor2.CBORDecoder(stream, read_size=len(data) or 1, **_PROFILE).decode()
    except Exception as error:  # cbor2 wraps what callbacks raise; anything at all here is the peer's fault
        raise RemoteError(f"malformed CBOR: {type(error).__name__}") from None
    if stream.tell() != len(data):
        raise RemoteError("malformed CBOR: bytes after the item")
    return value
