"""The audit log: each login and each end once, who did it and why, and never an id or a value."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import globalLogPublisher

from caterwaul.cluster.audit import AuditFile, AuditLog
from caterwaul.managers.entry import Audited
from caterwaul.managers.listeners import Audited as Listened
from caterwaul.managers.session import key_of
from caterwaul.managers.settings import ManagerSettings
from caterwaul.membership.errors import LocalError
from tests.doubles import Net
from tests.real.processes import until

from .test_login_refused import refusing
from .test_managers_principals import KINDS, net_of
from .test_single_sign_on import Browser, World

assert Listened is Audited


def watched(net: Net) -> list[Audited]:
    told: list[Audited] = []
    for manager in net.managers:
        manager.on_audit = told.append
    return told


def log_in(net: Net, number: int, who: str, session_id: str | None = None) -> str:
    session = net.opened(number, session_id)
    session.origin = ("192.0.2.7", "")
    session.login(who, device="phone")
    session["cart"] = ["secret value"]
    net.managers[number].commit(session)
    net.managers[number].release(session)
    net.deliver()
    assert session.id is not None
    return session.id


def brief(told: list[Audited]) -> list[tuple[str, str, str]]:
    return [(event.what, event.principal, event.by) for event in told]


@pytest.mark.parametrize("kind", KINDS)
def test_each_login_and_each_end_is_told_once_with_who_did_it(kind: str) -> None:
    net = net_of(kind)
    told = watched(net)
    net.visit(0, None, n=1)
    ann = log_in(net, 0, "ann")
    again = log_in(net, 1, "ann", ann)
    assert brief(told) == [("login", "ann", ""), ("id changed", "ann", ""), ("login", "ann", "")]
    assert (told[0].key, told[0].about, told[0].origin) == (key_of(ann), {"device": "phone"}, ("192.0.2.7", ""))
    assert (told[1].key, told[1].became) == (key_of(ann), key_of(again))
    told.clear()
    session = net.opened(2, again)
    session.invalidate()
    net.managers[2].commit(session)
    net.managers[2].release(session)
    net.deliver()
    net.advance(3.0)
    assert brief(told) == [("logout", "ann", "")]
    told.clear()
    ids = [log_in(net, number, "bob") for number in range(3)]
    told.clear()
    assert net.managers[next(n for n, m in enumerate(net.managers) if m._core.replica.held(key_of(ids[0])))].users.end_login(key_of(ids[0]), b"")
    net.deliver()
    net.managers[0].end_all("bob")
    net.advance(3.0)
    assert sorted(brief(told)) == [("ended", "bob", "administrator"), ("ended", "bob", "end_all"), ("ended", "bob", "end_all")]
    assert {event.key for event in told} == set(map(key_of, ids))


@pytest.mark.parametrize("kind", KINDS)
def test_an_expiry_is_told_once_and_only_of_who_was_logged_in(kind: str) -> None:
    net = net_of(kind)
    told = watched(net)
    net.visit(0, None, n=1)
    ann = log_in(net, 0, "ann")
    net.advance(700.0, 1.0)
    assert brief(told) == [("login", "ann", ""), ("expired", "ann", "")]
    assert told[1].key == key_of(ann)
    assert told[1].about == {"device": "phone"}


def test_a_logout_of_a_session_that_goes_on() -> None:
    net = net_of("delta")
    told = watched(net)
    ann = log_in(net, 0, "ann")
    session = net.opened(1, ann)
    session.principal = None
    net.managers[1].commit(session)
    net.managers[1].release(session)
    net.deliver()
    assert brief(told) == [("login", "ann", ""), ("logout", "ann", "")]


def test_the_oldest_that_a_limit_ends_and_the_login_that_a_limit_refuses() -> None:
    net = net_of("delta", principal_sessions_max=1)
    told = watched(net)
    first = log_in(net, 0, "ann")
    log_in(net, 1, "ann")
    net.advance(3.0)
    assert brief(told) == [("login", "ann", ""), ("login", "ann", ""), ("ended", "ann", "limit")]
    assert told[2].key == key_of(first)
    net = refusing()
    told = watched(net)
    log_in(net, 0, "ann")
    with pytest.raises(Exception, match="principal_sessions_max"):
        log_in(net, 1, "ann")
    net.deliver()
    assert brief(told) == [("login", "ann", ""), ("refused", "ann", "limit")]
    assert (told[1].key, told[1].origin, told[1].about) == (b"", ("192.0.2.7", ""), {"device": "phone"})


def test_shared_logins_and_logouts() -> None:
    world = World(2)
    told: list[Audited] = []
    for managers in world.applications.values():
        for manager in managers:
            manager.on_audit = told.append
    ann = Browser(world)
    ann.log_in("shop", 0)
    assert ann.who("blog", 1) == "ann"
    ann.log_out("shop", 1)
    world.net.advance(3.0)
    assert brief(told) == [("login", "ann", ""), ("login", "ann", "shared"), ("logout", "ann", ""), ("ended", "ann", "shared logout")]


# -- where it goes


class Manager:
    name = "shop"

    def __init__(self, path: str = "") -> None:
        self.settings = ManagerSettings(audit_log=path)
        self.on_audit: Any = None


HAPPENED = Audited("login", bytes(range(16)), "ann", {"device": "phone"}, "", ("10.0.0.1", "192.0.2.7, 10.0.0.2"))


def test_it_is_an_event_of_twisteds_log_with_fields() -> None:
    seen: list[dict[str, Any]] = []
    manager: Any = Manager()
    AuditLog(manager, "node1")
    globalLogPublisher.addObserver(seen.append)  # type: ignore[arg-type]
    try:
        manager.on_audit(HAPPENED)
    finally:
        globalLogPublisher.removeObserver(seen.append)  # type: ignore[arg-type]
    (event,) = [event for event in seen if event["log_namespace"] == "caterwaul.audit"]
    expected = {
        "event": "login", "principal": "ann", "session": "0001020304050607", "by": "", "address": "192.0.2.7", "about": {"device": "phone"},
        "manager": "shop", "node": "node1", "became": "",
    }  # fmt: skip
    assert expected.items() <= event.items()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def test_a_file_of_lines_that_only_its_owner_reads_and_that_may_be_renamed(tmp_path: Path) -> None:
    path, old = tmp_path / "audit.log", tmp_path / "audit.log.1"
    manager: Any = Manager(str(path))
    log = AuditLog(manager, "node1")
    manager.on_audit(HAPPENED)
    until(lambda: len(lines(path)) == 1, what="written")
    (line,) = lines(path)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "event": "login", "principal": "ann", "session": "0001020304050607", "address": "192.0.2.7", "about": {"device": "phone"}, "manager": "shop", "node": "node1",
    }  # fmt: skip
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.rename(old)
    manager.on_audit(HAPPENED._replace(principal="bob"))
    until(lambda: len(lines(path)) == 1, what="a new file")
    assert [line["principal"] for line in lines(old) + lines(path)] == ["ann", "bob"]
    manager.on_audit(HAPPENED)
    log.stop()
    assert len(lines(path)) == 2, "what was heard before the stop is there"
    assert log.statistics() == {"written": 3, "lost": 0}


def test_a_path_that_cannot_be_had_is_said_at_the_start(tmp_path: Path) -> None:
    manager: Any = Manager(str(tmp_path / "missing" / "audit.log"))
    with pytest.raises(LocalError, match=r"managers\.shop\.audit_log.*No such file"):
        AuditLog(manager, "node1")


def test_a_disk_that_is_full_is_counted_and_harms_nobody() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    file = AuditFile("/dev/full")
    for _ in range(3):
        file.put(b"line\n")
    until(lambda: file.lost == 3, what="counted")
    file.stop()
    assert file.written == 0


def test_a_disk_that_takes_nothing_makes_nobody_wait(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    file = AuditFile(str(path))
    for _ in range(30_000):
        file.put(b"x" * 99 + b"\n")
    assert file.lost > 10_000, "what does not fit is counted at once"
    os.set_blocking(reader, True)
    left = (30_000 - file.lost) * 100
    while left:  # it is read again: the rest arrives
        left -= len(os.read(reader, 1 << 16))
    file.stop()
    assert file.written + file.lost == 30_000
    os.close(reader)
