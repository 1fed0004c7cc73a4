"""That an end of all sessions lasts, and that the limit of sessions takes the right ones: what a reader of the code would try."""

from __future__ import annotations

from typing import Any

import pytest

from caterwaul.managers.delta import DeltaManager
from caterwaul.managers.epochs import _IDS
from caterwaul.managers.heads import INVALIDATED, Head
from caterwaul.managers.placement import partition_of
from caterwaul.managers.principals import EPOCHS, principal_key
from caterwaul.managers.session import key_of
from caterwaul.managers.settings import ManagerSettings
from caterwaul.membership.errors import RemoteError
from caterwaul.membership.view import ViewChanged
from tests.doubles import MANAGER, Net

from .test_managers_principals import KINDS, heal, lives, log_in, net_of, split

ALICE = principal_key(MANAGER, "alice")


@pytest.fixture(params=KINDS)
def net(request: Any) -> Net:
    return net_of(request.param)


def delta_net(count: int, seed: int, overtaking: bool = False, **more: Any) -> Net:
    chosen = ManagerSettings(idle_timeout_s=600, absolute_timeout_s=0, unknown_for_s=0.0, **more)
    return Net(count, chosen, kind=DeltaManager, epochs=True, seed=seed, overtaking=overtaking)


def commit(net: Net, number: int, session: Any) -> Any:
    receipt = net.managers[number].commit(session)
    net.managers[number].release(session)
    net.deliver()
    return receipt


# -- an end lasts


@pytest.mark.parametrize("ended", ["alice", None])
def test_a_session_that_is_over_is_not_kept_by_whom_it_was_opened(net: Net, ended: str | None) -> None:
    session_id = log_in(net, 0, "alice")
    under_way = net.opened(0, session_id)
    net.managers[1].end_all(ended)
    net.deliver()
    net.managers[0].end_all("alice", but=under_way)
    net.deliver()
    assert lives(net, session_id) == [False] * 3


def test_somebody_elses_session_is_not_kept(net: Net) -> None:
    session_id = log_in(net, 0, "bob")
    under_way = net.opened(0, session_id)
    net.managers[1].end_all("bob")
    net.deliver()
    net.managers[0].end_all("alice", but=under_way)
    net.deliver()
    assert lives(net, session_id) == [False] * 3


def test_logging_out_of_a_session_that_is_over_does_not_bring_it_back(net: Net) -> None:
    session_id = log_in(net, 0, "alice")
    under_way = net.opened(0, session_id)
    net.managers[1].end_all("alice")
    net.deliver()
    under_way.principal = None
    assert not commit(net, 0, under_way).satisfied
    net.advance(3.0)
    assert lives(net, session_id) == [False] * 3


@pytest.mark.parametrize("before_s", [560.0, 590.0])
@pytest.mark.parametrize("ender", [0, 1, 2])
def test_a_second_end_lasts_as_long_as_if_it_were_the_first(before_s: float, ender: int) -> None:
    """Behind a partition the first one is taken out for its age."""
    net = net_of("delta", 4, retention_s=600.0, unknown_for_s=0.0)
    rest = [number for number in range(4) if number != ender]
    net.managers[ender].end_all("alice")
    net.advance(before_s, 1.0)
    split(net, [ender], rest)
    during = log_in(net, rest[0], "alice")
    net.managers[ender].end_all("alice")
    net.deliver()
    net.advance(130.0, 1.0)
    heal(net, [ender], rest)
    net.advance(5.0)
    assert lives(net, during) == [False] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_that_joins_serves_nothing_that_is_over(kind: str) -> None:
    for seed in range(8):
        net = Net(3, ManagerSettings(type=kind, idle_timeout_s=600, absolute_timeout_s=0), kind=KINDS[kind], epochs=True, seed=seed)
        session_id, other_id = log_in(net, 0, "alice"), log_in(net, 0, "bob")
        net.managers[1].end_all("alice")
        net.deliver()
        number = net.join()
        for _ in range(300):
            served: list[Any] = []
            net.managers[number].open_deferred(session_id).addCallback(served.append)
            net.step()
            for session in served:
                assert session.new or session.unknown
                net.managers[number].release(session)
        net.advance(2.0)
        assert lives(net, other_id) == [True] * 4


