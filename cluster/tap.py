"""A node as a Twisted service, for `twistd caterwaul`, `twist caterwaul` and `caterwaul node`.

Everything is made when the service starts and nothing before: `twistd` forks in between, and a member's identity is that
of one process. A node that cannot start says so in one line and ends the process: 2 for a wrong configuration, 1 for
everything else.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.python.usage import Options as UsageOptions, UsageError

from ..membership.errors import LocalError
from .config import SettingsError
from .embedding import installed_reactor, use_monotonic_time
from .node import Node
from .settings import Settings, load

__all__ = ["NodeService", "Options", "makeService"]


class Options(UsageOptions):
    """Command line of `twistd caterwaul`."""

    synopsis = "[--config FILE] [--set KEY=VALUE]..."
    longdesc = "Run a node of a Caterwaul cluster, which keeps copies of HTTP sessions. `caterwaul config` lists all settings."
    optParameters = [["config", "c", None, "Configuration file (TOML). Without one everything has its default."]]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.changes: dict[str, str] = {}
        self.settings: Settings | None = None

    def opt_set(self, text: str) -> None:
        """Override one key of the file, such as node.name=b or membership.drop_time_s=5 (any number of times)."""
        key, equals, value = text.partition("=")
        if not equals or "." not in key:
            raise UsageError(f"--set {text}: give TABLE.KEY=VALUE")
        self.changes[key] = value

    def postOptions(self) -> None:
        try:
            self.settings = with_changes(load(self["config"]) if self["config"] else Settings.of(), self.changes)
        except SettingsError as error:
            _die(error.lines, 2)


class NodeService(Service):
    """One node, from `startService` to `stopService`. `removes`: a file of this process's to remove when it cannot start."""

    def __init__(self, settings: Settings, removes: str = "") -> None:
        self.settings = settings
        self.node: Node | None = None
        self._removes = removes

    def startService(self) -> None:
        reactor = installed_reactor()
        use_monotonic_time(reactor)
        self.node = Node(self.settings, reactor)
        self.node.start().addErrback(self._failed)
        super().startService()  # type: ignore[no-untyped-call]

    def stopService(self) -> Deferred[None] | None:
        super().stopService()  # type: ignore[no-untyped-call]
        return self.node.stop() if self.node is not None else None

    def _failed(self, failure: Failure) -> NoReturn:
        if not failure.check(LocalError):
            failure.raiseException()
        if self._removes:
            with suppress(OSError):
                Path(self._removes).unlink()
        _die([f"caterwaul: {failure.getErrorMessage()}"], 1)


def makeService(options: Options) -> IService:
    """What `twistd` calls."""
    assert options.settings is not None, "postOptions has run"
    parent: Any = options.parent or {}
    return NodeService(options.settings, parent.get("pidfile") or "")  # type: ignore[return-value]


def _die(lines: list[str], code: int) -> NoReturn:
    for line in lines:
        sys.__stderr__.write(line + os.linesep) if sys.__stderr__ else None
    sys.exit(code)
