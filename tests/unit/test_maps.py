"""Maps that members share."""

from __future__ import annotations

from typing import Any

import pytest

from caterwaul.managers import maps
from caterwaul.managers.delta import DeltaManager
from caterwaul.managers.errors import SessionUnknown, ValueRefused
from caterwaul.managers.maps import MapChanged, ReplicatedMap
from caterwaul.managers.merging_types import Counter
from caterwaul.managers.partitioned import PartitionedManager
from caterwaul.managers.session import Session
from caterwaul.managers.settings import MapSettings
from tests.doubles import Net

KINDS: dict[str, Any] = {"replicated": DeltaManager, "partitioned": PartitionedManager}


@pytest.fixture(autouse=True)
def _in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever thread another test has made the reactor's."""
    monkeypatch.setattr(maps, "isInIOThread", lambda: False)


class Blocking:
    """A manager in whose world a blocked thread lets time pass."""

    def __init__(self, net: Net, number: int) -> None:
        self._net = net
        self._manager = net.managers[number]
        for name in ("open_local", "commit", "release", "listen"):
            setattr(self, name, getattr(self._manager, name))

    def open(self, session_id: str) -> Session:
        found: list[Session] = []
        self._manager.open_deferred(session_id).addCallback(found.append)
        while not found:
            self._net.advance(0.01)
        return found[0]


class World:
    def __init__(self, kind: str, members: int = 3) -> None:
        self.net = Net(members, MapSettings(type=kind).for_manager(), kind=KINDS[kind])
        self.maps = [ReplicatedMap("prices", Blocking(self.net, number), 8) for number in range(members)]  # type: ignore[arg-type]

    def deliver(self) -> None:
        self.net.deliver()


@pytest.fixture(params=sorted(KINDS))
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


def test_what_one_member_sets_all_read(world: World) -> None:
    one, two, three = world.maps
    one["apple"] = {"eur": 1}
    two["pear"] = [1, 2]
    world.deliver()
    for each in world.maps:
        assert dict(each) == {"apple": {"eur": 1}, "pear": [1, 2]}
        assert len(each) == 2
        assert "apple" in each
        assert each.get("plum") is None
    del three["apple"]
    world.deliver()
    assert [sorted(each) for each in world.maps] == [["pear"]] * 3
    with pytest.raises(KeyError):
        one["apple"]
    with pytest.raises(KeyError):
        del two["apple"]


def test_a_removed_entry_can_be_set_again(world: World) -> None:
    one, two, _ = world.maps
    for n in range(3):
        one["k"] = n
        world.deliver()
        assert two["k"] == n
        del two["k"]
        world.deliver()
        assert "k" not in one


def test_bulk_changes_and_clearing(world: World) -> None:
    one, two, three = world.maps
    one.update({f"k{n}": n for n in range(50)}, extra=1)
    world.deliver()
    assert len(two) == 51
    assert two["k49"] == 49
    two.clear()
    world.deliver()
    assert list(three) == []


def test_values_change_in_place_in_an_entry_and_merging_ones_add_up(world: World) -> None:
    one, two, three = world.maps
    one["hits"] = Counter(0)
    one["list"] = [1]
    world.deliver()
    for each in (one, two, three):
        with each.entry("hits") as entry:
            entry.value.add(1)
    with two.entry("list") as entry:
        entry.value.append(2)
    world.deliver()
    assert [int(each["hits"]) for each in world.maps] == [3, 3, 3]
    assert three["list"] == [1, 2]
    with one.entry("list") as entry:
        entry.remove()
    with three.entry("new") as entry:
        assert entry.value is None
        entry.value = 7
    world.deliver()
    assert dict(two).keys() == {"hits", "new"}


def test_two_members_may_create_one_part_at_the_same_time(world: World) -> None:
    """They do not know of each other's creation; in the end all have both, and one head."""
    for number, each in enumerate(world.maps):
        each["same"] = number  # nothing is delivered in between
        each[f"own{number}"] = number
    world.deliver()
    world.net.advance(3.0)
    contents = [dict(each) for each in world.maps]
    assert contents[0] == contents[1] == contents[2]
    assert {"own0", "own1", "own2"} <= contents[0].keys()
    heads: dict[bytes, set[Any]] = {}
    for manager in world.net.managers:
        for key, entry in manager._core.replica.entries():
            assert entry.head is not None
            heads.setdefault(key, set()).add((entry.head.version, entry.head.primary))
    assert all(len(found) == 1 for found in heads.values())


