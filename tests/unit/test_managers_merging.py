"""Counter, MergingSet, Max and Min as requests use them, and conflicts that are told."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pytest

import caterwaul
from caterwaul.managers.errors import ValueDamaged, ValueRefused
from caterwaul.managers.listeners import Conflict
from caterwaul.managers.merging import MERGING
from caterwaul.managers.merging_types import MERGING_TYPES, Counter, Max, MergingSet, Min
from caterwaul.managers.record import Record, clashes
from caterwaul.managers.session import key_of
from caterwaul.managers.settings import ManagerSettings
from caterwaul.managers.values import ValueTypes
from tests.doubles import Net

TYPES = ValueTypes()


def make(net, number=0, **attributes):
    session = net.managers[number].open_local(None)
    session.update(attributes)
    net.managers[number].commit(session)
    net.deliver()
    return session.id


def opened(net, number, session_id):
    return net.managers[number].open_local(session_id)


def commit(net, number, *sessions):
    for session in sessions:
        net.managers[number].commit(session)
        net.managers[number].release(session)


def shown(net, session_id, name):
    """What each member shows; all copies are equal."""
    first, *rest = net.bodies()
    assert all(other == first for other in rest)
    values = [opened(net, number, session_id).get(name) for number in range(len(net.managers))]
    return values[0] if all(value == values[0] for value in values) else values


# -- members and requests at the same time


def test_additions_on_two_members_and_in_two_requests_of_one_all_count():
    net = Net(3)
    session_id = make(net, views=Counter(5))
    one, two, other = opened(net, 0, session_id), opened(net, 0, session_id), opened(net, 1, session_id)
    one["views"].add()
    two["views"].add(10)
    other["views"] -= 100
    commit(net, 0, one, two)
    commit(net, 1, other)
    net.deliver()
    assert shown(net, session_id, "views") == -84
    assert [manager.statistics()["conflicts"] for manager in net.managers] == [0, 0, 0]


def test_counters_that_several_create_at_the_same_time_add_up():
    net = Net(2)
    session_id = make(net, a=1)
    requests = [(number, opened(net, number, session_id)) for number in (0, 0, 1)]
    for amount, (_, session) in enumerate(requests, 1):
        session.setdefault("views", Counter()).add(amount)
    for number, session in requests:
        commit(net, number, session)
    net.deliver()
    assert shown(net, session_id, "views") == 6
    after = opened(net, 1, session_id)
    after["views"].add(4)
    commit(net, 1, after)
    net.deliver()
    assert shown(net, session_id, "views") == 10


def test_a_request_that_commits_twice_counts_once_each():
    net = Net(2)
    session_id = make(net, views=Counter())
    session = opened(net, 0, session_id)
    views = session["views"]
    for total in (1, 2):
        views.add(1)
        net.managers[0].commit(session)
        assert views == total
        net.deliver()
        assert shown(net, session_id, "views") == total
    assert session.changes() == {}


def test_setting_a_new_one_begins_anew_and_additions_to_the_old_are_gone():
    net = Net(2)
    session_id = make(net, views=Counter(5))
    reset, late, slow = opened(net, 0, session_id), opened(net, 1, session_id), opened(net, 0, session_id)
    reset["views"] = Counter(2)
    late["views"].add(100)
    slow["views"].add(1000)
    commit(net, 0, reset, slow)
    commit(net, 1, late)
    net.deliver()
    assert shown(net, session_id, "views") == 2


@pytest.mark.parametrize("end", [lambda session: session.pop("views"), lambda session: session.update(views="plain")])
def test_removing_or_replacing_it_ends_what_others_add_meanwhile(end):
    net = Net(2)
    session_id = make(net, views=Counter(5))
    one, late, slow = opened(net, 0, session_id), opened(net, 1, session_id), opened(net, 0, session_id)
    end(one)
    late["views"].add(100)
    late["other"] = 1
    slow["views"].add(1000)
    commit(net, 1, late)
    commit(net, 0, one, slow)
    net.deliver()
    assert shown(net, session_id, "views") in (None, "plain")
    assert shown(net, session_id, "other") == 1


def test_an_addition_to_what_was_removed_and_pruned_meanwhile_is_gone():
    net = Net(2)
    session_id = make(net, views=Counter(5))
    slow = opened(net, 0, session_id)
    gone = opened(net, 0, session_id)
    del gone["views"]
    commit(net, 0, gone)
    key = key_of(session_id)
    replica = net.managers[0]._core.replica
    replica.record(key, replica.get(key)).prune()
    slow["views"].add(1)
    commit(net, 0, slow)
    net.deliver()
    assert "views" not in opened(net, 0, session_id)


def test_sets_keep_additions_and_removals_take_what_was_seen():
    net = Net(2)
    session_id = make(net, tags=MergingSet({"a", "b"}))
    one, two, other = opened(net, 0, session_id), opened(net, 0, session_id), opened(net, 1, session_id)
    one["tags"].discard("a")
    two["tags"] |= {"c", ("t", 1)}
    other["tags"].add("d")
    other["tags"].remove("b")
    commit(net, 0, one, two)
    commit(net, 1, other)
    net.deliver()
    assert shown(net, session_id, "tags") == {"c", "d", ("t", 1)}


def test_additions_in_two_requests_of_one_member_all_stay():
    net = Net(2)
    session_id = make(net, tags=MergingSet())
    requests = [opened(net, 0, session_id) for _ in range(3)]
    for name, session in zip("abc", requests, strict=True):
        session["tags"].add(name)
        commit(net, 0, session)
    net.deliver()
    assert shown(net, session_id, "tags") == {"a", "b", "c"}


def test_an_element_that_is_removed_and_added_anew_at_the_same_time_stays():
    net = Net(2)
    session_id = make(net, tags=MergingSet({"a"}))
    again = opened(net, 1, session_id)
    again["tags"].discard("a")
    net.managers[1].commit(again)
    again["tags"].add("a")
    removing = opened(net, 0, session_id)
    removing["tags"].clear()
    commit(net, 0, removing)
    commit(net, 1, again)
    net.deliver()
    assert shown(net, session_id, "tags") == {"a"}


def test_equal_elements_of_two_types_are_one_and_go_together():
    net = Net(2)
    session_id = make(net, tags=MergingSet())
    one, other = opened(net, 0, session_id), opened(net, 1, session_id)
    one["tags"].add(1)
    other["tags"].add(True)
    commit(net, 0, one)
    commit(net, 1, other)
    net.deliver()
    assert shown(net, session_id, "tags") == {1}
    gone = opened(net, 0, session_id)
    gone["tags"].discard(1.0)
    commit(net, 0, gone)
    net.deliver()
    assert shown(net, session_id, "tags") == set()


def test_the_best_offer_of_all_stands():
    net = Net(2)
    session_id = make(net, best=Max(10), first=Min(date(2020, 5, 1)))
    one, two, other = opened(net, 0, session_id), opened(net, 0, session_id), opened(net, 1, session_id)
    assert one["best"].offer(30) is True
    assert one["best"].offer(29) is False
    two["best"].offer(20)
    other["best"].offer(29.5)
    other["first"].offer(date(2019, 1, 1))
    commit(net, 0, one, two)
    commit(net, 1, other)
    net.deliver()
    assert shown(net, session_id, "best").value == 30
    assert shown(net, session_id, "first").value == date(2019, 1, 1)


def test_a_new_id_takes_them_along_with_what_others_did_meanwhile():
    net = Net(2)
    session_id = make(net, views=Counter(5), tags=MergingSet({"a"}), best=Max("m"), empty=Counter())
    login, other = opened(net, 0, session_id), opened(net, 0, session_id)
    other["views"].add(10)
    other["tags"].add("b")
    commit(net, 0, other)
    login["views"].add(1)
    login["best"].offer("z")
    login["fresh"] = Counter(7)
    login.cycle_id()
    net.managers[0].commit(login)
    net.deliver()
    assert (shown(net, login.id, "views"), shown(net, login.id, "tags"), shown(net, login.id, "fresh")) == (16, {"a", "b"}, 7)
    login["views"].add(1)
    net.managers[0].commit(login)
    net.deliver()
    assert shown(net, login.id, "views") == 17
    assert shown(net, login.id, "best").value == "z"
    assert shown(net, login.id, "empty") == 0


def test_two_sides_of_a_partition_add_up():
    net = Net(2)
    session_id = make(net, views=Counter())
    net.part(0, 1)
    for number in (0, 1):
        for _ in range(3):
            session = opened(net, number, session_id)
            session["views"].add(1)
            commit(net, number, session)
    net.heal(0, 1)
    net.deliver()
    net.advance(1)
    assert shown(net, session_id, "views") == 6


# -- the session


@pytest.mark.parametrize("mode", ["on_change", "on_set", "on_get", "always"])
def test_no_save_mode_writes_back_what_others_have_changed(mode):
    net = Net(1, ManagerSettings(save_mode=mode))
    session_id = make(net, views=Counter(), idle=Counter(), plain=1)
    slow, quick = opened(net, 0, session_id), opened(net, 0, session_id)
    quick["views"] += 1
    quick["idle"] += 1
    commit(net, 0, quick)
    assert slow["views"] == 0
    slow["plain"] = 2
    commit(net, 0, slow)
    now = opened(net, 0, session_id)
    assert (now["views"], now["idle"]) == (1, 1)


def test_only_what_was_set_is_sent_in_that_mode_with_all_that_was_done_to_it():
    net = Net(1, ManagerSettings(save_mode="on_set"))
    session_id = make(net, views=Counter(), tags=MergingSet())
    session = opened(net, 0, session_id)
    session["views"].add(1)
    tags = session["tags"]
    session["tags"] = tags
    tags.add("later")
    commit(net, 0, session)
    assert (opened(net, 0, session_id)["views"], opened(net, 0, session_id)["tags"]) == (0, {"later"})


def test_reading_changes_nothing_and_neither_does_what_is_undone():
    net = Net(1)
    session_id = make(net, views=Counter(5), tags=MergingSet({"a"}), best=Max(1))
    session = opened(net, 0, session_id)
    assert (int(session["views"]), "a" in session["tags"], session["best"].value) == (5, True, 1)
    session["views"].add(2)
    session["views"].add(-2)
    session["tags"].add("b")
    session["tags"].discard("b")
    session["tags"].add("a")
    session["best"].offer(0)
    session["views"] = session["views"]
    assert session.changes() == {}


def test_one_belongs_to_one_attribute():
    net = Net(1)
    session_id = make(net, views=Counter(5))
    session = opened(net, 0, session_id)
    with pytest.raises(ValueRefused, match=r"session\['copy'\]: this Counter belongs to another attribute"):
        session["copy"] = session["views"]
    session["copy"] = mine = Counter(int(session["views"]))
    session["copy"] = mine
    with pytest.raises(ValueRefused, match="belongs to another"):
        session["again"] = mine
    with pytest.raises(ValueRefused, match=r"session\['deep'\]\['n'\]: a Counter merges only as an attribute of its own"):
        session["deep"] = {"n": Counter()}
    session["copy"] = 3
    del session["views"]
    assert dict(session) == {"copy": 3}
    assert session.merging == {}


def test_elements_are_checked_when_they_are_set_or_committed():
    net = Net(1)
    session = net.managers[0].open_local(None)
    with pytest.raises(ValueRefused, match=r"session\['tags'\]\{...\}: object of type object"):
        session["tags"] = MergingSet({object()})
    with pytest.raises(TypeError):
        MergingSet([[]])
    session["tags"] = MergingSet()
    session["tags"].add("\udc80")
    with pytest.raises(ValueRefused, match="surrogate"):
        net.managers[0].commit(session)


def test_the_session_limit_holds_for_what_is_added():
    net = Net(1, ManagerSettings(session_max_bytes=1024))
    session_id = make(net, tags=MergingSet())
    session = opened(net, 0, session_id)
    session["tags"].add("x" * 2000)
    with pytest.raises(ValueRefused, match="session_max_bytes"):
        net.managers[0].commit(session)


def test_the_size_of_a_session_is_that_of_what_was_written():
    net = Net(2)
    session_id = make(net, views=Counter(5), tags=MergingSet({"a"}))
    session = opened(net, 0, session_id)
    session["views"].add(1)
    session["new"] = Counter()
    net.managers[0].commit(session)
    net.deliver()
    for manager in net.managers:
        replica = manager._core.replica
        record = replica.record(key_of(session_id), replica.get(key_of(session_id)))
        assert record.size == sum(len(name) + len(register[2]) for name, register in record.registers.items()) == session._size


@pytest.mark.parametrize("amount", [1.5, "1", True, None, 2**53 + 1])
def test_a_counter_counts_whole_numbers_of_a_sane_size(amount):
    with pytest.raises(ValueRefused, match=r"Counter\.add"):
        Counter().add(amount)


BETTER = [
    (1, 2.5), (-1.0, 0), ("a", "b"), (b"", b"\0"), (Decimal("1.5"), Decimal("1E+9")), (date(1, 1, 1), date(9999, 12, 31)),
    (datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999)), (timedelta(-1), timedelta(microseconds=1)),
    (datetime(2020, 1, 1, 12, tzinfo=timezone(timedelta(hours=5))), datetime(2020, 1, 1, 12, tzinfo=UTC)),
]  # fmt: skip


@pytest.mark.parametrize(("low", "high"), BETTER)
def test_offers_compare_by_their_own_order_and_come_back_equal(low, high):
    for cls, best in ((Max, high), (Min, low)):
        for values in ((low, high), (high, low)):
            kept = cls()
            for value in values:
                kept.offer(value)
            assert kept.value == best
            assert type(kept.value) is type(best)
            assert TYPES.decode(TYPES.encode(kept, "")) == kept


@pytest.mark.parametrize("value", [None, True, float("nan"), 2**63, "\udc80", [1], Decimal("NaN"), Decimal("Infinity"), timedelta.max])
def test_what_has_no_order_is_refused(value):
    with pytest.raises(ValueRefused, match=r"Min.offer"):
        Min().offer(value)


def test_kinds_that_do_not_compare_are_refused():
    kinds = [low for low, _ in BETTER]
    for number, standing in enumerate(kinds):
        for other, value in enumerate(kinds):
            if {number, other} - {0, 1} and number != other:
                with pytest.raises(ValueRefused, match="does not compare"):
                    Max(standing).offer(value)


def test_nothing_offered_is_none():
    assert TYPES.decode(TYPES.encode(Max(), "")).value is None
    assert repr(Max()) == "Max()"
    assert Max() != Min()


def test_a_value_that_cannot_be_decoded_is_put_aside_and_its_bytes_stay():
    net = Net(1)
    session_id = make(net, views=Counter(5))
    replica = net.managers[0]._core.replica
    record = replica.record(key_of(session_id), replica.get(key_of(session_id)))
    bad = record.registers["views"][2][:-1]
    record.registers["views"] = (*record.registers["views"][:2], bad)
    session = opened(net, 0, session_id)
    assert "views" not in session
    assert session.quarantined == {"views"}
    session["other"] = 1
    commit(net, 0, session)
    assert record.registers["views"][2] == bad


def test_an_element_of_a_class_that_another_member_knows_is_joined_unseen():
    class Colour:
        def __init__(self, name):
            self.name = name

    knowing = ValueTypes()
    knowing.register(Colour, "colour", lambda colour: colour.name, Colour)
    data = knowing.encode(MergingSet([Colour("red")]), "")
    assert [item.name for item in knowing.decode(data)] == ["red"]
    with pytest.raises(ValueDamaged, match="no class is registered"):
        TYPES.decode(data)


def test_what_another_added_that_cannot_be_decoded_here_shows_after_the_commit_only():
    class Colour:
        pass

    net = Net(2)
    net.managers[1].types.register(Colour, "colour", lambda colour: "red", lambda plain: Colour())
    session_id = make(net, tags=MergingSet())
    slow, other = opened(net, 0, session_id), opened(net, 1, session_id)
    other["tags"].add(Colour())
    commit(net, 1, other)
    net.deliver()
    slow["tags"].add("a")
    commit(net, 0, slow)
    assert "tags" not in slow
    assert slow.quarantined == {"tags"}
    net.deliver()
    assert len(opened(net, 1, session_id)["tags"]) == 2


def test_a_type_cannot_be_registered_again_and_all_are_public():
    for cls in MERGING_TYPES:
        assert getattr(caterwaul, cls.__name__) is cls
        with pytest.raises(caterwaul.LocalError, match="registered already"):
            ValueTypes().register(cls, "x", str, str)
        assert TYPES.encode(cls(), "")[: len(MERGING)] == MERGING
        assert not TYPES.is_immutable(cls())


# -- conflicts


def conflicting(net):
    session_id = make(net, a="old", views=Counter())
    one, other = opened(net, 0, session_id), opened(net, 1, session_id)
    one["a"], other["a"] = "one", "other"
    one["views"].add(1)
    other["views"].add(1)
    commit(net, 0, one)
    commit(net, 1, other)
    net.deliver()
    return session_id


def test_a_conflict_is_told_where_the_losing_write_was_made_and_on_replicas_if_asked():
    net = Net(3)
    told = [[], [], []]
    everywhere = []
    for number, manager in enumerate(net.managers):
        manager.listen(Conflict, told[number].append)
        manager.listen(Conflict, everywhere.append, replicas=True)
    session_id = conflicting(net)
    stands = shown(net, session_id, "a")
    lost = {"one": "other", "other": "one"}[stands]
    writer = {"one": 0, "other": 1}
    (event,) = told[writer[lost]]
    assert (event.key, event.name, event.value, event.lost) == (key_of(session_id), "a", stands, lost)
    assert (event.value_bytes, event.lost_bytes) == (TYPES.encode(stands, ""), TYPES.encode(lost, ""))
    assert (event.value_by, event.lost_by) == (net.members[writer[stands]].uid, net.members[writer[lost]].uid)
    assert told[writer[stands]] == told[2] == []
    assert everywhere == [event] * 3
    assert [manager.statistics()["conflicts"] for manager in net.managers] == [1, 1, 1]
    assert shown(net, session_id, "views") == 2


def test_a_conflict_with_a_removal_or_with_what_cannot_be_decoded_is_told_with_none():
    net = Net(2)
    told = []
    for manager in net.managers:
        manager.listen(Conflict, told.append)
    net.managers[1].types.register(Net, "net", lambda value: 1, lambda plain: Net(1))
    session_id = make(net, a="old", b="old")
    one, other = opened(net, 0, session_id), opened(net, 1, session_id)
    del one["a"]
    other["a"] = "new"
    one["b"] = "b"
    other["b"] = net
    commit(net, 0, one)
    commit(net, 1, other)
    net.deliver()
    assert sorted(event.name for event in told) == ["a", "b"]
    assert {event.value_bytes is None or event.lost_bytes is None for event in told} == {True, False}


def test_conflicts_of_a_partition_are_told_when_it_ends():
    """Nothing of what was written meanwhile travels as a commit: two whole records meet."""
    net = Net(2)
    told = []
    for manager in net.managers:
        manager.listen(Conflict, told.append)
    session_id = make(net, a="old", b="old", c="old", views=Counter())
    for number in (0, 1):
        net.show_view(number, net.view().without(net.members[1 - number].uid))
    net.part(0, 1)
    for number, value in enumerate(("one", "other")):
        session = opened(net, number, session_id)
        session["a"] = value
        session["b" if number else "c"] = value
        session["views"].add(1)
        commit(net, number, session)
        session["a"] = value * 2
        commit(net, number, session)
        net.managers[number].release(session)
    net.heal(0, 1)
    net.show_views()
    net.deliver()
    net.advance(1.0)
    stands = shown(net, session_id, "a")
    assert {(event.key, event.name, event.value) for event in told} == {(key_of(session_id), "a", stands)}
    assert {event.lost for event in told} == {"oneone", "otherother"} - {stands}
    assert (shown(net, session_id, "b"), shown(net, session_id, "c"), shown(net, session_id, "views")) == ("other", "one", 2)
    assert sum(manager.statistics()["conflicts"] for manager in net.managers) == len(told) in (1, 2)


def test_what_one_side_has_seen_of_the_other_is_no_conflict_between_their_records():
    net = Net(2)
    session_id = make(net, a="old", b="old")
    entry = net.managers[0]._core.replica.get(key_of(session_id))
    before = Record.unpack(net.managers[0]._core.replica.body_of(entry))
    session = opened(net, 1, session_id)
    session["a"] = "new"
    del session["b"]
    commit(net, 1, session)
    net.deliver()
    after = net.managers[0]._core.replica.record(key_of(session_id), entry)
    assert after.registers["a"] != before.registers["a"]
    assert clashes(before, after, key_of(session_id)) == clashes(after, before, key_of(session_id)) == clashes(after, after, key_of(session_id)) == []


def test_nobody_listening_costs_only_the_count():
    net = Net(2)
    conflicting(net)
    assert net.managers[0].statistics()["conflicts"] == 1
    assert net.managers[0]._core.replica.events == []
