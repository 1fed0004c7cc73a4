"""What overtakes, what is cut, what comes twice: races between members that must not lose, resurrect or mix up a session."""

from __future__ import annotations

import pytest

from caterwaul.managers.changes import check_deltas
from caterwaul.managers.entry import Outcome
from caterwaul.managers.errors import SessionUnknown, ValueRefused
from caterwaul.managers.heads import EXPIRED, INVALIDATED, Head, head_to_wire, live_head
from caterwaul.managers.listeners import SessionDestroyed
from caterwaul.managers.messages import ANSWER, FOUND, OFFER, RECORDS, SYNCED, Inventory, Session
from caterwaul.managers.placement import partition_of
from caterwaul.managers.record import Record
from caterwaul.managers.replica import Replica
from caterwaul.managers.session import key_of
from caterwaul.managers.settings import ManagerSettings
from caterwaul.membership.channel import CONTROL, DATA, Message
from caterwaul.membership.codec import encode
from caterwaul.membership.errors import RemoteError
from caterwaul.membership.view import View
from tests.doubles import Net

SHORT = ManagerSettings(idle_timeout_s=20, absolute_timeout_s=0)


def make(net, number=0, acks=None, **attributes):
    """A session committed by this member. Returns (id, receipt)."""
    session = net.managers[number].open_local(None)
    session.update(attributes)
    return session.id, net.managers[number].commit(session, acks)


def write(net, number, session_id, acks=None, **attributes):
    session = net.managers[number].open_local(session_id)
    session.update(attributes)
    receipt = net.managers[number].commit(session, acks)
    net.managers[number].release(session)
    return receipt


def equal(net):
    first, *rest = net.bodies()
    return all(other == first for other in rest)


def invalidate(net, number, session_id):
    session = net.managers[number].open_local(session_id)
    session.invalidate()
    receipt = net.managers[number].commit(session)
    net.managers[number].release(session)
    return receipt


# -- links that are down


def test_while_a_link_is_down_an_absent_session_is_not_called_gone():
    """Between the cut and the verdict on the member its sessions may exist there: a new one in their place would lose them."""
    net = Net(2)
    net.part(0, 1)
    session_id, _ = make(net, 1, a=1)
    net.deliver()
    result = []
    assert net.managers[0].open_local(session_id) is None
    net.managers[0].open_deferred(session_id).addCallback(result.append)
    assert result[0].unknown  # at once: the one who could know does not answer
    net.heal(0, 1)
    net.deliver()
    net.advance(1)
    assert dict(net.managers[0].open_local(session_id)) == {"a": 1}


def test_while_a_link_is_down_another_keeper_that_has_the_session_answers():
    net = Net(3)
    net.part(0, 1)
    session_id, _ = make(net, 1, a=1)
    net.deliver()
    result = []
    net.managers[0].open_deferred(session_id).addCallback(result.append)
    net.deliver()
    assert dict(result[0]) == {"a": 1}


def test_a_link_that_resumes_casts_no_doubt():
    net = Net(2)
    net.managers[0].link_lost(net.members[1])
    assert net.managers[0].open_local("x" * 43) is None
    net.managers[0].link_opened(net.members[1], True)
    assert net.managers[0].open_local("x" * 43).new


def test_the_record_of_a_dead_member_that_one_survivor_reads_late_reaches_the_others():
    """node2 sees the loss of node1 and compares before node3 has read node1's last frame."""
    net = Net(3)
    net.deliver()
    session_id, _ = make(net, 0, a=1)
    channel = net.channels[net.members[0].uid]
    channel.woken.pop()()
    last = net.flights.pop((net.members[0].uid, net.members[2].uid))
    del net.flights[net.members[0].uid, net.members[1].uid]
    net.alive.discard(net.members[0].uid)
    net.show_view(1, net.view())
    net.deliver()
    for message, sent_ms in last:
        net.channels[net.members[2].uid].deliver(net.members[0], message, sent_ms)
    net.show_view(2, net.view())
    net.deliver()
    assert equal(net)
    assert dict(net.managers[1].open_local(session_id)) == {"a": 1}


