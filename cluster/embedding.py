"""Where the reactor comes from, in a Twisted program and in any other server.

Under a running reactor we use that one. Anywhere else one daemon thread runs the process's reactor, from the first
`start` to the end of the process. The rules, each of which was a bug in somebody's program:

- Nobody imports `twisted.internet.reactor` before it is needed: importing installs it, and a reactor installed before a
  fork shares its epoll descriptor with the children. A thread started before a fork does not exist in the children.
- It is the *installed* reactor that runs, not a private one: TLS takes its clock from the installed one, and stalls.
- The thread is a daemon and is ended by `atexit`, with a bounded wait: a non-daemon thread would keep the interpreter
  from ever reaching `atexit`. Signal handlers belong to the server.
- Twisted's timers follow the wall clock by default, so a step of the clock would fire all of them, or none for an hour.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, NoReturn

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure
from twisted.python.threadable import isInIOThread

from ..membership.errors import LocalError

__all__ = ["call_in_reactor", "find_reactor", "inside_reactor", "installed_reactor", "lengthen_exit", "require_this_process", "running", "use_monotonic_time"]

_REACTOR = "twisted.internet.reactor"
_STOP_S = 8.0  # at exit: farewell and flush take at most a few seconds; then the process goes whatever happens
_GRACE_S = 1.0  # for a reactor that is busy when a call's time is over
_START_S = 30.0  # a reactor thread that has not begun by then never will

_lock = threading.Lock()
_drain_s = 0.0  # what nodes may take at exit besides
_inherited = False  # a parent of this process had imported the reactor
_dead = False  # ... and it ran there: what this process has is a copy with no thread


class _Anchored:
    """Monotonic seconds that go on from where the wall clock stood, so that timers already pending keep their meaning."""

    def __init__(self, offset: float) -> None:
        self._offset = offset

    def __call__(self) -> float:
        return time.monotonic() + self._offset


def use_monotonic_time(reactor: Any) -> None:
    """Make this reactor's timers follow a clock that is never stepped. Once or often, running or not."""
    if reactor.seconds is time.monotonic or isinstance(reactor.seconds, _Anchored):
        return
    pending = reactor.running or reactor.getDelayedCalls()
    reactor.seconds = _Anchored(reactor.seconds() - time.monotonic()) if pending else time.monotonic


def find_reactor() -> Any:
    """The running reactor of this process; starts one in a daemon thread if there is none.

    Any thread. Raises `LocalError` in a process that inherited its reactor through a fork.
    """
    with _lock:
        if running():
            reactor = installed_reactor()
            use_monotonic_time(reactor)
            return reactor
        if _inherited:
            raise LocalError(
                "Twisted's reactor was imported before this process was forked, so it shares the parent's descriptors: "
                "import it, and start the cluster, after the fork (gunicorn: post_worker_init; uWSGI: @postfork)"
            )
        return _run_in_thread()


def running() -> bool:
    """Whether this process has a reactor that runs, in whatever thread."""
    return not _dead and _REACTOR in sys.modules and bool(installed_reactor().running)


def inside_reactor() -> bool:
    """Whether the calling thread is the one that runs the reactor: it must not block."""
    return running() and bool(isInIOThread())


def call_in_reactor(reactor: Any, act: Callable[[], Deferred[Any]], timeout_s: float, what: str) -> Any:
    """From another thread: run `act` in the reactor's, wait for its Deferred, and return or raise what it gave.

    Raises `LocalError` when that takes longer than `timeout_s`; then the Deferred is cancelled. The wait ends also when the
    reactor does not turn any more.
    """
    results: SimpleQueue[Any] = SimpleQueue()

    def started() -> Deferred[Any]:
        return act().addTimeout(timeout_s, reactor, lambda _value, _seconds: _too_late(what, timeout_s))

    reactor.callFromThread(lambda: maybeDeferred(started).addBoth(results.put))
    try:
        result = results.get(timeout=timeout_s + _GRACE_S)
    except Empty:
        return _too_late(what, timeout_s)
    if isinstance(result, Failure):
        result.raiseException()
    return result


def require_this_process(pid: int, what: str) -> None:
    """Raises `LocalError` if `pid` (where `what` was started) is not this process."""
    if pid != os.getpid():
        raise LocalError(
            f"{what} was started in process {pid} and this is its forked child {os.getpid()}, where nothing runs: "
            "start it after the fork (gunicorn: post_worker_init; uWSGI: @postfork)"
        )


def _too_late(what: str, timeout_s: float) -> NoReturn:
    raise LocalError(f"{what} took longer than {timeout_s:g} s")


def installed_reactor() -> Any:
    """The process's reactor; installs the default one if there is none."""
    from twisted.internet import reactor

    return reactor


def _run_in_thread() -> Any:
    """Run the process's reactor for the rest of its life."""
    reactor = installed_reactor()
    use_monotonic_time(reactor)
    begun = threading.Event()
    reactor.callWhenRunning(begun.set)
    thread = threading.Thread(target=reactor.run, kwargs={"installSignalHandlers": False}, name="caterwaul-reactor", daemon=True)
    thread.start()
    if not begun.wait(_START_S):
        raise LocalError(f"the reactor's thread did not begin within {_START_S:g} s")
    atexit.register(_stop, reactor, thread, os.getpid())
    return reactor


def lengthen_exit(drain_s: float) -> None:
    """A node here may take so long to hand over its sessions at the process's end."""
    global _drain_s
    _drain_s = max(_drain_s, drain_s)


def _stop(reactor: Any, thread: threading.Thread, pid: int) -> None:
    """At exit. Stopping the reactor fires its shutdown triggers, with which every node leaves; a forked child has nothing to stop."""
    if pid == os.getpid() and reactor.running:
        reactor.callFromThread(reactor.stop)
        thread.join(_STOP_S + _drain_s)


def _after_fork() -> None:
    global _dead, _inherited, _lock
    _lock = threading.Lock()  # whoever held it is not here
    _dead = running()
    _inherited = _REACTOR in sys.modules


os.register_at_fork(after_in_child=_after_fork)
