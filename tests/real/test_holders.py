"""Managers by which some nodes hold a session, with processes that are killed, stopped, drained and cut off."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from .namespaces import Hosts, why_not
from .processes import CATERWAUL, Cluster, Command, Node, holds, until

BACKUP = {"type": "backup", "backups": 2}
PARTITIONED = {"type": "partitioned", "backups": 2}


def contents(node: Node, ids: list[str]) -> list[Any]:
    """Of each session; what is unknown at the moment is asked for again."""
    return [until(lambda one=one: (found := node.read(one)) and not found["unknown"] and found, what=f"{one} is known")["values"] for one in ids]  # type: ignore[misc]


@pytest.mark.parametrize("manager", [BACKUP, PARTITIONED], ids=["backup", "partitioned"])
def test_two_holders_killed_one_after_the_other_lose_nothing(manager: dict[str, Any]) -> None:
    with Cluster(manager=manager) as cluster:
        nodes = cluster.grow("abcde")
        ids, expected = [], []
        for number in range(60):
            written = nodes[number % 5].write({"number": number}, acks="all")
            assert len(written["confirmed"]) >= 2
            ids.append(written["id"])
            expected.append({"number": number})
        victims = [node for node in nodes if node.name in nodes[0].do("holders", session=ids[0])][:2]
        for victim in victims:
            victim.kill()
            others = [node for node in nodes if node.is_running]
            until(lambda: all(victim.name not in node.names for node in others), what=f"{victim.name} is dropped")  # noqa: B023
        survivors = [node for node in nodes if node.is_running]
        assert len(survivors) == 3
        for node in survivors:
            assert contents(node, ids) == expected


def test_a_stopped_primary_is_stood_in_for_and_merges_when_it_goes_on() -> None:
    with Cluster(manager={"type": "backup"}, drop_time_s=1.0) as cluster:
        a, b, c = cluster.grow("abc")
        session = a.write({"before": 1}, acks="all")["id"]
        a.signal(signal.SIGSTOP)
        until(lambda: "a" not in b.names and "a" not in c.names, what="a is dropped")
        assert contents(b, [session]) == [{"before": 1}]
        b.write({"meanwhile": 2}, session=session, acks="one")
        a.signal(signal.SIGCONT)
        cluster.meet()
        for node in (a, b, c):
            assert contents(node, [session]) == [{"before": 1, "meanwhile": 2}]
        a.write({"after": 3}, session=session, acks="all")
        assert contents(c, [session]) == [{"before": 1, "meanwhile": 2, "after": 3}]


def test_a_drained_node_leaves_nothing_behind_and_can_be_killed() -> None:
    with Cluster(manager={"type": "backup"}) as cluster:
        a, b, c = cluster.grow("abc")
        ids = [a.write({"number": number})["id"] for number in range(50)]
        report = a.do("drain")
        assert report["state"] == "drained"
        assert report["total"] == 50
        assert a.do("count") == 0
        a.kill()
        assert contents(b, ids) == [{"number": number} for number in range(50)]
        until(lambda: "a" not in c.names, what="a is dropped")
        assert contents(c, ids) == [{"number": number} for number in range(50)]


def test_a_process_that_is_told_to_end_hands_over_first(tmp_path: Path) -> None:
    """Without backups: what `caterwaul node` does not hand over at SIGTERM is lost."""
    with Cluster(manager={"type": "partitioned", "backups": 0}) as cluster:
        a, b = cluster.grow("ab")
        settings = {f"membership.{key}": value for key, value in cluster.membership.items()} | {
            "cluster.name": cluster.name, "security.secret_file": cluster.secret_file, "admin.socket": tmp_path / "c", "node.name": "c", "node.drain_on_term": "true", "node.drain_notice_s": 0.1,
            "managers.default.type": "partitioned", "managers.default.backups": 0,
        }  # fmt: skip
        with Command("node", *(f"--set={key}={value}" for key, value in settings.items())) as leaver:
            for node in (a, b):
                until(lambda node=node: node.names == ["a", "b", "c"] and node.do("is_ready"), what="the command line's node is met")  # type: ignore[misc]
            ids = [a.write({"number": number}, acks="all")["id"] for number in range(60)]
            assert sum("c" in a.do("holders", session=one) for one in ids) > 5
            leaver.signal(signal.SIGTERM)
            assert leaver.exit_code() == 0
        assert contents(b, ids) == [{"number": number} for number in range(60)]


def _asked(*arguments: str) -> tuple[int, Any]:
    done = subprocess.run([*CATERWAUL, *arguments, "--json"], capture_output=True, text=True, timeout=60)
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


def test_the_commands_drain_and_rehearse(tmp_path: Any) -> None:
    with Cluster(manager={"type": "backup"}) as cluster:
        sockets = {name: str(tmp_path / f"{name}.sock") for name in "abc"}
        nodes = {}
        for name in "abc":
            settings = {
                "node": {"name": name, "drain_notice_s": 0.1}, "cluster": {"name": cluster.name}, "admin": {"socket": sockets[name]},
                "membership": cluster.membership, "managers": {"default": {"type": "backup"}},
            }  # fmt: skip
            nodes[name] = Node(settings)
            cluster.nodes.append(nodes[name])
        cluster.meet()
        ids = [nodes["a"].write({"number": number}, acks="all")["id"] for number in range(40)]
        code, found = _asked("rehearse", "--socket", sockets["b"], "--lose", "a")
        assert (code, found["managers"]["default"]) == (0, {"sessions": 40, "lost": 0, "behind": 0, "keys": []})
        code, found = _asked("rehearse", "--socket", sockets["b"], "--lose", "a", "--lose", "b")
        assert code == 1
        part = found["managers"]["default"]
        assert 0 < part["lost"] <= 40
        assert len(part["keys"]) == part["lost"]
        assert found["survivors"] == ["c"]
        code, text = _asked("rehearse", "--socket", sockets["b"], "--lose", "nobody")
        assert code == 1
        assert "no node 'nobody' in this domain; there are a, b, c" in text

        code, report = _asked("drain", "--socket", sockets["a"], "--stay")
        assert (code, report["state"], report["total"], report["left"]) == (0, "drained", 40, 0)
        assert not nodes["a"].do("is_ready")
        code, found = _asked("rehearse", "--socket", sockets["b"], "--lose", "a")
        assert (code, found["managers"]["default"]["sessions"]) == (0, 0)
        code, report = _asked("drain", "--socket", sockets["a"], "--cancel")
        assert (code, report["state"]) == (0, "serving")
        until(lambda: nodes["a"].do("is_ready"), what="a takes part again")
        code, report = _asked("drain", "--socket", sockets["a"])
        assert (code, report["left_process"]) == (0, False)  # an application's own process goes on
        assert contents(nodes["a"], ids) == [{"number": number} for number in range(40)]


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "there are namespaces")
@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    "manager", [{"type": "delta"}, {"type": "backup", "backups": 4}, {"type": "partitioned", "backups": 4}], ids=["delta", "backup", "partitioned"]
)
def test_a_partition_of_thirty_seconds_with_writes_on_both_sides_heals_within_ten(manager: dict[str, Any]) -> None:
    with Hosts(5) as hosts, Cluster(port=45999, multicast_ttl=1, manager=manager) as cluster:
        for number, (name, address) in enumerate(zip(hosts.names, hosts.addresses, strict=True)):
            cluster.start("abcde"[number], port=4000, namespace=name, node={"host": address})
        cluster.meet()
        a, b, c, d, e = cluster.nodes
        ids = a.do("fill", count=100)
        until(lambda: len({node.do("digest", sessions=ids) for node in cluster.nodes}) == 1, what="all have all")
        hosts.part([3, 4])
        for node in (a, d):
            node.do("begin_writing", sessions=ids)
        until(lambda: all(node.names == ["a", "b", "c"] for node in (a, b, c)) and all(node.names == ["d", "e"] for node in (d, e)), what="two parts")
        mine, theirs = b.write({"made": "here"}, acks="all"), e.write({"made": "there"}, acks="all")
        assert (mine["confirmed"], theirs["confirmed"]) == (["a", "c"], ["d"])
        ended = ids.pop()
        a.do("invalidate", session=ended)
        holds(lambda: len(a.names) == 3 and len(e.names) == 2, 30.0)
        counts = [len(node.do("changes")) for node in cluster.nodes]
        hosts.heal()
        deadline = time.monotonic() + 10.0
        rounds = [node.do("rounds") for node in (a, d)]
        assert min(rounds) > 100, "both sides went on serving"
        until(lambda: all(len(node.names) == 5 and node.do("is_ready") for node in cluster.nodes), deadline - time.monotonic(), "one cluster again, in sync")
        for node in (a, d):
            node.do("end_writing")
        sessions = [*ids, mine["id"], theirs["id"]]
        until(lambda: len({node.do("digest", sessions=sessions) for node in cluster.nodes}) == 1, deadline - time.monotonic(), "all have all")
        assert all(node.read(ended)["values"] == {} for node in cluster.nodes), "what has ended stays ended"
        for node, before in zip(cluster.nodes, counts, strict=True):
            assert len(node.do("changes")) - before <= 3, "no more changes of the view than members came back"
