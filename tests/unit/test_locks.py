"""Locks of sessions between members: who gets them, in which order, what is seen under them, and what ends them."""

from __future__ import annotations

from typing import Any

import pytest

from caterwaul.managers.errors import LockLost, LockTimeout, SessionEnded, SessionError
from caterwaul.managers.locks import ELSEWHERE, FULL, GRANTED, LATE, Answered, Asker, Claim, LockTable, read_claims, read_written, write_claims, write_written
from caterwaul.managers.session import key_of

from ..doubles import MANAGER
from ..lock_net import KINDS, Holder, LockNet

KEY, OTHER = b"k" * 16, b"o" * 16
A, B, C = (Asker(bytes([number]) * 16, number) for number in (1, 2, 3))


# -- the table


def told(effects: list[Any]) -> list[tuple[Asker, int]]:
    assert all(isinstance(effect, Answered) for effect in effects)
    return [(effect.asker, effect.verdict) for effect in effects]


def test_whoever_asks_first_gets_it_first() -> None:
    table = LockTable(100)
    assert told(table.ask(0.0, KEY, A, 10.0, 5.0)) == [(A, GRANTED)]
    assert table.ask(0.1, KEY, B, 10.0, 5.0) == table.ask(0.2, KEY, C, 10.0, 5.0) == table.ask(0.3, KEY, B, 10.0, 5.0) == []
    assert told(table.ask(0.3, OTHER, C, 10.0, 5.0)) == [(C, GRANTED)]
    freed = table.release(1.0, KEY, A, {b"author": 7})
    assert freed == [Answered(KEY, B, GRANTED, {b"author": 7})]
    assert told(table.release(1.1, KEY, B, {b"author": 7, b"other!": 1})) == [(C, GRANTED)]
    assert table.release(1.2, KEY, A, {}) == [], "it has given it back already"
    assert (table.granted, table.askers) == (4, 2)


def test_a_lease_that_runs_out_frees_the_lock_for_the_next() -> None:
    table = LockTable(100)
    table.ask(0.0, KEY, A, 10.0, 5.0)
    table.ask(8.0, KEY, B, 10.0, 5.0)
    assert told(table.tick(10.0)) == [(B, GRANTED)]
    assert table.release(10.5, KEY, A, {b"author": 9}) == [], "what it says now is late"
    assert table.expired == 1


def test_whoever_waits_too_long_is_told_so_and_who_asks_for_no_wait_gets_what_is_free() -> None:
    table = LockTable(100)
    assert told(table.ask(0.0, KEY, A, 10.0, 0.0)) == [(A, GRANTED)]
    assert told(table.ask(0.0, KEY, B, 10.0, 0.0)) == [(B, LATE)]
    table.ask(0.0, KEY, C, 10.0, 3.0)
    assert told(table.tick(3.0)) == [(C, LATE)]
    assert table.askers == 1


def test_a_lock_is_free_when_its_holder_is_gone_and_who_waits_there_too_gets_nothing() -> None:
    table = LockTable(100)
    for asker in (A, B, C):
        table.ask(0.0, KEY, asker, 10.0, 5.0)
    assert told(table.gone(1.0, [A.uid, B.uid])) == [(B, ELSEWHERE), (C, GRANTED)]
    assert table.askers == 1


def test_who_waits_no_more_is_answered_too() -> None:
    table = LockTable(100)
    for asker in (A, B):
        table.ask(0.0, KEY, asker, 10.0, 5.0)
    assert told(table.release(1.0, KEY, B, {})) == [(B, ELSEWHERE)]
    assert table.release(1.0, KEY, B, {}) == []
    assert table.askers == 1


def test_who_asks_again_for_what_it_has_gets_a_new_lease() -> None:
    table = LockTable(100)
    table.ask(0.0, KEY, A, 10.0, 5.0)
    assert told(table.ask(5.0, KEY, A, 10.0, 5.0)) == [(A, GRANTED)]
    table.ask(5.0, KEY, B, 10.0, 20.0)
    assert table.tick(10.0) == []
    assert told(table.tick(15.0)) == [(B, GRANTED)]


def test_no_more_ask_than_the_settings_allow() -> None:
    table = LockTable(2)
    table.ask(0.0, KEY, A, 10.0, 5.0)
    table.ask(0.0, KEY, B, 10.0, 5.0)
    assert told(table.ask(0.0, OTHER, C, 10.0, 5.0)) == [(C, FULL)]
    table.release(0.0, KEY, A, {})
    assert told(table.ask(0.0, OTHER, C, 10.0, 5.0)) == [(C, GRANTED)]


