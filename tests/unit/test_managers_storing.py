"""What is behind managers outlives them: a store that all members share, in virtual time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from twisted.logger import capturedLogs

from caterwaul.managers.backup import BackupManager
from caterwaul.managers.delta import DeltaManager
from caterwaul.managers.digests import digest
from caterwaul.managers.drafts import Draft, encoded
from caterwaul.managers.heads import EXPIRED, Cover, Head
from caterwaul.managers.kept import Kept, KeptEnd, read_item
from caterwaul.managers.listeners import SessionActivated, SessionCreated, SessionDestroyed, SessionPassivated
from caterwaul.managers.messages import STORED
from caterwaul.managers.partitioned import PartitionedManager
from caterwaul.managers.persistent import PersistentManager
from caterwaul.managers.record import Record
from caterwaul.managers.session import Session, key_of
from caterwaul.managers.settings import ManagerSettings
from caterwaul.managers.stores.settings import StoreSettings
from caterwaul.managers.stores.store import Save, Stored, StoreError
from caterwaul.membership.errors import RemoteError
from tests.doubles import MANAGER, Net

BEHIND = StoreSettings(url="memory:", write_behind_s=1.0)
THROUGH = StoreSettings(url="memory:", write="through")
KINDS = pytest.mark.parametrize("kind", [DeltaManager, BackupManager, PartitionedManager])


def net(count: int = 2, store: StoreSettings = BEHIND, **more: Any) -> Net:
    more.setdefault("settings", ManagerSettings(unknown_for_s=0.0))
    found = Net(count, store=store, **more)
    found.advance(1.0)  # what is stored was looked for
    return found


def items(of: Net) -> dict[bytes, Any]:
    store = of.stores[MANAGER]
    return {key: read_item(stored.data) for key, stored in store.load(store.keys()).items()}


def restarted(of: Net, load: bool = True, **more: Any) -> Net:
    """All members are dead, as by kill -9; others begin with the same store."""
    for number in range(len(of.members)):
        for engine in of.engines(number):
            engine._driver.stop()
    store = of.store
    assert store is not None
    more.setdefault("settings", of.settings)
    later = of.clock.seconds() + 100.0
    new = Net(len(of.members), store=replace(store, load=load), kind=of.kind, stores=of.stores, began_s=later, **more)
    new.advance(1.0)
    return new


def opened(of: Net, number: int, session_id: str, seconds: float = 3.0) -> Session:
    """What a request gets that waits for the store too."""
    result: list[Session] = []
    of.managers[number].open_deferred(session_id).addCallback(result.append)
    of.deliver()
    while not result and seconds > 0:
        of.advance(0.05)
        seconds -= 0.05
    assert result, "the request waits"
    of.managers[number].release(result[0])
    return result[0]


@KINDS
def test_a_change_is_stored_before_write_behind_s_is_over(kind: type) -> None:
    cluster = net(3, kind=kind)
    session_id = cluster.visit(0, name="ada")
    cluster.advance(1.0)
    assert list(items(cluster)) == [key_of(session_id)]
    assert cluster.managers[0].statistics()["store_waiting"] == 0


@KINDS
def test_many_changes_are_one_save_by_one_member(kind: type) -> None:
    cluster = net(3, kind=kind)
    session_id = cluster.visit(0, count=0)
    cluster.advance(2.0)
    before = sum(manager.statistics()["store_saves"] for manager in cluster.managers)
    for count in range(20):
        cluster.visit(count % 3, session_id, count=count)
    cluster.advance(2.0)
    assert sum(manager.statistics()["store_saves"] for manager in cluster.managers) - before <= 3  # primaries move with the requests


@KINDS
def test_sessions_come_back_after_all_members_died(kind: type) -> None:
    cluster = net(3, kind=kind)
    ids = [cluster.visit(number % 3, name=f"n{number}") for number in range(30)]
    cluster.advance(2.0)
    again = restarted(cluster)
    again.advance(2.0)
    assert sum(manager.statistics()["store_loads"] for manager in again.managers) == 30  # each once
    for number, session_id in enumerate(ids):
        assert again.opened(number % 3, session_id)["name"] == f"n{number}"


@KINDS
def test_a_session_is_loaded_when_it_is_asked_for(kind: type) -> None:
    cluster = net(3, kind=kind)
    session_id = cluster.visit(0, name="ada")
    cluster.advance(2.0)
    again = restarted(cluster, load=False)
    assert not any(manager.count for manager in again.managers)
    assert opened(again, 1, session_id)["name"] == "ada"
    again.visit(2, session_id, more=1)
    assert dict(opened(again, 0, session_id)) == {"name": "ada", "more": 1}


@KINDS
def test_what_has_ended_stays_ended(kind: type) -> None:
    cluster = net(2, kind=kind)
    session_id = cluster.visit(0, name="ada")
    cluster.advance(2.0)
    session = cluster.opened(0, session_id)
    session.invalidate()
    cluster.managers[0].commit(session)
    cluster.deliver()
    cluster.advance(2.0)
    assert isinstance(items(cluster)[key_of(session_id)], KeptEnd)
    for load in (True, False):
        again = restarted(cluster, load=load)
        assert opened(again, 1, session_id).new


def test_an_id_that_nobody_has_asks_the_store_once_a_second() -> None:
    cluster = net(1)
    calls: list[object] = []
    store = cluster.stores[MANAGER]
    load = store.load
    store.load = lambda keys: (calls.append(keys), load(keys))[1]  # type: ignore[method-assign]
    for _ in range(5):
        assert opened(cluster, 0, "x" * 43).new
    assert len(calls) == 1
    cluster.advance(1.1)
    assert opened(cluster, 0, "x" * 43).new
    assert len(calls) == 2


def test_a_store_in_trouble_makes_absent_sessions_unknown_and_holds_up_nothing_else() -> None:
    cluster = net(2, settings=ManagerSettings(unknown_for_s=5.0))
    cluster.advance(6.0)
    cluster.store_fails = True
    session_id = cluster.visit(0, name="ada")
    cluster.advance(3.0)
    assert cluster.opened(0, session_id)["name"] == "ada"
    assert opened(cluster, 1, "x" * 43).unknown
    statistics = cluster.managers[0].statistics()
    assert (statistics["store_open"], statistics["store_waiting"]) == (1, 1)
    assert statistics["store_waiting_ms"] >= 2000
    cluster.store_fails = False
    cluster.advance(6.0)
    assert list(items(cluster)) == [key_of(session_id)]
    assert opened(cluster, 1, "x" * 43).new
    assert cluster.managers[0].statistics()["store_waiting"] == 0


def test_after_the_death_of_the_first_holder_another_saves() -> None:
    cluster = net(3, kind=BackupManager)
    session_id = cluster.visit(0, count=0)
    cluster.advance(2.0)
    cluster.store_fails = True
    cluster.visit(0, session_id, count=1)
    cluster.advance(2.0)
    cluster.kill(0)
    cluster.advance(1.0)
    cluster.store_fails = False
    cluster.advance(8.0)
    again = restarted(cluster, load=False)
    assert opened(again, 0, session_id)["count"] == 1


def test_through_waits_for_the_store() -> None:
    cluster = net(2, THROUGH)
    session = cluster.opened(0)
    session["name"] = "ada"
    receipt = cluster.managers[0].commit(session)
    assert receipt.needs_wait
    cluster.deliver()
    cluster.advance(0.01, 0.005)
    assert receipt.satisfied
    assert not receipt.needs_wait
    assert session.key in items(cluster)
    session = cluster.opened(0, session.id)
    session.invalidate()
    ended = cluster.managers[0].commit(session)
    cluster.deliver()
    cluster.advance(0.01, 0.005)
    assert ended.satisfied
    assert isinstance(items(cluster)[session.key], KeptEnd)


def test_through_says_what_was_not_stored_and_stores_it_later() -> None:
    cluster = net(1, THROUGH)
    cluster.store_fails = True
    session = cluster.opened(0)
    session["name"] = "ada"
    receipt = cluster.managers[0].commit(session)
    cluster.deliver()
    cluster.advance(0.1)
    assert not receipt.needs_wait
    assert not receipt.satisfied
    assert receipt.unconfirmed == ("the store",)
    cluster.store_fails = False
    cluster.advance(6.0)
    assert session.key in items(cluster)


def test_two_members_that_save_one_session_lose_nothing() -> None:
    cluster = net(2, THROUGH)
    session_id = cluster.visit(0, a=0)
    cluster.part(0, 1)
    for number, name in ((0, "left"), (1, "right")):
        session = opened(cluster, number, session_id)
        session[name] = number
        cluster.managers[number].commit(session)
        cluster.advance(0.5)
    again = restarted(cluster, load=False)
    assert dict(opened(again, 0, session_id)) == {"a": 0, "left": 0, "right": 1}


def test_a_stop_saves_what_waits() -> None:
    cluster = net(1, StoreSettings(url="memory:", write_behind_s=600.0))
    session_id = cluster.visit(0, name="ada")
    persistence = cluster.managers[0].persistence
    assert persistence is not None
    stopped: list[object] = []
    persistence.stop().addCallback(stopped.append)
    cluster.advance(0.1)
    assert stopped
    assert key_of(session_id) in items(cluster)


def test_a_session_that_is_only_read_stays_fresh_in_the_store() -> None:
    cluster = net(1, settings=ManagerSettings(idle_timeout_s=600.0, unknown_for_s=0.0))
    session_id = cluster.visit(0, name="ada")
    for _ in range(30):
        cluster.advance(60.0, 1.0)
        session = cluster.opened(0, session_id)
        assert session["name"] == "ada"
        cluster.managers[0].commit(session)
        cluster.managers[0].release(session)
    cluster.advance(61.0, 1.0)
    again = restarted(cluster)
    assert opened(again, 0, session_id)["name"] == "ada"


def test_what_is_over_is_not_brought_back_and_goes_from_the_store() -> None:
    cluster = net(1, settings=ManagerSettings(idle_timeout_s=50.0, retention_s=60.0, unknown_for_s=0.0))
    session_id = cluster.visit(0, name="ada")
    cluster.advance(2.0)
    again = restarted(cluster, settings=ManagerSettings(idle_timeout_s=50.0, retention_s=60.0, unknown_for_s=0.0))
    assert opened(again, 0, session_id).new
    again.advance(65.0, 1.0)
    assert isinstance(items(again)[key_of(session_id)], KeptEnd)  # it was looked at once more, so that who listens hears of it
    again.advance(125.0, 1.0)
    assert items(again) == {}


def test_what_is_damaged_is_put_out_of_the_way() -> None:
    cluster = net(1)
    key = key_of("y" * 43)
    cluster.stores[MANAGER].save_many([Save(key, b"\x84nonsense", 2**50)])
    assert opened(cluster, 0, "y" * 43).new
    cluster.advance(0.1)
    assert cluster.managers[0].statistics()["store_damaged"] == 1
    assert items(cluster) == {}


def test_what_somebody_has_put_right_meanwhile_is_not_put_out_of_the_way() -> None:
    cluster = net(1)
    session_id = cluster.visit(0, name="ada")
    cluster.advance(2.0)
    store, key = cluster.stores[MANAGER], key_of(session_id)
    good = store.load([key])[key]
    bad = store.save_many([Save(key, b"bad", good.until_ms, good.revision)])
    again = restarted(cluster, load=False)
    load = store.load

    def mended(keys: Any) -> Any:
        found = load(keys)
        store.save_many([Save(key, good.data, good.until_ms, bad[key])])
        return found

    store.load = mended  # type: ignore[method-assign]
    assert opened(again, 0, session_id).new
    store.load = load  # type: ignore[method-assign]
    again.advance(2.0)
    assert opened(again, 0, session_id)["name"] == "ada"
    assert not store.damaged


def test_a_login_that_was_over_is_not_served_after_a_restart() -> None:
    cluster = net(2, epochs=True)
    cluster.advance(6.0)
    session = cluster.opened(0)
    session.login("ada")
    cluster.managers[0].commit(session)
    cluster.advance(2.0)
    saved = dict(cluster.stores[MANAGER].load([session.key]))
    cluster.managers[1].end_all("ada")
    cluster.advance(3.0)
    store = cluster.stores[MANAGER]
    store.clear()
    store.save_many([Save(session.key, saved[session.key].data, saved[session.key].until_ms)])  # its end was not stored any more
    again = restarted(cluster, epochs=True)
    assert opened(again, 0, str(session.id)).new


# -- passivation


def crowd(kind: type = DeltaManager, count: int = 2, **settings: Any) -> tuple[Net, list[str]]:
    cluster = net(count, StoreSettings(url="memory:", write_behind_s=0.2), kind=kind, settings=ManagerSettings(unknown_for_s=0.0, **settings))
    ids = []
    for number in range(60):
        ids.append(cluster.visit(number % count, name=f"n{number}"))
        cluster.advance(0.2)
    return cluster, ids


@KINDS
def test_over_max_active_the_longest_unused_leave_memory_and_come_back(kind: type) -> None:
    cluster, ids = crowd(kind, 3, max_active=20)
    cluster.advance(8.0)
    assert all(manager.count <= 20 for manager in cluster.managers)
    assert len(items(cluster)) == 60
    here = {key for manager in cluster.managers for partition in manager._core.replica.partitions for key in partition}
    assert key_of(ids[0]) not in here
    assert key_of(ids[-1]) in here
    for number in (0, 30, 59):
        assert opened(cluster, number % 3, ids[number])["name"] == f"n{number}"
    session = opened(cluster, 1, ids[0])
    session["more"] = 1
    cluster.managers[1].commit(session)
    cluster.deliver()
    assert dict(opened(cluster, 2, ids[0])) == {"name": "n0", "more": 1}
    cluster.advance(40.0)  # reconciling brings nothing back
    assert all(manager.count <= 22 for manager in cluster.managers)


def test_memory_stays_under_max_active_bytes_with_ten_times_as_much_in_the_store() -> None:
    cluster = net(2, StoreSettings(url="memory:", write_behind_s=0.2), settings=ManagerSettings(max_active_bytes=60_000, unknown_for_s=0.0))
    for number in range(300):
        cluster.visit(number % 2, blob="x" * 1500)
        cluster.advance(0.1)
    cluster.advance(5.0)
    assert all(manager._core.replica.bytes <= 60_000 for manager in cluster.managers)
    assert len(items(cluster)) == 300


def test_an_idle_session_is_passivated_and_one_in_use_is_not() -> None:
    cluster, ids = crowd(max_idle_swap_s=20.0)
    used = opened(cluster, 0, ids[0])
    cluster.managers[0]._core.in_use.add(used.key, 1)
    cluster.advance(40.0)
    assert {manager.count for manager in cluster.managers} == {1}


def test_min_idle_swap_comes_before_the_limits() -> None:
    cluster, _ = crowd(max_active=5, min_idle_swap_s=3600.0)
    cluster.advance(5.0)
    assert cluster.managers[0].count == 60


def test_nothing_is_passivated_that_the_store_lacks() -> None:
    cluster, ids = crowd(max_active=1000)
    cluster.store_fails = True
    for session_id in ids:
        cluster.visit(0, session_id, more=1)
    for manager in cluster.managers:
        manager._core.passivating.most = 5
    cluster.advance(10.0)
    assert cluster.managers[0].count == 60
    cluster.store_fails = False
    cluster.advance(15.0)
    assert cluster.managers[0].count <= 5
    assert dict(opened(cluster, 1, ids[0])) == {"name": "n0", "more": 1}


def test_listeners_hear_of_it() -> None:
    cluster = net(2, StoreSettings(url="memory:", write_behind_s=0.2), settings=ManagerSettings(max_idle_swap_s=5.0, unknown_for_s=0.0))
    heard: list[object] = []
    for manager in cluster.managers:
        for kind in (SessionCreated, SessionPassivated, SessionActivated):
            manager.listen(kind, heard.append)
    session_id = cluster.visit(0, name="ada")
    cluster.advance(10.0)
    assert opened(cluster, 1, session_id)["name"] == "ada"
    assert heard == [SessionCreated(key_of(session_id)), SessionPassivated(key_of(session_id)), SessionActivated(key_of(session_id))]


def test_a_passivated_session_expires_with_its_contents() -> None:
    settings = ManagerSettings(max_idle_swap_s=5.0, idle_timeout_s=100.0, unknown_for_s=0.0)
    cluster = net(2, StoreSettings(url="memory:", write_behind_s=0.2), settings=settings)
    heard: list[SessionDestroyed] = []
    for manager in cluster.managers:
        manager.listen(SessionDestroyed, heard.append)
    session_id = cluster.visit(0, name="ada")
    cluster.advance(20.0)
    assert not cluster.managers[0].count
    cluster.advance(240.0, 1.0)
    assert [(event.key, event.reason, dict(event.attributes)) for event in heard] == [(key_of(session_id), "expired", {"name": "ada"})]
    assert isinstance(items(cluster)[key_of(session_id)], KeptEnd)


def test_only_what_is_the_same_goes_at_others() -> None:
    cluster = net(2, StoreSettings(url="memory:", write_behind_s=0.2))
    session_id = cluster.visit(0, name="ada")
    core = cluster.managers[1]._core
    key = key_of(session_id)
    with pytest.raises(RemoteError):
        core.receive(0, cluster.members[0].uid, [MANAGER, STORED, b"x"], 0)
    core.receive(0, cluster.members[0].uid, [MANAGER, STORED, key + bytes(16)], 0)
    assert core.replica.get(key) is not None


def test_with_max_idle_backup_a_busy_session_is_not_stored_before_it_rests() -> None:
    cluster = net(1, settings=ManagerSettings(max_idle_backup_s=5.0, unknown_for_s=0.0))
    session_id = cluster.visit(0, count=0)
    for count in range(10):
        cluster.advance(2.0)
        cluster.visit(0, session_id, count=count)
    assert items(cluster) == {}
    cluster.advance(6.0)
    assert list(items(cluster)) == [key_of(session_id)]


# -- ends by time, in the wall's clock


@pytest.mark.parametrize(("later_ms", "revives"), [(0, False), (1, False), (20_000, True)])
def test_an_expiry_stands_unless_the_session_was_used_later(later_ms: int, revives: bool) -> None:
    cluster = net(1, settings=ManagerSettings(idle_timeout_s=50.0, unknown_for_s=0.0))
    session_id = cluster.visit(0, name="ada")
    key = key_of(session_id)
    cluster.advance(2.0)
    kept = items(cluster)[key]
    cluster.advance(58.0, 0.5)
    persistence, core = cluster.managers[0].persistence, cluster.managers[0]._core
    assert persistence is not None
    assert core.replica.held(key) is None
    persistence.fetching.merge({key: Stored(kept._replace(used_ms=kept.used_ms + later_ms).pack(), 2**50, b"r" * 16)}, [])
    assert (core.replica.held(key) is not None) == revives
    assert core.replica.revivals == revives


@pytest.mark.parametrize(("early_ms", "stands"), [(0, True), (1, True), (10_000, False)])
def test_an_expiry_by_somebody_elses_clock_is_judged_by_when_the_session_was_used(early_ms: int, stands: bool) -> None:
    cluster = net(1, settings=ManagerSettings(idle_timeout_s=50.0, unknown_for_s=0.0))
    session_id = cluster.visit(0, name="ada")
    key = key_of(session_id)
    cluster.advance(2.0)
    kept = items(cluster)[key]
    persistence, core = cluster.managers[0].persistence, cluster.managers[0]._core
    assert persistence is not None
    applied = Record.unpack(kept.body).applied
    other = bytes([9]) * 16
    ended_ms = kept.used_ms + 50_000 - early_ms
    core.in_use.add(key, 1)  # a request is under way, so it does not end here
    cluster.advance(50.0, 0.5)
    end = KeptEnd(key, Head(EXPIRED, 2, other, other, (), Cover(applied, {other: 5}), ended_ms))
    persistence.fetching.merge({key: Stored(end.pack(), 2**50, b"r" * 16)}, [])
    assert (core.replica.held(key) is None) == stands


# -- what a fresh reader found


def test_an_outage_hides_nothing_that_is_in_memory() -> None:
    cluster, ids = crowd(DeltaManager, 2, max_active=1000)
    number = cluster.join()  # all its copies came from members, and are to be compared with the store once
    cluster.advance(5.0)
    cluster.store_fails = True
    cluster.advance(1.0)
    for session_id in ids[:5]:
        session = opened(cluster, number, session_id)
        assert not session.new
        assert not session.unknown
        assert session.stale


def test_one_item_that_no_store_takes_is_in_nobodys_way() -> None:
    cluster = net(1, StoreSettings(url="memory:", write_behind_s=0.2))
    bad = cluster.visit(0, name="bad")
    store = cluster.stores[MANAGER]
    save_many = store.save_many

    def picky(saves: Any) -> Any:
        if any(save.key == key_of(bad) for save in saves):
            raise StoreError("it is too large")
        return save_many(saves)

    store.save_many = picky  # type: ignore[method-assign]
    good = [cluster.visit(0, name=str(number)) for number in range(300)]
    cluster.advance(60.0)
    assert items(cluster).keys() >= {key_of(one) for one in good}


def test_what_came_after_the_store_had_nothing_is_found() -> None:
    cluster = net(2, kind=BackupManager, settings=ManagerSettings(max_active=1000, unknown_for_s=0.0, backups=1))
    session_id = "y" * 43
    assert opened(cluster, 1, session_id).new  # and nothing is remembered for a second
    session = cluster.managers[0].open_local(None)
    assert session is not None
    session.adopt(session_id)
    session["name"] = "ada"
    cluster.managers[0].commit(session)
    cluster.deliver()
    for _ in range(3):
        assert opened(cluster, 1, session_id)["name"] == "ada"


def test_a_stop_looks_for_what_it_has_to_save_first() -> None:
    cluster = net(2, StoreSettings(url="memory:", write_behind_s=600.0), kind=DeltaManager)
    ids = [cluster.visit(0, name=str(number)) for number in range(50)]
    cluster.managers[1].persistence.save()  # type: ignore[union-attr]  # these are the other's: their marks go
    cluster.advance(0.1)
    cluster.kill(0)
    cluster.managers[1].persistence.stop()  # type: ignore[union-attr]
    cluster.advance(0.5)
    assert items(cluster).keys() >= {key_of(one) for one in ids}


def test_marks_of_what_others_save_do_not_hold_up_ones_own() -> None:
    cluster = net(2, StoreSettings(url="memory:", write_behind_s=1.0))
    for number in range(5000):
        session = cluster.managers[0].open_local(None)
        assert session is not None
        session["n"] = number
        cluster.managers[0].commit(session)
    cluster.deliver()
    mine = cluster.visit(1, name="mine")
    cluster.advance(1.0)
    assert cluster.stores[MANAGER].load([key_of(mine)])


@pytest.mark.parametrize("stops", [False, True])
def test_marks_are_gathered_some_at_a_time_and_all_are(stops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caterwaul.managers.storing._GATHERED_AT_ONCE", 10)
    cluster = net(1, StoreSettings(url="memory:", write_behind_s=600.0 if stops else 1.0))
    ids = [cluster.visit(0, n=number) for number in range(45)]
    assert cluster.managers[0].statistics()["store_waiting"] == 45, "from their commits on"
    persistence = cluster.managers[0].persistence
    assert persistence is not None
    stopped = persistence.stop() if stops else None
    cluster.advance(1.0 if stops else 3.0)
    assert items(cluster).keys() == {key_of(one) for one in ids}
    assert stopped is None or stopped.called


# -- drafts: taken under the lock, encoded outside of it


def test_what_is_saved_is_encoded_without_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = net(1, StoreSettings(url="memory:", write_behind_s=0.2))
    lock, held, save = cluster.managers[0]._lock, list[bool](), Draft.save

    def watched(draft: Draft) -> Save:
        held.append(lock._lock._is_owned())  # type: ignore[attr-defined]
        return save(draft)

    monkeypatch.setattr(Draft, "save", watched)
    session_id = cluster.visit(0, name="ada")
    cluster.advance(1.0)
    assert held == [False]
    assert items(cluster).keys() == {key_of(session_id)}


@pytest.mark.parametrize("packed", [False, True])
def test_a_draft_is_of_the_moment_when_it_was_taken(packed: bool) -> None:
    cluster = net(1, StoreSettings(url="memory:", write_behind_s=600.0))
    session_id = cluster.visit(0, name="ada")
    manager = cluster.managers[0]
    persistence, replica = manager.persistence, manager._core.replica
    assert persistence is not None
    entry = replica.get(key_of(session_id))
    assert entry is not None
    if packed:
        entry.body = replica.body_of(entry)
    persistence.storing.gather(0)
    drafts = persistence.storing.batch(0, 0)
    assert (type(entry.body) is bytes) == packed, "nobody unpacks what is idle"
    cluster.visit(0, session_id, name="bob", more=1)
    saves, broken = encoded(drafts, lambda: None)
    assert not broken
    kept = read_item(saves[0].data)
    assert isinstance(kept, Kept)
    assert list(Record.unpack(kept.body).registers) == ["name"]
    assert saves[0].until_ms > cluster.channels[cluster.members[0].uid].now_ms()


def test_a_session_that_cannot_be_encoded_is_in_nobodys_way() -> None:
    cluster = net(1, StoreSettings(url="memory:", write_behind_s=0.2))
    bad, good = cluster.visit(0, name="bad"), cluster.visit(0, name="good")
    replica = cluster.managers[0]._core.replica
    entry = replica.get(key_of(bad))
    assert entry is not None
    body, entry.body = entry.body, b"\xff"
    with capturedLogs() as caught:
        cluster.advance(1.0)
    assert items(cluster).keys() == {key_of(good)}
    assert cluster.managers[0].statistics()["store_waiting"] == 0
    assert cluster.managers[0].statistics()["store_errors"] == 0
    assert [event["key"] for event in caught if "cannot be stored" in event["log_format"]] == [key_of(bad).hex()]
    entry.body = body
    cluster.visit(0, bad, more=1)
    cluster.advance(1.0)
    assert items(cluster).keys() == {key_of(good), key_of(bad)}
    persistence = cluster.managers[0].persistence
    assert persistence is not None
    assert persistence.storing.has(key_of(bad))
    replica.written.add(key_of(bad))
    entry.body = b"\xff"
    cluster.advance(1.0)
    assert not persistence.storing.lacks(key_of(bad))
    assert not persistence.storing.has(key_of(bad)), "the store has an older one, so it may not leave memory"


def test_a_fault_while_a_batch_is_taken_is_in_nobodys_way(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = net(1, StoreSettings(url="memory:", write_behind_s=0.2))
    ids = [cluster.visit(0, n=number) for number in range(5)]
    copy, faults = Record.copy, iter([False, False, True])

    def faulty(record: Record) -> Record:
        if next(faults, False):
            raise ZeroDivisionError
        return copy(record)

    monkeypatch.setattr(Record, "copy", faulty)
    with capturedLogs() as caught:
        cluster.advance(1.0)
    assert len(items(cluster)) == 4, "all but the one at fault"
    assert cluster.managers[0].statistics()["store_waiting"] == 0
    assert len([event for event in caught if "cannot be stored" in event["log_format"]]) == 1
    for session_id in ids:
        cluster.visit(0, session_id, more=1)
    cluster.advance(1.0)
    assert len(items(cluster)) == 5


# -- ends, waiters, touches


@pytest.mark.parametrize("kind", [DeltaManager, PersistentManager])
def test_an_end_is_not_forgotten_before_the_store_has_it(kind: Any) -> None:
    """The store is out for longer than ends are remembered, and has the session as it lived."""
    cluster = net(
        2, StoreSettings(url="memory:", write_behind_s=0.2), kind=kind, settings=ManagerSettings(retention_s=60.0, unknown_for_s=0.0, expire_check_s=1.0)
    )
    session_id = cluster.visit(0, name="ada")
    key = key_of(session_id)
    cluster.advance(2.0)
    assert isinstance(items(cluster)[key], Kept)
    cluster.store_fails = True
    session = cluster.opened(0, session_id)
    session.invalidate()
    cluster.managers[0].commit(session)
    cluster.deliver()
    cluster.advance(120.0, 0.5)
    assert cluster.managers[0].statistics()["tombstones"] == 1
    cluster.store_fails = False
    cluster.advance(70.0, 0.5)
    assert [manager.statistics()["tombstones"] for manager in cluster.managers] == [0, 0]
    assert key not in items(cluster) or isinstance(items(cluster)[key], KeptEnd)
    assert opened(restarted(cluster), 1, session_id).new


def test_a_receipt_ends_when_its_change_is_not_to_be_saved_any_more() -> None:
    cluster = net(2, THROUGH, settings=ManagerSettings(unknown_for_s=0.0, ack_timeout_s=30.0))
    session_id = cluster.visit(0, name="ada")
    key, manager = key_of(session_id), cluster.managers[0]
    cluster.advance(1.0)
    persistence = manager.persistence
    assert persistence is not None
    stored, gone = [], []
    with manager._lock:
        stored.append(persistence._stored_soon(key))
        item = items(cluster)[key]
        revision = cluster.stores[MANAGER].load([key])[key].revision
        persistence.storing.met(key, item, revision, persistence._ahead_ms(), 0)  # a request has loaded it meanwhile
        gone.append(persistence._stored_soon(bytes(16)))
    persistence.save()
    assert (stored[0].needs_wait, stored[0].satisfied) == (False, True)
    assert (gone[0].needs_wait, gone[0].satisfied) == (False, False)
    assert not persistence._waiters


def test_what_was_read_here_a_moment_ago_does_not_go_when_another_passivates_it() -> None:
    cluster = net(2, StoreSettings(url="memory:", write_behind_s=0.2), settings=ManagerSettings(max_idle_swap_s=600.0, save_period_s=300.0, unknown_for_s=0.0))
    session_id = cluster.visit(0, name="ada")
    key = key_of(session_id)
    cluster.advance(2.0)
    session = cluster.opened(1, session_id)
    cluster.managers[1].touch(session)
    cluster.managers[1].release(session)
    assert cluster.managers[1]._committing.touching.is_pending(key)
    core = cluster.managers[1]._core
    entry = core.replica.get(key)
    assert entry is not None
    told = key + digest(entry.head, core.replica.body_of(entry)) + digest(entry.head, None)
    core.receive(0, cluster.members[0].uid, [MANAGER, STORED, told], 0)
    assert core.replica.get(key) is not None
    cluster.advance(400.0, 1.0)
    assert not cluster.managers[1]._committing.touching.is_pending(key)
    core.receive(0, cluster.members[0].uid, [MANAGER, STORED, told], 0)
    assert core.replica.get(key) is None
