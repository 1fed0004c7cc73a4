"""All nodes are killed, and the sessions live on: a snapshot by the commands, with real nodes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .processes import CATERWAUL, Cluster, Node, until

SESSIONS = 300


def asked(*arguments: str) -> tuple[int, Any]:
    done = subprocess.run([*CATERWAUL, "snapshot", *arguments, "--json"], capture_output=True, text=True, timeout=120)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def grown(cluster: Cluster, folder: Path, manager: dict[str, Any]) -> list[Node]:
    nodes = []
    for name in "abc":
        node = Node({
            "node": {"name": name}, "cluster": {"name": cluster.name}, "admin": {"socket": str(folder / f"{name}.sock")}, "membership": cluster.membership,
            "security": {"secret_file": str(cluster.secret_file)}, "managers": {"default": manager},
        })  # fmt: skip
        cluster.nodes.append(node)
        nodes.append(node)
    cluster.meet()
    return nodes


@pytest.mark.parametrize("manager", [{"type": "delta"}, {"type": "partitioned"}], ids=lambda manager: manager["type"])
def test_all_nodes_are_killed_and_no_session_is_lost(manager: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "sessions.snapshot"
    with Cluster() as cluster:
        nodes = grown(cluster, tmp_path, manager)
        ids = [nodes[n % 3].write({"number": n}, acks="all")["id"] for n in range(SESSIONS)]
        logged_in = nodes[0].do("login", principal="alice")
        over = nodes[1].do("login", principal="bob")
        code, saved = asked("save", str(file), "--socket", str(tmp_path / "b.sock"))
        assert (code, saved["sessions"], saved["whole"]) == (0, {"default": SESSIONS + 2}, True)
        assert os.stat(file).st_mode & 0o777 == 0o600
        nodes[0].do("end_all", principal="bob")
        code, loaded = asked("load", str(file), "--socket", str(tmp_path / "c.sock"))
        assert (code, loaded["restored"]) == (0, 0), "nothing that has ended while it is remembered comes back"
        assert not any(node.do("lives", session=over) for node in nodes)
        for node in nodes:
            node.kill()
    with Cluster() as cluster:
        nodes = grown(cluster, tmp_path, manager)
        assert asked("show", str(file))[1]["sessions"] == {"default": SESSIONS + 2}
        code, loaded = asked("load", str(file), "--socket", str(tmp_path / "a.sock"))
        assert (code, loaded["restored"], loaded["unconfirmed"]) == (0, SESSIONS + 2, [])
        for node in nodes:
            found = [until(lambda one=one, node=node: node.read(one), what="known")["values"] for one in ids]  # type: ignore[misc]
            assert found == [{"number": n} for n in range(SESSIONS)]
            assert node.do("lives", session=logged_in)
        code, loaded = asked("load", str(file), "--socket", str(tmp_path / "b.sock"))
        assert (code, loaded["restored"] + loaded["merged"]) == (0, SESSIONS + 2), "a second time changes nothing"
