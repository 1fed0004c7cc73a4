"""Who is logged in: all sessions of a principal end at once, also those that nobody knew of; and a principal has so many at most."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caterwaul.managers.backup import BackupManager
from caterwaul.managers.delta import DeltaManager
from caterwaul.managers.errors import ValueRefused
from caterwaul.managers.listeners import LoggedIn, SessionDestroyed
from caterwaul.managers.partitioned import PartitionedManager
from caterwaul.managers.principals import YOUNGEST, Login, principal_key, read_login
from caterwaul.managers.record import LOGIN, PRINCIPAL
from caterwaul.managers.session import Session, key_of
from caterwaul.managers.settings import ManagerSettings
from caterwaul.membership.codec import encode
from caterwaul.membership.errors import LocalError
from tests.doubles import MANAGER, Net

KINDS = {"delta": DeltaManager, "backup": BackupManager, "partitioned": PartitionedManager}


def net_of(kind: str, count: int = 3, **more: Any) -> Net:
    weights = more.pop("weights", ())
    chosen = ManagerSettings(type=kind, idle_timeout_s=600, absolute_timeout_s=0, **more)
    return Net(count, chosen, kind=KINDS[kind], epochs=True, weights=weights)


@pytest.fixture(params=KINDS)
def net(request: Any) -> Net:
    return net_of(request.param)


def log_in(net: Net, number: int, who: str, session_id: str | None = None) -> str:
    """A request that logs in, on this member; its session's id."""
    manager = net.managers[number]
    session = net.opened(number, session_id)
    session.cycle_id()
    session["cart"] = [who]
    session.principal = who
    manager.commit(session)
    manager.release(session)
    net.deliver()
    assert session.id is not None
    return session.id


def lives(net: Net, session_id: str) -> list[bool]:
    """For each live member, whether it serves this session."""
    found = []
    for number, m in enumerate(net.members):
        if m.uid in net.alive:
            result: list[Session] = []
            net.managers[number].open_deferred(session_id).addCallback(result.append)
            net.deliver()
            if not result:
                net.advance(1.0)  # somebody who is asked is behind the partition
            net.managers[number].release(result[0])
            assert not result[0].unknown
            found.append(not result[0].new)
    return found


def split(net: Net, one: list[int], other: list[int]) -> None:
    for a in one:
        for b in other:
            net.part(a, b)
    for side in (one, other):
        for number in side:
            uids = {net.members[other].uid for other in side}
            view = net.view()
            for uid in [member.uid for member in view if member.uid not in uids]:
                view = view.without(uid)
            net.show_view(number, view)
    net.deliver()


def heal(net: Net, one: list[int], other: list[int]) -> None:
    for a in one:
        for b in other:
            net.heal(a, b)
    net.show_views()
    net.deliver()


# -- ending all


def test_all_sessions_of_a_principal_end_on_every_member_at_once(net: Net) -> None:
    phone, laptop, bob = log_in(net, 0, "alice"), log_in(net, 1, "alice"), log_in(net, 2, "bob")
    receipt = net.managers[2].end_all("alice")
    assert receipt.needs_wait
    net.deliver()
    assert receipt.satisfied
    assert set(receipt.confirmed) == {"node1", "node2"}
    assert lives(net, phone) == lives(net, laptop) == [False, False, False]
    assert lives(net, bob) == [True, True, True]


def test_ended_sessions_become_tombstones_and_listeners_hear_of_each_once(net: Net) -> None:
    told: list[SessionDestroyed] = []
    for manager in net.managers:
        manager.listen(SessionDestroyed, told.append)
    ids = [log_in(net, number, "alice") for number in (0, 1, 2)]
    net.managers[0].end_all("alice")
    net.advance(3.0)
    assert sorted(event.key for event in told) == sorted(map(key_of, ids))
    assert {event.reason for event in told} == {"invalidated"}
    assert {event.principal for event in told} == {"alice"}
    assert all(manager._core.replica.live == 0 for manager in net.managers)
    assert all(len(manager._core.logins) == 0 for manager in net.managers)


def test_who_logs_in_again_stays(net: Net) -> None:
    old = log_in(net, 0, "alice")
    net.managers[1].end_all("alice")
    new = log_in(net, 2, "alice")
    net.advance(3.0)
    assert lives(net, old) == [False] * 3
    assert lives(net, new) == [True] * 3


