"""Ends of sessions are told where the application listens, whoever decides about them and whoever holds what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from caterwaul.managers import notices
from caterwaul.managers.backup import BackupManager
from caterwaul.managers.base import SessionManager
from caterwaul.managers.delta import DeltaManager
from caterwaul.managers.listeners import AttributeChanged, LoggedIn, SessionCreated, SessionDestroyed
from caterwaul.managers.messages import ENDS
from caterwaul.managers.partitioned import PartitionedManager
from caterwaul.managers.session import key_of
from caterwaul.managers.settings import ManagerSettings
from caterwaul.membership.errors import LocalError, RemoteError
from tests.doubles import Net, member

KINDS = {"delta": DeltaManager, "backup": BackupManager, "partitioned": PartitionedManager}
DATA, WEB = (0, 1), (2, 3)


class Told:
    """Who was told what. `numbers` listen."""

    def __init__(self, net: Net, numbers: tuple[int, ...]) -> None:
        self.events: list[tuple[int, SessionDestroyed]] = []
        for number in numbers:
            self.listen(net, number)

    def listen(self, net: Net, number: int) -> None:
        net.managers[number].listen(SessionDestroyed, lambda event: self.events.append((number, event)))
        net.deliver()

    def only(self) -> tuple[int, SessionDestroyed]:
        assert len(self.events) == 1
        return self.events[0]


def made(kind: type[SessionManager] = DeltaManager, **more: Any) -> Net:
    """Two data nodes and two web members without weight."""
    name = next(name for name, one in KINDS.items() if one is kind)
    return Net(4, ManagerSettings(type=name, idle_timeout_s=5, absolute_timeout_s=0), kind=kind, weights=(1, 1, 0, 0), **more)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_a_data_node_expires_is_told_on_one_web_member_with_the_final_contents(kind: type[SessionManager]) -> None:
    net = made(kind)
    told = Told(net, WEB)
    session_id = net.visit(2, cart=["tea"])
    net.visit(3, session_id, seen=7)
    net.advance(12)
    number, event = told.only()
    assert number in WEB
    assert (event.key, event.reason, dict(event.attributes)) == (key_of(session_id), "expired", {"cart": ["tea"], "seen": 7})
    assert all(len(manager._core.notices) == 0 for manager in net.managers)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_many_ends_are_each_told_once_in_few_messages(kind: type[SessionManager]) -> None:
    net = made(kind)
    told = Told(net, WEB)
    ids = [net.visit(number, n=n) for n in range(30) for number in WEB]
    net.advance(20)
    assert sorted(event.key for _, event in told.events) == sorted(map(key_of, ids))
    assert len(net.sent(ENDS)) < 30


def test_the_last_primary_is_told_first() -> None:
    net = made()
    told = Told(net, WEB)
    for number in WEB:
        told.events.clear()
        net.managers[0].end(key_of(net.visit(number, a=1)))
        net.deliver()
        assert told.only()[0] == number


def test_where_the_primary_is_gone_another_that_listens_is_told() -> None:
    net = made()
    told = Told(net, WEB)
    session_id = net.visit(2, a=1)
    net.kill(2)
    net.managers[0].end(key_of(session_id))
    net.deliver()
    number, event = told.only()
    assert (number, dict(event.attributes)) == (3, {"a": 1})


def test_where_nobody_listens_nothing_is_sent_or_kept() -> None:
    net = made()
    net.managers[0].end(key_of(net.visit(2, a=1)))
    net.advance(1)
    assert not net.sent(ENDS)
    assert all(manager._core.notices._kept_bytes == 0 for manager in net.managers)


def test_who_is_chosen_and_dies_before_it_hears_is_replaced() -> None:
    net = made()
    told = Told(net, WEB)
    session_id = net.visit(2, a=1)
    net.freeze(2)
    net.managers[0].end(key_of(session_id))
    net.deliver()
    assert not told.events
    net.kill(2)
    net.advance(1)
    number, event = told.only()
    assert (number, dict(event.attributes)) == (3, {"a": 1})


def test_when_the_member_that_ended_it_dies_first_another_holder_tells() -> None:
    net = made()
    told = Told(net, WEB)
    session_id = net.visit(2, a=1)
    for number in WEB:
        net.hold(0, number)
    net.managers[0].end(key_of(session_id))
    net.deliver()
    assert not told.events
    net.kill(0)
    net.deliver()
    number, event = told.only()
    assert (number, dict(event.attributes)) == (2, {"a": 1})


def test_told_again_after_a_fault_it_is_the_same_event_and_a_listener_hears_it_once() -> None:
    net = made()
    told = Told(net, WEB)
    first = net.visit(2, a=1)
    net.managers[0].end(key_of(first))
    net.deliver()
    net.kill(0)  # nobody knows that all was told: it is told again
    net.deliver()
    assert len(told.events) == 1
    second = net.visit(2, a=2)
    net.managers[1].end(key_of(second))
    net.deliver()
    number, event = told.events[-1]
    net.kill(number)
    net.kill(1)
    assert [event.event_id for _, event in told.events].count(event.event_id) == 1


def test_two_ends_at_once_are_one_event() -> None:
    net = made()
    told = Told(net, WEB)
    session_id = net.visit(2, a=1)
    for number in DATA:
        net.managers[number].end(key_of(session_id))
    net.deliver()
    net.advance(1)
    assert told.only()[0] == 2


def test_with_the_link_to_it_cut_it_is_told_once_when_that_is_back() -> None:
    net = made()
    told = Told(net, (2,))
    session_id = net.visit(2, a=1)
    net.part(0, 2)
    net.managers[0].end(key_of(session_id))
    net.advance(3)
    net.heal(0, 2)
    net.advance(3)
    assert dict(told.only()[1].attributes) == {"a": 1}


def test_what_ends_while_the_application_restarts_is_told_to_its_next_process() -> None:
    net = Net(2, ManagerSettings(idle_timeout_s=0, absolute_timeout_s=0))
    told = Told(net, (1,))
    session_id = net.visit(0, a=1)
    net.freeze(1)
    net.managers[0].end(key_of(session_id))
    net.deliver()
    net.kill(1)
    net.advance(5)
    number = net.join()
    told.listen(net, number)
    net.advance(2)
    assert (told.only()[0], dict(told.only()[1].attributes)) == (number, {"a": 1})


def test_a_member_that_leaves_in_good_order_leaves_nothing_to_be_told_twice() -> None:
    net = made()
    told = Told(net, WEB)
    ids = [net.visit(2, n=n) for n in range(20)]
    for session_id in ids:
        net.managers[0].end(key_of(session_id))
    net.managers[0].flush()
    net.leave(0)
    net.leave(2)
    net.advance(15)
    assert sorted(event.key for _, event in told.events) == sorted(map(key_of, ids))


def test_what_a_member_ends_that_knows_of_no_listeners_is_told_by_another_holder() -> None:
    net = made()
    told = Told(net, WEB)
    net.members[0] = net.channels[net.members[0].uid].me = replace(net.members[0], payload={"managers": list(net.members[0].managers)})
    net.show_views()
    assert net.members[0].ends is None
    net.managers[0]._core.notices._ended = lambda *_: []  # type: ignore[method-assign]
    session_id = net.visit(2, a=1)
    net.managers[0].end(key_of(session_id))
    net.deliver()
    assert dict(told.only()[1].attributes) == {"a": 1}


def test_what_is_kept_is_bounded_in_bytes_and_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_KEPT_MAX_BYTES", 20_000)
    net = made()
    told = Told(net, (2,))
    ids = [net.visit(2, text="x" * 2000) for _ in range(20)]
    net.freeze(2)
    for session_id in ids:
        net.managers[0].end(key_of(session_id))
    net.deliver()
    kept = net.managers[0]._core.notices
    assert kept._kept_bytes <= 20_000
    assert kept.dropped == 20 - len(kept)
    net.kill(2)
    net.advance(70)
    assert all(manager._core.notices._kept_bytes == 0 for manager in net.managers[:2])
    assert not told.events


def test_what_is_dropped_while_a_listener_confirms_slowly_is_neither_kept_nor_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_KEPT_MAX_BYTES", 20_000)
    monkeypatch.setattr(notices, "_BATCH_BYTES", 3_000)
    net = made()
    told = Told(net, (2,))
    ids = [net.visit(3, text="x" * 2000) for _ in range(20)]
    kept = net.managers[0]._core.notices
    net.hold(0, 2)
    for session_id in ids:
        net.managers[0].end(key_of(session_id))
        net.deliver()
    left = len(kept)
    assert kept.dropped == 20 - left > 0
    assert all(kept._ours.get(mark) is notice for queue in kept._queues.values() for mark, notice in queue.items())
    net.let_go()
    net.deliver()
    assert len(told.events) in (left, left + 1)  # the first was under way when it was dropped
    assert (len(kept), kept._queues, kept._kept_bytes) == (0, {}, 0)


def test_of_a_member_that_was_told_nothing_is_kept() -> None:
    net = made()
    told = Told(net, (2,))
    net.managers[0].end(key_of(net.visit(2, a=1)))
    net.deliver()
    told.only()
    assert not list(net.managers[0]._core.notices._under_way)


def test_an_announcement_alone_moves_nothing() -> None:
    net = made(PartitionedManager)
    for n in range(20):
        net.visit(2, n=n)
    reviewed: list[object] = []
    for manager in net.managers:
        manager._core.moving.handover.review = lambda *_: reviewed.append(1)  # type: ignore[method-assign]
    Told(net, WEB)
    assert not reviewed


@pytest.mark.parametrize("wire", [[1], [[b"k" * 16, [0, 1, b"u" * 16, b"u" * 16, [], None, 0], None]], [[b"k", None, None]], [[b"k" * 16, None, None]]])
def test_a_malformed_end_is_refused(wire: list[Any]) -> None:
    net = made()
    told = Told(net, (2,))
    with pytest.raises(RemoteError):
        net.managers[2].received(net.members[0], ["default", ENDS, wire], 0)
    assert not told.events


def test_what_a_member_announces_is_checked() -> None:
    wire = {**member(1).to_wire(), "payload": {"ends": "all"}}
    with pytest.raises(RemoteError, match="ends"):
        type(member(1)).from_wire(wire)


# -- decorators and filters


def test_a_decorated_function_hears_the_events_it_chose_and_stays_a_function() -> None:
    net = Net(1)
    heard: list[object] = []
    manager = net.managers[0]

    @manager.on(AttributeChanged, name="cart*")
    def changed(event: AttributeChanged) -> None:
        heard.append(event.name)

    @manager.on(SessionDestroyed, reason="expired")
    def expired(event: SessionDestroyed) -> None:
        heard.append(event.reason)

    @manager.on(SessionDestroyed, reason="invalidated")
    @manager.on(SessionCreated)
    def either(event: object) -> None:
        heard.append(type(event).__name__)

    assert callable(changed)
    session_id = net.visit(0, cart=1, cart_size=2, other=3)
    net.managers[0].end(key_of(session_id))
    net.deliver()
    assert heard == ["SessionCreated", "cart", "cart_size", "SessionDestroyed"]


def test_what_no_listener_can_hear_is_refused_with_what_there_is() -> None:
    manager = Net(1).managers[0]
    with pytest.raises(LocalError, match="AttributeChanged"):
        manager.on(int)
    with pytest.raises(LocalError, match=r"has no 'attribute' to choose by: it has key, name, removed"):
        manager.listen(AttributeChanged, print, attribute="cart")


def test_listeners_choose_by_principal() -> None:
    net = Net(1)
    heard: list[str] = []
    net.managers[0].on(LoggedIn, principal="admin")(lambda event: heard.append(event.principal))
    for name in ("ann", "admin"):
        session = net.opened(0)
        session.login(name)
        net.managers[0].commit(session)
        net.deliver()
    assert heard == ["admin"]
