"""Whether a node is a session's primary, as requests can ask."""

from __future__ import annotations

from typing import Any

import pytest

from caterwaul.managers.backup import BackupManager
from caterwaul.managers.delta import DeltaManager
from caterwaul.managers.settings import ManagerSettings
from caterwaul.managers.web.facade import SessionFacade
from caterwaul.managers.web.policy import Front
from caterwaul.managers.web.wsgi import open_visit
from tests.doubles import Net


def primaries(net: Net, session_id: str) -> list[int]:
    """Members that say so when a request brings that session."""
    found = []
    for number, manager in enumerate(net.managers):
        if net.members[number].uid in net.alive:
            session = net.opened(number, session_id)
            found += [number] if manager.is_primary(session) else []
            manager.release(session)
            net.deliver()
    return found


def test_with_copies_everywhere_it_is_where_the_session_began_and_then_where_it_is_written() -> None:
    net = Net(3)
    session_id = net.visit(1, a=1)
    assert primaries(net, session_id) == [1]
    net.visit(2, session_id, a=2)
    assert primaries(net, session_id) == [1]
    net.kill(1)
    assert primaries(net, session_id) == []
    net.visit(2, session_id, a=3)
    assert primaries(net, session_id) == [2]


def test_with_backups_it_is_where_the_session_is_served() -> None:
    net = Net(3, ManagerSettings(type="backup"), kind=BackupManager)
    session_id = net.visit(1, a=1)
    assert [net.managers[number].is_primary(net.opened(number, session_id)) for number in (1, 2, 1)] == [True, True, True]
    assert primaries(net, session_id) == [0, 1, 2], "each served it, one after the other"


@pytest.mark.parametrize("kind", [DeltaManager, BackupManager])
def test_a_request_can_ask(kind: Any) -> None:
    net = Net(2, kind=kind)
    front = Front(net.managers[0])
    visit = open_visit(front, {"PATH_INFO": "/"})
    facade = SessionFacade(visit)
    assert not visit.is_primary, "there is no session"
    facade["a"] = 1
    assert not facade.is_primary, "not yet"
    visit.save()
    assert facade.is_primary
    visit.end()
    visit.save()
    assert not facade.is_primary