def test_everybody_who_is_logged_in(net: Net) -> None:
    ids = [log_in(net, 0, "alice"), log_in(net, 1, "bob")]
    guest = net.visit(2, None, n=1)
    net.managers[0].end_all(None)
    net.deliver()
    assert [lives(net, one) for one in ids] == [[False] * 3] * 2
    assert lives(net, guest) == [True] * 3
    again = log_in(net, 1, "bob")
    net.managers[0].end_all("alice")
    net.deliver()
    assert lives(net, again) == [True] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_healed_partition_ends_what_its_other_side_had_and_made(kind: str) -> None:
    net = net_of(kind, 4, unknown_for_s=0.0)
    before = log_in(net, 3, "alice")
    net.advance(1.0)
    split(net, [0, 1], [2, 3])
    during = log_in(net, 2, "alice")
    net.managers[0].end_all("alice")
    here = log_in(net, 1, "alice")
    net.deliver()
    assert not net.opened(2, during).new, "the other side cannot know"
    heal(net, [0, 1], [2, 3])
    assert lives(net, before) == lives(net, during) == [False] * 4
    assert lives(net, here) == [True] * 4
    net.advance(5.0)
    assert lives(net, here) == [True] * 4
    assert not any(key_of(during) in manager._core.logins.of(principal_key(MANAGER, "alice")) for manager in net.managers)


def test_two_ends_on_two_sides_both_count() -> None:
    net = net_of("delta", 4)
    split(net, [0, 1], [2, 3])
    net.managers[0].end_all("alice")
    net.managers[2].end_all("alice")
    net.deliver()
    left, right = log_in(net, 1, "alice"), log_in(net, 3, "alice")
    heal(net, [0, 1], [2, 3])
    assert lives(net, left) == lives(net, right) == [False] * 4, "neither knew of the other side's end"
    assert lives(net, log_in(net, 1, "alice")) == [True] * 4


def test_a_member_that_comes_later_knows(net: Net) -> None:
    log_in(net, 0, "alice")
    net.managers[0].end_all("alice")
    net.deliver()
    number = net.join()
    net.deliver()
    assert net.epochs[number].current == net.epochs[0].current != {}


def test_members_without_weight_know_too() -> None:
    net = net_of("partitioned", 3, weights=(1, 1, 0))
    session_id = log_in(net, 0, "alice")
    assert not net.opened(2, session_id).new
    receipt = net.managers[0].end_all("alice")
    net.deliver()
    assert "node3" in receipt.confirmed
    assert lives(net, session_id) == [False] * 3


def test_one_session_may_stay_and_nobody_ever_refuses_it(net: Net) -> None:
    """As after a change of the password: logged out elsewhere."""
    mine, others = log_in(net, 0, "alice"), [log_in(net, number, "alice") for number in (0, 1, 2)]
    session = net.opened(1, mine)
    receipt = net.managers[1].end_all("alice", but=session)
    while net.step():
        assert all(one is None or not one.new for one in net.everywhere(mine))
    assert receipt.satisfied
    net.managers[1].release(session)
    net.advance(3.0)
    assert lives(net, mine) == [True] * 3
    assert [lives(net, one) for one in others] == [[False] * 3] * 3
    net.managers[0].end_all("alice")
    net.deliver()
    assert lives(net, mine) == [False] * 3


def test_a_request_under_way_writes_to_nothing_unless_it_logs_in(net: Net) -> None:
    session_id = log_in(net, 0, "alice")
    under_way, again = net.opened(0, session_id), net.opened(0, session_id)
    net.managers[1].end_all("alice")
    net.deliver()
    under_way["cart"] = ["late"]
    assert not net.managers[0].commit(under_way).satisfied
    again.principal = None
    again.principal = "alice"
    net.managers[0].commit(again)
    net.deliver()
    assert lives(net, session_id) == [True] * 3


def test_saying_who_it_is_once_more_is_no_login(net: Net) -> None:
    session_id = log_in(net, 0, "alice")
    net.part(0, 1)
    net.part(0, 2)
    net.managers[1].end_all("alice")
    net.deliver()
    session = net.managers[0].open_local(session_id)
    assert session is not None
    session.principal = "alice"
    assert not session.modified
    net.heal(0, 1)
    net.heal(0, 2)
    net.deliver()
    assert lives(net, session_id) == [False] * 3


def test_without_a_node_nobody_keeps_epochs() -> None:
    net = Net(2)
    with pytest.raises(LocalError, match="not part of a node"):
        net.managers[0].end_all("alice")


