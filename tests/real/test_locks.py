"""Locks of sessions between real processes, whose requests are threads."""

from __future__ import annotations

from typing import Any

import pytest

from .processes import Cluster, until

MANAGERS: list[dict[str, Any]] = [{"type": "delta"}, {"type": "backup"}, {"type": "partitioned"}]
LEASE_S = 10.0


@pytest.mark.parametrize("manager", MANAGERS, ids=lambda manager: manager["type"])
def test_threads_of_four_processes_add_to_one_number_and_none_is_lost(manager: dict[str, Any]) -> None:
    with Cluster(manager=manager) as cluster:
        nodes = cluster.grow("abcd")
        session = nodes[0].write({"n": 0}, acks="all")["id"]
        for node in nodes:
            node.tell("add", session=session, times=15, threads=3)
        assert [node.answer(100.0) for node in nodes] == [[]] * 4
        assert nodes[2].do("take", session=session, timeout_s=10.0)[1] == 4 * 15 * 3
        for node in nodes:
            until(lambda node=node: node.read(session)["values"] == {"n": 180}, what="it has all of it")  # type: ignore[misc]


def test_the_lock_of_a_process_that_is_killed_is_free_within_its_lease() -> None:
    with Cluster() as cluster:
        a, b, _ = cluster.grow("abc")
        session = a.write({"n": 7}, acks="all")["id"]
        a.do("hang", session=session, lease_s=LEASE_S)
        b.tell("take", session=session, timeout_s=20.0)
        killed = a.kill()
        taken, seen = b.answer()
        assert 0 < taken - killed < LEASE_S
        assert seen == 7


def test_the_lock_of_a_request_that_hangs_is_free_after_its_lease_and_not_before() -> None:
    with Cluster() as cluster:
        a, b = cluster.grow("ab")
        session = a.write({"n": 7}, acks="all")["id"]
        held = a.do("hang", session=session, lease_s=2.0)
        taken, _ = b.do("take", session=session, timeout_s=20.0)
        assert 1.8 < taken - held < 10.0
