"""A session manager among others: levels of confirmation, look-ups, expiry, touches, reconciling, listeners, threads."""

from __future__ import annotations

from dataclasses import replace
from threading import Thread

import pytest

from caterwaul.managers.errors import NotConfirmed, SessionError, SessionUnknown
from caterwaul.managers.listeners import AttributeChanged, SessionCreated, SessionDestroyed
from caterwaul.managers.messages import ASK, HEADS, INVENTORY, LOOKUP, RECORDS, TOUCHES
from caterwaul.managers.outbox import _BACKLOG_MAX_BYTES
from caterwaul.managers.session import key_of
from caterwaul.managers.settings import ManagerSettings
from caterwaul.membership.errors import LocalError
from tests.doubles import MANAGER, Net

SHORT = ManagerSettings(idle_timeout_s=20, absolute_timeout_s=0)


def make(net, number=0, acks=None, **attributes):
    session = net.managers[number].open_local(None)
    session.update(attributes)
    receipt = net.managers[number].commit(session, acks)
    return session.id, receipt


def write(net, number, session_id, acks=None, **attributes):
    session = net.managers[number].open_local(session_id)
    session.update(attributes)
    receipt = net.managers[number].commit(session, acks)
    net.managers[number].release(session)
    return receipt


def read(net, number, session_id):
    session = net.managers[number].open_local(session_id)
    contents = dict(session)
    net.managers[number].commit(session)
    net.managers[number].release(session)
    return contents


def ask(net, number, session_id):
    result = []
    net.managers[number].open_deferred(session_id).addCallback(result.append)
    return result


def equal(net):
    first, *rest = net.bodies()
    return all(other == first for other in rest)


def end(net, number, session_id):
    session = net.managers[number].open_local(session_id)
    session.invalidate()
    receipt = net.managers[number].commit(session)
    net.managers[number].release(session)
    return receipt


def records_moved(net):
    return sum(len(message[2]) for message in net.sent(RECORDS))


# -- levels


@pytest.mark.parametrize(("level", "needed"), [("one", 1), ("quorum", 2), ("all", 4), (2, 2), ("3", 3)])
def test_a_level_is_reached_with_so_many_members_besides_the_writer(level, needed):
    net = Net(5)
    _, receipt = make(net, acks=level, a=1)
    assert (receipt.needs_wait, receipt.satisfied) == (True, False)
    net.channels[net.members[0].uid].woken.pop()()
    for count in range(1, needed + 1):
        assert receipt.needs_wait
        while len(receipt.confirmed) < count:
            net.step()
    assert not receipt.needs_wait
    assert receipt.satisfied
    net.deliver()
    assert sorted(receipt.confirmed) == ["node2", "node3", "node4", "node5"]
    assert receipt.unconfirmed == ()
    assert receipt.wait() is receipt


def test_without_acknowledgement_there_is_nothing_to_wait_for():
    net = Net(2)
    _, receipt = make(net, acks="none", a=1)
    assert (receipt.needs_wait, receipt.satisfied, receipt.confirmed) == (False, True, ())


def test_the_managers_level_is_the_default_and_a_commit_may_override_it():
    net = Net(2, ManagerSettings(acks="all"))
    session_id, receipt = make(net, a=1)
    assert receipt.needs_wait
    assert not write(net, 0, session_id, "none", b=1).needs_wait


def test_a_level_that_cannot_be_reached_returns_at_once():
    net = Net(2)
    _, receipt = make(net, acks=2, a=1)
    assert (receipt.needs_wait, receipt.satisfied) == (False, False)
    net.deliver()
    assert receipt.unconfirmed == () or receipt.confirmed == ()


def test_a_level_that_makes_no_sense_is_refused():
    net = Net(1)
    with pytest.raises(LocalError, match="acks = 'most'"):
        make(net, acks="most", a=1)


def test_strict_acks_raise_naming_who_is_missing():
    net = Net(2, ManagerSettings(strict_acks=True))
    net.part(0, 1)
    _, receipt = make(net, acks="one", a=1)
    assert not receipt.needs_wait
    with pytest.raises(NotConfirmed, match="node2"):
        receipt.wait()
    failures = []
    receipt.deferred().addErrback(failures.append)
    assert failures[0].check(NotConfirmed)