def test_a_table_forgets_locks_that_nobody_uses() -> None:
    table = LockTable(100)
    table.ask(0.0, KEY, A, 10.0, 5.0)
    table.release(1.0, KEY, A, {b"author": 7})
    assert table.claims(2.0) == [Claim(KEY, A, 0.0, {b"author": 7})]
    for now in (10.0, 31.0, 40.0):
        table.tick(now)
    assert (table.claims(40.0), table.deadline()) == ([], None)


def test_what_others_claim_is_not_granted_before_it_is_free() -> None:
    table = LockTable(100)
    claims = [Claim(KEY, A, 5.0, {b"author": 7}), Claim(OTHER, B, 5.0, {}), Claim(OTHER, B, 0.0, {b"author": 9}), Claim(KEY, C, 2.0, {})]
    table.adopt(0.0, claims, lambda uid: True)
    assert table.ask(0.0, KEY, B, 10.0, 20.0) == []
    assert table.ask(0.0, OTHER, A, 10.0, 20.0) == [Answered(OTHER, A, GRANTED, {b"author": 9})], "given back, whoever says otherwise"
    assert table.tick(5.0) == [Answered(KEY, B, GRANTED, {b"author": 7})]


def test_of_two_who_hold_a_lock_after_a_partition_both_are_waited_for_and_what_both_have_written() -> None:
    """Simulator, locks, delta, seeds 632 and 806: the one with the longer lease was remembered, and gave the lock back while the other was inside."""
    table = LockTable(100)
    table.ask(0.0, KEY, A, 3.0, 5.0)
    table.adopt(0.1, [Claim(KEY, B, 5.0, {b"side-b": 4})], lambda uid: True)
    assert sorted(claim.asker for claim in table.claims(0.1)) == [A, B]
    assert table.ask(0.2, KEY, C, 10.0, 20.0) == []
    assert table.release(1.0, KEY, B, {b"side-b": 5}) == [], "the other is inside still"
    assert table.release(1.5, KEY, A, {b"side-a": 7}) == [Answered(KEY, C, GRANTED, {b"side-b": 5, b"side-a": 7})]
    assert table.askers == 1
    assert table.release(2.0, KEY, C, {b"author": 9}) == []
    assert table.claims(2.0) == [Claim(KEY, C, 0.0, {b"author": 9})], "it has seen what they had written"


def test_of_two_who_hold_a_lock_each_ends_by_itself() -> None:
    table = LockTable(100)
    table.ask(0.0, KEY, A, 3.0, 5.0)
    table.adopt(0.1, [Claim(KEY, B, 5.0, {})], lambda uid: True)
    table.ask(0.2, KEY, C, 10.0, 20.0)
    assert table.tick(3.0) == []
    assert told(table.gone(4.0, [B.uid])) == [(C, GRANTED)]
    assert (table.expired, table.askers) == (1, 1)


def test_who_asks_again_for_what_another_holds_too_waits_for_it() -> None:
    table = LockTable(100)
    table.ask(0.0, KEY, A, 3.0, 5.0)  # the answer is lost with the link
    table.adopt(0.1, [Claim(KEY, B, 5.0, {})], lambda uid: True)
    assert table.ask(0.2, KEY, A, 3.0, 9.0) == []
    assert told(table.release(1.0, KEY, B, {})) == [(A, GRANTED)]
    table.release(2.0, KEY, A, {})
    assert table.askers == 0


def test_what_one_of_two_holders_gives_back_is_no_less_than_what_the_other_was_told() -> None:
    table = LockTable(100)
    table.adopt(0.0, [Claim(KEY, C, 0.0, {b"before": 5})], lambda uid: True)
    table.ask(0.0, KEY, A, 3.0, 5.0)
    table.adopt(0.1, [Claim(KEY, B, 5.0, {})], lambda uid: True)
    table.release(1.0, KEY, B, {b"side-b": 1})
    table.gone(2.0, [A.uid])
    assert table.ask(3.0, KEY, C, 3.0, 5.0) == [Answered(KEY, C, GRANTED, {b"before": 5, b"side-b": 1})]


