"""Leaving on purpose: what a member without weight parts from, and the drain that waits for it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from twisted.internet.task import Clock

from caterwaul.cluster.draining import Drain
from caterwaul.managers.backup import BackupManager
from caterwaul.managers.delta import DeltaManager
from caterwaul.managers.partitioned import PartitionedManager
from caterwaul.managers.session import Session
from caterwaul.managers.settings import ManagerSettings
from tests.doubles import Net

SETTINGS = {"idle_timeout_s": 600, "absolute_timeout_s": 0}
KINDS = {
    "delta": partial(Net, kind=DeltaManager),
    "backup": partial(Net, kind=BackupManager),
    "partitioned": partial(Net, kind=PartitionedManager),
}


@pytest.fixture(params=sorted(KINDS))
def net(request: pytest.FixtureRequest) -> Net:
    return KINDS[request.param](4, ManagerSettings(type=request.param, **SETTINGS))


def opened(net: Net, number: int, session_id: str | None) -> Session:
    result: list[Session] = []
    net.managers[number].open_deferred(session_id).addCallback(result.append)
    net.deliver()
    assert not result[0].unknown
    return result[0]


def visit(net: Net, number: int, session_id: str | None = None, **attributes: Any) -> str:
    session = opened(net, number, session_id)
    session.update(attributes)
    net.managers[number].commit(session)
    net.managers[number].release(session)
    net.deliver()
    assert session.id is not None
    return session.id


def contents(net: Net, number: int, session_id: str) -> dict[str, Any]:
    session = opened(net, number, session_id)
    net.managers[number].release(session)
    return dict(session)


def test_a_member_without_weight_parts_from_all_it_has_and_nothing_is_lost(net: Net) -> None:
    ids = [visit(net, n % 4, n=n) for n in range(60)]
    net.reweigh(0, 0)
    net.advance(5.0)
    assert net.managers[0].remaining() == (0, 0)
    assert net.managers[0].count == 0
    net.leave(0)
    net.deliver()
    assert [contents(net, 1 + n % 3, session_id)["n"] for n, session_id in enumerate(ids)] == list(range(60))


def test_its_primaries_go_to_others_before_it_leaves(net: Net) -> None:
    ids = [visit(net, 0, n=n) for n in range(30)]
    net.reweigh(0, 0)
    net.advance(5.0)
    held = [(key, entry) for manager in net.managers[1:] for key, entry in manager._core.replica.entries() if entry.body is not None]
    if net.kind is BackupManager:
        assert len({key for key, _ in held}) == len(ids)
        assert all(entry.primary != net.members[0].uid for _, entry in held)


def test_while_it_drains_it_serves_what_others_hold(net: Net) -> None:
    session_id = visit(net, 0, a=1)
    net.reweigh(0, 0)
    visit(net, 0, session_id, b=2)
    net.advance(5.0)
    visit(net, 2, session_id, c=3)
    assert contents(net, 0, session_id) == {"a": 1, "b": 2, "c": 3}
    new = visit(net, 0, d=4)
    net.advance(5.0)
    net.leave(0)
    assert contents(net, 3, session_id) == {"a": 1, "b": 2, "c": 3}
    assert contents(net, 3, new) == {"d": 4}


def test_it_takes_part_again(net: Net) -> None:
    ids = [visit(net, n % 4, n=n) for n in range(40)]
    net.reweigh(0, 0)
    net.advance(5.0)
    net.reweigh(0, 1)
    net.advance(5.0)
    assert net.managers[0].count > 0
    for number in (1, 2, 3):
        net.leave(number)
        net.advance(5.0)
    assert [contents(net, 0, session_id)["n"] for n, session_id in enumerate(ids)] == list(range(40))


def test_what_others_have_not_confirmed_remains(net: Net) -> None:
    for n in range(20):
        visit(net, 0, n=n)
    for number in (1, 2, 3):
        net.hold(number, 0)
    net.reweigh(0, 0)
    net.advance(3.0)
    left, stranded = net.managers[0].remaining()
    assert left > 0
    assert not stranded
    net.let_go()
    net.advance(3.0)
    assert net.managers[0].remaining() == (0, 0)


def test_where_nobody_else_can_hold_sessions_they_are_stranded(net: Net) -> None:
    ids = [visit(net, 0, n=n) for n in range(5)]
    for number in (1, 2, 3):
        net.leave(number)
    net.advance(5.0)
    net.reweigh(0, 0)
    net.advance(2.0)
    assert net.managers[0].remaining() == (0, len(ids))


def test_readers_of_delta_are_told_of_changes() -> None:
    """A lite member keeps near copies also where all others hold everything."""
    net = Net(3, ManagerSettings(**SETTINGS), weights=(1, 1, 0))
    session_id = visit(net, 0, a=1)
    assert contents(net, 2, session_id) == {"a": 1}
    visit(net, 1, session_id, a=2)
    assert contents(net, 2, session_id) == {"a": 2}
    assert net.managers[2]._core.moving.near.hits == 0
    assert contents(net, 2, session_id) == {"a": 2}
    assert net.managers[2]._core.moving.near.hits == 1


def test_lite_members_of_delta_are_not_given_what_they_do_not_hold() -> None:
    net = Net(3, ManagerSettings(**SETTINGS), weights=(1, 1, 0))
    for n in range(30):
        visit(net, 0, n=n)
    for number in (0, 1):
        net.heal(number, 2)
    net.advance(2.0)
    assert net.managers[2].count == 0


# -- the drain


class Manager:
    def __init__(self, left: int, stranded: int = 0) -> None:
        self.left, self.stranded = left, stranded

    def remaining(self) -> tuple[int, int]:
        return self.left, self.stranded


class Announcer:
    def __init__(self) -> None:
        self.said: list[tuple[int | None, dict[str, Any]]] = []

    def announce(self, weight: int | None = None, **payload: Any) -> None:
        self.said.append((weight, payload))


class Rig:
    def __init__(self, left: int, notice_s: float = 1.0) -> None:
        self.clock, self.announcer, self.manager = Clock(), Announcer(), Manager(left)
        self.drain = Drain(self.announcer, {"default": self.manager}, 3, notice_s, self.clock)
        self.heard: list[bool] = []

    def advance(self, seconds: float) -> None:
        self.clock.pump([0.05] * round(seconds / 0.05))


def test_a_drain_announces_waits_and_counts() -> None:
    rig = Rig(100)
    assert rig.drain.report()["state"] == "serving"
    rig.drain.begin()
    rig.drain.begin()
    rig.drain.done(10.0).addCallback(rig.heard.append)
    assert rig.announcer.said == [(0, {"draining": True})]
    rig.manager.left = 40
    rig.advance(2.0)
    report = rig.drain.report()
    assert (report["state"], report["total"], report["left"]) == ("draining", 100, 40)
    rig.manager.left = 0
    rig.advance(0.2)
    assert rig.heard == [True]
    assert rig.drain.report()["state"] == "drained"
    assert 2.0 <= rig.drain.report()["seconds"] < 2.3


def test_a_drain_lasts_as_long_as_balancers_need_to_notice() -> None:
    rig = Rig(0, notice_s=1.0)
    rig.drain.begin()
    rig.drain.done(10.0).addCallback(rig.heard.append)
    rig.advance(0.9)
    assert rig.heard == []
    rig.advance(0.2)
    assert rig.heard == [True]


def test_who_waits_for_a_drain_hears_that_its_time_is_over_or_that_it_was_cancelled() -> None:
    rig = Rig(5)
    rig.drain.begin()
    rig.drain.done(1.0).addCallback(rig.heard.append)
    rig.advance(1.1)
    assert rig.heard == [False]
    rig.drain.done(10.0).addCallback(rig.heard.append)
    rig.drain.cancel()
    assert rig.heard == [False, False]
    assert rig.announcer.said[-1] == (3, {"draining": False})
    assert rig.drain.report()["state"] == "serving"
    assert not rig.clock.getDelayedCalls()
