"""The benchmarks, very small, with real processes: that they measure, and that all copies are equal at the end."""

from __future__ import annotations

import pytest

from benchmarks.fronts.costs import FRONTS, WORKS, costs
from benchmarks.rows import TINY, measure, plan
from benchmarks.stores import KINDS, rates
from benchmarks.stores import WORKS as WORKS_OF_STORES


def test_a_tiny_measurement_finds_every_update_on_every_replica() -> None:
    rows = plan(("flood-2r-100B-all-8t", "latency-2r-100B-none"))
    measured = {row.name: figures for row, figures in measure(rows, TINY, 1, lambda what: None)}
    assert list(measured) == [row.name for row in rows]
    flood, paced = measured["flood-2r-100B-all-8t"][0], measured["latency-2r-100B-none"][0]
    assert flood["wrong"] == flood["unconfirmed"] == 0
    assert flood["updates_per_s"] > 0
    assert paced["wrong"] == paced["unseen"] == 0
    assert 0 < paced["p50_us"] <= paced["p99_us"]


def test_who_was_away_gets_what_changed_and_little_more() -> None:
    ((_, (found,)),) = measure(plan(("rejoin",)), TINY, 1, lambda what: None)
    assert found["wrong"] == 0
    assert found["changed"] == 2
    assert found["partitions"] == found["records"] == 2
    assert found["wire_bytes"] > found["changed_bytes"] == 2000


@pytest.mark.parametrize("front", FRONTS)
def test_the_cost_of_a_session_is_measured_in_each_front_and_no_change_is_lost(front: str) -> None:
    found = costs(front, list(WORKS), 2 * TINY.requests, 1, lambda what: None)
    assert list(found) == list(WORKS)
    for (figures,) in found.values():
        assert figures["wrong"] == 0
        assert 0 < figures["with_us"] <= figures["with_p99_us"]
        assert figures["requests_per_s"] > 0
        assert "of_redis" not in figures


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_is_measured_and_keeps_what_it_is_given(kind: str) -> None:
    said: list[str] = []
    found = rates(kind, WORKS_OF_STORES, TINY.stored, 20, 1, said.append)
    if not found:
        pytest.skip(said[0])
    assert list(found) == list(WORKS_OF_STORES)
    for (figures,) in found.values():
        assert figures["wrong"] == 0
        assert 0 < figures["call_p50_us"] <= figures["call_p99_us"]
        assert figures["sessions_per_s"] > 0


def test_what_a_store_costs_a_commit_is_measured_by_turns() -> None:
    ((_, (found,)),) = measure(plan(("behind-file",)), TINY, 1, lambda what: None)
    assert found["wrong"] == 0
    for pace in ("steady", "paced"):
        for which in ("with", "without"):
            assert 0 < found[f"{pace}_cpu_p50_us_{which}"] <= found[f"{pace}_cpu_p99_us_{which}"]
            assert 0 < found[f"{pace}_p50_us_{which}"] <= found[f"{pace}_p99_us_{which}"]


def test_after_a_restart_requests_come_from_when_a_node_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.stored._SERVED_MS", 300)
    ((_, (found,)),) = measure(plan(("restart-sqlite",)), TINY, 1, lambda what: None)
    assert found["wrong"] == 0
    assert found["early"] >= found["early_missing"] >= found["missing"] >= 0, "what was unknown just before is not asked for again at once"
    assert found["read_p50_us"] > 0
