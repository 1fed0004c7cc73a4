"""Cables that double, delay and damage what comes to each host: F10 of docs/faults.md, for datagrams and for TCP."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from .cable import TCP, UDP, Badness
from .clients import Clients
from .lab import Lab, seconds_until, wait
from .limits import cpu_used_s
from .network import BadCable, why_not_cabled

pytestmark = pytest.mark.skipif(bool(why_not_cabled()), reason=why_not_cabled() or "there are TAP devices")

Measured = Callable[..., None]

DATAGRAMS = Badness(UDP, doubled=0.2, late=0.5, late_s=1.2, damaged=0.1)  # late by more than a heartbeat's interval, or a node's own would keep their order
SEGMENTS = Badness(TCP, doubled=0.2, late=0.2, late_s=0.04, damaged=0.02, passes=False)
FORGED_SEGMENTS = Badness(TCP, damaged=0.01)
_EDGE = 6  # heartbeats under way when counters are read


def test_f10_datagrams_that_are_doubled_late_and_damaged(measured: Measured) -> None:
    """A fifth doubled, half up to 1.2 s late (the matrix: 40 ms), a tenth damaged so that the kernel lets it pass, 12 s: no change of any view, each heartbeat
    that is whole and newer than those before counts once, all others are counted as what they are, nothing raises, and all that costs less than a tenth of a processor."""
    with Lab(3) as lab, Clients(lab) as clients, ExitStack() as stack:
        lab.start()
        _write(clients)
        begin, cpu_before = time.monotonic(), cpu_used_s(lab["a"].process.pid)
        clients.watch(4.0)
        cpu_before = (cpu_used_s(lab["a"].process.pid) - cpu_before) / (time.monotonic() - begin)
        before, counted, heard = lab.views(), _datagrams(lab), lab.each("membership", "heartbeats")
        begun, used = time.monotonic(), cpu_used_s(lab["a"].process.pid)
        cables = [stack.enter_context(_bad(lab, number, DATAGRAMS)) for number in range(3)]
        wait(begun + 12.0)
        cpu = (cpu_used_s(lab["a"].process.pid) - used) / (time.monotonic() - begun)
        now, heartbeats = _datagrams(lab), lab.each("membership", "heartbeats")
        stack.close()
        assert lab.views() == before
        settle_s, verdict = clients.settle("abc", 10.0)
        for name, cable in zip("abc", cables, strict=True):
            assert min(cable.counts[what] for what in ("doubled", "late", "damaged")) > 0, "the fault works"
            late = now[name]["late"] - counted[name]["late"]
            assert late > 0
            assert abs(heartbeats[name] - heard[name] + late - cable.counts["intact"]) <= _EDGE, "each that is whole counts once"
        refused = {what: sum(now[name][what] - counted[name][what] for name in "abc") for what in ("repeated", "late", "forged", "foreign")}
        done = sum((cable.counts for cable in cables), Counter[str]())
        measured(cpu=cpu, cpu_before=cpu_before, cables=dict(done), nodes=refused, settle_s=settle_s, found=verdict.found)
        assert abs(sum(refused.values()) - refused["late"] - (done["came"] + done["doubled"] - done["intact"])) <= _EDGE, "the others are counted"
        assert refused["repeated"] >= done["doubled"] / 2
        assert refused["forged"] >= done["damaged"] / 2
        assert set(lab.each("membership", "disappeared").values()) == {0}
        assert not any("Traceback" in node.log for node in lab.nodes)
        assert cpu <= cpu_before + 0.1


def test_f10_segments_that_are_doubled_late_and_damaged(measured: Measured) -> None:
    """A fifth of TCP doubled, a fifth up to 40 ms late, a fiftieth damaged, 8 s: the kernels see to it, links last. Then one of a hundred that come to c is damaged
    so that its kernel lets it pass, 8 s: TLS does not, the connection is made anew, and what was under way is sent again and applied once. No change of any view."""
    with Lab(3) as lab, Clients(lab) as clients, ExitStack() as stack:
        lab.start()
        _write(clients)
        clients.watch(3.0)
        before, resumed, begun = lab.views(), _resumed(lab), time.monotonic()
        cables = [stack.enter_context(_bad(lab, number, SEGMENTS)) for number in range(3)]
        wait(begun + 8.0)
        stack.close()
        done = sum((cable.counts for cable in cables), Counter[str]())
        assert min(done[what] for what in ("doubled", "late", "damaged")) > 20, "the fault works"
        assert (_resumed(lab), lab.views()) == (resumed, before)
        p99_s, forging = clients.history.quantile_s(begun, time.monotonic(), 0.99), time.monotonic()
        with (fault := _bad(lab, 2, FORGED_SEGMENTS)):
            wait(forging + 8.0)
            healed = time.monotonic()
            fault()
        assert fault.counts["damaged"] > 0, "the fault works"
        back_s = seconds_until(lambda: all(lab[name].state("c") == "in sync" == lab["c"].state(name) for name in "ab"), 6.0, "connected again", healed)
        forged_p99_s = clients.history.quantile_s(forging, healed, 0.99)
        settle_s, verdict = clients.settle("abc", 10.0, healed)
        made_anew = _resumed(lab) - resumed
        measured(
            p99_s=p99_s, forged_p99_s=forged_p99_s, cables=dict(done), forged=fault.counts["damaged"], made_anew=made_anew, back_s=back_s, settle_s=settle_s,
            found=verdict.found,
        )  # fmt: skip
        assert made_anew > 0
        assert lab.views() == before
        assert not clients.history.failed(begun, healed)
        assert max(p99_s, forged_p99_s) <= 1.0
        assert set(lab.each("membership", "disappeared").values()) == {0}
        assert not any("Traceback" in node.log for node in lab.nodes)


def _write(clients: Clients) -> None:
    for name in "abc":
        clients.add(name)
    clients.add("c", logs_out_after=40)


def _bad(lab: Lab, number: int, badness: Badness) -> BadCable:
    return lab.network.bad_cable(number, badness)


def _datagrams(lab: Lab) -> dict[str, dict[str, int]]:
    return {node.name: node.statistics()["security"]["datagrams"] for node in lab.nodes}


def _resumed(lab: Lab) -> int:
    """How many times a link has got another connection."""
    return sum(int(node.statistics()["channel"].get("links_resumed", 0)) for node in lab.nodes)
