"""`read_your_writes = "cluster"`: a browser that changes nodes reads what it wrote, or is told in time that it does not."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from caterwaul.managers.entry import Entry
from caterwaul.managers.freshness import _PENDING_MAX, CAME, LATE, LOST, Freshness, WaitEnded
from caterwaul.managers.messages import ABSENT, DELTAS, FOUND, LOOKUP, UNSURE, Speaker
from caterwaul.managers.record import Record
from caterwaul.managers.replica import Replica
from caterwaul.managers.session import key_of
from caterwaul.managers.settings import ManagerSettings
from caterwaul.managers.tokens import TOKEN_KEY, claimed, write_token
from caterwaul.membership.view import View
from tests.doubles import Net

CLUSTER = ManagerSettings(read_your_writes="cluster")
ID = "x" * 43
WELL_FORMED = write_token({b"nobody": 3}, b"s" * 16, key_of(ID))


def begin(net, number=0, token="", session_id=None, **attributes):
    """One request that writes, on this member, as far as its commit. Returns the browser's (id, token)."""
    session = net.managers[number].open_local(session_id, token)
    session.update(attributes)
    net.managers[number].commit(session)
    net.managers[number].release(session)
    return session.id, session.token


def come(net, number, cookie):
    """The browser's next request on this member: a list that gets the session."""
    result = []
    net.managers[number].open_deferred(*cookie).addCallback(result.append)
    return result


def lookups(net):
    return len(net.sent(LOOKUP))


@pytest.fixture
def net() -> Net:
    return Net(3, CLUSTER)


# -- the mode


def test_on_the_node_alone_there_are_no_tokens():
    net = Net(2)
    cookie = begin(net, a=1)
    net.deliver()
    assert cookie[1] == ""
    entry = net.managers[1]._core.replica.get(key_of(cookie[0]))
    assert list(net.managers[1]._core.replica.record(key_of(cookie[0]), entry).registers) == ["a"]
    assert dict(net.managers[1].open_local(cookie[0], WELL_FORMED)) == {"a": 1}


def test_a_commit_gives_a_token_and_only_a_commit_changes_it(net):
    session_id, first = begin(net, a=1)
    net.deliver()
    session = net.managers[1].open_local(session_id, first)
    assert (dict(session), session.token, session.stale) == ({"a": 1}, first, False)
    net.managers[1].commit(session)
    assert session.token == first
    _, second = begin(net, 1, first, session_id, b=2)
    assert claimed(second) == {net.members[0].uid[:6]: 1, net.members[1].uid[:6]: 2}


def test_the_secret_is_made_once_and_no_attribute(net):
    session_id, token = begin(net, a=1)
    net.deliver()
    begin(net, 2, token, session_id, b=2)
    net.deliver()
    session = net.managers[1].open_local(session_id)
    assert sorted(session) == ["a", "b"]
    assert session._registers[TOKEN_KEY][0] == 1
    assert [summary["attributes"] for summary in net.managers[1].summaries()] == [2]


def test_a_session_from_before_the_mode_gets_its_secret_with_the_next_commit():
    net = Net(2)
    session_id, _ = begin(net, a=1)
    net.deliver()
    net.settings = CLUSTER
    joiner = net.join()
    net.deliver()
    _, token = begin(net, joiner, "", session_id, b=2)
    session = net.managers[joiner].open_local(session_id, token)
    assert (session.token, session.stale) == (token, False)


def test_a_record_without_a_secret_believes_nothing_and_waits_for_nothing_but_says_that_something_is_missing():
    """It is older than the setting, or its beginning died with its author."""
    net = Net(2)
    session_id, _ = begin(net, a=1)
    net.deliver()
    net.settings = CLUSTER
    joiner = net.join()
    net.deliver()
    session = net.managers[joiner].open_local(session_id, WELL_FORMED)
    assert (dict(session), session.stale, session.token) == ({"a": 1}, True, "")


