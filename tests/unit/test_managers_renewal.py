"""Ids that are replaced by themselves: nothing is lost by it, and the old one is soon worth nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from caterwaul.managers.backup import BackupManager
from caterwaul.managers.base import SessionManager
from caterwaul.managers.delta import DeltaManager
from caterwaul.managers.listeners import SessionDestroyed
from caterwaul.managers.merging_types import Counter
from caterwaul.managers.opening import _Question
from caterwaul.managers.partitioned import PartitionedManager
from caterwaul.managers.record import BEFORE, FIRST, ID_AGE, RENEWED, SEED
from caterwaul.managers.renewal import Renewed, id_age_ms, next_id, next_seed, read_renewed
from caterwaul.managers.session import Session, key_of
from caterwaul.managers.settings import ManagerSettings
from caterwaul.managers.web.cookies import CookieSettings
from caterwaul.managers.web.policy import Front, Visit
from caterwaul.managers.web.watch import Watch
from tests.doubles import Net
from tests.lock_net import Holder, LockNet

KINDS = {"delta": DeltaManager, "backup": BackupManager, "partitioned": PartitionedManager}
TIMES: dict[str, Any] = {"renewal_timeout_s": 100.0, "renewal_grace_s": 20.0, "idle_timeout_s": 1000.0, "absolute_timeout_s": 5000.0}


def made(kind: type[SessionManager] = DeltaManager, count: int = 3, **more: Any) -> Net:
    name = next(name for name, one in KINDS.items() if one is kind)
    return Net(count, ManagerSettings(type=name, **{**TIMES, **more}), kind=kind)


def opened(net: Net, number: int, session_id: str) -> Session:
    session = net.opened(number, session_id)
    assert session.id is not None, "it is lost"
    return session


def commit(net: Net, number: int, session: Session, deliver: bool = True, **values: Any) -> str:
    """As a front ends a request."""
    manager = net.managers[number]
    session.update(values)
    manager.renew(session)
    receipt = manager.commit(session)
    if deliver:
        net.deliver()
        assert not receipt.needs_wait or receipt.satisfied
        manager.follow(session)
        manager.release(session)
    assert session.id is not None
    return session.id


def request(net: Net, number: int, session_id: str, **values: Any) -> str:
    return commit(net, number, opened(net, number, session_id), **values)


def contents(net: Net, number: int, session_id: str) -> dict[str, Any]:
    session = opened(net, number, session_id)
    net.managers[number].release(session)
    return dict(session)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_an_old_id_is_replaced_when_the_session_is_used_and_both_find_it_for_a_while(kind: type[SessionManager]) -> None:
    net = made(kind)
    old = net.visit(0, a=1)
    net.advance(50, 1.0)
    assert request(net, 1, old, b=2) == old
    net.advance(60, 1.0)
    new = request(net, 2, old, c=3)
    assert new != old
    for number in range(3):
        session = opened(net, number, old)
        assert session.id == new
        assert dict(session) == {"a": 1, "b": 2, "c": 3}
        net.managers[number].release(session)
        assert contents(net, number, new) == {"a": 1, "b": 2, "c": 3}
    net.advance(30, 0.5)
    for number in range(3):
        assert net.opened(number, old).id is None
        assert contents(net, number, new) == {"a": 1, "b": 2, "c": 3}
    net.advance(100, 1.0)
    assert request(net, 0, new) not in (new, old)


def test_reading_is_use_enough() -> None:
    net = made()
    old = net.visit(0, a=1)
    net.advance(101, 1.0)
    assert request(net, 1, old) != old


def test_without_the_setting_nothing_is_replaced_or_kept_for_it() -> None:
    net = made(renewal_timeout_s=0.0)
    old = net.visit(0, a=1)
    net.advance(500, 1.0)
    assert request(net, 1, old) == old
    assert set(net.opened(0, old)._registers) == {"a"}


def test_a_session_older_than_the_setting_is_prepared_and_then_replaced() -> None:
    net = made()
    net.managers[0]._committing._renews = False
    old = net.visit(0, a=1)
    net.managers[0]._committing._renews = True
    net.advance(101, 1.0)
    assert request(net, 0, old) == old
    assert request(net, 1, old) != old


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_parallel_requests_lose_nothing_whichever_commits_first(kind: type[SessionManager]) -> None:
    net = made(kind)
    old = net.visit(0, a=1)
    net.advance(110, 1.0)
    sessions = [opened(net, number, old) for number in (0, 0, 1, 2)]
    ids = [commit(net, number, session, **{name: 1}) for number, session, name in zip((0, 0, 1, 2), sessions, "bcde", strict=True)]
    assert ids[0] != old
    net.advance(3)
    for number in range(3):
        assert contents(net, number, ids[0]) == dict.fromkeys("abcde", 1)
        assert contents(net, number, old) == dict.fromkeys("abcde", 1)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_two_members_that_renew_at_once_make_one_session(kind: type[SessionManager]) -> None:
    net = made(kind)
    old = net.visit(0, a=1, both=0, hits=Counter())
    net.advance(110, 1.0)
    sessions = [opened(net, number, old) for number in range(3)]
    for number, session in enumerate(sessions):
        session["hits"].add(1)
        commit(net, number, session, deliver=False, **{f"by{number}": 1})
    net.deliver()
    net.advance(3)
    new = sessions[0].id
    assert new is not None
    assert new != old
    assert {session.id for session in sessions} == {new}
    for number in range(3):
        found = contents(net, number, new)
        assert found.pop("hits").value == 3
        assert found == {"a": 1, "both": 0, "by0": 1, "by1": 1, "by2": 1}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_sides_of_a_partition_that_renew_more_than_once_make_one_session(kind: type[SessionManager]) -> None:
    """Simulator, renewal, delta, seed 6: each made a seed of its own for the first id, and so another second one."""
    net = Net(
        2, ManagerSettings(type=next(name for name, one in KINDS.items() if one is kind), unknown_for_s=0.0, **{**TIMES, "renewal_timeout_s": 15.0}), kind=kind
    )
    ids = [net.visit(0, a=0)] * 2
    for number in range(2):
        net.managers[number].release(net.opened(number, ids[number]))
    net.part(0, 1)
    for turn in range(2):
        net.advance(16, 1.0)
        ids = [request(net, number, ids[number], **{f"{number}{turn}": turn}) for number in range(2)]
    assert ids[0] == ids[1]
    net.heal(0, 1)
    net.advance(5)
    assert [contents(net, number, ids[0]) for number in range(2)] == [{"a": 0, "00": 0, "01": 1, "10": 0, "11": 1}] * 2


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_is_written_to_the_old_id_before_its_member_hears_is_brought_along(kind: type[SessionManager]) -> None:
    net = made(kind)
    old = net.visit(0, a=1)
    net.advance(110, 1.0)
    late = opened(net, 1, old)
    first = opened(net, 0, old)
    for number in (0, 2):
        net.hold(number, 1)
    commit(net, 0, first, deliver=False, b=2)
    net.deliver()
    net.managers[1].settings.__dict__["renewal_timeout_s"] = 0.0  # it only writes
    commit(net, 1, late, deliver=False, c=3)
    net.deliver()
    net.let_go()
    net.advance(5)
    new = first.id
    assert new is not None
    for number in range(3):
        assert contents(net, number, new) == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("how", ["invalidate", "cycle_id", "end"])
def test_who_logs_out_or_in_with_the_old_id_ends_the_new_one(kind: type[SessionManager], how: str) -> None:
    net = made(kind)
    old = net.visit(0, a=1)
    net.advance(110, 1.0)
    slow = opened(net, 1, old)
    new = request(net, 0, old, b=2)
    if how == "end":
        net.managers[0].end(key_of(old))
    else:
        getattr(slow, how)()
        net.managers[1].commit(slow)
    net.managers[1].release(slow)
    net.advance(1)
    for number in range(3):
        assert net.opened(number, new).id is None
        assert net.opened(number, old).id is None
    if how == "cycle_id":
        assert slow.id is not None
        assert contents(net, 2, slow.id) == {"a": 1, "b": 2}


def test_the_end_of_an_old_id_is_told_as_that_of_any_replaced_id() -> None:
    net = made()
    told: list[SessionDestroyed] = []
    net.managers[0].on(SessionDestroyed)(told.append)
    old = net.visit(0, a=1)
    net.advance(110, 1.0)
    request(net, 1, old)
    net.advance(30, 0.5)
    assert [(event.key, event.reason) for event in told] == [(key_of(old), "id changed")]


def test_a_request_that_goes_on_does_not_keep_the_old_id_alive() -> None:
    net = made()
    old = net.visit(0, a=1)
    net.advance(110, 1.0)
    slow = [opened(net, number, old) for number in range(3)]
    new = request(net, 0, old)
    net.advance(30, 0.5)
    assert net.opened(0, old).id is None
    for number, session in enumerate(slow):
        net.managers[number].follow(session)
        net.managers[number].release(session)
    assert contents(net, 1, new) == {"a": 1}


def test_who_is_logged_in_has_one_session_and_the_limit_counts_one() -> None:
    net = Net(3, ManagerSettings(principal_sessions_max=1, **TIMES), epochs=True)
    session = net.opened(0)
    session.login("ann")
    old = commit(net, 0, session)
    net.advance(110, 1.0)
    new = request(net, 1, old)
    net.advance(3)
    users = net.managers[2].users
    whose = net.managers[2]._core.logins.key_of("ann")
    assert [login.key for login in users.logins_of([whose])] == [key_of(new)]
    assert contents(net, 2, new) == {}
    users.end_all("ann")
    net.advance(3)
    assert net.opened(1, old).id is None


def test_the_age_of_the_session_goes_on_and_that_of_the_id_begins_anew() -> None:
    net = made(absolute_timeout_s=250.0)
    first = net.visit(0, a=1)
    net.advance(110, 1.0)
    second = request(net, 0, first)
    session = opened(net, 1, second)
    assert net.managers[1].age_s(session) >= 110
    assert 108_000 <= id_age_ms(session._registers) <= 112_000
    net.managers[1].release(session)
    net.advance(110, 1.0)
    third = request(net, 1, second)
    assert third not in (first, second)
    net.advance(40, 1.0)
    assert net.opened(0, third).id is None


def test_a_browsers_token_is_good_for_its_old_id_and_it_gets_one_for_the_new() -> None:
    net = made(read_your_writes="cluster")
    session = net.opened(0)
    old = commit(net, 0, session, a=1)
    token = session.token
    net.advance(110, 1.0)
    new = request(net, 1, old)
    found = net.managers[2].open_local(old, token)
    assert found is not None
    assert found.id == new
    assert found.token
    assert found.token != token


def test_the_new_id_follows_from_both_the_old_one_and_the_seed() -> None:
    ids = {next_id(old, seed) for old in ("a" * 43, "b" * 43) for seed in (b"s" * 16, b"t" * 16)}
    assert len(ids) == 4
    assert {len(one) for one in ids} == {43}


@pytest.mark.parametrize("value", [None, b"", b"\xff", b"\x80", b"\x82\x41k\x00", b"\x82\x50" + b"k" * 16 + b"\x20", b"\x82\x50" + b"k" * 16 + b"\x61a"])
def test_what_means_nothing_leads_nowhere(value: bytes | None) -> None:
    assert read_renewed({RENEWED: (1, b"o" * 16, value)}) is None
    assert id_age_ms({ID_AGE: (1, b"o" * 16, value)}) == 0
    assert read_renewed({RENEWED: (1, b"o" * 16, Renewed(b"k" * 16, 5).pack())}) == Renewed(b"k" * 16, 5)
    assert read_renewed({SEED: (1, b"o" * 16, b"")}) is None


# -- behind a front


class Browser:
    """Keeps the cookie. Its requests may overlap."""

    def __init__(self, net: Net, **cookie: Any) -> None:
        self.fronts = [Front(manager, CookieSettings(**cookie)) for manager in net.managers]
        self.cookie = ""
        self.net = net

    @property
    def id(self) -> str:
        return self.cookie.partition("=")[2][:43]

    def begin(self, number: int, path: str = "/") -> Visit:
        front = self.fronts[number]
        ticket = front.ticket([self.cookie] if self.cookie else [], path, str)
        session = front.local(ticket, ("", ""))
        assert session is not None
        return front.admit(ticket, session, path, ("", ""))

    def end(self, visit: Visit) -> list[str]:
        visit.save()
        self.net.deliver()
        set_cookie = [value for name, value in visit.headers([]) if name == "Set-Cookie"]
        for value in set_cookie:
            self.cookie = value.partition(";")[0]
        visit.release()
        return set_cookie


def test_the_response_that_renews_sets_the_cookie_and_those_beside_it_the_same() -> None:
    net = made()
    browser = Browser(net, route=False)
    visit = browser.begin(0)
    visit.session["a"] = 1
    browser.end(visit)
    old = browser.id
    net.advance(110, 1.0)
    beside = [browser.begin(number) for number in range(3)]
    for visit in beside:
        assert visit.session["a"] == 1
    late = browser.begin(2)
    browser.end(beside[0])
    new = browser.id
    assert new != old
    for visit in beside[1:]:
        browser.end(visit)
        assert browser.id == new
    browser.cookie = f"__Host-sid={old}"  # the first response was lost
    again = browser.begin(1)
    assert dict(again.session) == {"a": 1}
    browser.end(again)
    assert browser.id == new
    late.session["late"] = True
    browser.end(late)
    assert contents(net, 0, new) == {"a": 1, "late": True}
    net.advance(30, 0.5)
    browser.cookie = f"__Host-sid={old}"
    assert browser.begin(0).session.id is None


def test_a_response_that_comes_after_with_a_cookie_of_an_age_does_not_bring_the_old_id_back() -> None:
    net = made()
    browser = Browser(net, route=False, max_age_s=3600)
    visit = browser.begin(0)
    visit.session["a"] = 1
    browser.end(visit)
    net.advance(110, 1.0)
    slow, quick = browser.begin(0), browser.begin(0)
    assert slow.session["a"] == quick.session["a"] == 1
    browser.end(quick)
    new = browser.id
    slow._touches = False  # it saves nothing
    browser.end(slow)
    assert browser.id == new


def test_a_response_whose_headers_have_left_does_not_renew() -> None:
    net = made()
    browser = Browser(net, route=False)
    visit = browser.begin(0)
    visit.session["a"] = 1
    browser.end(visit)
    old = browser.id
    visit = browser.begin(0)
    visit.headers([])
    net.advance(110, 1.0)
    visit.session["b"] = 1
    visit.save()
    net.deliver()
    visit.release()
    assert contents(net, 1, old) == {"a": 1, "b": 1}
    assert net.opened(1, old).id == old


def test_an_open_socket_goes_on_under_the_new_id_and_hears_of_its_end() -> None:
    net = made()
    old = net.visit(0, a=1)
    manager = net.managers[0]

    async def story() -> list[str]:
        over: list[str] = []
        session = manager.open_local(old)
        assert session is not None
        watch = Watch(manager)
        watched = watch.begin(session, True, over.append)
        net.advance(110, 1.0)
        new = request(net, 1, old)
        watched.look()
        net.advance(40, 1.0)
        await asyncio.sleep(0)
        assert (over, session.id, watch.count) == ([], new, 1)
        net.managers[2].end(key_of(new))
        net.deliver()
        await asyncio.sleep(0)
        assert watch.count == 0
        return over

    assert asyncio.run(story()) == ["invalidated"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["old", "new"])
def test_the_lock_of_a_session_is_the_same_for_all_its_ids(kind: str, how: str) -> None:
    net = LockNet(3, kind, renewal_timeout_s=100.0, renewal_grace_s=20.0)
    old = net.visit(0, n=0)
    net.advance(110, 1.0)
    holder = Holder(net, 1, old)
    net.deliver()
    assert holder.held
    new = request(net, 0, old)
    assert new != old
    other = Holder(net, 2, new if how == "new" else old)
    net.advance(1)
    assert not other.held
    for one in (holder, other):
        assert one.held
        one.session["n"] += 1
        one.leave()
        net.advance(1)
    assert [one.error for one in (holder, other)] == [None, None]
    for number in range(3):
        assert contents(net, number, new) == {"n": 2}


@pytest.mark.parametrize("why", ["no seed", "partial"])
def test_what_is_written_where_the_id_cannot_be_replaced_is_committed_under_the_old_one(why: str) -> None:
    net = made()
    old = net.visit(0, a=1)
    net.advance(110, 1.0)
    session = opened(net, 1, old)
    net.managers[1].renew(session)
    assert session.renewing
    replica = net.managers[1]._core.replica
    entry = replica.get(key_of(old))
    assert entry is not None
    record = replica.record(key_of(old), entry)
    assert record is not None
    if why == "partial":
        record.partial = True
    else:
        del record.registers[SEED]
    session["b"] = 2
    net.managers[1].commit(session)
    net.deliver()
    assert (session.id, session.renewing) == (old, False)
    assert contents(net, 0, old) == {"a": 1, "b": 2}


def test_who_leads_the_old_key_brings_a_whole_session_to_the_new_one_where_its_renewer_is_gone() -> None:
    """Simulator, renewal, partitioned, seed 4: it came there without a head, which nobody missed, and without its seed, so two members made one each, and two next ids of that."""
    net = made(PartitionedManager, 4)
    old = net.visit(0, a=1)
    key, to = key_of(old), key_of("x" * 43)
    placement = net.managers[0]._core.placement
    manager = next(manager for manager in net.managers if manager.me.uid == placement.primary(key, b""))
    core = manager._core
    seed = core.renewals.seed(key)
    assert seed is not None
    core.replica.commit(key, {RENEWED: Renewed(to, 100_000).pack()}, manager._channel.now_ms(), manager._channel.now_ms(), b"")
    core.renewals.note(key)
    for send in core.renewals.bring(core.placement):
        manager._channel.send(send.to, send.message)
    net.deliver()
    for other in net.managers:
        entry = other._core.replica.get(to)
        if other is not manager and other.me.uid in placement.holders(to, b""):
            assert entry is not None
            assert entry.head is not None
            record = other._core.replica.record(to, entry)
            assert record is not None
            assert (record.registers[SEED][2], record.registers[FIRST][2]) == (next_seed(key, seed), key)


# -- ends that cross a renewal


def crossing(kind: type[SessionManager], how: str) -> tuple[Net, str, str, Session]:
    """0 renews and 1 logs out, or in, with the old id, before either hears of the other. (net, old id, new id, 1's session)."""
    net = made(kind)
    old = net.visit(0, a=1)
    net.advance(110, 1.0)
    renews, ends = opened(net, 0, old), opened(net, 1, old)
    for here, there in ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)):
        net.hold(here, there)
    new = commit(net, 0, renews, deliver=False, b=2)
    getattr(ends, how)()
    net.managers[1].commit(ends)
    net.deliver()
    assert new != old
    return net, old, new, ends