def test_an_answer_that_found_a_session_without_its_record_here_makes_it_unknown_not_new():
    """The record may have been dropped by a full outbox; the answer has no key and never is."""
    net = Net(2)
    net.kill(1)
    two = net.members[1]
    net.alive.add(two.uid)
    net.show_view(0, net.view())
    missing = "x" * 43
    result = []
    net.managers[0].open_deferred(missing).addCallback(result.append)
    net.channels[net.members[0].uid].deliver(two, Message("default", DATA, encode(["default", ANSWER, key_of(missing), FOUND])), net.channels[two.uid].now_ms())
    assert result[0].unknown


def test_an_old_unknown_does_not_shorten_the_next_one():
    net = Net(2)
    one = net.managers[0]
    key = key_of("x" * 43)
    with one._lock:
        one._opening._unknown[key] = (one._channel.now_ms() - 3_600_000, one._channel.now_ms() - 3_599_000, one._core.placement)
    net.kill(1)
    result = []
    one.open_deferred("x" * 43).addCallback(result.append)
    net.advance(1)
    assert result[0].unknown


def test_a_session_served_again_was_not_unknown_all_the_time():
    net = Net(2)
    session_id, _ = make(net, 0, a=1)
    net.deliver()
    one = net.managers[0]
    one._opening._unknown[key_of(session_id)] = (one._channel.now_ms(), one._channel.now_ms(), one._core.placement)
    assert dict(one.open_local(session_id)) == {"a": 1}
    assert not one._opening._unknown


# -- sleeping, rounds


def test_a_synced_of_a_round_from_before_the_sleep_does_not_count():
    net = Net(2)
    two = net.managers[1]
    net.deliver()
    two.slept(5.0)
    assert not two.in_sync
    net.channels[two.me.uid].deliver(net.members[0], Message("default", DATA, encode(["default", SYNCED, 1])), net.channels[net.members[0].uid].now_ms())
    assert not two.in_sync
    net.deliver()
    assert two.in_sync


def test_a_process_that_slept_asks_before_it_serves_even_after_its_first_tick():
    net = Net(3)
    session_id, _ = make(net, 0, a=1)
    net.deliver()
    frozen = net.managers[2]
    for channel in net.channels.values():
        channel.woken.clear()
    net.clock.rightNow += 10  # no tick anywhere
    frozen._driver._tick()
    assert frozen.open_local(session_id) is None
    net.deliver()
    assert dict(frozen.open_local(session_id)) == {"a": 1}


def test_a_process_that_slept_does_not_call_gone_what_was_made_meanwhile_even_before_its_first_tick():
    net = Net(2)
    frozen = net.managers[1]
    net.clock.rightNow += 10  # no tick anywhere
    session_id, _ = make(net, 0, a=1)
    assert frozen.open_local(session_id) is None
    frozen._driver._tick()
    net.deliver()
    assert dict(frozen.open_local(session_id)) == {"a": 1}


def test_what_only_a_partial_copy_has_reaches_the_others_when_it_becomes_whole():
    """node1 creates, node2 writes on it and is confirmed by node3, which has not heard of the creation; then node2 is gone."""
    net = Net(3)
    net.part(0, 2)
    session_id, _ = make(net, 0, a=1)
    net.channels[net.members[0].uid].woken.pop()()
    net.deliver()
    key = key_of(session_id)
    net.part(0, 1)
    receipt = write(net, 1, session_id, acks="one", b=2)
    net.channels[net.members[1].uid].woken.pop()()
    message, sent_ms = net.flights.pop((net.members[1].uid, net.members[2].uid)).popleft()
    net.channels[net.members[2].uid].deliver(net.members[1], message, sent_ms)
    for waiter in message.waiters:
        waiter.confirmed(net.members[2].uid)
    assert receipt.satisfied
    assert net.managers[2]._core.replica.get(key).body.partial
    net.flights.clear()
    net.alive.discard(net.members[1].uid)
    net.heal(0, 2)
    net.show_views()
    net.deliver()
    assert equal(net)
    assert dict(net.managers[0].open_local(session_id)) == {"a": 1, "b": 2}


