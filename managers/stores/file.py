"""A store in a directory: one file for each item. For the processes of one machine, on a local file system.

A save writes all its files aside and makes them durable (`fsync`), and only then looks, under a lock, what is there now, renames over that, and makes the names
durable. So a crash at any moment leaves each item old or new, whole, and perhaps files aside (`file_aside.py`). What a file system reports once as not written it may
report as written when it is asked again, so no `fsync` is asked twice: the files are removed, what was there before is put back, and the next save writes new ones.

Readers take no lock: a name leads to one whole file or another. Whose time is over is told by the time of the file's last change, which is set to just that, so `expired`
opens no file in vain; a backup may have changed it, so what the file says counts, and the time is set right again.

    DIRECTORY/space-NAME/ab/abcdef...    an item (`file_form.py`)
                        /.aside/         what is being written
                        /.locks/
                        /.damaged/       what was not what had been saved; for a person to look at, and to delete
"""

from __future__ import annotations

import os
import secrets
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from urllib.parse import quote

from twisted.logger import Logger

from .file_aside import ASIDE, Aside
from .file_form import bucket_of, item_of, space_directory, space_of
from .file_items import Damaged, buckets, keys_in, past_keys_in, read_item
from .file_locks import LOCKS, FileLocks
from .file_swap import Swap, each
from .private_directory import NotPrivate, make_directory, open_directory, sync_directory
from .store import BATCH_MAX, NOTHING, Save, Stored, StoreError, revision_of

__all__ = ["FileStore"]

_DAMAGED = ".damaged"
_log = Logger()


