"""The tables of a store in a database, and how a database of an older version comes to have them.

A new database is made as the tables here say. One that was made by version n goes through the steps that lead from each version to the next. So a change
of the tables is a change here and one more step, which must leave what a new database would have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Column, Connection, Dialect, Index, MetaData, Table, delete, func, insert, inspect, select
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import BigInteger, DateTime, Integer, LargeBinary, Text, TypeDecorator, TypeEngine

__all__ = ["DAMAGED", "SESSIONS", "STEPS", "is_mysql", "migrate", "packet_max", "version_here", "version_of"]

_LOCK = 0x63617465  # "cate": of PostgreSQL's advisory locks
_LOCK_WAIT_S = 60


def is_mysql(dialect: Dialect) -> bool:
    return dialect.name in ("mysql", "mariadb")


class _Space(TypeDecorator[str]):
    """Text that is compared byte by byte. MariaDB and MySQL take `a` and `a ` for the same unless it is binary."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if is_mysql(dialect):
            return dialect.type_descriptor(mysql.VARBINARY(1024))
        return dialect.type_descriptor(postgresql.TEXT(collation="C") if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        return value.encode() if value is not None and is_mysql(dialect) else value

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        return value.decode() if isinstance(value, bytes) else value


_Hash = LargeBinary(16).with_variant(mysql.BINARY(16), "mysql", "mariadb")
_Data = LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")
_OPTIONS: dict[str, Any] = {"mysql_engine": "InnoDB", "mariadb_engine": "InnoDB", "mysql_row_format": "DYNAMIC", "mariadb_row_format": "DYNAMIC"}
_tables = MetaData()

SESSIONS = Table(
    "caterwaul_sessions", _tables,
    Column("space", _Space, primary_key=True), Column("key", _Hash, primary_key=True), Column("revision", _Hash, nullable=False),
    Column("until_ms", BigInteger, nullable=False), Column("data", _Data, nullable=False),
    Index("caterwaul_sessions_until", "space", "until_ms"), **_OPTIONS,
)  # fmt: skip

#: What was put out of the way, for a person to look at; nobody reads it.
DAMAGED = Table(
    "caterwaul_damaged", _tables,
    Column("id", Integer, primary_key=True), Column("at", DateTime, server_default=func.now(), nullable=False),
    Column("space", _Space, nullable=False), Column("key", _Hash, nullable=False), Column("revision", _Hash, nullable=False),
    Column("until_ms", BigInteger, nullable=False), Column("data", _Data, nullable=False), **_OPTIONS,
)  # fmt: skip

_SCHEMA = Table("caterwaul_schema", _tables, Column("version", Integer, primary_key=True, autoincrement=False), **_OPTIONS)

_Step = Callable[[Connection], None]
STEPS: tuple[_Step, ...] = ()  #: the first leads from version 1 to 2, and so on


def version_here() -> int:
    """What the tables above are."""
    return 1 + len(STEPS)


def version_of(connection: Connection) -> int:
    """Of the tables in this database; 0: there are none."""
    if not inspect(connection).has_table(_SCHEMA.name):
        return 0
    return connection.execute(select(func.max(_SCHEMA.c.version))).scalar() or 0


def packet_max(connection: Connection) -> int:
    """How many bytes a statement may have; 0: nobody limits that."""
    return int(connection.exec_driver_sql("SELECT @@max_allowed_packet").scalar_one()) if is_mysql(connection.dialect) else 0


def migrate(connection: Connection) -> None:
    """Make the tables, or bring them to this version, once, whoever else is at it. In autocommit mode; where the kind of database can, in one transaction.

    MariaDB and MySQL commit with every change of a table; what fails there in the middle of a step has to be finished by hand.
    """
    waits = select(func.get_lock("caterwaul_schema", _LOCK_WAIT_S))  # given back with the connection
    if is_mysql(connection.dialect) and not connection.execute(waits).scalar():
        raise TimeoutError("somebody else has been at its tables for a minute; try again later")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.dialect.name == "sqlite" else "BEGIN")
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    version = version_of(connection)
    if not version:
        _tables.create_all(connection)
    for number, step in enumerate(STEPS[version - 1 :] if version else (), version + 1):
        step(connection)
        _mark(connection, number)
    if not version:
        _mark(connection, version_here())
    connection.exec_driver_sql("COMMIT")


def _mark(connection: Connection, version: int) -> None:
    connection.execute(insert(_SCHEMA).values(version=version))
    connection.execute(delete(_SCHEMA).where(_SCHEMA.c.version < version))
