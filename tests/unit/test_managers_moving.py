"""Sessions on the move between members: who holds, who is told, and when a copy may go. Five members, in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cbor2 import dumps

from caterwaul.managers.backup import BackupManager
from caterwaul.managers.digests import digest
from caterwaul.managers.entry import Outcome
from caterwaul.managers.heads import EXPIRED, LIVE
from caterwaul.managers.merging import Version, parse
from caterwaul.managers.merging_types import Counter
from caterwaul.managers.messages import ANSWER, CHECK, CHECKED, OFFER, RECORD_MARK, RECORDS, TRUTH_MARK, UNSURE
from caterwaul.managers.messages import Session as Told
from caterwaul.managers.partitioned import PartitionedManager
from caterwaul.managers.placement import WHOLE, Ranked, partition_of
from caterwaul.managers.record import Record
from caterwaul.managers.replica import Replica
from caterwaul.managers.session import Session, key_of
from caterwaul.managers.settings import ManagerSettings
from caterwaul.membership.codec import decode
from caterwaul.membership.effects import Send
from caterwaul.membership.view import View
from tests.doubles import Net

BACKUP = ManagerSettings(type="backup", backups=1, idle_timeout_s=600, absolute_timeout_s=0)
PARTITIONED = ManagerSettings(type="partitioned", backups=1, idle_timeout_s=600, absolute_timeout_s=0)


@pytest.fixture
def backup() -> Net:
    return Net(5, BACKUP, kind=BackupManager)


@pytest.fixture
def partitioned() -> Net:
    return Net(5, PARTITIONED, kind=PartitionedManager)


def holding(net: Net, session_id: str) -> set[int]:
    """The members that have the record."""
    entries = [manager._core.replica.get(key_of(session_id)) for manager in net.managers]
    return {number for number, entry in enumerate(entries) if entry is not None and entry.body is not None and net.members[number].uid in net.alive}


def due(net: Net, session_id: str) -> set[int]:
    """The members that should have it."""
    key = key_of(session_id)
    alive = [manager._core for manager in net.managers if manager.me.uid in net.alive]
    entries = [entry for core in alive if (entry := core.replica.get(key)) is not None and entry.head is not None]
    named = max(entries, key=lambda entry: entry.head.version).primary
    placement = alive[0].placement
    return {number for number, m in enumerate(net.members) if m.uid in placement.holders(key, named)}


def keepers_of(net: Net, session_id: str) -> list[int]:
    """The members that keep its head, by the view of the first."""
    keepers = net.managers[0]._core.placement.keepers(partition_of(key_of(session_id)))
    return [number for number, m in enumerate(net.members) if m.uid in keepers]


def primary(net: Net, number: int, session_id: str) -> int:
    entry = net.managers[number]._core.replica.get(key_of(session_id))
    assert entry is not None
    return next(at for at, m in enumerate(net.members) if m.uid == entry.primary)


def heal(net: Net, number: int, other: int) -> None:
    """This member has not seen that one for a moment."""
    everybody = net.view()
    net.show_view(number, everybody.without(net.members[other].uid))
    net.show_view(number, everybody)


def lose(net: Net, number: int, clean: bool = False) -> None:
    (net.leave if clean else net.kill)(number)
    net.deliver()


def test_a_session_is_held_by_its_primary_and_one_backup_and_found_from_everywhere(backup: Net) -> None:
    ids = [backup.visit(0, n=n) for n in range(30)]
    for session_id in ids:
        assert holding(backup, session_id) == due(backup, session_id)
        assert len(holding(backup, session_id)) == 2
        assert 0 in holding(backup, session_id)
    for n, session_id in enumerate(ids):
        session = backup.opened(1 + n % 4, session_id)
        assert session["n"] == n


def test_who_serves_a_session_becomes_its_primary_and_the_copies_follow(backup: Net) -> None:
    session_id = backup.visit(0, a=1)
    backup.visit(3, session_id, b=2)
    assert primary(backup, 3, session_id) == 3
    backup.advance(3.0)
    assert holding(backup, session_id) == due(backup, session_id)
    assert dict(backup.opened(2, session_id)) == {"a": 1, "b": 2}


def test_a_copy_in_the_wrong_place_stays_until_all_who_should_have_it_confirmed(backup: Net) -> None:
    session_id = backup.visit(0, a=1)
    keepers = {number for number, m in enumerate(backup.members) if m.uid in backup.managers[0]._core.placement.keepers(partition_of(key_of(session_id)))}
    stranger = next(number for number in range(1, 5) if number not in keepers)
    for keeper in keepers - {0}:
        backup.hold(keeper, 0)  # its confirmations do not come
    backup.visit(stranger, session_id, b=2)
    backup.advance(3.0)
    if 0 not in keepers:
        assert 0 in holding(backup, session_id)
    backup.let_go()
    backup.advance(3.0)
    assert holding(backup, session_id) == due(backup, session_id)


def test_what_waits_for_one_who_is_just_being_asked_is_asked_for_as_soon_as_that_answers(backup: Net) -> None:
    """Simulator, backup, seed 1542: it was asked for no more as long as there was something else to part from each second."""
    kept = [(session_id, keepers_of(backup, session_id)) for session_id in (backup.visit(0, a=n) for n in range(200))]
    (one, keepers), *rest = [(session_id, its) for session_id, its in kept if 0 not in its]
    other, third = [session_id for session_id, its in rest if its == keepers][:2]
    stranger, another = [number for number in range(1, 5) if number not in keepers]
    backup.visit(stranger, one, b=1)
    backup.visit(another, third, b=1)
    for number in (*keepers, another):
        backup.hold(number, 0)
    backup.advance(0.1)  # all are asked, and those do not answer
    backup.visit(stranger, other, b=1)
    backup.held.remove((backup.members[another].uid, backup.members[0].uid))
    backup.advance(0.1)
    assert all(0 in holding(backup, session_id) for session_id in (one, other, third))
    for keeper in keepers:  # whatever else they have sent would have 0 look at it again
        flight = backup.flights[backup.members[keeper].uid, backup.members[0].uid]
        answers = [item for item in flight if decode(item[0].payload)[1] == CHECKED]
        flight.clear()
        flight.extend(answers)
    backup.let_go()
    backup.advance(0.3)
    assert not any(0 in holding(backup, session_id) for session_id in (one, other, third))


def test_one_who_cannot_confirm_is_asked_once_a_second_though_another_answers_nothing(backup: Net) -> None:
    """Each of its answers is a reason to look again, and what waits for the silent one is no reason to ask it again."""
    kept = [(session_id, keepers_of(backup, session_id)) for session_id in (backup.visit(0, a=n) for n in range(200))]
    (_, keepers), *_ = [(session_id, its) for session_id, its in kept if 0 not in its]
    ids = [session_id for session_id, its in kept if its == keepers]
    stranger = next(number for number in range(1, 5) if number not in keepers)
    backup.advance(2.0)
    for number in (*keepers, stranger):
        backup.hold(0, number)
    for session_id in ids:
        backup.visit(stranger, session_id, b=1)
    doubting = backup.managers[keepers[0]]._core.moving
    for session_id in ids:
        doubting.handover.recovering[key_of(session_id)] = None
        doubting.near.hold(key_of(session_id))
    backup.let_go()
    for silent in (stranger, keepers[1]):
        backup.freeze(silent)
    sent = backup.channels[backup.members[0].uid].sent
    sent.clear()
    backup.advance(3.0, step_s=0.005)
    assert 0 < sum(message[1] == CHECK for _, message in sent) < 20


def test_the_best_surviving_holder_inherits_at_once_and_the_copies_are_restored(backup: Net) -> None:
    ids = [backup.visit(0, n=n) for n in range(40)]
    lose(backup, 0)
    backup.advance(4.0)
    for n, session_id in enumerate(ids):
        assert holding(backup, session_id) == due(backup, session_id)
        assert len(holding(backup, session_id)) == 2
        at = min(holding(backup, session_id))
        assert primary(backup, at, session_id) in holding(backup, session_id)
        assert backup.opened(at, session_id)["n"] == n


def test_two_losses_one_after_the_other_lose_nothing(backup: Net) -> None:
    ids = [backup.visit(n % 5, n=n) for n in range(50)]
    for number in (0, 1):
        lose(backup, number)
        backup.advance(4.0)
    assert [backup.opened(2 + n % 3, session_id)["n"] for n, session_id in enumerate(ids)] == list(range(50))


def test_a_farewell_moves_keepers_and_copies_too(backup: Net) -> None:
    ids = [backup.visit(1, n=n) for n in range(40)]
    lose(backup, 4, clean=True)
    backup.advance(4.0)
    for session_id in ids:
        assert holding(backup, session_id) == due(backup, session_id)


def test_a_keeper_that_comes_to_know_of_a_take_over_tells_those_who_lost(backup: Net) -> None:
    """Two members serve one session while they do not hear each other: in the end all know one primary."""
    session_id = backup.visit(0, a=1)
    backup.part(1, 2)
    backup.visit(1, session_id, b=1)
    backup.visit(2, session_id, c=1)
    backup.heal(1, 2)
    backup.advance(5.0)
    assert len({primary(backup, number, session_id) for number in holding(backup, session_id)}) == 1
    assert holding(backup, session_id) == due(backup, session_id)
    assert dict(backup.opened(4, session_id)) == {"a": 1, "b": 1, "c": 1}


def test_readers_that_hold_nothing_read_from_memory_until_the_session_changes(partitioned: Net) -> None:
    session_id = partitioned.visit(0, a=1)
    readers = [number for number in range(5) if number not in due(partitioned, session_id)]
    reader, writer = readers[0], readers[1]
    assert partitioned.opened(reader, session_id)["a"] == 1
    local = partitioned.managers[reader].open_local(session_id)
    assert local is not None
    assert local["a"] == 1
    partitioned.visit(writer, session_id, a=2)
    assert partitioned.managers[reader].open_local(session_id) is None
    assert partitioned.opened(reader, session_id)["a"] == 2


def test_an_ended_session_is_gone_for_readers(partitioned: Net) -> None:
    session_id = partitioned.visit(0, a=1)
    readers = [number for number in range(5) if number not in due(partitioned, session_id)]
    for number in readers:
        partitioned.opened(number, session_id)
    session = partitioned.opened(readers[0], session_id)
    session.invalidate()
    partitioned.managers[readers[0]].commit(session)
    partitioned.deliver()
    assert all(partitioned.opened(number, session_id).new for number in range(5))


def test_near_copies_over_the_bound_go(partitioned: Net) -> None:
    net = Net(5, ManagerSettings(type="partitioned", near_cache_max=5, idle_timeout_s=600, absolute_timeout_s=0), kind=PartitionedManager)
    ids = [net.visit(0, n=n) for n in range(40)]
    for session_id in ids:
        net.managers[1].release(net.opened(1, session_id))
    net.advance(4.0)
    core = net.managers[1]._core
    assert len(core.moving.near) <= 5
    held = [key for key, entry in core.replica.entries() if entry.body is not None and core.placement.depth(core.me, key, entry.primary) != WHOLE]
    assert len(held) <= 5


def test_what_somebody_parts_from_is_not_taken_for_the_truth(backup: Net) -> None:
    """A member that dropped its copy is offered an old one by a former holder: it asks the holders before it serves that."""
    session_id = backup.visit(0, a=1)
    keepers = keepers_of(backup, session_id)
    one, two = [number for number in range(5) if number not in keepers][:2]
    backup.advance(4.0)  # the view is an old one
    backup.visit(one, session_id, b=1)
    for number in range(5):
        if number != one:
            backup.hold(number, one)
            backup.hold(one, number)
    backup.visit(two, session_id, c=1)
    backup.let_go()
    backup.advance(5.0)
    assert holding(backup, session_id) == due(backup, session_id)
    assert dict(backup.opened(one, session_id)) == {"a": 1, "b": 1, "c": 1}


def test_who_was_the_primary_does_not_believe_an_old_copy_that_still_says_so(backup: Net) -> None:
    session_id = backup.visit(0, a=1)
    key = key_of(session_id)
    keepers = keepers_of(backup, session_id)
    one, two = [number for number in range(5) if number not in keepers][:2]
    backup.visit(one, session_id, b=1)
    giver = backup.managers[keepers[0]]
    (old,) = giver._core.entropy.messages([key])
    entry = giver._core.replica.get(key)
    assert entry is not None
    mark = TRUTH_MARK + digest(entry.head, giver._core.replica.body_of(entry))
    backup.visit(two, session_id, c=1)
    backup.advance(5.0)
    assert one not in holding(backup, session_id)
    core = backup.managers[one]._core
    core.receive(backup.channels[core.me].now_ms(), giver.me.uid, decode(giver._core.say.check([(key, mark)]).payload), 0)
    core.receive(backup.channels[core.me].now_ms(), giver.me.uid, decode(old.payload), 0)
    assert dict(backup.opened(one, session_id)) == {"a": 1, "b": 1, "c": 1}
    assert primary(backup, 0, session_id) == primary(backup, one, session_id)


def test_a_head_whose_session_went_with_its_holders_is_unknown_for_a_while_and_then_gone(backup: Net) -> None:
    """Simulator, backup, seed 768: it was asked for each second, for ever."""
    session_id = backup.visit(0, a=1)
    key = key_of(session_id)
    keepers = keepers_of(backup, session_id)
    one = next(number for number in range(5) if number not in keepers)
    backup.visit(one, session_id, b=1)
    backup.advance(4.0)
    assert len(holding(backup, session_id)) == 2
    (left,) = set(keepers) - holding(backup, session_id)
    for number in holding(backup, session_id):
        backup.kill(number)
    backup.advance(5.0)
    core = backup.managers[left]._core
    assert core.replica.get(key) is not None
    session: list[Session] = []
    backup.managers[left].open_deferred(session_id).addCallback(session.append)
    backup.advance(BACKUP.lookup_timeout_s + 0.1)
    assert session[0].unknown
    backup.advance(BACKUP.unknown_for_s)
    entry = core.replica.get(key)
    assert entry is not None
    assert entry.head is not None
    assert entry.head.state == EXPIRED
    assert backup.opened(left, session_id).new


def test_the_head_of_a_lost_session_is_also_forgotten_by_two_who_have_nothing_else(backup: Net) -> None:
    session_id = backup.visit(0, a=1)
    key = key_of(session_id)
    keepers = keepers_of(backup, session_id)
    one = next(number for number in range(5) if number not in keepers)
    backup.visit(one, session_id, b=1)
    backup.advance(4.0)
    entry = backup.managers[one]._core.replica.get(key)
    assert entry is not None
    assert entry.head is not None
    for number in range(5):  # as if a keeper that had only this had handed it on to new ones
        backup.managers[number]._core.replica.merge_head(key, entry.head, Outcome())
    for number in holding(backup, session_id):
        backup.kill(number)
    backup.advance(5.0 + BACKUP.unknown_for_s)
    for manager in backup.managers:
        if manager.me.uid in backup.alive:
            left = manager._core.replica.get(key)
            assert left is None or (left.head is not None and left.head.state == EXPIRED)


def test_who_has_only_the_head_of_a_lost_session_takes_its_end_whatever_uses_it_has_heard_of(backup: Net) -> None:
    """Simulator, scene rehearsal, backup, seed 14: two who had nothing else told each other for ever, and each time more often, that it lives and that it is over."""
    session_id = backup.visit(0, a=1)
    key = key_of(session_id)
    held = backup.managers[0]._core.replica.get(key)
    assert held is not None
    lost = holding(backup, session_id)
    one, two = [number for number in range(5) if number not in lost][:2]
    for number, touches in ((one, held.touches), (two, ())):
        backup.managers[number]._core.replica.merge_record(key, held.head, held.created_ms, touches, None, None, Outcome())
    for number in lost:
        backup.kill(number)
    core = backup.managers[two]._core
    head = core.replica.end(key, EXPIRED, backup.channels[core.me].now_ms())
    assert head is not None
    sent = backup.channels[backup.members[one].uid].sent
    sent.clear()
    backup.managers[one].received(backup.members[two], decode(core.say.heads([(key, head)]).payload), 0)
    entry = backup.managers[one]._core.replica.get(key)
    assert entry is not None
    assert entry.head is not None
    assert (entry.head.state, sent) == (EXPIRED, [])


def test_the_head_of_a_lost_session_without_backups_is_forgotten() -> None:
    net = Net(3, replace(BACKUP, backups=0), kind=BackupManager)
    ids = [net.visit(0, n=n) for n in range(20)]
    net.advance(4.0)
    net.kill(0)
    net.advance(5.0 + BACKUP.unknown_for_s)
    assert all(net.opened(1, session_id).new for session_id in ids)
    assert all(entry.head is not None and entry.head.state == EXPIRED for _, entry in net.managers[1]._core.replica.entries())


def test_the_head_of_a_lost_session_is_forgotten_also_while_who_created_it_is_there() -> None:
    """Simulator, scene rehearsal, partitioned, seeds 4 and 14: its users heard "unknown" for as long as that member lived, or for ever where all were asked too early."""
    net = Net(4, replace(PARTITIONED, backups=0), kind=PartitionedManager)
    ids = [net.visit(0, n=n) for n in range(40)]
    net.advance(4.0)
    lost = [session_id for session_id in ids if holding(net, session_id) == {1}]
    net.kill(1)
    net.advance(5.0 + PARTITIONED.unknown_for_s)
    assert lost
    assert all(net.opened(number, session_id).new for session_id in lost for number in (0, 2, 3))
    heads = [entry.head for number in (0, 2, 3) for key, entry in net.managers[number]._core.replica.entries() if key in map(key_of, lost)]
    assert all(head is not None and head.state == EXPIRED for head in heads)
    assert {n for n, session_id in enumerate(ids) if net.opened(2, session_id).new} == {ids.index(session_id) for session_id in lost}


def test_counters_are_of_the_version_of_their_commit_also_where_a_copy_was_parted_from(backup: Net) -> None:
    """Simulator, backup, seed 501: what a commit wrote into them was of another version, so copies differed until they were compared."""
    session_id = backup.visit(0, n=1)
    replica = backup.managers[0]._core.replica
    replica.commit(b"k" * 16, {"n": b"1"}, 0, 0, b"")
    for _ in range(5):
        replica.commit(b"k" * 16, {"n": b"1"}, 0, 0, b"")
    replica.drop(b"k" * 16)
    backup.visit(0, session_id, views=Counter(1))
    assert version_and_content(replica, session_id, "views")[0] == version_and_content(replica, session_id, "views")[1]
    session = backup.opened(0, session_id)
    session["views"] += 1
    session.cycle_id()
    backup.managers[0].commit(session)
    assert version_and_content(replica, session.id, "views")[0] == version_and_content(replica, session.id, "views")[1]
    session["views"] += 1
    backup.managers[0].commit(session)
    backup.deliver()
    assert int(backup.opened(1, session.id)["views"]) == 3


def version_and_content(replica: Replica, session_id: str, name: str) -> tuple[Version, Version]:
    """The version of a merging value's register, and the one of its last change by what is in it."""
    entry = replica.get(key_of(session_id))
    assert entry is not None
    record = replica.record(key_of(session_id), entry)
    assert record is not None
    counter, origin, value = record.registers[name]
    state = parse(value)
    assert state is not None
    return (counter, origin), max(birth.changed for birth in state.births.values())


