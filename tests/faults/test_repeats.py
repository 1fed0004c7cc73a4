"""Heartbeats of a life before, said again by somebody who has recorded them: F4 of docs/faults.md, on the wire."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from ..real.processes import holds
from .clients import Clients
from .lab import Lab, seconds_until, wait
from .limits import cpu_used_s
from .network import why_not_filtered
from .stranger import Stranger

pytestmark = pytest.mark.skipif(bool(why_not_filtered()), reason=why_not_filtered() or "there is iptables")

Measured = Callable[..., None]

PER_S = 2000  # a thousand times as often as the node says it itself


def test_f4_heartbeats_of_a_life_before_are_said_again(measured: Measured) -> None:
    """A stranger repeats what c said before it was killed, while nobody is there and while the new c is: no view changes because of that, nobody dials, each
    is counted as a repeat, and the old c is seen by nobody. A new node has heard none of it before: it dials once a second at most, and meets the new c."""
    with Lab(5) as lab, Clients(lab) as clients, Stranger(lab.network, 4) as stranger:
        lab.start("abc")
        clients.add("ab")
        clients.add("ba", logs_out_after=40)
        clients.add("cab")
        clients.watch(5.0)
        old = lab["c"].uid[:8]
        killed = lab["c"].kill()
        clients.killed("c", killed)
        recorded = stranger.heard(lab.network.addresses[2])  # also from before the others were there to hear it
        assert len(recorded) >= 10
        with stranger.repeat(recorded, PER_S):
            drop_s = seconds_until(lambda: lab["a"].names() == lab["b"].names() == ["a", "b"], 1.5, "c is dropped", killed)
            before = lab.views("ab")
            wait(time.monotonic() + 4.0)
            assert lab.views("ab") == before
        lab["c"].start()
        lab.meet([lab[name] for name in "abc"], 30.0)
        clients.add("cab")
        clients.watch(2.0)
        before, begun, dials = lab.views(), time.monotonic(), [lab.network.connections(number, 2) for number in (0, 1)]
        repeats, opened, used = _counted(lab, "a", "repeated"), _counted(lab, "a", "opened"), cpu_used_s(lab["a"].process.pid)
        with (fault := stranger.repeat(recorded, PER_S)):
            wait(begun + 4.0)
            assert lab.views() == before
            passed_s = time.monotonic() - begun
            cpu, sent = (cpu_used_s(lab["a"].process.pid) - used) / passed_s, fault.sent
            repeats, opened = _counted(lab, "a", "repeated") - repeats, _counted(lab, "a", "opened") - opened
            assert [count() for count in dials] == [0, 0], "nobody dials"
            news = lab.network.connections(3, 2)
            started = lab["d"].start()
            lab.meet([lab[name] for name in "abcd"], 30.0)
            holds(lambda: all(old not in _uids(lab, name) for name in "abcd"), 3.0)
            new_dials, new_s = news(), time.monotonic() - started
        settle_s, verdict = clients.settle("abcd", 10.0)
        measured(
            recorded=len(recorded),
            sent=sent,
            repeats=repeats,
            opened=opened,
            cpu=cpu,
            drop_s=drop_s,
            newcomers_dials=new_dials,
            settle_s=settle_s,
            found=verdict.found,
        )
        assert repeats >= 0.9 * sent, "counted as repeats"
        assert opened <= 3 * (passed_s / 0.5 + 2), "the heartbeats of three nodes, and nothing else"
        assert new_dials <= new_s + 1
        assert lab.each("membership", "disappeared") == {"a": 1, "b": 1, "c": 0, "d": 0}


def _counted(lab: Lab, name: str, what: str) -> int:
    """Datagrams that came to this node, by what became of them."""
    return int(lab[name].statistics()["security"]["datagrams"][what])


def _uids(lab: Lab, name: str) -> set[str]:
    return {member["uid"] for member in lab[name].members()}