def test_a_session_that_ended_elsewhere_leaves_nothing_to_its_change_of_id():
    net = Net(2)
    session_id, _ = make(net, 0, a=1)
    net.deliver()
    session = net.managers[0].open_local(session_id)
    session.cycle_id()
    invalidate(net, 1, session_id)
    net.deliver()
    assert not net.managers[0].commit(session).satisfied
    assert dict(session) == {}
    session["b"] = 2
    assert net.managers[0].commit(session).satisfied
    assert dict(net.managers[0].open_local(session.id)) == {"b": 2}


def test_a_joiner_whose_link_and_view_come_together_gets_each_record_about_once():
    net = Net(3)
    for n in range(60):
        make(net, n % 3, v="x" * 200, n=n)
    net.deliver()
    before = len([1 for message in net.sent(RECORDS) for _ in message[2]])
    net.join()
    net.deliver()
    moved = len([1 for message in net.sent(RECORDS) for _ in message[2]]) - before
    assert equal(net)
    assert net.managers[3].in_sync
    assert 60 <= moved <= 3 * 60  # here all fit one range: each of three leaders finds them missing at once


def test_an_offer_while_nothing_of_the_round_has_come_back_does_not_begin_it_anew():
    net = Net(2)
    one, two = net.managers
    started = one.statistics()["reconcile_rounds"]
    one.link_opened(net.members[1], False)
    two.link_opened(net.members[0], False)
    net.deliver()
    assert one.in_sync
    assert two.in_sync
    assert one.statistics()["reconcile_rounds"] == started + 1


def test_an_offer_in_the_middle_of_a_round_begins_it_anew_and_the_old_round_is_ignored():
    net = Net(2)
    for n in range(1200):
        make(net, 0, n=n)
    net.part(0, 1)
    net.deliver()
    net.heal(0, 1)
    one, two = net.managers
    for _ in range(6):
        net.step()
    assert two.count < 1200
    net.channels[one.me.uid].deliver(net.members[1], Message("default", DATA, encode(["default", OFFER])), net.channels[two.me.uid].now_ms())
    net.deliver()
    assert equal(net)
    assert two.count == 1200
    assert one.in_sync
    assert two.in_sync


def test_a_peer_that_leaves_in_the_middle_of_its_round_leaves_the_others_in_sync():
    net = Net(3)
    for n in range(1200):
        make(net, 0, n=n)
    net.deliver()
    joiner = net.join()
    for _ in range(9):
        net.step()
    assert net.managers[joiner].count > 0
    net.kill(1)
    net.deliver()
    assert equal(net)
    assert all(net.managers[n].in_sync for n in (0, 2, joiner))


def test_a_joiner_that_is_asked_while_empty_is_not_sure():
    """A member cut off from the others asks the joiner; the joiner has nothing yet, which proves nothing."""
    net = Net(2)
    session_id, _ = make(net, 0, a=1)
    net.deliver()
    joiner = net.join()
    result = []
    key = key_of(session_id)
    core = net.managers[joiner]._core
    assert core.receive(net.channels[core.me].now_ms(), net.members[1].uid, ["default", 10, key], 0)[-1].message.payload[-1] != 2  # not ABSENT
    net.managers[joiner].open_deferred(session_id).addCallback(result.append)
    net.deliver()
    assert dict(result[0]) == {"a": 1}


# -- id changes