def test_after_a_partition_a_member_asks_those_that_lead_it_to_compare(backup: Net) -> None:
    """Simulator, backup, seed 922: an end had not come to one that saw no partition, and that the others would have asked half a minute later."""
    everybody = backup.view()
    backup.show_view(4, View.of(2, backup.members[1:]))
    backup.show_view(4, everybody)
    backup.deliver()
    backup.channels[backup.members[4].uid].sent.clear()
    backup.advance(3.0)
    offers = {to for to, message in backup.channels[backup.members[4].uid].sent if message[1] == OFFER}
    assert offers == {m.uid for m in backup.members[:4]}


def test_what_a_backup_learns_from_somebody_else_its_primary_gets_too_before_that_is_confirmed(backup: Net) -> None:
    """As when a partition heals, and who parts from a copy sees the backup, but not yet the primary."""
    session_id = backup.visit(0, a=1)
    key = key_of(session_id)
    keepers = keepers_of(backup, session_id)
    one, two = [number for number in range(5) if number not in keepers][:2]
    backup.visit(one, session_id, b=1)
    (keeper,) = holding(backup, session_id) - {one}
    core, giver = backup.managers[keeper]._core, backup.members[two].uid
    entry = core.replica.get(key)
    assert entry is not None
    body = core.replica.body_of(entry)
    assert body is not None
    record = Record.unpack(body)
    record.write(record.counter + 1, giver, {"c": dumps(1)})
    mark = RECORD_MARK + digest(entry.head, record.pack())
    now_ms = backup.channels[core.me].now_ms()
    core.receive(now_ms, giver, decode(core.say.check([(key, mark)]).payload), 0)
    effects = core.receive(now_ms, giver, decode(core.say.records([Told(key, entry.head, entry.created_ms, entry.touches, record.pack())]).payload), 0)
    sends = [(effect.to, decode(effect.message.payload)[1]) for effect in effects if isinstance(effect, Send)]
    assert sends == [((backup.members[one].uid,), RECORDS)]
    effects = core.receive(now_ms, giver, decode(core.say.check([(key, mark)]).payload), 0)
    sends = [(effect.to, decode(effect.message.payload)[1:]) for effect in effects if isinstance(effect, Send)]
    assert sends == [((giver,), [CHECKED, key + mark])]


