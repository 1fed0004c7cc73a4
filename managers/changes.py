"""Deltas: what one commit changed, as it travels.

``[key, counter, previous, seen, changes, accessed_ms]``, and `created_ms` as a seventh where the commit created the session:
`key` 16 bytes; `counter` of the commit's version (the origin is the batch's); `previous` counter of that origin in this
record; `seen` ``{other origin: counter}``, what the author had applied; `changes` ``{name: bytes, or null for removed}``;
`accessed_ms` in the sender's clock. Where a member creates a session that another is to lead, that primary's uid is the
eighth. All changes of a commit share one version.

A delta is encoded once, by hand: the shape is fixed, and putting the pieces together costs a quarter of a generic
encoder (a test holds it equal to one, byte for byte). A batch is one message ``[manager, DELTAS, origin, [delta, ...]]``.
"""

from __future__ import annotations

from typing import Any

from ..membership.codec import encode
from ..membership.errors import RemoteError
from ..membership.member import UID_BYTES
from .heads import COUNTER_MAX
from .record import NAME_MAX_BYTES

__all__ = ["KEY_BYTES", "batch_prefix", "check_deltas", "encode_batch", "encode_delta"]

KEY_BYTES = 16

_SMALL = tuple(bytes((n,)) for n in range(24)) + tuple(bytes((0x18, n)) for n in range(24, 256))
_NAMES: dict[str, bytes] = {}  # encoded attribute names: an application has few
_NAMES_MAX = 4096
_DELTAS_MAX = 2048  # in one message; a batch is of 15 KiB, and no delta has less than 30 bytes


def _uint(n: int) -> bytes:
    if n < 256:
        return _SMALL[n]
    if n < 65536:
        return b"\x19" + n.to_bytes(2, "big")
    if n < 4294967296:
        return b"\x1a" + n.to_bytes(4, "big")
    return b"\x1b" + n.to_bytes(8, "big")


def _bytes_head(n: int) -> bytes:
    if n < 24:
        return bytes((0x40 + n,))
    if n < 256:
        return bytes((0x58, n))
    if n < 65536:
        return b"\x59" + n.to_bytes(2, "big")
    return b"\x5a" + n.to_bytes(4, "big")


def _name(name: str) -> bytes:
    encoded = _NAMES.get(name)
    if encoded is None:
        encoded = encode(name)
        if len(_NAMES) < _NAMES_MAX:
            _NAMES[name] = encoded
    return encoded


def encode_delta(
    key: bytes,
    counter: int,
    previous: int,
    seen: dict[bytes, int],
    changes: dict[str, bytes | None],
    accessed_ms: int,
    created_ms: int | None = None,
    primary: bytes | None = None,
) -> bytes:
    parts = [
        b"\x86\x50" if created_ms is None else b"\x87\x50" if primary is None else b"\x88\x50",
        key, _uint(counter), _uint(previous), encode(seen) if seen else b"\xa0",
        bytes((0xA0 + len(changes),)) if len(changes) < 24 else encode_map_head(len(changes)),
    ]  # fmt: skip
    for name, value in changes.items():
        parts.append(_name(name))
        if value is None:
            parts.append(b"\xf6")
        else:
            parts.append(_bytes_head(len(value)))
            parts.append(value)
    parts.append(_uint(accessed_ms))
    if created_ms is not None:
        parts.append(_uint(created_ms) if created_ms >= 0 else encode(created_ms))
        if primary is not None:
            parts.append(b"\x50" + primary)
    return b"".join(parts)


def encode_map_head(n: int) -> bytes:
    if n < 256:
        return bytes((0xB8, n))
    return b"\xb9" + n.to_bytes(2, "big") if n < 65536 else b"\xba" + n.to_bytes(4, "big")


def encode_array_head(n: int) -> bytes:
    if n < 24:
        return bytes((0x80 + n,))
    if n < 256:
        return bytes((0x98, n))
    return b"\x99" + n.to_bytes(2, "big") if n < 65536 else b"\x9a" + n.to_bytes(4, "big")


def batch_prefix(manager: str, op: int, origin: bytes) -> bytes:
    """Everything of a batch that does not change from one to the next."""
    return b"\x84" + encode(manager) + encode(op) + encode(origin)


def encode_batch(prefix: bytes, deltas: list[bytes]) -> bytes:
    return b"".join((prefix, encode_array_head(len(deltas)), *deltas))


def check_deltas(deltas: Any) -> None:
    """The schema of a batch's deltas, all before any is applied. Raises `RemoteError`."""
    if type(deltas) is not list or len(deltas) > _DELTAS_MAX:
        raise RemoteError(f"deltas: not an array of {_DELTAS_MAX} at most")
    try:
        for delta in deltas:
            key, counter, previous, seen, changes, accessed = delta[:6]
            if not (
                type(key) is bytes and len(key) == KEY_BYTES and type(counter) is int and type(previous) is int
                and 0 <= previous < counter <= COUNTER_MAX and type(accessed) is int and 0 <= accessed <= COUNTER_MAX
                and type(seen) is dict and type(changes) is dict
            ):  # fmt: skip
                raise RemoteError("delta: malformed")
            for name, value in changes.items():
                if type(name) is not str or len(name) > NAME_MAX_BYTES or not (type(value) is bytes or value is None):
                    raise RemoteError("delta: malformed change")
            if seen:
                for origin, count in seen.items():
                    if type(origin) is not bytes or len(origin) != UID_BYTES or type(count) is not int or not 0 <= count <= COUNTER_MAX:
                        raise RemoteError("delta: malformed version map")
            if len(delta) > 6 and not (type(delta[6]) is int and abs(delta[6]) <= COUNTER_MAX):
                raise RemoteError("delta: malformed creation time")
            if len(delta) > 7 and not (type(delta[7]) is bytes and len(delta[7]) == UID_BYTES):
                raise RemoteError("delta: malformed primary")
    except (TypeError, ValueError, LookupError):  # a map refuses a slice as unhashable before Python 3.12, as unknown since
        raise RemoteError("delta: not an array of 6") from None