def test_a_new_id_begins_a_new_token_and_the_old_ones_are_not_believed(net):
    old = begin(net, a=1)
    net.deliver()
    session = net.managers[1].open_local(*old)
    session.cycle_id()
    net.managers[1].commit(session)
    net.deliver()
    assert claimed(session.token) == {net.members[1].uid[:6]: 1}
    assert dict(net.managers[2].open_local(session.id, session.token)) == {"a": 1}
    assert net.managers[2].open_local(session.id, old[1]).token == ""


# -- waiting


def test_what_is_on_its_way_is_waited_for_and_nobody_is_asked(net):
    session_id, token = begin(net, a=1)
    net.deliver()
    net.hold(0, 1)
    cookie = begin(net, 0, token, session_id, a=2)
    net.deliver()
    assert net.managers[1].open_local(*cookie) is None
    result = come(net, 1, cookie)
    net.advance(0.02, 0.01)
    assert result == []
    net.let_go()
    net.deliver()
    assert (dict(result[0]), result[0].stale, result[0].token) == ({"a": 2}, False, cookie[1])
    assert lookups(net) == 0
    assert net.managers[1].statistics()["stale_reads"] == 0


def test_a_browser_without_a_token_does_not_wait(net):
    session_id, token = begin(net, a=1)
    net.deliver()
    net.hold(0, 1)
    begin(net, 0, token, session_id, a=2)
    net.deliver()
    assert dict(net.managers[1].open_local(session_id)) == {"a": 1}
    assert dict(net.managers[1].open_local(session_id, token)) == {"a": 1}


def test_after_a_little_patience_others_are_asked(net):
    session_id, token = begin(net, a=1)
    net.deliver()
    net.hold(0, 1)
    cookie = begin(net, 0, token, session_id, a=2)
    net.deliver()
    result = come(net, 1, cookie)
    net.advance(0.06, 0.01)
    assert (dict(result[0]), result[0].stale) == ({"a": 2}, False)
    assert lookups(net) == 2


def test_in_time_it_is_served_as_it_is_and_marked_and_still_waited_for_next_time(net):
    session_id, token = begin(net, a=1)
    net.deliver()
    net.hold(0, 1)
    net.hold(0, 2)
    cookie = begin(net, 0, token, session_id, a=2)
    net.deliver()
    result = come(net, 1, cookie)
    net.advance(0.49, 0.01)
    assert result == []
    net.advance(0.02, 0.01)
    assert (dict(result[0]), result[0].stale, result[0].token) == ({"a": 1}, True, cookie[1])
    assert net.managers[1].statistics()["stale_reads"] == 1
    assert net.managers[1].open_local(*cookie) is None
    net.let_go()
    net.deliver()
    assert dict(net.managers[1].open_local(*cookie)) == {"a": 2}


def test_a_stale_session_that_is_written_keeps_asking_for_what_was_missing(net):
    session_id, token = begin(net, a=1)
    net.deliver()
    net.hold(0, 1)
    net.hold(0, 2)
    cookie = begin(net, 0, token, session_id, a=2)
    net.deliver()
    result = come(net, 1, cookie)
    net.advance(0.51, 0.01)
    result[0]["b"] = 3
    net.managers[1].commit(result[0])
    assert claimed(result[0].token) == {net.members[0].uid[:6]: 2, net.members[1].uid[:6]: 2}
    net.let_go()
    net.deliver()
    assert dict(net.managers[2].open_local(session_id, result[0].token)) == {"a": 2, "b": 3}


def test_what_died_with_its_author_is_missed_once_and_without_waiting(net):
    session_id, token = begin(net, a=1)
    net.deliver()
    cookie = begin(net, 0, token, session_id, a=2)
    net.channels[net.members[0].uid].woken.clear()
    net.kill(0)
    net.deliver()
    result = come(net, 1, cookie)
    net.deliver()
    assert (dict(result[0]), result[0].stale, result[0].token) == ({"a": 1}, True, "")
    assert net.managers[1].statistics()["stale_reads"] == 1
    again = net.managers[2].open_local(session_id, result[0].token)
    assert (dict(again), again.stale) == ({"a": 1}, False)