def gone(net: Net, session_id: str, numbers: tuple[int, ...] = (0, 1, 2)) -> bool:
    return all(net.opened(number, session_id).id is None for number in numbers)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("how", ["invalidate", "cycle_id"])
def test_a_logout_or_login_with_the_old_id_at_the_same_moment_ends_the_new_one(kind: type[SessionManager], how: str) -> None:
    net, old, new, ends = crossing(kind, how)
    net.let_go()
    net.advance(3)
    assert gone(net, old)
    assert gone(net, new)
    if how == "cycle_id":
        assert ends.id is not None
        assert contents(net, 2, ends.id) == {"a": 1}


@pytest.mark.parametrize("how", ["invalidate", "cycle_id"])
def test_who_has_ended_the_old_id_ends_the_new_one_when_it_hears_of_that(how: str) -> None:
    net, old, new, _ = crossing(DeltaManager, how)
    net.held -= {(net.members[0].uid, net.members[number].uid) for number in (1, 2)}
    net.managers[0].received = lambda *_: None  # type: ignore[method-assign]
    net.deliver()
    net.kill(0)  # it never heard of the end
    net.let_go()
    net.advance(3)
    assert gone(net, old, (1, 2))
    assert gone(net, new, (1, 2))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_logout_in_a_partition_ends_what_was_renewed_meanwhile(kind: type[SessionManager]) -> None:
    net = Net(2, ManagerSettings(type=next(name for name, one in KINDS.items() if one is kind), unknown_for_s=0.0, **TIMES), kind=kind)
    old = net.visit(0, a=1)
    net.advance(110, 1.0)
    ends = opened(net, 1, old)
    net.part(0, 1)
    new = request(net, 0, old, b=2)
    ends.invalidate()
    net.managers[1].commit(ends)
    net.heal(0, 1)
    net.advance(5)
    assert gone(net, old, (0, 1))
    assert gone(net, new, (0, 1))