def test_logging_out_takes_the_login_away(net: Net) -> None:
    session_id = log_in(net, 0, "alice")
    session = net.opened(0, session_id)
    session.principal = None
    net.managers[0].commit(session)
    net.managers[0].release(session)
    net.managers[0].end_all("alice")
    net.deliver()
    assert lives(net, session_id) == [True] * 3
    assert net.managers[0].users.logins_of([principal_key(MANAGER, "alice")]) == []


def test_epochs_go_when_nothing_can_be_left_that_they_would_end() -> None:
    net = net_of("delta", 2, retention_s=60.0)
    net.managers[0].end_all("alice")
    net.advance(50.0, 1.0)
    assert all(len(epochs.current) == 1 for epochs in net.epochs)
    net.advance(100.0, 1.0)
    net.managers[1].end_all("bob")
    net.advance(35.0, 1.0)
    assert [list(epochs.current) for epochs in net.epochs] == [[principal_key(MANAGER, "bob")]] * 2
    net.managers[0].end_all("alice")
    session_id = log_in(net, 0, "alice")
    assert lives(net, session_id) == [True, True]


# -- what a session says of its login


def test_a_login_without_the_register_of_an_older_member_ends_with_any_epoch() -> None:
    net = net_of("delta", 2)
    session = net.opened(0)
    session._put(PRINCIPAL, b"alice")
    net.managers[0].commit(session)
    net.managers[0].release(session)
    net.deliver()
    assert session.id is not None
    assert lives(net, session.id) == [True, True]
    net.managers[1].end_all("alice")
    net.deliver()
    assert lives(net, session.id) == [False, False]


@pytest.mark.parametrize(
    "value",
    [None, b"", b"\xff", encode(1), encode([b"k" * 16, {}]), encode([b"k", {}, {}]), encode([b"k" * 16, {b"u": 1}, {}]), encode([b"k" * 16, {b"u" * 16: 0}, {}]),
     encode([b"k" * 16, {b"u" * 16: 2**60}, {}]), encode([b"k" * 16, {b"u" * 16: True}, {}]), encode([b"k" * 16, [], {}]), encode([b"k" * 16, {}, {"a": 1}])],
)  # fmt: skip
def test_a_register_that_is_no_login_knows_of_no_epoch(value: bytes | None) -> None:
    assert read_login(value) == Login()


def test_a_login_of_somebody_else_counts_for_nothing() -> None:
    """Two requests at once, one logs in bob, the other alice: what stands of each is not from one login."""
    net = net_of("delta", 2)
    net.managers[0].end_all("bob")
    session_id = log_in(net, 0, "alice")
    net.deliver()
    session = net.opened(0, session_id)
    session._put(PRINCIPAL, b"bob")
    net.managers[0].commit(session)
    net.deliver()
    assert lives(net, session_id) == [False, False]


def test_who_is_logged_in_may_be_said_of_a_session_that_is_full() -> None:
    net = net_of("delta", 1, session_max_bytes=1024)
    session = net.opened(0)
    session["a"] = "x" * 1000
    session.principal = "a" * 100
    net.managers[0].commit(session)
    assert net.managers[0].end_all("a" * 100, but=session).satisfied


@pytest.mark.parametrize("name", ["", "a\ud800", "x" * 1001])
def test_a_name_that_cannot_be_one_changes_nothing(name: str) -> None:
    session = net_of("delta", 1).opened(0)
    with pytest.raises(ValueRefused, match="use a name"):
        session.principal = name
    assert (session.principal, session.id) == (None, None)
    assert {PRINCIPAL, LOGIN}.isdisjoint(session.changes())


def test_listeners_hear_of_logins_where_they_happen() -> None:
    net = net_of("delta", 2)
    told: list[tuple[int, LoggedIn]] = []
    for number, manager in enumerate(net.managers):
        manager.listen(LoggedIn, lambda event, number=number: told.append((number, event)))
    session_id = log_in(net, 1, "alice")
    assert told == [(1, LoggedIn(key_of(session_id), "alice"))]


def test_a_login_gives_a_new_id_and_says_what_it_is_told(net: Net) -> None:
    before = net.visit(0, None, n=1)
    session = net.opened(0, before)
    session.login("alice", device="Firefox", address="192.0.2.7")
    net.managers[0].commit(session)
    net.managers[0].release(session)
    net.deliver()
    assert session.id not in (None, before)
    assert lives(net, before) == [False] * 3
    assert session["n"] == 1
    found = [login for manager in net.managers for login in manager.users.logins_of([principal_key(MANAGER, "alice")])]
    assert {login.key for login in found} == {session.key}
    assert all(dict(login.about) == {"device": "Firefox", "address": "192.0.2.7"} for login in found)


