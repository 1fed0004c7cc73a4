"""The contract of stores: every kind of store passes every test, and does step by step what a dictionary would do.

A kind of store takes part by one entry in `KINDS`: how a fresh *place* is made, of which any number of `Store` objects can be had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from caterwaul.managers.stores.opening import open_store
from caterwaul.managers.stores.store import NOTHING, Save, Store, Stored
from caterwaul.membership.secret import Secret

from ..real import databases
from ..real.databases import Database
from ..real.redis_processes import shared_cluster, shared_server
from ..real.redis_processes import what_is_missing as redis_missing

FAR_MS = 4_000_000_000_000  # in 2096
OVER_MS = 1_000_000_000_000  # in 2001
WRONG = b"\x01" * 16
SECRET = Secret(b"contract of stores")


def _unbreakable() -> AbstractContextManager[None]:
    raise AssertionError("a kind that `breaks` gives its places `broken`")


@dataclass
class Place:
    """Where items are. `store`: of a space, not opened yet; all that it makes share their items. `broken`: meanwhile nobody reaches them; they are there again afterwards."""

    store: Callable[[str], Store]
    broken: Callable[[], AbstractContextManager[None]] = _unbreakable


class Kind(NamedTuple):
    """`place`: a fresh one; it may use the directory. `missing`: why it cannot be tested on this machine. `drops`: what is over goes by itself, at any time. `breaks`: has `Place.broken`."""

    name: str
    place: Callable[[Path], AbstractContextManager[Place]]
    missing: Callable[[], str] = str
    drops: bool = False
    breaks: bool = False


_numbers = count()


@contextmanager
def _memory(directory: Path) -> Iterator[Place]:
    url = f"memory:contract-{next(_numbers)}"
    yield Place(lambda space: open_store(url, space))


@contextmanager
def _sealed(directory: Path, encrypt: bool = False) -> Iterator[Place]:
    url = f"memory:contract-{next(_numbers)}"
    yield Place(lambda space: open_store(url, space, secret=SECRET, encrypt=encrypt))


@contextmanager
def _file(directory: Path) -> Iterator[Place]:
    where, away = directory / "store", directory / "away"

    @contextmanager
    def broken() -> Iterator[None]:
        where.rename(away)
        where.touch()
        try:
            yield
        finally:
            where.unlink()
            away.rename(where)

    yield Place(lambda space: open_store(where.as_uri(), space), broken)


@contextmanager
def _sqlite(directory: Path) -> Iterator[Place]:
    yield Place(lambda space: open_store(f"sqlite:///{directory}/sessions.db", space, timeout_s=20.0))


def _server(running: Callable[[], Database], options: str) -> Callable[[Path], AbstractContextManager[Place]]:
    """In one database, which is emptied for the next. In the clear, as the contract opens hundreds of stores."""

    held: dict[str, Store] = {}  # one that is open all the time keeps what SQLAlchemy has learned about the database

    @contextmanager
    def place(directory: Path) -> Iterator[Place]:
        database = running()
        url = database.emptied() + options
        if url not in held:
            held[url] = open_store(url, "held", timeout_s=20.0)
        yield Place(lambda space: open_store(url, space, timeout_s=20.0), database.down)

    return place


@contextmanager
def _redis(directory: Path) -> Iterator[Place]:
    server = shared_server()
    server.ask("FLUSHALL")
    yield Place(lambda space: open_store(server.url, space), server.down)


@contextmanager
def _redis_cluster(directory: Path) -> Iterator[Place]:
    nodes = shared_cluster()
    for node in nodes:
        node.ask("FLUSHALL")
    yield Place(lambda space: open_store(nodes[0].url.replace("redis:", "redis+cluster:"), space))


KINDS = [
    Kind("memory", _memory),
    Kind("authenticated", _sealed),
    Kind("encrypted", partial(_sealed, encrypt=True)),
    Kind("file", _file, breaks=True),
    Kind("sqlite", _sqlite),
    Kind("postgresql", _server(databases.postgresql, "?sslmode=disable"), databases.postgresql_missing, breaks=True),
    Kind("mariadb", _server(databases.mariadb, "?ssl_disabled=true"), databases.mariadb_missing, breaks=True),
    Kind("redis", _redis, redis_missing, drops=True, breaks=True),
    Kind("redis-cluster", _redis_cluster, redis_missing, drops=True),
]


KEYS = [bytes(16), bytes(15) + b"\x01", b"/../\0\n%_'\"\\;*?\xff\xfe", b"\x7f" * 16, b"\x80" * 16, b"\xff" * 16]
SPACES = ["shop", "sso:shop"]
_key = st.sampled_from(KEYS)
_space = st.sampled_from(SPACES)
_which = st.sampled_from([0, 1])
_until = st.sampled_from([1, OVER_MS - 1, OVER_MS, FAR_MS, FAR_MS + 1])
_how = st.sampled_from(["right", "right", "nothing", "wrong", "stale"])


class Lockstep(RuleBasedStateMachine):
    """Two stores of each of two spaces, and what must be in them. What is over may be gone where the kind drops it: then either is right."""

    def __init__(self, kind: Kind, directory: Path) -> None:
        super().__init__()
        self._kind = kind
        self._stack = ExitStack()
        directory.mkdir()
        self._place = self._stack.enter_context(kind.place(directory))
        self._items: dict[str, dict[bytes, Stored]] = {space: {} for space in SPACES}
        self._before: dict[bytes, bytes] = {}  # the revision that a key had before its present one
        self._stores = {space: [self._open(space), self._open(space)] for space in SPACES}

    def teardown(self) -> None:
        for store in (store for pair in self._stores.values() for store in pair):
            store.close()
        self._stack.close()

    @rule(space=_space, which=_which, wishes=st.dictionaries(_key, st.tuples(st.binary(max_size=40), _until, _how)))
    def save(self, space: str, which: int, wishes: dict[bytes, tuple[bytes, int, str]]) -> None:
        saves = [Save(key, data, until_ms, self._revision(space, key, how)) for key, (data, until_ms, how) in wishes.items()]
        saved = self._stores[space][which].save_many(saves)
        assert set(saved) <= set(wishes)
        for save in saves:
            possible = self._possible(space, save.key)
            if save.key in saved:
                assert save.replaces in possible
                assert saved[save.key] not in (NOTHING, WRONG)
                self._before[save.key] = save.replaces
                self._items[space][save.key] = Stored(save.data, save.until_ms, saved[save.key])
            else:
                assert possible != {save.replaces}

    @rule(space=_space, which=_which, wishes=st.dictionaries(_key, _how))
    def delete(self, space: str, which: int, wishes: dict[bytes, str]) -> None:
        named = {key: self._revision(space, key, how) for key, how in wishes.items()}
        self._stores[space][which].delete(named)
        items = self._items[space]
        for key in [key for key, revision in named.items() if key in items and items[key].revision == revision]:
            del items[key]

    @rule(space=_space, which=_which, keys=st.sets(_key))
    def load(self, space: str, which: int, keys: set[bytes]) -> None:
        found = self._stores[space][which].load(keys)
        assert set(found) <= keys
        for key in keys:
            item = self._items[space].get(key)
            if item is not None and key not in found and self._may_be_gone(item):
                del self._items[space][key]
            else:
                assert found.get(key) == item

    @rule(space=_space, which=_which, after=st.sampled_from([b"", *KEYS, bytes(14) + b"\xff\xff"]), limit=st.integers(1, 7))
    def page(self, space: str, which: int, after: bytes, limit: int) -> None:
        found = self._stores[space][which].keys(after, limit)
        items = self._items[space]
        assert found == sorted(set(found))
        assert len(found) <= limit
        assert all(key > after and key in items for key in found)
        end = found[-1] if len(found) == limit else max(KEYS)
        assert {key for key, item in items.items() if after < key <= end and not self._may_be_gone(item)} <= set(found)

    @rule(space=_space, which=_which, now_ms=st.sampled_from([1, OVER_MS - 1, OVER_MS, FAR_MS]), limit=st.integers(1, 7))
    def expired(self, space: str, which: int, now_ms: int, limit: int) -> None:
        found = self._stores[space][which].expired(now_ms, limit)
        over = {key: item.revision for key, item in self._items[space].items() if item.until_ms <= now_ms}
        assert len(found) <= limit
        assert found.items() <= over.items()
        assert self._kind.drops or len(found) == min(limit, len(over))

    @rule(space=_space, which=_which, keys=st.sets(_key), changed=st.sets(_key))
    def quarantine(self, space: str, which: int, keys: set[bytes], changed: set[bytes]) -> None:
        """`changed`: what is something else than who puts it away has seen."""
        store = self._stores[space][which]
        before = store.damaged
        store.quarantine({key: item.revision if (item := self._items[space].get(key)) is not None and key not in changed else WRONG for key in keys | changed})
        there = [self._items[space].pop(key) for key in (keys - changed) & set(self._items[space])]
        certain = sum(not self._may_be_gone(item) for item in there)
        assert certain <= store.damaged - before <= len(there)

    @rule(space=_space, which=_which)
    def clear(self, space: str, which: int) -> None:
        self._stores[space][which].clear()
        self._items[space].clear()

    @rule(space=_space, which=_which)
    def reopen(self, space: str, which: int) -> None:
        self._stores[space][which].close()
        self._stores[space][which] = self._open(space)

    @rule(space=_space, which=_which)
    def list_spaces(self, space: str, which: int) -> None:
        found = self._stores[space][which].spaces()
        assert len(found) == len(set(found))
        certain = {name for name, items in self._items.items() if not all(self._may_be_gone(item) for item in items.values())}
        assert certain <= set(found) <= {name for name, items in self._items.items() if items}

    def _open(self, space: str) -> Store:
        store = self._place.store(space)
        store.open(create=True)
        return store

    def _revision(self, space: str, key: bytes, how: str) -> bytes:
        if how == "stale":
            return self._before.get(key, WRONG)
        item = self._items[space].get(key)
        return {"right": NOTHING if item is None else item.revision, "nothing": NOTHING, "wrong": WRONG}[how]

    def _possible(self, space: str, key: bytes) -> set[bytes]:
        item = self._items[space].get(key)
        if item is None:
            return {NOTHING}
        return {item.revision, NOTHING} if self._may_be_gone(item) else {item.revision}

    def _may_be_gone(self, item: Stored) -> bool:
        return self._kind.drops and item.until_ms <= OVER_MS