def test_nobody_waits_for_a_holder_whose_link_is_down(backup: Net) -> None:
    session_id = backup.visit(0, a=1)
    keepers = keepers_of(backup, session_id)
    primary, other, another = [number for number in range(5) if number not in keepers]
    backup.visit(primary, session_id, b=1)
    backup.part(primary, other)
    heal(backup, other, another)
    backup.deliver()
    assert dict(backup.opened(other, session_id)) == {"a": 1, "b": 1}


def test_an_answer_that_comes_too_late_while_a_partition_heals_is_not_weighed_and_not_trusted(partitioned: Net) -> None:
    """Simulator, partitioned, seed 927."""
    session_id = partitioned.visit(0, a=1)
    one, two = sorted(due(partitioned, session_id))
    other = next(number for number in range(1, 5) if number not in (one, two))
    partitioned.hold(one, other)
    partitioned.hold(two, other)
    heal(partitioned, other, next(number for number in range(5) if number not in (one, two, other)))
    session: list[Session] = []
    partitioned.managers[other].open_deferred(session_id).addCallback(session.append)
    partitioned.advance(PARTITIONED.lookup_timeout_s + 0.1)
    assert session[0].unknown
    partitioned.let_go()
    partitioned.deliver()
    assert not partitioned.managers[other]._core.moving.near.is_fresh(key_of(session_id))
    assert dict(partitioned.opened(other, session_id)) == {"a": 1}