def test_a_peer_cannot_end_where_ends_are_kept() -> None:
    net = net_of("delta", 2)
    net.managers[0].end_all("alice")
    net.deliver()
    core, peer = net.epochs[0]._core, net.members[1].uid
    key = key_of(_IDS[ALICE[0]])
    message = [EPOCHS, 4, [[key, [INVALIDATED, 9, peer, peer, [], None, 0]]]]
    with pytest.raises(RemoteError, match="never ends"):
        core._heads(0, peer, message, lambda ms: ms)
    with pytest.raises(RemoteError, match="never ends"):
        core._check_eternal([Head(INVALIDATED, 9, peer, peer)])
    assert net.epochs[0].current


@pytest.mark.parametrize("name", ["", "zz", "A" * 64 + ".1", "0" * 64, "0" * 64 + ".0", "0" * 64 + ".01", "0" * 64 + "." + "f" * 15, "0" * 64 + ".1"])
def test_what_a_peer_makes_up_is_no_end(name: str) -> None:
    """The last is a good name in another's bucket."""
    net = net_of("delta", 2)
    bucket = net.epochs[1]._made()
    bucket.adopt(_IDS[7])
    if name:
        bucket[name] = 0
    net.epochs[1].commit(bucket)
    net.deliver()
    assert net.epochs[0].current == {}


# -- receipts


def test_who_is_alone_has_told_everybody() -> None:
    receipt = net_of("delta", 1).managers[0].end_all("alice")
    assert (receipt.satisfied, receipt.needs_wait) == (True, False)


def test_a_frozen_member_is_named_and_the_others_are_waited_for() -> None:
    net = net_of("delta", 4)
    net.channels[net.members[0].uid].degrade(net.members[3].uid)
    net.freeze(3)
    receipt = net.managers[0].end_all("alice")
    assert receipt.needs_wait
    net.deliver()
    assert (receipt.satisfied, receipt.confirmed, receipt.unconfirmed) == (True, ("node2", "node3"), ("node4",))


def test_a_member_of_before_is_named_and_does_not_keep_sessions_alive() -> None:
    """It announces no epochs, and may be the one that watches."""
    net = net_of("delta", 3)
    net.members[2].payload["managers"].remove(EPOCHS)  # type: ignore[attr-defined]
    for number in (0, 1):
        view = net.epochs[number].view
        net.epochs[number].view_changed(ViewChanged(view, view.without(net.members[2].uid), frozenset((net.members[2].uid,))))
    net.channels[net.members[2].uid].detach(EPOCHS)
    net.epochs[2].on_change.clear()
    ids = [log_in(net, 0, "alice") for _ in range(6)]
    receipt = net.managers[0].end_all("alice")
    net.deliver()
    assert not receipt.satisfied
    assert receipt.unconfirmed == ("node3",)
    net.advance(5.0)
    assert [lives(net, one) for one in ids] == [[False] * 3] * 6


def test_what_was_kept_is_part_of_the_receipt() -> None:
    net = net_of("delta", 2, acks="all")
    session = net.opened(0, log_in(net, 0, "alice"))
    session.cycle_id()
    net.hold(0, 1)
    receipt = net.managers[0].end_all("alice", but=session)
    net.deliver()
    assert receipt.needs_wait
    net.let_go()
    net.deliver()
    assert receipt.satisfied


# -- the limit takes the right ones


