"""Wall clocks that are wrong: F14 and F15 of docs/faults.md. Nothing that nodes do depends on them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ..real.processes import holds, until
from .clients import Clients
from .clock import FalseClock
from .clock import why_not as why_no_clock
from .lab import Lab, wait
from .network import why_not

pytestmark = [
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "there are namespaces"),
    pytest.mark.skipif(bool(why_no_clock()), reason=why_no_clock() or "there is libfaketime"),
]

Measured = Callable[..., None]

DAY_S, HOUR_S = 86400, 3600


def wrong_by_s(clients: Clients, lab: Lab, name: str) -> float:
    """How wrong the clock of a node is."""
    return float(clients.get(lab[name], "GET", "/read")[1]["time"]) - time.time()


def test_f14_clocks_that_are_a_day_apart_from_the_true_time(measured: Measured, tmp_path: Path) -> None:
    """One a day ahead, one a day behind, one right, 8 s: nobody can tell. Nothing expires, no view changes, each write is on all."""
    ahead, behind = FalseClock(tmp_path / "ahead", DAY_S), FalseClock(tmp_path / "behind", -DAY_S)
    with Lab(3, {"a": ahead.prefix, "b": behind.prefix}) as lab, Clients(lab) as clients:
        lab.start()
        assert [round(wrong_by_s(clients, lab, name) / DAY_S, 1) for name in "abc"] == [1.0, -1.0, 0.0], "the fault works"
        before = lab.views()
        for names in ("abc", "bca", "cab"):
            clients.add(names)
        clients.add("ba", logs_out_after=40)
        clients.watch(8.0)
        assert not clients.history.failed(0.0, time.monotonic())
        settle_s, verdict = clients.settle("abc", 10.0)
        assert lab.views() == before
        assert {node.statistics()["managers"]["default"]["expired"] for node in lab.nodes} == {0}
        measured(settle_s=settle_s, found=verdict.found)


def test_f15_a_clock_that_is_set_while_the_node_runs(measured: Measured, tmp_path: Path) -> None:
    """An hour on, an hour back: timers run on (its heartbeats come in time), no view changes, and an idle session ends within 5 s of its time."""
    clock = FalseClock(tmp_path / "clock")
    with Lab(3, {"b": clock.prefix}, managers__default__idle_timeout_s=10.0) as lab, Clients(lab) as clients:
        lab.start()
        before = lab.views()
        assert clients.get(lab["b"], "POST", "/append?list=x&token=x&acks=all")[0] == 200
        used = time.monotonic()
        clock.set(HOUR_S)
        assert abs(wrong_by_s(clients, lab, "b") - HOUR_S) < 60, "the fault works"
        holds(lambda: all(count(lab, name) == 1 for name in "abc"), used + 4.0 - time.monotonic())
        clock.set(-HOUR_S)
        holds(lambda: all(count(lab, name) == 1 for name in "abc"), used + 9.0 - time.monotonic())
        until(lambda: all(count(lab, name) == 0 for name in "abc"), used + 15.0 - time.monotonic(), "it expires everywhere")
        expired_s = time.monotonic() - used
        clients.add("a")
        clients.add("bc", logs_out_after=40)
        clients.add("c")
        clients.watch(2.0)
        beats = []
        for offset_s in (HOUR_S, 0, -HOUR_S):
            clock.set(offset_s)
            heard, begun = lab["a"].statistics()["membership"]["heartbeats"], time.monotonic()
            wait(begun + 3.0)
            beats.append((lab["a"].statistics()["membership"]["heartbeats"] - heard) * 0.5 / (time.monotonic() - begun))
        assert min(beats) > 1.6, "of the other two nodes a heartbeat in each interval, less one at each end"
        assert not clients.history.failed(0.0, time.monotonic())
        settle_s, verdict = clients.settle("abc", 10.0)
        assert lab.views() == before
        measured(expired_s=expired_s, beats_per_interval=min(beats), settle_s=settle_s, found=verdict.found)


def count(lab: Lab, name: str) -> int:
    """Live sessions. Asking does not use them."""
    return int(lab[name].statistics()["managers"]["default"]["sessions"])
