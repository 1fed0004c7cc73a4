"""The file of one item, and what files and directories are called.

A file is a head (magic with version, until when it matters, length, checksum) and the data. The checksum is over all of it *and the key*, so a file that was
cut, changed, or copied to the name of another item is not taken for that item. It finds accidents; who changes things on purpose can make a new one (`sealed.py`).

No name is made of input: an item is called by its key in hex, which is a hash itself, and a space by its bytes, of which only those stand for themselves that mean
nothing to any file system. Upper case is written as hex too, as some take it for lower case.
"""

from __future__ import annotations

import string
import struct
from hashlib import blake2b
from urllib.parse import unquote_to_bytes

from ...membership.errors import LocalError
from ..changes import KEY_BYTES
from .store import Stored, revision_of

__all__ = ["HEAD_BYTES", "bucket_of", "bytes_of", "item_of", "key_of", "pack", "space_directory", "space_of", "unpack"]

_MAGIC = b"CWi1"
_HEAD = struct.Struct(">4sqQ")
_SUM_BYTES = 16
HEAD_BYTES = _HEAD.size + _SUM_BYTES
_PLAIN = frozenset((string.ascii_lowercase + string.digits + "-_.").encode())
_SPACE = "space-"
_NAME_BYTES_MAX = 255  # of any file system in use


def pack(key: bytes, data: bytes, until_ms: int) -> bytes:
    """The file's bytes."""
    head = _HEAD.pack(_MAGIC, until_ms, len(data))
    return head + _sum(head, key, data) + data


def bytes_of(head: bytes) -> int:
    """How many bytes a file has that begins so; zero for none of ours."""
    if len(head) != HEAD_BYTES or not head.startswith(_MAGIC):
        return 0
    _, _, length = _HEAD.unpack_from(head)
    return HEAD_BYTES + int(length)


def unpack(key: bytes, file: bytes) -> Stored | None:
    """What was packed under this key; None if that is not what this is."""
    if bytes_of(file[:HEAD_BYTES]) != len(file):
        return None
    data = file[HEAD_BYTES:]
    if _sum(file[: _HEAD.size], key, data) != file[_HEAD.size : HEAD_BYTES]:
        return None
    _, until_ms, _ = _HEAD.unpack_from(file)
    return Stored(data, until_ms, revision_of(data))


def bucket_of(key: bytes) -> str:
    """The directory, of 256, that an item is in: one with a million files is slow."""
    return f"{key[0]:02x}"


def item_of(key: bytes) -> str:
    """The item's path in its space."""
    return f"{key[0]:02x}/{key.hex()}"


def key_of(bucket: str, name: str) -> bytes | None:
    """The key of a file in a bucket; None for a file that is no item."""
    if len(name) != 2 * KEY_BYTES or not name.startswith(bucket) or not set(name) <= set("0123456789abcdef"):
        return None
    return bytes.fromhex(name)


def space_directory(space: str) -> str:
    """Raises `LocalError` for one that is too long."""
    name = _SPACE + "".join(chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in space.encode())
    if len(name) > _NAME_BYTES_MAX:
        raise LocalError(f"a manager's name of {len(space)} characters makes a directory's name of {len(name)} bytes: at most {_NAME_BYTES_MAX} are possible")
    return name


def space_of(directory: str) -> str | None:
    """The space that this is the directory of; None for something else."""
    if not directory.startswith(_SPACE):
        return None
    space = unquote_to_bytes(directory.removeprefix(_SPACE)).decode("utf-8", "replace")
    return space if space_directory(space) == directory else None


def _sum(head: bytes, key: bytes, data: bytes) -> bytes:
    summing = blake2b(head, digest_size=_SUM_BYTES)
    summing.update(key)
    summing.update(data)
    return summing.digest()