def test_what_one_survivor_got_from_the_dead_author_is_found_there(net):
    session_id, token = begin(net, a=1)
    net.deliver()
    net.hold(0, 1)
    cookie = begin(net, 0, token, session_id, a=2)
    net.deliver()
    net.alive.discard(net.members[0].uid)
    net.flights.pop((net.members[0].uid, net.members[1].uid))
    net.show_view(1, net.view())  # the other has not seen the loss: no round between the two yet
    net.flights.clear()
    result = come(net, 1, cookie)
    net.deliver()
    assert (dict(result[0]), result[0].stale) == ({"a": 2}, False)


def test_an_author_that_leaves_while_it_is_waited_for_is_given_up(net):
    session_id, token = begin(net, a=1)
    net.deliver()
    net.hold(0, 1)
    net.hold(0, 2)
    cookie = begin(net, 0, token, session_id, a=2)
    net.deliver()
    result = come(net, 1, cookie)
    net.advance(0.1, 0.01)
    assert result == []
    net.kill(0)
    net.deliver()
    assert (dict(result[0]), result[0].stale, result[0].token) == ({"a": 1}, True, "")


def test_a_session_that_ends_while_it_is_waited_for_is_gone(net):
    session_id, token = begin(net, a=1)
    net.deliver()
    net.hold(0, 1)
    cookie = begin(net, 0, token, session_id, a=2)
    net.deliver()
    result = come(net, 1, cookie)
    session = net.managers[2].open_local(session_id)
    session.invalidate()
    net.managers[2].commit(session)
    net.deliver()
    assert result[0].new


def test_requests_of_one_browser_wait_together(net):
    session_id, token = begin(net, a=1)
    net.deliver()
    net.hold(0, 1)
    net.hold(0, 2)
    second = begin(net, 0, token, session_id, a=2)
    third = begin(net, 0, second[1], session_id, a=3)
    net.deliver()
    results = [*[come(net, 1, second) for _ in range(3)], come(net, 1, third)]
    assert net.managers[1].statistics()["token_waits"] == 1
    net.let_go()
    net.deliver()
    assert [(dict(result[0]), result[0].stale) for result in results] == [({"a": 3}, False)] * 4


def test_a_manager_that_stops_lets_everybody_go_on(net):
    session_id, token = begin(net, a=1)
    net.deliver()
    net.hold(0, 1)
    cookie = begin(net, 0, token, session_id, a=2)
    net.deliver()
    waiting = come(net, 1, cookie)
    net.managers[1].stop()
    assert waiting[0].stale
    assert come(net, 1, cookie)[0].stale


def test_a_thread_waits_as_a_deferred_does(net):
    session_id, token = begin(net, a=1)
    net.deliver()
    net.hold(0, 1)
    cookie = begin(net, 0, token, session_id, a=2)
    net.deliver()
    result = []
    thread = threading.Thread(target=lambda: result.append(net.managers[1].open(*cookie)))
    thread.start()
    while not net.managers[1]._core.freshness.pending:
        net.deliver()
    net.let_go()
    net.deliver()
    thread.join(10)
    assert (dict(result[0]), result[0].stale) == ({"a": 2}, False)


def test_without_time_to_wait_it_is_stale_at_once():
    net = Net(2, replace(CLUSTER, read_your_writes_wait_s=0.0))
    session_id, token = begin(net, a=1)
    net.deliver()
    net.hold(0, 1)
    cookie = begin(net, 0, token, session_id, a=2)
    net.deliver()
    result = come(net, 1, cookie)
    net.advance(0.01, 0.005)
    assert result[0].stale


# -- sessions that are not here


def test_a_session_that_is_absent_here_is_asked_of_its_author_whoever_keeps_it():
    """The deltas to all but the author itself are slow: without the token everybody is sure that there is no such session."""
    net = Net(4, CLUSTER)
    for other in (2, 3):
        net.hold(0, other)
    session_id, token = begin(net, a=1)
    net.channels[net.members[0].uid].woken.pop()()
    net.flights.pop((net.members[0].uid, net.members[1].uid))  # a full outbox dropped it
    assert net.managers[1].open_local(session_id).new
    assert net.managers[1].open_local(session_id, token) is None
    result = come(net, 1, (session_id, token))
    net.deliver()
    assert (dict(result[0]), result[0].stale) == ({"a": 1}, False)


