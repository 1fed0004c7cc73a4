"""The store in real databases: tables that are made and changed, servers that hang, die and come back, processes that meet or are killed."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import Connection, inspect

from caterwaul.managers.stores import sql_schema
from caterwaul.managers.stores.sql import SqlStore
from caterwaul.managers.stores.store import NOTHING, Save, Stored, StoreError

from . import sql_worker
from .databases import Database, certificate, mariadb, mariadb_missing, postgresql, postgresql_missing
from .processes import _Child, until

FAR_MS = 4_000_000_000_000
KEY = b"k" * 16
_WORKER = [sys.executable, "-W", "error", sql_worker.__file__]


class Server(NamedTuple):
    running: Callable[[], Database]
    missing: Callable[[], str]
    clients: str  #: a question: who is connected, besides us


SERVERS = {
    "postgresql": Server(postgresql, postgresql_missing, "SELECT pid FROM pg_stat_activity WHERE datname = '{}'"),
    "mariadb": Server(mariadb, mariadb_missing, "SELECT id FROM information_schema.processlist WHERE db = '{}'"),
}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Server:
    found = SERVERS[request.param]
    if why := found.missing():
        pytest.skip(why)
    return found


@pytest.fixture
def database(server: Server) -> Database:
    return server.running()


@pytest.fixture
def url(database: Database) -> str:
    return database.fresh()


@pytest.fixture
def opened() -> Iterator[Callable[..., SqlStore]]:
    """Makes stores, with their tables, that are closed afterwards."""
    with ExitStack() as stack:

        def make(url: str, timeout_s: float = 20.0, space: str = "shop") -> SqlStore:
            store = SqlStore(url, space, timeout_s)
            stack.callback(store.close)
            store.open(create=True)
            return store

        yield make


Opened = Callable[..., SqlStore]


def seconds(call: Callable[[], object]) -> float:
    """How long it took to fail."""
    begin = time.monotonic()
    with pytest.raises(StoreError):
        call()
    return time.monotonic() - begin


def line_of(child: _Child) -> bytes:
    """The next that it says; fails when it has ended."""
    assert child._process.stdout is not None
    line: bytes = child._process.stdout.readline()
    assert line, child.log
    return line


# tables


def test_tables_are_made_by_whoever_is_asked_to(url: str) -> None:
    """And by nobody else; by all at once is as good."""
    stores = [SqlStore(url, "shop", 20.0) for _ in range(4)]
    with pytest.raises(StoreError, match=r"no tables of Caterwaul yet; run `caterwaul store init \w+://caterwaul:\*\*\*@127"):
        stores[0].open()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda store: store.open(create=True), stores))
    for store in stores:
        store.open()
        store.close()


def test_tables_of_an_older_version_are_brought_to_this_one(url: str, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, though several processes do it at the same time; the others go on meanwhile."""
    older = opened(url)
    saved = older.save_many([Save(KEY, b"x", FAR_MS)])

    def add_a_column(connection: Connection) -> None:
        connection.exec_driver_sql("ALTER TABLE caterwaul_sessions ADD COLUMN note INTEGER")

    monkeypatch.setattr(sql_schema, "STEPS", (add_a_column,))
    with pytest.raises(StoreError, match="version 1, not 2; run `caterwaul store init"):
        SqlStore(url, "shop").open()
    with ThreadPoolExecutor(4) as threads:
        newer = list(threads.map(lambda _: opened(url), range(4)))
    with newer[0]._engine.connect() as connection:
        assert [column["name"] for column in inspect(connection).get_columns("caterwaul_sessions")][-1] == "note"
        assert connection.exec_driver_sql("SELECT version FROM caterwaul_schema").all() == [(2,)]
    assert newer[0].load([KEY]) == older.load([KEY]) == {KEY: (b"x", FAR_MS, saved[KEY])}
    assert set(older.save_many([Save(KEY, b"y", FAR_MS, saved[KEY])])) == {KEY}


