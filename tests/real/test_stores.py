"""All nodes are killed at once, and a store brings everything back: real nodes, a real directory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from caterwaul.cluster.store_clock import CLOCK, stamp
from caterwaul.managers.stores.opening import open_store

from .processes import Cluster, Node, until

SESSIONS = 60


def grown(cluster: Cluster, folder: Path, manager: dict[str, Any], store: dict[str, Any], names: str = "abc") -> list[Node]:
    for name in names:
        cluster.nodes.append(
            Node({
                "node": {"name": name}, "cluster": {"name": "shop"}, "admin": {"socket": str(folder / f"{name}.sock")}, "membership": cluster.membership,
                "security": {"secret_file": str(cluster.secret_file)}, "managers": {"default": manager}, "store": store,
            })
        )  # fmt: skip
    cluster.meet()
    return cluster.nodes


def read(node: Node, session_id: str) -> dict[str, Any]:
    """What is in it, as soon as somebody can say."""

    def known() -> dict[str, Any] | None:
        found = node.read(session_id)
        return None if found["unknown"] else found

    found = until(known, what="known")
    assert found is not None
    values: dict[str, Any] = found["values"]
    return values


@pytest.mark.parametrize(
    ("manager", "more"),
    [({"type": "delta"}, {}), ({"type": "partitioned"}, {"secret": True}), ({"type": "backup", "max_active": 20}, {})],
    ids=["delta", "partitioned, encrypted", "backup, passivated"],
)
def test_all_nodes_are_killed_at_once_and_nothing_that_was_stored_is_lost(manager: dict[str, Any], more: dict[str, Any], tmp_path: Path) -> None:
    store: dict[str, Any] = {"url": f"file://{tmp_path}/store", "write": "through"}
    with Cluster() as cluster:
        if more:
            store |= {"secret_file": str(cluster.secret_file), "encrypt": True}
        nodes = grown(cluster, tmp_path, manager, store)
        written = [nodes[n % 3].write({"number": n, "secret": "a word that stands in no file"}) for n in range(SESSIONS)]
        ids = [one["id"] if one["satisfied"] else None for one in written]
        assert ids.count(None) < SESSIONS // 2, "the store hardly ever confirms"
        alice, bob = nodes[0].do("login", principal="alice"), nodes[1].do("login", principal="bob")
        nodes[2].do("end_all", principal="bob")
        for node in nodes:
            node.kill()
        if more:
            assert not any(b"a word that" in path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
        with Cluster() as again:
            again.secret_file.write_bytes(cluster.secret_file.read_bytes())
            if more:
                store["secret_file"] = str(again.secret_file)
            nodes = grown(again, tmp_path, manager, store)
            for n, session_id in enumerate(ids):
                assert session_id is None or read(nodes[(n + 1) % 3], session_id)["number"] == n
            assert until(lambda: nodes[1].do("lives", session=alice), what="back")
            assert not any(node.do("lives", session=bob) for node in nodes)


@pytest.mark.parametrize("saves", [True, False], ids=["saved", "not saved"])
def test_all_nodes_are_stopped_in_good_order_and_come_back_with_what_was_never_saved_before(saves: bool, tmp_path: Path) -> None:
    store: dict[str, Any] = {"url": f"file://{tmp_path}/store", "write_behind_s": 600.0, "save_on_restart": saves}
    with Cluster() as cluster:
        nodes = grown(cluster, tmp_path, {"type": "backup"}, store)
        ids = [nodes[n % 3].write({"number": n})["id"] for n in range(SESSIONS)]
        for node in nodes:
            node.tell("stop")
        for node in nodes:
            node.answer()
        assert len(list((tmp_path / "store" / "space-shop%2fdefault").glob("??/*"))) == (SESSIONS if saves else 0)
    if saves:
        with Cluster() as again:
            nodes = grown(again, tmp_path, {"type": "backup"}, store)
            for n, session_id in enumerate(ids):
                assert read(nodes[(n + 1) % 3], session_id)["number"] == n


def test_nothing_is_brought_back_from_a_store_of_long_ago_until_somebody_trusts_it(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    store = {"url": url, "write": "through"}
    with Cluster() as cluster:
        nodes = grown(cluster, tmp_path, {}, store, "a")
        session_id = nodes[0].write({"name": "ada"})["id"]
        nodes[0].kill()
    clock = open_store(url, f"shop/{CLOCK}")
    clock.open()
    stamp(clock, time.time() - 200_000)
    with Cluster() as cluster:
        nodes = grown(cluster, tmp_path, {}, store, "a")
        assert read(nodes[0], session_id) == {}
        assert until(lambda: "store trust" in nodes[0].log, what="said")
        nodes[0].kill()
    stamp(clock)
    with Cluster() as cluster:
        assert read(grown(cluster, tmp_path, {}, store, "a")[0], session_id) == {"name": "ada"}