def test_the_receipt_of_an_id_change_counts_members_that_have_the_contents_under_the_new_id():
    """A tombstone confirmed alone would lose the session with the writer."""
    net = Net(2)
    session_id, _ = make(net, 0, a=1)
    net.deliver()
    session = net.managers[0].open_local(session_id)
    session.cycle_id()
    receipt = net.managers[0].commit(session, "one")
    channel, link = net.channels[net.members[0].uid], (net.members[0].uid, net.members[1].uid)
    channel.woken.pop()()
    control = [item for item in net.flights[link] if item[0].lane == CONTROL]
    for item in control:  # the control lane comes through, the data lane does not
        net.flights[link].remove(item)
        net.channels[link[1]].deliver(net.members[0], *item)
        for waiter in item[0].waiters:
            waiter.confirmed(link[1])
    assert control
    assert receipt.needs_wait
    net.deliver()
    assert receipt.confirmed == ("node2",)
    assert dict(net.managers[1].open_local(session.id)) == {"a": 1}


def test_an_id_changes_although_no_more_sessions_may_be_created():
    net = Net(2, ManagerSettings(sessions_max=1))
    session_id, _ = make(net, 0, a=1)
    net.deliver()
    one = net.managers[0]
    session = one.open_local(session_id)
    one._core.replica.live += 1  # what a merge, which never refuses, has brought
    session.cycle_id()
    one.commit(session)
    one._core.replica.live -= 1
    assert dict(one.open_local(session.id)) == {"a": 1}


def test_an_empty_session_may_change_its_id_and_be_written_afterwards():
    net = Net(2)
    session_id, _ = make(net, 0, a=1)
    one = net.managers[0]
    session = one.open_local(session_id)
    del session["a"]
    session.cycle_id()
    one.commit(session)
    session["b"] = 2
    one.commit(session)
    net.deliver()
    assert [dict(s) for s in net.everywhere(session.id)] == [{"b": 2}] * 2
    assert [s.id for s in net.everywhere(session_id)] == [None, None]


def test_commits_elsewhere_beside_an_id_change_never_revive_the_old_id():
    net = Net(3, overtaking=True)
    session_id, _ = make(net, 0, a=1)
    net.deliver()
    changing, writing = net.managers[0].open_local(session_id), net.managers[1].open_local(session_id)
    changing.cycle_id()
    writing["late"] = 1
    net.managers[1].commit(writing)
    net.managers[0].commit(changing)
    net.deliver()
    assert [s.id for s in net.everywhere(session_id)] == [None] * 3
    assert equal(net)
    assert net.managers[0].statistics()["late_deltas_dropped"] + net.managers[2].statistics()["late_deltas_dropped"] >= 1


# -- ends and partitions


def test_an_invalidation_on_one_side_beats_any_number_of_writes_on_the_other():
    net = Net(3)
    session_id, _ = make(net, 0, a=1)
    net.deliver()
    net.part(0, 1)
    net.part(0, 2)
    for n in range(5):
        write(net, 1, session_id, n=n)
        net.deliver()
    invalidate(net, 0, session_id)
    net.deliver()
    net.heal(0, 1)
    net.heal(0, 2)
    net.deliver()
    assert [s.id for s in net.everywhere(session_id)] == [None] * 3
    assert equal(net)
    assert net.managers[0].statistics()["tombstones"] == 1


def test_a_write_on_the_other_side_revives_an_expired_session_everywhere_and_is_counted():
    net = Net(2, SHORT)
    session_id, _ = make(net, 0, a=1)
    net.deliver()
    net.advance(12)
    net.part(0, 1)
    for number in (0, 1):
        net.show_view(number, View.of(2, [net.members[number]]))
    write(net, 1, session_id, b=2)
    net.advance(12)
    assert net.managers[0].count == 0
    assert net.managers[1].count == 1
    net.heal(0, 1)
    net.show_views()
    net.deliver()
    assert [dict(s) for s in net.everywhere(session_id)] == [{"a": 1, "b": 2}] * 2
    assert equal(net)
    assert sum(manager.statistics()["revivals"] for manager in net.managers) >= 1


