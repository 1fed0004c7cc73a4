"""Web processes that hold nothing and listen, beside data nodes that decide about ends and have no application."""

from __future__ import annotations

import signal
from hashlib import sha256
from typing import Any

from .processes import Cluster, Node, until
from .test_embedded_process import run

SHORT = {"idle_timeout_s": 1.5, "absolute_timeout_s": 0.0, "expire_check_s": 0.1, "save_period_s": 0.1}


def key_of(session: str) -> str:
    return sha256(session.encode()).hexdigest()[:32]


def started(cluster: Cluster) -> tuple[list[Node], list[Node]]:
    """(data nodes, web processes that listen)."""
    data = [cluster.start(name) for name in ("data1", "data2")]
    web = [cluster.start(name, node={"weight": 0}) for name in ("web1", "web2")]
    cluster.meet()
    for node in web:
        node.do("listen")
    return data, web


def told(web: list[Node]) -> list[dict[str, Any]]:
    return [event for node in web if node.is_running for event in node.do("ends")]


def test_what_data_nodes_expire_is_told_once_in_a_web_process() -> None:
    with Cluster(manager=SHORT) as cluster:
        _, web = started(cluster)
        sessions = [web[number % 2].write({"number": number})["id"] for number in range(20)]
        until(lambda: len(told(web)) >= 20, what="all are told")
        until(lambda: all(node.do("count") == 0 for node in cluster.nodes), what="all have expired")
        events = told(web)
        assert sorted((event["key"], event["attributes"]["number"]) for event in events) == sorted((key_of(one), n) for n, one in enumerate(sessions))
        assert {event["reason"] for event in events} == {"expired"}


def test_when_web_and_data_die_every_end_is_told_with_one_id_for_each() -> None:
    with Cluster(manager={"idle_timeout_s": 0.0, "absolute_timeout_s": 0.0}, drop_time_s=1.0) as cluster:
        data, web = started(cluster)
        sessions = [web[0].write({"number": number}, acks="all")["id"] for number in range(20)]
        web[0].signal(signal.SIGSTOP)  # it is chosen for all, and will never hear
        for session in sessions:
            data[0].do("end_session", key=key_of(session))
        web[0].kill()
        data[0].kill()
        until(lambda: len({event["key"] for event in told(web)}) == 20, what="all are told")
        events = told(web)
        assert sorted(event["attributes"]["number"] for event in events) == list(range(20))
        assert len({event["id"] for event in events}) == 20


def test_a_decorator_at_import_time_misses_nothing() -> None:
    lines = run(
        """
        from caterwaul import SessionCreated, SessionDestroyed
        node = ClusterManager(node={"name": "a"}, membership={"discovery": []}, admin={"socket": ""})
        @node.on(SessionCreated)
        def created(event): print("created", flush=True)
        @node.on(SessionDestroyed, reason="invalidated")
        def ended(event): print(event.reason, dict(event.attributes), flush=True)
        node.start()
        sessions = node.manager()
        session = sessions.open_local(None)
        session["a"] = 1
        sessions.commit(session).wait()
        sessions.end(session.key).wait()
        node.stop()
        """
    )
    assert lines == ["created", "invalidated {'a': 1}"]
