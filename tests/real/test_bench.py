"""The benchmarks, very small, with real processes: that they measure, and that all copies are equal at the end."""

from __future__ import annotations

from benchmarks.rows import TINY, measure, plan


def test_a_tiny_measurement_finds_every_update_on_every_replica() -> None:
    rows = plan(("flood-2r-100B-all-8t", "latency-2r-100B-none"))
    measured = {row.name: figures for row, figures in measure(rows, TINY, 1, lambda what: None)}
    assert list(measured) == [row.name for row in rows]
    flood, paced = measured["flood-2r-100B-all-8t"][0], measured["latency-2r-100B-none"][0]
    assert flood["wrong"] == flood["unconfirmed"] == 0
    assert flood["updates_per_s"] > 0
    assert paced["wrong"] == paced["unseen"] == 0
    assert 0 < paced["p50_us"] <= paced["p99_us"]