def test_an_account_that_may_only_read_and_write_will_do(database: Database, url: str, opened: Opened) -> None:
    opened(url)
    name = url.rpartition("/")[2]
    tables = ["caterwaul_sessions", "caterwaul_damaged", "caterwaul_schema"]
    if database.scheme == "postgresql":
        database.run("CREATE ROLE app LOGIN PASSWORD 'app'")
        database.run(
            *[f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO app" for table in tables],
            "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO app",
            database=name,
        )
    else:
        database.run(
            "CREATE USER app@'127.0.0.1' IDENTIFIED BY 'app'",
            *[f"GRANT SELECT, INSERT, UPDATE, DELETE ON {name}.{table} TO app@'127.0.0.1'" for table in tables],
        )
    store = opened(url.replace("caterwaul:secret@", "app:app@"))
    store.quarantine(store.save_many([Save(KEY, b"x", FAR_MS)]))
    assert store.damaged == 1


# trouble


def test_a_server_that_hangs_holds_nobody(server: Server, database: Database, url: str, opened: Opened) -> None:
    """It is paused: its kernel goes on to accept connections, and nothing of it answers. More threads than connections ask; all have their error in time."""
    store = opened(url, 1.0)
    saved = store.save_many([Save(KEY, b"x", FAR_MS)])
    calls = [
        lambda: store.load([KEY]),
        lambda: store.save_many([Save(KEY, b"y", FAR_MS, saved[KEY])]),
        lambda: store.delete(saved),
        store.keys,
        store.spaces,
        store.clear,
    ]
    with database.paused(), ThreadPoolExecutor(len(calls)) as threads:
        assert max(threads.map(seconds, calls)) < 6.0  # on a busy machine; to wait for a connection 1 s, to make it 2 s with PostgreSQL
        assert seconds(store.keys) < 5.0
    assert store._engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    until(lambda: len(database.ask(server.clients.format(url.rpartition("/")[2]))) <= 4, what="the server has let go of what was given up")
    assert store.load([KEY]) in ({KEY: (b"x", FAR_MS, saved[KEY])}, {})  # what it had read before it was paused, it did


def test_a_server_that_was_restarted_is_used_again_at_once(database: Database, url: str, opened: Opened) -> None:
    """Nobody notices who did not ask meanwhile; who did was told at once."""
    store = opened(url)
    saved = store.save_many([Save(KEY, b"x", FAR_MS)])
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: store.keys(), range(4)))
    with database.down():
        pass
    saved = store.save_many([Save(KEY, b"y", FAR_MS, saved[KEY])])
    with database.down():
        assert seconds(store.keys) < 5.0
    assert store.load([KEY]) == {KEY: (b"y", FAR_MS, saved[KEY])}


def test_a_server_that_is_restarted_in_the_middle(database: Database, url: str, opened: Opened) -> None:
    """Each save happened, or did not, or ended with an error: then it is one or the other."""
    store = opened(url, 5.0)
    outcomes: list[str] = []
    enough = threading.Event()

    def go_on() -> None:
        while not enough.wait(0.005):
            try:
                item = store.load([KEY]).get(KEY, Stored(b"0", FAR_MS, NOTHING))
                saved = store.save_many([Save(KEY, b"%d" % (int(item.data) + 1), FAR_MS, item.revision)])
                outcomes.append("saved" if saved else "refused")
            except StoreError:
                outcomes.append("error")

    writing = threading.Thread(target=go_on)
    writing.start()
    try:
        until(lambda: outcomes.count("saved") > 5)
        with database.down():
            until(lambda: "error" in outcomes)
        before = len(outcomes)
        until(lambda: "saved" in outcomes[before:])
    finally:
        enough.set()
        writing.join()
    assert outcomes.count("saved") <= int(store.load([KEY])[KEY].data) <= len(outcomes)


def test_it_never_has_more_connections_than_its_pool(server: Server, database: Database, url: str, opened: Opened) -> None:
    store = opened(url)
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda number: store.save_many([Save(bytes([number]) * 16, b"x", FAR_MS)]), range(64)))
        assert 1 <= len(database.ask(server.clients.format(url.rpartition("/")[2]))) <= 4
    assert len(store.keys()) == 64


def test_a_row_that_somebody_else_has_locked(server: Server, database: Database, url: str, opened: Opened) -> None:
    """Is waited for in time only, and nothing of that is left waiting in the server."""
    store = opened(url, 1.0)
    saved = store.save_many([Save(KEY, b"x", FAR_MS)])
    name = url.rpartition("/")[2]
    with database.connected(name) as other:
        other.exec_driver_sql("BEGIN")
        other.exec_driver_sql("SELECT * FROM caterwaul_sessions FOR UPDATE").all()
        for _ in range(3):
            assert seconds(lambda: store.delete(saved)) < 5.0
        until(lambda: len(database.ask(server.clients.format(name))) <= 5)
        other.exec_driver_sql("ROLLBACK")
    store.delete(saved)
    assert store.keys() == []