def test_of_an_id_that_was_replaced_twice_the_last_ends_too() -> None:
    net = made(renewal_timeout_s=15.0)
    first = net.visit(0, a=1)
    net.advance(16, 1.0)
    ends = opened(net, 1, first)
    for number in (0, 2):
        net.hold(number, 1)
        net.hold(1, number)
    second = commit(net, 0, opened(net, 0, first), deliver=False)
    net.advance(16, 1.0)
    third = commit(net, 0, opened(net, 0, second), deliver=False)
    assert len({first, second, third}) == 3
    ends.invalidate()
    net.managers[1].commit(ends)
    net.let_go()
    net.advance(3)
    assert gone(net, third)


def test_the_end_of_the_grace_ends_nothing_else_where_a_member_takes_the_session_for_younger() -> None:
    """Simulator, renewal, delta, seed 3: the session's beginning was on its way to one for seconds. It took the end of the grace for a login, and ended the session."""
    net = made()
    net.hold(0, 1)
    ids = []
    for _ in range(9):  # some of them another member watches over
        session = net.opened(0)
        session["a"] = 1
        net.managers[0].commit(session)
        net.managers[0].release(session)
        ids.append(session.id or "")
    net.advance(5)
    net.let_go()
    net.advance(110, 1.0)
    new = [request(net, 0, one) for one in ids]
    net.advance(60, 0.5)
    assert all(gone(net, one) for one in ids)
    assert [contents(net, number, one) for number in range(3) for one in new] == [{"a": 1}] * 27


