"""Database servers for tests: PostgreSQL and MariaDB, each on a free port of loopback, with a data directory and a password of its own.

A test process has one of each kind, started by whoever asks first (`postgresql`, `mariadb`) and ended with the process, whatever becomes of that. Tests may stop, kill and
pause it, and leave it running. Each test has a database of its own in it (`Database.fresh`).
"""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from typing import ClassVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from sqlalchemy import Connection, Engine, NullPool, create_engine
from sqlalchemy.exc import DBAPIError

from .processes import _Child, free_port, stands_still, until

USER, PASSWORD = "caterwaul", "secret"
_START_S = 60.0


def postgresql_missing() -> str:
    return "" if _postgresql_programs() else "PostgreSQL is not installed"


def mariadb_missing() -> str:
    return "" if shutil.which("mariadbd") and shutil.which("mariadb-install-db") else "MariaDB is not installed"


@cache
def postgresql() -> Database:
    return _ended_with_the_process(PostgreSQL())


@cache
def mariadb() -> Database:
    return _ended_with_the_process(MariaDB())


class Database:
    """A server, running. `url(database)` is what a user would write."""

    scheme = ""
    maintenance = ""  #: a database that is always there
    plain: ClassVar[dict[str, object]] = {}  #: how its driver is told not to encrypt
    _numbers = count()

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="caterwaul-database-"))
        self.port = free_port()
        self._engines: dict[str, Engine] = {}
        self._was_emptied = False
        try:
            self.certificate = certificate(self._directory)
            self._make()
            self.start()
        except BaseException:
            self.remove()
            raise

    def url(self, database: str, port: int = 0) -> str:
        return f"{self.scheme}://{USER}:{PASSWORD}@127.0.0.1:{port or self.port}/{database}"

    def fresh(self) -> str:
        """The URL of a new database."""
        name = f"test{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name}")
        return self.url(name)

    def emptied(self) -> str:
        """The URL of one database that is used again and again; nothing is in its tables, if it has them."""
        name = "emptied"
        if not self._was_emptied:
            self.run(f"CREATE DATABASE {name}")
        elif self.ask("SELECT table_name FROM information_schema.tables WHERE table_name = 'caterwaul_sessions'", name):
            self.run("DELETE FROM caterwaul_sessions", "DELETE FROM caterwaul_damaged", database=name)
        self._was_emptied = True
        return self.url(name)

    def run(self, *statements: str, database: str = "") -> None:
        """As the superuser of the tests, beside whatever is tested."""
        with self.connected(database) as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def ask(self, question: str, database: str = "") -> list[tuple[object, ...]]:
        with self.connected(database) as connection:
            return [tuple(row) for row in connection.exec_driver_sql(question)]

    def connected(self, database: str = "") -> Connection:
        """A connection of its own, which is closed with the block."""
        name = database or self.maintenance
        if name not in self._engines:
            url = self.url(name).replace("postgresql:", "postgresql+psycopg:").replace("mysql:", "mysql+pymysql:")
            self._engines[name] = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 5, **self.plain})
        return self._engines[name].connect()

    def start(self) -> None:
        self._process = _Child(self._command())
        until(self._answers, _START_S, f"{type(self).__name__}: {self._process.log}")

    def stop(self) -> None:
        """As an administrator does who does not wait for clients."""
        self._process.signal(signal.SIGINT if self.scheme == "postgresql" else signal.SIGTERM)
        self._process.exit_code(_START_S)
        self._process.end()

    @contextmanager
    def down(self) -> Iterator[None]:
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The kernel still accepts connections and acknowledges what comes; nobody answers."""
        stopped = self._pids()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
            until(lambda: stands_still(pid), what="all its threads are stopped")  # noqa: B023
        try:
            yield
        finally:
            for pid in reversed(stopped):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def remove(self) -> None:
        if hasattr(self, "_process"):
            self._process.end()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _make(self) -> None:
        raise NotImplementedError

    def _command(self) -> Sequence[str]:
        raise NotImplementedError

    def _pids(self) -> list[int]:
        """Of all its processes, the first one first."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        return [self._process.pid, *map(int, children.split())]

    def _answers(self) -> bool:
        assert self._process.is_running, self._process.log
        try:
            self.run("SELECT 1")
        except DBAPIError:
            return False
        return True