def test_a_read_on_the_other_side_revives_an_expired_session_too():
    net = Net(2, SHORT)
    session_id, _ = make(net, 0, a=1)
    net.deliver()
    net.advance(12)
    net.part(0, 1)
    for number in (0, 1):
        net.show_view(number, View.of(2, [net.members[number]]))
    session = net.managers[1].open_local(session_id)
    assert session["a"] == 1
    net.managers[1].commit(session)
    net.managers[1].release(session)
    net.advance(12)
    assert net.managers[0].count == 0
    net.heal(0, 1)
    net.show_views()
    net.deliver()
    assert [dict(s) for s in net.everywhere(session_id)] == [{"a": 1}] * 2
    assert equal(net)


def test_a_revived_session_that_ends_again_ends_with_another_event():
    net = Net(2, SHORT)
    told = []
    net.managers[0].listen(SessionDestroyed, told.append, replicas=True)
    session_id, _ = make(net, 0, a=1)
    net.deliver()
    net.advance(12)
    net.part(0, 1)
    for number in (0, 1):
        net.show_view(number, View.of(2, [net.members[number]]))
    write(net, 1, session_id, b=2)
    net.advance(12)
    assert len(told) == 1
    net.heal(0, 1)
    net.show_views()
    net.deliver()
    assert net.managers[0].count == 1
    net.advance(40)
    assert [manager.count for manager in net.managers] == [0, 0]
    assert len({event.event_id for event in told}) == 2


def test_a_member_never_uses_a_version_twice_after_an_expiry_took_its_record():
    """Its commits 2 and 3 were ended by an expiry that had seen them; the session comes back from one that had not."""
    me, other, key = b"m" * 16, b"o" * 16, b"k" * 16
    replica, outcome = Replica(me), Outcome()
    for n in range(3):
        replica.commit(key, {"a": bytes([n])}, 10 + n, 10, me)
    assert replica.end(key, EXPIRED, 50).cover.applied == {me: 3}
    elsewhere = Record()
    elsewhere.merge_delta(1, me, 0, {}, {"a": b"\0"})
    elsewhere.write(2, other, {"b": b"\1"})
    replica.merge_record(key, live_head(1, me, me), 10, (other, 60, 60), elsewhere.pack(), elsewhere, outcome)
    assert outcome.spreads == [key]
    _, counter, previous, _, created = replica.commit(key, {"a": b"\7"}, 70, 10, me)
    assert (counter, previous, created) == (4, 3, False)


def test_a_head_that_arrives_before_its_session_is_not_expired_for_being_old():
    net = Net(2, ManagerSettings(idle_timeout_s=0, absolute_timeout_s=100))
    core = net.managers[0]._core
    key = next(key for n in range(256) if core.placement.keepers(partition_of(key := bytes([n]) * 16))[0] == core.me)
    two = net.members[1]
    net.advance(300)
    wire = ["default", 4, [[key, head_to_wire(live_head(2, two.uid, two.uid))]]]
    net.channels[net.members[0].uid].deliver(two, Message("default", CONTROL, encode(wire)), net.channels[two.uid].now_ms())
    net.advance(3)
    entry = net.managers[0]._core.replica.get(key)
    assert entry.head.state == 0
    net.advance(120)  # and not kept for ever
    assert net.managers[0]._core.replica.get(key).head.state == EXPIRED


def test_a_creation_that_arrives_after_its_head_keeps_its_age():
    net = Net(2, ManagerSettings(idle_timeout_s=0, absolute_timeout_s=100))
    net.advance(300)
    session_id, _ = make(net, 1, a=1)
    key = key_of(session_id)
    two = net.members[1]
    wire = ["default", 4, [[key, head_to_wire(live_head(2, two.uid, two.uid))]]]
    net.channels[net.members[0].uid].deliver(two, Message("default", CONTROL, encode(wire)), net.channels[two.uid].now_ms())
    net.deliver()
    net.advance(50)
    assert dict(net.managers[0].open_local(session_id)) == {"a": 1}


