"""From a store's URL to connections on which nothing waits much longer than `timeout_s`, whatever has become of the server.

A server that is stopped, or behind a network that swallows packets, still looks alive: its kernel answers, or nobody says anything. No timeout of the server helps
then, nor does TCP's. So the client's end of each connection gives up: PyMySQL has a read timeout, psycopg's waiting is bounded here. Whoever gave up closes the
connection, and all others that are open too, as they lead to the same server. The server's own timeouts are set besides, so that what was given up does not go on
there and hold locks.

Drivers are in autocommit mode and transactions are begun by hand: so a statement that needs none is one round trip.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import ceil
from ssl import CERT_NONE, SSLContext, create_default_context
from stat import S_ISLNK, S_ISREG
from threading import Lock
from time import monotonic
from typing import Any

import psycopg
from sqlalchemy import Engine, QueuePool, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import SQLAlchemyError

from ...membership.errors import LocalError
from .store import StoreError

__all__ = ["DRIVERS", "borrowed", "engine_of", "give_back", "parsed"]

#: Kinds of URLs, and the driver that each is served by; its own name will do too.
DRIVERS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql", "mariadb": "mariadb+pymysql"}

_POOL_SIZE = 4
_RECYCLE_S = 300  # routers forget a connection that nobody used for about that long, and a name may lead elsewhere by then
_CONNECT_S_MIN = 2  # psycopg's, as of libpq
_POOL_SIZE_MAX = 100
_TLS_OPTIONS = {"ssl_ca", "ssl_capath", "ssl_cert", "ssl_key", "ssl_key_password", "ssl_verify_cert", "ssl_verify_identity", "ssl_check_hostname"}
#: Of URLs, not passed to drivers as they are.
_OWN_OPTIONS = {
    "sqlite": {"pool_size", "synchronous"}, "postgresql": {"pool_size"}, "mysql": {"pool_size", *_TLS_OPTIONS}, "mariadb": {"pool_size", *_TLS_OPTIONS},
}  # fmt: skip
_borrowing = Lock()
_engines: dict[tuple[URL, float], tuple[Engine, int]] = {}
_WAL_MAX = 64 * 1024 * 1024  #: of SQLite's log, where a large batch has made it longer
_SERVER_SHARE = 0.9  # of the time: a server that is only slow says so before the client gives up and has to connect anew
_SYNCHRONOUS = ("FULL", "NORMAL", "EXTRA")


def parsed(url: str) -> tuple[URL, str]:
    """What drivers take, and what to show of it. Raises `LocalError` for a URL that will not do."""
    try:
        found = make_url(url)
    except (SQLAlchemyError, ValueError):
        raise LocalError("store: this is no URL of a database, which looks like postgresql://user:password@host/database, or sqlite:///file") from None
    hidden = {key: "HIDDEN" for key in found.query if "passw" in key}
    name = found.update_query_dict(hidden).render_as_string(hide_password=True).replace("=HIDDEN", "=***")
    kind = found.get_backend_name()
    if kind not in DRIVERS or found.drivername not in (kind, DRIVERS[kind]):
        raise LocalError(f"store {name}: there is no driver for {found.drivername}; those for {', '.join(DRIVERS)} are chosen by these names")
    if not found.database:
        raise LocalError(f"store {name}: the URL names no {'file' if kind == 'sqlite' else 'database'}")
    if kind == "sqlite" and (set(found.query) - _OWN_OPTIONS["sqlite"] or found.database == ":memory:" or found.database.startswith("file:")):
        raise LocalError(f"store {name}: write sqlite:///FILE, or sqlite:////FILE from the root; after it ?synchronous= and ?pool_size= at most")
    if str(found.query.get("synchronous", "FULL")).upper() not in _SYNCHRONOUS and kind == "sqlite":
        raise LocalError(f"store {name}: synchronous is one of {', '.join(_SYNCHRONOUS)}")
    size = str(found.query.get("pool_size", _POOL_SIZE))
    if not size.isdecimal() or not 1 <= int(size) <= _POOL_SIZE_MAX:
        raise LocalError(f"store {name}: pool_size is a number of connections, 1 to {_POOL_SIZE_MAX}")
    return found.set(drivername=DRIVERS[kind], database=os.path.abspath(found.database) if kind == "sqlite" else found.database), name


def borrowed(url: URL, name: str, timeout_s: float) -> Engine:
    """One that all of this process share who ask for the same: so the stores of its managers have one pool between them. `give_back` it."""
    with _borrowing:
        engine, users = _engines.get((url, timeout_s)) or (engine_of(url, name, timeout_s), 0)
        _engines[url, timeout_s] = engine, users + 1
        return engine


def give_back(url: URL, timeout_s: float) -> None:
    """Who is the last closes its connections."""
    with _borrowing:
        engine, users = _engines.pop((url, timeout_s))
        if users > 1:
            _engines[url, timeout_s] = engine, users - 1
        else:
            engine.dispose()


def engine_of(url: URL, name: str, timeout_s: float) -> Engine:
    """For a URL of `parsed`. Connects to nothing yet. `name`: of the store, for messages."""
    kind = url.get_backend_name()
    own = {key: str(value) for key, value in url.query.items() if key in _OWN_OPTIONS[kind]}
    arguments: dict[str, Any] = {"connect_args": _connect_arguments(kind, own, name, timeout_s)}
    if kind == "postgresql":
        arguments["use_native_hstore"] = False  # it would have to be asked for
    engine = create_engine(
        url.difference_update_query(own), poolclass=QueuePool, pool_size=int(own.get("pool_size", _POOL_SIZE)), max_overflow=0, pool_timeout=timeout_s,
        pool_recycle=_RECYCLE_S, pool_use_lifo=True, pool_reset_on_return=None, isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True, hide_parameters=True,
        **arguments,
    )  # fmt: skip
    if kind == "sqlite":
        _prepare_sqlite(engine, str(url.database), name, own.get("synchronous", "FULL").upper())
    elif kind == "postgresql":
        _prepare_postgresql(engine, timeout_s)
    else:
        _prepare_mysql(engine, timeout_s)
    return engine


def _connect_arguments(kind: str, own: Mapping[str, str], name: str, timeout_s: float) -> dict[str, Any]:
    if kind == "sqlite":
        return {"timeout": timeout_s, "check_same_thread": False}
    if kind == "postgresql":
        return {"connect_timeout": max(_CONNECT_S_MIN, ceil(timeout_s))}  # see `_Bounded`
    tls = {key: value for key, value in own.items() if key in _TLS_OPTIONS}
    limits = {"connect_timeout": timeout_s, "read_timeout": timeout_s, "write_timeout": timeout_s, "autocommit": True}
    return {**limits, "ssl": _tls(tls, name)} if tls else limits


def _run(connection: DBAPIConnection, statement: str) -> object:
    """The first thing that it says, if anything."""
    cursor = connection.cursor()
    cursor.execute(statement)
    row = cursor.fetchone() if cursor.description else None
    cursor.close()
    return row[0] if row else None


# SQLite


_making = Lock()


def _prepare_sqlite(engine: Engine, path: str, name: str, synchronous: str) -> None:
    """A file that nobody else can read, in WAL mode: readers do not wait for the one writer.

    FULL, because with NORMAL a machine that loses power forgets the last commits in WAL mode, and what was saved is promised to be durable.
    """

    @event.listens_for(engine, "do_connect")
    def before(dialect: Any, record: Any, args: Any, parameters: Any) -> None:
        _make_private(path, name)

    @event.listens_for(engine, "connect")
    def after(connection: DBAPIConnection, record: Any) -> None:
        mode = _run(connection, "PRAGMA journal_mode=WAL")
        if mode != "wal":
            raise StoreError(f"{name}: SQLite cannot keep a write-ahead log beside {path} (its mode is {mode!r}); a directory of a local disk is needed")
        _run(connection, f"PRAGMA synchronous={synchronous}")
        _run(connection, f"PRAGMA journal_size_limit={_WAL_MAX}")


def _make_private(path: str, name: str) -> None:
    """A database that is there must not be opened for this: to close it would let go of the locks that SQLite has on it, anywhere in this process."""
    with _making:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            raise StoreError(f"{name}: {path}: {error.strerror}; its directory has to be there") from error
        status = os.lstat(path)
    if S_ISLNK(status.st_mode) or not S_ISREG(status.st_mode):
        raise StoreError(f"{name}: {path} is not a file; name the file itself")
    if status.st_mode & 0o077:
        raise StoreError(f"{name}: others may read {path} (its mode is {status.st_mode & 0o777:o}): chmod 600 {path}")


# PostgreSQL


class _Bounded(psycopg.Connection[Any]):
    """Gives up, and closes, where the server does not answer in time. A class of its own for each time."""

    timeout_s = 60.0

    @classmethod
    def _connect_gen(cls, *args: Any, **kwargs: Any) -> Any:
        """To one host. psycopg itself waits for two seconds at least, as libpq does; it looks in here ten times a second. Where a later version does not, it is two seconds again."""
        end = monotonic() + cls.timeout_s
        steps = super()._connect_gen(*args, **kwargs)
        ready: Any = None
        while True:
            try:
                wanted = steps.send(ready)
            except StopIteration as over:
                return over.value
            ready = yield wanted
            if monotonic() >= end:
                steps.close()
                raise psycopg.errors.ConnectionTimeout(f"connection timeout expired ({cls.timeout_s:g} s)")

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, self.timeout_s if timeout is None else timeout)
        except psycopg.OperationalError as error:
            if self.pgconn.transaction_status != psycopg.pq.TransactionStatus.ACTIVE:
                raise
            self.pgconn.finish()  # it owes us an answer, which would be taken for that of the next question
            raise psycopg.OperationalError(f"no answer for {self.timeout_s:g} s") from error


def _prepare_postgresql(engine: Engine, timeout_s: float) -> None:
    bounded = type("_Bounded", (_Bounded,), {"timeout_s": timeout_s})

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, record: Any, args: Any, parameters: dict[str, Any]) -> DBAPIConnection:
        return bounded.connect(*args, **parameters)  # type: ignore[no-any-return, attr-defined]

    @event.listens_for(engine, "connect")
    def after(connection: DBAPIConnection, record: Any) -> None:
        limit_ms = ceil(timeout_s * 1000 * _SERVER_SHARE)
        _run(connection, f"SET statement_timeout = {limit_ms}; SET idle_in_transaction_session_timeout = {limit_ms}")


# MariaDB, MySQL


def _prepare_mysql(engine: Engine, timeout_s: float) -> None:
    whole_s = ceil(timeout_s)
    limits: Mapping[str, object] = {"innodb_lock_wait_timeout": whole_s, "lock_wait_timeout": whole_s, "sql_mode": "'STRICT_ALL_TABLES'"}

    @event.listens_for(engine, "connect")
    def after(connection: DBAPIConnection, record: Any) -> None:
        more = {"max_statement_time": timeout_s * _SERVER_SHARE, "idle_transaction_timeout": whole_s} if engine.dialect.is_mariadb else {}  # type: ignore[attr-defined]
        said = ", ".join(f"{variable} = {value}" for variable, value in {**limits, **more}.items())
        _run(connection, "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")  # fewer deadlocks: nothing between rows is locked
        _run(connection, f"SET SESSION {said}")


def _tls(options: Mapping[str, str], name: str) -> SSLContext:
    """Whoever asks for TLS in one way or another has the server's certificate and name checked. PyMySQL alone would check neither unless told how, in words that SQLAlchemy swallows."""
    no = {key for key, value in options.items() if value.lower() in ("false", "0", "no")}
    try:
        context = create_default_context(cafile=options.get("ssl_ca"), capath=options.get("ssl_capath"))
        if "ssl_cert" in options:
            context.load_cert_chain(options["ssl_cert"], options.get("ssl_key"), options.get("ssl_key_password"))
    except OSError as error:
        raise LocalError(f"store {name}: its certificates cannot be read: {error.strerror or error}") from error
    if no:
        context.check_hostname = False
    if "ssl_verify_cert" in no:
        context.verify_mode = CERT_NONE
    return context