def test_a_member_that_misses_the_time_is_degraded_and_waited_for_once():
    net = Net(3)
    frozen = net.members[2].uid
    session_id, receipt = make(net, acks="all", a=1)
    net.freeze(2)
    net.advance(0.7)
    assert receipt.needs_wait
    net.advance(0.2)
    assert not receipt.needs_wait
    assert (receipt.satisfied, receipt.confirmed, receipt.unconfirmed) == (False, ("node2",), ("node3",))
    assert net.channels[net.members[0].uid].is_degraded(frozen)
    assert not write(net, 0, session_id, "all", b=1).needs_wait
    assert write(net, 0, session_id, "one", c=1).needs_wait
    net.thaw(2)
    net.deliver()
    assert not net.channels[net.members[0].uid].is_degraded(frozen)
    assert write(net, 0, session_id, "all", d=1).needs_wait


def test_only_members_in_sync_count():
    net = Net(2)
    net.part(0, 1)
    session_id, _ = make(net, a=1)
    net.heal(0, 1)
    receipt = write(net, 0, session_id, "one", b=1)
    assert (receipt.needs_wait, receipt.satisfied) == (False, False)
    net.deliver()
    assert write(net, 0, session_id, "one", c=1).needs_wait


def test_a_member_whose_link_is_lost_is_waited_for_no_longer():
    net = Net(3)
    _, receipt = make(net, acks="all", a=1)
    net.channels[net.members[0].uid].woken.pop()()
    net.part(0, 1)
    assert not receipt.needs_wait
    assert not receipt.satisfied


def test_the_end_of_a_session_is_awaited_from_all_that_can_answer():
    net = Net(3)
    session_id, _ = make(net, a=1)
    net.deliver()
    net.part(0, 2)
    receipt = end(net, 0, session_id)
    assert receipt.needs_wait
    net.deliver()
    assert (receipt.satisfied, receipt.confirmed, receipt.unconfirmed) == (True, ("node2",), ("node3",))


def test_a_deferred_fires_when_the_receipt_is_final():
    net = Net(2)
    _, receipt = make(net, acks="one", a=1)
    fired = []
    receipt.deferred().addCallback(fired.append)
    assert fired == []
    net.deliver()
    assert fired == [receipt]


def test_stopping_ends_every_wait():
    net = Net(2)
    _, receipt = make(net, acks="one", a=1)
    asked = ask(net, 0, "x" * 43) if net.managers[0].open_local("x" * 43) is None else None
    net.managers[0].stop()
    assert not receipt.needs_wait
    assert asked is None or asked


def test_more_sessions_than_allowed_are_refused_at_creation_and_never_by_a_merge():
    net = Net(2, ManagerSettings(sessions_max=1))
    make(net, 0, a=1)
    make(net, 1, a=1)
    with pytest.raises(SessionError, match="sessions_max"):
        make(net, 0, a=1)
    net.deliver()
    assert [manager.count for manager in net.managers] == [2, 2]


def test_a_commit_to_a_session_that_has_ended_meanwhile_is_dropped_and_counted():
    net = Net(2)
    session_id, _ = make(net, a=1)
    net.deliver()
    late = net.managers[1].open_local(session_id)
    end(net, 0, session_id)
    net.deliver()
    late["b"] = 1
    net.managers[1].commit(late)
    net.deliver()
    assert net.managers[1].statistics()["commits_dropped"] == 1
    assert [s.id for s in net.everywhere(session_id)] == [None, None]


# -- look-ups


def test_a_joiner_asks_the_keepers_for_what_it_does_not_have_yet():
    net = Net(3)
    session_id, _ = make(net, a=1)
    net.deliver()
    joiner = net.join()
    assert net.managers[joiner].open_local(session_id) is None
    found = ask(net, joiner, session_id)
    net.deliver()
    assert dict(found[0]) == {"a": 1}
    assert net.managers[joiner].open_local("x" * 43).new  # in sync by now: what is not here is not


def test_two_requests_that_miss_the_same_session_ask_once():
    net = Net(3)
    session_id, _ = make(net, a=1)
    net.deliver()
    joiner = net.join()
    before = len(net.sent(LOOKUP))
    first, second = ask(net, joiner, session_id), ask(net, joiner, session_id)
    assert len(net.sent(LOOKUP)) - before <= 2
    net.deliver()
    assert dict(first[0]) == dict(second[0]) == {"a": 1}
    assert first[0] is not second[0]


