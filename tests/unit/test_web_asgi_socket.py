"""WebSockets and their session: kept alive, committed, closed when the session ends elsewhere. Over real managers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from caterwaul.managers.errors import SessionError
from caterwaul.managers.partitioned import PartitionedManager
from caterwaul.managers.session import Session, key_of
from caterwaul.managers.settings import ManagerSettings
from caterwaul.managers.web.asgi import SessionMiddleware
from caterwaul.managers.web.asgi_socket import SESSION_ENDED, TRY_AGAIN, SessionClosed

from ..contract.asgi_driver import Socket, in_loop, scope_of
from ..doubles import Net

DENIAL = {"extensions": {"websocket.http.response": {}}}


async def chat(scope: Any, receive: Any, send: Any) -> None:
    """Does what it is told, and says what the session holds."""
    assert (await receive())["type"] == "websocket.connect"
    if scope["path"] == "/new":
        scope["caterwaul.session"]["name"] = "new"
    await send({"type": "websocket.accept", "subprotocol": None, "headers": [(b"x-app", b"1")]})
    while (message := await receive())["type"] == "websocket.receive":
        session, words = scope["caterwaul.session"], message["text"].split()
        if words[0] == "set":
            session[words[1]] = words[2]
        elif words[0] == "commit":
            session[words[1]] = words[2]
            session.acks = "one"
            receipt = await scope["caterwaul.socket"].commit()
            await send({"type": "websocket.send", "text": f"confirmed {receipt.confirmed}"})
        elif words[0] == "reopen":
            assert await scope["caterwaul.socket"].reopen() is scope["caterwaul.session"] is scope["caterwaul.socket"].session
        elif words[0] == "cycle":
            with pytest.raises(SessionError, match="the id cannot change any more"):
                session.cycle_id()
        elif words[0] == "end":
            session.invalidate()
        elif words[0] == "fail":
            session["half"] = True
            raise RuntimeError("planted by the test")
        await send({"type": "websocket.send", "text": f"{message['text']}: {sorted(scope['caterwaul.session'].items())}"})


class World:
    """Two nodes, or more, and browsers with a socket to one of them."""

    def __init__(self, count: int = 2, settings: ManagerSettings | None = None, kind: Any = None, app: Any = chat, no_touch: tuple[str, ...] = ()) -> None:
        self.net = Net(count, settings, epochs=True, **({"kind": kind} if kind else {}))
        self.fronts = [SessionMiddleware(app, manager, no_touch=no_touch) for manager in self.net.managers]

    def scope(self, session_id: str | None, path: str = "/chat", **more: Any) -> dict[str, Any]:
        return scope_of("websocket", path, [f"__Host-sid={session_id}"] if session_id else [], **more)

    async def connect(self, session_id: str | None = None, number: int = 0, path: str = "/chat") -> Socket:
        socket = Socket(self.fronts[number], self.scope(session_id, path), self.net.deliver)
        assert (await socket.accepted())["type"] == "websocket.accept"
        return socket

    def contents(self, number: int, session_id: str) -> dict[str, Any]:
        session = self.net.opened(number, session_id)
        self.net.managers[number].release(session)
        return dict(session)

    def change(self, number: int, session_id: str, act: Callable[[Session], object]) -> None:
        """Another request."""
        manager, session = self.net.managers[number], self.net.opened(number, session_id)
        act(session)
        manager.commit(session)
        manager.release(session)

    def last_access_ms(self, number: int, session_id: str) -> int:
        entry = self.net.managers[number]._core.replica.held(key_of(session_id))
        assert entry is not None
        return entry.last_access_ms

    def in_use(self) -> int:
        return sum(len(manager._core.in_use) for manager in self.net.managers)


@in_loop
async def test_a_session_made_before_the_socket_is_accepted_gets_its_cookie_there() -> None:
    world = World()
    socket = await world.connect(path="/new")
    assert socket.cookie is not None
    assert [name for name, _ in socket.sent[0]["headers"]] == [b"x-app", b"set-cookie"]
    await socket.ask("set a 1", "set a 1: [('a', '1'), ('name', 'new')]")
    socket.leave()
    await socket.over()
    assert world.contents(1, socket.cookie.partition(".")[0]) == {"name": "new", "a": "1"}
    assert world.in_use() == 0


@in_loop
async def test_after_that_no_session_can_be_made() -> None:
    socket = await World().connect()
    assert socket.cookie is None
    socket.say("set a 1")
    with pytest.raises(SessionError, match="cannot be created any more"):
        await socket.over()


@in_loop
async def test_what_a_message_changed_is_committed_before_the_next_is_waited_for() -> None:
    world = World()
    session_id = world.net.visit(0, a=1)
    socket = await world.connect(session_id)
    await socket.ask("set a 2", "set a 2: [('a', '2')]")
    await socket.until(lambda: world.contents(1, session_id) == {"a": "2"})
    assert world.fronts[0].sessions.watch.count == 1
    socket.leave()
    await socket.over()
    assert world.fronts[0].sessions.watch.count == 0


@in_loop
async def test_a_commit_of_its_own_waits_for_confirmations_and_others_go_on_meanwhile() -> None:
    world = World()
    session_id = world.net.visit(0, a=1)
    one, other = await world.connect(session_id), await world.connect(session_id)
    world.net.hold(0, 1)
    one.say("commit a 2")
    await other.ask("set b 3", "set b 3: [('a', 1), ('b', '3')]")
    assert one.sent[1:] == []
    world.net.let_go()
    await one.hear("confirmed ('node2',)")
    await one.hear("commit a 2: [('a', '2')]")
    for socket in (one, other):
        socket.leave()
        await socket.over()
    assert world.contents(1, session_id) == {"a": "2", "b": "3"}


@pytest.mark.parametrize(("act", "reason"), [(Session.invalidate, "session invalidated"), (Session.cycle_id, "session id changed")])
@pytest.mark.parametrize("number", [0, 1])
@in_loop
async def test_the_socket_is_closed_when_the_session_ends_here_or_elsewhere(act: Any, reason: str, number: int) -> None:
    world = World()
    session_id = world.net.visit(0, a=1)
    socket = await world.connect(session_id)
    world.change(number, session_id, act)
    await socket.over()
    assert socket.closed == (SESSION_ENDED, reason)
    assert (world.in_use(), world.fronts[0].sessions.watch.count) == (0, 0)


@pytest.mark.parametrize("number", [0, 1])
@in_loop
async def test_ending_all_sessions_of_a_principal_closes_their_sockets(number: int) -> None:
    world = World()
    hers, his = world.net.visit(0, a=1), world.net.visit(0, a=1)
    world.change(0, hers, lambda session: setattr(session, "principal", "ann"))
    world.change(0, his, lambda session: setattr(session, "principal", "bob"))
    socket, other = await world.connect(hers), await world.connect(his)
    world.net.managers[number].end_all("ann")
    await socket.until(lambda: socket.task.done() or world.net.advance(0.1), "the end")
    assert socket.closed is not None
    assert socket.closed[0] == SESSION_ENDED
    await other.ask("hello", "hello: [('a', 1)]")
    other.leave()
    await other.over()


@in_loop
async def test_what_is_sent_after_that_raises_and_closing_again_is_nothing() -> None:
    raised: list[BaseException] = []

    async def talk(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        try:
            while True:
                await send({"type": "websocket.send", "text": "news"})
                await asyncio.sleep(0.001)
        except SessionClosed as error:
            raised.append(error)
            await send({"type": "websocket.close", "code": 1000})
            raise

    world = World(app=talk)
    session_id = world.net.visit(0, a=1)
    socket = await world.connect(session_id)
    await socket.hear("news")
    world.change(1, session_id, Session.invalidate)
    await socket.over()
    assert socket.closed == (SESSION_ENDED, "session invalidated")
    assert "invalidated" in str(raised[0])


@in_loop
async def test_an_application_that_ends_the_session_closes_the_socket_itself() -> None:
    world = World()
    session_id = world.net.visit(0, a=1)
    socket = await world.connect(session_id)
    await socket.ask("end", "end: []")
    await socket.until(lambda: world.contents(1, session_id) == {})
    await socket.ask("hello", "hello: []")
    assert socket.closed is None
    socket.leave()
    await socket.over()


@in_loop
async def test_a_new_id_before_the_socket_is_accepted_does_not_close_it() -> None:
    async def login(scope: Any, receive: Any, send: Any) -> None:
        scope["caterwaul.session"].cycle_id()
        await chat(scope, receive, send)

    world = World(app=login)
    session_id = world.net.visit(0, a=1)
    socket = await world.connect(session_id)
    assert socket.cookie is not None
    fresh = socket.cookie.partition(".")[0]
    assert fresh != session_id
    await socket.ask("set b 2", "set b 2: [('a', 1), ('b', '2')]")
    await socket.until(lambda: world.contents(1, fresh) == {"a": 1, "b": "2"})
    world.change(1, fresh, Session.invalidate)
    await socket.over()
    assert socket.closed == (SESSION_ENDED, "session invalidated")


@in_loop
async def test_reopen_shows_what_others_wrote_and_keeps_what_was_written_here() -> None:
    world = World()
    session_id = world.net.visit(0, a=1)
    socket = await world.connect(session_id)
    world.change(1, session_id, lambda session: session.update(b=2))
    await socket.ask("set c 3", "set c 3: [('a', 1), ('c', '3')]")
    await socket.ask("reopen", "reopen: [('a', 1), ('b', 2), ('c', '3')]")
    await socket.ask("cycle", "cycle: [('a', 1), ('b', 2), ('c', '3')]")
    await socket.ask("set d 4", "set d 4: [('a', 1), ('b', 2), ('c', '3'), ('d', '4')]")
    socket.leave()
    await socket.over()
    assert world.contents(1, session_id) == {"a": 1, "b": 2, "c": "3", "d": "4"}
    assert world.in_use() == 0


@in_loop
async def test_reopen_leaves_everything_as_it_is_while_nobody_can_say_what_there_is() -> None:
    world = World()
    manager, session_id = world.net.managers[0], world.net.visit(0, a=1)
    socket = await world.connect(session_id)
    here, manager.open_local = manager.open_local, lambda session_id, token="": manager.unknown()  # type: ignore[method-assign]
    await socket.ask("reopen", "reopen: [('a', 1)]")
    manager.open_local = here  # type: ignore[method-assign]
    world.change(1, session_id, lambda session: session.update(b=2))
    socket.say("set c 3")
    await socket.ask("reopen", "reopen: [('a', 1), ('b', 2), ('c', '3')]")
    socket.leave()
    await socket.over()
    assert world.in_use() == 0


@in_loop
async def test_reopening_a_session_that_is_gone_closes_the_socket() -> None:
    world = World()
    session_id = world.net.visit(0, a=1)
    socket = await world.connect(session_id)
    manager = world.net.managers[0]
    manager.open_local = lambda session_id, token="": manager._opening._made()  # type: ignore[method-assign]
    socket.say("reopen")
    await socket.over()
    assert socket.closed == (SESSION_ENDED, "session ended")


@in_loop
async def test_an_open_socket_keeps_its_session_alive_and_a_closed_one_does_not() -> None:
    world = World(settings=ManagerSettings(idle_timeout_s=1.0, save_period_s=0.1, expire_check_s=0.05))
    session_id = world.net.visit(0, a=1)
    socket = await world.connect(session_id)
    for _ in range(6):
        world.net.advance(0.4)
        now_ms = world.net.channels[world.net.members[0].uid].now_ms()
        await socket.until(lambda now_ms=now_ms: world.last_access_ms(0, session_id) == now_ms, "a touch")  # type: ignore[misc]
    world.net.advance(0.2)
    assert world.contents(1, session_id) == {"a": 1}
    socket.leave()
    await socket.over()
    world.net.advance(3.0)
    assert world.contents(1, session_id) == {}


@in_loop
async def test_a_socket_under_no_touch_keeps_nothing_alive() -> None:
    world = World(settings=ManagerSettings(idle_timeout_s=1.0, save_period_s=0.1, expire_check_s=0.05), no_touch=("/news",))
    session_id = world.net.visit(0, a=1)
    socket = await world.connect(session_id, path="/news")
    assert world.in_use() == 0
    await socket.ask("reopen", "reopen: [('a', 1)]")
    assert world.in_use() == 0
    world.net.advance(3.0)
    await socket.over()
    assert socket.closed == (SESSION_ENDED, "session expired")


@in_loop
async def test_a_node_that_holds_no_copy_finds_out_by_looking() -> None:
    world = World(5, ManagerSettings(type="partitioned", backups=1, idle_timeout_s=1.0, save_period_s=0.1), PartitionedManager)
    session_id = world.net.visit(0, a=1)
    holding = {number for number in range(5) if world.net.managers[number].count}
    assert len(holding) < 5
    reader = min(set(range(5)) - holding)
    socket = await world.connect(session_id, reader)
    world.change(min(holding), session_id, Session.invalidate)
    await socket.over()
    assert socket.closed is not None
    assert socket.closed[0] == SESSION_ENDED
    assert world.in_use() == 0


@in_loop
async def test_a_session_that_is_gone_is_only_an_empty_one() -> None:
    world = World()
    session_id = world.net.visit(0, a=1)
    world.change(0, session_id, Session.invalidate)
    socket = await world.connect(session_id)
    await socket.ask("hello", "hello: []")
    socket.leave()
    await socket.over()


def unknown(world: World) -> str:
    """A session that no node can find for the moment: the only one that had it is not reached."""
    manager = world.net.managers[0]
    manager.open_local = lambda session_id, token="": manager.unknown()  # type: ignore[method-assign]
    return "A" * 43


@in_loop
async def test_writing_to_an_unknown_session_closes_the_socket_with_try_again() -> None:
    world = World()
    socket = await world.connect(unknown(world))
    socket.say("set a 1")
    await socket.over()
    assert socket.closed is not None
    assert socket.closed[0] == TRY_AGAIN


@pytest.mark.parametrize(("more", "kind"), [({}, "websocket.close"), (DENIAL, "websocket.http.response.start")])
@in_loop
async def test_before_it_is_accepted_the_handshake_is_refused(more: Any, kind: str) -> None:
    world = World()
    socket = Socket(world.fronts[0], world.scope(unknown(world), "/new", **more), world.net.deliver)
    await socket.over()
    assert socket.sent[0]["type"] == kind
    assert socket.sent[0].get("status", 503) == 503


@in_loop
async def test_an_application_that_answers_the_handshake_with_a_page_sets_cookies_there() -> None:
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        scope["caterwaul.session"]["tried"] = 1
        await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b"log in first"})

    world = World(app=refuse)
    socket = Socket(world.fronts[0], world.scope(None, **DENIAL), world.net.deliver)
    await socket.over()
    assert [message["type"] for message in socket.sent] == ["websocket.http.response.start", "websocket.http.response.body"]
    assert {name for name, _ in socket.sent[0]["headers"]} == {b"vary", b"cache-control", b"set-cookie"}
    assert world.net.managers[1].count == 0
    world.net.deliver()
    assert world.net.managers[1].count == 1


@in_loop
async def test_a_page_that_cannot_be_saved_is_answered_503_instead() -> None:
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        scope["caterwaul.session"]["tried"] = 1
        await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b"log in first"})

    world = World(app=refuse)
    world.net.managers[0].throttle.may_begin = lambda origin: False  # type: ignore[method-assign]
    socket = Socket(world.fronts[0], world.scope(None, **DENIAL), world.net.deliver)
    await socket.over()
    assert [message.get("status") for message in socket.sent] == [429, None]


@in_loop
async def test_an_exception_saves_nothing_of_its_message() -> None:
    world = World()
    session_id = world.net.visit(0, a=1)
    socket = await world.connect(session_id)
    await socket.ask("set b 2", "set b 2: [('a', 1), ('b', '2')]")
    socket.say("fail")
    with pytest.raises(RuntimeError, match="planted"):
        await socket.over()
    world.net.deliver()
    assert world.contents(0, session_id) == {"a": 1, "b": "2"}
    assert world.in_use() == 0


@in_loop
async def test_an_application_that_stops_waiting_for_a_message_loses_none() -> None:
    async def patient(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        for _ in range(20):
            try:
                message = await asyncio.wait_for(receive(), 0.01)
            except TimeoutError:
                await send({"type": "websocket.send", "text": "still here"})
            else:
                await send({"type": "websocket.send", "text": f"got {message['text']}"})
                return

    world = World(app=patient)
    socket = await world.connect(world.net.visit(0, a=1))
    await socket.hear("still here")
    await socket.ask("one", "got one")
    await socket.over()


@in_loop
async def test_a_server_that_cancels_leaves_nothing_open() -> None:
    world = World()
    socket = await world.connect(world.net.visit(0, a=1))
    socket.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await socket.over()
    assert (world.in_use(), world.fronts[0].sessions.watch.count) == (0, 0)
    assert len(asyncio.all_tasks()) == 1
