"""Whole clusters of real processes: multicast and TCP on loopback, SIGKILL, SIGSTOP, SIGTERM, restarts, neighbours."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from .processes import Cluster, Command, Node, free_port, holds, until

DROP_S = 1.5
NOBODY = "A" * 43  # the id of a session that never was


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster() as found:
        yield found


def gone_after(survivors: list[Node], uid: str, since: float, within_s: float) -> list[float]:
    """Seconds after `since` at which each survivor dropped this member, by its own report."""
    changes = [until(lambda node=node: node.when_gone(uid), within_s + 2.0, f"{node.name} drops {uid[:8]}") for node in survivors]  # type: ignore[misc]
    return [change["at"] - since for change in changes if change is not None]


def test_five_nodes_know_of_a_killed_one_in_well_under_a_second_and_go_on(cluster: Cluster) -> None:
    a, b, c, d, e = cluster.grow("abcde")
    sessions = [node.write({"from": node.name})["id"] for node in cluster.nodes]
    confirmed = a.write({"cart": ["milk"]}, acks="all")
    assert confirmed["confirmed"] == ["b", "c", "d", "e"]
    survivors = [a, b, c, e]
    killed = d.kill()
    assert max(gone_after(survivors, d.uid, killed, 1.5)) < 1.5
    assert [node.names for node in survivors] == [["a", "b", "c", "e"]] * 4
    for node in survivors:
        assert [node.read(session)["values"]["from"] for session in sessions] == list("abcde")
        assert node.read(NOBODY)["unknown"], "after a loss nobody can be sure that a session does not exist"
    written = b.write({"bread": 1}, confirmed["id"], acks="all")
    assert written["confirmed"] == ["a", "c", "e"]
    assert e.read(confirmed["id"])["values"] == {"cart": ["milk"], "bread": 1}
    cluster.nodes.remove(d)
    d.end()
    cluster.grow("d")
    assert cluster.nodes[-1].read(confirmed["id"])["values"] == {"cart": ["milk"], "bread": 1}


def test_who_confirmed_is_named_for_every_level(cluster: Cluster) -> None:
    a, *_ = cluster.grow("abcde")
    none, one, quorum, everybody, three = (a.write({"n": 1}, acks=level) for level in ("none", "one", "quorum", "all", 3))
    assert none["satisfied"]
    assert none["confirmed"] == none["unconfirmed"] == []
    for receipt, least in ((one, 1), (quorum, 2), (three, 3), (everybody, 4)):
        assert receipt["satisfied"]
        assert len(receipt["confirmed"]) >= least
        assert sorted(receipt["confirmed"] + receipt["unconfirmed"]) == ["b", "c", "d", "e"]
    assert everybody["unconfirmed"] == []


class TestPaused:
    @pytest.fixture
    def cluster(self) -> Iterator[Cluster]:
        with Cluster(drop_time_s=DROP_S) as found:
            yield found

    def test_longer_than_the_drop_time_it_is_dropped_and_comes_back_in_sync(self, cluster: Cluster) -> None:
        a, b, c = cluster.grow("abc")
        ended_early, ended_late, kept = (a.write({"n": n}, acks="all")["id"] for n in range(3))
        stopped = c.signal(signal.SIGSTOP)
        assert a.do("invalidate", session=ended_early) == ["b"]
        assert max(gone_after([a, b], c.uid, stopped, DROP_S + 1.5)) < DROP_S + 1.5
        assert a.do("invalidate", session=ended_late) == ["b"]
        a.write({"n": "changed"}, kept, acks="one")
        for session in (ended_early, ended_late):
            c.tell("read", session=session)  # waits in its pipe: the first things it reads when it wakes
        c.signal(signal.SIGCONT)
        assert [c.answer()["values"] for _ in range(2)] == [{}, {}]
        cluster.meet()
        for node in cluster.nodes:
            assert [node.read(session) for session in (ended_early, ended_late)] == [{"unknown": False, "values": {}}] * 2
            assert node.read(kept)["values"] == {"n": "changed"}
        assert c.write({"n": "again"}, kept, acks="all")["confirmed"] == ["a", "b"]

    def test_shorter_than_the_drop_time_nobody_notices(self, cluster: Cluster) -> None:
        a, b, c = cluster.grow("abc")
        before = [node.do("changes") for node in cluster.nodes]
        c.signal(signal.SIGSTOP)
        holds(lambda: a.names == b.names == ["a", "b", "c"], DROP_S / 2)
        c.signal(signal.SIGCONT)
        assert a.write({"n": 1}, acks="all")["confirmed"] == ["b", "c"]
        beats = a.do("statistics")["membership"]["heartbeats"]
        until(lambda: a.do("statistics")["membership"]["heartbeats"] > beats + 8, what="two heartbeats more of each")
        assert [node.do("changes") for node in cluster.nodes] == before


def test_a_restart_on_the_same_name_and_port_is_never_two_members(cluster: Cluster) -> None:
    a, b, c = cluster.grow("abc")
    session = c.write({"n": 1}, acks="all")["id"]
    old, port = c.uid, c.about["port"]
    c.kill()
    cluster.nodes.remove(c)
    c.end()
    again = cluster.start("c", port=port)
    cluster.meet()
    assert again.about["port"] == port
    assert again.uid != old
    for node in (a, b):
        views = [change["uids"] for change in node.do("changes")]
        assert views[-1] == sorted((a.uid, b.uid, again.uid))
        assert not any(old in uids and again.uid in uids for uids in views)
        assert not any(change["names"].count("c") > 1 for change in node.do("changes"))
    assert again.read(session)["values"] == {"n": 1}


def heartbeats(node: Node) -> dict[str, int]:
    found: dict[str, int] = node.do("statistics")["membership"]
    return found


class TestNeighbours:
    """A member of its own cluster has been heard a dozen times: nobody else's was taken for one."""

    def have_listened(self, nodes: list[Node]) -> None:
        for node in nodes:
            until(lambda node=node: heartbeats(node)["heartbeats"] >= 12, what=f"{node.name} hears its own")  # type: ignore[misc]

    def test_two_clusters_on_one_group_and_port_do_not_see_each_other(self) -> None:
        port = free_port(socket.SOCK_DGRAM)
        with Cluster(port=port, security={}) as left, Cluster(port=port, security={}) as right:
            a, b, c, d = left.start("a"), left.start("b"), right.start("a"), right.start("b")
            left.meet()
            right.meet()
            session = a.write({"side": "left"}, acks="one")["id"]
            self.have_listened([a, b, c, d])
            assert all(heartbeats(node)["foreign"] > 0 for node in (a, b, c, d)), "their datagrams do arrive"
            assert {uid for change in a.do("changes") + b.do("changes") for uid in change["uids"]} == {a.uid, b.uid}
            assert {uid for change in c.do("changes") + d.do("changes") for uid in change["uids"]} == {c.uid, d.uid}
            assert c.read(session) == {"unknown": False, "values": {}}

    def test_two_groups_on_one_port_do_not_hear_each_other(self) -> None:
        port = free_port(socket.SOCK_DGRAM)
        with Cluster(port=port, security={}) as left, Cluster(port=port, security={}, name=left.name, multicast_address="228.0.0.5") as right:
            nodes = [left.start("a"), left.start("b"), right.start("c"), right.start("d")]
            left.meet()
            right.meet()
            self.have_listened(nodes)
            for node, uids in zip(nodes, [{nodes[0].uid, nodes[1].uid}] * 2 + [{nodes[2].uid, nodes[3].uid}] * 2, strict=True):
                assert {uid for change in node.do("changes") for uid in change["uids"]} == uids
                assert heartbeats(node)["foreign"] == 0