def test_who_stood_still_gives_what_it_has_and_does_not_vouch_for_it(partitioned: Net) -> None:
    session_id = partitioned.visit(0, a=1)
    one, two = sorted(due(partitioned, session_id))
    other = next(number for number in range(1, 5) if number not in (one, two))
    core = partitioned.managers[one]._core
    core._slept = True
    sent = partitioned.channels[core.me].sent
    sent.clear()
    partitioned.managers[one].received(partitioned.members[other], decode(core.say.lookup(key_of(session_id)).payload), 0)
    assert [message[1] for _, message in sent] == [RECORDS, ANSWER]
    assert sent[-1][1][3] == UNSURE


def test_who_ended_a_session_that_was_in_use_is_told_that_it_lives_also_if_it_should_not_hold_it(backup: Net) -> None:
    """Simulator, partitioned, seed 681: a former holder went on refusing it."""
    session_id = backup.visit(0, a=1)
    key = key_of(session_id)
    backup.advance(4.0)
    holder, *_ = holding(backup, session_id)
    other = next(number for number in range(5) if number not in holding(backup, session_id))
    entry = backup.managers[holder]._core.replica.get(key)
    assert entry is not None
    body = backup.managers[holder]._core.replica.body_of(entry)
    assert body is not None
    replica = backup.managers[other]._core.replica
    replica.merge_record(key, entry.head, entry.created_ms, entry.touches, body, Record.unpack(body), Outcome())
    backup.visit(0, session_id, b=1)
    head = replica.end(key, EXPIRED, backup.channels[backup.members[other].uid].now_ms())
    assert head is not None
    backup.managers[holder].received(backup.members[other], decode(backup.managers[other]._core.say.heads([(key, head)]).payload), 0)
    backup.advance(4.0)
    assert dict(backup.opened(other, session_id)) == {"a": 1, "b": 1}


