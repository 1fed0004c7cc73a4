"""A process that dies, stands still for a while or comes back: F1 to F4 of docs/faults.md."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from caterwaul.membership.errors import LocalError

from ..real.processes import holds, until
from .clients import Clients
from .lab import Lab, seconds_until, wait
from .network import Undo, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "there are namespaces")

Measured = Callable[..., None]


def test_f1_a_killed_node_is_dropped_and_its_users_go_on(measured: Measured) -> None:
    """Nothing confirmed is lost; its peers drop it within 1.5 s; its users' first answer comes within 1 s."""
    with Lab(3) as lab, Clients(lab) as clients:
        lab.start()
        for names in ("abc", "bca", "cab"):
            clients.add(names)
            clients.add(names, logs_out_after=40)
        clients.watch(4.0)
        killed = lab["c"].kill()
        clients.killed("c", killed)
        drop_s = seconds_until(lambda: lab["a"].names() == lab["b"].names() == ["a", "b"], 1.5, "c is dropped", killed)
        mine = {f"{number}-" for number in (4, 5)}  # of the writers that went to c
        failed_over = until(
            lambda: [one for one in clients.history.done(killed, time.monotonic(), ["a"]) if one.token[:2] in mine], 5.0, "c's users are served by a"
        )
        failover_s = min(one.end_s for one in failed_over) - killed
        assert failover_s <= 1.0
        clients.watch(2.0)
        settle_s, verdict = clients.settle("ab", 10.0)
        measured(drop_s=drop_s, failover_s=failover_s, settle_s=settle_s, found=verdict.found, excused=verdict.excused)


def test_f2_a_pause_shorter_than_the_drop_time_removes_nobody(measured: Measured) -> None:
    """Three pauses of 2 s (the matrix: a hundred): no change of any view; what waited for the node is confirmed within 2 s."""
    with Lab(3) as lab, Clients(lab) as clients:
        lab.start()
        clients.add("ab", 2)
        clients.add("ba", 2, logs_out_after=40)
        clients.watch(3.0)
        before, drains = lab.views(), []
        for _ in range(3):
            with lab["c"].pause():
                wait(time.monotonic() + 2.0)
            drains.append(seconds_until(lambda: not lab["a"].lag_bytes("c") and not lab["b"].lag_bytes("c"), 2.0, "what waited for c is confirmed"))
            assert lab["a"].state("c") != "", "c is a member"
            clients.watch(2.0)
        assert lab.views() == before
        settle_s, verdict = clients.settle("abc", 10.0)
        measured(drain_s=max(drains), settle_s=settle_s, found=verdict.found)


def test_f3_a_pause_longer_than_the_drop_time(measured: Measured) -> None:
    """Removed within 5 s, back within 5 s of going on, equal within 10 s. The node removes none of the others when it goes on, and
    never shows a session that was logged out meanwhile. Its own users go on with the next node."""
    with Lab(3) as lab, Clients(lab) as clients:
        lab.start()
        for names in ("abc", "bca", "cab"):
            clients.add(names)
        clients.add("ab", logs_out_after=40)
        clients.watch(3.0)
        status, _, cookie = clients.get(lab["c"], "POST", "/append?list=x&token=x&acks=all")
        assert (status, clients.get(lab["c"], "GET", "/read", cookie)[0]) == (200, 200)
        gone = lab["c"].statistics()["membership"]["disappeared"]
        pause, paused = lab["c"].pause(), time.monotonic()
        with pause:
            removed_s = seconds_until(lambda: lab["a"].names() == lab["b"].names() == ["a", "b"], 5.0, "c is dropped", paused)
            assert clients.get(lab["a"], "POST", "/logout?", cookie)[0] == 200
            wait(paused + 8.0)
            went_on = time.monotonic()
            pause()
        assert clients.get(lab["c"], "GET", "/read", cookie, 5.0)[0] in (410, 503), "c does not show what was logged out while it stood still"
        back_s = seconds_until(lambda: all(node.names() == ["a", "b", "c"] for node in lab.nodes), 5.0, "c is back", went_on)
        settle_s, verdict = clients.settle("abc", 10.0, went_on)
        assert lab["c"].statistics()["membership"]["disappeared"] == gone, "c removed nobody"
        assert {node.name: clients.get(node, "GET", "/read", cookie)[0] for node in lab.nodes} == dict.fromkeys("abc", 410)
        measured(removed_s=removed_s, back_s=back_s, settle_s=settle_s, found=verdict.found)


def test_f4_a_node_that_is_started_again_at_the_same_address(measured: Measured) -> None:
    """Three kills with a start at once (the matrix: twenty), one of them while its cable is out, so that its peers have not noticed: the new
    process is in all views within 5 s of being there, holds what it should within 10 s, and no view has two members of one address."""
    with Lab(3) as lab, Clients(lab) as clients:
        lab.start()
        clients.add("ab", 2)
        clients.add("ba", logs_out_after=40)
        times, syncs = [], []
        for unnoticed in (False, False, True):
            clients.add("cab")  # those of before have gone to another node
            clients.watch(2.0)
            old, cable = lab["c"].uid[:8], lab.network.partition([2]) if unnoticed else Undo()
            with cable:
                clients.killed("c", lab["c"].kill())
                lab["c"].start()
                until(lambda: _uid(lab, "c"), 30.0, "c has started")
                assert (old in _uids(lab, "a")) == unnoticed
            begun, new = time.monotonic(), _uid(lab, "c")
            times.append(seconds_until(lambda: all(_uids(lab, name) == _uids(lab, "c") for name in "ab"), 5.0, "all see the new c, and nobody else"))
            assert new in _uids(lab, "a")
            assert old not in _uids(lab, "a") | _uids(lab, "b") | _uids(lab, "c")
            lab.meet(timeout_s=begun + 10.0 - time.monotonic())
            syncs.append(time.monotonic() - begun)
            holds(lambda: all(len(_uids(lab, name)) == 3 for name in "abc"), 1.0)
        settle_s, verdict = clients.settle("abc", 10.0)
        measured(seen_s=max(times), in_sync_s=max(syncs), settle_s=settle_s, found=verdict.found, excused=verdict.excused)


def _uid(lab: Lab, name: str) -> str:
    """Of the process that answers, and not of the file that one before it has left; empty: none does yet."""
    try:
        return lab[name].uid[:8]
    except LocalError:
        return ""


def _uids(lab: Lab, name: str) -> set[str]:
    """Of all that this node sees; never two of one address."""
    members = lab[name].members()
    assert len({member["address"] for member in members}) == len(members), "two members of one address"
    return {member["uid"] for member in members}