def test_what_was_written_by_who_is_late_or_told_to_an_idle_lock_is_told_on() -> None:
    table = LockTable(100)
    table.ask(0.0, KEY, A, 3.0, 5.0)
    table.ask(0.0, KEY, B, 10.0, 5.0)
    assert told(table.tick(3.0)) == [(B, GRANTED)]
    table.release(3.1, KEY, A, {b"late-a": 7})
    assert table.release(4.0, KEY, B, {b"side-b": 1}) == []
    table.adopt(33.9, [Claim(KEY, C, 0.0, {b"side-c": 2})], lambda uid: True)
    table.tick(34.1)
    assert table.ask(40.0, KEY, C, 3.0, 5.0) == [Answered(KEY, C, GRANTED, {b"late-a": 7, b"side-b": 1, b"side-c": 2})]


def test_a_lock_for_which_somebody_waits_is_not_forgotten() -> None:
    table = LockTable(100)
    table.ask(0.0, KEY, A, 3.0, 5.0)
    table.ask(0.0, KEY, B, 3.0, 100.0)
    table.hold_up()
    table.release(1.0, KEY, A, {})
    for now in (20.0, 31.0, 60.0):
        assert table.tick(now) == []
    assert told(table.go_on(61.0)) == [(B, GRANTED)]


def test_of_many_authors_the_latest_are_told() -> None:
    table = LockTable(100)
    author = [bytes([number]) * 6 for number in range(70)]
    table.ask(0.0, KEY, A, 3.0, 5.0)
    for number in range(70):
        table.adopt(0.0, [Claim(KEY, C, 0.0, {author[0]: number + 1, author[number]: number + 1})], lambda uid: True)
    granted = table.release(1.0, KEY, A, {}) + table.ask(1.0, KEY, B, 3.0, 5.0)
    assert isinstance(granted[0], Answered)
    assert granted[0].written.items() >= {author[0]: 70, author[69]: 70}.items()
    assert len(granted[0].written) == 64


def test_a_claim_is_no_longer_than_a_lease_can_be() -> None:
    claims = read_claims([[KEY, A.uid, A.serial, 2**62, []]])
    assert claims is not None
    assert claims[0].left_s <= 4000.0


def test_nobody_in_the_queue_is_granted_a_lock_while_the_table_is_held_up() -> None:
    table = LockTable(100)
    for asker, patience_s in ((A, 5.0), (B, 20.0), (C, 3.0)):
        table.ask(0.0, KEY, asker, 2.0, patience_s)
    assert table.hold_up()
    assert table.release(1.0, KEY, A, {b"author": 7}) == []
    assert told(table.tick(3.0)) == [(C, LATE)], "who waits too long is told so all the same"
    table.adopt(3.5, [Claim(KEY, A._replace(serial=9), 4.0, {})], lambda uid: True)
    assert table.go_on(4.0) == []
    assert table.tick(7.5) == [Answered(KEY, B, GRANTED, {b"author": 7})]
    assert not LockTable(100).hold_up()


def test_what_is_told_of_commits_stays_within_what_others_read() -> None:
    table = LockTable(100)
    for part in range(3):
        table.adopt(0.0, [Claim(KEY, A, 0.0, {bytes([part, number, 0, 0, 0, 0]): 1 for number in range(40)})], lambda uid: True)
    granted = table.ask(1.0, KEY, B, 10.0, 5.0)[0]
    assert isinstance(granted, Answered)
    assert read_written(write_written(granted.written)) == granted.written


def test_claims_of_those_who_are_gone_are_void() -> None:
    table = LockTable(100)
    table.adopt(0.0, [Claim(KEY, A, 5.0, {})], lambda uid: False)
    assert told(table.ask(0.0, KEY, B, 10.0, 20.0)) == [(B, GRANTED)]


def test_who_waits_is_sent_to_who_grants_now() -> None:
    table = LockTable(100)
    for asker in (A, B):
        table.ask(0.0, KEY, asker, 10.0, 5.0)
    assert told(table.send_away(lambda key: False)) == [(B, ELSEWHERE)]
    assert [claim.asker for claim in table.claims(0.0)] == [A], "it is asked who holds it"