def test_what_a_new_backup_is_given_its_primary_gets_too_and_only_then_is_that_confirmed(backup: Net) -> None:
    """The same, where the backup has just become one and has nothing yet."""
    session_id = backup.visit(0, a=1)
    key = key_of(session_id)
    keepers = keepers_of(backup, session_id)
    one, two = [number for number in range(5) if number not in keepers][:2]
    backup.visit(one, session_id, b=1)
    (keeper,) = holding(backup, session_id) - {one}
    manager, giver = backup.managers[keeper], backup.members[two].uid
    core = manager._core
    entry = core.replica.get(key)
    assert entry is not None
    record = core.replica.record(key, entry)
    assert record is not None
    record.write(record.counter + 1, giver, {"c": dumps(1)})
    given = Told(key, entry.head, entry.created_ms, entry.touches, record.pack())
    core.replica.drop(key)
    mark = RECORD_MARK + digest(entry.head, record.pack())
    sent = backup.channels[core.me].sent
    for message in (core.say.check([(key, mark)]), core.say.records([given])):
        manager.received(backup.members[two], decode(message.payload), 0)
    assert [message for _, message in sent if message[1] == CHECKED and message[2]] == []
    backup.advance(1.0)
    assert dict(backup.opened(one, session_id)) == {"a": 1, "b": 1, "c": 1}
    manager.received(backup.members[two], decode(core.say.check([(key, mark)]).payload), 0)
    assert [message[2] for to, message in sent if message[1] == CHECKED and to == giver][-1] == key + mark