def test_the_end_of_the_grace_ends_nothing_else_however_late_the_mark_comes() -> None:
    net = made()
    old = net.visit(0, a=1)
    net.advance(110, 1.0)
    new = request(net, 0, old)
    net.advance(30, 0.5)
    for manager in net.managers:
        mark = Renewed(key_of(new), 130_000).pack()
        manager._core.renewals.deltas([[key_of(old), 9, 0, {}, {RENEWED: mark}, 0]], net.members[0].uid)
        assert manager._core.renewals.over == []
    assert contents(net, 1, new) == {"a": 1}


# -- a mark that is lost: the new key's record says where it came from


def unmarked(kind: type[SessionManager]) -> tuple[Net, str, str]:
    """0 has replaced the id, and of that nobody has heard yet: what it said is lost. (net, old id, new id)."""
    net = made(kind, backups=2) if kind is not DeltaManager else made(kind)
    old = net.visit(0, a=1)
    net.advance(110, 1.0)
    session = opened(net, 0, old)
    for other in (1, 2):
        net.hold(0, other)
    new = commit(net, 0, session, deliver=False, b=2)
    net.deliver()
    assert new != old
    net.flights.clear()
    net.let_go()
    return net, old, new


def give(net: Net, giver: int, to: int, session_id: str) -> None:
    """Only the record of this key."""
    for message in net.managers[giver]._core.entropy.messages([key_of(session_id)]):
        net.channels[net.members[to].uid].deliver(net.members[giver], message, net.channels[net.members[giver].uid].now_ms())


