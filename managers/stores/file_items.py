"""The files of a space, one by one: written, read, listed. `space` is the descriptor of its directory; all raise `OSError`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from .file_form import HEAD_BYTES, bytes_of, item_of, key_of, pack, unpack
from .private_directory import make_file, open_directory, read_file
from .store import Save, Stored

__all__ = ["Damaged", "buckets", "keys_in", "past_keys_in", "read_item", "write_item"]

_BUCKETS = {f"{number:02x}" for number in range(256)}
_LATEST_MS = 4_102_444_800_000  # 2100: some file systems would cut off a later time


class Damaged(Exception):
    """A file is not what was saved."""


def write_item(space: int, path: str, save: Save) -> int:
    """A descriptor of the new file, for `fsync`. Its time of change says when the item is over: see `past_keys_in`."""
    descriptor = make_file(path, space)
    try:
        data = memoryview(pack(save.key, save.data, save.until_ms))
        while data:
            data = data[os.write(descriptor, data) :]
        _set_time(descriptor, save.until_ms)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_item(space: int, key: bytes, is_wanted: Callable[[Stored], bool] | None = None) -> Stored | None:
    """None if it is not there. Raises `Damaged`. `is_wanted`: one of which it says no was found by a time that is not its file's; the file gets the right one."""
    try:
        with read_file(item_of(key), space) as descriptor:
            if descriptor is None:
                raise Damaged
            with open(descriptor, "rb", closefd=False) as file:
                head = file.read(HEAD_BYTES)
                if bytes_of(head) != os.fstat(descriptor).st_size:
                    raise Damaged
                item = unpack(key, head + file.read())
            if item is None:
                raise Damaged
            if is_wanted is None or is_wanted(item):
                return item
            _set_time(descriptor, item.until_ms)
    except FileNotFoundError:
        pass
    return None


def buckets(space: int) -> list[str]:
    return sorted(_BUCKETS.intersection(os.listdir(space)))


def keys_in(space: int, bucket: str) -> list[bytes]:
    with open_directory(bucket, space) as directory:
        return sorted(key for name in os.listdir(directory) if (key := key_of(bucket, name)) is not None)


def past_keys_in(space: int, bucket: str, now_ms: int) -> Iterator[bytes]:
    """Those whose files say by their time of change that they are over. No file is opened."""
    now_ns = 1_000_000 * now_ms
    with open_directory(bucket, space) as directory, os.scandir(directory) as entries:
        for entry in entries:
            key = key_of(bucket, entry.name)
            try:
                if key is not None and entry.stat(follow_symlinks=False).st_mtime_ns <= now_ns:
                    yield key
            except FileNotFoundError:  # just deleted
                pass


def _set_time(descriptor: int, until_ms: int) -> None:
    time_ns = 1_000_000 * min(max(until_ms, 0), _LATEST_MS)
    os.utime(descriptor, ns=(time_ns, time_ns))