def test_a_session_whose_author_cannot_answer_in_time_is_unknown_not_new(net):
    net.hold(0, 1)
    net.hold(0, 2)
    cookie = begin(net, a=1)
    net.deliver()
    result = come(net, 1, cookie)
    net.advance(0.6, 0.01)
    assert result[0].unknown
    assert net.managers[1].open_local(*cookie).unknown
    net.let_go()
    net.deliver()
    assert dict(net.managers[1].open_local(*cookie)) == {"a": 1}


def test_who_comes_while_others_say_no_is_asked_too():
    """Two members that have met only each other are sure; the browser wrote through a third, which they meet just then."""
    net = Net(3, CLUSTER)
    first, second, third = net.members
    for number in (1, 2):
        net.show_view(number, View.of(2, [second, third]), frozenset({first.uid}))
    net.deliver()
    net.hold(0, 1)
    net.hold(0, 2)
    net.hold(2, 1)
    result = come(net, 1, begin(net, a=1))
    net.deliver()
    net.show_view(1, net.view())
    net.held.discard((third.uid, second.uid))
    net.deliver()
    assert not result
    net.let_go()
    net.deliver()
    assert dict(result[0]) == {"a": 1}


def test_a_record_that_a_full_outbox_holds_back_makes_the_session_unknown():
    net = Net(2, CLUSTER)
    cookie = begin(net, a=1)
    net.channels[net.members[0].uid].woken.pop()()
    net.flights.clear()
    result = come(net, 1, cookie)
    net.channels[net.members[1].uid].woken.clear()
    lookup = net.managers[0]._core._lookup
    net.managers[0]._core._readers[LOOKUP] = lambda *message: lookup(*message)[1:]  # without the record
    net.deliver()
    assert result[0].unknown


# -- forged values


@pytest.mark.parametrize("forged", ["", "short", "A" * 22, "A" * 87, "A" * 5000, WELL_FORMED, "!\x00" * 11])
def test_a_forged_token_is_as_good_as_none(net, forged):
    session_id, _ = begin(net, a=1)
    net.deliver()
    session = net.managers[1].open_local(session_id, forged)
    assert (dict(session), session.stale, session.token) == ({"a": 1}, False, "")
    assert lookups(net) == 0


def test_another_sessions_token_is_as_good_as_none(net):
    one, token = begin(net, a=1)
    token = begin(net, 0, token, one, a=2)[1]
    other, _ = begin(net, b=1)
    net.deliver()
    assert net.managers[1].open_local(other, token).token == ""


def test_a_made_up_session_with_a_token_is_looked_up_once_a_second_and_without_one_never(net):
    assert net.managers[0].open_local(ID).new
    for _ in range(2):
        before = lookups(net)
        assert net.managers[0].open_local(ID, WELL_FORMED) is None
        result = come(net, 0, (ID, WELL_FORMED))
        net.deliver()
        assert result[0].new
        assert lookups(net) == before + 2
        assert net.managers[0].open_local(ID, WELL_FORMED).new
        net.advance(1.0)
    assert net.managers[0].open_local(ID, "no token").new


def test_alone_nobody_is_asked():
    assert Net(1, CLUSTER).managers[0].open_local(ID, WELL_FORMED).new


# -- the core by its effects

ME, A, B = (bytes([number]) * 16 for number in (1, 2, 3))
KEY = b"k" * 16


