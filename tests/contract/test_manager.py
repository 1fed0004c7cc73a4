"""What every session manager promises, whatever its placement. A new manager joins `KINDS` and has to pass."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from caterwaul.managers.backup import BackupManager
from caterwaul.managers.base import SessionManager
from caterwaul.managers.partitioned import PartitionedManager
from caterwaul.managers.persistent import PersistentManager
from caterwaul.managers.settings import ManagerSettings
from caterwaul.managers.stores.settings import StoreSettings
from tests.doubles import Net

KINDS = {
    "delta": Net,
    "backup": partial(Net, kind=BackupManager),
    "partitioned": partial(Net, kind=PartitionedManager),
    "persistent": partial(Net, kind=PersistentManager, store=StoreSettings(url="memory:")),
}


@pytest.fixture(params=sorted(KINDS))
def net(request: pytest.FixtureRequest) -> Net:
    return KINDS[request.param](3, ManagerSettings(idle_timeout_s=60, absolute_timeout_s=0))


def found(net: Net, number: int, session_id: str) -> dict[str, Any] | None:
    """What a request on this member finds. None: no such session."""
    session = net.opened(number, session_id)
    net.managers[number].release(session)
    return None if session.id is None else dict(session)


def change(net: Net, number: int, session_id: str | None, acks: str = "none", **attributes: Any) -> str:
    session = net.opened(number, session_id)
    session.update(attributes)
    receipt = net.managers[number].commit(session, acks)
    net.wait(lambda: not receipt.needs_wait)
    net.managers[number].release(session)
    assert receipt.satisfied
    return session.id  # type: ignore[return-value]


def test_every_member_finds_a_session_wherever_it_was_made(net):
    session_id = change(net, 0, None, a=1)
    assert [found(net, number, session_id) for number in range(3)] == [{"a": 1}] * 3
    assert all(isinstance(manager, SessionManager) for manager in net.managers)


def test_writes_on_all_members_are_seen_on_all(net):
    session_id = change(net, 0, None, a=1)
    for number in range(3):
        change(net, number, session_id, **{f"by{number}": number})
    assert [found(net, number, session_id) for number in range(3)] == [{"a": 1, "by0": 0, "by1": 1, "by2": 2}] * 3


def test_a_confirmed_write_survives_the_loss_of_its_writer(net):
    session_id = change(net, 0, None, "one", a=1)
    net.kill(0)
    net.deliver()
    assert [found(net, number, session_id) for number in (1, 2)] == [{"a": 1}] * 2


def test_an_ended_session_is_found_by_nobody(net):
    session_id = change(net, 0, None, a=1)
    session = net.opened(1, session_id)
    session.invalidate()
    receipt = net.managers[1].commit(session)
    net.wait(lambda: not receipt.needs_wait)
    net.managers[1].release(session)
    assert [found(net, number, session_id) for number in range(3)] == [None] * 3


def test_a_new_id_has_the_contents_and_the_old_one_is_found_by_nobody(net):
    old = change(net, 0, None, a=1)
    session = net.opened(2, old)
    session.cycle_id()
    receipt = net.managers[2].commit(session)
    net.wait(lambda: not receipt.needs_wait)
    net.managers[2].release(session)
    assert [found(net, number, old) for number in range(3)] == [None] * 3
    assert [found(net, number, session.id) for number in range(3)] == [{"a": 1}] * 3


def test_a_session_ends_when_nobody_uses_it(net):
    session_id = change(net, 0, None, a=1)
    net.advance(75, 0.25)
    assert [found(net, number, session_id) for number in range(3)] == [None] * 3
    assert [manager.count for manager in net.managers] == [0] * 3


def test_a_joiner_serves_what_was_there_before_it(net):
    session_id = change(net, 0, None, a=1)
    joiner = net.join()
    assert found(net, joiner, session_id) == {"a": 1}
    assert net.managers[joiner].in_sync


def test_what_nobody_made_is_a_new_session(net):
    assert found(net, 1, "x" * 43) is None
