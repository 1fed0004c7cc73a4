"""Files that take the place of others together: all of them, lastingly, or none.

`write` makes the new ones durable aside. Under the lock `put` and `take` change names, and `changing` makes the names durable at its end, each directory once. If any
of that fails, all is put back: what was there has a second name aside until then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType

from .file_aside import Aside
from .file_form import bucket_of, item_of
from .file_items import write_item
from .private_directory import make_directory, sync_directory
from .store import Save

__all__ = ["Swap"]

_FILES_MAX = 64  # open at the same time


class Swap:
    """`with Swap(space, aside) as swap:` removes what is aside in the end. One thread. All raise `OSError`."""

    def __init__(self, space: int, aside: Aside) -> None:
        self._space = space
        self._aside = aside
        self._files: set[str] = set()  # aside
        self._new: dict[bytes, str] = {}
        self._undo: list[tuple[str, str]] = []  # an item; what was there before, or nothing
        self._touched: set[str] = set()

    def __enter__(self) -> Swap:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for path in self._files:
            with suppress(OSError):  # the next who opens the store does it
                os.unlink(path, dir_fd=self._space)

    def write(self, saves: Sequence[Save]) -> None:
        """The files of all, aside and durable. All are written before one is waited for: a file system makes many durable about as fast as one."""
        for first in range(0, len(saves), _FILES_MAX):
            with ExitStack() as files:
                descriptors = []
                for save in saves[first : first + _FILES_MAX]:
                    path = self._new[save.key] = self._name()
                    descriptors.append(write_item(self._space, path, save))
                    files.callback(os.close, descriptors[-1])
                for descriptor in descriptors:
                    os.fsync(descriptor)

    @contextmanager
    def changing(self) -> Iterator[None]:
        try:
            yield
            for bucket in sorted(self._touched):
                sync_directory(bucket, self._space)
        except BaseException:
            for item, before in reversed(self._undo):
                with suppress(OSError):  # nobody knows then, as the error says
                    self._rename(before, item) if before else os.unlink(item, dir_fd=self._space)
            raise

    def put(self, key: bytes, replaces: bool) -> None:
        """The new file becomes the item. `replaces`: there is one."""
        item, bucket, before = item_of(key), bucket_of(key), ""
        if replaces:
            before = self._name()
            os.link(item, before, src_dir_fd=self._space, dst_dir_fd=self._space, follow_symlinks=False)
        else:
            make_directory(bucket, self._space)
        self._undo.append((item, before))
        self._touched.add(bucket)
        self._rename(self._new[key], item)

    def take(self, key: bytes) -> None:
        """The item is gone."""
        item, before = item_of(key), self._name()
        self._touched.add(bucket_of(key))
        try:
            self._rename(item, before)
        except FileNotFoundError:
            pass
        except OSError:  # a full disk: this is what makes room again
            os.unlink(item, dir_fd=self._space)
        else:
            self._undo.append((item, before))

    def _name(self) -> str:
        path = self._aside.name(self._space)
        self._files.add(path)
        return path

    def _rename(self, before: str, after: str) -> None:
        os.rename(before, after, src_dir_fd=self._space, dst_dir_fd=self._space)