def test_claims_travel() -> None:
    claims = [Claim(KEY, A, 1.5, {b"author": 7}), Claim(OTHER, B, 0.0, {})]
    assert read_claims(write_claims(claims)) == claims
    for wrong in (
        None,
        {},
        [1],
        [[KEY]],
        [[KEY, A.uid, -1, 0, []]],
        [[KEY, A.uid, 1, 0, [["x", 1]]]],
        [[KEY, A.uid, 1, 0, [[b"short", 1]]]],
        [[KEY, b"", 1, 0, []]],
    ):
        assert read_claims(wrong) is None


# -- members


@pytest.fixture(params=KINDS)
def net(request: Any) -> LockNet:
    return LockNet(3, request.param)


def add(holder: Holder) -> None:
    holder.session["n"] = holder.session["n"] + 1


def test_requests_on_all_members_add_to_one_number_and_none_is_lost(net: LockNet) -> None:
    session = net.visit(0, n=0)
    holders = [Holder(net, number % 3, session) for number in range(9)]
    net.deliver()
    for done in range(9):
        (holder,) = [holder for holder in holders if holder.held]
        assert holder.session["n"] == done
        add(holder)
        holder.leave()
        net.deliver()
    assert [dict(net.opened(number, session)) for number in range(3)] == [{"n": 9}] * 3
    assert [holder.error for holder in holders] == [None] * 9


def test_what_the_holder_before_has_written_is_waited_for_where_it_is_slow(net: LockNet) -> None:
    session = net.visit(0, n=0)
    granter = net.granter(session)
    first, second = (number for number in range(3) if number != granter)
    holder = Holder(net, first, session)
    net.deliver()
    waiting = Holder(net, second, session)
    net.deliver()
    net.hold(first, second)
    add(holder)
    holder.leave()
    net.deliver()
    net.advance(0.2)
    if not waiting.held:  # nobody else had what it needs
        net.let_go()
        net.advance(0.2)
    assert waiting.held
    assert waiting.session["n"] == 1


def test_changes_from_before_the_lock_are_committed_first_and_an_exception_drops_those_under_it(net: LockNet) -> None:
    session = net.visit(0, n=0)
    holder = Holder(net, 1, session)
    net.deliver()
    assert holder.held
    holder.session["n"] = 99
    holder.session.invalidate()
    holder.leave(RuntimeError("planted by the test"))
    net.deliver()
    assert (dict(holder.session), holder.session.ended, holder.session.modified) == ({"n": 0}, False, False)
    opened = net.opened(2, session)
    opened["before"] = 1
    lock = opened.lock()
    done: list[Any] = []
    lock.run(lambda given: given.update(under=given["n"])).addCallback(done.append)
    net.deliver()
    assert done == [None]
    assert dict(net.opened(0, session)) == {"n": 0, "before": 1, "under": 0}


def test_a_holder_that_dies_frees_its_lock(net: LockNet) -> None:
    session = net.visit(0, n=0)
    victim = next(number for number in range(3) if number != net.granter(session))
    Holder(net, victim, session)
    net.deliver()
    others = [Holder(net, number, session) for number in range(3) if number != victim]
    net.deliver()
    assert [holder.held for holder in others] == [False, False]
    net.kill(victim)
    net.advance(0.1)
    assert sum(holder.held for holder in others) == 1


def test_who_grants_may_die_and_the_holder_keeps_its_lock(net: LockNet) -> None:
    session = net.visit(0, n=0)
    granter = net.granter(session)
    one, other = (number for number in range(3) if number != granter)
    holder = Holder(net, one, session)
    net.deliver()
    waiting = Holder(net, other, session)
    net.deliver()
    net.kill(granter)
    net.advance(0.5)
    assert (holder.held, waiting.held) == (True, False)
    add(holder)
    holder.leave()
    net.advance(0.5)
    assert waiting.held
    assert waiting.session["n"] == 1


@pytest.mark.parametrize("held", [True, False])
def test_members_that_come_take_over_what_they_grant_and_who_holds_is_known_there(net: LockNet, held: bool) -> None:
    sessions = [net.visit(0, n=0) for _ in range(12)]
    holders = [Holder(net, number % 3, session) for number, session in enumerate(sessions)]
    net.deliver()
    if not held:
        for holder in holders:
            add(holder)
            holder.leave()
        net.deliver()
    before = [net.granter(session) for session in sessions]
    new = net.join()
    net.deliver()
    assert [net.granter(session) for session in sessions] != before, "it grants some now"
    waiting = [Holder(net, new, session) for session in sessions]
    net.advance(0.5)
    assert [holder.held for holder in waiting] == [not held] * 12
    for holder in holders if held else ():
        add(holder)
        holder.leave()
    net.advance(0.5)
    assert [holder.held and holder.session["n"] for holder in waiting] == [1] * 12