class TestFreshness:
    def core(self, cut=()):
        replica = Replica(ME)
        record = Record()
        record.write(1, ME, {"a": b"\x01"})
        replica._insert(KEY, Entry(None, record, 0, ()))
        return Freshness(Speaker("web"), replica, set(cut), 500), record

    def verdicts(self, effects):
        return [effect.event for effect in effects if isinstance(effect, WaitEnded)]

    def test_what_came_in_between_needs_no_wait(self):
        core, record = self.core()
        record.applied[A] = 2
        assert self.verdicts(core.begin(KEY, {A[:6]: 2}, [A, B], [A, B], 0)) == [(KEY, CAME)]
        assert core.deadline_ms is None

    def test_an_author_whose_link_is_down_is_not_waited_for_before_others_are_asked(self):
        core, _ = self.core(cut=[A])
        (ask,) = core.begin(KEY, {A[:6]: 2}, [A, B], [A, B], 0)
        assert ask.to == (B,)
        assert core.answered(B, KEY, ABSENT) == []  # A is in the view: its link may come back
        assert self.verdicts(core.tick(500)) == [(KEY, LATE)]

    def test_an_author_whose_link_breaks_is_not_waited_for_either(self):
        core, _ = self.core()
        assert core.begin(KEY, {A[:6]: 2}, [A, B], [A, B], 0) == []
        assert core.deadline_ms == 50
        core._cut.add(A)
        (ask,) = core.lost(A, left=False)
        assert ask.to == (B,)
        assert core.deadline_ms == 500

    def test_nobody_has_it_once_all_have_said_so(self):
        core, _ = self.core()
        core.begin(KEY, {b"gone..": 2}, [A, B], [A, B], 0)
        assert core.answered(A, KEY, FOUND) == []  # its record answers
        assert core.heard(A, ["web", 2, [[KEY]]]) == []
        assert self.verdicts(core.answered(B, KEY, ABSENT)) == [(KEY, LOST)]

    @pytest.mark.parametrize("doubt", ["unsure", "lost", "cut"])
    def test_it_is_late_and_not_lost_while_somebody_may_have_it(self, doubt):
        core, _ = self.core(cut=[B] if doubt == "cut" else [])
        core.begin(KEY, {b"gone..": 2}, [A, B], [A, B], 0)
        effects = core.answered(A, KEY, ABSENT)
        if doubt == "unsure":
            effects = core.answered(B, KEY, UNSURE)
        elif doubt == "lost":
            core._cut.add(B)
            effects = core.lost(B, left=False)
        assert self.verdicts(effects) == [(KEY, LATE)]

    def test_an_author_is_waited_for_though_it_holds_nothing(self):
        core, _ = self.core()
        assert core.begin(KEY, {A[:6]: 2}, [B], [A, B], 0) == []
        core.tick(50)
        assert core.answered(B, KEY, ABSENT) == []
        assert self.verdicts(core.lost(A, left=True)) == [(KEY, LOST)]

    def test_an_author_that_let_a_wait_run_out_is_not_waited_for_until_it_is_heard(self):
        core, _ = self.core()
        core.begin(KEY, {A[:6]: 2}, [A, B], [A, B], 0)
        core.tick(50)
        assert self.verdicts(core.tick(500)) == [(KEY, LATE)]
        assert len(core.begin(KEY, {A[:6]: 2}, [A, B], [A, B], 600)) == 1
        assert self.verdicts(core.answered(B, KEY, ABSENT)) == [(KEY, LATE)]
        core.heard(A, ["web", DELTAS, A, []])
        assert core.begin(KEY, {A[:6]: 2}, [A, B], [A, B], 700) == []

    def test_who_leaves_is_not_waited_for(self):
        core, _ = self.core()
        core.begin(KEY, {b"gone..": 2}, [A, B], [A, B], 0)
        assert core.lost(B, left=True) == []
        assert self.verdicts(core.answered(A, KEY, ABSENT)) == [(KEY, LOST)]

    def test_with_nobody_to_ask_it_ends_at_once(self):
        core, _ = self.core()
        assert self.verdicts(core.begin(KEY, {b"gone..": 2}, [], [A, B], 0)) == [(KEY, LOST)]

    def test_a_delta_of_another_session_ends_no_wait(self):
        core, record = self.core()
        core.begin(KEY, {A[:6]: 2}, [A], [A, B], 0)
        record.applied[A] = 2
        assert core.heard(A, ["web", DELTAS, A, [[b"o" * 16]]]) == []
        assert self.verdicts(core.heard(A, ["web", DELTAS, A, [[KEY]]])) == [(KEY, CAME)]

    def test_there_are_not_more_than_so_many_waits(self):
        core, _ = self.core()
        core.pending = dict.fromkeys(range(_PENDING_MAX))
        assert self.verdicts(core.begin(KEY, {A[:6]: 2}, [A], [A, B], 0)) == [(KEY, LATE)]
