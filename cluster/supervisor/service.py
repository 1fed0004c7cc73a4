"""Keeps processes alive: Twisted's `ProcessMonitor`, which restarts, and what a cluster needs besides.

A replacement has the name, the arguments and so the ports of the process it replaces. One that dies at once is restarted
with growing pauses. The listener hears of every start and end. Only processes started here are ever signalled, through
the handle of their start, never by a pid read elsewhere; and none survives this process, however it ends (`launch.py`).
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.logger import LogEvent, Logger
from twisted.python.failure import Failure
from twisted.runner.procmon import ProcessMonitor

__all__ = ["Exited", "Started", "Supervisor"]

_LAUNCH = Path(__file__).with_name("launch.py")
_LINES_KEPT = 30  # of each process, to show why it ended


@dataclass(frozen=True, slots=True)
class Started:
    """`restarts` is 0 for the first process of this name."""

    name: str
    pid: int
    restarts: int


@dataclass(frozen=True, slots=True)
class Exited:
    name: str
    pid: int
    reason: str


class Supervisor(ProcessMonitor):
    """A service: `startService` starts what was added, `stopService` fires when all of it has ended. Reactor thread only."""

    minRestartDelay = 0.5  # type: ignore[assignment]
    maxRestartDelay = 10
    killTime = 3

    def __init__(
        self, reactor: Any, listener: Callable[[Started | Exited], None] = lambda event: None, write_line: Callable[[str, str], None] = lambda name, line: None
    ) -> None:
        """`write_line(name, line)` gets what the processes print, line by line."""
        super().__init__(reactor)
        self.log = Logger(observer=self._logged)  # type: ignore[arg-type]
        self._listener = listener
        self._write_line = write_line
        self._last_lines: dict[str, deque[str]] = {}
        self._starts: dict[str, int] = {}
        self._pids: dict[str, int] = {}
        self._stopped: Deferred[None] | None = None

    def add(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Run `command` (the first item is an absolute path) under this name and keep it running. `KeyError`: the name is taken."""
        launch = [sys.executable, "-I", "-S", str(_LAUNCH), str(os.getpid()), *command]
        self.addProcess(name, launch, env=dict(os.environ if environment is None else environment))

    def pid(self, name: str) -> int | None:
        """The process of this name; None while there is none."""
        return self._pids.get(name)

    def restarts(self, name: str) -> int:
        return max(0, self._starts.get(name, 0) - 1)

    def last_lines(self, name: str) -> list[str]:
        """What the processes of this name printed last."""
        return list(self._last_lines.get(name, ()))

    def startProcess(self, name: str) -> None:
        running = name in self.protocols
        super().startProcess(name)
        protocol = self.protocols.get(name)
        if running or protocol is None or protocol.transport is None:
            return
        self._starts[name] = self._starts.get(name, 0) + 1
        self._pids[name] = protocol.transport.pid
        self._listener(Started(name, self._pids[name], self.restarts(name)))

    def stopService(self) -> Deferred[None]:  # type: ignore[override]
        super().stopService()
        if not self.protocols:
            return succeed(None)
        if self._stopped is None:
            self._stopped = Deferred()
        return self._stopped

    def _monitoredProcessExited(self, name: str, reason: Failure | None = None) -> None:
        super()._monitoredProcessExited(name, reason)
        pid = self._pids.pop(name, None)
        if pid is not None:
            self._listener(Exited(name, pid, reason.getErrorMessage() if reason is not None else ""))
        if self._stopped is not None and not self.protocols:
            stopped, self._stopped = self._stopped, None
            stopped.callback(None)

    def _logged(self, event: LogEvent) -> None:
        name, line = event.get("tag"), event.get("line")
        if name is None or line is None:
            return
        self._last_lines.setdefault(name, deque(maxlen=_LINES_KEPT)).append(line)
        self._write_line(name, line)