def test_entries_survive_the_loss_of_their_author_once_confirmed(world: World) -> None:
    one, two, _ = world.maps
    receipt = one.put("k", 1, acks="one")
    world.deliver()
    assert receipt.satisfied
    world.net.kill(0)
    world.net.advance(4.0)
    assert two["k"] == 1


def test_listeners_hear_of_changes_wherever_they_are_made() -> None:
    world = World("replicated")
    heard: list[list[MapChanged]] = [[], [], []]
    for each, events in zip(world.maps, heard, strict=True):
        each.listen(events.append)
    other = ReplicatedMap("other", Blocking(world.net, 0), 8)  # type: ignore[arg-type]
    world.maps[0]["k"] = 1
    world.deliver()
    other["x"] = 1
    world.maps[1]["k"] = 2
    world.deliver()
    del world.maps[2]["k"]
    world.deliver()
    assert heard == [[MapChanged("k", False), MapChanged("k", False), MapChanged("k", True)]] * 3


def test_a_member_that_was_away_hears_what_has_become_of_entries() -> None:
    world = World("replicated")
    one, two, three = world.maps
    one["kept"] = one["gone"] = one["changed"] = 1
    world.deliver()
    heard: list[MapChanged] = []
    three.listen(heard.append)
    for number in (0, 1):
        world.net.part(number, 2)
    one["changed"] = 2
    del two["gone"]
    world.deliver()
    for number in (0, 1):
        world.net.heal(number, 2)
    world.net.advance(2.0)
    assert sorted(heard, key=lambda event: event.key) == [MapChanged("changed", False), MapChanged("gone", True)]


def test_mistakes_name_the_map() -> None:
    prices = World("replicated").maps[0]
    with pytest.raises(ValueRefused, match=r"map prices: .*object"):
        prices["k"] = object()
    with pytest.raises(ValueRefused, match=r"prices\[1\]: a key is a text"):
        prices[1] = 1  # type: ignore[index]
    with pytest.raises(ValueRefused, match=r"map prices: .*256 bytes"):
        prices["k" * 300] = 1
    assert dict(prices) == {}


def test_nothing_is_written_when_the_change_fails() -> None:
    one, two, _ = World("replicated").maps

    def change() -> None:
        with one.entry("k") as entry:
            entry.value = 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        change()
    assert "k" not in one
    assert "k" not in two


def test_where_nobody_can_say_reads_and_writes_raise() -> None:
    world = World("partitioned", members=5)
    world.maps[0].update({f"k{n}": n for n in range(30)})
    world.deliver()
    for other in range(1, 5):
        world.net.part(0, other)
    with pytest.raises(SessionUnknown, match="map prices"):
        list(world.maps[0])


def test_a_map_is_readable_when_somebody_was_lost() -> None:
    """A part that nobody has written yet is empty, and may be created: two creations merge."""
    world = World("replicated")
    world.maps[0]["a"] = 1
    world.deliver()
    world.net.kill(0)
    world.net.advance(0.5)
    assert dict(world.maps[1]) == {"a": 1}
    world.maps[1].update({f"k{n}": n for n in range(30)})
    world.deliver()
    assert len(world.maps[2]) == 31


def test_many_entries_at_once() -> None:
    net = Net(2, MapSettings().for_manager(), kind=DeltaManager)
    one, two = (ReplicatedMap("m", Blocking(net, number), 1) for number in range(2))  # type: ignore[arg-type]
    one.update({str(n): n for n in range(3000)})
    net.deliver()
    assert len(two) == 3000
    two.clear()
    net.deliver()
    assert len(one) == 0


def test_removed_entries_are_forgotten_whoever_removes_them(world: World) -> None:
    one, two, _ = world.maps
    one["kept"] = 1
    world.deliver()
    for n in range(600):
        two[f"k{n}"] = n
        del two[f"k{n}"]
        world.deliver()
    for manager in world.net.managers:
        records = [manager._core.replica.record(key, entry) for key, entry in manager._core.replica.entries()]
        assert sum(record.removed for record in records if record is not None) < 8 * 70


def test_items_and_pop_stand_changes_by_others() -> None:
    one, two, _ = World("replicated").maps
    one.update({str(n): n for n in range(20)})
    items = iter(one.items())
    next(items)
    one.clear()
    assert len(list(items)) == 19
    assert one.pop("k", None) is None
    one["k"] = 1
    assert one.pop("k") == 1
    with pytest.raises(KeyError):
        one.pop("k")
    assert dict(two) == {}


def test_names_that_cannot_be_encoded_are_refused() -> None:
    prices = World("replicated").maps[0]
    with pytest.raises(ValueRefused, match="lone surrogates"):
        prices["\ud800"] = 1
    assert dict(prices) == {}