def test_a_lease_that_is_over_is_lost_and_the_next_has_the_lock(net: LockNet) -> None:
    session = net.visit(0, n=0)
    holder = Holder(net, 0, session, lease_s=2.0)
    net.deliver()
    waiting = Holder(net, 1, session)
    net.advance(1.85)
    assert not waiting.held
    add(holder)
    holder.leave()
    net.advance(0.05)
    assert isinstance(holder.error, LockLost)
    assert (dict(holder.session), holder.session.modified) == ({"n": 0}, False), "nothing is left that the front could save"
    assert net.managers[0].statistics()["locks_lost"] == 1
    net.advance(0.2)
    assert waiting.held, "it was given back, lost or not"


def test_a_holder_that_hangs_costs_those_who_wait_its_lease(net: LockNet) -> None:
    session = net.visit(0, n=0)
    holder = Holder(net, 0, session, lease_s=2.0)
    net.deliver()
    waiting = Holder(net, 1, session)
    net.advance(2.1)
    assert waiting.held
    with pytest.raises(LockLost):
        net.managers[0].commit(holder.session)


def test_a_process_that_stood_still_has_lost_its_locks(net: LockNet) -> None:
    session = net.visit(0, n=0)
    holder = Holder(net, 0, session)
    net.deliver()
    net.desks[0].slept()
    add(holder)
    holder.leave()
    net.deliver()
    assert isinstance(holder.error, LockLost)


def test_who_waits_too_long_is_refused_and_leaves_nothing_behind(net: LockNet) -> None:
    session = net.visit(0, n=0)
    holder = Holder(net, 0, session)
    net.deliver()
    waiting = Holder(net, 1, session, timeout_s=1.0)
    net.advance(1.2)
    assert isinstance(waiting.error, LockTimeout)
    assert net.managers[1].statistics()["lock_timeouts"] == 1
    holder.leave()
    net.deliver()
    again = Holder(net, 2, session, timeout_s=0.5)
    net.advance(0.1)
    assert again.held
    assert sum(manager.statistics()["locks_asked"] for manager in net.managers) == 1


def test_who_asks_a_member_that_hangs_waits_no_longer_than_it_said() -> None:
    """Simulator, locks, delta, seed 1: it waited for three seconds more."""
    net = LockNet(3)
    session = net.visit(0, n=0)
    granter = net.granter(session)
    asking = net.opened((granter + 1) % 3, session)
    net.freeze(granter)
    waiting = Holder(net, (granter + 1) % 3, asking, timeout_s=1.0)
    net.advance(1.6)
    assert isinstance(waiting.error, LockTimeout)


@pytest.mark.parametrize("how", ["cancelled", "cancelled where it is granted", "dead"])
def test_questions_of_who_waits_no_more_are_forgotten(how: str) -> None:
    net = LockNet(3)
    session = net.visit(0, n=0)
    granter = net.granter(session)
    one, other = (number for number in range(3) if number != granter)
    holder = Holder(net, one, session)
    net.deliver()
    desk = net.desks[granter]._desks[MANAGER]
    waiting = net.desks[granter if "granted" in how else other].acquire(MANAGER, key_of(session), 10.0, 100.0)
    waiting.addErrback(lambda failure: None)
    net.deliver()
    assert len(desk.answers) == 1
    question = next(iter(desk.answers.values()))
    if how == "dead":
        net.kill(other)
    else:
        waiting.cancel()
    net.advance(0.1)
    assert (desk.answers, desk.table.askers, question.called) == ({}, 1, True)
    holder.leave()


def test_who_gives_up_while_claims_are_asked_for_does_not_end_that() -> None:
    net = LockNet(3)
    session = net.visit(0, n=0)
    granter = net.granter(session)
    other = (granter + 1) % 3
    net.hold(other, granter)
    errors: list[Any] = []
    waiting = net.desks[granter].acquire(MANAGER, key_of(session), 10.0, 100.0).addErrback(errors.append)
    holder = Holder(net, granter, session)
    net.advance(0.1)
    waiting.cancel()
    net.advance(0.1)
    assert len(errors) == 1
    desk = net.desks[granter]._desks[MANAGER]
    assert (desk.claims_of, desk.table.askers, holder.held) == (None, 0, False), "one has not told its claims yet"
    net.let_go()
    net.advance(0.1)
    assert (desk.table.askers, holder.held) == (1, True)


