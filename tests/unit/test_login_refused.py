"""`principal_sessions_policy = "refuse"`: who is logged in as often as they may be is told so, and nothing else happens."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed

from caterwaul.managers.errors import LoginRefused, SessionError
from caterwaul.managers.principals import principal_key
from caterwaul.managers.session import Session
from caterwaul.managers.summaries import LoginHere
from caterwaul.managers.web.policy import unavailable
from caterwaul.managers.web.waiting import log_in as log_in_soon
from tests.doubles import MANAGER, Net

from .test_managers_principals import heal, lives, net_of, split

ALICE = principal_key(MANAGER, "alice")


def refusing(kind: str = "delta", count: int = 3, most: int = 1) -> Net:
    return net_of(kind, count, principal_sessions_max=most, principal_sessions_policy="refuse", unknown_for_s=0.0)


def log_in(net: Net, number: int, who: str = "alice", session_id: str | None = None) -> str:
    session = net.opened(number, session_id)
    try:
        session["cart"] = [1]
        session.login(who, device=f"device {number}")
        net.managers[number].commit(session)
    finally:
        net.managers[number].release(session)
    net.deliver()
    assert session.id is not None
    return session.id


def asking(net: Net, number: int) -> None:
    """As the node's desk does it: all that are alive and not cut off are asked."""

    def ask(whose: bytes) -> Deferred[list[LoginHere]]:
        reached = [
            m
            for m, other in zip(net.managers, net.members, strict=True)
            if other.uid == net.members[number].uid or net.linked(net.members[number].uid, other.uid)
        ]
        found = {login.key: login for manager in reached for login in manager.users.logins_of([whose])}
        return succeed(sorted(found.values(), key=lambda login: (login.number, login.key), reverse=True))

    net.managers[number].users.ask = ask


def test_a_login_too_many_is_refused_where_all_is_known_and_changes_nothing() -> None:
    net = refusing()
    first = log_in(net, 0)
    guest = net.visit(1, None, cart=["apple"])
    session = net.opened(1, guest)
    with pytest.raises(LoginRefused, match="principal_sessions_max") as caught:
        session.login("alice", device="other")
    assert (caught.value.status, caught.value.principal) == (409, "alice")
    assert unavailable(LoginRefused("ann", []))[0] == "409 Conflict"
    (other,) = caught.value.sessions
    assert (other["about"], other["login"], set(other)) == ({"device": "device 0"}, 1, {"key", "age_s", "idle_s", "login", "about"})
    assert (session.id, session.principal, dict(session)) == (guest, None, {"cart": ["apple"]})
    session["cart"].append("pear")
    net.managers[1].commit(session)
    net.managers[1].release(session)
    net.deliver()
    assert lives(net, first) == lives(net, guest) == [True] * 3
    assert log_in(net, 1, "bob")
    net.managers[2].users.end_login(bytes.fromhex(other["key"]), b"")
    net.deliver()
    again = log_in(net, 1, session_id=guest)
    assert lives(net, again) == [True] * 3


def test_who_logs_in_again_in_the_same_session_is_not_one_more() -> None:
    net = refusing()
    session_id = log_in(net, 0)
    again = log_in(net, 1, session_id=session_id)
    assert lives(net, again) == [True] * 3
    session = net.opened(0, again)
    session.principal = "alice"
    net.managers[0].release(session)


def test_of_two_at_once_both_succeed_and_the_same_one_goes_everywhere() -> None:
    net = refusing()
    sessions = [net.opened(number) for number in (0, 1)]
    for number, session in enumerate(sessions):
        session.login("alice")
        net.managers[number].commit(session)
        net.managers[number].release(session)
    net.deliver()
    net.advance(4.0)
    assert sorted(any(lives(net, session.id or "")) for session in sessions) == [False, True]
    assert sorted(all(lives(net, session.id or "")) for session in sessions) == [False, True]


def test_after_a_partition_who_was_there_first_stays() -> None:
    net = refusing(count=4)
    log_out = log_in(net, 0)  # so that the left side knows of a login more
    split(net, [0, 1], [2, 3])
    session = net.opened(0, log_out)
    session.invalidate()
    net.managers[0].commit(session)
    net.managers[0].release(session)
    net.deliver()
    with pytest.raises(LoginRefused):
        log_in(net, 3)
    younger = log_in(net, 1)
    with pytest.raises(LoginRefused):
        log_in(net, 0)
    heal(net, [0, 1], [2, 3])
    net.advance(4.0)
    assert lives(net, younger) == [True] * 4, "the other one was ended meanwhile"


def test_on_both_sides_of_a_partition_a_login_succeeds_and_the_younger_goes_when_it_heals() -> None:
    net = refusing(count=4)
    split(net, [0, 1], [2, 3])
    older = log_in(net, 0)
    session = net.opened(2, log_in(net, 2, "alice"))
    session.invalidate()
    net.managers[2].commit(session)
    net.managers[2].release(session)
    net.deliver()
    younger = log_in(net, 3)
    heal(net, [0, 1], [2, 3])
    net.advance(4.0)
    found = [lives(net, one) for one in (older, younger)]
    assert sorted(found) == [[False] * 4, [True] * 4]


@pytest.mark.usefixtures("outside_the_reactor")
@pytest.mark.parametrize("kind", ["backup", "partitioned"])
def test_where_not_all_is_known_the_others_are_asked(kind: str) -> None:
    net = refusing(kind, 5)
    for number in range(5):
        asking(net, number)
    log_in(net, 0, "bob")
    outcomes: list[Any] = []
    sessions: list[Session] = []
    for number in range(5):
        session = net.opened(number)
        sessions.append(session)
        net.managers[number].login_deferred(session, "alice", device="x").addBoth(outcomes.append)
        if session.principal is not None:
            net.managers[number].commit(session)
        net.managers[number].release(session)
        net.deliver()
    assert [outcome is None or outcome.check(LoginRefused) for outcome in outcomes] == [True, *[LoginRefused] * 4]
    assert [session.principal for session in sessions] == ["alice", None, None, None, None]


def test_where_nobody_may_wait_the_form_that_does_not_is_asked_for() -> None:
    net = refusing("partitioned", 4)
    for number in range(4):
        asking(net, number)
    taken = log_in_deferred(net, 0)
    reader = next(number for number in range(4) if not net.managers[number].users.logins_of([ALICE]))
    session = net.opened(reader)

    async def in_a_loop() -> None:
        with pytest.raises(SessionError, match="log_in"):
            session.login("alice")

    asyncio.run(in_a_loop())
    assert session.principal is None
    assert any(lives(net, taken))


def test_in_asyncio_the_loop_turns_while_others_are_asked() -> None:
    net = refusing("partitioned", 4)
    waiting: Deferred[list[LoginHere]] = Deferred()
    net.managers[1].users.ask = lambda whose: waiting
    session = net.opened(1)

    async def in_a_loop() -> str | None:
        login = asyncio.ensure_future(log_in_soon(net.managers[1], session, "alice", device="x"))
        await asyncio.sleep(0)
        net.deliver()
        await asyncio.sleep(0)
        assert not login.done()
        waiting.callback([])
        await login
        return session.principal

    assert asyncio.run(in_a_loop()) == "alice"


def log_in_deferred(net: Net, number: int) -> str:
    session = net.opened(number)
    net.managers[number].login_deferred(session, "alice")
    net.managers[number].commit(session)
    net.managers[number].release(session)
    net.deliver()
    assert session.id is not None
    return session.id
