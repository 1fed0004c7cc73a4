"""`ReplicatedMap`: a dictionary that all members of the cluster share, on the engine that replicates sessions.

For what is not one user's: settings, counters, who is logged in. A map is a number of *buckets*, each a session that never ends,
whose id every member makes from the map's name; a key lies in the bucket that its hash says. So an entry is an attribute, and everything
that holds for attributes holds here: a write travels as one small delta, of two writes that did not know of each other the same one stands
everywhere, merging values (`Counter`, `MergingSet`, ...) add up, and what was removed stays removed.

Tomcat's replicated context attributes and Hazelcast's `ReplicatedMap` and `IMap` are the models.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, MutableMapping, ValuesView
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import Any

from twisted.python.threadable import isInIOThread

from .base import SessionManager
from .errors import SessionUnknown, ValueRefused
from .listeners import AttributeChanged
from .receipts import Receipt
from .session import Session, key_of

__all__ = ["MapChanged", "MapEntry", "ReplicatedMap"]

_TOGETHER = 1000  # changes in one commit


@dataclass(frozen=True, slots=True)
class MapChanged:
    """An entry was set or removed, here or elsewhere."""

    key: str
    removed: bool


class MapEntry:
    """One entry while it is changed, see `ReplicatedMap.entry`."""

    def __init__(self, session: Session, key: str) -> None:
        self._session = session
        self._key = key

    @property
    def value(self) -> Any:
        """None where there is none. May be changed in place, if it is mutable."""
        return self._session.get(self._key)

    @value.setter
    def value(self, value: Any) -> None:
        self._session[self._key] = value

    def remove(self) -> None:
        self._session.pop(self._key, None)


class ReplicatedMap(MutableMapping[str, Any]):
    """Keys are texts (1 to 256 bytes), values what sessions may hold. Any thread.

    A value that is read is a copy: to change it, set it again, or use `entry`. Reads and writes of a `partitioned` map (and of any map on a lite
    member) may have to ask another member, for `lookup_timeout_s` at most; in the reactor's thread they raise `SessionUnknown` instead.
    They raise it too where nobody could say whether an entry exists, as sessions do. Writes raise `ValueRefused`.
    """

    def __init__(self, name: str, manager: SessionManager, buckets: int) -> None:
        self.name = name
        self._manager = manager
        self._ids = [_bucket_id(name, number) for number in range(buckets)]
        self._keys = frozenset(key_of(bucket) for bucket in self._ids)

    def __repr__(self) -> str:
        return f"<ReplicatedMap {self.name}>"

    # -- the mapping

    def __getitem__(self, key: str) -> Any:
        with self._opened(self._id_of(key)) as bucket:
            return bucket[key]

    def __setitem__(self, key: str, value: Any) -> None:
        with self._changing(self._id_of(key)) as bucket:
            bucket[key] = value

    def __delitem__(self, key: str) -> None:
        with self._changing(self._id_of(key)) as bucket:
            del bucket[key]

    def __iter__(self) -> Iterator[str]:
        """Keys by bucket: of the moment at which their bucket is reached, without those whose values this process cannot decode."""
        for bucket_id in self._ids:
            with self._opened(bucket_id) as bucket:
                keys = list(bucket)
            yield from keys

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def put(self, key: str, value: Any, acks: str | int | None = None) -> Receipt:
        """Set one entry, without waiting; the receipt says which members have it. `acks` overrides the map's level. Raises `ValueRefused`."""
        with self._changing(self._id_of(key), acks, wait=False) as bucket:
            bucket[key] = value
        return bucket.receipt

    def update(self, *others: Any, **entries: Any) -> None:
        """As for a `dict`. Entries of one bucket change together, a thousand at a time."""
        by_bucket: dict[str, dict[str, Any]] = {}
        for key, value in dict(*others, **entries).items():
            by_bucket.setdefault(self._id_of(key), {})[key] = value
        for bucket_id, some in sorted(by_bucket.items()):
            items = list(some.items())
            for at in range(0, len(items), _TOGETHER):
                with self._changing(bucket_id) as bucket:
                    bucket.update(items[at : at + _TOGETHER])

    def clear(self) -> None:
        """Remove all entries that are known here now, and that this process can decode."""
        for bucket_id in self._ids:
            while True:
                with self._changing(bucket_id) as bucket:
                    some = list(islice(bucket, _TOGETHER))
                    for key in some:
                        del bucket[key]
                if len(some) < _TOGETHER:
                    break

    def pop(self, key: str, *default: Any) -> Any:
        """As for a `dict`; of two that pop at the same time both may get it."""
        with self._changing(self._id_of(key)) as bucket:
            return bucket.session.pop(key, *default)

    def items(self) -> ItemsView[str, Any]:
        """A copy of what is there now, bucket by bucket."""
        return self._copy().items()

    def values(self) -> ValuesView[Any]:
        """The same, without the keys."""
        return self._copy().values()

    def _copy(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for bucket_id in self._ids:
            with self._opened(bucket_id) as bucket:
                found.update(bucket)
        return found

    @contextmanager
    def entry(self, key: str, acks: str | int | None = None) -> Iterator[MapEntry]:
        """Change one entry in place: ``with hits.entry("/") as entry: entry.value.add(1)``. Committed at the end, unless that raises."""
        with self._changing(self._id_of(key), acks) as bucket:
            yield MapEntry(bucket.session, key)

    # -- events

    def listen(self, callback: Callable[[MapChanged], None]) -> None:
        """Call `callback` in the reactor's thread when an entry changes that this member holds, wherever that was done. It must not block."""

        def changed(event: AttributeChanged) -> None:
            if event.key in self._keys:
                callback(MapChanged(event.name, event.removed))

        self._manager.listen(AttributeChanged, changed, replicas=True)

    # -- inside

    def _id_of(self, key: str) -> str:
        if type(key) is not str:
            raise ValueRefused(f"{self.name}[{key!r}]: a key is a text")
        return self._ids[int.from_bytes(sha256(key.encode("utf-8", "surrogatepass")).digest()[:4], "big") % len(self._ids)]

    @contextmanager
    def _opened(self, bucket_id: str) -> Iterator[Session]:
        session = self._open(bucket_id)
        try:
            if session.unknown:
                raise SessionUnknown(f"map {self.name}: the members that hold this part of it do not answer; try again in a moment")
            yield session
        finally:
            self._manager.release(session)

    @contextmanager
    def _changing(self, bucket_id: str, acks: str | int | None = None, wait: bool = True) -> Iterator[_Bucket]:
        with self._opened(bucket_id) as session:
            bucket = _Bucket(session, self.name)
            yield bucket
            bucket.receipt = self._manager.commit(session, acks, touch=False)
        if wait and bucket.receipt.needs_wait and not isInIOThread():
            bucket.receipt.wait()

    def _open(self, bucket_id: str) -> Session:
        session = self._manager.open_local(bucket_id)
        if session is None:
            if isInIOThread():
                raise SessionUnknown(f"map {self.name}: another member has to be asked, and the reactor's thread cannot wait; use a thread")
            session = self._manager.open(bucket_id)
        if session.new and not session.unknown:
            session.adopt(bucket_id)
        return session


class _Bucket:
    """A bucket that is being changed: its mistakes name the map."""

    receipt: Receipt

    def __init__(self, session: Session, name: str) -> None:
        self.session = session
        self._name = name

    def __iter__(self) -> Iterator[str]:
        return iter(self.session)

    def __setitem__(self, key: str, value: Any) -> None:
        try:
            self.session[key] = value
        except ValueRefused as error:
            raise ValueRefused(f"map {self._name}: {error}") from None

    def __delitem__(self, key: str) -> None:
        del self.session[key]

    def update(self, entries: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
        for key, value in dict(entries).items():
            self[key] = value


def _bucket_id(name: str, number: int) -> str:
    """The same on every member: 43 characters, as sessions' ids have."""
    return urlsafe_b64encode(sha256(b"caterwaul map\0%s\0%d" % (name.encode(), number)).digest()).rstrip(b"=").decode("ascii")
