"""Over any history, two members' sums of a partition are equal exactly when what they hold in it is; and what is kept is what would be made anew."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from caterwaul.managers.entry import is_whole
from caterwaul.managers.placement import PARTITIONS
from caterwaul.managers.settings import ManagerSettings
from tests.doubles import Net, wrong_sums

SETTINGS = ManagerSettings(idle_timeout_s=60, absolute_timeout_s=300, retention_s=100, pack_after_s=1, save_period_s=1, reconcile_period_s=20)

picks = st.integers(0, 9)
steps = st.lists(
    st.tuples(st.sampled_from(["create", "create", "write", "write", "remove", "read", "end", "new id", "cut", "heal", "deliver", "look", "time", "long"]), picks, picks),
    min_size=1, max_size=50,
)  # fmt: skip


def act(net: Net, what: str, member: int, pick: int, ids: list[str]) -> None:
    manager = net.managers[member]
    if what == "cut" and not net.cut:
        net.part(0, 1)
    elif what == "heal" and net.cut:
        net.heal(0, 1)
    elif what == "deliver":
        net.deliver()
    elif what == "time":
        net.advance(1.5, 0.5)
    elif what == "long":
        net.advance(35.0, 1.0)
    elif what == "create" or ids:
        session = manager.open_local(None if what == "create" else ids[pick % len(ids)])
        if session is None or session.unknown or (what != "create" and session.new):
            return
        if what in ("create", "write"):
            session[f"a{pick}"] = [member]
        elif what == "remove":
            for name in list(session):
                del session[name]
            for n in range(70):  # enough of them are pruned
                session[f"x{n}"] = n
            manager.commit(session)
            for n in range(70):
                del session[f"x{n}"]
        elif what == "end":
            session.invalidate()
        elif what == "new id" and len(session):
            session.cycle_id()
        manager.commit(session)
        manager.release(session)
        if session.id is not None and session.id not in ids:
            ids.append(session.id)


def contents(manager: Any, number: int) -> dict[bytes, tuple[object, ...]]:
    """What the sum of a partition speaks of."""
    core, now_ms = manager._core, manager._channel.now_ms()
    found: dict[bytes, tuple[object, ...]] = {}
    for key, entry in core.replica.partitions[number].items():
        head = entry.head
        ended = head is not None and head.state != 0
        if is_whole(entry) and not (ended and now_ms >= head.ended_ms + SETTINGS.retention_s * 900):
            found[key] = (head and (head.state, head.version, None if ended else head.primary), core.replica.body_of(entry))
    return found


def sums(manager: Any) -> bytes:
    at, found = 0, b""
    while at < PARTITIONS:
        at, more = manager._core.digests.sums(b"", at, PARTITIONS, manager._channel.now_ms())
        found += more
    return found


@settings(max_examples=60)
@given(steps)
def test_sums_are_equal_exactly_where_contents_are(history: list[tuple[str, int, int]]) -> None:
    net = Net(2, SETTINGS)
    ids: list[str] = []
    for what, member, pick in [*history, ("look", 0, 0)]:
        if what != "look":
            act(net, what, member % 2, pick, ids)
            continue
        one, two = net.managers
        assert wrong_sums(one) == wrong_sums(two) == []
        mine, theirs = sums(one), sums(two)
        for number in range(PARTITIONS):
            if one._core.replica.partitions[number] or two._core.replica.partitions[number]:
                at = slice(number * 8, number * 8 + 8)
                assert (mine[at] == theirs[at]) is (contents(one, number) == contents(two, number))