def write_alone(net: Net, number: int, old: str) -> None:
    """`c` = 3 under the old id, of which nobody else hears."""
    for other in {0, 1, 2} - {number}:
        net.hold(number, other)
    session = opened(net, number, old)
    session["c"] = 3
    net.managers[number].commit(session)
    net.managers[number].release(session)
    assert session.id == old


def test_who_gets_the_new_record_and_has_not_heard_of_the_old_key_brings_what_it_wrote_there() -> None:
    """Simulator, renewal, partitioned, seed 23: with the new id it showed less than with the old one."""
    net, old, new = unmarked(DeltaManager)
    write_alone(net, 1, old)
    give(net, 0, 1, new)
    assert contents(net, 1, new) == {"a": 1, "b": 2, "c": 3}
    assert opened(net, 1, old).id == new


def test_who_gets_the_mark_before_the_new_record_brings_what_it_wrote_when_that_comes() -> None:
    """Simulator, renewal, delta, seed 744: an older value was shown under the new id, until somebody else brought the newer one."""
    net, old, new = unmarked(DeltaManager)
    write_alone(net, 1, old)
    give(net, 0, 1, old)
    assert net.managers[1]._core.replica.get(key_of(new)) is None
    give(net, 0, 1, new)
    assert contents(net, 1, new) == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_mark_that_went_with_who_made_it_is_set_and_told_by_who_has_the_new_record(kind: type[SessionManager]) -> None:
    """Simulator, renewal, backup, seed 102: both ids lived, each with a session of its own."""
    net, old, new = unmarked(kind)
    give(net, 0, 1, new)
    net.kill(0)
    net.advance(4.0)
    for other in (1, 2):
        core = net.managers[other]._core
        renewed = core.renewals.of(key_of(old))
        assert renewed is not None
        assert renewed.key == key_of(new)