def test_after_an_unannounced_loss_an_absent_session_is_unknown_for_a_while_and_then_gone():
    net = Net(3, ManagerSettings(unknown_for_s=30))
    lost, _ = make(net, 2, a=1)
    net.kill(2)
    net.deliver()
    assert net.managers[0].open_local(lost) is None
    answer = ask(net, 0, lost)
    net.deliver()
    assert answer[0].unknown
    with pytest.raises(SessionUnknown):
        answer[0]["a"] = 1
    assert net.managers[0].open_local(lost).unknown  # stands for a second: nobody is asked again
    net.advance(1.1)
    assert net.managers[0].open_local(lost) is None
    net.advance(30)
    session = net.managers[0].open_local(lost)
    assert session.new
    assert not session.unknown


def test_unknown_does_not_stand_once_somebody_has_come_who_may_know():
    """Simulator, backup, seed 3040: a node that had met one other only said unknown for the rest of a second after it had met all."""
    net = Net(3, ManagerSettings(unknown_for_s=30))
    lost, _ = make(net, 2, a=1)
    net.kill(2)
    net.deliver()
    answer = ask(net, 0, lost)
    net.deliver()
    assert answer[0].unknown
    assert net.managers[0].open_local(lost).unknown
    net.join()
    assert net.managers[0].open_local(lost) is None


def test_a_use_is_told_at_once_where_others_would_take_the_session_for_over_before_they_heard_of_it():
    """Simulator, partitioned, seed 3026: it was used on one node just before its time was over, and a moment later another called it gone."""
    net = Net(3, ManagerSettings(idle_timeout_s=30, absolute_timeout_s=0, save_period_s=60))
    session_id, _ = make(net, 0, a=1)
    for pause_s, told in ((20.0, False), (29.0, True), (29.0, True), (1.0, False)):
        net.advance(pause_s, step_s=0.25)
        before = len(net.sent(TOUCHES))
        session = net.managers[1].open_local(session_id)
        assert session["a"] == 1
        net.managers[1].commit(session)
        net.managers[1].release(session)
        net.deliver()
        assert (len(net.sent(TOUCHES)) > before) is told
    net.advance(1.5, step_s=0.25)
    assert net.managers[2].open_local(session_id)["a"] == 1


def test_a_farewell_casts_no_doubt_and_loses_nothing():
    net = Net(3)
    session_id, _ = make(net, 2, a=1)
    net.leave(2)
    assert [dict(s) for s in net.everywhere(session_id)] == [{"a": 1}] * 2
    assert net.managers[0].open_local("x" * 43).new


def test_a_cookie_that_is_no_id_is_a_new_session():
    net = Net(2)
    for nonsense in (None, "", "x", "x" * 44, "ü" * 43, "x" * 42 + "\n", "../" * 14 + "x"):
        assert net.managers[0].open_local(nonsense).new


def test_nobody_answers_and_the_look_up_ends_by_itself():
    net = Net(2)
    net.managers[0].slept(5)
    net.alive.discard(net.members[1].uid)
    answer = ask(net, 0, "x" * 43)
    net.advance(0.4)
    assert answer == []
    net.advance(0.2)
    assert answer[0].unknown
    assert net.managers[0].statistics()["lookup_timeouts"] == 1


def test_a_thread_may_wait_for_the_keepers():
    net = Net(3)
    session_id, _ = make(net, a=1)
    net.deliver()
    joiner = net.join()
    result = []
    thread = Thread(target=lambda: result.append(net.managers[joiner].open(session_id)))
    thread.start()
    while thread.is_alive():
        net.deliver()
        thread.join(0.001)
    assert dict(result[0]) == {"a": 1}


# -- taking over


def test_the_next_writer_takes_over_from_a_lost_primary():
    net = Net(3)
    session_id, _ = make(net, a=1)
    net.deliver()
    net.kill(0)
    net.deliver()
    write(net, 1, session_id, b=2)
    net.deliver()
    assert [dict(s) for s in net.everywhere(session_id)] == [{"a": 1, "b": 2}] * 2
    key = key_of(session_id)
    assert [manager._core.replica.get(key).head.primary for manager in net.managers[1:]] == [net.members[1].uid] * 2
    assert net.managers[1].summaries()[0]["primary"] == "node2"
    assert equal(net)


