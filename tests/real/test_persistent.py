"""Sessions in a store that all servers share, and nowhere else: real processes, round robin, with no balancer that keeps a browser at its server."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from caterwaul.managers.stores.opening import open_store

from . import databases
from .processes import Cluster, Node, until
from .redis_processes import shared_server, what_is_missing

SESSIONS = 10


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The table `[store]`."""
    if request.param == "file":
        return {"url": f"file://{tmp_path}/store"}
    if request.param == "sqlite":
        return {"url": f"sqlite:///{tmp_path}/sessions.db"}
    missing = what_is_missing() if request.param == "redis" else databases.postgresql_missing()
    if missing:
        pytest.skip(missing)
    if request.param == "redis":
        shared_server().ask("FLUSHALL")
        url = shared_server().url
    else:
        url = f"{databases.postgresql().fresh()}?sslmode=disable"
    store = open_store(url, "")
    store.open(create=True)
    store.close()
    file = tmp_path / "url"  # there is a password in it
    file.touch(0o600)
    file.write_text(url)
    return {"url_file": str(file)}


def values(node: Node, session: str) -> dict[str, Any]:
    found = node.read(session)
    assert not found["unknown"]
    return found["values"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("store", ["file", "redis", "postgresql"], indirect=True)
def test_any_server_goes_on_where_another_stopped_and_a_killed_one_takes_nothing_with_it(store: dict[str, Any]) -> None:
    with Cluster(manager={"type": "persistent"}, store=store) as cluster:
        a, b, c = nodes = cluster.grow("abc")
        servers = cycle(nodes)
        ids: list[str] = []
        for number in range(SESSIONS):
            written = next(servers).write({"n": 0, "number": number})
            assert written["satisfied"]
            ids.append(written["id"])
        for step in range(1, 4):
            for number, session in enumerate(ids):
                assert values(next(servers), session) == {"n": step - 1, "number": number}
                assert next(servers).write({"n": step}, session=session)["satisfied"]
        a.kill()
        for number, session in enumerate(ids):  # at once, whatever the others know of that
            for node in (b, c):
                assert values(node, session) == {"n": 3, "number": number}
        until(lambda: "a" not in b.names and "a" not in c.names, what="a is dropped")
        d = cluster.start("d")
        cluster.meet([b, c, d])
        for session in ids:
            assert d.write({"n": 4}, session=session)["satisfied"]
            assert values(b, session)["n"] == 4


@pytest.mark.parametrize("store", ["sqlite", "redis", "postgresql"], indirect=True)
def test_all_servers_write_to_one_session_at_once_and_nothing_is_lost(store: dict[str, Any]) -> None:
    with Cluster(manager={"type": "persistent"}, store=store) as cluster:
        nodes = cluster.grow("abc")
        session = nodes[0].write({"n": 0})["id"]
        for turn in range(10):
            for node in nodes:
                node.tell("write", session=session, values={f"{node.name}{turn}": turn})
            assert all(node.answer()["satisfied"] for node in nodes)
        expected = {"n": 0, **{f"{node.name}{turn}": turn for node in nodes for turn in range(10)}}
        for node in nodes:
            assert values(node, session) == expected
        for node in nodes:
            node.kill()
        d = cluster.start("d")
        cluster.meet([d])
        assert values(d, session) == expected


def test_requests_of_one_session_take_turns_on_a_server_and_are_refused_where_they_should_be(tmp_path: Path) -> None:
    url = {"url": f"file://{tmp_path}/store"}
    with Cluster(manager={"type": "persistent", "lock_timeout_s": 60.0}, store=url) as cluster:
        (a,) = cluster.grow("a")
        session = a.write({"n": 0})["id"]
        assert a.do("hit", session=session, times=5, threads=6) == ["200"] * 30
        assert values(a, session) == {"n": 30}
        assert a.do("statistics")["managers"]["default"]["turns_waited"] > 0
    with Cluster(manager={"turns": "refuse"}) as cluster:  # with any manager
        (a,) = cluster.grow("a")
        session = a.write({"n": 0})["id"]
        answers = a.do("hit", session=session, times=50, threads=6)
        assert set(answers) <= {"200", "429"}
        assert values(a, session) == {"n": answers.count("200")}
