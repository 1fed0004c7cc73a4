"""What commands have in common that run a node in a terminal: the options that choose its configuration, the log, and the node itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from twisted.logger import FilteringLogObserver, LogLevel, LogLevelFilterPredicate, globalLogBeginner, textFileLogObserver

from .embedding import installed_reactor
from .settings import Settings, load, parse_overrides
from .tap import NodeService

__all__ = ["configured", "greet", "log_to_stderr", "read_settings", "run_node"]

Command = TypeVar("Command", bound=Callable[..., Any])


def configured(command: Command) -> Command:
    """The options that choose a configuration: `path` and `overrides`, for `read_settings`."""
    command = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key, such as node.name=b. Any number of times.")(
        command
    )
    return click.option("--config", "-c", "path", metavar="FILE", help="Configuration file (TOML). Without one everything has its default.")(command)


def read_settings(path: str | None, overrides: Sequence[str], **keywords: Any) -> Settings:
    """`keywords` are a command's own, which `overrides` may override. Raises `SettingsError`."""
    keywords.update(parse_overrides(overrides))
    return load(path, **keywords) if path else Settings.of(**keywords)


def log_to_stderr(verbose: bool) -> None:
    """What is wrong, or all that happens."""
    least = LogLevelFilterPredicate(LogLevel.info if verbose else LogLevel.warn)
    globalLogBeginner.beginLoggingTo([FilteringLogObserver(textFileLogObserver(sys.stderr), [least])], redirectStandardIO=False)


def greet(me: Any, cluster: str, more: str) -> None:
    """The one line that says that it runs. `me`: the member."""
    click.echo(f"{me.name} of cluster {cluster} on {me.host}:{me.port}{more}", err=True)


def run_node(settings: Settings, verbose: bool) -> None:
    """Until SIGINT or SIGTERM. Ends the process where it cannot start."""
    service = NodeService(settings)
    log_to_stderr(verbose)
    reactor = installed_reactor()
    service.startService()
    assert service.node is not None, "started"
    me = service.node.me
    guarded = f", {service.node.security.description}" if service.node.security is not None else ""
    address = me.payload.get("http")
    greet(me, settings.cluster.name, guarded + (f", serving http://{address}" if address else ""))
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.run()
