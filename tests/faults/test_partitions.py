"""Nodes that cannot reach some of the others: F5 to F7, F11 and F12 of docs/faults.md."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from ..real.processes import holds, until
from .clients import Clients, Shared
from .lab import Lab, seconds_until, wait
from .network import why_not, why_not_filtered

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "there are namespaces")
filtered = pytest.mark.skipif(bool(why_not_filtered()), reason=why_not_filtered() or "there is iptables")

Measured = Callable[..., None]


def test_f5_a_partition_with_writes_on_both_sides_heals(measured: Measured) -> None:
    """Two of five for 15 s (the matrix: 60). All go on answering within a second; views part within 5 s and are one again within 5 s, all
    copies are equal within 10 s; nothing written on either side is lost, also not in one session, and a logout stands."""
    with Lab(5) as lab, Clients(lab) as clients:
        lab.start()
        shared = Shared()
        clients.add("a", session=shared)
        until(lambda: shared.cookie, 10.0)
        clients.add("d", session=shared)
        for name in "bce":
            clients.add(name)
        clients.add("a", logs_out_after=30)
        clients.watch(3.0)
        cookie = clients.get(lab["a"], "POST", "/append?list=x&token=x&acks=all")[2]
        cut, begun = lab.network.partition([3, 4]), time.monotonic()
        with cut:
            split_s = seconds_until(
                lambda: all(lab[name].names() == ["a", "b", "c"] for name in "abc") and all(lab[name].names() == ["d", "e"] for name in "de"),
                5.0,
                "two sides",
                begun,
            )
            assert clients.get(lab["b"], "POST", "/logout?", cookie)[0] == 200
            assert clients.get(lab["e"], "GET", "/read", cookie)[0] == 200, "the other side cannot know"
            wait(begun + 15.0)
            p99_s = clients.history.quantile_s(begun, time.monotonic(), 0.99)
            before = lab.views()
            healed = time.monotonic()
            cut()
        merged_s = seconds_until(lambda: all(node.names() == list("abcde") for node in lab.nodes), 5.0, "one cluster", healed)
        settle_s, verdict = clients.settle("abcde", 10.0, healed)
        assert {node.name: clients.get(node, "GET", "/read", cookie)[0] for node in lab.nodes} == dict.fromkeys("abcde", 410)
        assert all(lab.views()[name] - before[name] <= 3 for name in before), "no more changes of a view than members came back"
        slowest_s, refused = max(one.end_s - one.start_s for one in clients.history.done(begun, healed)), clients.history.failed(begun, healed)
        measured(split_s=split_s, merged_s=merged_s, settle_s=settle_s, p99_s=p99_s, slowest_s=slowest_s, refused=len(refused), found=verdict.found)
        assert p99_s <= 1.0
        assert not refused


@filtered
def test_f6_a_link_that_works_one_way_only(measured: Measured) -> None:
    """Nothing from a reaches b for 20 s: at most two changes of each view in all, both say of the other within 10 s that it is degraded, c
    serves as ever, and all is equal within 10 s of the end."""
    with Lab(3) as lab, Clients(lab) as clients:
        lab.start()
        _write_everywhere(clients)
        before = lab.views()
        fault, begun = lab.network.one_way(0, 1), time.monotonic()
        with fault:
            degraded_s = _degraded(lab, begun)
            wait(begun + 20.0)
            healed = time.monotonic()
            fault()
        met_s = lab.meet(timeout_s=10.0)
        settle_s, verdict = clients.settle("abc", 10.0, healed)
        changes = {name: number - before[name] for name, number in lab.views().items()}
        measured(
            degraded_s=degraded_s,
            view_changes=max(changes.values()),
            in_sync_s=met_s,
            settle_s=settle_s,
            **_service(clients, begun, healed),
            found=verdict.found,
        )
        assert max(changes.values()) <= 2
        _assert_served(clients, begun, healed)
        assert degraded_s <= 10.0


@filtered
def test_f7_two_that_cannot_reach_each_other_and_a_third_that_reaches_both(measured: Measured) -> None:
    """A commit that wants all confirmations says that the other end's is missing; a session written there is shown by both 10 s after the end at most."""
    with Lab(3) as lab, Clients(lab) as clients:
        lab.start()
        _write_everywhere(clients)
        before = lab.views()
        fault, begun = lab.network.cut(0, 1), time.monotonic()
        with fault:
            status, found, cookie = clients.get(lab["a"], "POST", "/append?list=x&token=x&acks=all")
            assert (status, found["confirmed"], found["unconfirmed"]) == (200, ["c"], ["b"])
            wait(begun + 12.0)
            healed = time.monotonic()
            fault()
        reached_s = seconds_until(lambda: clients.get(lab["b"], "GET", "/read", cookie)[1].get("count") == 1, 10.0, "b shows what a wrote", healed)
        settle_s, verdict = clients.settle("abc", 10.0, healed)
        changes = {name: number - before[name] for name, number in lab.views().items()}
        measured(reached_s=reached_s, settle_s=settle_s, view_changes=max(changes.values()), **_service(clients, begun, healed), found=verdict.found)
        assert max(changes.values()) <= 2
        _assert_served(clients, begun, healed)


