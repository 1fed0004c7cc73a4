"""Leaving on purpose: what a member without weight parts from, and the drain that waits for it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from twisted.internet.task import Clock

from caterwaul.cluster.draining import Drain
from caterwaul.managers.backup import BackupManager
from caterwaul.managers.delta import DeltaManager
from caterwaul.managers.listeners import SessionDestroyed
from caterwaul.managers.partitioned import PartitionedManager
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


def contents(net: Net, number: int, session_id: str) -> dict[str, Any]:
    session = net.opened(number, session_id)
    net.managers[number].release(session)
    return dict(session)


def test_a_member_without_weight_parts_from_all_it_has_and_nothing_is_lost(net: Net) -> None:
    ids = [net.visit(n % 4, n=n) for n in range(60)]
    net.reweigh(0, 0)
    net.advance(5.0)
    assert net.managers[0].remaining() == (0, 0)
    assert net.managers[0].count == 0
    net.leave(0)
    net.deliver()
    assert [contents(net, 1 + n % 3, session_id)["n"] for n, session_id in enumerate(ids)] == list(range(60))


def test_its_primaries_go_to_others_before_it_leaves(net: Net) -> None:
    ids = [net.visit(0, n=n) for n in range(30)]
    net.reweigh(0, 0)
    net.advance(5.0)
    held = [(key, entry) for manager in net.managers[1:] for key, entry in manager._core.replica.entries() if entry.body is not None]
    if net.kind is BackupManager:
        assert len({key for key, _ in held}) == len(ids)
        assert all(entry.primary != net.members[0].uid for _, entry in held)


def test_while_it_drains_it_serves_what_others_hold(net: Net) -> None:
    session_id = net.visit(0, a=1)
    net.reweigh(0, 0)
    net.visit(0, session_id, b=2)
    net.advance(5.0)
    net.visit(2, session_id, c=3)
    assert contents(net, 0, session_id) == {"a": 1, "b": 2, "c": 3}
    new = net.visit(0, d=4)
    net.advance(5.0)
    net.leave(0)
    assert contents(net, 3, session_id) == {"a": 1, "b": 2, "c": 3}
    assert contents(net, 3, new) == {"d": 4}


def test_it_takes_part_again(net: Net) -> None:
    ids = [net.visit(n % 4, n=n) for n in range(40)]
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
        net.visit(0, n=n)
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
    ids = [net.visit(0, n=n) for n in range(5)]
    for number in (1, 2, 3):
        net.leave(number)
    net.advance(5.0)
    net.reweigh(0, 0)
    net.advance(2.0)
    assert net.managers[0].remaining() == (0, len(ids))


def test_readers_of_delta_are_told_of_changes() -> None:
    """A lite member keeps near copies also where all others hold everything."""
    net = Net(3, ManagerSettings(**SETTINGS), weights=(1, 1, 0))
    session_id = net.visit(0, a=1)
    assert contents(net, 2, session_id) == {"a": 1}
    net.visit(1, session_id, a=2)
    assert contents(net, 2, session_id) == {"a": 2}
    assert net.managers[2]._core.moving.near.hits == 0
    assert contents(net, 2, session_id) == {"a": 2}
    assert net.managers[2]._core.moving.near.hits == 1


def test_lite_members_of_delta_are_not_given_what_they_do_not_hold() -> None:
    net = Net(3, ManagerSettings(**SETTINGS), weights=(1, 1, 0))
    for n in range(30):
        net.visit(0, n=n)
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


def test_a_drain_that_left_something_begins_again() -> None:
    rig = Rig(0, notice_s=0.0)
    rig.manager.stranded = 7
    rig.drain.begin()
    rig.advance(0.2)
    assert rig.drain.report()["state"] == "drained"
    rig.manager.left, rig.manager.stranded = 7, 0  # somebody came who can hold them
    rig.drain.done(0.5).addCallback(rig.heard.append)
    assert rig.heard == [False]
    rig.drain.begin()
    assert rig.drain.report()["state"] == "draining"
    rig.drain.done(5.0).addCallback(rig.heard.append)
    rig.manager.left = 0
    rig.advance(0.2)
    assert rig.heard == [False, True]


def test_more_stranded_sessions_than_are_counted_one_by_one_are_stranded_all_the_same() -> None:
    net = Net(2, ManagerSettings(type="backup", **SETTINGS), kind=BackupManager)
    ids = [net.visit(0, n=n) for n in range(2100)]
    net.leave(1)
    net.advance(1.0)
    net.reweigh(0, 0)
    net.advance(1.0)
    assert net.managers[0].remaining() == (0, len(ids))


def test_a_cancelled_drain_of_delta_leaves_nothing_half_done() -> None:
    net = Net(3, ManagerSettings(**SETTINGS))
    ids = [net.visit(0, n=n) for n in range(20)]
    for number in (1, 2):
        net.hold(number, 0)
    net.reweigh(0, 0)
    net.advance(1.0)
    net.reweigh(0, 1)
    net.let_go()
    net.advance(3.0)
    core = net.managers[0]._core
    assert not core.moving.handover.parting.leaving
    assert len(core.moving.near) == 0
    looked = core.lookups.asked
    assert all(net.managers[0].open_local(session_id) is not None for session_id in ids)
    assert core.lookups.asked == looked
    ticks = []
    tick = core.tick
    core.tick = lambda now_ms: ticks.append(now_ms) or tick(now_ms)  # type: ignore[method-assign,func-returns-value]
    net.advance(1.0)
    assert len(ticks) < 10


def test_the_end_of_a_session_of_a_lite_member_is_told_somewhere() -> None:
    for kind in (DeltaManager, PartitionedManager):
        settings = ManagerSettings(type="delta" if kind is DeltaManager else "partitioned", idle_timeout_s=5, absolute_timeout_s=0)
        net = Net(3, settings, kind=kind, weights=(1, 1, 0))
        told: list[SessionDestroyed] = []
        for manager in net.managers:
            manager.listen(SessionDestroyed, told.append)
        net.visit(2, a=1)
        net.advance(12.0)
        assert [event.reason for event in told] == ["expired"]


def test_copies_that_are_being_handed_over_are_still_held() -> None:
    net = Net(3, ManagerSettings(type="backup", backups=0, **SETTINGS), kind=BackupManager)
    for n in range(20):
        net.visit(0, n=n)
    for number in (1, 2):
        net.hold(number, 0)
    net.reweigh(0, 0)
    net.advance(0.5)
    assert net.managers[0].remaining()[0] == 20
    assert len(net.managers[0].survey_page(b"", 100)) == 20


def test_what_a_newcomer_is_given_is_the_truth_at_once() -> None:
    """Its first link begins in the moment in which it is seen: that is no loss."""
    net = Net(3, ManagerSettings(type="partitioned", backups=0, **SETTINGS), kind=PartitionedManager)
    ids = [net.visit(0, n=n) for n in range(60)]
    changes: list[bytes | None] = []
    for manager in net.managers:
        parting = manager._core.moving.handover.parting
        changed = parting.changed
        parting.changed = lambda calm, changed=changed: changes.append(calm) or changed(calm)  # type: ignore[method-assign,func-returns-value,misc]
    number = net.join()
    for other in range(3):
        net.managers[other].link_opened(net.members[number], False)
    assert changes[-3:] == [net.members[number].uid] * 3
    net.advance(3.0)
    assert [contents(net, number, session_id)["n"] for session_id in ids] == list(range(60))
