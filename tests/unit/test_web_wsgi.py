"""The WSGI middleware where the protocol has corners: lists, exc_info, close, failures after the headers."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from caterwaul.managers.errors import SessionError
from caterwaul.managers.web.wsgi import SessionMiddleware

from ..contract.double import Node, World

PLAIN = [("Content-Type", "text/plain")]


class Server:
    """Calls an application as servers do, and remembers."""

    def __init__(self, app: Any, node: Node, **more: Any) -> None:
        self.middleware = SessionMiddleware(app, node, **more)
        self.heads: list[tuple[str, list[tuple[str, str]]]] = []
        self.written: list[bytes] = []

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        if exc_info and self.heads:
            raise exc_info[1]
        self.heads.append((status, headers))
        return self.written.append

    def call(self, **environ: Any) -> Any:
        return self.middleware({"PATH_INFO": "/", **environ}, self.start_response)


class Body:
    """An iterable with `close`, which writes to the session."""

    def __init__(self, session: Any, chunks: list[bytes]) -> None:
        self.session = session
        self.chunks = chunks
        self.closed = 0

    def __iter__(self) -> Any:
        return iter(self.chunks)

    def close(self) -> None:
        self.closed += 1
        self.session["closed"] = True


def test_a_list_is_passed_on_as_it_is_so_the_server_can_tell_its_length(node: Node) -> None:
    body = [b"one"]

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", list(PLAIN))
        environ["caterwaul.session"]["n"] = 1
        return body

    server = Server(app, node)
    assert server.call() is body
    assert node.commits == 1
    assert node.open_now == []
    assert [name for name, _ in server.heads[0][1]] == ["Content-Type", "Vary", "Cache-Control", "Set-Cookie"]


def test_the_servers_own_file_wrapper_is_passed_on(node: Node) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", list(PLAIN))
        return environ["wsgi.file_wrapper"](environ["caterwaul.session"], [b"file"])

    body = Server(app, node).call(**{"wsgi.file_wrapper": Body})
    assert type(body) is Body
    assert node.open_now == []


def test_start_response_again_with_exc_info_replaces_the_held_headers(node: Node) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [*PLAIN, ("X-First", "1")])
        try:
            raise RuntimeError("while rendering")
        except RuntimeError:
            start_response("500 Oops", list(PLAIN), sys.exc_info())
        yield b"sorry"

    server = Server(app, node)
    assert list(server.call()) == [b"sorry"]
    assert server.heads == [("500 Oops", PLAIN)]


def test_start_response_again_after_the_headers_raises_what_it_was_given(node: Node) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", list(PLAIN))
        yield b"half"
        try:
            raise RuntimeError("too late")
        except RuntimeError:
            start_response("500 Oops", list(PLAIN), sys.exc_info())

    body = Server(app, node).call()
    assert next(body) == b"half"
    with pytest.raises(RuntimeError, match="too late"):
        next(body)
    body.close()
    assert node.open_now == []


def test_start_response_twice_without_exc_info_is_the_applications_mistake(node: Node) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", list(PLAIN))
        start_response("200 OK", list(PLAIN))
        return []

    with pytest.raises(AssertionError, match="twice"):
        Server(app, node).call()
    assert node.open_now == []


def test_the_applications_iterable_is_closed_once_and_what_close_writes_is_committed(world: World, node: Node) -> None:
    made: list[Body] = []

    def app(environ: Any, start_response: Any) -> Any:
        environ["caterwaul.session"]["n"] = 1
        start_response("200 OK", list(PLAIN))
        made.append(Body(environ["caterwaul.session"], [b"a"]))
        return made[0]

    body = Server(app, node).call()
    assert list(body) == [b"a"]
    assert len(node.open_now) == 1, "in use until close"
    body.close()
    assert made[0].closed == 1
    (session_id,) = world.sessions
    assert world.contents(session_id) == {"n": 1, "closed": True}
    assert node.open_now == []


def test_what_a_stream_writes_after_its_last_bytes_is_committed_before_the_server_hears_of_its_end(world: World, node: Node) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        session = environ["caterwaul.session"]
        session["n"] = 1
        start_response("200 OK", list(PLAIN))
        yield b"a"
        session["late"] = True

    body = Server(app, node).call()
    assert list(body) == [b"a"]
    (session_id,) = world.sessions
    assert world.contents(session_id) == {"n": 1, "late": True}, "gunicorn ends the answer before it calls close"
    body.close()


def test_a_client_that_goes_away_in_mid_stream_still_releases_and_commits(world: World, node: Node) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        session = environ["caterwaul.session"]
        start_response("200 OK", list(PLAIN))
        session["step"] = 1
        yield b"a"
        session["step"] = 2
        yield b"b"
        session["step"] = 3

    body = Server(app, node).call()
    assert [next(body), next(body)] == [b"a", b"b"]
    body.close()
    (session_id,) = world.sessions
    assert world.contents(session_id) == {"step": 2}
    assert node.open_now == []


def test_an_exception_in_mid_stream_drops_what_was_not_committed(world: World, node: Node) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        environ["caterwaul.session"]["step"] = 1
        start_response("200 OK", list(PLAIN))
        yield b"a"
        environ["caterwaul.session"]["step"] = 2
        raise RuntimeError("planted by the test")

    body = Server(app, node).call()
    assert next(body) == b"a"
    with pytest.raises(RuntimeError):
        next(body)
    body.close()
    (session_id,) = world.sessions
    assert world.contents(session_id) == {"step": 1}
    assert node.open_now == []


def test_session_unknown_after_the_headers_is_raised_since_no_status_can_be_told(world: World, node: Node) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", list(PLAIN))
        yield b"a"
        environ["caterwaul.session"]["n"] = 1

    world.make_unknown("A" * 43)
    body = Server(app, node).call(HTTP_COOKIE="__Host-sid=" + "A" * 43)
    assert next(body) == b"a"
    with pytest.raises(SessionError, match="unknown"):
        next(body)
    body.close()
    assert node.open_now == []


def test_an_application_that_handles_session_unknown_answers_itself(world: World, node: Node) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        try:
            environ["caterwaul.session"]["n"] = 1
        except SessionError:
            start_response("200 OK", list(PLAIN))
            return [b"read only for now"]
        raise AssertionError("unreachable")

    world.make_unknown("A" * 43)
    server = Server(app, node)
    assert server.call(HTTP_COOKIE="__Host-sid=" + "A" * 43) == [b"read only for now"]
    assert server.heads[0][0] == "200 OK"
    assert node.commits == 0


def test_an_application_that_never_starts_its_response_leaves_the_complaint_to_the_server(node: Node) -> None:
    server = Server(lambda environ, start_response: iter([b"body"]), node)
    body = server.call()
    assert next(body) == b"body"
    body.close()
    assert (server.heads, node.commits, node.open_now) == ([], 0, [])


def test_an_end_is_committed_once_however_the_response_goes_on(world: World, node: Node) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        environ["caterwaul.session"].invalidate()
        start_response("200 OK", list(PLAIN))
        yield b"good"
        environ["caterwaul.session"].invalidate()
        yield b"bye"

    world.sessions["A" * 43] = {}
    body = Server(app, node).call(HTTP_COOKIE="__Host-sid=" + "A" * 43)
    assert list(body) == [b"good", b"bye"]
    body.close()
    assert node.commits == 1
    assert world.sessions == {}


def test_bad_cookies_are_counted(node: Node) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", list(PLAIN))
        return []

    server = Server(app, node)
    server.call(HTTP_COOKIE="__Host-sid=short")
    server.call(HTTP_COOKIE="__Host-sid=a; __Host-sid=b")
    server.call(HTTP_COOKIE="other=1")
    assert server.middleware.front.cookies_ignored == 3


def test_no_touch_patterns_are_of_the_whole_path(node: Node) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        session = environ["caterwaul.session"]
        session["n"] = session.get("n", 0) + (1 if environ["PATH_INFO"] == "/new" else 0)
        start_response("200 OK", list(PLAIN))
        return []

    server = Server(app, node, no_touch=["/app/poll/*"])
    server.call(PATH_INFO="/new")
    cookie = dict(server.heads[0][1])["Set-Cookie"].partition(";")[0]
    for path, commits in (("/poll/a", 1), ("/poll", 2), ("/x/app/poll/a", 3)):
        server.call(SCRIPT_NAME="/app", PATH_INFO=path, HTTP_COOKIE=cookie)
        assert node.commits == commits


def test_a_request_may_commit_what_it_has_done_so_far_and_go_on(node: Node, world: World) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        session = environ["caterwaul.session"]
        session["paid"] = True
        environ["caterwaul.visit"].save()
        assert world.contents(session.id) == {"paid": True}
        session["sent"] = True
        start_response("200 OK", list(PLAIN))
        return [b""]

    server = Server(app, node)
    server.call()
    assert list(map(world.contents, world.sessions)) == [{"paid": True, "sent": True}]
    assert [name for name, _ in server.heads[0][1]].count("Set-Cookie") == 1
