"""Each scene once for each manager; `make sim SCENE=...` runs more seeds, and the wide one at its full size."""

from __future__ import annotations

import pytest

from . import scenes

KINDS = ("delta", "backup", "partitioned")


@pytest.mark.parametrize("manager", KINDS)
@pytest.mark.parametrize("scene", ["rolling", "split", "double", "domains", "lite", "maps", "stored"])
def test_scene(scene: str, manager: str) -> None:
    counters = scenes.SCENES[scene](1, manager)
    assert counters["requests"] + counters["operations"] > 500


@pytest.mark.parametrize("manager", KINDS)
def test_more_losses_than_backups(manager: str) -> None:
    counters = scenes.beyond(1, manager)
    assert counters["requests"] > 300
    assert (counters["lost"] > 0) is (manager != "delta")


@pytest.mark.parametrize("manager", KINDS)
def test_losses_that_were_rehearsed(manager: str) -> None:
    counters = scenes.rehearsal(6, manager)
    assert counters["requests"] > 500
    assert min(counters["lost"], counters["behind"]) > 0


@pytest.mark.parametrize("manager", KINDS)
def test_a_storm_of_joins(manager: str) -> None:
    counters = scenes.storm(1, manager, members=16)
    assert counters["requests"] > 300
    assert 0 < counters["ms_to_ready"] < 30_000


def test_many_members_see_a_loss_once() -> None:
    counters = scenes.wide(1, "partitioned", members=40)
    assert 0 < counters["ms_to_drop"] < 20_000
    assert counters["acknowledged"] > 50


@pytest.mark.parametrize("seed", [7, 9, 16])  # all killed; a second request is refused, and memory small; silence in the end
def test_sessions_that_live_in_a_shared_store(seed: int) -> None:
    counters = scenes.persistent(seed)
    assert counters["acknowledged"] > 500
    assert min(counters[what] for what in ("stale", "unknown", "store calls lost", "crashes", "pauses", "ends_stored", "settled")) > 0
    assert counters["refused_429" if seed == 9 else "refused_503"] > 0
    assert (counters["told_expired"] > 0) is (seed == 16)