def test_who_leads_a_new_key_whose_renewer_is_lost_sees_that_the_holders_of_the_old_one_hear_of_it() -> None:
    net = made(PartitionedManager, 8, backups=1)
    number = {member.uid: number for number, member in enumerate(net.members)}
    placement = net.managers[0]._core.placement
    for _ in range(200):
        old = net.visit(0, a=1)
        have = placement.holders(key_of(old), b"")
        new = net.managers[number[have[0]]]._core.renewals.next_of(old, key_of(old))
        assert new is not None
        if len({net.members[0].uid, *have, *placement.holders(key_of(new), b"")}) == 5:
            break
    else:
        raise AssertionError("their holders are never disjoint")
    net.advance(101, 1.0)
    session = opened(net, 0, old)
    for uid in have:
        net.hold(0, number[uid])
    assert commit(net, 0, session, deliver=False, b=2) == new
    net.deliver()
    net.kill(0)
    net.let_go()
    net.advance(4.0)
    for uid in have:
        renewed = net.managers[number[uid]]._core.renewals.of(key_of(old))
        assert renewed is not None
        assert renewed.key == key_of(new)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_record_of_the_new_id_that_says_nothing_new_is_answered_by_nothing(kind: type[SessionManager]) -> None:
    """Members that all took themselves for the primary of the old key would send each other its contents without an end."""
    net = made(kind, backups=2) if kind is not DeltaManager else made(kind)
    old = net.visit(0, a=1)
    net.advance(110, 1.0)
    new = request(net, 0, old, b=2)
    assert new != old
    for manager in net.managers:
        entry = manager._core.replica.get(key_of(old))
        assert entry is not None
        manager._core.replica.take_over(key_of(old), entry)
    assert not any(net.flights.values())
    for to in (1, 2):
        give(net, 0, to, new)
    assert not any(net.flights.values())


