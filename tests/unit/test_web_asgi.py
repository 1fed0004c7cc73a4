"""The ASGI middleware where the protocol has corners: streams, background work, waiting for others, failures after the headers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from caterwaul.managers.errors import NotConfirmed, SessionRefused
from caterwaul.managers.receipts import Waiting
from caterwaul.managers.web.asgi import SessionMiddleware
from caterwaul.managers.web.waiting import heard

from ..contract.asgi_driver import Exchange, attend, in_loop, run, scope_of
from ..contract.double import Node, World

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}


def begun(world: World, **values: Any) -> str:
    """A session that exists."""
    node = world.node()
    session: Any = node.open_local(None)
    session.update(values or {"n": 1})
    node.commit(session)
    assert session.id is not None
    return str(session.id)


def scope(session_id: str | None = None) -> dict[str, Any]:
    return scope_of("http", "/shop", [f"__Host-sid={session_id}"] if session_id else [])


def serve(app: Any, node: Node, session_id: str | None = None) -> Exchange:
    """One request. Raises what left the middleware."""

    async def main() -> Exchange:
        exchange = Exchange()
        task = asyncio.ensure_future(SessionMiddleware(app, node)(scope(session_id), exchange.receive, exchange.send))  # type: ignore[arg-type]
        try:
            await attend(node, task)
            task.result()
        finally:
            assert node.open_now == []
        return exchange

    return run(main)


async def until(seen: Callable[[], object], task: asyncio.Task[None]) -> None:
    while not seen():
        assert not task.done(), task
        await asyncio.sleep(0)


async def looking_up(world: World, node: Node) -> asyncio.Task[None]:
    """A request that waits for its session, which others have."""
    session_id, exchange = begun(world), Exchange()
    world.make_remote(session_id)
    task = asyncio.ensure_future(SessionMiddleware(None, node)(scope(session_id), exchange.receive, exchange.send))  # type: ignore[arg-type]
    await until(lambda: node.lookups, task)
    return task


def test_the_last_bytes_leave_after_what_was_written_before_them(world: World, node: Node) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        scope["caterwaul.session"]["late"] = True
        await send({"type": "http.response.body", "body": b"last"})
        assert world.contents(session_id) == {"n": 1, "late": True}

    session_id = begun(world)
    assert serve(app, node, session_id).body == b"firstlast"


def test_background_work_after_the_response_is_saved_when_it_is_done(world: World, node: Node) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"done"})
        scope["caterwaul.session"]["mailed"] = True
        assert world.contents(session_id) == {"n": 1}

    session_id = begun(world)
    serve(app, node, session_id)
    assert world.contents(session_id) == {"n": 1, "mailed": True}


@in_loop
async def test_an_event_stream_says_hello_before_its_first_event(world: World, node: Node) -> None:
    go_on = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["caterwaul.session"]["seen"] = 1
        await send({**START, "headers": [(b"content-type", b"text/event-stream")]})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"data: 1\n\n"})

    exchange = Exchange()
    task = asyncio.ensure_future(SessionMiddleware(app, node)(scope(), exchange.receive, exchange.send))  # type: ignore[arg-type]
    await until(lambda: exchange.status, task)
    assert any(name == "set-cookie" for name, _ in exchange.headers)
    assert world.count() == 1
    go_on.set()
    await task


def test_an_exception_between_the_headers_and_the_body_saves_nothing_and_leaves_the_headers_to_the_server(world: World, node: Node) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["caterwaul.session"]["half"] = True
        await send(START)
        raise RuntimeError("planted by the test")

    with pytest.raises(RuntimeError, match="planted"):
        serve(app, node)
    assert world.count() == 0


def test_an_exception_in_a_stream_keeps_what_was_committed_with_the_headers(world: World, node: Node) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["caterwaul.session"]["before"] = True
        await send(START)
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        scope["caterwaul.session"]["after"] = True
        raise RuntimeError("planted by the test")

    session_id = begun(world)
    with pytest.raises(RuntimeError, match="planted"):
        serve(app, node, session_id)
    assert world.contents(session_id) == {"n": 1, "before": True}


def test_a_refusal_that_a_framework_hides_is_still_answered(world: World, node: Node) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["caterwaul.session"]["n"] = 1
        await send(START)
        try:
            await send({"type": "http.response.body"})
        except SessionRefused as error:
            raise RuntimeError("the response has started already") from error

    node.throttle.may_begin = lambda origin: False  # type: ignore[method-assign]
    answer = serve(app, node)
    assert (answer.status, dict(answer.headers)["retry-after"]) == (429, "1")


def test_a_framework_may_make_its_own_page_of_a_refusal(world: World, node: Node) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["caterwaul.session"]["n"] = 1
        await send(START)
        try:
            await send({"type": "http.response.body"})
        except SessionRefused:
            await send({**START, "status": 429})
            await send({"type": "http.response.body", "body": b"our own words"})

    node.throttle.may_begin = lambda origin: False  # type: ignore[method-assign]
    answer = serve(app, node)
    assert (answer.status, answer.body) == (429, b"our own words")
    assert "set-cookie" not in dict(answer.headers)


def test_missing_confirmations_are_an_error_before_the_headers(world: World, node: Node) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["caterwaul.session"]["n"] = 1
        scope["caterwaul.session"].acks = "one"
        await send(START)
        await send({"type": "http.response.body"})

    commit = node.commit

    def refused(*arguments: Any) -> Any:
        receipt = commit(*arguments)
        receipt.wait = lambda: (_ for _ in ()).throw(NotConfirmed("0 of 1 confirmations"))  # type: ignore[method-assign]
        return receipt

    node.commit = refused  # type: ignore[method-assign]
    exchange = Exchange()

    async def main() -> None:
        task = asyncio.ensure_future(SessionMiddleware(app, node)(scope(), exchange.receive, exchange.send))  # type: ignore[arg-type]
        while not task.done():
            for receipt in node.receipts:
                receipt.confirm()
                receipt.waiting.clear()
            await asyncio.sleep(0)
        task.result()

    with pytest.raises(NotConfirmed):
        run(main)
    assert (exchange.status, node.open_now) == (0, [])


@in_loop
async def test_other_requests_go_on_while_one_waits(world: World, node: Node) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        text = repr(sorted(scope["caterwaul.session"].items())).encode()
        await send(START)
        await send({"type": "http.response.body", "body": text})

    near, far = begun(world, at="near"), begun(world, at="far")
    world.make_remote(far)
    middleware = SessionMiddleware(app, node)  # type: ignore[arg-type]
    waits, goes = Exchange(), Exchange()
    waiting = asyncio.ensure_future(middleware(scope(far), waits.receive, waits.send))
    await until(lambda: node.lookups, waiting)
    await middleware(scope(near), goes.receive, goes.send)
    assert (goes.body, waits.status, len(node.lookups)) == (b"[('at', 'near')]", 0, 1)
    node.answer()
    await waiting
    assert waits.body == b"[('at', 'far')]"


@in_loop
async def test_a_request_that_is_cancelled_while_it_waits_gives_the_session_back(world: World, node: Node) -> None:
    task = await looking_up(world, node)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    node.answer()
    assert len(node.open_now) == 1, "it comes all the same"
    await asyncio.sleep(0)
    assert node.open_now == []


@in_loop
async def test_a_request_that_is_cancelled_just_when_its_session_has_come_gives_it_back(world: World, node: Node) -> None:
    task = await looking_up(world, node)
    node.answer()
    asyncio.get_running_loop().call_soon(task.cancel)  # after the answer, before the request has woken
    with pytest.raises(asyncio.CancelledError):
        await task
    assert node.open_now == []


def test_a_loop_that_is_closed_meanwhile_gives_it_back_too(world: World, node: Node) -> None:
    async def main() -> None:
        (await looking_up(world, node)).cancel()

    run(main)
    node.answer()
    assert node.open_now == []


def test_an_answer_that_never_comes_is_replaced() -> None:
    """When the reactor has died."""
    given: list[Callable[[str], None]] = []
    unwanted: list[str] = []

    async def main() -> str:
        found = await heard(given.append, 0.01, lambda: "nothing", unwanted.append)
        given[0]("late")
        await asyncio.sleep(0)
        return found

    assert run(main) == "nothing"
    assert unwanted == ["late"]


def test_two_tasks_of_one_request_both_write(world: World, node: Node) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def put(name: str) -> None:
            await asyncio.sleep(0)
            scope["caterwaul.session"][name] = 1

        await asyncio.gather(put("a"), put("b"))
        await send(START)
        await send({"type": "http.response.body"})

    session_id = begun(world)
    serve(app, node, session_id)
    assert world.contents(session_id) == {"n": 1, "a": 1, "b": 1}


@in_loop
async def test_two_requests_of_one_session_in_one_loop_both_keep_their_changes(world: World, node: Node) -> None:
    session_id = begun(world)
    both = asyncio.Barrier(2)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await both.wait()
        scope["caterwaul.session"][scope["path"][1:]] = 1
        await both.wait()
        await send(START)
        await send({"type": "http.response.body"})

    middleware = SessionMiddleware(app, node)  # type: ignore[arg-type]
    exchanges = Exchange(), Exchange()
    calls = [middleware({**scope(session_id), "path": path}, each.receive, each.send) for path, each in zip(("/a", "/b"), exchanges, strict=True)]
    await asyncio.gather(*calls)
    assert world.contents(session_id) == {"n": 1, "a": 1, "b": 1}


@in_loop
async def test_a_manager_may_come_with_the_first_request_and_other_scopes_pass_through(node: Node) -> None:
    asked: list[int] = []
    seen: list[Any] = []

    def manager() -> Any:
        asked.append(1)
        return node

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        if scope["type"] == "http":
            await send(START)
            await send({"type": "http.response.body"})

    middleware = SessionMiddleware(app, manager)  # type: ignore[arg-type]
    lifespan = {"type": "lifespan"}
    await middleware(lifespan, None, None)  # type: ignore[arg-type]
    assert (asked, seen[0] is lifespan) == ([], True)
    outer = scope()
    for _ in range(2):
        exchange = Exchange()
        await middleware(outer, exchange.receive, exchange.send)
    assert asked == [1]
    assert "caterwaul.session" in seen[1]
    assert "caterwaul.session" not in outer, "ASGI: middleware changes a copy"


def test_an_application_that_answers_nothing_is_left_to_the_server(node: Node) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)

    exchange = serve(app, node)
    assert (exchange.status, exchange.over) == (200, False)


def test_whoever_waits_for_a_receipt_hears_exactly_once_whenever_it_becomes_final() -> None:
    """The thread that asks meets the one that confirms."""
    for _ in range(300):
        receipt = Waiting(1, {b"a": "a"}, [b"a"], 0, False)
        heard: list[int] = []
        ready = threading.Barrier(2)

        def confirm(receipt: Waiting = receipt, ready: threading.Barrier = ready) -> None:
            ready.wait()
            receipt.heard(b"a")

        thread = threading.Thread(target=confirm)
        thread.start()
        ready.wait()
        for number in range(3):
            receipt.when_final(partial(heard.append, number))
        thread.join()
        receipt.when_final(partial(heard.append, 3))
        assert sorted(heard) == [0, 1, 2, 3]
