"""Sessions that leave a cluster as a snapshot, and come back to it or to another."""

from __future__ import annotations

import pytest

from caterwaul.managers.backup import BackupManager
from caterwaul.managers.base import SessionManager
from caterwaul.managers.delta import DeltaManager
from caterwaul.managers.kept import Kept, read_item
from caterwaul.managers.listeners import SessionCreated
from caterwaul.managers.partitioned import PartitionedManager
from caterwaul.managers.settings import ManagerSettings
from caterwaul.membership.codec import encode
from caterwaul.membership.errors import RemoteError
from tests.doubles import Net

KINDS: dict[str, type[SessionManager]] = {"delta": DeltaManager, "backup": BackupManager, "partitioned": PartitionedManager}
LIMITS = {"idle_timeout_s": 600.0, "absolute_timeout_s": 3600.0, "unknown_for_s": 0.0}


class Wall:
    """Clocks of the wall of one cluster, which start at some time."""

    def __init__(self, net: Net, at_s: float) -> None:
        self._net, self._at_s = net, at_s - net.clock.seconds()
        for manager in net.managers:
            manager.snapshots.wall_s = self.now

    def now(self) -> float:
        return self._at_s + self._net.clock.seconds()


def cluster(kind: str, nodes: int = 4, at_s: float = 1e9, **settings: float) -> Net:
    chosen = ManagerSettings(type=kind, backups=1, **{**LIMITS, **settings}) if kind != "delta" else ManagerSettings(**{**LIMITS, **settings})
    net = Net(nodes, chosen, kind=KINDS[kind])
    Wall(net, at_s)
    return net


def snapshot(net: Net) -> list[bytes]:
    items: list[bytes] = []
    for manager in net.managers:
        after = b""
        while True:
            page = manager.snapshots.page(after)
            assert not page.skipped
            items += page.items
            after = page.after
            if not after:
                break
    return items


def fill(net: Net, sessions: int) -> list[str]:
    ids = [net.visit(n % len(net.members), n=n, pad=b"x" * 100) for n in range(sessions)]
    net.deliver()
    return ids


@pytest.mark.parametrize("kind", KINDS)
def test_each_session_is_given_once_and_all_come_back_to_a_cluster_that_was_stopped(kind: str) -> None:
    before = cluster(kind)
    ids = fill(before, 50)
    items = snapshot(before)
    assert sorted(read_item(item).key for item in items) == sorted({read_item(item).key for item in items})
    assert len(items) == 50
    after = cluster(kind, at_s=1e9 + 100)
    found = after.managers[2].snapshots.restore(items)
    assert found[:4] == (50, 0, 0, 0)
    after.deliver()
    after.advance(3.0)
    assert not found.receipt.needs_wait
    assert found.receipt.satisfied
    for n, session_id in enumerate(ids):
        for number in range(4):
            assert after.opened(number, session_id)["n"] == n
    for manager in after.managers:
        core = manager._core
        for key, entry in core.replica.entries():
            assert core.moving.near or core.placement.depth(core.me, key, entry.primary), f"{kind}: a copy where none should be"
    after.visit(1, ids[0], n=100)
    after.deliver()
    assert after.opened(3, ids[0])["n"] == 100


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_ended_since_stays_ended_and_what_lives_gets_what_it_lacks(kind: str) -> None:
    net = cluster(kind)
    ended, living, unchanged = fill(net, 3)
    items = snapshot(net)
    session = net.opened(0, ended)
    session.invalidate()
    net.managers[0].commit(session)
    net.visit(1, living, n="later")
    net.deliver()
    found = net.managers[3].snapshots.restore(items)
    net.deliver()
    net.advance(2.0)
    assert found.ended + found.restored + found.merged == 3
    assert found.over == 0
    assert net.opened(2, ended).new
    assert net.opened(2, living)["n"] == "later"
    assert net.opened(2, unchanged)["n"] == 2


def test_time_goes_on_while_nobody_runs() -> None:
    before = cluster("delta")
    long_idle = fill(before, 1)
    before.advance(500.0, step_s=5.0)
    fresh = fill(before, 1)
    items = snapshot(before)
    after = cluster("delta", at_s=1e9 + 500 + 200)
    found = after.managers[0].snapshots.restore(items)
    assert (found.restored, found.over) == (1, 1)
    assert after.opened(0, long_idle[0]).new
    assert after.managers[0].age_s(after.opened(0, fresh[0])) == pytest.approx(200, abs=10)
    again = cluster("delta", at_s=1e9 + 500 + 200)
    assert again.managers[0].snapshots.restore(items, as_used=True)[:4] == (2, 0, 0, 0)
    again.advance(500.0, step_s=5.0)
    assert not again.opened(0, long_idle[0]).new
    old = cluster("delta", at_s=1e9 + 3700)
    assert old.managers[0].snapshots.restore(items, as_used=True)[:4] == (1, 0, 0, 1), "no session lives longer than it may"


def test_a_clock_that_was_set_back_makes_nothing_young() -> None:
    items = snapshot(cluster_with_one())
    after = cluster("delta", at_s=1e9 - 5000)
    after.managers[0].snapshots.restore(items)
    (entry,) = [entry for _, entry in after.managers[0]._core.replica.entries()]
    assert entry.last_access_ms <= after.managers[0]._channel.now_ms()


def cluster_with_one() -> Net:
    net = cluster("delta")
    fill(net, 1)
    return net


def test_pages_are_bounded_and_go_on_where_the_last_ended() -> None:
    net = cluster("delta", nodes=1)
    for n in range(1200):
        net.visit(0, n=n)
    sizes, after = [], b""
    while True:
        page = net.managers[0].snapshots.page(after)
        sizes.append(len(page.items))
        after = page.after
        if not after:
            break
    assert sum(sizes) == 1200
    assert max(sizes) <= 500
    large = cluster("delta", nodes=1)
    for _ in range(10):
        large.visit(0, pad=b"x" * 100_000)
    assert len(large.managers[0].snapshots.page(b"").items) == 3


def test_listeners_hear_of_what_came_back() -> None:
    items = snapshot(cluster_with_one())
    net = cluster("delta")
    heard: list[object] = []
    net.managers[1].listen(SessionCreated, heard.append, replicas=True)
    net.managers[0].snapshots.restore(items)
    net.deliver()
    assert len(heard) == 1


@pytest.mark.parametrize(
    "bad",
    [b"", b"\x80", encode([b"k" * 15, 1, 1, b""]), encode([b"k" * 16, -1, 1, b""]), encode([b"k" * 16, 1, 2**53, b""]), encode([b"k" * 16, 1, 1, b"\x80"])],
)
def test_what_is_no_session_gives_a_clear_error_and_nothing_is_given_back(bad: bytes) -> None:
    items = snapshot(cluster_with_one())
    net = cluster("delta", nodes=1)
    with pytest.raises(RemoteError):
        net.managers[0].snapshots.restore([*items, bad])
    assert net.managers[0].count == 0


def test_what_a_newer_version_adds_is_ignored() -> None:
    kept = Kept(b"k" * 16, 1, 2, read_item(snapshot(cluster_with_one())[0]).body)
    assert read_item(encode([*kept, "more"])) == kept
    assert read_item(kept.pack()) == kept
