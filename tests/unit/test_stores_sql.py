"""The store in a database, as far as SQLite shows it: URLs, files, versions of the tables, damage. Servers are in tests/real/test_stores_sql.py."""

from __future__ import annotations

import os
import socket
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection

from caterwaul.managers.stores import sql_schema
from caterwaul.managers.stores.opening import open_store
from caterwaul.managers.stores.sql import SqlStore
from caterwaul.managers.stores.store import NOTHING, Save, StoreError
from caterwaul.membership.errors import LocalError

FAR_MS = 4_000_000_000_000
KEYS = [bytes([number]) * 16 for number in range(5)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqlStore]:
    store = SqlStore(f"sqlite:///{path}", "shop", 0.5)
    store.open()
    yield store
    store.close()


def asked(path: Path, *statements: str) -> list[tuple[object, ...]]:
    """What the last one gives, asked of the file by somebody else."""
    with closing(sqlite3.connect(path)) as connection:
        rows = [connection.execute(statement).fetchall() for statement in statements]
        connection.commit()
    return rows[-1]


# URLs


@pytest.mark.parametrize(("url", "said"), [
    ("sqlite:", "no URL"), ("sqlite://", "no file"), ("sqlite:///:memory:", "sqlite:///FILE"), ("sqlite:///file:x?mode=memory", "sqlite:///FILE"),
    ("sqlite:///x.db?timeout=4", "synchronous="), ("sqlite:///x.db?synchronous=OFF", "FULL, NORMAL, EXTRA"), ("postgresql://u:hush@h", "no database"),
    ("postgresql+asyncpg://u:hush@h/d", "unknown kind"), ("mysql://u:hush@h:port/d", "no URL"), ("mysql://u:hush@h/d?pool_size=0", "1 to 100"),
    ("postgresql://u@h/d?password=hush&pool_size=many", "password=***"),
])  # fmt: skip
def test_a_url_that_will_not_do(url: str, said: str) -> None:
    with pytest.raises(LocalError) as caught:
        open_store(url, "shop")
    assert said in str(caught.value)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["postgresql://u:hush@h/d?sslmode=verify-full", "postgresql+psycopg://u@h/d?password=hush", "mysql://u:hush@h/d", "mariadb://u:hush@h:3/d?pool_size=9"],
)
def test_its_name_shows_no_password(url: str) -> None:
    store = open_store(url, "shop")
    assert "hush" not in store.name
    assert "***" in store.name
    assert store.shared


def test_without_the_libraries_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("caterwaul.managers.stores.sql")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(LocalError, match=r"mysql://u:\*\*\*@h/d: .*pip install 'caterwaul\[sql\]'"):
        open_store("mysql://u:hush@h/d", "shop")


def test_nobody_who_answers_is_a_store_error() -> None:
    for url in ("postgresql://u:hush@127.0.0.1:1/d", "mysql://u:hush@127.0.0.1:1/d"):
        with pytest.raises(StoreError, match=r"127\.0\.0\.1:1/d: .*refused") as caught:
            open_store(url, "shop").open()
        assert "hush" not in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["postgresql", "mysql"])
def test_somebody_who_says_nothing_is_given_up(kind: str) -> None:
    """The kernel of a server that hangs accepts connections. psycopg alone would wait for two seconds at least."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = SqlStore(f"{kind}://u:hush@127.0.0.1:{silent.getsockname()[1]}/d", "shop", 0.3)
        begin = time.monotonic()
        with pytest.raises(StoreError, match="time"):
            store.open()
        assert time.monotonic() - begin < 1.9
        store.close()


def test_each_of_several_hosts_gets_the_time_to_connect() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [silent.getsockname()[1] for silent in (one, other)]
        store = SqlStore(f"postgresql://u:hush@/d?host=127.0.0.1,127.0.0.1&port={ports[0]},{ports[1]}", "shop", 0.3)
        begin = time.monotonic()
        with pytest.raises(StoreError, match="time"):
            store.open()
        assert 0.6 <= time.monotonic() - begin < 1.9
        store.close()


@pytest.mark.parametrize("url", ["postgresql://127.0.0.1:1/d?favour=1", "mysql://127.0.0.1:1/d?favour=1"])
def test_an_option_that_no_driver_knows_is_named(url: str) -> None:
    with pytest.raises(StoreError, match="favour"):
        open_store(url, "shop").open()


def test_a_relative_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Is relative to where the process was when the store was made."""
    monkeypatch.chdir(tmp_path)
    store = open_store("sqlite:///here.db", "shop")
    monkeypatch.chdir("/")
    store.open()
    store.close()
    assert (tmp_path / "here.db").exists()
    assert not store.shared


# files


def test_nobody_else_can_read_the_file(store: SqlStore, path: Path) -> None:
    """Nor what SQLite keeps beside it."""
    store.save_many([Save(KEYS[0], b"x", FAR_MS)])
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["sessions.db", "sessions.db-shm", "sessions.db-wal"]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_a_file_that_others_can_read_is_refused(path: Path) -> None:
    path.touch()
    path.chmod(0o640)
    with pytest.raises(StoreError, match=f"chmod 600 {path}"):
        SqlStore(f"sqlite:///{path}", "shop").open()


def test_neither_a_link_nor_a_directory_will_do(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere.db")
    for url in (f"sqlite:///{path}", f"sqlite:///{tmp_path}"):
        with pytest.raises(StoreError, match="is not a file"):
            SqlStore(url, "shop").open()
    assert not (tmp_path / "elsewhere.db").exists()


def test_the_directory_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="its directory has to be there"):
        SqlStore(f"sqlite:///{tmp_path}/no/sessions.db", "shop").open(create=True)