def test_two_take_overs_at_once_agree_and_lose_nothing():
    for seed in range(5):
        net = Net(3, seed=seed, overtaking=True)
        session_id, _ = make(net, a=1)
        net.deliver()
        net.kill(0)
        write(net, 1, session_id, b=2)
        write(net, 2, session_id, c=3)
        net.deliver()
        assert [dict(s) for s in net.everywhere(session_id)] == [{"a": 1, "b": 2, "c": 3}] * 2
        assert equal(net)


# -- expiry


def test_a_session_nobody_uses_ends_everywhere_after_one_question():
    net = Net(3, SHORT)
    session_id, _ = make(net, a=1)
    net.advance(19)
    assert [manager.count for manager in net.managers] == [1, 1, 1]
    net.advance(5)
    assert [manager.count for manager in net.managers] == [0, 0, 0]
    assert [s.id for s in net.everywhere(session_id)] == [None] * 3
    assert sum(manager.statistics()["expired"] for manager in net.managers) == 1
    assert len(net.sent(ASK)) == 2
    assert equal(net)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_reads_on_any_member_keep_a_session_alive(number):
    net = Net(3, SHORT)
    session_id, _ = make(net, a=1)
    net.deliver()
    for _ in range(5):
        net.advance(15)
        assert read(net, number, session_id) == {"a": 1}
    assert [manager.count for manager in net.managers] == [1, 1, 1]
    net.advance(25)
    assert [manager.count for manager in net.managers] == [0, 0, 0]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_open_request_anywhere_keeps_a_session_alive(number):
    net = Net(3, SHORT)
    session_id, _ = make(net, a=1)
    net.deliver()
    session = net.managers[number].open_local(session_id)
    net.advance(60)
    assert net.managers[number].count == 1
    session["b"] = 1
    net.managers[number].commit(session)
    net.managers[number].release(session)
    net.managers[number].release(session)
    net.deliver()
    assert [dict(s) for s in net.everywhere(session_id)] == [{"a": 1, "b": 1}] * 3


def test_an_absolute_limit_ends_a_session_that_is_used():
    net = Net(2, ManagerSettings(idle_timeout_s=20, absolute_timeout_s=60))
    session_id, _ = make(net, a=1)
    for _ in range(5):
        net.advance(10)
        read(net, 1, session_id)
    assert net.managers[0].count == 1
    net.advance(13)
    assert [manager.count for manager in net.managers] == [0, 0]


def test_limits_of_zero_are_none():
    net = Net(2, ManagerSettings(idle_timeout_s=0, absolute_timeout_s=0))
    session_id, _ = make(net, a=1)
    net.advance(100)
    net.clock.rightNow += 10**6
    net.advance(5)
    assert [manager.count for manager in net.managers] == [1, 1]
    assert session_id


def test_activity_that_an_expiry_had_not_seen_revives_the_session_and_is_counted():
    net = Net(3, SHORT)
    session_id, _ = make(net, a=1)
    net.deliver()
    key = key_of(session_id)
    write(net, 1, session_id, b=2)  # under way
    keeper = net.managers[2]
    head = keeper._core.replica.end(key, 1, net.channels[keeper.me.uid].now_ms())
    keeper._committing.outbox.put_head(keeper._core.placement.heads(key, head.primary), key, head)
    keeper._channel.wake(keeper._committing.flush)
    net.deliver()
    net.advance(1)
    assert [dict(s) for s in net.everywhere(session_id)] == [{"a": 1, "b": 2}] * 3
    assert sum(manager.statistics()["revivals"] for manager in net.managers) >= 1
    assert equal(net)


def test_tombstones_are_forgotten_after_their_retention():
    net = Net(2, ManagerSettings(retention_s=60))
    session_id, _ = make(net, a=1)
    net.deliver()
    end(net, 0, session_id)
    net.advance(50)
    assert [manager.statistics()["tombstones"] for manager in net.managers] == [1, 1]
    net.advance(15)
    assert [manager.statistics()["tombstones"] for manager in net.managers] == [0, 0]


def test_clocks_that_are_days_apart_change_nothing():
    net = Net(2, SHORT)
    net.skew_ms[net.members[1].uid] = 86_400_000 * 3
    session_id, _ = make(net, a=1)
    net.advance(15)
    read(net, 1, session_id)
    net.advance(15)
    assert [manager.count for manager in net.managers] == [1, 1]
    net.advance(10)
    assert [manager.count for manager in net.managers] == [0, 0]