def test_a_terminated_node_says_farewell_and_leaves_no_doubt(cluster: Cluster, tmp_path: Path) -> None:
    """The node that leaves is `caterwaul node`, as it is run."""
    a, b = cluster.grow("ab")
    session = a.write({"n": 1}, acks="one")["id"]
    settings = [f"--set=security.secret_file={cluster.secret_file}", *(f"--set=membership.{key}={value}" for key, value in cluster.membership.items())]
    with Command("node", "--set=node.name=c", f"--set=cluster.name={cluster.name}", f"--set=admin.socket={tmp_path}/c", *settings) as leaver:
        for node in (a, b):
            until(lambda node=node: node.names == ["a", "b", "c"], what="the command line's node is met")  # type: ignore[misc]
            until(lambda node=node: node.do("is_ready"), what="they are in sync")  # type: ignore[misc]
        (uid,) = set(a.do("changes")[-1]["uids"]) - {a.uid, b.uid}
        asked = leaver.signal(signal.SIGTERM)
        assert max(gone_after([a, b], uid, asked, 2.0)) < 2.0
        assert [node.read(NOBODY) for node in (a, b)] == [{"unknown": False, "values": {}}] * 2
        assert leaver.exit_code() == 0
        assert f"c of cluster {cluster.name} on 127.0.0.1:" in leaver.log
    assert not os.listdir(tmp_path)
    for node in (a, b):
        change = node.when_gone(uid)
        assert change is not None
        assert change["clean"] == [uid]
        statistics = node.do("statistics")["membership"]
        assert (statistics["suspicions"], statistics["farewells"]) == (0, 1)
        assert node.read(session)["values"] == {"n": 1}
        assert node.read(NOBODY) == {"unknown": False, "values": {}}


def test_a_joiner_gets_five_thousand_sessions_while_writes_go_on(cluster: Cluster) -> None:
    a, b = cluster.grow("ab")
    sessions = a.do("fill", count=5000)
    a.do("begin_writing", sessions=sessions)
    until(lambda: a.do("rounds") > 2, what="writes go on")
    began = a.do("rounds")
    joiner = cluster.start("c")
    cluster.meet()
    assert a.do("rounds") > began + 5, "writes have gone on meanwhile"
    a.do("end_writing")
    assert a.write({"last": 1}, sessions[0], acks="all")["confirmed"] == ["b", "c"]  # comes after all that was sent before
    assert [node.do("count") for node in cluster.nodes] == [5000] * 3
    digest = a.do("digest", sessions=sessions)
    assert [node.do("digest", sessions=sessions) for node in (b, joiner)] == [digest, digest]


def test_with_one_seed_and_no_multicast_members_tell_each_other_of_the_rest() -> None:
    port = free_port()
    with Cluster(discovery=["static"], seeds=[f"127.0.0.1:{port}"]) as cluster:
        seed = cluster.start("a", port=port)
        assert seed.about["port"] == port
        others = cluster.grow("bcd")
        assert all(heartbeats(node)["heartbeats"] == 0 for node in cluster.nodes), "no datagrams"
        session = others[0].write({"n": 1}, acks="all")
        assert session["confirmed"] == ["a", "c", "d"]
        killed = seed.kill()
        assert max(gone_after(others, seed.uid, killed, 1.5)) < 1.5
        assert others[2].write({"n": 2}, session["id"], acks="all")["confirmed"] == ["b", "c"]
