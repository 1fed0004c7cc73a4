"""A real redis-server on loopback, for as long as a block lasts: what sessions in a store of their own cost.

It saves nothing to disk, which is the fastest it can be, unless it is told to.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from importlib.util import find_spec

from ..processes import MeasureError, free_port

__all__ = ["RedisServer", "what_is_missing"]

_START_S = 10.0
_END_S = 10.0


def what_is_missing() -> str:
    """Why Redis cannot be measured here; empty if it can."""
    if not RedisServer.is_here():
        return "no redis-server on the PATH"
    modules = [name for name in ("redis", "flask_session") if find_spec(name) is None]
    return f"not installed: {', '.join(modules)} (pip install -e '.[bench]')" if modules else ""


class RedisServer:
    """`with RedisServer() as server`: it answers on `server.port` of loopback. Raises `MeasureError` if it does not within ten seconds. `appends`: to its log, synced each second."""

    @staticmethod
    def is_here() -> bool:
        return shutil.which("redis-server") is not None

    def __init__(self, appends: bool = False) -> None:
        self.port = free_port()
        self._appends = appends

    def __enter__(self) -> RedisServer:
        self._directory = tempfile.TemporaryDirectory(prefix="caterwaul-bench-")
        self._log = tempfile.TemporaryFile()
        self._child = subprocess.Popen(
            ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "yes" if self._appends else "no", "--dir", self._directory.name],
            stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._child.terminate()
        try:
            self._child.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._log.close()
        self._directory.cleanup()

    def _wait(self) -> None:
        end = time.monotonic() + _START_S
        while not self._answers():
            if self._child.poll() is not None or time.monotonic() > end:
                self._log.seek(0)
                raise MeasureError(f"redis-server does not answer: {self._log.read().decode('utf-8', 'replace')[-1000:]}")
            time.sleep(0.02)

    def count(self) -> int:
        """How many keys it holds."""
        return int(self._asked(b"DBSIZE\r\n")[1:])

    def _answers(self) -> bool:
        try:
            return self._asked(b"PING\r\n").startswith(b"+PONG")
        except OSError:
            return False

    def _asked(self, command: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
            connection.sendall(command)
            return connection.recv(64)
