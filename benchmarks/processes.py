"""The processes of a measurement: started, told what to do, and ended, each by its own id."""

from __future__ import annotations

import json
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from random import SystemRandom
from types import TracebackType
from typing import IO, Any

__all__ = ["Group", "MeasureError", "Process", "free_port"]

_END_S = 12.0  # a node says farewell within that
_ROOT = Path(__file__).parent.parent


class MeasureError(Exception):
    """A process of the measurement did not do what it was asked."""


class Process:
    """A child that answers one line of JSON to each. `settings`: keywords of its `ClusterManager`."""

    def __init__(self, settings: dict[str, Any], module: str = "benchmarks.node") -> None:
        self.name: str = settings["node"]["name"]
        self.spawned_ns = time.monotonic_ns()
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `end`)
        self._child = subprocess.Popen([sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, cwd=_ROOT)
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._write(settings)
        self.about = self._answer(60.0)

    @property
    def pid(self) -> int:
        return self._child.pid

    def tell(self, command: str, **keywords: Any) -> None:
        """Begin a command; `answer` waits for its end."""
        self._write([command, keywords])

    def answer(self, timeout_s: float = 300.0) -> dict[str, Any]:
        return self._answer(timeout_s)

    def do(self, command: str, **keywords: Any) -> dict[str, Any]:
        self.tell(command, **keywords)
        return self._answer(300.0)

    def kill(self) -> int:
        """SIGKILL. Returns when, ns."""
        now = time.monotonic_ns()
        self._child.kill()
        self._child.wait()
        return now

    def pause(self) -> int:
        """SIGSTOP. Returns when, ns."""
        now = time.monotonic_ns()
        self._child.send_signal(signal.SIGSTOP)
        return now

    def resume(self) -> int:
        """SIGCONT. Returns when, ns."""
        now = time.monotonic_ns()
        self._child.send_signal(signal.SIGCONT)
        return now

    def end(self) -> None:
        """In good order if it can, else by SIGKILL."""
        if self._child.poll() is None:
            assert self._child.stdin is not None
            try:
                self._child.stdin.close()
                self._child.wait(_END_S)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                self.kill()
        self._reader.join()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()
        self._log.close()

    def _write(self, what: Any) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(what).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise MeasureError(f"process {self.pid} has ended: {self._last_words()}") from None

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self._answers.put(line)
        self._answers.put(b"")

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            raise MeasureError(f"process {self.pid} did not answer in {timeout_s:g} s: {self._last_words()}") from None
        if not line:
            raise MeasureError(f"process {self.pid} has ended: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise MeasureError(f"process {self.pid}: {answer['error']}: {self._last_words()}")
        return answer

    def _last_words(self) -> str:
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")[-2000:].strip() or "it logged nothing"


class Group:
    """Nodes of one cluster of a name of its own, on loopback and free ports. The first one writes, and is everybody's seed."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._name = f"bench-{uuid.uuid4().hex[:12]}"
        self._seed = free_port()
        self._started = 0
        self.nodes: list[Process] = []

    def __enter__(self) -> Group:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for node in self.nodes:
            node.end()

    @property
    def writer(self) -> Process:
        return self.nodes[0]

    @property
    def replicas(self) -> list[Process]:
        return self.nodes[1:]

    def grow(self, members: int) -> Group:
        """Start nodes until there are `members`, and wait until all know all."""
        while len(self.nodes) < members:
            self.add()
        self.meet()
        return self

    def add(self, module: str = "benchmarks.node", **node_table: Any) -> Process:
        """Start one more, with more of the table `[node]`; it has listened, and met nobody yet, when this returns."""
        node = Process(self._node_settings(node_table), module)
        self.nodes.append(node)
        return node

    def drop(self, node: Process) -> None:
        self.nodes.remove(node)
        node.end()

    def meet(self) -> None:
        for node in self.nodes:
            node.tell("meet", members=len(self.nodes))
        for node in self.nodes:
            node.answer()

    def _node_settings(self, node_table: dict[str, Any]) -> dict[str, Any]:
        self._started += 1
        return {
            "node": {"name": f"n{self._started}", "host": "127.0.0.1", "port": 0 if self.nodes else self._seed, **node_table},
            "cluster": {"name": self._name},
            "membership": {"discovery": ["static"], "seeds": [f"127.0.0.1:{self._seed}"]},
            "admin": {"socket": ""},
            **self._settings,
        }


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    """Below those that the kernel gives to connections and to others who ask for any: one of these may be taken again before a node listens."""
    while True:
        port = SystemRandom().randrange(20_000, 32_000)
        with suppress(OSError), socket.socket(socket.AF_INET, kind) as found:
            found.bind(("127.0.0.1", port))
            return port
