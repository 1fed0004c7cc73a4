"""The admin service's answers, without its socket."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.web.error import UnsupportedMethod
from twisted.web.resource import getChildForRequest
from twisted.web.server import NOT_DONE_YET
from twisted.web.test.requesthelper import DummyRequest

from caterwaul.cluster.admin import admin_resource
from caterwaul.cluster.settings import Settings
from caterwaul.membership.errors import LocalError


class Node:
    settings = Settings.of(node={"name": "a"})
    is_ready = False

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, str]] = []
        self.state = "serving"

    def members_report(self) -> list[dict[str, Any]]:
        return [{"name": "a"}]

    def sessions_report(self, manager: str, limit: int, after: str) -> dict[str, Any]:
        self.asked.append((manager, limit, after))
        if manager == "none":
            raise LocalError("no manager 'none'")
        return {"manager": manager, "count": 0, "sessions": []}

    def statistics(self) -> dict[str, Any]:
        return {"channel": {"links": 1}}

    def rehearse(self, lose: Sequence[str]) -> Deferred[dict[str, Any]]:
        return succeed({"lose": lose}) if "a" in lose else fail(LocalError("no node 'x'"))

    def logins_report(self, manager: str, principal: str) -> Deferred[dict[str, Any]]:
        return succeed({"manager": manager, "principal": principal, "sessions": [], "silent": []})

    def logout(self, manager: str, principal: str | None) -> Deferred[dict[str, Any]]:
        return succeed({"manager": manager, "principal": principal})

    def end_session(self, manager: str, key: str) -> Deferred[dict[str, Any]]:
        return succeed({"manager": manager, "key": key})

    def drain_report(self) -> dict[str, Any]:
        return {"state": self.state}

    def begin_drain(self) -> dict[str, Any]:
        self.state = "draining"
        return self.drain_report()

    def cancel_drain(self) -> dict[str, Any]:
        self.state = "serving"
        return self.drain_report()

    def end(self) -> dict[str, Any]:
        return {"left_process": True}


def get(node: Node, path: str, method: bytes = b"GET", **arguments: str) -> tuple[int, Any]:
    request = DummyRequest([part.encode() for part in path.strip("/").split("/")])
    request.method = method
    request.args = {name.encode(): [value.encode()] for name, value in arguments.items()}
    resource = getChildForRequest(admin_resource(node), request)
    body = resource.render(request)
    if body is NOT_DONE_YET:
        body = b"".join(request.written)
    return request.responseCode or 200, json.loads(body) if body[:1] in b"{[" else body


def test_members_and_statistics_are_what_the_node_reports() -> None:
    assert get(Node(), "/members") == (200, {"members": [{"name": "a"}]})
    assert get(Node(), "/statistics") == (200, {"channel": {"links": 1}})


def test_the_configuration_is_shown_as_it_is_in_effect() -> None:
    code, found = get(Node(), "/config")
    assert (code, found["node"]["name"], found["managers"]["default"]["type"]) == (200, "a", "delta")


def test_live_means_that_it_answers_and_ready_that_it_holds_what_it_should() -> None:
    node = Node()
    assert get(node, "/health/live") == (200, {"live": True})
    assert get(node, "/health/ready") == (503, {"ready": False})
    node.is_ready = True
    assert get(node, "/health/ready") == (200, {"ready": True})


def test_sessions_come_in_pages() -> None:
    node = Node()
    get(node, "/sessions")
    get(node, "/sessions", manager="shop", limit="7", after="00ff")
    assert node.asked == [("", 100, ""), ("shop", 7, "00ff")]


@pytest.mark.parametrize("limit", ["-1", "x", "1001", "²", "1" * 5000])
def test_a_page_has_a_bound(limit: str) -> None:
    node = Node()
    code, found = get(node, "/sessions", limit=limit)
    assert code == 400
    assert "is not a number from 0 to 1000" in found["error"]
    assert node.asked == []


def test_a_question_that_makes_no_sense_is_answered_with_the_reason() -> None:
    assert get(Node(), "/sessions", manager="none") == (400, {"error": "no manager 'none'"})


def test_what_changes_something_is_a_post() -> None:
    node = Node()
    assert get(node, "/drain") == (200, {"state": "serving"})
    assert get(node, "/drain", b"POST") == (200, {"state": "draining"})
    assert get(node, "/drain", b"POST", cancel="1") == (200, {"state": "serving"})
    assert get(node, "/leave", b"POST") == (200, {"left_process": True})
    with pytest.raises(UnsupportedMethod):
        get(node, "/leave")
    with pytest.raises(UnsupportedMethod):
        get(node, "/members", b"POST")


def test_an_answer_may_take_its_time_and_may_be_a_refusal() -> None:
    assert get(Node(), "/rehearse", lose="a") == (200, {"lose": ["a"]})
    assert get(Node(), "/rehearse", lose="x") == (400, {"error": "no node 'x'"})
