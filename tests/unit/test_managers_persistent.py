"""Sessions in a store that all servers share, and nowhere else: in virtual time, with requests that go round robin."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from caterwaul.managers.kept import Kept, KeptEnd, read_item
from caterwaul.managers.listeners import Audited, SessionDestroyed
from caterwaul.managers.persistent import PersistentManager
from caterwaul.managers.session import Session, key_of
from caterwaul.managers.settings import ManagerSettings
from caterwaul.managers.stores.settings import StoreSettings
from caterwaul.membership.errors import LocalError
from tests.doubles import MANAGER, Net
from tests.lock_net import Holder, LockNet

STORE = StoreSettings(url="memory:", write="behind", load=True)  # neither counts for this manager


def net(count: int = 3, *, epochs: bool = False, **settings: Any) -> Net:
    found = Net(count, ManagerSettings(**{"idle_timeout_s": 600.0, **settings}), kind=PersistentManager, store=STORE, epochs=epochs)
    found.advance(6.0 if epochs else 0.1)
    return found


def items(of: Net) -> dict[bytes, Any]:
    store = of.stores[MANAGER]
    return {key: read_item(stored.data) for key, stored in store.load(store.keys()).items()}


def begun(of: Net, number: int, session_id: str | None = None) -> Session:
    """A request that is under way, whatever it got."""
    result: list[Session] = []
    of.managers[number].open_deferred(session_id).addCallback(result.append)
    of.wait(lambda: bool(result), 10.0)
    return result[0]


def ended(of: Net, number: int, session: Session) -> bool:
    """The request is over; whether what it changed was confirmed."""
    receipt = of.managers[number].commit(session)
    of.wait(lambda: not receipt.needs_wait)
    of.managers[number].release(session)
    return receipt.satisfied


def read(of: Net, number: int, session_id: str) -> dict[str, Any] | None:
    session = begun(of, number, session_id)
    found = None if session.id is None else dict(session)
    ended(of, number, session)
    return found


def heard(of: Net, kind: type = SessionDestroyed) -> list[Any]:
    events: list[Any] = []
    for manager in of.managers:
        manager.listen(kind, events.append)
    of.deliver()
    return events


def test_without_a_store_it_says_so() -> None:
    with pytest.raises(LocalError, match=r"give \[store\] a url"):
        Net(1, kind=PersistentManager)


def test_every_request_reads_what_the_one_before_wrote_wherever_it_was() -> None:
    cluster = net()
    session_id = cluster.visit(0, n=0)
    servers = cycle((1, 2, 0, 2, 1))
    for count in range(20):
        number = next(servers)
        assert read(cluster, number, session_id) == {"n": count}
        cluster.visit(number, session_id, n=count + 1)
    assert all(manager.statistics()["stale_reads"] == 0 for manager in cluster.managers)
    assert not any(message[1] < 200 for m in cluster.members for _, message in cluster.channels[m.uid].sent if message[0] == MANAGER), "nobody is told"


def test_what_has_not_changed_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = net(2)
    session_id = cluster.visit(0, n=0)
    assert read(cluster, 1, session_id) == {"n": 0}
    decoded: list[bytes] = []
    monkeypatch.setattr("caterwaul.managers.fetching.read_item", lambda data: (decoded.append(data), read_item(data))[1])
    for number in (0, 1, 0, 1):
        assert read(cluster, number, session_id) == {"n": 0}
    assert not decoded
    cluster.visit(0, session_id, n=1)
    assert read(cluster, 1, session_id) == {"n": 1}
    assert len(decoded) == 1


def test_changes_at_the_same_time_on_two_servers_both_survive() -> None:
    cluster = net()
    session_id = cluster.visit(0, n=0)
    sessions = [begun(cluster, number, session_id) for number in range(3)]
    receipts = []
    for number, session in enumerate(sessions):
        session[f"by{number}"] = number
        receipts.append(cluster.managers[number].commit(session))
        cluster.managers[number].release(session)
    cluster.wait(lambda: not any(receipt.needs_wait for receipt in receipts))
    assert all(receipt.satisfied for receipt in receipts)
    assert sum(manager.statistics()["store_conflicts"] for manager in cluster.managers) >= 2
    for number in range(3):
        assert read(cluster, number, session_id) == {"n": 0, "by0": 0, "by1": 1, "by2": 2}


def test_a_request_that_comes_while_another_load_is_under_way_does_not_take_its_answer() -> None:
    cluster = net(2)
    session_id = cluster.visit(0, n=0)
    taken = cluster.stores[MANAGER].load([key_of(session_id)])
    worker = cluster.managers[1].persistence._worker  # type: ignore[union-attr]
    slow: Deferred[Any] = Deferred()
    run, worker._run = worker._run, lambda *call: slow
    sessions: list[Session] = []
    cluster.managers[1].open_deferred(session_id).addCallback(sessions.append)
    worker._run = run
    cluster.visit(0, session_id, n=1)
    cluster.managers[1].open_deferred(session_id).addCallback(sessions.append)
    slow.callback(taken)
    cluster.wait(lambda: len(sessions) == 2)
    assert [session["n"] for session in sessions] == [0, 1]


def begun_with(of: Net, number: int, session_id: str, load: Any) -> Session:
    """From what is cached there, whatever the store says now."""
    return of.managers[number]._opening._made(
        session_id, key_of(session_id), dict(of.managers[number]._core.replica.held(key_of(session_id)).body.registers), 1
    )  # type: ignore[union-attr]


def test_a_server_that_dies_takes_nothing_with_it_that_was_confirmed() -> None:
    cluster = net()
    ids = [cluster.visit(number % 3, n=number) for number in range(12)]
    cluster.kill(0)
    cluster.deliver()
    for number, session_id in enumerate(ids):
        assert read(cluster, 1 + number % 2, session_id) == {"n": number}
    assert begun(cluster, 1, "x" * 43).new, "nobody waits for what the dead might have had"


def test_what_somebody_cleared_is_gone_and_what_was_never_stored_is_not() -> None:
    cluster = net(2)
    session_id = cluster.visit(0, n=0)
    cluster.store_fails = True
    other = begun(cluster, 0)
    other["n"] = 5
    assert not ended(cluster, 0, other)
    cluster.store_fails = False
    cluster.stores[MANAGER].clear()
    cluster.advance(5.0)
    assert read(cluster, 0, session_id) is None
    assert cluster.managers[0]._core.replica.get(key_of(session_id)) is None
    for number in (0, 1):
        assert read(cluster, number, str(other.id)) == {"n": 5}


def test_with_the_store_in_trouble_what_is_cached_is_served_and_said_to_be_stale() -> None:
    cluster = net(2)
    session_id, elsewhere = cluster.visit(0, n=0), cluster.visit(1, n=1)
    cluster.store_fails = True
    session = begun(cluster, 0, session_id)
    assert (session["n"], session.stale) == (0, True)
    session["n"] = 1
    assert not ended(cluster, 0, session)
    assert begun(cluster, 0, elsewhere).unknown
    assert begun(cluster, 0, "x" * 43).unknown
    assert cluster.managers[0].statistics()["stale_reads"] == 1
    cluster.store_fails = False
    cluster.advance(5.0)
    session = begun(cluster, 1, session_id)
    assert (session["n"], session.stale) == (1, False)


def test_a_logout_is_seen_by_the_next_request_on_any_server_and_told_once() -> None:
    cluster = net()
    events = heard(cluster)
    session_id = cluster.visit(0, n=0)
    for number in range(3):
        assert read(cluster, number, session_id) == {"n": 0}
    slow = begun(cluster, 1, session_id)
    session = begun(cluster, 0, session_id)
    session.invalidate()
    assert ended(cluster, 0, session)
    for number in (2, 1, 0):
        assert read(cluster, number, session_id) is None
    slow["late"] = 1
    assert not ended(cluster, 1, slow)
    cluster.advance(5.0)
    assert isinstance(items(cluster)[key_of(session_id)], KeptEnd)
    assert [(event.reason, dict(event.attributes)) for event in events] == [("invalidated", {"n": 0})]


def test_a_write_after_a_logout_on_another_server_is_not_confirmed() -> None:
    cluster = net(2)
    session_id = cluster.visit(0, n=0)
    slow = begun(cluster, 1, session_id)
    session = begun(cluster, 0, session_id)
    session.invalidate()
    assert ended(cluster, 0, session)
    slow["late"] = 1  # nobody here has heard of it
    assert not ended(cluster, 1, slow)
    assert read(cluster, 1, session_id) is None


def test_a_write_is_not_confirmed_by_an_end_that_is_read_before_it_can_be_saved() -> None:
    cluster = net(2)
    session_id = cluster.visit(0, n=0)
    slow, session = begun(cluster, 1, session_id), begun(cluster, 0, session_id)
    session.invalidate()
    assert ended(cluster, 0, session)
    persistence = cluster.managers[1].persistence
    assert persistence is not None
    persistence._is_saving = True  # another batch is under way
    slow["late"] = 1
    receipt = cluster.managers[1].commit(slow)
    persistence.fetching.merge(cluster.stores[MANAGER].load([slow.key]), [slow.key])
    persistence._is_saving = False
    persistence.save()
    cluster.wait(lambda: not receipt.needs_wait)
    assert not receipt.satisfied


def test_what_the_store_has_survives_the_loss_of_any_server_and_a_server_may_leave_when_it_has_all() -> None:
    cluster = net(2)
    manager = cluster.managers[0]
    cluster.visit(0, n=0)
    assert (manager.survey_page(b"", 100), manager.remaining(), manager.in_sync) == ([], (0, 0), True)
    cluster.store_fails = True
    session = begun(cluster, 0)
    session["n"] = 1
    ended(cluster, 0, session)
    assert [item[:16] for item in manager.survey_page(b"", 100)] == [session.key]
    assert len(manager.survey_items([session.key])) == 1
    assert manager.remaining() == (1, 0)


# -- ends by time


def test_a_session_that_is_used_elsewhere_goes_on_whatever_a_cached_copy_says() -> None:
    cluster = net(idle_timeout_s=100.0, max_idle_swap_s=3600.0, save_period_s=5.0)
    events = heard(cluster)
    session_id = cluster.visit(0, n=0)
    for _ in range(30):
        cluster.advance(20.0, 0.5)
        assert read(cluster, 1, session_id) == {"n": 0}
    assert cluster.managers[0].count == 1, "it is cached there all the time"
    assert read(cluster, 0, session_id) == {"n": 0}
    assert events == []


@pytest.mark.parametrize("cached", [True, False])
def test_a_session_that_nobody_uses_ends_and_one_server_tells_of_it(cached: bool) -> None:
    cluster = net(idle_timeout_s=100.0, save_period_s=5.0, **({"max_idle_swap_s": 3600.0} if cached else {}))
    events, audited = heard(cluster), heard(cluster, Audited)
    session = begun(cluster, 0)
    session["n"] = 0
    session.principal = "ada"
    assert ended(cluster, 0, session)
    for number in (1, 2):
        assert read(cluster, number, str(session.id)) == {"n": 0}
    cluster.advance(105.0, 0.5)
    assert read(cluster, 1, str(session.id)) is None
    cluster.advance(120.0, 0.5)
    assert [(event.reason, dict(event.attributes), event.principal) for event in events] == [("expired", {"n": 0}, "ada")]
    assert [event.what for event in audited] == ["login", "expired"]
    assert isinstance(items(cluster)[session.key], KeptEnd)
    assert sum(manager.statistics()["expired"] for manager in cluster.managers) == 1


def test_a_session_that_ends_does_not_leave_memory_before_somebody_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = net(1, idle_timeout_s=100.0, save_period_s=5.0, max_idle_swap_s=2.0)
    events, persistence = heard(cluster), cluster.managers[0].persistence
    assert persistence is not None
    worker = persistence._worker
    session_id = cluster.visit(0, n=0)
    cluster.advance(10.0)
    assert cluster.managers[0].count == 0
    run = worker._run

    def slowly(function: Any, call: Any, *arguments: Any) -> Deferred[Any]:
        """A save takes longer than a sweep through memory."""
        answer = run(function, call, *arguments)
        return answer.addCallback(lambda done: deferLater(cluster.clock, 4.0, lambda: done)) if call.__name__ == "save_many" else answer

    monkeypatch.setattr(worker, "_run", slowly)
    monkeypatch.setattr(persistence.lapsing, "look", lambda key: None)  # it would find the end in the store, if it came in time
    cluster.advance(220.0, 0.5)
    assert isinstance(items(cluster)[key_of(session_id)], KeptEnd)
    assert [(event.reason, dict(event.attributes)) for event in events] == [("expired", {"n": 0})]


def test_an_absolute_limit_ends_a_session_that_is_used_once() -> None:
    cluster = net(2, absolute_timeout_s=100.0, idle_timeout_s=50.0)
    events = heard(cluster)
    session_id = cluster.visit(0, n=0)
    for step in range(12):
        cluster.advance(10.0, 0.5)
        assert (read(cluster, step % 2, session_id) is None) == (step >= 9)
    cluster.advance(60.0, 0.5)
    assert [event.reason for event in events] == ["expired"]


def test_an_end_that_another_server_got_ahead_of_has_not_happened() -> None:
    cluster = net(2, idle_timeout_s=100.0, save_period_s=5.0, max_idle_swap_s=3600.0)
    events = heard(cluster)
    session_id = cluster.visit(0, n=0)
    begun(cluster, 1, session_id)  # an open request on the other server: it does not look at its clock
    cluster.advance(111.0, 0.5)
    store = cluster.stores[MANAGER]
    save_many = store.save_many
    refused: list[Any] = []

    def first_the_other(saves: Any) -> Any:
        if any(isinstance(read_item(save.data), KeptEnd) for save in saves) and not refused:
            session = begun_with(cluster, 1, session_id, None)
            session["late"] = 1
            refused.append(cluster.managers[1].commit(session))
            persistence = cluster.managers[1].persistence
            assert persistence is not None
            store.save_many = save_many  # type: ignore[method-assign]
            persistence.storing.gather(cluster.channels[cluster.members[1].uid].now_ms())
            persistence._save(persistence.storing.batch(cluster.channels[cluster.members[1].uid].now_ms(), persistence._ahead_ms()))
        return save_many(saves)

    store.save_many = first_the_other  # type: ignore[method-assign]
    cluster.advance(30.0, 0.5)
    assert refused
    assert isinstance(items(cluster)[key_of(session_id)], Kept)
    assert events == []
    assert read(cluster, 0, session_id) == {"n": 0, "late": 1}


def test_a_use_that_is_not_stored_yet_is_not_lost_when_the_copy_leaves_memory() -> None:
    cluster = net(1, idle_timeout_s=100.0, save_period_s=10.0, max_idle_swap_s=2.0)
    session_id = cluster.visit(0, n=0)
    cluster.advance(1.0)
    cluster.advance(60.0, 0.5)
    assert cluster.managers[0].count == 0
    assert read(cluster, 0, session_id) == {"n": 0}
    cluster.advance(20.0, 0.5)
    assert cluster.managers[0].count == 0
    cluster.advance(60.0, 0.5)
    assert read(cluster, 0, session_id) == {"n": 0}


# -- logins, locks, ids


def test_ends_of_all_sessions_of_a_principal_reach_what_is_only_stored() -> None:
    cluster = net(2, epochs=True)
    events = heard(cluster)
    ids = []
    for number in range(4):
        session = begun(cluster, number % 2)
        session.login("ada")
        assert ended(cluster, number % 2, session)
        ids.append(str(session.id))
    cluster.advance(70.0, 0.5)
    assert [manager.count for manager in cluster.managers] == [0, 0]
    assert read(cluster, 0, ids[0]) == {}
    assert read(cluster, 1, ids[0]) == {}  # cached by both
    cluster.managers[1].end_all("ada")
    cluster.advance(0.1)
    assert [read(cluster, number % 2, session_id) for number, session_id in enumerate(ids)] == [None] * 4
    cluster.advance(10.0)
    assert sorted(event.key for event in events) == sorted(map(key_of, ids))


def test_who_changes_its_id_has_its_contents_on_every_server() -> None:
    cluster = net()
    old = cluster.visit(0, n=0)
    session = begun(cluster, 1, old)
    session.cycle_id()
    session["n"] = 1
    assert ended(cluster, 1, session)
    for number in (2, 0, 1):
        assert read(cluster, number, str(session.id)) == {"n": 1}
        assert read(cluster, number, old) is None


def test_requests_on_all_servers_add_to_one_number_under_the_lock() -> None:
    cluster = LockNet(3, "persistent")
    session_id = cluster.visit(0, n=0)
    holders = [Holder(cluster, number % 3, session_id) for number in range(9)]
    for done in range(9):
        cluster.wait(lambda: any(holder.held for holder in holders))
        (holder,) = [holder for holder in holders if holder.held]
        assert holder.session["n"] == done
        holder.session["n"] = done + 1
        holder.leave()
    cluster.advance(0.1)
    assert [read(cluster, number, session_id) for number in range(3)] == [{"n": 9}] * 3
    assert [holder.error for holder in holders] == [None] * 9


def test_what_the_holder_before_could_not_store_is_waited_for_and_then_refused() -> None:
    cluster = LockNet(2, "persistent")
    session_id = cluster.visit(0, n=0)
    holder, waiting = Holder(cluster, 0, session_id), Holder(cluster, 1, session_id, timeout_s=1.0)
    cluster.wait(lambda: holder.held or waiting.held)
    first, second = (holder, waiting) if holder.held else (waiting, holder)
    cluster.store_fails = True
    first.session["n"] = 1
    first.leave()
    cluster.advance(8.0)
    assert not second.held
    assert second.error is not None
    assert second.error.status == 503  # type: ignore[attr-defined]


# -- ids that are replaced by themselves


def request(of: Net, number: int, session_id: str, **values: Any) -> str:
    """As a front does it; the id that the browser has after it."""
    session = begun(of, number, session_id)
    session.update(values)
    manager = of.managers[number]
    manager.renew(session)
    assert ended(of, number, session)
    manager.follow(session)
    return str(session.id)


def test_an_id_that_is_replaced_on_one_server_leads_to_its_session_on_all() -> None:
    cluster = net(renewal_timeout_s=100.0, renewal_grace_s=20.0, idle_timeout_s=1000.0)
    old = cluster.visit(0, n=0)
    cluster.advance(101.0, 0.5)
    new = request(cluster, 1, old, n=1)
    assert new != old
    for number in (2, 0, 1):
        assert request(cluster, number, old, **{f"by{number}": 1}) == new
    assert read(cluster, 2, new) == {"n": 1, "by0": 1, "by1": 1, "by2": 1}
    cluster.advance(90.0, 0.5)
    assert read(cluster, 1, old) is None
    assert read(cluster, 1, new) == {"n": 1, "by0": 1, "by1": 1, "by2": 1}


def test_what_a_parallel_request_writes_to_the_old_id_elsewhere_is_not_lost() -> None:
    cluster = net(renewal_timeout_s=100.0, renewal_grace_s=20.0, idle_timeout_s=1000.0)
    old = cluster.visit(0, n=0)
    cluster.advance(101.0, 0.5)
    slow = begun(cluster, 2, old)
    new = request(cluster, 1, old, n=1)
    slow["late"] = 1
    assert ended(cluster, 2, slow)
    cluster.advance(3.0)
    for number in range(3):
        assert read(cluster, number, new) == {"n": 1, "late": 1}