def test_a_lost_keeper_is_replaced_by_the_next():
    net = Net(3, SHORT)
    for n in range(30):
        make(net, n % 3, n=n)
    net.advance(10)
    net.kill(0)
    net.advance(20)
    assert [manager.count for manager in net.managers[1:]] == [0, 0]


# -- touches


def test_reads_are_told_once_a_period_at_its_end():
    net = Net(2, ManagerSettings(save_period_s=60))
    session_id, _ = make(net, a=1)
    net.advance(1)
    for _ in range(50):
        read(net, 0, session_id)
        net.advance(1)
    assert net.sent(TOUCHES) == []
    net.advance(15)
    assert len(net.sent(TOUCHES)) == 1
    (told,) = net.sent(TOUCHES)[0][2]
    assert told[0] == key_of(session_id)
    last = net.managers[1].summaries()[0]["idle_s"]
    assert 14 <= last <= 17


def test_a_write_tells_the_access_itself():
    net = Net(2, ManagerSettings(save_period_s=5))
    session_id, _ = make(net, a=1)
    net.advance(1)
    read(net, 0, session_id)
    write(net, 0, session_id, b=1)
    net.advance(10)
    assert net.sent(TOUCHES) == []


# -- memory


def test_an_idle_session_is_packed_and_comes_back_when_it_is_used():
    net = Net(2, ManagerSettings(pack_after_s=2))
    session_id, _ = make(net, a=[1, 2])
    net.advance(7)
    entries = [manager._core.replica.get(key_of(session_id)) for manager in net.managers]
    assert [type(entry.body) for entry in entries] == [bytes, bytes]
    write(net, 1, session_id, b=1)
    net.deliver()
    assert [dict(s) for s in net.everywhere(session_id)] == [{"a": [1, 2], "b": 1}] * 2
    assert equal(net)


def test_removed_names_are_pruned_by_the_primary_and_stay_removed():
    net = Net(2)
    session_id, _ = make(net, a=1)
    for n in range(100):
        write(net, 0, session_id, **{f"n{n}": n})
        session = net.managers[0].open_local(session_id)
        del session[f"n{n}"]
        net.managers[0].commit(session)
        net.managers[0].release(session)
    net.deliver()
    record = net.managers[1]._core.replica.record(key_of(session_id), net.managers[1]._core.replica.get(key_of(session_id)))
    assert len(record.registers) < 70
    assert [dict(s) for s in net.everywhere(session_id)] == [{"a": 1}] * 2
    assert equal(net)


# -- the outbox


@pytest.mark.parametrize("waits", ["commit", "logout", "end"])
def test_who_waits_for_confirmations_wakes_the_reactor_though_others_that_do_not_were_before(waits):
    net = Net(2)
    manager, channel = net.managers[0], net.channels[net.members[0].uid]
    session_id, _ = make(net, a=1)
    channel.woken.pop()()
    channel.lazily.clear()
    write(net, 0, session_id, "none", n=1)
    write(net, 0, session_id, "none", n=2)
    assert channel.lazily == [True], "once, when there is time"
    session = manager.open_local(session_id)
    if waits == "end":
        receipt = manager.end(session.key)
    else:
        session.invalidate() if waits == "logout" else session.update(n=3)
        receipt = manager.commit(session, "all")
    assert receipt.needs_wait
    assert channel.lazily == [True, False], "at once"
    write(net, 0, make(net, a=1)[0], "all", n=4)
    assert channel.lazily == [True, False], "it is on its way"


def test_commits_made_before_a_flush_travel_together():
    net = Net(2)
    session_id, _ = make(net, a=1)
    for n in range(20):
        write(net, 0, session_id, n=n)
    batches = net.channels[net.members[0].uid].sent
    before = len(batches)
    net.channels[net.members[0].uid].woken.pop()()
    assert net.channels[net.members[0].uid].woken == []
    deltas = [message for _, message in batches[before:] if message[1] == 1]
    assert [len(message[3]) for message in deltas] == [21]