def test_sessions_that_are_over_do_not_count() -> None:
    net = net_of("delta", 4, principal_sessions_max=2, unknown_for_s=0.0)
    split(net, [0, 1], [2, 3])
    for _ in range(4):
        log_in(net, 2, "alice")
    net.managers[0].end_all("alice")
    net.deliver()
    mine = [log_in(net, 0, "alice"), log_in(net, 1, "alice")]
    heal(net, [0, 1], [2, 3])
    net.advance(5.0)
    assert [lives(net, one) for one in mine] == [[True] * 4] * 2


@pytest.mark.parametrize("seed", range(6))
def test_who_hears_of_a_login_before_a_logout_ends_nobody(seed: int) -> None:
    net = delta_net(3, seed, principal_sessions_max=2)
    first, second = log_in(net, 0, "alice"), log_in(net, 0, "alice")
    net.hold(0, 2)
    net.hold(0, 1)
    session = net.opened(0, second)
    session.invalidate()
    commit(net, 0, session)
    third = log_in(net, 1, "alice")
    net.let_go()
    net.advance(5.0)
    assert [lives(net, one) for one in (first, third)] == [[True] * 3] * 2
    assert partition_of(key_of(first)) >= 0


def test_a_member_that_has_just_joined_does_not_take_its_login_for_the_oldest() -> None:
    net = net_of("delta", 2, principal_sessions_max=2)
    for _ in range(3):
        log_in(net, 0, "alice")
    number = net.join()
    session = net.managers[number].open_local(None)  # nothing has come yet
    assert session is not None
    session.principal = "alice"
    commit(net, number, session)
    net.advance(3.0)
    assert session.id is not None
    assert lives(net, session.id) == [True] * 3


@pytest.mark.parametrize("seed", range(6))
def test_a_new_id_at_the_limit_loses_nothing(seed: int) -> None:
    net = delta_net(3, seed, overtaking=True, principal_sessions_max=1)
    session_id = log_in(net, 0, "alice")
    for _ in range(4):
        session = net.opened(0, session_id)
        session.cycle_id()
        commit(net, 0, session)
        assert session.id is not None
        session_id = session.id
        net.advance(3.0)
        assert lives(net, session_id) == [True] * 3


def test_logging_in_again_in_the_oldest_session_makes_it_the_youngest() -> None:
    net = net_of("delta", 2, principal_sessions_max=1)
    first = log_in(net, 0, "alice")
    under_way = net.opened(0, first)
    second = log_in(net, 1, "alice")
    under_way.principal = None
    under_way.principal = "alice"
    assert commit(net, 0, under_way).satisfied
    net.advance(3.0)
    assert (lives(net, first), lives(net, second)) == ([True] * 2, [False] * 2)


def test_a_near_copy_says_nothing_of_logins() -> None:
    net = net_of("partitioned", 4)
    session_id = log_in(net, 0, "alice")
    holders = net.managers[0]._core.placement.holders(key_of(session_id), b"")
    reader = next(number for number, m in enumerate(net.members) if m.uid not in holders)
    net.managers[reader].release(net.opened(reader, session_id))
    assert net.managers[reader].users.logins_of([ALICE]) == []
    assert not net.managers[reader].users.end_login(key_of(session_id), principal_key(MANAGER, "bob")).satisfied
    assert lives(net, session_id) == [True] * 4


def test_a_principal_that_was_removed_and_pruned_elsewhere_leaves_the_index() -> None:
    net = net_of("delta", 2, unknown_for_s=0.0)
    session_id = log_in(net, 0, "alice")
    net.part(0, 1)
    session = net.opened(0, session_id)
    session.principal = None
    for number in range(70):
        session[f"a{number}"] = 1
    commit(net, 0, session)
    session = net.opened(0, session_id)
    for number in range(70):
        del session[f"a{number}"]
    commit(net, 0, session)
    net.heal(0, 1)
    net.deliver()
    net.managers[0].end_all("alice")
    net.deliver()
    assert [manager.users.logins_of([ALICE]) for manager in net.managers] == [[], []]
    assert lives(net, session_id) == [True, True]