class PostgreSQL(Database):
    scheme = "postgresql"
    maintenance = "postgres"
    plain: ClassVar[dict[str, object]] = {"sslmode": "disable"}

    def _make(self) -> None:
        programs = _postgresql_programs()
        assert programs is not None
        self._programs = programs
        self._as_user: list[str] = []
        if os.geteuid() == 0:  # it refuses root
            account = _account("postgres", "nobody")
            for path in (self._directory, self._directory / "key.pem"):
                os.chown(path, account.pw_uid, account.pw_gid)
            setpriv = str(shutil.which("setpriv"))
            self._as_user = [setpriv, f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups", "--pdeathsig=KILL"]
        password = self._directory / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        options = ["--username", USER, "--pwfile", str(password), "--auth=password", "--no-sync", "--no-instructions", "--locale=C", "--encoding=UTF8"]
        _check([*self._as_user, str(programs / "initdb"), "--pgdata", str(self._directory / "data"), *options], self._directory)

    def _command(self) -> Sequence[str]:
        settings = {
            "listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "fsync": "off", "max_connections": 60, "shared_buffers": "16MB",
            "autovacuum": "off", "ssl": "on", "ssl_cert_file": self.certificate, "ssl_key_file": self._directory / "key.pem",
        }  # fmt: skip
        return [
            *self._as_user, str(self._programs / "postgres"), "-D", str(self._directory / "data"),
            *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
        ]  # fmt: skip


class MariaDB(Database):
    scheme = "mysql"
    maintenance = "mysql"
    plain: ClassVar[dict[str, object]] = {"ssl_disabled": True}

    def _make(self) -> None:
        me = pwd.getpwuid(os.geteuid()).pw_name
        self._common = ["--no-defaults", f"--user={me}", f"--datadir={self._directory / 'data'}", "--innodb-log-file-size=8M", "--innodb-buffer-pool-size=32M"]
        _check(
            [str(shutil.which("mariadb-install-db")), *self._common, "--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"],
            self._directory,
        )
        account = f"'{USER}'@'127.0.0.1'"
        self._init = self._directory / "init.sql"
        self._init.write_text(f"CREATE USER IF NOT EXISTS {account} IDENTIFIED BY '{PASSWORD}';\nGRANT ALL ON *.* TO {account} WITH GRANT OPTION;\n")

    def _command(self) -> Sequence[str]:
        return [
            str(shutil.which("mariadbd")), *self._common, "--bind-address=127.0.0.1", f"--port={self.port}", f"--socket={self._directory / 'socket'}",
            f"--pid-file={self._directory / 'pid'}", f"--init-file={self._init}", f"--ssl-cert={self.certificate}", f"--ssl-key={self._directory / 'key.pem'}", "--skip-name-resolve", "--innodb-flush-log-at-trx-commit=0", "--performance-schema=OFF",
        ]  # fmt: skip


def certificate(directory: Path) -> Path:
    """Of 127.0.0.1, by itself, and new; its key is beside it, `key.pem`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "database of tests")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - timedelta(days=1), now + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / "certificate.pem"
    path.write_bytes(made.public_bytes(Encoding.PEM))
    secret = directory / "key.pem"
    secret.touch(0o600)
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


def _ended_with_the_process(database: Database) -> Database:
    atexit.register(database.remove)
    return database


def _postgresql_programs() -> Path | None:
    """Debian keeps them out of the path, by version."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


def _account(*names: str) -> pwd.struct_passwd:
    for name in names:
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise AssertionError(f"none of the users {', '.join(names)} is there")


def _check(command: Sequence[str], directory: Path) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