def test_logging_in_again_is_a_login(net: Net) -> None:
    session_id = log_in(net, 0, "alice")
    again = net.opened(0, session_id)
    net.managers[1].end_all("alice")
    net.deliver()
    again.login("alice")
    net.managers[0].commit(again)
    net.deliver()
    assert again.id is not None
    assert lives(net, again.id) == [True] * 3


@pytest.mark.parametrize(("name", "about"), [("", {}), ("a\ud800", {}), ("a", {"device": "\ud800"}), ("a", {"device": "x" * 1001}), ("a", {"device": 1})])
def test_what_cannot_be_said_of_a_login_is_refused_and_changes_nothing(name: str, about: Any) -> None:
    session = net_of("delta", 1).opened(0)
    with pytest.raises(ValueRefused, match="use a name"):
        session.login(name, **about)
    assert (session.principal, session.id) == (None, None)


def test_logins_where_not_all_is_known_have_no_number_yet() -> None:
    net = net_of("delta", 2, weights=(1, 0))
    log_in(net, 1, "alice")
    second = log_in(net, 0, "alice")
    net.managers[0].end_all("bob")
    net.deliver()
    numbers = [login.number for login in net.managers[0].users.logins_of([principal_key(MANAGER, "alice")])]
    assert numbers == [YOUNGEST, 1]
    assert lives(net, second) == [True, True]


# -- sessions per principal


def test_a_login_over_the_limit_ends_the_oldest_on_every_member() -> None:
    net = net_of("delta", 3, principal_sessions_max=2)
    ids = [log_in(net, number, "alice") for number in (0, 1, 2)]
    bob = log_in(net, 0, "bob")
    assert [lives(net, one) for one in ids] == [[False] * 3, [True] * 3, [True] * 3]
    net.advance(3.0)
    assert [lives(net, one) for one in (*ids, bob)] == [[False] * 3, [True] * 3, [True] * 3, [True] * 3]
    assert [manager._core.replica.live for manager in net.managers] == [3, 3, 3]


def test_after_a_partition_the_limit_holds_again_and_all_agree() -> None:
    net = net_of("delta", 4, principal_sessions_max=2)
    split(net, [0, 1], [2, 3])
    ids = [log_in(net, number, "alice") for number in (0, 1, 2, 3)]
    heal(net, [0, 1], [2, 3])
    net.advance(5.0)
    standing = [lives(net, one) for one in ids]
    assert all(one in ([True] * 4, [False] * 4) for one in standing)
    assert sum(one[0] for one in standing) == 2


# -- the index


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["login", "logout", "invalidate", "end_all", "cycle", "kill"]), st.integers(0, 2), st.sampled_from("abc"), st.integers(0, 9)),
    max_size=25,
)


@pytest.mark.parametrize("kind", KINDS)
@given(operations=OPERATIONS)
@settings(max_examples=25, deadline=None)
def test_each_member_knows_whose_the_sessions_are_that_it_holds(kind: str, operations: list[tuple[str, int, str, int]]) -> None:
    net = net_of(kind, 4)
    ids: list[str] = []
    for what, number, who, which in operations:
        chosen = ids[which % len(ids)] if ids else None
        if what == "login":
            ids.append(log_in(net, number, who))
        elif what == "end_all":
            net.managers[number].end_all(who)
            net.deliver()
        elif what == "kill" and len(net.alive) == 4:
            net.kill(3)
            net.advance(3.0)
        elif chosen is not None:
            result: list[Any] = []
            net.managers[number].open_deferred(chosen).addCallback(result.append)
            net.deliver()
            session = result[0]
            if not session.new and not session.unknown:
                {"logout": lambda s: setattr(s, "principal", None), "invalidate": lambda s: s.invalidate(), "cycle": lambda s: s.cycle_id()}.get(what, id)(
                    session
                )
                net.managers[number].commit(session)
                ids += [session.id] if session.id and session.id not in ids else []
            net.managers[number].release(session)
            net.deliver()
    net.advance(3.0)
    for number, manager in enumerate(net.managers):
        if net.members[number].uid in net.alive:
            core = manager._core
            true: dict[bytes, set[bytes]] = {}
            for key, entry in core.replica.entries():
                record = core.replica.record(key, entry) if core.replica.held(key) is not None else None
                register = record.registers.get(PRINCIPAL) if record is not None else None
                if register is not None and register[2] is not None:
                    true.setdefault(core.logins.key_of(register[2].decode()), set()).add(key)
            assert {whose: set(core.logins.of(whose)) for whose in core.logins.principals()} == true
