"""The near cache: copies that a member has although others hold the session; and who is told when one is stale.

A holder is told of every change. A copy anywhere else is right only for as long as somebody watches over it: a reader that
fetches a session from a holder is remembered there as its *watcher*, and the next change tells it, once. Its copy is stale
from then on: it is neither served nor given to others as the truth, and goes when those who hold the session have confirmed
what is in it (`handover.py`); so a write made here is never in the near cache alone. A fresh copy is trusted without a question
while the link to the holder that watches stands: what the holder cannot tell, the loss of the link tells.

Both sides are bounded, the least recently used first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

__all__ = ["NearCache", "Watchers"]


class NearCache:
    """The reader's side, by key. `most`: fresh copies kept. Guarded by the manager's lock."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._sources: OrderedDict[bytes, bytes | None] = OrderedDict()  # key -> the holder that watches over it; None: stale
        self._fresh = 0
        self.hits = self.stale = 0

    def __contains__(self, key: bytes) -> bool:
        return key in self._sources

    def __len__(self) -> int:
        return len(self._sources)

    @property
    def fresh(self) -> int:
        return self._fresh

    def hold(self, key: bytes) -> None:
        """There is a copy of this; unless somebody watches over it already, it is stale."""
        self._sources.setdefault(key, None)

    def fetched(self, key: bytes, source: bytes) -> None:
        """A holder has just given it, and watches."""
        self._fresh += self._sources.get(key) is None
        self._sources[key] = source
        self._sources.move_to_end(key)

    def changed(self, keys: Iterable[bytes]) -> list[bytes]:
        """The copies that were fresh, and are stale now."""
        stale = [key for key in keys if self._sources.get(key) is not None]
        for key in stale:
            self._sources[key] = None
        self._fresh -= len(stale)
        self.stale += len(stale)
        return stale

    def lost(self, source: bytes) -> list[bytes]:
        """This holder watches no more. The same."""
        return self.changed([key for key, watching in self._sources.items() if watching == source])

    def expire(self) -> None:
        """All are stale."""
        self.changed(list(self._sources))

    def is_fresh(self, key: bytes) -> bool:
        return self._sources.get(key) is not None

    def use(self, key: bytes) -> bool:
        """Whether its copy may be served without a question; a use of it."""
        if self._sources.get(key) is None:
            return False
        self._sources.move_to_end(key)
        self.hits += 1
        return True

    def clear(self) -> None:
        """There are none any more."""
        self._sources.clear()
        self._fresh = 0

    def forget(self, key: bytes) -> None:
        self._fresh -= self._sources.pop(key, None) is not None

    def trim(self) -> list[bytes]:
        """Fresh copies over the bound, the least recently used first; they are stale now."""
        over = self._fresh - self.most
        if over <= 0:
            return []
        return self.changed([key for key, _ in zip((key for key, source in self._sources.items() if source is not None), range(over), strict=False)])


class Watchers:
    """The holder's side. Over `most` keys the oldest watch ends, as if its session had changed."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._watching: OrderedDict[bytes, set[bytes]] = OrderedDict()
        self._told: dict[bytes, list[bytes]] = {}  # watcher -> keys it has to be told of

    def __bool__(self) -> bool:
        return bool(self._watching)

    def watch(self, key: bytes, reader: bytes) -> None:
        self._watching.setdefault(key, set()).add(reader)
        self._watching.move_to_end(key)
        if len(self._watching) > self._most:
            self.changed((next(iter(self._watching)),))

    def changed(self, keys: Iterable[bytes], author: bytes = b"") -> None:
        """These have changed; `author` knows already, and goes on watching."""
        for key in keys:
            readers = self._watching.pop(key, None)
            for reader in sorted(readers or ()):
                if reader != author:
                    self._told.setdefault(reader, []).append(key)
                else:
                    self._watching.setdefault(key, set()).add(reader)

    def lost(self, reader: bytes) -> None:
        """It has no link to us any more, and takes all it has for stale."""
        for key in [key for key, readers in self._watching.items() if reader in readers]:
            self._watching[key].discard(reader)
            if not self._watching[key]:
                del self._watching[key]
        self._told.pop(reader, None)

    def take(self) -> list[tuple[bytes, list[bytes]]]:
        """(watcher, keys that are stale), once."""
        told, self._told = self._told, {}
        return sorted(told.items())
