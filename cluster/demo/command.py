"""`caterwaul demo` and `caterwaul demo --check`: what they print, and how they end.

Ctrl-C and SIGTERM end the node processes with this one; a SIGKILL of this one does too (see `supervisor/launch.py`).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ReactorNotRunning
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from ...managers.stores.opening import without_password
from ...membership.errors import LocalError
from ..balancer import NodeDown, NodeUp
from ..embedding import use_monotonic_time
from ..supervisor import Started
from .check import Check, Failed
from .nodes import DemoCluster, Event, Layout

__all__ = ["run_check", "run_demo"]

_START_S = 30.0
_CHECK_S = 120.0  # the check ends by then, whatever happens
_PROGRESS_S = 0.2


def run_demo(layout: Layout, port: int, logs: Path | None) -> int:
    """Run the demo until it is interrupted; returns the exit status. Runs, and so uses up, this process's reactor."""
    out = sys.stdout

    async def main(reactor: Any) -> int:
        cluster = DemoCluster(reactor, layout, port, logs, lambda event: _tell(cluster, event, out))
        interrupted: Deferred[None] = Deferred()
        reactor.addSystemEventTrigger("before", "shutdown", _finish, cluster, interrupted)
        cluster.start()
        await cluster.wait_ready(_START_S)
        _print(out, _welcome(cluster))
        await interrupted
        return 0

    return _run(main)


def run_check(layout: Layout, visitors: int, writes: int, logs: Path | None, json_only: bool, rolling: bool = False, restart_all: bool = False) -> int:
    """Run the story of `check.py`; returns 0 if every promise was kept. The last line of standard output is the result as JSON."""
    out = sys.stdout

    async def main(reactor: Any) -> int:
        progress = _Progress(sys.stderr, json_only)
        cluster = DemoCluster(reactor, layout, 0, logs)
        check = Check(reactor, cluster, visitors, writes, progress.say, rolling, restart_all)
        stopped: Deferred[None] = Deferred()
        reactor.addSystemEventTrigger("before", "shutdown", _finish, cluster, stopped)
        looking = LoopingCall(lambda: progress.show(check.progress()))
        looking.clock = reactor
        looking.start(_PROGRESS_S).addErrback(lambda failure: None)
        began, problem = reactor.seconds(), ""
        try:
            await Deferred.fromCoroutine(check.run()).addTimeout(_CHECK_S, reactor)
        except DeferredTimeout:
            problem = f"not done after {_CHECK_S:g} s"
        except (Failed, LocalError) as error:
            problem = str(error)
        finally:
            looking.stop()
            progress.clear()
        result = {
            **check.result,
            "manager": layout.manager,
            "backups": layout.backups,
            **({"store": without_password(layout.store)} if layout.store else {}),
            "ok": not problem,
            "seconds": round(reactor.seconds() - began, 1),
            "proxy": cluster.proxy.statistics(),
        }
        if problem:
            result["problem"] = problem
            _print(sys.stderr, f"FAILED: {problem}")
        if not json_only and result["writes"]:
            _print(out, _summary(result))
        _print(out, json.dumps(result))
        return 1 if problem else 0

    return _run(main)


class _Progress:
    """Steps and a line that is rewritten, on a terminal; steps alone elsewhere; nothing when only JSON is wanted."""

    def __init__(self, stream: TextIO, silent: bool) -> None:
        self._stream = stream
        self._silent = silent
        self._rewrites = stream.isatty() and not silent
        self._began = time.monotonic()

    def say(self, line: str) -> None:
        if not self._silent:
            self.clear()
            _print(self._stream, f"{time.monotonic() - self._began:6.1f} s  {line}")

    def show(self, line: str) -> None:
        if self._rewrites:
            self._stream.write(f"\r\x1b[K{line}")
            self._stream.flush()

    def clear(self) -> None:
        if self._rewrites:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def _run(main: Callable[[Any], Coroutine[Any, Any, int]]) -> int:
    from twisted.internet import reactor as installed  # installed here, not by importing this module

    reactor: Any = installed
    use_monotonic_time(reactor)
    status = [1]

    def ended(result: Any) -> None:
        if isinstance(result, Failure):
            if result.check(LocalError):
                _print(sys.stderr, result.getErrorMessage())
            elif not result.check(CancelledError):
                result.printTraceback(sys.stderr)
        else:
            status[0] = result
        with suppress(ReactorNotRunning):  # it was interrupted: it is stopping already
            reactor.stop()

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(main(reactor)).addBoth(ended))
    reactor.run()
    return status[0]


