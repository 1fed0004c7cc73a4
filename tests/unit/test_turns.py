"""Requests of one session, one after the other: who is next, who is turned away, and that no turn is lost."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caterwaul.managers.errors import TurnRefused
from caterwaul.managers.persistent import PersistentManager
from caterwaul.managers.session import Session
from caterwaul.managers.settings import ManagerSettings
from caterwaul.managers.stores.settings import StoreSettings
from caterwaul.managers.turns import WAITING_MAX, Turn, Turns
from caterwaul.managers.web.asgi import SessionMiddleware as AsgiMiddleware
from caterwaul.managers.web.cookies import Ticket
from caterwaul.managers.web.policy import Front
from caterwaul.managers.web.sessions import Sessions
from caterwaul.managers.web.wsgi import SessionMiddleware as WsgiMiddleware
from tests.doubles import Net

KEY, OTHER = b"k" * 16, b"o" * 16


def nobody(is_ours: bool) -> None:
    """Does not care."""


# -- the core


def test_who_comes_first_goes_first_and_sessions_do_not_know_each_other() -> None:
    turns = Turns()
    (a, a_first), (b, b_first), (c, _) = (turns.take(KEY, 5.0, nobody, True) for _ in range(3))
    assert (a_first, b_first) == (True, False)
    assert turns.take(OTHER, 5.0, nobody, True)[1]
    assert a is not None
    assert b is not None
    assert turns.give_back(a) is b
    assert turns.give_back(a) is None, "repeats are harmless"
    assert turns.give_back(b) is c
    assert len(turns) == 2


def test_who_is_not_to_wait_gets_no_place() -> None:
    turns = Turns()
    turns.take(KEY, 5.0, nobody, False)
    assert turns.take(KEY, 5.0, nobody, False) == (None, False)
    assert turns.take_free(KEY) is None
    assert turns.take_free(OTHER) is not None
    for _ in range(WAITING_MAX):
        assert turns.take(KEY, 5.0, nobody, True)[0] is not None
    assert turns.take(KEY, 5.0, nobody, True) == (None, False)
    assert turns.refused == 2


def test_whoever_waits_too_long_is_told_in_order_and_leaves_no_gap() -> None:
    turns = Turns()
    places = [turns.take(KEY, 5.0 + number, nobody, True)[0] for number in range(4)]
    assert turns.deadline == 6.0, "the first waits no more"
    assert turns.late(5.9) == []
    assert turns.late(7.0) == places[1:3]
    assert places[0] is not None
    assert turns.give_back(places[0]) is places[3]
    assert turns.deadline is None


@given(st.lists(st.tuples(st.sampled_from(["take", "back", "late"]), st.integers(0, 5)), max_size=60))
def test_at_any_time_one_has_the_turn_and_none_is_lost(steps: list[tuple[str, int]]) -> None:
    turns, now = Turns(), 0.0
    alive: list[Turn] = []
    holder: Turn | None = None
    for step, number in steps:
        now += 1.0
        if step == "take":
            turn, is_first = turns.take(KEY, now + 5.0, nobody, True)
            assert turn is not None
            assert is_first == (holder is None)
            alive.append(turn)
            holder = holder or turn
        elif step == "back" and alive:
            turn = alive.pop(number % len(alive))
            following = turns.give_back(turn)
            if turn is holder:
                assert following is (alive[0] if alive else None)
                holder = following
            else:
                assert following is None
        else:
            for turn in turns.late(now):
                assert turn is not holder
                alive.remove(turn)
        assert len(turns) == (holder is not None)


# -- opening


def net(turns: str = "queue", **more: Any) -> Net:
    return Net(1, ManagerSettings(turns=turns, **more))


def asked(of: Net, session_id: str) -> list[Session]:
    got: list[Session] = []
    of.managers[0].in_turn.open_deferred(session_id).addCallback(got.append)
    of.deliver()
    return got


def test_a_session_is_opened_when_the_one_before_is_released() -> None:
    cluster = net()
    session_id = cluster.visit(0, n=0)
    first, second, third = (asked(cluster, session_id) for _ in range(3))
    assert (len(first), second, third) == (1, [], [])
    first[0]["n"] = 1
    cluster.managers[0].commit(first[0])
    for _ in range(2):
        cluster.managers[0].release(first[0])
    cluster.deliver()
    assert (second[0]["n"], third) == (1, [])
    cluster.managers[0].release(second[0])
    cluster.deliver()
    assert third
    assert cluster.managers[0].statistics()["turns_waited"] == 2


def test_what_the_application_opens_itself_takes_no_turn() -> None:
    cluster = net()
    session_id = cluster.visit(0, n=0)
    assert asked(cluster, session_id)
    assert cluster.opened(0, session_id)["n"] == 0


@pytest.mark.parametrize("session_id", [None, "short"])
def test_who_has_no_session_yet_waits_for_nobody(session_id: Any) -> None:
    cluster = net("refuse")
    for _ in range(2):
        assert asked(cluster, session_id)[0].new
        assert cluster.managers[0].in_turn.open_local(session_id).new  # type: ignore[union-attr]


def test_a_session_that_was_dropped_gives_its_turn_back() -> None:
    cluster = net(lock_timeout_s=5.0)
    session_id = cluster.visit(0, n=0)
    first, second = asked(cluster, session_id), asked(cluster, session_id)
    first.clear()
    gc.collect()
    cluster.advance(1.1)
    assert second[0]["n"] == 0
    second.clear()
    gc.collect()
    assert asked(cluster, session_id)


def test_the_end_of_the_manager_is_the_end_of_all_waiting() -> None:
    cluster = net()
    session_id = cluster.visit(0, n=0)
    first, second = asked(cluster, session_id), asked(cluster, session_id)
    cluster.managers[0].stop()
    assert first[0].refusal is None
    assert isinstance(second[0].refusal, TurnRefused)
    assert second[0].refusal.status == 503


def test_a_visit_hands_its_turn_on_and_a_front_takes_turns_only_where_it_is_told_to() -> None:
    cluster = net()
    session_id = cluster.visit(0, n=0)
    front = Front(cluster.managers[0])
    ticket = front.ticket([f"__Host-sid={session_id}"], "/", str)
    assert ticket.in_turn
    assert not Front(Net(1).managers[0]).ticket([f"__Host-sid={session_id}"], "/", str).in_turn
    assert not front.ticket([], "/", str).in_turn
    session = front.local(ticket, ("", ""))
    assert session is not None
    visit = front.admit(ticket, session, "/", ("", ""))
    assert front.local(ticket, ("", "")) is None, "somebody has to be waited for"
    assert front.local(Ticket(session_id), ("", "")) is not None
    visit.end_turn()
    following = front.local(ticket, ("", ""))
    assert following is not None
    visit.release()
    assert front.local(ticket, ("", "")) is None, "a turn is given back once"


def test_sessions_in_a_shared_store_take_turns_unless_told_otherwise() -> None:
    store = StoreSettings(url="memory:")
    for turns, takes in (("", True), ("off", False)):
        cluster = Net(2, ManagerSettings(turns=turns), kind=PersistentManager, store=store)
        session_id = cluster.visit(0, n=0)
        assert Front(cluster.managers[0]).ticket([f"__Host-sid={session_id}"], "/", str).in_turn == takes
    cluster = Net(1, kind=PersistentManager, store=store)
    session_id = cluster.visit(0, n=0)
    cluster.store_fails = True
    first, second = asked(cluster, session_id), asked(cluster, session_id)
    cluster.wait(lambda: bool(first))
    assert (first[0].stale, second) == (True, [])
    cluster.managers[0].release(first[0])
    cluster.wait(lambda: bool(second))


# -- requests


def test_a_request_that_passes_two_fronts_does_not_wait_for_itself() -> None:
    manager = net("refuse").managers[0]
    session = manager.open_local(None)
    assert session is not None
    session["n"] = 1
    manager.commit(session)
    seen: list[Any] = []

    def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append(environ["caterwaul.session"]["n"])
        start_response("200 OK", [])
        return [b""]

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["caterwaul.session"]["n"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    cookie = f"__Host-sid={session.id}"
    answers: list[str] = []
    inner = WsgiMiddleware(WsgiMiddleware(wsgi, manager), manager)
    inner({"HTTP_COOKIE": cookie, "PATH_INFO": "/"}, lambda status, headers, exc_info=None: answers.append(status))  # type: ignore[arg-type]

    async def send(message: Any) -> None:
        answers.append(str(message.get("status", "")))

    scope = {"type": "http", "path": "/", "headers": [(b"cookie", cookie.encode())], "client": None}
    asyncio.run(AsgiMiddleware(AsgiMiddleware(asgi, manager), manager)(scope, None, send))  # type: ignore[arg-type]
    assert (answers, seen) == (["200 OK", "200", ""], [1, 1])
    assert len(manager.in_turn.turns) == 0


def test_a_session_that_is_opened_again_keeps_the_turn() -> None:
    manager = net("refuse").managers[0]
    made = manager.open_local(None)
    assert made is not None
    made["n"] = 1
    manager.commit(made)

    async def request() -> None:
        sessions = Sessions(manager)
        visit = await sessions.admit([f"__Host-sid={made.id}"], ("", ""), "/", str)
        again = await sessions.reopen(visit, "/", False)
        assert again is not visit
        visit.release()
        assert manager.in_turn.open_local(made.id) is None
        again.release()
        assert manager.in_turn.open_local(made.id) is not None

    asyncio.run(request())


def test_a_request_that_fails_before_its_application_runs_is_over() -> None:
    cluster = net("refuse")
    session_id = cluster.visit(0, n=0)
    front = Front(cluster.managers[0])
    ticket = front.ticket([f"__Host-sid={session_id}"], "/", str)
    session = front.local(ticket, ("", ""))
    assert session is not None
    visit = front.admit(ticket, session, "/", ("", ""))
    with pytest.raises(RuntimeError), visit.kept():
        raise RuntimeError("planted by the test")
    assert front.local(ticket, ("", "")) is not None
