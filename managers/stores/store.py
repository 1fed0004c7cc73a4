"""What a store is: a dictionary that outlives the cluster, from keys of sessions to bytes it does not look into.

Many nodes write to one store at the same time, and none of them locks anything. Each save names the *revision* of what it replaces, and a store changes an
item only if that is what it still has (compare-and-set). Who is refused loads what is there, merges, and saves again: sessions merge in any order (`record.py`).
A revision is a hash of the bytes, so no counter has to be kept, or can be wrong after an import; an item that went and came back the same is the same.

Each item says until when it matters. A store may drop it then. A session's end is an item like others, so that what has ended stays ended (`retention_s`).

Rules for a store.

- What `save_many` and `delete` returned for is durable: it survives the loss of this process, and as much more as the store's kind promises.
- An item is the old one or the new one, whole; never a part of one, whatever crashes when.
- All methods block, for `timeout_s` about; they are called in threads, several at once. The reactor never calls one.
- What goes wrong outside is a `StoreError`, whose text names the store and shows no password. The connection is made again by itself at the next call.
- What is damaged is not returned, but put out of the way and counted (`damaged`), as if it were not there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple, Protocol

from ...membership.errors import LocalError

__all__ = ["BATCH_MAX", "NOTHING", "Save", "Store", "StoreError", "Stored", "revision_of"]

BATCH_MAX = 1000  #: items or keys per call
NOTHING = b""  #: the revision of what is not there
_REVISION_BYTES = 16


class StoreError(LocalError):
    """The store does not answer, refuses, or is full; what was asked for has not happened, or nobody knows. Trying again later is right."""


def revision_of(data: bytes) -> bytes:
    """Of an item that a store holds: 16 bytes (BLAKE2b)."""
    return blake2b(data, digest_size=_REVISION_BYTES).digest()


class Stored(NamedTuple):
    """`until_ms`: since 1970; from then on nobody misses it. `revision`: what a `Save` that replaces it names."""

    data: bytes
    until_ms: int
    revision: bytes


class Save(NamedTuple):
    """`replaces`: the revision of what is there now, `NOTHING` for an item that is not."""

    key: bytes
    data: bytes
    until_ms: int
    replaces: bytes = NOTHING


class Store(Protocol):
    """The items of one *space* (a session manager's name) of one store. Keys have 16 bytes; no call takes more than `BATCH_MAX` of them. Any thread; raises `StoreError`.

    `name`: the URL without a password, for messages. `damaged`: items that were put out of the way because they were not what had been saved. `shared`: whether the
    processes of several machines can reach the same items.
    """

    name: str
    shared: bool

    @property
    def damaged(self) -> int: ...

    def open(self, create: bool = False) -> None:
        """Get ready, and see that it works. `create`: make what the store needs (a directory, tables), or bring it to this version; without, an error says that it has to be done.

        Embedded stores (a directory, SQLite) are made in either case when there is nothing there yet.
        """

    def close(self) -> None:
        """Let go of files and connections. Any number of times; nothing is called after it."""

    def load(self, keys: Collection[bytes]) -> dict[bytes, Stored]:
        """Those of these that are there."""

    def save_many(self, saves: Sequence[Save]) -> dict[bytes, bytes]:
        """The new revisions of those that were saved, and are durable. The others are not there: something else is than what they replace. No key comes twice."""

    def delete(self, revisions: Mapping[bytes, bytes]) -> None:
        """Delete these if they still are what is named here."""

    def keys(self, after: bytes = b"", limit: int = BATCH_MAX) -> list[bytes]:
        """The next keys in ascending order, after this one (empty: from the first); also those whose time is over. Only none at all says that there are no more. What others
        write at the same moment may be missing."""

    def expired(self, now_ms: int, limit: int = BATCH_MAX) -> dict[bytes, bytes]:
        """Revisions of some whose time is over, for `delete`. A store that drops them by itself has none."""

    def quarantine(self, revisions: Mapping[bytes, bytes]) -> None:
        """Put these out of the way if they still are what is named here: no method finds them any more, but a person can. They count as `damaged`. What somebody has saved
        meanwhile stays."""

    def spaces(self) -> list[str]:
        """Names of all spaces of this store that hold something."""

    def clear(self) -> None:
        """Delete all items of this space."""