def test_what_comes_late_to_one_who_held_it_once_is_shown_to_its_primary_and_goes_again() -> None:
    """Simulator, backup, seed 1531: a member parted from a copy that had moved on, and gave it to one who had parted from it already. Nobody knew of that."""
    net = Net(5, replace(BACKUP, backups=2), kind=BackupManager)
    session_id = net.visit(0, a=1)
    key = key_of(session_id)
    keeper, other = keepers_of(net, session_id)
    net.visit(keeper, session_id, b=1)
    net.advance(4.0)
    (third,) = holding(net, session_id) - {keeper, other}
    core = net.managers[third]._core
    entry = core.replica.get(key)
    assert entry is not None
    record = core.replica.record(key, entry)
    assert record is not None
    late = core.say.records([Told(key, entry.head, entry.created_ms, entry.touches, record.pack())])
    stranger, giver = [number for number in range(5) if number not in (keeper, other, third)]
    net.visit(stranger, session_id, c=1)
    net.advance(4.0)
    assert third not in holding(net, session_id)
    net.managers[third].received(net.members[giver], decode(late.payload), 0)
    net.advance(2.0)
    assert holding(net, session_id) == due(net, session_id) == {stranger, keeper, other}


def test_who_waits_for_a_confirmation_that_will_not_come_is_told_where_the_session_is() -> None:
    """Simulator, backup, seed 1739: two had confirmed before it moved on, and the third should not hold it any more, so it said nothing, once a second."""
    net = Net(5, replace(BACKUP, backups=2), kind=BackupManager)
    session_id = net.visit(0, a=1)
    key = key_of(session_id)
    keepers = keepers_of(net, session_id)
    net.visit(keepers[0], session_id, b=1)
    net.advance(4.0)
    (third,) = holding(net, session_id) - set(keepers)
    core = net.managers[third]._core
    entry = core.replica.get(key)
    assert entry is not None
    head, body = entry.head, core.replica.body_of(entry)
    assert body is not None
    stranger, late = [number for number in range(5) if number not in (*keepers, third)]
    net.visit(stranger, session_id, c=1)
    net.advance(4.0)
    core = net.managers[late]._core
    core.replica.merge_record(key, head, entry.created_ms, entry.touches, body, Record.unpack(body), Outcome())
    core.moving.merged([key], net.members[third].uid, net.channels[core.me].now_ms())
    core.moving.handover.parting.leaving[key] = {net.members[keeper].uid: RECORD_MARK + digest(head, body) for keeper in keepers}
    net.advance(2.0)
    assert holding(net, session_id) == due(net, session_id) == {stranger, *keepers}


