"""The demo's page as a WSGI application, with a session that is a dictionary."""

from __future__ import annotations

import io
import json
import os
import signal
from typing import Any
from urllib.parse import urlencode

import pytest

from caterwaul.cluster.demo.page import DemoPage, colour
from caterwaul.managers.errors import SessionUnknown

_ID = "i" * 43


class _Session(dict[str, Any]):
    id: str | None = _ID

    def invalidate(self) -> None:
        self.clear()
        self.id = None

    def cycle_id(self) -> None:
        self.id = "j" * 43


class _Facts:
    name = "node1"
    ready = True
    saved: str | None = "never"

    def members(self) -> list[dict[str, Any]]:
        return [
            {"name": "node1", "uid": "aa", "pid": os.getpid(), "self": True, "in_sync": True},
            {"name": "node2", "uid": "bb", "pid": 4242, "self": False, "in_sync": False},
        ]

    def sessions(self) -> int:
        return 7

    def save(self, session: Any, acks: str | None) -> tuple[list[str], list[str]]:
        self.saved = acks
        return (["node2"], []) if acks == "one" else ([], [])


class _Client:
    """A browser for one page; `json` asks for JSON."""

    def __init__(self) -> None:
        self.facts, self.session = _Facts(), _Session()
        self.page = DemoPage(lambda environ: self.facts)

    def ask(self, method: str, target: str, form: dict[str, str] | None = None, json: bool = False, **environ: str) -> tuple[str, dict[str, str], str]:
        path, _, query = target.partition("?")
        body = urlencode(form or {}).encode()
        answer: list[Any] = []
        chunks = self.page(
            {
                "REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query, "CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body),
                "HTTP_ACCEPT": "application/json" if json else "text/html", "caterwaul.session": self.session, **environ,
            },
            lambda status, headers: answer.extend((status, dict(headers))),
        )  # fmt: skip
        text = b"".join(chunks).decode()
        assert answer[1]["Content-Length"] == str(len(text.encode())) or method == "HEAD"
        return answer[0], answer[1], text


@pytest.fixture
def client() -> _Client:
    return _Client()


def test_the_page_shows_who_answered_the_pairs_and_the_members(client: _Client) -> None:
    client.session["colour"] = "green"
    status, headers, text = client.ask("GET", "/")
    assert status == "200 OK"
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    for piece in ("node1", f"process {os.getpid()}", "holds 7 sessions", "colour", "green", "kill -9 4242", "catching up", "Kill this node"):
        assert piece in text


def test_pairs_are_escaped(client: _Client) -> None:
    client.session["<b>"] = "<script>alert(1)</script>"
    _, headers, text = client.ask("GET", "/")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "default-src 'none'" in headers["Content-Security-Policy"]


def test_setting_a_pair_from_the_form_leads_back_to_the_page(client: _Client) -> None:
    status, headers, _ = client.ask("POST", "/set", {"name": " cart ", "value": "3 apples"})
    assert (status, headers["Location"]) == ("303 See Other", "/")
    assert client.session == {"cart": "3 apples"}
    assert client.facts.saved is None


def test_setting_a_pair_with_acks_says_who_confirmed(client: _Client) -> None:
    status, _, text = client.ask("POST", "/set", {"name": "a", "value": "b", "acks": "one"}, json=True)
    assert status == "200 OK"
    assert json.loads(text) == {"node": "node1", "pid": os.getpid(), "failover_from": "", "confirmed": ["node2"], "missing": []}


@pytest.mark.parametrize("form", [{"name": "  ", "value": "x"}, {"value": "x"}, {"name": "n" * 101, "value": ""}, {"name": "n", "value": "v" * 10_001}])
def test_a_pair_without_a_name_or_too_long_is_refused_on_the_page(client: _Client, form: dict[str, str]) -> None:
    status, _, text = client.ask("POST", "/set", form)
    assert status == "400 Bad Request"
    assert 'class="note error"' in text
    assert client.session == {}


