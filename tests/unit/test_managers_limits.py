"""What a manager keeps, and what it believes of a peer's clock, have bounds."""

from __future__ import annotations

import pytest

from caterwaul.managers.changes import batch_prefix, encode_batch, encode_delta
from caterwaul.managers.heads import EXPIRED
from caterwaul.managers.messages import DELTAS, INVENTORY
from caterwaul.managers.session import Session, key_of
from caterwaul.managers.settings import ManagerSettings
from caterwaul.membership.channel import DATA, Message
from caterwaul.membership.errors import RemoteError
from tests.doubles import MANAGER, Net


def _made(net: Net, number: int = 0) -> Session:
    session = net.managers[number].open_local(None)
    assert session is not None
    session["a"] = 1
    net.managers[number].commit(session)
    net.deliver()
    return session


def _told(net: Net, delta: bytes, origin: bytes, sent_ms: int) -> None:
    """Member 1 says this delta to member 0, at a time by its own clock."""
    one = net.members[1]
    payload = encode_batch(batch_prefix(MANAGER, DELTAS, origin), [delta])
    net.channels[net.members[0].uid].deliver(one, Message(MANAGER, DATA, payload), sent_ms)


def test_over_its_cap_the_oldest_tombstones_go_first_and_are_counted() -> None:
    net = Net(2, ManagerSettings(tombstones_max=1000))
    ids = []
    for _ in range(1010):
        session = _made(net)
        ids.append(session.id)
        session.invalidate()
        net.managers[0].commit(session)
    net.deliver()
    for manager in net.managers:
        replica = manager._core.replica
        assert manager.statistics()["tombstones"] == 1000
        assert manager.statistics()["tombstones_forgotten"] == 10
        assert replica.get(key_of(ids[0])) is None
        assert replica.get(key_of(ids[-1])) is not None


def test_an_access_in_the_future_counts_as_one_now() -> None:
    net = Net(2)
    one, key = net.members[1].uid, b"k" * 16
    sent_ms = net.channels[one].now_ms()
    _told(net, encode_delta(key, 1, 0, {}, {"a": b"\x01"}, sent_ms + 10**9, sent_ms + 10**9), one, sent_ms)
    entry = net.managers[0]._core.replica.get(key)
    assert entry is not None
    now_ms = net.channels[net.members[0].uid].now_ms()
    assert entry.last_access_ms == now_ms
    assert entry.created_ms == now_ms


def test_a_clock_that_is_absurdly_off_does_not_make_records_that_others_refuse() -> None:
    net = Net(3)
    one, key = net.members[1].uid, b"k" * 16
    _told(net, encode_delta(key, 1, 0, {}, {"a": b"\x01"}, 5, 5), one, 2**63)
    net.managers[0]._react(lambda now_ms: net.managers[0]._core.entropy.records(net.members[2].uid, [key]))
    net.deliver()
    assert net.managers[2]._core.replica.get(key) is not None


def test_commits_in_somebody_elses_name_are_refused() -> None:
    net = Net(2)
    with pytest.raises(RemoteError, match="not the sender's own"):
        _told(net, encode_delta(b"k" * 16, 1, 0, {}, {"a": b"\x01"}, 1, 1), net.members[0].uid, 1)
    assert net.managers[0].count == 0


def test_members_are_compared_with_in_the_background() -> None:
    net = Net(3, ManagerSettings(reconcile_period_s=1.0))
    session = _made(net)
    replica = net.managers[2]._core.replica
    del replica.partitions[session.key[0] << 4 | session.key[1] >> 4][session.key]  # a hole that no occasion has noticed
    sent = sum(message[1] == INVENTORY for channel in net.channels.values() for _, message in channel.sent)
    net.advance(4.0)
    assert replica.get(session.key) is not None
    rounds = sum(message[1] == INVENTORY for channel in net.channels.values() for _, message in channel.sent) - sent
    assert 1 <= rounds <= 2


def test_a_stopped_manager_answers_look_ups_with_unknown_at_once() -> None:
    net = Net(2)
    net.managers[0].stop()
    answers = []
    net.part(0, 1)
    net.managers[0].open_deferred("x" * 43).addCallback(answers.append)
    assert answers[0].unknown


def test_a_session_that_one_members_activity_revives_lives_again_on_all_of_them() -> None:
    """Found by the simulator: who revived it told only the member it had heard of the activity from."""
    net = Net(3, ManagerSettings(idle_timeout_s=20.0, save_period_s=60.0))
    session = _made(net)
    net.part(0, 2)
    net.part(1, 2)
    touched = net.managers[2].open_local(session.id)
    assert touched is not None
    net.advance(10.0)
    touched.accessed = True
    net.managers[2].commit(touched)  # a touch that the others do not hear of
    net.managers[2].release(touched)
    for number in (0, 1):
        manager = net.managers[number]
        manager._core.replica.end(session.key, EXPIRED, manager._channel.now_ms())
    net.heal(0, 2)  # and not 1 with 2
    net.deliver()
    assert [manager.count for manager in net.managers] == [1, 1, 1]
    heads = {manager._core.replica.get(session.key).head for manager in net.managers}  # type: ignore[union-attr]
    assert len(heads) == 1


def test_after_a_flood_of_new_sessions_packing_hurries() -> None:
    """An unpacked record takes three times the memory, and what was once taken from the system hardly goes back."""
    net = Net(1, ManagerSettings(pack_after_s=1))
    for _ in range(12_000):
        _made(net)
    net.advance(1.9, step_s=0.1)  # two sweeps: what was not used between them
    net.advance(1.0, step_s=0.004)
    core = net.managers[0]._core
    assert not core.packing.cooling
    assert all(type(entry.body) is bytes for _, entry in core.replica.entries())
