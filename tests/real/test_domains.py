"""Domains split one multicast group: replication stays inside, and everybody still sees everybody."""

from __future__ import annotations

from .processes import Cluster, until


def test_sessions_stay_in_their_domain_and_changing_it_by_a_restart_moves_none() -> None:
    with Cluster() as cluster:
        red = [cluster.start(name, domain="red") for name in ("a", "b")]
        blue = [cluster.start(name, domain="blue") for name in ("c", "d")]
        cluster.meet(red)
        cluster.meet(blue)
        for node in (*red, *blue):
            until(lambda node=node: node.do("everyone") == [["a", "red"], ["b", "red"], ["c", "blue"], ["d", "blue"]], what="all members of the group are seen")  # type: ignore[misc]
        mine = red[0].write({"of": "red"}, acks="all")
        other = blue[0].write({"of": "blue"}, acks="all")
        assert (mine["confirmed"], other["confirmed"]) == (["b"], ["d"])
        assert red[1].read(mine["id"])["values"] == {"of": "red"}
        assert blue[1].read(mine["id"]) == {"unknown": False, "values": {}}
        assert red[1].read(other["id"]) == {"unknown": False, "values": {}}

        red[1].kill()
        cluster.nodes.remove(red[1])
        red[1].end()
        until(lambda: red[0].names == ["a"], what="the killed one is gone")
        moved = cluster.start("b", domain="blue")
        cluster.meet([*blue, moved])
        assert moved.read(other["id"])["values"] == {"of": "blue"}
        assert moved.read(mine["id"]) == {"unknown": False, "values": {}}
        assert red[0].read(mine["id"])["values"] == {"of": "red"}
        assert red[0].names == ["a"]
