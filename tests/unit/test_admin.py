"""The admin service's answers, without its socket."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.web.resource import getChildForRequest
from twisted.web.test.requesthelper import DummyRequest

from caterwaul.cluster.admin import admin_resource
from caterwaul.cluster.settings import Settings
from caterwaul.membership.errors import LocalError


class Node:
    settings = Settings.of(node={"name": "a"})
    is_ready = False

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, str]] = []

    def members_report(self) -> list[dict[str, Any]]:
        return [{"name": "a"}]

    def sessions_report(self, manager: str, limit: int, after: str) -> dict[str, Any]:
        self.asked.append((manager, limit, after))
        if manager == "none":
            raise LocalError("no manager 'none'")
        return {"manager": manager, "count": 0, "sessions": []}

    def statistics(self) -> dict[str, Any]:
        return {"channel": {"links": 1}}


def get(node: Node, path: str, **arguments: str) -> tuple[int, Any]:
    request = DummyRequest([part.encode() for part in path.strip("/").split("/")])
    request.args = {name.encode(): [value.encode()] for name, value in arguments.items()}
    resource = getChildForRequest(admin_resource(node), request)
    body = resource.render(request)
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
