"""A store in this process's memory. For tests, and to see what a program stores; it outlives a manager, and no process."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from threading import Lock

from .store import BATCH_MAX, NOTHING, Save, Stored, revision_of

__all__ = ["MemoryStore"]

_spaces: dict[tuple[str, str], dict[bytes, Stored]] = {}
_lock = Lock()


class MemoryStore:
    """`name`: all of this process with the same name and space share their items."""

    shared = False

    def __init__(self, name: str, space: str) -> None:
        self.name = name
        self.damaged = 0
        with _lock:
            self._items = _spaces.setdefault((name, space), {})

    def open(self, create: bool = False) -> None:
        pass

    def close(self) -> None:
        pass

    def load(self, keys: Collection[bytes]) -> dict[bytes, Stored]:
        with _lock:
            return {key: self._items[key] for key in keys if key in self._items}

    def save_many(self, saves: Sequence[Save]) -> dict[bytes, bytes]:
        with _lock:
            saved = {save.key: Stored(save.data, save.until_ms, revision_of(save.data)) for save in saves if self._revision(save.key) == save.replaces}
            self._items.update(saved)
        return {key: item.revision for key, item in saved.items()}

    def delete(self, revisions: Mapping[bytes, bytes]) -> None:
        with _lock:
            for key, revision in revisions.items():
                if revision == self._revision(key):
                    self._items.pop(key, None)

    def keys(self, after: bytes = b"", limit: int = BATCH_MAX) -> list[bytes]:
        with _lock:
            ordered = sorted(self._items)
        start = bisect_right(ordered, after)
        return ordered[start : start + limit]

    def expired(self, now_ms: int, limit: int = BATCH_MAX) -> dict[bytes, bytes]:
        with _lock:
            over = [key for key, item in self._items.items() if item.until_ms <= now_ms]
            return {key: self._revision(key) for key in over[:limit]}

    def quarantine(self, revisions: Mapping[bytes, bytes]) -> None:
        with _lock:
            for key, revision in revisions.items():
                if revision == self._revision(key):
                    self.damaged += self._items.pop(key, None) is not None

    def spaces(self) -> list[str]:
        with _lock:
            return sorted(space for name, space in _spaces if name == self.name and _spaces[name, space])

    def clear(self) -> None:
        with _lock:
            self._items.clear()

    def _revision(self, key: bytes) -> bytes:
        item = self._items.get(key)
        return NOTHING if item is None else item.revision