def test_a_body_that_is_too_long_or_no_form_is_refused(client: _Client) -> None:
    assert client.ask("POST", "/set", CONTENT_LENGTH="70000", json=True)[0] == "413 Content Too Large"
    assert client.ask("POST", "/set", CONTENT_LENGTH="-1", json=True)[0] == "413 Content Too Large"
    assert client.ask("POST", "/set", {str(number): "x" for number in range(50)}, json=True)[0] == "400 Bad Request"


def test_a_session_that_nobody_can_tell_of_is_worth_another_try(client: _Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(session: Any, acks: str | None) -> Any:
        raise SessionUnknown("the members that could know this session do not answer")

    monkeypatch.setattr(client.facts, "save", save)
    status, _, text = client.ask("POST", "/set", {"name": "a", "value": "1"}, json=True)
    assert status == "503 Service Unavailable"
    assert "do not answer" in text


def test_pairs_can_be_removed_also_twice(client: _Client) -> None:
    client.session["a"] = "b"
    for _ in range(2):
        assert client.ask("POST", "/remove", {"name": "a"})[0] == "303 See Other"
    assert client.session == {}


def test_logging_out_and_changing_the_id_reach_the_session(client: _Client) -> None:
    client.ask("POST", "/cycle")
    assert client.session.id == "j" * 43
    client.ask("POST", "/logout")
    assert client.session.id is None
    assert client.ask("POST", "/cycle")[0] == "303 See Other"


def test_an_answer_by_another_node_than_the_cookie_names_is_called_a_failover(client: _Client) -> None:
    cookie = {"HTTP_COOKIE": f"sid={_ID}.node3"}
    assert "Until now <b>node3</b> served you" in client.ask("GET", "/", **cookie)[2]
    _, headers, _ = client.ask("POST", "/set", {"name": "a", "value": "b"}, **cookie)
    assert headers["Location"] == "/?from=node3"
    own = {"HTTP_COOKIE": f"sid={_ID}.node1"}
    assert "<b>node3</b>" in client.ask("GET", "/?from=node3", **own)[2]
    assert "Until now" not in client.ask("GET", "/?from=%3Cscript%3E", **own)[2]
    assert json.loads(client.ask("GET", "/get", json=True, **cookie)[2])["failover_from"] == "node3"


def test_kill_spares_a_node_that_was_not_meant(client: _Client, monkeypatch: pytest.MonkeyPatch) -> None:
    kills: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: kills.append((pid, number)))
    assert client.ask("POST", "/kill", {"pid": "1"})[0] == "303 See Other"
    assert kills == []
    client.ask("POST", "/kill", {"pid": str(os.getpid())})
    assert kills == [(os.getpid(), signal.SIGKILL)]


def test_forms_of_other_sites_are_refused(client: _Client) -> None:
    assert client.ask("POST", "/kill", {"pid": str(os.getpid())}, HTTP_SEC_FETCH_SITE="cross-site")[0] == "403 Forbidden"


def test_health_says_ready_only_when_the_node_is(client: _Client) -> None:
    assert client.ask("GET", "/health/ready")[0] == "200 OK"
    client.facts.ready = False
    assert client.ask("GET", "/health/ready")[0] == "503 Service Unavailable"
    assert client.ask("GET", "/health/live")[0] == "200 OK"


def test_members_and_pairs_are_there_as_json(client: _Client) -> None:
    seen = json.loads(client.ask("GET", "/members")[2])
    assert (seen["node"], seen["sessions"], seen["ready"], len(seen["members"])) == ("node1", 7, True, 2)
    client.session["a"] = "b"
    assert json.loads(client.ask("GET", "/get")[2])["pairs"] == {"a": "b"}


def test_what_does_not_exist_is_not_found_and_wrong_methods_are_not_allowed(client: _Client) -> None:
    assert client.ask("GET", "/nothing")[0] == "404 Not Found"
    assert client.ask("GET", "/set")[0] == "405 Method Not Allowed"
    assert client.ask("HEAD", "/")[2] == ""


def test_neighbouring_nodes_have_different_colours() -> None:
    assert [colour(f"node{number}") for number in (1, 2, 3, 7)] == [0, 1, 2, 0]
    assert 0 <= colour("frontend") < 6