def test_an_ended_head_brings_no_contents_along():
    net = Net(2)
    core = net.managers[0]._core
    record = Record()
    record.write(1, net.members[1].uid, {"a": b"\x01"})
    head = Head(INVALIDATED, 2, net.members[1].uid, net.members[1].uid, (), None, 5)
    message = core.say.records([Session(b"k" * 16, head, 0, (), record.pack())])
    net.channels[core.me].deliver(net.members[1], message, 0)
    assert core.replica.get(b"k" * 16).body is None


def test_the_head_of_an_end_overtakes_the_session_and_nothing_comes_back():
    for seed in range(20):
        net = Net(3, seed=seed, overtaking=True)
        session_id, _ = make(net, 0, a=1)
        write(net, 0, session_id, b=2)
        invalidate(net, 0, session_id)
        net.deliver()
        assert [s.id for s in net.everywhere(session_id)] == [None] * 3
        assert equal(net)


def test_a_take_over_overtakes_the_writes_it_follows():
    for seed in range(20):
        net = Net(4, seed=seed, overtaking=True)
        session_id, _ = make(net, 0, a=1)
        net.deliver()
        net.kill(0)
        write(net, 1, session_id, b=2)
        write(net, 2, session_id, c=3)
        net.deliver()
        assert [dict(s) for s in net.everywhere(session_id)] == [{"a": 1, "b": 2, "c": 3}] * 3
        assert equal(net)


# -- limits and times


def test_nested_growth_of_several_attributes_is_held_to_the_limit_of_the_session():
    net = Net(1, ManagerSettings(session_max_bytes=2000))
    session_id, _ = make(net, 0, a=["x"], b=["x"], c=["x"])
    one = net.managers[0]
    session = one.open_local(session_id)
    for name in "abc":
        session[name].append("y" * 900)
    with pytest.raises(ValueRefused, match="session_max_bytes"):
        one.commit(session)
    assert one.open_local(session_id)["c"] == ["x"]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_session_whose_own_limit_was_set_later_ends_on_time(number):
    net = Net(3)
    session_id, _ = make(net, 0, a=1)
    net.advance(1)
    session = net.managers[number].open_local(session_id)
    session.max_idle_s = 5
    net.managers[number].commit(session)
    net.managers[number].release(session)
    net.advance(30)
    assert [manager.count for manager in net.managers] == [0, 0, 0]


def test_a_session_alone_past_its_limit_is_gone_and_not_unknown():
    net = Net(1, SHORT)
    session_id, _ = make(net, 0, a=1)
    net.clock.rightNow += 20.01  # the calendar has not come to it yet
    net.managers[0]._core._ticked_ms = net.channels[net.members[0].uid].now_ms()
    result = []
    net.managers[0].open_deferred(session_id).addCallback(result.append)
    assert not result[0].unknown
    assert result[0].id is None


def test_touches_with_a_clock_below_nothing_are_refused():
    """An expiry that covered them could be told to nobody."""
    net = Net(2)
    core = net.managers[0]._core
    with pytest.raises(RemoteError):
        core.receive(0, net.members[1].uid, ["default", 3, [[b"k" * 16, -1]]], 0)
    with pytest.raises(RemoteError):
        core.receive(0, net.members[1].uid, ["default", 13, [[b"k" * 16, [b"u" * 16, -1, 5], False]]], 0)


def test_a_session_that_two_members_expire_at_once_ends_the_same_everywhere():
    for seed in range(10):
        net = Net(3, seed=seed)
        session_id, _ = make(net, 0, a=1)
        key = key_of(session_id)
        net.deliver()
        for manager in net.managers[:2]:
            head = manager._core.replica.end(key, EXPIRED, net.channels[manager.me.uid].now_ms())
            manager._committing.outbox.put_head(manager._core.placement.heads(key, head.primary), key, head)
            manager._channel.wake(manager._committing.flush)
        net.deliver()
        assert equal(net)
        assert [manager.count for manager in net.managers] == [0, 0, 0]


