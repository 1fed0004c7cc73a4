"""Real servers of Redis (or of what CATERWAUL_REDIS_SERVER names, such as Valkey) on loopback: alone, behind a Sentinel, as a Cluster.

They end with the block, or with the test process, whatever becomes of that. `shared_server` and `shared_cluster` are there once in a test process: started by whoever asks first, and left running.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from caterwaul.cluster.supervisor import service

from .processes import free_port, stands_still, until

__all__ = ["RedisProcess", "cluster", "sentinel", "shared_cluster", "shared_server", "what_is_missing"]

T = TypeVar("T")

_PROGRAM = os.environ.get("CATERWAUL_REDIS_SERVER", "redis-server")
_LAUNCH = Path(service.__file__).with_name("launch.py")
_NODE_TIMEOUT_MS = 1000  # after which a Cluster gives a node up; on a busy machine one can be silent for long


def what_is_missing() -> str:
    """Why there can be none here; empty if there can."""
    return "" if shutil.which(_PROGRAM) else f"needs {_PROGRAM} (on Debian the package redis-server)"


@cache
def shared_server() -> RedisProcess:
    """It keeps what it is told. Empty it before use."""  # with `everysec` it would write later than it answers, while the disk is busy
    return _until_the_end(lambda directory: RedisProcess(directory, "--appendonly", "yes", "--appendfsync", "no", password="secret"))


@cache
def shared_cluster() -> list[RedisProcess]:
    """Three masters. Empty them before use."""
    return _until_the_end(cluster)


def _until_the_end(make: Callable[[Path], AbstractContextManager[T]]) -> T:
    stack = ExitStack()
    atexit.register(stack.close)
    directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="caterwaul-redis-"))
    return stack.enter_context(make(Path(directory)))


class RedisProcess:
    """`with RedisProcess(directory, "--appendonly", "yes") as server:`; `port` 0 is for one on `socket` only. What it said is in the directory's file log."""

    def __init__(self, directory: Path, *options: str, port: int | None = None, password: str = "") -> None:
        self.directory = directory
        self.port = free_port() if port is None else port
        self.socket = str(directory / "socket")
        self.password = password
        self._options = [*options, *(["--requirepass", password, "--masterauth", password] if password else [])]
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://{f':{self.password}@' if self.password else ''}127.0.0.1:{self.port}"

    def __enter__(self) -> RedisProcess:
        self.directory.mkdir(exist_ok=True)
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self.kill()

    def start(self, wait: bool = True) -> None:
        """And wait until it answers, with all that it keeps loaded."""
        launch = [sys.executable, "-I", "-S", str(_LAUNCH), str(os.getpid()), str(shutil.which(_PROGRAM))]
        with (self.directory / "log").open("ab") as log:
            self._child = subprocess.Popen([*launch, *self._words()], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if wait:
            self.wait()

    def wait(self) -> None:
        until(self.answers, what=f"an answer of {_PROGRAM}: {self.directory / 'log'}")

    def _words(self) -> list[str]:
        place = ["--bind", "127.0.0.1", "--port", str(self.port), "--unixsocket", self.socket, "--dir", str(self.directory)]
        return [*place, "--save", "", "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1", *self._options]

    def answers(self) -> bool:
        assert self._child is not None
        assert self._child.poll() is None, (self.directory / "log").read_text()[-2000:]
        with suppress(RedisError):
            return bool(self.ask("PING"))
        return False

    def kill(self) -> None:
        assert self._child is not None
        self._child.kill()
        self._child.wait()

    @contextmanager
    def down(self) -> Iterator[None]:
        """Killed meanwhile, and there again afterwards with what it had kept."""
        self.kill()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """It answers nobody, and its kernel takes connections none the less."""
        assert self._child is not None
        child = self._child
        child.send_signal(signal.SIGSTOP)
        until(lambda: stands_still(child.pid), what="it has stopped")
        try:
            yield
        finally:
            self._child.send_signal(signal.SIGCONT)

    def follows(self) -> bool:
        """It is a replica, and has all that its master had when it began to follow."""
        try:
            told = self.ask("INFO", "replication")
        except RedisError:  # who makes it follow cuts its connections
            return False
        return bool(told["role"] == "slave" and told["master_link_status"] == "up")

    def wait_for_all_of(self, master: RedisProcess) -> None:
        """This replica gets what its master has by now."""
        offset = master.ask("INFO", "replication")["master_repl_offset"]
        until(lambda: self.ask("INFO", "replication")["slave_repl_offset"] >= offset, what="the replica has all")

    @contextmanager
    def client(self) -> Iterator[Redis]:
        place: dict[str, Any] = {"port": self.port} if self.port else {"unix_socket_path": self.socket}
        with Redis(**place, password=self.password or None, socket_timeout=5, retry=Retry(NoBackoff(), 0), protocol=2) as client:
            yield client

    def ask(self, *words: str | bytes | int) -> Any:
        with self.client() as client:
            return client.execute_command(*words)


@contextmanager
def sentinel(directory: Path, name: str, master: RedisProcess) -> Iterator[RedisProcess]:
    """One Sentinel, which decides alone, over a master whose replicas it knows."""
    directory.mkdir()
    lines = [
        f"sentinel monitor {name} 127.0.0.1 {master.port} 1", f"sentinel down-after-milliseconds {name} 300", f"sentinel failover-timeout {name} 3000",
        *([f"sentinel auth-pass {name} {master.password}"] if master.password else []),
    ]  # fmt: skip
    path = directory / "sentinel.conf"
    path.write_text("\n".join(lines) + "\n")
    server = _Sentinel(directory, path)
    with server:
        server.ask("SENTINEL", "DEBUG", "INFO-PERIOD", 200, "PING-PERIOD", 100, "PUBLISH-PERIOD", 200)  # ms
        until(lambda: server.ask("SENTINEL", "REPLICAS", name), what="the Sentinel knows the replica")
        yield server


class _Sentinel(RedisProcess):
    def __init__(self, directory: Path, configuration: Path) -> None:
        super().__init__(directory)
        configuration.write_text(f"port {self.port}\nbind 127.0.0.1\n{configuration.read_text()}")
        self._configuration = configuration

    def _words(self) -> list[str]:
        return [str(self._configuration), "--sentinel"]


@contextmanager
def cluster(directory: Path, replicas: int = 0) -> Iterator[list[RedisProcess]]:
    """Three masters, and a replica for each of the first `replicas` of them. All agree about all when it is given."""
    with ExitStack() as stack:
        nodes = []
        for number in range(3 + replicas):
            options = (
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                str(free_port()),
                "--cluster-node-timeout",
                str(_NODE_TIMEOUT_MS if replicas else 60_000),
                "--cluster-replica-validity-factor",
                "0",
            )
            nodes.append(stack.enter_context(RedisProcess(directory / f"node{number}", *options)))
        masters = nodes[:3]
        for number, node in enumerate(masters):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.ask("CLUSTER", "ADDSLOTSRANGE", 16384 * number // 3, 16384 * (number + 1) // 3 - 1)
        for node, other in combinations(nodes, 2):  # all of them, for they gossip slowly
            node.ask("CLUSTER", "MEET", "127.0.0.1", other.port, _bus_port(other))
        until(lambda: all(_knows(node, len(nodes)) for node in nodes), what="all nodes of the cluster know each other")
        for master, replica in zip(masters, nodes[3:], strict=False):
            replica.ask("CLUSTER", "REPLICATE", master.ask("CLUSTER", "MYID"))
        until(lambda: all(_agrees(node, replicas) for node in nodes), what="all nodes of the cluster agree")
        yield nodes


def _bus_port(node: RedisProcess) -> int:
    return int(node._options[3])


def _knows(node: RedisProcess, number: int) -> bool:
    lines = node.ask("CLUSTER", "NODES").splitlines()
    return len(lines) == number and not any(b"handshake" in line for line in lines)


def _agrees(node: RedisProcess, replicas: int) -> bool:
    slots = node.ask("CLUSTER", "SLOTS")
    return b"cluster_state:ok" in node.ask("CLUSTER", "INFO") and sum(len(one) - 2 for one in slots) == 3 + replicas