def _finish(cluster: DemoCluster, interrupted: Deferred[None]) -> Deferred[None]:
    """At shutdown, whatever its cause."""
    if not interrupted.called:
        interrupted.callback(None)
    return Deferred.fromCoroutine(cluster.stop())


def _welcome(cluster: DemoCluster) -> str:
    nodes = "\n".join(f"    {name}   kill -9 {cluster.pid(name)}" for name in cluster.addresses)
    return (
        f"\n  {cluster.url}\n\n  {len(cluster.addresses)} nodes, one cluster. To kill one:\n\n{nodes}\n\n"
        "  Open the page, set a pair, and kill the node that answered you, with its button or from another terminal.\n"
        "  Your next click is answered by another node, with every pair still there; a replacement starts and joins.\n"
        "  Ctrl-C ends everything.\n"
    )


def _tell(cluster: DemoCluster, event: Event, out: TextIO) -> None:
    if isinstance(event, NodeUp):
        _print(out, f"  {event.name} is in sync and serves users")
    elif isinstance(event, NodeDown):
        _print(out, f"  {event.name} is gone: {event.reason}")
    elif isinstance(event, Started) and event.restarts:
        _print(out, f"  {event.name} starts again: kill -9 {event.pid}")


def _summary(result: dict[str, Any]) -> str:
    def times(name: str) -> str:
        found = result.get(name) or {}
        return f"p50 {found.get('p50', '-')} ms, p99 {found.get('p99', '-')} ms"

    rows = [
        ("writes", f"{result['writes']} by {result['clients']} clients on {result['nodes']} nodes, {result.get('writes_per_s', '-')} a second"),
        ("acknowledged by another node", f"{result['writes_acknowledged']}"),
        ("lost, foreign", f"{result.get('lost', '-')}, {result.get('foreign', '-')}"),
        ("lost without acknowledgement, last second", f"{result.get('lost_unacknowledged', '-')}"),
        *_losses(result, times),
        *(
            [("stopped node dropped, in sync again after", f"{result['pause_detection_ms']} ms, {result.get('resume_ms', '-')} ms")]
            if "pause_detection_ms" in result
            else []
        ),
        ("a write", times("write_ms")),
        ("a write with acks = one", times("write_acknowledged_ms")),
    ]
    width = max(len(name) for name, _ in rows)
    verdict = "OK: every promise was kept" if result["ok"] else f"FAILED: {result['problem'].splitlines()[0]}"
    return "\n".join(["", *(f"  {name:<{width}}  {value}" for name, value in rows), "", f"  {verdict}", ""])


def _losses(result: dict[str, Any], times: Callable[[str], str]) -> list[tuple[str, str]]:
    if "drained_ms" in result:
        return [("drained, one after the other", ", ".join(f"{took} ms" for took in result["drained_ms"]))]
    return [
        ("killed", ", then ".join(result.get("killed", ["nobody"]))),
        ("killed node dropped after", f"{result.get('detection_ms', '-')} ms"),
        ("failover", times("failover_ms")),
        ("replacement joined, in sync after", f"{result.get('rejoin_ms', '-')} ms, {result.get('sync_ms', '-')} ms"),
    ]


def _print(stream: TextIO, text: str) -> None:
    stream.write(text + "\n")
    stream.flush()
