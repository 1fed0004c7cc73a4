"""The reactor's clock, and the guards around processes. Threads and forks of real processes are in tests/real."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
from twisted.internet.defer import fail, succeed
from twisted.internet.task import Clock

from caterwaul import ClusterManager
from caterwaul.cluster import embedding
from caterwaul.cluster.embedding import require_this_process, use_monotonic_time
from caterwaul.membership.errors import LocalError


class Reactor:
    def __init__(self, running: bool = False, pending: tuple[Any, ...] = ()) -> None:
        self.seconds = time.time
        self.running = running
        self._pending = pending

    def getDelayedCalls(self) -> tuple[Any, ...]:
        return self._pending


def test_a_reactor_that_has_not_begun_gets_the_monotonic_clock() -> None:
    reactor = Reactor()
    use_monotonic_time(reactor)
    assert reactor.seconds is time.monotonic


@pytest.mark.parametrize("reactor", [Reactor(running=True), Reactor(pending=("a call",))])
def test_timers_that_are_pending_keep_their_meaning(reactor: Reactor) -> None:
    use_monotonic_time(reactor)
    assert reactor.seconds is not time.time
    assert abs(reactor.seconds() - time.time()) < 1.0


def test_a_step_of_the_wall_clock_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    reactor = Reactor(running=True)
    use_monotonic_time(reactor)
    before = reactor.seconds()
    monkeypatch.setattr(time, "time", lambda: before + 3600)
    assert reactor.seconds() - before < 60


@pytest.mark.parametrize("running", [True, False])
def test_setting_the_clock_again_changes_nothing(running: bool) -> None:
    reactor = Reactor(running)
    use_monotonic_time(reactor)
    first = reactor.seconds
    use_monotonic_time(reactor)
    assert reactor.seconds is first


def test_what_was_started_in_another_process_says_where_to_start_it() -> None:
    require_this_process(os.getpid(), "it")
    with pytest.raises(LocalError, match=r"start it after the fork \(gunicorn: post_worker_init"):
        require_this_process(os.getpid() + 1, "it")


class TestBeforeTheStart:
    def test_there_is_no_manager_and_no_view(self) -> None:
        cluster = ClusterManager(node={"name": "a"})
        assert cluster.name == "a"
        for use in (cluster.manager, lambda: cluster.members, lambda: cluster.view, lambda: cluster.is_ready, cluster.statistics):
            with pytest.raises(LocalError, match=r"call start\(\) first"):
                use()

    def test_stopping_is_nothing(self) -> None:
        assert ClusterManager().stop().called

    def test_a_wrong_configuration_is_known_at_once(self) -> None:
        with pytest.raises(LocalError, match="did you mean name"):
            ClusterManager(node={"nme": "a"})


def test_a_reactor_that_does_not_turn_any_more_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(Reactor):
        def callFromThread(self, call: Any) -> None:
            """Nobody will run it."""

    monkeypatch.setattr(embedding, "_GRACE_S", 0.0)
    with pytest.raises(LocalError, match="the end of it took longer"):
        embedding.call_in_reactor(Stopped(), lambda: succeed(None), 0.01, "the end of it")


def test_a_call_in_the_reactor_returns_or_raises_what_its_deferred_gave() -> None:
    class Turning(Clock):
        def callFromThread(self, call: Any) -> None:
            call()

    assert embedding.call_in_reactor(Turning(), lambda: succeed(7), 1.0, "it") == 7
    with pytest.raises(LocalError, match="no port"):
        embedding.call_in_reactor(Turning(), lambda: fail(LocalError("no port")), 1.0, "it")