def test_a_server_that_takes_only_small_packets_is_refused(opened: Opened) -> None:
    if why := mariadb_missing():
        pytest.skip(why)
    database = mariadb()
    store = opened(database.fresh())
    with pytest.raises(StoreError, match="max_allowed_packet"):
        store.save_many([Save(KEY, bytes(17 * 1024 * 1024), FAR_MS)])
    database.run("SET GLOBAL max_allowed_packet = 1048576")
    try:
        with pytest.raises(StoreError, match="max_allowed_packet of the server is 1048576 bytes"):
            opened(database.fresh())
    finally:
        database.run("SET GLOBAL max_allowed_packet = 16777216")
    assert store.keys() == []


@pytest.mark.parametrize("option", ["postgresql", "mariadb"])
def test_tls_as_the_url_asks_for_it(option: str, opened: Opened, tmp_path: Path) -> None:
    server = SERVERS[option]
    if why := server.missing():
        pytest.skip(why)
    database = server.running()
    url, query = database.fresh(), {"postgresql": "?sslmode=verify-full&sslrootcert=", "mariadb": "?ssl_verify_identity=true&ssl_ca="}[option]
    store = opened(f"{url}{query}{database.certificate}")
    with store._engine.connect() as connection:
        asked = {"postgresql": "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()", "mariadb": "SELECT @@version_ssl_library"}
        assert connection.exec_driver_sql(asked[option]).scalar()
    with pytest.raises(StoreError, match="certificate verify failed"):
        opened(f"{url}{query}{certificate(tmp_path)}")


# processes


def _place(kind: str, directory: Path) -> str:
    if kind == "sqlite":
        return f"sqlite:///{directory}/sessions.db"
    server = SERVERS[kind]
    if why := server.missing():
        pytest.skip(why)
    return server.running().fresh()


@pytest.mark.parametrize("kind", ["sqlite", *SERVERS])
def test_processes_with_batches_that_overlap_lose_nothing(kind: str, tmp_path: Path, opened: Opened) -> None:
    """And never wait for each other in a circle. One of the two is this one."""
    store = opened(url := _place(kind, tmp_path))
    child = _Child([*_WORKER, "add", url, "there", "40"])
    try:
        assert json.loads(line_of(child)) == "ready"
        added = sql_worker.add_to(store, "here", 40)
        added.update(json.loads(line_of(child)))
    finally:
        child.end()
    assert {key.hex(): int(item.data) for key, item in store.load(sql_worker.KEYS).items()} == added
    assert sum(added.values()) > 2 * 40


def test_a_process_that_is_killed_in_the_middle_of_batches_leaves_whole_ones(tmp_path: Path) -> None:
    """Of SQLite: what it had said is there, all items of one batch are, and the file is sound; the next process goes on."""
    url = f"sqlite:///{tmp_path}/sessions.db"
    last = 0
    for lines in (1, 7):
        child = _Child([*_WORKER, "generations", url, "100"])
        try:
            for _ in range(lines):
                last = int(line_of(child))
            child.kill()
        finally:
            child.end()
        store = SqlStore(url, "shop")
        found = {int(item.data.split()[0]) for item in store.load([b"%016d" % number for number in range(100)]).values()}
        store.close()
        assert len(found) == 1
        assert found <= {last, last + 1, last + 2}
    with closing(sqlite3.connect(tmp_path / "sessions.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# disks


@contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a disk that is soon full")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(directory)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this machine lets nobody mount anything: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def test_a_full_disk_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    """And when there is room again, it goes on."""
    saved: dict[bytes, bytes] = {}

    def fill(store: SqlStore) -> None:
        for number in range(1000):
            saved.update(store.save_many([Save(b"%016d" % number, os.urandom(3000), FAR_MS)]))

    with small_disk(tmp_path):
        ballast = tmp_path / "ballast"
        ballast.write_bytes(bytes(200_000))
        store = SqlStore(f"sqlite:///{tmp_path}/sessions.db", "shop")
        store.open()
        with pytest.raises(StoreError, match="full"):
            fill(store)
        assert {key: item.revision for key, item in store.load(list(saved)).items()} == saved
        ballast.unlink()
        assert store.save_many([Save(b"x" * 16, bytes(20_000), FAR_MS, NOTHING)])
        assert len(store.keys()) == len(saved) + 1
        store.close()