def test_just_after_a_change_of_view_a_backup_is_not_believed_before_the_primary(backup: Net) -> None:
    session_id = backup.visit(0, a=1)
    keepers = keepers_of(backup, session_id)
    primary, other, another = [number for number in range(5) if number not in keepers]
    backup.visit(primary, session_id, b=1)
    for keeper in keepers:
        backup.hold(primary, keeper)
    backup.visit(primary, session_id, c=1)
    backup.hold(primary, other)
    heal(backup, other, another)
    session: list[Session] = []
    backup.managers[other].open_deferred(session_id).addCallback(session.append)
    backup.deliver()
    assert not session  # a keeper has answered, without c
    backup.let_go()
    backup.deliver()
    assert dict(session[0]) == {"a": 1, "b": 1, "c": 1}


def test_just_after_a_change_of_view_a_backup_will_do_when_the_primary_is_silent(backup: Net) -> None:
    session_id = backup.visit(0, a=1)
    keepers = keepers_of(backup, session_id)
    primary, other, another = [number for number in range(5) if number not in keepers]
    backup.visit(primary, session_id, b=1)
    backup.hold(primary, other)
    heal(backup, other, another)
    session: list[Session] = []
    backup.managers[other].open_deferred(session_id).addCallback(session.append)
    backup.advance(BACKUP.lookup_timeout_s + 0.1)
    assert dict(session[0]) == {"a": 1, "b": 1}


def test_tombstones_are_with_all_who_should_know_them(backup: Net) -> None:
    session_id = backup.visit(0, a=1)
    session = backup.opened(3, session_id)
    session.invalidate()
    backup.managers[3].commit(session)
    backup.deliver()
    lose(backup, 3, clean=True)
    backup.advance(4.0)
    key = key_of(session_id)
    for number in range(3):
        placement = backup.managers[number]._core.placement
        entry = backup.managers[number]._core.replica.get(key)
        if backup.members[number].uid in placement.keepers(partition_of(key)):
            assert entry is not None
            assert entry.head is not None
            assert entry.head.state != LIVE
    assert backup.opened(1, session_id).new


def test_a_member_of_no_weight_holds_nothing_for_good_and_serves_all(partitioned: Net) -> None:
    net = Net(5, PARTITIONED, kind=PartitionedManager, weights=(1, 1, 1, 1, 0))
    ids = [net.visit(4, n=n) for n in range(20)]
    assert all(4 not in due(net, session_id) for session_id in ids)
    assert [net.opened(4, session_id)["n"] for session_id in ids] == list(range(20))
    lose(net, 0)
    net.advance(4.0)
    assert [net.opened(4, session_id)["n"] for session_id in ids] == list(range(20))


def test_a_version_is_never_used_twice_though_an_older_copy_comes_back(backup: Net) -> None:
    """Simulator, backup, seed 205: a member wrote, parted from its copy, was given an older one, and wrote again under the version of before."""
    member = backup.managers[0]._core.replica
    key, author = b"k" * 16, b"a" * 16
    older = [member.commit(key, {"n": b"%d" % n}, 0, 0, author)[1] for n in range(3)]
    body = member.body_of(member.get(key))  # type: ignore[arg-type]
    newer = [member.commit(key, {"n": b"x"}, 0, 0, author)[1] for _ in range(4)]
    assert body is not None
    for part_from in (member.drop, member.strip):
        part_from(key)
        member.merge_record(key, None, 0, (), body, Record.unpack(body), Outcome())
        name, counter, previous, _, created = member.commit(key, {"n": b"y"}, 0, 0, author)
        assert counter not in (*older, *newer)
        assert not created
        assert (name == author, previous) == (False, 0), "it has commits of its own that this copy lacks: there it is somebody else"
        newer.append(counter)
    member.drop(key)
    assert member.commit(key, {"n": b"z"}, 0, 0, author)[1] not in (*older, *newer)


def test_who_gets_back_what_it_parted_from_goes_on_under_its_own_name(backup: Net) -> None:
    member = backup.managers[0]._core.replica
    key = b"k" * 16
    for part_from in (member.drop, member.strip):
        last = member.commit(key, {"n": b"1"}, 0, 0, b"a" * 16)[1]
        body = member.body_of(member.get(key))  # type: ignore[arg-type]
        assert body is not None
        part_from(key)
        member.merge_record(key, None, 0, (), body, Record.unpack(body), Outcome())
        assert member.commit(key, {"n": b"2"}, 0, 0, b"a" * 16)[::2][:2] == (member.me, last)


