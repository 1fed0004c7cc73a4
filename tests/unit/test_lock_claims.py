"""Before a member grants locks it knows who holds them: where a link is down for a moment, where members see different others, and after it stood still. All found by the simulator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from caterwaul.cluster.locks import LockDesk
from caterwaul.managers.errors import LockTimeout
from caterwaul.membership.view import View
from tests.doubles import MANAGER
from tests.lock_net import KINDS, Holder, LockNet


@pytest.fixture(params=KINDS)
def net(request: Any) -> LockNet:
    return LockNet(3, request.param)


def roles(net: LockNet) -> tuple[str, int, int, int]:
    """(a session, who grants its lock, the two others)."""
    session = net.visit(0, n=0)
    granter = net.granter(session)
    one, other = (number for number in range(3) if number != granter)
    return session, granter, one, other


def test_whose_link_is_down_for_a_moment_is_asked_again_what_it_holds(net: LockNet) -> None:
    session, granter, one, other = roles(net)
    holder = Holder(net, one, session)
    net.deliver()
    net.part(granter, one)
    desk = net.desks[granter]._desks[MANAGER]
    desk.claims_of = None  # as after it stood still
    desk.table._locks.clear()
    waiting = Holder(net, other, session)
    net.advance(0.5)
    net.heal(granter, one)
    net.advance(0.5)
    assert (holder.held, waiting.held) == (True, False)
    holder.leave()
    net.advance(0.5)
    assert waiting.held


def test_who_has_not_met_all_whom_others_see_grants_nothing_for_a_while(net: LockNet) -> None:
    session, granter, one, _ = roles(net)
    request, holder = net.opened(granter, session), Holder(net, one, session)
    net.deliver()
    behind = net.view().without(net.members[one].uid)
    net.show_view(granter, behind)  # as one that has just come
    net.desks[granter]._desks[MANAGER].table._locks.clear()
    waiting = Holder(net, granter, request)
    net.advance(1.5)
    net.show_view(granter, net.view())
    net.advance(0.3)
    assert (holder.held, waiting.held) == (True, False)


def test_a_partition_costs_those_who_wait_two_seconds(net: LockNet) -> None:
    session, granter, one, other = roles(net)
    for number in (granter, other):
        net.show_view(number, net.view().without(net.members[one].uid))
    net.show_view(one, net.view().without(net.members[granter].uid).without(net.members[other].uid))
    for number in (granter, other):
        net.part(one, number)
    waiting = Holder(net, other, session, timeout_s=5.0)
    net.advance(2.3)
    assert waiting.held


def test_who_waits_already_is_granted_nothing_either_before_those_who_come_said_what_they_hold(net: LockNet) -> None:
    """Simulator, locks, delta, seed 812: a lease ended a moment after two sides had met, and the next in the queue was let in before the claims of the other side were here."""
    session, granter, one, other = roles(net)
    requests = {number: net.opened(number, session) for number in range(3)}
    apart = net.view().without(net.members[one].uid)
    net.show_view(granter, apart)
    net.show_view(other, apart)
    net.show_view(one, net.view().without(net.members[granter].uid).without(net.members[other].uid))
    there = Holder(net, one, requests[one], timeout_s=5.0)
    here = Holder(net, granter, requests[granter])
    net.advance(0.5)
    assert (there.held, here.held) == (True, True)
    waiting = Holder(net, other, requests[other], timeout_s=10.0)
    net.deliver()
    net.hold(one, granter)
    for number in range(3):
        net.show_view(number, net.view())
    here.leave()
    net.advance(0.3)
    assert not waiting.held
    net.let_go()
    net.advance(0.5)
    assert (there.held, waiting.held) == (True, False)
    there.leave()
    net.advance(0.5)
    assert waiting.held


def test_an_announcement_holds_nobody_up(net: LockNet) -> None:
    session, granter, one, other = roles(net)
    holder = Holder(net, one, session)
    net.deliver()
    waiting = Holder(net, other, session)
    net.deliver()
    net.show_view(granter, View.of(2, [replace(member, payload={"announced": 1}) for member in net.view()]))
    desk = net.desks[granter]._desks[MANAGER]
    assert desk.claims_of is desk.manager.view
    holder.leave()
    net.deliver()
    assert waiting.held


def test_what_was_granted_while_its_asker_stood_still_does_not_count(net: LockNet) -> None:
    session, granter, one, other = roles(net)
    holder = Holder(net, other, session)
    net.deliver()
    waiting = Holder(net, one, session, timeout_s=10.0)
    net.deliver()
    net.hold(granter, one)
    holder.leave()
    net.advance(0.1)  # granted, and on its way
    net.desks[one].slept()
    net.let_go()
    net.advance(0.01, 0.01)
    assert not waiting.held
    net.advance(1.0)
    assert waiting.held


def test_who_asks_another_member_asks_under_another_number(net: LockNet) -> None:
    """Simulator, locks, delta, seed 40: the first had granted it, and given it up; that was taken for the end of what the second had granted."""
    session, granter, one, other = roles(net)
    before, request = Holder(net, other, session), net.opened(one, session)
    net.deliver()
    before.leave()  # claims have been asked for
    net.deliver()
    net.hold(granter, one)
    waiting = Holder(net, one, request, timeout_s=10.0)
    net.deliver()
    first = next(next(iter(lock.holders)) for lock in net.desks[granter]._desks[MANAGER].table._locks.values())
    assert first is not None
    for number in (one, other):
        net.part(granter, number)
        net.show_view(number, net.view().without(net.members[granter].uid))
    net.advance(2.5)
    assert waiting.held
    assert first.serial not in net.desks[one]._desks[MANAGER].held


def test_a_member_that_may_not_have_found_others_yet_grants_nothing() -> None:
    net = LockNet(2)
    session = net.visit(0, n=0)
    granter = net.granter(session)
    channel: Any = net.channels[net.members[granter].uid]
    net.desks[granter] = LockDesk(channel, {MANAGER: net.managers[granter]}, net.clock, net.clock.seconds() + 1.0)
    waiting = [Holder(net, number, session) for number in range(2)]
    net.advance(0.9)
    assert [holder.held for holder in waiting] == [False, False]
    net.advance(0.5)
    assert sum(holder.held for holder in waiting) == 1


def test_a_grant_that_took_long_to_arrive_is_not_believed_in_for_longer_than_it_lasts(net: LockNet) -> None:
    """Simulator, locks, delta, seed 902: it came when its lease was over, and whoever was next had the lock."""
    session, granter, one, other = roles(net)
    requests = {number: net.opened(number, session) for number in (one, other)}
    first = Holder(net, granter, session)  # claims are asked for
    net.deliver()
    first.leave()
    net.hold(granter, one)
    holder = Holder(net, one, requests[one], timeout_s=60.0)
    net.deliver()
    waiting = Holder(net, other, requests[other], timeout_s=60.0)
    net.advance(9.9)
    assert not waiting.held
    net.let_go()
    net.advance(0.2)
    assert (holder.held, waiting.held) == (False, True)
    waiting.leave()
    net.advance(0.5)
    assert holder.held
    grant = holder.lock._grant
    assert grant is not None
    assert grant.until <= net.clock.seconds() + 9.0


def test_who_waited_in_the_queue_counts_its_lease_from_its_grant(net: LockNet) -> None:
    session, _, one, other = roles(net)
    holder = Holder(net, one, session)
    net.deliver()
    waiting = Holder(net, other, session, timeout_s=60.0)
    net.advance(8.0)
    holder.leave()
    net.deliver()
    grant = waiting.lock._grant
    assert grant is not None
    assert grant.until > net.clock.seconds() + 8.9


# -- a process that stood still, and has not noticed yet


def stand_still(net: LockNet, number: int) -> None:
    net.managers[number]._core._ticked_ms -= 60_000


def test_a_grant_that_lay_there_while_a_process_stood_still_is_none(net: LockNet) -> None:
    """Simulator, locks, partitioned, seed 105: it was read before any timer said that the process had stood still, and somebody else held the lock by then."""
    session, granter, one, other = roles(net)
    request = net.opened(one, session)
    waiting_request = net.opened(other, session)
    net.hold(granter, one)
    holder = Holder(net, one, request)
    net.deliver()
    waiting = Holder(net, other, waiting_request)
    net.deliver()
    stand_still(net, one)
    net.let_go()
    net.deliver()
    assert (holder.held, waiting.held) == (False, True)
    waiting.leave()
    net.advance(0.5)
    assert holder.held


def test_a_lock_is_not_ours_from_the_moment_on_when_the_process_could_notice_that_it_stood_still(net: LockNet) -> None:
    session, _, one, _ = roles(net)
    holder = Holder(net, one, session)
    net.deliver()
    locks, grant = net.managers[one].locks, holder.lock._grant
    assert locks.is_ours(grant)
    stand_still(net, one)
    assert not locks.is_ours(grant)
    net.managers[one]._react(net.managers[one]._core.tick)
    assert not locks.is_ours(grant)


def test_who_grants_and_stood_still_asks_for_claims_before_it_does_anything(net: LockNet) -> None:
    session, granter, one, other = roles(net)
    holder = Holder(net, one, session)
    net.deliver()
    waiting = Holder(net, other, session)
    net.deliver()
    stand_still(net, granter)
    desk = net.desks[granter]._desks[MANAGER]
    holder.leave()
    while desk.sleeps == 0:
        assert net.step()
        assert not waiting.held
    assert desk.claims_of is None
    net.advance(0.5)
    assert waiting.held


def test_a_lock_that_is_lost_while_what_was_written_before_is_waited_for_lets_nobody_in(net: LockNet) -> None:
    """Simulator, locks, partitioned, seed 105: it was let in by a lock that it had lost long ago."""
    session, _, one, _ = roles(net)
    request = net.opened(one, session)
    opening = net.managers[one].locks._opening
    reopen = opening.reopen

    def slowly(session_id: str, needed: Any) -> Any:
        net.desks[one].slept()
        return reopen(session_id, needed)

    opening.reopen = slowly  # type: ignore[method-assign]
    holder = Holder(net, one, request)
    net.advance(0.5)
    assert not holder.held
    assert isinstance(holder.error, LockTimeout)


def test_with_a_short_drop_time_a_process_that_runs_does_not_take_itself_for_asleep() -> None:
    net = LockNet(2)
    core = net.managers[0]._core
    short = type(core)(core.me, "x", core.settings, core._strategy, core.placement.view, 600, 0, {})
    assert short.deadline_ms <= 400
    short.tick(short.deadline_ms)
    assert short.sleeps(500) == 0
    assert short.sleeps(1100) == 1