def test_writes_to_an_unknown_session_raise():
    net = Net(2)
    session_id, _ = make(net, 1, a=1)
    net.kill(1)
    result = []
    net.managers[0].open_deferred(session_id).addCallback(result.append)
    net.advance(1)
    with pytest.raises(SessionUnknown):
        result[0]["a"] = 2


def test_what_a_copy_could_not_pass_on_is_refused_when_it_comes():
    """A use before the beginning of its author's clock: taken here, it would cost us the links to all that we send the record to."""
    with pytest.raises(RemoteError):
        check_deltas([[b"k" * 16, 1, 0, {}, {"a": b"1"}, -5, 0]])


def test_a_flood_of_made_up_ids_while_nobody_can_say_no_is_bounded():
    net = Net(3)
    net.freeze(1)
    net.freeze(2)
    net.managers[0].slept(5.0)
    opened = []
    for number in range(5000):
        net.managers[0].open_deferred(f"{number:043}").addCallback(opened.append)
    assert len(opened) == 5000 - 4096
    assert all(session.unknown for session in opened)
    net.advance(1)
    assert len(opened) == 5000


def test_one_no_is_not_enough_for_a_member_that_is_not_sure_itself():
    """The other has just joined and has never seen a loss; what was lost with a third member it cannot know."""
    net = Net(2)
    core = net.managers[0]._core
    core._doubt_until_ms = net.channels[net.members[0].uid].now_ms() + 30_000
    found = []
    net.managers[0].open_deferred("x" * 43).addCallback(found.append)
    net.deliver()
    assert found[0].unknown
    core._doubt_until_ms = 0
    found.clear()
    net.advance(1.1)
    net.managers[0].open_deferred("x" * 43).addCallback(found.append)
    net.deliver()
    assert found[0].new
    assert not found[0].unknown


def test_commits_whose_session_went_with_those_who_had_it_are_given_to_all_when_nobody_can_have_more():
    """Found by Hypothesis: one member kept them for good, and the others had nothing."""
    net = Net(2)
    session_id, _ = make(net, 0, b=2)
    net.deliver()
    key = key_of(session_id)
    replica = net.managers[1]._core.replica
    record = replica.record(key, replica.get(key))
    record.partial = True  # as if only a commit had come
    net.kill(0)
    net.join()
    net.advance(10.0, 0.25)
    assert net.managers[2]._core.replica.get(key) is None
    net.advance(ManagerSettings.unknown_for_s, 0.5)
    assert dict(net.managers[1].open_local(session_id)) == dict(net.managers[2].open_local(session_id)) == {"b": 2}


def test_the_end_of_a_round_waits_for_the_records_that_a_full_outbox_has_dropped():
    """A newcomer took itself to be in sync, and called gone what was still to come (simulator, delta, seed 9)."""
    net = Net(2)
    session_id, _ = make(net, 0, a=1)
    core = net.managers[0]._core
    covered, synced = core.say.covered(7, 4096, [b"k" * 16]), core.say.synced(7)
    records = core.entropy.messages([key_of(session_id)])
    dropped = [key for message in (*records, covered, synced) for key in message.keys]
    assert [(message.payload, message.keys) for message in core.refill(dropped, ())] == [(m.payload, m.keys) for m in (*records, covered, synced)]


def test_the_end_of_a_round_that_comes_after_the_beginning_of_the_next_does_not_end_that():
    """The one waited behind records that a full outbox had dropped, the other did not (simulator, delta, seed 1)."""
    net = Net(2)
    low, high = sorted(net.managers, key=lambda manager: manager.me.uid)
    follower, leader = high._core.entropy, low.me.uid
    follower.forget(leader)
    for number in (11, 12):
        follower.inventory(leader, Inventory(number, 0, 4096, {}, None), 0)
    follower.synced(leader, 11, 0)
    assert leader not in follower.in_sync
    follower.synced(leader, 12, 0)
    assert leader in follower.in_sync