def test_what_is_counted_on_an_older_copy_counts_beside_what_was_counted_before(backup: Net) -> None:
    """Simulator, scene maps, partitioned, seed 4: a member had counted, parted from its copy, got an older one on its side of a partition, and counted on."""
    session_id = backup.visit(0, n=Counter(1))
    key = key_of(session_id)
    replica = backup.managers[0]._core.replica
    old = replica.body_of(replica.get(key))  # type: ignore[arg-type]
    assert old is not None
    for _ in range(3):
        session = backup.opened(0, session_id)
        session["n"].add(1)
        backup.managers[0].commit(session)
        backup.managers[0].release(session)
    new = replica.body_of(replica.get(key))  # type: ignore[arg-type]
    head = replica.get(key).head  # type: ignore[union-attr]
    assert new is not None
    replica.drop(key)
    replica.departed.forget(key)  # as if all who are left had been asked for it in vain
    replica.merge_record(key, head, 0, (), old, Record.unpack(old), Outcome())
    session = backup.opened(0, session_id)
    assert session["n"] == 1
    session["n"].add(1)
    backup.managers[0].commit(session)
    backup.managers[0].release(session)
    backup.deliver()
    replica.merge_record(key, head, 0, (), new, Record.unpack(new), Outcome())
    for number in holding(backup, session_id):
        assert backup.opened(number, session_id)["n"] == 5


def test_what_one_who_has_to_part_wrote_comes_to_all_holders_though_another_gives_it_the_session_meanwhile(partitioned: Net) -> None:
    """It held the session by its view and wrote; by the next view it holds nothing, and fetches from one who was not told (simulator, partitioned, seed 88)."""
    everybody = partitioned.view()
    numbers = {m.uid: number for number, m in enumerate(partitioned.members)}
    told, untold, session_id = -1, -1, ""
    while told != 0:
        session_id = partitioned.visit(0, a=1)
        told, untold = (numbers[uid] for uid in Ranked(everybody, b"", 2).holders(key_of(session_id), b""))
    without = everybody.without(partitioned.members[untold].uid)
    by_rank = Ranked(without, b"", 2).holders(key_of(session_id), b"")
    writer = next(numbers[uid] for uid in by_rank if numbers[uid] != told)
    partitioned.show_view(writer, without)
    partitioned.show_view(untold, everybody.without(partitioned.members[writer].uid))
    partitioned.visit(writer, session_id, a=2)
    partitioned.show_view(writer, everybody)
    partitioned.show_view(untold, everybody)
    partitioned.managers[writer]._core.moving.handover._healing_until_ms = 0  # as if it had never met the other before
    assert partitioned.opened(writer, session_id)["a"] == 2
    assert not partitioned.managers[writer]._core.moving.near.is_fresh(key_of(session_id))  # it goes on parting
    partitioned.advance(3.0)
    assert [dict(partitioned.opened(number, session_id)) for number in (told, untold)] == [{"a": 2}] * 2


def test_commits_whose_session_went_with_its_holders_are_unknown_for_a_while_and_then_what_is_left_of_it(backup: Net) -> None:
    """Simulator, backup, seed 88: nobody looked at them any more, for ever."""
    session_id = backup.visit(0, a=1)
    key = key_of(session_id)
    (left,) = holding(backup, session_id) - {0}
    replica = backup.managers[left]._core.replica
    entry = replica.get(key)
    assert entry is not None
    record = replica.record(key, entry)
    assert record is not None
    record.partial, entry.body = True, record  # as if only a commit had come
    backup.kill(0)
    backup.advance(5.0)
    found: list[Session] = []
    backup.managers[left].open_deferred(session_id).addCallback(found.append)
    backup.advance(BACKUP.lookup_timeout_s + 0.1)
    assert found[0].unknown
    backup.advance(BACKUP.unknown_for_s)
    assert dict(backup.opened(left, session_id)) == {"a": 1}
    assert holding(backup, session_id) == due(backup, session_id)
    assert len(holding(backup, session_id)) == 2


def test_reading_through_a_copy_that_goes_at_once_keeps_a_session_alive() -> None:
    net = Net(4, ManagerSettings(idle_timeout_s=20.0, near_cache_max=0, unknown_for_s=0.0), kind=PartitionedManager)
    session_id = net.visit(0, name="ada")
    net.advance(1.0)
    readers = [number for number in range(4) if net.managers[number]._core.replica.get(key_of(session_id)) is None]
    for turn in range(30):
        session = net.opened(readers[turn % len(readers)], session_id)
        assert session["name"] == "ada"
        net.managers[readers[turn % len(readers)]].commit(session)
        net.managers[readers[turn % len(readers)]].release(session)
        net.advance(3.0)