@filtered
def test_f11_tcp_that_vanishes_between_two_nodes(measured: Measured) -> None:
    """Until both have noticed: no view changes, as both still are heard; a commit that wants all confirmations ends within 2 s without the one; degraded within 5 s;
    other requests go on; connected again within 5 s of the end."""
    with Lab(3) as lab, Clients(lab) as clients:
        lab.start()
        _write_everywhere(clients)
        before = lab.views()
        fault, begun = lab.network.black_hole(0, 1), time.monotonic()
        with fault:
            status, found, _ = clients.get(lab["a"], "POST", "/append?list=x&token=x&acks=all", timeout_s=5.0)
            partial_s = time.monotonic() - begun
            assert (status, found["confirmed"], found["unconfirmed"]) == (200, ["c"], ["b"])
            assert lab["a"].state("b") == "degraded", "who missed its confirmation knows"
            degraded_s = _degraded(lab, begun)
            healed = time.monotonic()
            fault()
        back_s = seconds_until(lambda: lab["a"].state("b") == lab["b"].state("a") == "in sync", 15.0, "connected again", healed)
        settle_s, verdict = clients.settle("abc", 10.0, healed)
        measured(partial_s=partial_s, degraded_s=degraded_s, back_s=back_s, settle_s=settle_s, **_service(clients, begun, healed), found=verdict.found)
        assert lab.views() == before
        assert partial_s <= 2.0
        _assert_served(clients, begun, healed)
        assert back_s <= 5.0
        assert degraded_s <= 5.0


@filtered
def test_f12_tcp_that_is_reset_between_two_nodes(measured: Measured) -> None:
    """Every segment for 10 s: no view changes; connected again within 6 s of the end, the longest pause between two dials and one more; what is sent again is applied once."""
    with Lab(3) as lab, Clients(lab) as clients:
        lab.start()
        _write_everywhere(clients, "&pad=50000")  # frames that a reset cuts in two
        before = lab.views()
        fault, begun = lab.network.reset(0, 1), time.monotonic()
        with fault:
            until(lambda: lab["a"].state("b") == lab["b"].state("a") == "degraded", 5.0, "the pair is degraded")
            holds(lambda: lab["a"].state("b") == lab["b"].state("a") == "degraded", begun + 10.0 - time.monotonic())
            healed = time.monotonic()
            fault()
        back_s = seconds_until(lambda: lab["a"].state("b") == lab["b"].state("a") == "in sync", 6.0, "connected again", healed)
        settle_s, verdict = clients.settle("abc", 10.0, healed)
        changes = {name: number - before[name] for name, number in lab.views().items()}
        measured(back_s=back_s, settle_s=settle_s, view_changes=max(changes.values()), **_service(clients, begun, healed), found=verdict.found)
        assert lab.views() == before
        _assert_served(clients, begun, healed)


def _write_everywhere(clients: Clients, query: str = "") -> None:
    for name in "abc":
        clients.add(name, query=query)
    clients.add("c", logs_out_after=40)
    clients.watch(3.0)


def _service(clients: Clients, begun: float, end: float) -> dict[str, float]:
    history = clients.history
    return {"p99_s": history.quantile_s(begun, end, 0.99), "refused": len(history.failed(begun, end))}


def _assert_served(clients: Clients, begun: float, end: float) -> None:
    """Trouble between other nodes fails no request and makes none wait for long."""
    assert not clients.history.failed(begun, end)
    assert clients.history.quantile_s(begun, end, 0.99) <= 1.0


def _degraded(lab: Lab, begun: float) -> float:
    """When both have noticed that they do not reach each other."""
    return seconds_until(lambda: lab["a"].state("b") == lab["b"].state("a") == "degraded", 25.0, "the pair is degraded", begun)