def test_over_its_bound_the_outbox_keeps_keys_and_the_current_state_travels_and_is_confirmed():
    net = Net(2)
    session_id, _ = make(net, a=1)
    net.deliver()
    for n in range(_BACKLOG_MAX_BYTES // 500_000 + 2):
        write(net, 0, session_id, v=[n, "x" * 500_000])
    receipt = write(net, 0, session_id, "one", last=1)
    moved = records_moved(net)
    net.deliver()
    assert records_moved(net) == moved + 1
    assert receipt.confirmed == ("node2",)
    assert net.managers[1].open_local(session_id)["last"] == 1
    assert equal(net)


def test_a_refill_gives_current_states_and_passes_the_waiters_on():
    net = Net(2)
    session_id, _ = make(net, a=1)
    net.deliver()

    class Ear:
        failed_by = ()

        def confirmed(self, uid): ...

        def failed(self, uid):
            self.failed_by = (*self.failed_by, uid)

    ear = Ear()
    messages = list(net.managers[0].refill(net.members[1], [key_of(session_id)], [ear]))
    assert list(messages[-1].waiters) == [ear]
    assert messages[0].keys == [key_of(session_id)]
    assert list(net.managers[0].refill(net.members[1], [b"?" * 16], [ear])) == []
    assert ear.failed_by == (net.members[1].uid,)


# -- reconciling


def test_a_joiner_with_several_donors_gets_each_record_about_once():
    net = Net(3)
    for n in range(5000):
        make(net, n % 3, n=n, v="x" * 20)
    net.deliver()
    before = records_moved(net)
    joiner = net.join()
    net.deliver()
    moved = records_moved(net) - before
    assert net.managers[joiner].count == 5000
    assert equal(net)
    assert all(manager.in_sync for manager in net.managers)
    assert 5000 <= moved <= 5000 * 1.5


def test_a_member_back_after_a_cut_moves_only_what_differs():
    net = Net(3)
    ids = [make(net, n % 3, n=n)[0] for n in range(600)]
    net.deliver()
    net.part(0, 2)
    net.part(1, 2)
    for session_id in ids[:7]:
        write(net, 0, session_id, changed=1)
    end(net, 1, ids[8])
    make(net, 2, fresh=1)
    net.deliver()
    before = records_moved(net)
    net.heal(0, 2)
    net.heal(1, 2)
    net.deliver()
    assert equal(net)
    assert all(manager.in_sync for manager in net.managers)
    assert records_moved(net) - before <= 4 * 9


def test_a_session_larger_than_a_range_is_moved_too():
    net = Net(2)
    big, _ = make(net, v="x" * 900_000)
    for n in range(20):
        make(net, n=n, v="y" * 60_000)
    net.deliver()
    net.join()
    net.deliver()
    assert equal(net)
    assert len(net.managers[2].open_local(big)["v"]) == 900_000
    assert len(net.sent(INVENTORY)) >= 2


def test_a_link_that_resumes_compares_nothing():
    net = Net(2)
    make(net, a=1)
    net.deliver()
    before = len(net.sent(INVENTORY))
    for one, other in ((0, 1), (1, 0)):
        net.managers[one].link_lost(net.members[other])
        net.managers[one].link_opened(net.members[other], True)
    net.deliver()
    assert len(net.sent(INVENTORY)) == before
    assert all(manager.in_sync for manager in net.managers)


def test_what_was_ended_while_a_member_was_away_is_ended_there_when_it_is_back():
    net = Net(2)
    session_id, _ = make(net, a=1)
    net.deliver()
    net.part(0, 1)
    end(net, 0, session_id)
    net.heal(0, 1)
    net.deliver()
    assert [s.id for s in net.everywhere(session_id)] == [None, None]


# -- listeners


def test_creation_is_told_where_it_happened_and_on_replicas_when_asked():
    net = Net(2)
    here, there, replicas = [], [], []
    net.managers[0].listen(SessionCreated, here.append)
    net.managers[1].listen(SessionCreated, there.append)
    net.managers[1].listen(SessionCreated, replicas.append, replicas=True)
    session_id, _ = make(net, a=1)
    net.deliver()
    assert here == replicas == [SessionCreated(key_of(session_id))]
    assert there == []


def test_the_end_is_told_once_by_the_primary_with_the_final_contents():
    net = Net(3)
    told = [[], [], []]
    for manager, events in zip(net.managers, told, strict=True):
        manager.listen(SessionDestroyed, events.append)
    session = net.managers[0].open_local(None)
    session["a"] = 1
    session.principal = "ann"
    net.managers[0].commit(session)
    net.deliver()
    end(net, 2, session.id)
    net.deliver()
    assert [len(events) for events in told] == [1, 0, 0]
    event = told[0][0]
    assert (event.reason, dict(event.attributes), event.principal) == ("invalidated", {"a": 1}, "ann")


def test_without_its_primary_the_member_that_ended_it_tells_and_the_event_has_one_id_everywhere():
    net = Net(3)
    told, replicas = [], []
    net.managers[1].listen(SessionDestroyed, told.append)
    net.managers[2].listen(SessionDestroyed, replicas.append, replicas=True)
    session_id, _ = make(net, a=1)
    net.deliver()
    net.kill(0)
    end(net, 1, session_id)
    net.deliver()
    assert len(told) == len(replicas) == 1
    assert told[0].event_id == replicas[0].event_id


def test_an_expiry_is_told_without_waiting_for_anything_else():
    net = Net(1, SHORT)
    told = []
    net.managers[0].listen(SessionDestroyed, told.append)
    make(net, a=1)
    net.advance(23)
    assert [event.reason for event in told] == ["expired"]


def test_changes_of_attributes_are_told_by_name():
    net = Net(1)
    told = []
    net.managers[0].listen(AttributeChanged, told.append)
    session_id, _ = make(net, a=1)
    session = net.managers[0].open_local(session_id)
    del session["a"]
    session.principal = "ann"
    net.managers[0].commit(session)
    net.deliver()
    assert [(event.name, event.removed) for event in told] == [("a", False), ("a", True)]


def test_a_listener_that_raises_is_counted_and_keeps_nothing_from_the_next():
    from twisted.logger import globalLogPublisher

    net = Net(1)
    told, logged = [], []
    globalLogPublisher.addObserver(logged.append)
    try:
        net.managers[0].listen(SessionCreated, lambda event: 1 / 0)
        net.managers[0].listen(SessionCreated, told.append)
        make(net, a=1)
        net.deliver()
    finally:
        globalLogPublisher.removeObserver(logged.append)
    assert len(told) == 1
    assert net.managers[0].statistics()["listener_errors"] == 1
    assert any("log_failure" in event for event in logged)


# -- threads


def test_eight_threads_that_commit_to_shared_and_own_sessions_lose_nothing():
    net = Net(3)
    shared, _ = make(net, a=0)
    net.deliver()
    manager = net.managers[0]
    own = [None] * 8
    errors = []

    def work(number):
        try:
            mine = manager.open_local(None)
            mine["n"] = []
            manager.commit(mine)
            own[number] = mine.id
            for i in range(60):
                session = manager.open_local(shared)
                session[f"t{number}"] = i
                manager.commit(session)
                manager.release(session)
                session = manager.open_local(mine.id)
                session["n"].append(i)
                manager.commit(session, "one" if i % 20 == 0 else None)
                manager.release(session)
        except Exception as error:
            errors.append(error)

    threads = [Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        net.deliver()
    for thread in threads:
        thread.join()
    net.deliver()
    assert errors == []
    for session in net.everywhere(shared):
        assert dict(session) == {"a": 0, **{f"t{n}": 59 for n in range(8)}}
    for session_id in own:
        assert [session["n"] for session in net.everywhere(session_id)] == [list(range(60))] * 3
    assert equal(net)
    assert manager.statistics()["in_use"] == len(net.everywhere(shared)) // 3 * 9
    assert manager.statistics()["commits"] == 1 + 8 * 121


def test_what_a_member_says_that_runs_the_manager_in_another_way_is_ignored():
    """One of protocol 1 knows no other way than delta, and would tell its sessions to whoever has a manager of that name."""
    net = Net(2)
    other = replace(net.members[1], payload={"managers": [MANAGER], "kinds": {MANAGER: "backup/1"}})
    net.channels[other.uid].me = other
    session_id = net.visit(1, a=1)
    assert net.managers[0]._core.replica.get(key_of(session_id)) is None


def test_summaries_go_on_after_a_key_and_show_no_ids_or_values():
    net = Net(2)
    ids = [make(net, secret="s3cret")[0] for _ in range(5)]
    net.deliver()
    manager = net.managers[1]
    first = manager.summaries(limit=2)
    rest = manager.summaries(after=bytes.fromhex(first[-1]["key"]))
    assert [s["key"] for s in first + rest] == sorted(key_of(i).hex() for i in ids)
    assert first[0]["holders"] == ["node1", "node2"]
    text = repr(first + rest)
    assert "s3cret" not in text
    assert not any(i in text for i in ids)
    assert len(net.sent(HEADS)) == 0