def test_an_old_key_that_comes_after_the_new_one_is_marked_too() -> None:
    net, old, new = unmarked(DeltaManager)
    core = net.managers[1]._core
    core.replica.drop(key_of(old))
    give(net, 0, 1, new)
    give(net, 2, 1, old)
    renewed = core.renewals.of(key_of(old))
    assert renewed is not None
    assert renewed.key == key_of(new)


def test_a_logout_with_an_old_id_ends_the_new_one_when_that_comes_without_its_mark() -> None:
    net, old, new = unmarked(DeltaManager)
    for other in (0, 2):
        net.hold(1, other)
    session = opened(net, 1, old)
    session.invalidate()
    net.managers[1].commit(session)
    give(net, 0, 1, new)
    assert net.opened(1, new).id is None


def test_what_is_known_of_new_keys_is_forgotten_some_time_after_the_grace() -> None:
    net = made()
    old = net.visit(0, a=1)
    net.advance(101, 1.0)
    assert request(net, 0, old) != old
    assert [set(manager._core.renewals.links) for manager in net.managers] == [{key_of(old)}] * 3
    net.advance(150, 1.0)
    assert [set(manager._core.renewals.links) for manager in net.managers] == [set()] * 3


def test_an_id_that_was_replaced_more_often_than_a_request_follows_is_unknown_and_not_gone() -> None:
    net = made()
    old = net.visit(0, a=1)
    net.advance(101, 1.0)
    request(net, 0, old)
    manager = net.managers[0]
    found = manager._opening._look(_Question(old, key_of(old), "", left=0), manager._channel.now_ms())
    assert isinstance(found, Session)
    assert found.unknown


