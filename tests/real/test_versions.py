"""A release and the one before it in one cluster: whoever starts first and whoever leads, sessions, ends and reconciling work, and nobody logs an error."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

from caterwaul.membership.member import PROTOCOL_MAX

from .processes import Cluster, Node, until

OLD = Path(__file__).parents[1] / "old" / "caterwaul-0.1.0-protocol1.whl"
DROP_S = 1.5
_WRONG = re.compile(r"#(?:error|critical)\]|Traceback|[Mm]alformed|Unhandled|failed")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(security={}, drop_time_s=DROP_S) as found:
        yield found


def test_the_wheel_holds_the_packages_themselves() -> None:
    with ZipFile(OLD) as wheel:
        names = set(wheel.namelist())
        links = [entry.filename for entry in wheel.infolist() if entry.external_attr >> 28 == 0o12]
    assert {f"caterwaul/{name}" for name in ("__init__.py", "membership/member.py", "managers/core.py", "cluster/node.py")} <= names
    assert not links


def start(cluster: Cluster, name: str, old: bool) -> Node:
    node = cluster.start(name, wheel=OLD if old else None)
    assert node.about["versions"] == ([1, 1] if old else [1, PROTOCOL_MAX])
    assert (OLD.name in node.about["path"]) is old
    return node


def pair(cluster: Cluster, first_is_old: bool, old_leads: bool) -> tuple[Node, Node]:
    """(old, new), met; the one with the lower uid leads when they reconcile."""
    first = start_as(cluster, "first", first_is_old, leads=first_is_old is old_leads)
    second = start_as(cluster, "second", not first_is_old, leads=first_is_old is not old_leads)
    cluster.meet()
    return (first, second) if first_is_old else (second, first)


def start_as(cluster: Cluster, name: str, old: bool, leads: bool) -> Node:
    """Started again until its uid is in the half it needs: two starts on average, whatever the other has drawn."""
    while True:
        node = start(cluster, name, old)
        if (node.uid < "8") is leads:
            return node
        end(cluster, node)


def end(cluster: Cluster, node: Node) -> None:
    node.kill()
    cluster.nodes.remove(node)
    check_log(node)
    node.end()


def check_log(node: Node) -> None:
    wrong = [line for line in node.log.splitlines() if _WRONG.search(line)]
    assert not wrong, f"{node.name}: {wrong}"


def same(one: Node, other: Node, sessions: list[str]) -> bool:
    return bool(one.do("digest", sessions=sessions) == other.do("digest", sessions=sessions))


@pytest.mark.parametrize("old_leads", [True, False], ids=["old leads", "new leads"])
@pytest.mark.parametrize("first_is_old", [True, False], ids=["old first", "new first"])
def test_a_node_of_the_release_before_and_one_of_this_work_together(cluster: Cluster, first_is_old: bool, old_leads: bool) -> None:
    old, new = pair(cluster, first_is_old, old_leads)
    written = {node.name: node.write({"by": [node.name]}, acks="all") for node in (old, new)}
    for node, other in ((old, new), (new, old)):
        assert written[node.name]["confirmed"] == [other.name]
        session = written[node.name]["id"]
        assert other.read(session)["values"] == {"by": [node.name]}
        assert other.write({"too": other.name}, session, acks="all")["confirmed"] == [node.name]
        assert node.read(session)["values"] == {"by": [node.name], "too": other.name}
        ended = node.write({"gone": 1}, acks="all")["id"]
        assert other.do("invalidate", session=ended) == [node.name]
        assert node.read(ended) == {"unknown": False, "values": {}}
    sessions = old.do("fill", count=60) + new.do("fill", count=60)
    until(lambda: same(old, new, sessions), what="both hold all")

    for away, here in ((old, new), (new, old)):  # away, and back with what it had
        away.signal(signal.SIGSTOP)
        until(lambda here=here, away=away: here.when_gone(away.uid), what=f"{here.name} drops {away.name}")  # type: ignore[misc]
        here.write({"by": "changed"}, sessions[0])
        here.do("invalidate", session=sessions.pop())
        sessions += here.do("fill", count=5)
        away.signal(signal.SIGCONT)
        until(lambda here=here: len(here.names) == 2, what=f"{away.name} is back")  # type: ignore[misc]
        cluster.meet()
        assert same(old, new, sessions)

    for died in (old, new):  # killed, and back with nothing
        here = new if died is old else old
        end(cluster, died)
        here.write({"by": "changed again"}, sessions[1])
        back = start(cluster, died.name, died is old)
        cluster.meet()
        assert same(here, back, sessions)
        old, new = (back, here) if died is old else (here, back)
    for node in (old, new):
        statistics = node.do("statistics")
        assert statistics["managers"]["default"]["driver_errors"] == 0
        check_log(node)
