"""Multicast that does not arrive, or not always, while TCP works: F8 and F9 of docs/faults.md."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from ..real.processes import until
from .clients import Clients
from .lab import PORT, Lab, wait
from .network import Undo, why_not_filtered

pytestmark = pytest.mark.skipif(bool(why_not_filtered()), reason=why_not_filtered() or "there is iptables")

Measured = Callable[..., None]


def test_f8_without_multicast_links_prove_life(measured: Measured) -> None:
    """One node deaf, then mute, then no multicast at all, 8 s each (the matrix: 5 minutes): no change of any view. A new node that knows one
    address is met within 10 s."""
    with Lab(4) as lab, Clients(lab) as clients:
        lab.start("abc")
        clients.add("a")
        clients.add("bc", logs_out_after=40)
        clients.add("cb")
        clients.watch(3.0)
        before = lab.views("abc")

        def lasts(fault: Undo, deaf: str) -> None:
            heard = {name: lab[name].statistics()["membership"]["heartbeats"] for name in deaf}
            wait(time.monotonic() + 8.0)
            assert all(lab[name].statistics()["membership"]["heartbeats"] <= heard[name] + 2 for name in deaf), "the fault works"
            assert lab.views("abc") == before

        with (fault := lab.network.deaf(0)):
            lasts(fault, "a")
        with (fault := lab.network.mute(0)):
            lasts(fault, "")
        with (fault := lab.network.silent()):
            lasts(fault, "abc")
            new = lab.reconfigure("d", membership__discovery=["multicast", "static"], membership__seeds=[f"{lab.network.addresses[0]}:{PORT}"])
            new.start()
            until(new.socket.exists, 30.0, "the process has started")
            joined_s = lab.meet(timeout_s=10.0)
            clients.add("d")
            clients.watch(2.0)
            silent_s = lab["a"].statistics()["membership"]["multicast_silent_s"]
            assert silent_s > 2.0, "a statistic says that multicast is silent"
        settle_s, verdict = clients.settle("abcd", 10.0)
        assert set(lab.each("membership", "disappeared").values()) == {0}
        measured(removals=0, joined_s=joined_s, settle_s=settle_s, found=verdict.found)


def test_f9_thirty_percent_of_all_datagrams_are_lost(measured: Measured) -> None:
    """Five nodes, 20 s (the matrix: 10 minutes): no change of any view."""
    with Lab(5) as lab, Clients(lab) as clients:
        lab.start()
        for name in "ace":
            clients.add(name)
        clients.watch(3.0)
        before, heard, begun = lab.views(), lab.each("membership", "heartbeats"), time.monotonic()
        with lab.network.lossy(0.3):
            wait(begun + 20.0)
            sent = 4 * (time.monotonic() - begun) / 0.5
            arrived = {name: (number - heard[name]) / sent for name, number in lab.each("membership", "heartbeats").items()}
            assert lab.views() == before
        settle_s, verdict = clients.settle("abcde", 10.0)
        assert max(arrived.values()) < 0.85, "the fault works"
        measured(view_changes=0, arrived=sum(arrived.values()) / 5, settle_s=settle_s, found=verdict.found)
