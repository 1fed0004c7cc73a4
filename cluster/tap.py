"""A node as a Twisted service, for `twistd caterwaul`, `twist caterwaul` and `caterwaul node`.

Everything is made when the service starts and nothing before: `twistd` forks in between, and a member's identity is that
of one process. A node that cannot start says so in one line and ends the process: 2 for a wrong configuration, 1 for
everything else.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.python.usage import Options as UsageOptions

from ..membership.errors import LocalError
from .config import SettingsError
from .embedding import installed_reactor, use_monotonic_time
from .node import Node
from .settings import Settings, load, parse_overrides

__all__ = ["NodeService", "Options", "makeService"]


class Options(UsageOptions):
    """Command line of `twistd caterwaul`."""

    synopsis = "[--config FILE] [--set KEY=VALUE]..."
    longdesc = "Run a node of a Caterwaul cluster, which keeps copies of HTTP sessions. `caterwaul config` lists all settings."
    optParameters = (("config", "c", None, "Configuration file (TOML). Without one everything has its default."),)

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.overrides: list[str] = []
        self.settings: Settings | None = None

    def opt_set(self, text: str) -> None:
        """Override one key of the file, such as node.name=b or membership.drop_time_s=5 (any number of times)."""
        self.overrides.append(text)

    def postOptions(self) -> None:
        try:
            keywords = parse_overrides(self.overrides)
            self.settings = load(self["config"], **keywords) if self["config"] else Settings.of(**keywords)
        except SettingsError as error:
            _die(error.lines, 2)


class NodeService(Service):
    """One node, from `startService` to `stopService`. `pidfile`: removed when it cannot start."""

    def __init__(self, settings: Settings, pidfile: str = "") -> None:
        self.settings = settings
        self.node: Node | None = None
        self._pidfile = pidfile
        self._failure: Failure | None = None

    def startService(self) -> None:
        """Ends the process when the node cannot start."""
        reactor = installed_reactor()
        use_monotonic_time(reactor)
        self.node = Node(self.settings, reactor)
        self.node.on_leave = reactor.stop
        self.node.start().addErrback(self._failed)  # what is to be listened on is known to work, or not, when this returns
        if self._failure is not None:
            if not self._failure.check(LocalError):
                self._failure.raiseException()
            if self._pidfile:
                with suppress(OSError):
                    Path(self._pidfile).unlink()
            _die([f"caterwaul: {self._failure.getErrorMessage()}"], 1)
        super().startService()  # type: ignore[no-untyped-call]

    def stopService(self) -> Deferred[None] | None:
        super().stopService()  # type: ignore[no-untyped-call]
        return self.node.leave() if self.node is not None else None

    def _failed(self, failure: Failure) -> None:
        self._failure = failure


def makeService(options: Options) -> IService:
    """What `twistd` calls."""
    assert options.settings is not None, "postOptions has run"
    parent: Any = options.parent or {}
    return NodeService(options.settings, parent.get("pidfile") or "")


def _die(lines: list[str], code: int) -> NoReturn:
    if sys.__stderr__ is not None:  # the real one: Twisted's logging may have taken the other
        sys.__stderr__.writelines(f"{line}\n" for line in lines)
    sys.exit(code)