class FileStore:
    """`directory`: absolute; made where its parent is there. `timeout_s`: how long a change waits for others that change the same items; what the disk takes comes on top."""

    shared = False

    def __init__(self, directory: Path, space: str, timeout_s: float = 2.0) -> None:
        self.name = f"file://{quote(os.fsencode(directory))}"
        self.damaged = 0
        self._root = directory
        self._directory = space_directory(space)
        self._aside = Aside()
        self._locks = FileLocks(timeout_s)
        self._counting = Lock()
        self._next = ""  # the bucket that `expired` goes on with

    def open(self, create: bool = False) -> None:
        with self._told("be opened"):
            if not self._root.parent.is_dir():
                raise StoreError(f"store {self.name} cannot be opened: {self._root.parent} is not there: make it")
            make_directory(self._root)
            with open_directory(self._root) as root:
                make_directory(self._directory, root)
        with self._space("be opened") as space:
            for directory in (ASIDE, LOCKS, _DAMAGED):
                make_directory(directory, space)
            left = self._aside.sweep(space)
            self._aside.name(space)  # which shows that it can be written to
        if left:
            _log.info("store {name}: a crash left {left} unfinished files, which are removed", name=self.name, left=left)

    def close(self) -> None:
        self._aside.close()
        with suppress(StoreError), self._space("be closed") as space:
            self._aside.sweep(space)

    def load(self, keys: Collection[bytes]) -> dict[bytes, Stored]:
        with self._space("be read") as space:
            return {key: item for key in keys if (item := self._read(space, key)) is not None}

    def save_many(self, saves: Sequence[Save]) -> dict[bytes, bytes]:
        saved = {}
        with self._space("save") as space, Swap(space, self._aside) as swap:
            saves = [save for save in saves if self._has(space, save)]  # nothing is written for what is refused anyway
            swap.write(saves)
            with self._locks.of(space, (save.key for save in saves)), swap.changing():
                for save in saves:
                    if self._revision(space, save.key) == save.replaces:
                        swap.put(save.key, replaces=save.replaces != NOTHING)
                        saved[save.key] = revision_of(save.data)
        return saved

    def delete(self, revisions: Mapping[bytes, bytes]) -> None:
        with self._space("delete") as space, Swap(space, self._aside) as swap, self._locks.of(space, revisions), swap.changing():
            for key, revision in revisions.items():
                if revision != NOTHING and self._revision(space, key) == revision:
                    swap.take(key)

    def keys(self, after: bytes = b"", limit: int = BATCH_MAX) -> list[bytes]:
        found: list[bytes] = []
        with self._space("be read") as space:
            for bucket in buckets(space):
                if len(found) < limit and bucket >= after[:1].hex():
                    found += [key for key in keys_in(space, bucket) if key > after]
        return found[:limit]

    def expired(self, now_ms: int, limit: int = BATCH_MAX) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        with self._space("be read") as space:
            there = buckets(space)
            first = bisect_left(there, self._next)
            for bucket in there[first:] + there[:first]:  # a caller with a small limit must not look through the same ones each time
                self._next = bucket
                for key in past_keys_in(space, bucket, now_ms):
                    if len(found) == limit:
                        return found
                    item = self._read(space, key, lambda item: item.until_ms <= now_ms)
                    if item is not None:
                        found[key] = item.revision
        return found

    def quarantine(self, revisions: Mapping[bytes, bytes]) -> None:
        with self._space("put items out of the way") as space, self._locks.of(space, revisions):
            for key, revision in revisions.items():
                if revision != NOTHING and self._revision(space, key) == revision:
                    self._put_away(space, key)
            touched = {bucket_of(key) for key in revisions}.intersection(buckets(space))
            each(lambda bucket: sync_directory(bucket, space), sorted(touched))

    def spaces(self) -> list[str]:
        with self._told("be read"), open_directory(self._root) as root:
            named = [(space, name) for name in os.listdir(root) if (space := space_of(name)) is not None]
            return sorted(space for space, name in named if _holds_something(root, name))

    def clear(self) -> None:
        with self._space("be cleared") as space:
            for bucket in buckets(space):
                with self._locks.of(space, [bytes.fromhex(bucket)]):
                    each(lambda key: os.unlink(item_of(key), dir_fd=space), keys_in(space, bucket))
                    sync_directory(bucket, space)

    @contextmanager
    def _space(self, doing: str) -> Iterator[int]:
        """The directory of the space, after a look whether it still is one of ours."""
        with self._told(doing), open_directory(self._root) as root, open_directory(self._directory, root) as space:
            yield space

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise StoreError(f"store {self.name} cannot {doing}: {self._root}, or a directory in it, is not there") from None
        except OSError as error:
            raise StoreError(f"store {self.name} cannot {doing}: {error.strerror}") from None
        except NotPrivate as error:
            raise StoreError(f"store {self.name} cannot {doing}: {error}") from None

    def _read(self, space: int, key: bytes, is_wanted: Callable[[Stored], bool] | None = None) -> Stored | None:
        """What is damaged is put away; where that is not possible, it is not there all the same."""
        try:
            return read_item(space, key, is_wanted)
        except Damaged:
            pass
        with suppress(OSError), self._locks.of(space, [key]):  # so that nobody has just saved it anew
            if self._revision(space, key) != NOTHING:
                return read_item(space, key, is_wanted)
        return None

    def _has(self, space: int, save: Save) -> bool:
        """Whether what it replaces is there, at this moment."""
        item = self._read(space, save.key)
        return save.replaces == (NOTHING if item is None else item.revision)

    def _revision(self, space: int, key: bytes) -> bytes:
        """Of what is there. Under the lock: what is damaged is put away."""
        try:
            item = read_item(space, key)
        except Damaged:
            self._put_away(space, key)
            path = self._root / self._directory / _DAMAGED
            _log.error("store {name}: item {key}... was not what had been saved, and is in {path} now", name=self.name, key=key.hex()[:8], path=path)
            return NOTHING
        return NOTHING if item is None else item.revision

    def _put_away(self, space: int, key: bytes) -> None:
        """Under the lock."""
        os.rename(item_of(key), f"{_DAMAGED}/{key.hex()}.{secrets.token_hex(4)}", src_dir_fd=space, dst_dir_fd=space)
        with self._counting:
            self.damaged += 1


def _holds_something(root: int, directory: str) -> bool:
    with open_directory(directory, root) as space:
        return any(keys_in(space, bucket) for bucket in buckets(space))
