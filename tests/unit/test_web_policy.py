"""What all fronts do where there is no manager, or not yet."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from twisted.logger import globalLogPublisher

from caterwaul import ClusterManager
from caterwaul.managers.errors import NotRunning
from caterwaul.managers.web.policy import Front, Visit, unavailable

from ..contract.double import World

NOBODY = ("", "")


def admit(front: Front, cookie: str = "") -> Visit:
    ticket = front.ticket([cookie], "/", lambda: "")
    session = front.local(ticket, NOBODY)
    assert session is not None
    return front.admit(ticket, session, "/", NOBODY)


def logged(act: Any) -> list[Any]:
    events: list[Any] = []
    globalLogPublisher.addObserver(events.append)
    try:
        act()
    finally:
        globalLogPublisher.removeObserver(events.append)
    return [event for event in events if event.get("log_namespace", "").endswith("web.policy")]


def test_before_the_start_a_request_gets_503_and_after_it_a_session() -> None:
    def manager() -> Any:
        return node if started else cluster.manager()

    started: list[bool] = []
    node, cluster = World().node(), ClusterManager()
    front = Front(manager)
    with pytest.raises(NotRunning, match="call start"):
        admit(front)
    started.append(True)
    assert admit(front).session.id is None


@pytest.mark.usefixtures("outside_the_reactor")
def test_before_the_start_on_failure_is_known_from_the_settings_of_the_cluster() -> None:
    front = Front(ClusterManager(managers={"default": {"on_failure": "serve-empty"}}).manager)
    visit = admit(front, "__Host-sid=" + "A" * 43)
    visit.session["n"] = 1
    with visit.session.lock() as locked:
        locked["n"] += 1
    assert (visit.session.forgets, visit.save(), visit.is_primary) == (True, None, False)
    assert visit.headers([]) == [("Vary", "Cookie"), ("Cache-Control", "no-store")], "and no cookie"
    visit.restart()
    assert (visit.session.forgets, dict(visit.session)) == (True, {})
    visit.release()


def test_what_is_wrong_with_the_application_is_raised_as_it_is() -> None:
    def manager() -> Any:
        raise RuntimeError("planted by the test")

    with pytest.raises(RuntimeError, match="planted"):
        admit(Front(manager))


def test_failures_are_counted_and_logged_once_a_second() -> None:
    node = World().node()
    node.is_running = False
    front = Front(node)  # type: ignore[arg-type]

    def many() -> None:
        for _ in range(50):
            with pytest.raises(NotRunning):
                admit(front)

    assert len(logged(many)) in (1, 2), "two if a second passed meanwhile"
    assert (front.failures, node.open_failures) == (50, 50)


def test_the_text_says_what_it_is() -> None:
    assert unavailable(NotRunning("secret"))[1] == b"Sessions are not available at the moment. Please try again.\n"


def test_an_application_that_is_gone_leaves_nothing_behind() -> None:
    """What was registered for a fork used to keep its sessions for as long as the process lives."""
    gone = weakref.ref(Front(lambda: None))  # type: ignore[arg-type, return-value]
    gc.collect()
    assert gone() is None
