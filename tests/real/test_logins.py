"""Whose sessions are where, and their ends: real nodes, asked by the application and by commands."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .processes import CATERWAUL, Cluster, Node, holds, until

MANAGERS: list[dict[str, Any]] = [{"type": "delta"}, {"type": "backup"}, {"type": "partitioned"}]


def lives(nodes: list[Node], session: str) -> list[bool]:
    return [node.do("lives", session=session) for node in nodes]


@pytest.mark.parametrize("manager", MANAGERS, ids=lambda manager: manager["type"])
def test_sessions_of_a_principal_are_found_and_ended_wherever_they_are(manager: dict[str, Any]) -> None:
    with Cluster(manager=manager) as cluster:
        nodes = cluster.grow("abcd")
        ids = [node.do("login", principal="alice") for node in nodes]
        bob = nodes[0].do("login", principal="bob")
        for node in nodes:
            found = node.do("sessions_of", principal="alice")
            assert (len(found["sessions"]), found["silent"]) == (4, [])
        assert nodes[3].do("end_session", key=found["sessions"][-1]["key"])
        until(lambda: len(nodes[1].do("sessions_of", principal="alice")["sessions"]) == 3, what="one is ended")
        assert sum(any(lives(nodes, one)) for one in ids) == 3
        assert nodes[2].do("end_all", principal="alice") == ["a", "b", "d"]
        assert [any(lives(nodes, one)) for one in ids] == [False] * 4
        assert nodes[1].do("sessions_of", principal="alice")["sessions"] == []
        again = nodes[1].do("login", principal="alice")
        assert lives(nodes, again) == lives(nodes, bob) == [True] * 4


@pytest.mark.parametrize("manager", MANAGERS, ids=lambda manager: manager["type"])
def test_a_principal_has_so_many_sessions_on_all_nodes_together(manager: dict[str, Any]) -> None:
    with Cluster(manager={**manager, "principal_sessions_max": 2}) as cluster:
        nodes = cluster.grow("abcd")
        ids = []
        for number in range(5):
            ids.append(nodes[number % 4].do("login", principal="alice"))
            until(lambda: [s["login"] for s in nodes[0].do("sessions_of", principal="alice")["sessions"]] == [number + 1, number][: number + 1], what="counted")  # noqa: B023
        assert [any(lives(nodes, one)) for one in ids[:3]] == [False] * 3
        assert [all(lives(nodes, one)) for one in ids[3:]] == [True] * 2
        at_once = [nodes[number % 4].do("login", principal="bob") for number in range(6)]
        until(lambda: sum(any(lives(nodes, one)) for one in at_once) == 2, what="two of those that logged in at the same time stay")
        holds(lambda: sum(any(lives(nodes, one)) for one in at_once) == 2, 1.0)


@pytest.mark.parametrize("manager", MANAGERS, ids=lambda manager: manager["type"])
def test_a_login_too_many_is_refused_on_every_node(manager: dict[str, Any]) -> None:
    with Cluster(manager={**manager, "principal_sessions_max": 1, "principal_sessions_policy": "refuse"}) as cluster:
        nodes = cluster.grow("abcd")
        first = nodes[0].do("login", principal="alice")
        for node in nodes:
            with pytest.raises(AssertionError, match="LoginRefused"):
                node.do("login", principal="alice")
        (login,) = nodes[2].do("sessions_of", principal="alice")["sessions"]
        assert lives(nodes, first) == [True] * 4
        assert nodes[1].do("end_session", key=login["key"])
        second = nodes[3].do("login", principal="alice")
        assert lives(nodes, second) == [True] * 4
        for node in nodes:
            node.tell("login", principal="bob")
        at_once = []
        for node in nodes:
            with contextlib.suppress(AssertionError):
                at_once.append(node.answer())
        assert at_once, "those that ask at the same moment may all succeed"
        until(lambda: sum(any(lives(nodes, one)) for one in at_once) == 1, what="one of them stays")
        holds(lambda: sum(any(lives(nodes, one)) for one in at_once) == 1, 1.0)


def asked(*arguments: str) -> tuple[int, Any]:
    done = subprocess.run([*CATERWAUL, *arguments], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout or done.stderr


def test_an_operator_lists_and_ends_the_sessions_of_a_user(tmp_path: Path) -> None:
    with Cluster() as cluster:
        (a,) = cluster.grow("a")
        path = str(tmp_path / "b.sock")
        b = Node({
            "node": {"name": "b"}, "cluster": {"name": cluster.name}, "admin": {"socket": path}, "membership": cluster.membership,
            "security": {"secret_file": str(cluster.secret_file)},
        })  # fmt: skip
        cluster.nodes.append(b)
        cluster.meet()
        ids = [a.do("login", principal="alice smith"), b.do("login", principal="alice smith"), a.do("login", principal="bob")]
        code, text = asked("logins", "alice smith", "--socket", path)
        assert code == 0
        assert [line.split()[1] for line in text.splitlines()[1:]] == ["b", "a"], "the youngest first"
        key = text.splitlines()[1].split()[0]
        assert asked("logout", "--socket", path, "--session", key) == (0, "ended\n")
        assert [any(lives([a, b], one)) for one in ids] == [True, False, True]
        code, text = asked("logout", "--socket", path, "--session", key)
        assert (code, text) == (1, "no node holds such a session, or not all who hold it have confirmed its end\n")
        assert asked("logout", "--socket", path, "--principal", "alice smith") == (0, "ended on all nodes\n")
        assert [any(lives([a, b], one)) for one in ids] == [False, False, True]
        code, text = asked("logout", "--socket", path, "--everybody", "--json")
        assert (code, json.loads(text)) == (0, {"done": True, "confirmed": ["a"], "unconfirmed": []})
        assert not any(lives([a, b], ids[2]))
        for wrong, says in (
            (["--session", "xyz"], "not the key of a session"),
            ([], "one of --principal"),
            (["--everybody", "--principal", "a"], "one of --principal"),
        ):
            code, text = asked("logout", "--socket", path, *wrong)
            assert code in (1, 2)
            assert says in text
        a.kill()
        until(lambda: b.names == ["b"], what="a is dropped")
        assert asked("logout", "--socket", path, "--principal", "bob") == (0, "ended\n")


def test_a_node_that_stops_in_good_order_ends_what_it_leads_if_it_is_told_to(tmp_path: Path) -> None:
    audit = tmp_path / "audit.log"
    with Cluster(manager={"type": "backup", "expire_on_shutdown": True, "audit_log": str(audit)}) as cluster:
        a, b, c = cluster.grow("abc")
        mine = [a.do("login", principal="alice"), a.write({"cart": 1})["id"]]
        others = b.do("login", principal="bob")
        assert [any(lives([b, c], one)) for one in mine] == [True, True]
        mine = [a.do("login", principal="alice"), a.write({"cart": 1})["id"]]
        assert a.do("lives", session=mine[0])
        a.do("stop")
        until(lambda: b.names == c.names == ["b", "c"], what="a has left")
        assert [any(lives([b, c], one)) for one in mine] == [False, False]
        assert lives([b, c], others) == [True, True]
        c.kill()
        until(lambda: b.names == ["b"], what="c is dropped")
        assert b.do("lives", session=others), "a crash ends nothing"
        told = [json.loads(line) for line in audit.read_text().splitlines()]
        assert [(line["event"], line["principal"], line.get("by")) for line in told if line["node"] == "a"] == [
            ("login", "alice", None), ("login", "alice", None), ("ended", "alice", "shutdown"),
        ]  # fmt: skip