@pytest.mark.parametrize("is_ours", [False, True])
def test_who_waits_no_more_before_the_claims_are_known_is_granted_nothing(is_ours: bool) -> None:
    net = LockNet(3)
    session = net.visit(0, n=0)
    granter = net.granter(session)
    one, other = (number for number in range(3) if number != granter)
    net.hold(other, granter)
    waiting = net.desks[granter if is_ours else one].acquire(MANAGER, key_of(session), 10.0, 100.0)
    waiting.addErrback(lambda failure: None)
    holder = Holder(net, one, session)
    net.advance(0.1)
    desk = net.desks[granter]._desks[MANAGER]
    assert len(desk.early) == 2
    waiting.cancel()
    net.advance(0.1)
    assert desk.asking is not None
    net.let_go()
    net.advance(0.3)
    assert (holder.held, desk.table.askers, desk.early) == (True, 1, set())


def test_a_session_that_ends_while_its_lock_is_waited_for_is_said_to_have_ended(net: LockNet) -> None:
    session = net.visit(0, n=0)
    holder = Holder(net, 0, session)
    net.deliver()
    waiting = Holder(net, 1, session)
    net.deliver()
    holder.session.invalidate()
    holder.leave()
    net.advance(0.2)
    assert isinstance(waiting.error, SessionEnded)
    assert sum(manager.statistics()["locks_asked"] for manager in net.managers) == 0


def test_a_new_session_needs_no_lock_and_nobody_is_asked() -> None:
    net = LockNet(2)
    session = net.opened(0)
    done: list[Any] = []
    session.lock().run(lambda given: given.update(n=1)).addCallback(done.append)
    assert done == [None]
    net.managers[0].commit(session)
    assert dict(session) == {"n": 1}


def test_misuse_is_said_clearly() -> None:
    net = LockNet(2)
    holder = Holder(net, 0, net.visit(0, n=0))
    net.deliver()
    for wrong, says in (({"timeout_s": -1}, "seconds"), ({"lease_s": 0}, "the lease above 0")):
        with pytest.raises(SessionError, match=says):
            holder.session.lock(**wrong)
    errors: list[Any] = []
    holder.session.lock().run(lambda given: None).addErrback(errors.append)
    assert "has the session's lock already" in errors[0].getErrorMessage()
    holder.leave()
    holder.session.cycle_id()
    holder.session.lock().run(lambda given: None).addErrback(errors.append)
    assert "take the lock first" in errors[1].getErrorMessage()


def test_who_sees_other_members_is_granted_nothing(net: LockNet) -> None:
    """A member that has just come, and has not met all others yet, must not grant what they grant."""
    session = net.visit(0, n=0)
    granter = net.granter(session)
    asker = (granter + 1) % 3
    behind = net.view().without(net.members[(granter + 2) % 3].uid)
    net.show_view(asker, behind)
    holder = Holder(net, asker, session, timeout_s=2.0)
    net.advance(1.0)
    assert not holder.held
    net.show_view(asker, net.view())
    net.advance(0.5)
    assert holder.held


def test_what_a_member_grants_that_has_left_does_not_count_where_another_has_asked_meanwhile(net: LockNet) -> None:
    session = net.visit(0, n=0)
    granter = net.granter(session)
    one, other = (number for number in range(3) if number != granter)
    first = Holder(net, one, session)
    net.deliver()
    first.leave()  # claims have been asked for
    net.deliver()
    net.hold(granter, one)
    late = Holder(net, one, session)
    net.deliver()
    net.desks[granter].stop()
    net.show_view(other, net.view().without(net.members[granter].uid))
    quick = Holder(net, other, session)
    net.hold(other, granter)  # it is gone, and answers nothing any more
    net.hold(granter, other)
    net.advance(0.1)
    net.show_view(one, net.view().without(net.members[granter].uid))
    net.advance(3.0)
    assert quick.held
    net.let_go()
    net.deliver()
    net.advance(0.2)
    assert (late.held, quick.held) == (False, True)
    quick.leave()
    net.advance(0.2)
    assert late.held
