"""A real PostgreSQL on loopback, for as long as a block lasts, as it comes: it waits for the disk."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from .processes import MeasureError, free_port

__all__ = ["PostgresqlServer"]

_START_S = 30.0
_END_S = 20.0


class PostgresqlServer:
    """`with PostgresqlServer() as server`: `server.url`. Raises `MeasureError` if it cannot be made or does not answer."""

    @staticmethod
    def is_here() -> bool:
        return _programs() is not None

    def __init__(self) -> None:
        self._port = free_port()
        self._password = secrets.token_hex()
        self.url = f"postgresql://caterwaul:{self._password}@127.0.0.1:{self._port}/postgres"

    def __enter__(self) -> PostgresqlServer:
        programs = _programs()
        if programs is None:
            raise MeasureError("PostgreSQL is not installed")
        self._directory = Path(tempfile.mkdtemp(prefix="caterwaul-bench-"))
        self._child: subprocess.Popen[bytes] | None = None
        try:
            self._start(programs)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.send_signal(signal.SIGINT)
            try:
                self._child.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _start(self, programs: Path) -> None:
        user: str | None = None
        if os.geteuid() == 0:  # which it refuses
            user = next(name for name in ("postgres", "nobody") if _is_user(name))
            shutil.chown(self._directory, user)
        password = self._directory / "password"
        password.write_text(self._password)
        password.chmod(0o644)
        data = str(self._directory / "data")
        made = subprocess.run(
            [programs / "initdb", "--pgdata", data, "--username", "caterwaul", "--pwfile", password, "--auth=scram-sha-256", "--no-instructions", "--no-sync"],
            user=user, capture_output=True, text=True, check=False, cwd=self._directory,
        )  # fmt: skip
        if made.returncode:
            raise MeasureError(f"initdb: {made.stderr}")
        with (self._directory / "log").open("wb") as log:
            options = {"listen_addresses": "127.0.0.1", "port": self._port, "unix_socket_directories": ""}
            command = [programs / "postgres", "-D", data, *(word for name, value in options.items() for word in ("-c", f"{name}={value}"))]
            self._child = subprocess.Popen(command, user=user, stdout=log, stderr=log, cwd=self._directory)
        end = time.monotonic() + _START_S
        while not self._answers(programs):
            if self._child.poll() is not None or time.monotonic() > end:
                raise MeasureError(f"PostgreSQL does not answer: {(self._directory / 'log').read_text()[-1000:]}")
            time.sleep(0.02)

    def _answers(self, programs: Path) -> bool:
        """It takes connections before it is ready for them, and then refuses."""
        return not subprocess.run([programs / "pg_isready", "--quiet", "--host", "127.0.0.1", "--port", str(self._port)], check=False).returncode


def _programs() -> Path | None:
    """Debian keeps them out of the path, by version."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


def _is_user(name: str) -> bool:
    with suppress(KeyError):
        return bool(pwd.getpwnam(name))
    return False