def test_what_is_no_database_is_left_alone(path: Path) -> None:
    path.touch(0o600)
    path.write_bytes(b"my thesis " * 1000)
    with pytest.raises(StoreError, match="not a database"):
        SqlStore(f"sqlite:///{path}", "shop").open(create=True)
    assert path.read_bytes() == b"my thesis " * 1000


@pytest.mark.parametrize(("option", "level"), [("", 2), ("?synchronous=normal", 1)])
def test_commits_are_forced_to_the_disk_unless_somebody_asks_for_less(path: Path, option: str, level: int) -> None:
    store = SqlStore(f"sqlite:///{path}{option}", "shop")
    store.open()
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == level
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    store.close()


# waiting


def test_who_waits_for_the_one_writer_gives_up_in_time(store: SqlStore, path: Path) -> None:
    saved = store.save_many([Save(KEYS[0], b"x", FAR_MS)])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            store.save_many([Save(KEYS[0], b"y", FAR_MS, saved[KEYS[0]])])
        assert store.load(KEYS)[KEYS[0]].data == b"x"  # readers do not wait
    assert set(store.save_many([Save(KEYS[0], b"y", FAR_MS, saved[KEYS[0]])])) == {KEYS[0]}


def test_what_fails_leaves_no_connection_behind(store: SqlStore, path: Path) -> None:
    store.save_many([Save(KEYS[0], b"x", FAR_MS)])
    asked(path, "ALTER TABLE caterwaul_sessions RENAME TO elsewhere")
    for _ in range(6):
        with pytest.raises(StoreError, match="no such table"):
            store.save_many([Save(KEYS[1], b"x", FAR_MS)])
        with pytest.raises(StoreError, match="no such table"):
            store.load(KEYS)
    asked(path, "ALTER TABLE elsewhere RENAME TO caterwaul_sessions")
    assert store.load(KEYS)[KEYS[0]].data == b"x"
    assert store._engine.pool.checkedout() == 0  # type: ignore[attr-defined]


# damage


def test_what_is_not_what_was_saved_is_put_aside_for_a_person(store: SqlStore, path: Path) -> None:
    saved = store.save_many([Save(key, b"data", FAR_MS) for key in KEYS])
    asked(
        path,
        f"UPDATE caterwaul_sessions SET data = x'00' WHERE key = x'{KEYS[1].hex()}'",
        f"UPDATE caterwaul_sessions SET revision = x'00' WHERE key = x'{KEYS[2].hex()}'",
    )
    assert set(store.load(KEYS)) == {KEYS[0], KEYS[3], KEYS[4]}
    assert store.damaged == 2
    assert store.keys() == [KEYS[0], KEYS[3], KEYS[4]]
    assert asked(path, "SELECT space, key, data FROM caterwaul_damaged ORDER BY key") == [("shop", KEYS[1], b"\0"), ("shop", KEYS[2], b"data")]
    assert set(store.save_many([Save(KEYS[1], b"new", FAR_MS, saved[KEYS[1]]), Save(KEYS[2], b"new", FAR_MS, NOTHING)])) == {KEYS[2]}


def test_the_same_item_can_be_put_aside_again(store: SqlStore, path: Path) -> None:
    for number in range(3):
        store.quarantine(store.save_many([Save(KEYS[0], b"%d" % number, FAR_MS)]))
    assert store.damaged == 3
    assert asked(path, "SELECT data FROM caterwaul_damaged ORDER BY id") == [(b"0",), (b"1",), (b"2",)]


# versions


def add_a_column(connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE caterwaul_sessions ADD COLUMN note TEXT")


def fail(connection: Connection) -> None:
    add_a_column(connection)
    connection.exec_driver_sql("SELECT no_such_column FROM caterwaul_sessions")


def columns(path: Path) -> list[object]:
    return [row[1] for row in asked(path, "PRAGMA table_info(caterwaul_sessions)")]


def test_tables_of_an_older_version_are_brought_to_this_one(store: SqlStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save_many([Save(KEYS[0], b"x", FAR_MS)])
    monkeypatch.setattr(sql_schema, "STEPS", (add_a_column,))
    newer = SqlStore(f"sqlite:///{path}", "shop")
    with pytest.raises(StoreError, match=f"version 1, not 2; run `caterwaul store init sqlite:///{path}`"):
        newer.open()
    for _ in range(2):
        newer.open(create=True)
        assert asked(path, "SELECT version FROM caterwaul_schema") == [(2,)]
        assert columns(path) == ["space", "key", "revision", "until_ms", "data", "note"]
    assert newer.load(KEYS)[KEYS[0]].data == b"x"
    newer.close()


def test_a_step_that_fails_changes_nothing(store: SqlStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_schema, "STEPS", (fail,))
    with pytest.raises(StoreError, match="no such column"):
        SqlStore(f"sqlite:///{path}", "shop").open(create=True)
    assert asked(path, "SELECT version FROM caterwaul_schema") == [(1,)]
    assert columns(path) == ["space", "key", "revision", "until_ms", "data"]


def test_tables_of_a_newer_version_are_refused(store: SqlStore, path: Path) -> None:
    asked(path, "UPDATE caterwaul_schema SET version = 9")
    for create in (False, True):
        with pytest.raises(StoreError, match="version 9, this one knows 1"):
            SqlStore(f"sqlite:///{path}", "shop").open(create)


def test_tables_that_are_there_are_made_once(store: SqlStore, path: Path) -> None:
    before = os.stat(path).st_mtime_ns
    again = SqlStore(f"sqlite:///{path}", "other")
    again.open(create=True)
    again.close()
    assert os.stat(path).st_mtime_ns == before
