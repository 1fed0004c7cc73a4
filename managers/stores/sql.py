"""A store in a database: SQLite, PostgreSQL, MariaDB or MySQL. One row for an item, and what all of these have understood for long.

Compare-and-set of a batch is one transaction: lock the rows of its keys, in the order of keys, so that no two writers wait for each other; see which are
still what is to be replaced; write those. A row that is not there cannot be locked. Two writers of the same new item both insert it, one of them is refused,
and its transaction begins anew and sees the other's. So the number of round trips does not depend on the size of a batch.

What the database would have us do again (a deadlock after all, a serialization failure) is done again while the call's time lasts, and so is, once, what met a
connection that had died: a server that has been restarted is used again at once. Not if the connection was lost while committing. Then nobody knows, which is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from time import monotonic
from typing import Any, TypeVar

from sqlalchemy import Connection, CursorResult, Engine, Executable, delete, func, insert, select
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as NoConnection

from ...membership.errors import printable
from .sql_engine import borrowed, engine_of, give_back, parsed
from .sql_schema import DAMAGED, SESSIONS, migrate, packet_max, version_here, version_of
from .store import BATCH_MAX, NOTHING, Save, Stored, StoreError, revision_of

__all__ = ["SqlStore"]

_T = TypeVar("_T")
_MIGRATION_S = 600.0  #: a server takes its time to build an index; for SQLite it would be how long one waits for other writers
_DATA_MAX = 2 * 1024 * 1024  #: of an item that has to fit
_AGAIN = {"40001", "40P01", 1213, 1020}  #: SQLSTATEs of PostgreSQL and error numbers of MariaDB: serialization failure, deadlock, row changed since it was read
_COLUMNS = SESSIONS.c


class SqlStore:
    """Of a URL for SQLAlchemy; `mysql:` serves MariaDB too. A pool of four connections, or `?pool_size=`, for all of a process that are alike. `timeout_s`: of each call; a server that hangs holds one for twice that at most."""

    def __init__(self, url: str, space: str, timeout_s: float = 2.0) -> None:
        """Raises `LocalError` for a URL that will not do."""
        self._url, self.name = parsed(url)
        self.damaged = 0
        self._space, self._timeout_s = space, timeout_s
        self._engine = borrowed(self._url, self.name, timeout_s)
        self.shared = self._engine.dialect.name != "sqlite"
        self._closed = False
        self._packet_max = 0
        self._counting = Lock()
        self._here = _COLUMNS.space == space
        add, self._replace = _writing(self._engine.dialect.name)
        self._add = add.execution_options(preserve_rowcount=True)

    def open(self, create: bool = False) -> None:
        self._packet_max, version = self._do(lambda call: (packet_max(call.connection), version_of(call.connection)))
        self._check_size(_DATA_MAX, "that is too little for large sessions; the usual 16 MiB will do")
        if (create and version < version_here()) or (not version and not self.shared):
            version = self._migrate()
        if version > version_here():
            raise StoreError(
                f"{self.name}: its tables were made by a newer Caterwaul (version {version}, this one knows {version_here()}); install that one here"
            )
        if version < version_here():
            state = f"its tables are of version {version}, not {version_here()}" if version else "it has no tables of Caterwaul yet"
            raise StoreError(f"{self.name}: {state}; run `caterwaul store init {self.name}`")

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            give_back(self._url, self._timeout_s)

    def load(self, keys: Collection[bytes]) -> dict[bytes, Stored]:
        rows = self._do(lambda call: call(self._those(keys, _COLUMNS.key, _COLUMNS.data, _COLUMNS.until_ms, _COLUMNS.revision)).all()) if keys else []
        found = {key: Stored(data, until_ms, revision) for key, data, until_ms, revision in rows}
        damaged = {key: item.revision for key, item in found.items() if revision_of(item.data) != item.revision}
        if damaged:
            self._put_aside(damaged)
        return {key: item for key, item in found.items() if key not in damaged}

    def save_many(self, saves: Sequence[Save]) -> dict[bytes, bytes]:
        ordered = sorted(saves)

        def save(call: _Call) -> dict[bytes, bytes]:
            there = self._lock(call, [save.key for save in ordered])
            good = [save for save in ordered if there.get(save.key, NOTHING) == save.replaces]
            rows: list[dict[str, Any]] = [
                {"space": self._space, "key": save.key, "revision": revision_of(save.data), "until_ms": save.until_ms, "data": save.data} for save in good
            ]
            new, old = [row for row in rows if row["key"] not in there], [row for row in rows if row["key"] in there]
            if new and call(self._add, new).rowcount != len(new):
                raise _Met
            if old:
                call(self._replace, old)
            return {row["key"]: row["revision"] for row in rows}

        self._check_size(max((len(save.data) for save in saves), default=0), "an item is larger")
        return self._transact(save) if saves else {}

    def delete(self, revisions: Mapping[bytes, bytes]) -> None:
        def delete_them(call: _Call) -> None:
            there = self._lock(call, revisions)
            if same := [key for key, revision in there.items() if revision == revisions[key]]:
                call(delete(SESSIONS).where(self._here, _COLUMNS.key.in_(same)))

        if revisions:
            self._transact(delete_them)

    def keys(self, after: bytes = b"", limit: int = BATCH_MAX) -> list[bytes]:
        page = select(_COLUMNS.key).where(self._here).order_by(_COLUMNS.key).limit(limit)
        if after:  # compared with a column of fixed length, MariaDB takes nothing for as many zeros
            page = page.where(_COLUMNS.key > after)
        return list(self._do(lambda call: call(page).scalars().all()))

    def expired(self, now_ms: int, limit: int = BATCH_MAX) -> dict[bytes, bytes]:
        over = select(_COLUMNS.key, _COLUMNS.revision).where(self._here, _COLUMNS.until_ms <= now_ms).order_by(_COLUMNS.until_ms).limit(limit)
        return {key: revision for key, revision in self._do(lambda call: call(over).all())}  # noqa: C416  (rows are no pairs for mypy)

    def quarantine(self, revisions: Mapping[bytes, bytes]) -> None:
        self._put_aside(revisions)

    def spaces(self) -> list[str]:
        def step_by_step(call: _Call) -> list[str]:
            """From each name to the next through the index; DISTINCT would read all of it."""
            found: list[str] = []
            space = call(select(func.min(_COLUMNS.space))).scalar()
            while space is not None:
                found.append(space)
                space = call(select(func.min(_COLUMNS.space)).where(_COLUMNS.space > space)).scalar()
            return found

        return self._do(step_by_step)

    def clear(self) -> None:
        """In steps, each of which has its time."""
        after = b""
        while page := self.keys(after):
            after = page[-1]
            self._do(lambda call, page=page: call(delete(SESSIONS).where(self._here, _COLUMNS.key.in_(page))))  # type: ignore[misc]

    # inside

    def _check_size(self, data: int, advice: str) -> None:
        """Of MariaDB one would only hear that the connection is gone. Each byte may have to be escaped."""
        if 0 < self._packet_max < 2 * data + 4096:
            raise StoreError(f"{self.name}: max_allowed_packet of the server is {self._packet_max} bytes; {advice}")

    def _those(self, keys: Iterable[bytes], *columns: Any) -> Any:
        return select(*columns).where(self._here, _COLUMNS.key.in_(sorted(keys)))

    def _lock(self, call: _Call, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Revisions of those that are there, which stay so until the end of the transaction. (SQLite has one writer, and locks no rows.)"""
        rows = call(self._those(keys, _COLUMNS.key, _COLUMNS.revision).order_by(_COLUMNS.key).with_for_update()).all()
        return {key: revision for key, revision in rows}  # noqa: C416

    def _put_aside(self, revisions: Mapping[bytes, bytes]) -> None:
        """Not what has become something else meanwhile."""

        def move(call: _Call) -> int:
            there = self._lock(call, revisions)
            moved = [key for key, revision in there.items() if revision == revisions[key]]
            if moved:
                columns = [_COLUMNS.space, _COLUMNS.key, _COLUMNS.revision, _COLUMNS.until_ms, _COLUMNS.data]
                call(insert(DAMAGED).from_select([column.name for column in columns], self._those(moved, *columns)))
                call(delete(SESSIONS).where(self._here, _COLUMNS.key.in_(moved)))
            return len(moved)

        count = self._transact(move) if revisions else 0
        with self._counting:
            self.damaged += count

    def _migrate(self) -> int:
        engine = engine_of(self._url, self.name, _MIGRATION_S if self.shared else self._timeout_s)
        try:
            with self._errors(), _connected(engine, self.name) as connection:
                migrate(connection)
                return version_of(connection)
        finally:
            engine.dispose()

    def _transact(self, work: Callable[[_Call], _T]) -> _T:
        return self._do(lambda call: call.transact(work))

    def _do(self, work: Callable[[_Call], _T]) -> _T:
        """What `work` returns; done again where that is right."""
        end = monotonic() + self._timeout_s
        revived = False
        with self._errors():
            while True:
                with _connected(self._engine, self.name) as connection:
                    call = _Call(connection, end)
                    try:
                        return work(call)
                    except (DBAPIError, _Met) as error:
                        lost = isinstance(error, DBAPIError) and error.connection_invalidated
                        if monotonic() >= end or not (_is_conflict(error) or (lost and not revived and not call.committing)):
                            raise
                        revived = revived or lost

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What goes wrong outside is a `StoreError`."""
        try:
            yield
        except (DBAPIError, NoConnection, TimeoutError, _Met) as error:
            raise StoreError(f"{self.name}: {_reason(error)}") from error


def _connected(engine: Engine, name: str) -> Connection:
    try:
        return engine.connect()
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):  # which is how PyMySQL says it
            raise
        raise StoreError(f"{name}: the URL has an option that the driver does not know: {error}") from error


class _Call:
    """Executes statements on a connection until the time is over."""

    def __init__(self, connection: Connection, end: float) -> None:
        self.connection = connection
        self.committing = False
        self._end = end
        self._begin = "BEGIN IMMEDIATE" if connection.dialect.name == "sqlite" else "BEGIN"  # who begins to write later may have to give up instead of to wait

    def __call__(self, statement: Executable, parameters: Sequence[Mapping[str, Any]] | None = None) -> CursorResult[*tuple[Any, ...]]:
        self._check()
        return self.connection.execute(statement, parameters)

    def transact(self, work: Callable[[_Call], _T]) -> _T:
        self._check()
        self.connection.exec_driver_sql(self._begin)
        try:
            result = work(self)
            self._check()
            self.committing = True
            self.connection.exec_driver_sql("COMMIT")
        except BaseException as error:
            if _is_conflict(error) and not self.connection.invalidated:
                self.connection.exec_driver_sql("ROLLBACK")
            else:
                self.connection.invalidate()  # what is in the middle of something else is no use to the next
            raise
        return result

    def _check(self) -> None:
        if monotonic() >= self._end:
            raise TimeoutError("the database is too slow: time was over before all was done")


class _Met(Exception):
    """Another writer has made meanwhile what was to be made."""

    def __str__(self) -> str:
        return "other writers were in the way all the time"


def _writing(dialect: str) -> tuple[Executable, Executable]:
    """Statements for rows that are not there, and for rows that are, locked. As insertions, since drivers send many of these at once; PyMySQL would send each update by itself.

    A row that is there after all is left alone, or an `IntegrityError`. (RETURNING would say which, but has SQLAlchemy write one statement of thousands of values, which takes half as long again.)
    """
    columns = ("revision", "until_ms", "data")
    unique = [_COLUMNS.space, _COLUMNS.key]
    if dialect == "postgresql":
        pg = postgresql.insert(SESSIONS)  # an error would end psycopg's pipeline, which logs that
        return pg.on_conflict_do_nothing(), pg.on_conflict_do_update(index_elements=unique, set_={name: pg.excluded[name] for name in columns})
    if dialect == "sqlite":
        lite = sqlite.insert(SESSIONS)
        return lite, lite.on_conflict_do_update(index_elements=unique, set_={name: lite.excluded[name] for name in columns})
    my = mysql.insert(SESSIONS)
    return my, my.on_duplicate_key_update({name: my.inserted[name] for name in columns})


def _is_conflict(error: BaseException) -> bool:
    """The transaction has changed nothing, and would better be done again."""
    if isinstance(error, _Met):
        return True
    if not isinstance(error, DBAPIError):
        return False
    code = getattr(error.orig, "sqlstate", None) or next(iter(getattr(error.orig, "args", ())), None)
    return isinstance(error, IntegrityError) or code in _AGAIN


def _reason(error: Exception) -> str:
    """On one line, and without what was to be stored."""
    if isinstance(error, NoConnection):
        return "all connections of the pool are in use"
    original = getattr(error, "orig", None) or error
    parts: tuple[Any, ...] = getattr(original, "args", ())
    text = f"{parts[1]} (error {parts[0]})" if len(parts) == 2 and isinstance(parts[0], int) else str(original)
    return printable(text.strip().partition("\n")[0]) or type(original).__name__