def test_the_id_of_a_login_names_none_before_it() -> None:
    """Simulator, renewal, delta, seed 18: what was written to ids of before the login came to the session of after it."""
    net = made()
    old = net.visit(0, a=1)
    net.advance(101, 1.0)
    session = opened(net, 0, request(net, 0, old))
    session.cycle_id()
    new = commit(net, 0, session, b=2)
    assert key_of(old) in net.managers[0]._core.renewals.links
    assert net.managers[0]._core.renewals.links[key_of(old)].to != key_of(new)
    entry = net.managers[0]._core.replica.get(key_of(new))
    assert entry is not None
    record = net.managers[0]._core.replica.record(key_of(new), entry)
    assert record is not None
    assert SEED in record.registers
    assert BEFORE not in record.registers


def test_a_link_between_ids_of_long_ago_is_not_kept() -> None:
    """The record of a session says for as long as it lives which id it has replaced; a member may load millions of such."""
    net = made(count=1)
    old = net.visit(0, n=1)
    net.advance(110.0)
    new = request(net, 0, old)
    renewals = net.managers[0]._core.renewals
    assert key_of(new) != key_of(old)
    assert key_of(old) in renewals.links
    net.advance(200.0)
    assert not renewals.links
    renewals.note(key_of(new))
    assert not renewals.links
