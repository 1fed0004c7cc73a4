"""A database server hangs, or is gone, while two nodes serve: nobody waits for it, and nothing is lost that its nodes have."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from caterwaul.managers.stores.opening import open_store

from . import databases
from .processes import Cluster, Node, until
from .redis_processes import RedisProcess, what_is_missing

_TROUBLE_S = 3.0
_SESSIONS = 20


class Server(NamedTuple):
    url: str
    hangs: Callable[[], AbstractContextManager[None]]
    is_down: Callable[[], AbstractContextManager[None]]


@contextmanager
def redis(directory: Path) -> Iterator[Server]:
    if what_is_missing():
        pytest.skip(what_is_missing())
    with RedisProcess(directory / "redis", "--appendonly", "yes", "--appendfsync", "always") as server:
        yield Server(server.url, server.paused, server.down)


@contextmanager
def postgresql(directory: Path) -> Iterator[Server]:
    if databases.postgresql_missing():
        pytest.skip(databases.postgresql_missing())
    server = databases.postgresql()
    yield Server(f"{server.fresh()}?sslmode=disable", server.paused, server.down)


@contextmanager
def cluster_with(url: str, folder: Path) -> Iterator[list[Node]]:
    file = folder / "url"
    file.write_text(url)
    file.chmod(0o600)
    store = open_store(url, "")
    store.open(create=True)
    store.close()
    with Cluster() as cluster:
        for name in "ab":
            cluster.nodes.append(
                Node({
                    "node": {"name": name}, "cluster": {"name": "shop"}, "admin": {"socket": ""}, "membership": cluster.membership,
                    "security": {"secret_file": str(cluster.secret_file)}, "store": {"url_file": str(file), "write_behind_s": 0.5, "timeout_s": 0.5},
                })
            )  # fmt: skip
        cluster.meet()
        yield cluster.nodes


def counts(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = node.do("statistics")["managers"]["default"]
    return found


@pytest.mark.parametrize("kind", [redis, postgresql])
def test_requests_go_on_from_memory_and_what_waited_is_stored_afterwards(kind: Callable[[Path], AbstractContextManager[Server]], tmp_path: Path) -> None:
    with kind(tmp_path) as server:
        with cluster_with(server.url, tmp_path) as nodes:
            ids = [nodes[n % 2].write({"n": 0})["id"] for n in range(_SESSIONS)]
            until(lambda: not any(counts(node)["store_waiting"] for node in nodes), what="all is stored")
            written = 0
            for trouble in (server.hangs, server.is_down):
                took_s: list[float] = []
                with trouble():
                    end = time.monotonic() + _TROUBLE_S
                    while time.monotonic() < end:
                        written += 1
                        for at, session_id in enumerate(ids):
                            began = time.monotonic()
                            nodes[(at + 1) % 2].write(
                                {"n": written}, session=session_id
                            )  # always the one that does not save it; two would write at the same time
                            took_s.append(time.monotonic() - began)
                    assert until(lambda: any(counts(node)["store_open"] for node in nodes), what="a circuit is open")
                    assert sum(counts(node)["store_waiting"] for node in nodes) > 0
                assert sorted(took_s)[int(len(took_s) * 0.99)] < 1.0
                until(lambda: not any(counts(node)["store_waiting"] or counts(node)["store_open"] for node in nodes), 10.0, "recovered")
            for node in nodes:
                node.kill()
        with cluster_with(server.url, tmp_path) as nodes:
            until(lambda: nodes[0].do("count") == _SESSIONS, what="loaded")
            assert [nodes[0].read(session_id)["values"] for session_id in ids] == [{"n": written}] * _SESSIONS
