"""The memory that sessions may take: what it counts, who is refused, and what gives way first."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caterwaul.managers.entry import TOMBSTONE_BYTES
from caterwaul.managers.errors import SessionRefused
from caterwaul.managers.memory import memory_bytes
from caterwaul.managers.partitioned import PartitionedManager
from caterwaul.managers.settings import ManagerSettings
from tests.doubles import Net, wrong_weights

MIB = 1 << 20


def fill(net: Net, number: int, size: int = 10_000) -> int:
    """Sessions of so many bytes, made on this node until one is refused: how many there are."""
    made = 0
    while True:
        session = net.managers[number].open_local(None)
        assert session is not None
        session["pad"] = b"x" * size
        try:
            net.managers[number].commit(session)
        except SessionRefused:
            return made
        made += 1
        assert made < 1000


def used(net: Net, number: int) -> int:
    return net.managers[number].statistics()["memory_bytes"]


def test_at_nine_tenths_new_sessions_are_refused_and_all_else_goes_on() -> None:
    net = Net(2, ManagerSettings(memory_max_bytes=MIB))
    session_id = net.visit(0, a=1)
    made = fill(net, 0)
    assert 0.85 <= made * 10_650 / (0.9 * MIB) <= 1.0
    assert net.managers[0].statistics()["sessions_refused"] == 1
    assert MIB * 0.9 <= used(net, 0) < MIB
    net.deliver()
    assert net.managers[1].count == made + 1, "a merge never refuses"
    with pytest.raises(SessionRefused, match=rf"take \d+ bytes of {MIB} already \(memory_max_bytes\)") as refused:
        net.visit(1, b=1)
    assert refused.value.status == 503
    net.visit(0, session_id, a=2)
    net.deliver()
    assert net.opened(1, session_id)["a"] == 2


def test_a_new_id_is_no_new_session() -> None:
    net = Net(1, ManagerSettings(memory_max_bytes=MIB))
    session_id = net.visit(0, a=1)
    fill(net, 0)
    session = net.opened(0, session_id)
    session.cycle_id()
    net.managers[0].commit(session)
    assert net.opened(0, session.id)["a"] == 1


def test_sessions_whose_time_is_over_make_room() -> None:
    net = Net(2, ManagerSettings(memory_max_bytes=MIB, idle_timeout_s=30))
    made = fill(net, 0)
    net.advance(40.0, step_s=0.5)
    assert net.managers[0].count == 0
    assert used(net, 0) <= made * (TOMBSTONE_BYTES + 500)
    assert fill(net, 0) > made / 2


def test_copies_that_are_only_near_go_before_anybody_is_refused_for_long() -> None:
    net = Net(5, ManagerSettings(type="partitioned", memory_max_bytes=MIB, idle_timeout_s=600, absolute_timeout_s=0), kind=PartitionedManager)
    ids = []
    for n in range(50):
        session = net.managers[n % 4].open_local(None)
        assert session is not None
        session["pad"] = b"x" * 30_000
        net.managers[n % 4].commit(session)
        ids.append(session.id)
    net.advance(4.0)
    before = used(net, 4)
    for session_id in ids:
        net.managers[4].release(net.opened(4, session_id))
    assert used(net, 4) > 0.9 * MIB
    net.advance(4.0)
    assert used(net, 4) <= before
    net.visit(4, b=1)


def test_tombstones_take_a_quarter_at_most() -> None:
    net = Net(1, ManagerSettings(memory_max_bytes=4 * MIB))
    most = MIB // TOMBSTONE_BYTES
    for _ in range(most + 100):
        session = net.opened(0, net.visit(0, a=1))
        session.invalidate()
        net.managers[0].commit(session)
    net.advance(1.0)
    found = net.managers[0].statistics()
    assert found["tombstones"] <= most
    assert found["tombstones_forgotten"] >= 100
    assert used(net, 0) <= MIB


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 5), st.sampled_from(["write", "grow", "shrink", "remove", "end", "wait", "part", "let go"])), max_size=40
    )
)
def test_the_sum_is_that_of_what_is_held(acts: list[tuple[int, int, str]]) -> None:
    net = Net(2, ManagerSettings(idle_timeout_s=60, pack_after_s=0.5))
    ids = [net.visit(n % 2, a=1) for n in range(6)]
    for number, which, act in acts:
        if act == "wait":
            net.advance(5.0, step_s=0.5)
        elif act == "part":
            net.hold(number, 1 - number)
        elif act == "let go":
            net.let_go()
        else:
            session = net.managers[number].open_local(ids[which])
            if session is None or session.new:
                continue
            if act == "end":
                session.invalidate()
            elif act == "remove":
                session.pop("b", None)
            else:
                session["b"] = b"x" * {"write": 10, "grow": 5000, "shrink": 1}[act]
            net.managers[number].commit(session)
            net.managers[number].release(session)
    net.let_go()
    net.advance(3.0, step_s=0.25)
    for manager in net.managers:
        assert not wrong_weights(manager)


# -- what the machine has


def group(root: Path, line: str, **limits: str) -> Path:
    """A machine whose process is in this cgroup; `limits` by path, `_` for `/`."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(line + "\n")
    for path, limit in limits.items():
        file = root / "sys/fs/cgroup" / path.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(limit + "\n")
    return root


def memory(root: Path) -> int:
    memory_bytes.cache_clear()
    return memory_bytes(str(root))


def test_the_least_of_all_limits_counts(tmp_path: Path) -> None:
    machine = memory(tmp_path / "none")
    assert machine > MIB
    root = group(tmp_path / "v2", "0::/web/worker", **{"web__memory.max": "268435456", "web__worker__memory.max": "max"})
    assert memory(root) == 268435456
    root = group(tmp_path / "container", "0::/docker/0123", **{"memory.max": "134217728"})
    assert memory(root) == 134217728
    root = group(
        tmp_path / "v1", "7:cpu,memory:/web", **{"memory__web__memory.limit_in_bytes": "1048576", "memory__memory.limit_in_bytes": "9223372036854771712"}
    )
    assert memory(root) == 1048576
    root = group(tmp_path / "unlimited", "0::/", **{"memory.max": "max"})
    assert memory(root) == machine


def test_half_of_it_is_the_budget_where_none_is_set() -> None:
    assert Net(1).managers[0].statistics()["memory_max_bytes"] == memory_bytes() // 2
    assert Net(1, ManagerSettings(memory_max_bytes=MIB)).managers[0].statistics()["memory_max_bytes"] == MIB
