"""What a member remembers of copies that it parted from: nothing that it has shown or written is taken back in silence."""

from __future__ import annotations

import pytest

from caterwaul.managers import departed
from caterwaul.managers.departed import Departed
from caterwaul.managers.entry import Entry, Outcome
from caterwaul.managers.heads import INVALIDATED, Head
from caterwaul.managers.messages import ANSWER, LEFT
from caterwaul.managers.partitioned import PartitionedManager
from caterwaul.managers.placement import Ranked, partition_of
from caterwaul.managers.record import Record
from caterwaul.managers.replica import Replica
from caterwaul.managers.session import Session, key_of
from caterwaul.managers.settings import ManagerSettings
from caterwaul.membership.codec import decode
from caterwaul.membership.effects import Send
from tests.doubles import Net

ME, A, B, C = (letter * 16 for letter in (b"m", b"a", b"b", b"c"))
KEY, OTHER = b"k" * 16, b"o" * 16
SETTINGS = ManagerSettings(type="partitioned", backups=1, idle_timeout_s=600, absolute_timeout_s=0)


def test_a_copy_that_lacks_a_commit_of_ours_is_behind_until_it_has_all() -> None:
    gone = Departed(ME)
    gone.parted(KEY, {A: 3, B: 2**53}, [A, C])
    assert KEY in gone.copies
    assert gone.lacks(KEY, {A: 3, B: 2**53 - 1, C: 9})
    assert gone.lacks(KEY, {B: 2**53})
    assert not gone.lacks(OTHER, {})
    assert not gone.lacks(KEY, {A: 4, B: 2**53})
    assert KEY not in gone.copies, "what is here only grows"
    assert not gone.lacks(KEY, {})


def test_those_who_confirmed_are_trusted_until_they_have_been_heard() -> None:
    gone = Departed(ME)
    gone.parted(KEY, {A: 1}, [A, B])
    gone.heard(KEY, C)
    gone.heard(OTHER, A)
    assert gone.trusted(KEY) == (A, B)
    gone.heard(KEY, A)
    assert gone.trusted(KEY) == (B,)
    gone.parted(KEY, {A: 2}, [A])
    assert gone.trusted(KEY) == (A,)
    gone.forget(KEY)
    assert gone.trusted(KEY) == ()


def test_who_names_others_is_replaced_by_them() -> None:
    gone = Departed(ME)
    gone.parted(KEY, {A: 1}, [A, B])
    gone.heard(KEY, A, [C, B])
    assert gone.trusted(KEY) == (B, C)


def test_an_older_copy_that_goes_takes_nothing_of_the_newer_along() -> None:
    gone = Departed(ME)
    gone.parted(KEY, {A: 3, ME: 7}, [A])
    gone.parted(KEY, {A: 1, ME: 5, B: 2}, [B])
    assert gone.trusted(KEY) == (A, B)
    assert gone.lacks(KEY, {A: 3, ME: 7})
    assert gone.lacks(KEY, {A: 3, ME: 6, B: 2})
    assert gone.author(KEY, {A: 1, ME: 5, B: 2}, 8) != ME
    assert not gone.lacks(KEY, {A: 3, ME: 7, B: 2})


def test_who_was_silent_is_asked_again_after_a_second() -> None:
    gone = Departed(ME)
    assert not gone.is_due(KEY, 0)
    gone.parted(KEY, {A: 1}, [A])
    assert gone.is_due(KEY, 5)
    gone.silent(KEY, 5)
    assert [gone.is_due(KEY, at) for at in (6, 1004, 1005)] == [False, False, True]


def test_what_is_remembered_is_bounded_by_number_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Departed(ME)
    monkeypatch.setattr(departed, "_KEPT_MAX", 2)
    for n in range(3):
        gone.parted(bytes([n]) * 16, {A: 1}, [])
    assert [bytes([n]) * 16 in gone.copies for n in range(3)] == [False, True, True]
    monkeypatch.setattr(departed, "_KEPT_MAX_BYTES", 100)
    gone.parted(KEY, {A: 1, B: 1, C: 1}, [])
    assert [key in gone.copies for key in (bytes([1]) * 16, bytes([2]) * 16, KEY)] == [False, True, True]
    gone.parted(OTHER, {A: 1, B: 1, C: 1}, [])
    assert OTHER in gone.copies
    assert KEY not in gone.copies


def test_who_gets_an_older_copy_back_writes_under_another_name() -> None:
    gone = Departed(ME)
    assert gone.author(KEY, {ME: 7}, 8) == ME
    gone.parted(KEY, {ME: 7, A: 3}, [])
    gone.forget(KEY)  # nobody could show it: our own commits are not to be counted twice all the same
    name = gone.author(KEY, {ME: 5, A: 3}, 8)
    assert name != ME
    assert gone.author(KEY, {ME: 5, A: 3, name: 8}, 9) == name
    gone.parted(KEY, {ME: 5, A: 3, name: 8}, [])
    assert gone.author(KEY, {ME: 5, A: 3, name: 8}, 9) == name
    assert gone.author(KEY, {ME: 7, A: 3}, 9) not in (ME, name)


class Parted:
    """Five members. The two that should hold a session have an older copy; the newer is with `keeper`, which holds it by a view of its own; `reader` had it once."""

    def __init__(self) -> None:
        self.net = net = Net(5, SETTINGS, kind=PartitionedManager)
        self.session_id = net.visit(0, a=1)
        self.key = key_of(self.session_id)
        self.holders = [number for number, m in enumerate(net.members) if m.uid in net.managers[0]._core.placement.holders(self.key, b"")]
        old = self._body(self.holders[0])
        net.visit(self.holders[0], self.session_id, a=2)
        new = self._body(self.holders[0])
        rest = [number for number in range(5) if number not in self.holders]
        without = net.view().without(net.members[self.holders[0]].uid)
        self.keeper = next(number for number in rest if net.members[number].uid in Ranked(without, b"", 2).holders(self.key, b""))
        self.reader = next(number for number in rest if number != self.keeper)
        for number in range(5):
            net.managers[number]._core.moving.handover.clear()
            self._put(number, old if number in self.holders else new if number == self.keeper else None)
        net.show_view(self.keeper, without)
        net.managers[self.reader]._core.replica.departed.parted(self.key, Record.unpack(new).applied, [net.members[self.keeper].uid])

    def _body(self, number: int) -> bytes:
        replica = self.net.managers[number]._core.replica
        body = replica.body_of(replica.get(self.key))  # type: ignore[arg-type]
        assert body is not None
        return body

    def _put(self, number: int, body: bytes | None) -> None:
        replica = self.net.managers[number]._core.replica
        entry = replica.partitions[partition_of(self.key)].pop(self.key, None)
        if body is not None:
            assert entry is not None or number == self.keeper
            head = self.net.managers[self.holders[0]]._core.replica.get(self.key)
            shape = entry or head
            assert shape is not None
            replica.partitions[partition_of(self.key)][self.key] = Entry(shape.head, body, shape.created_ms, shape.touches)


def test_an_older_copy_is_not_believed_before_those_who_confirmed_the_newer_were_asked() -> None:
    """Simulator, backup, seed 478: those who confirmed were lost but for one, and an older copy came from beyond a cut."""
    scene = Parted()
    session = scene.net.opened(scene.reader, scene.session_id)
    assert dict(session) == {"a": 2}
    assert not session.stale


def test_where_nobody_can_show_the_newer_the_older_is_served_and_marked_stale_once() -> None:
    scene = Parted()
    manager = scene.net.managers[scene.reader]
    scene.net.kill(scene.keeper)
    before = manager.statistics()["stale_reads"]
    session = scene.net.opened(scene.reader, scene.session_id)
    assert dict(session) == {"a": 1}
    assert session.stale
    assert manager.statistics()["stale_reads"] == before + 1
    assert not scene.net.opened(scene.reader, scene.session_id).stale


def test_while_who_has_the_newer_cannot_be_heard_each_request_is_marked() -> None:
    scene = Parted()
    others = [number for number in range(5) if number != scene.keeper]
    for number in others:
        scene.net.part(number, scene.keeper)
    for _ in range(3):
        session = scene.net.opened(scene.reader, scene.session_id)
        assert dict(session) == {"a": 1}
        assert session.stale
        scene.net.managers[scene.reader].release(session)
        scene.net.advance(3.0)  # the copy goes again, and is an older one
    for number in others:
        scene.net.heal(number, scene.keeper)
    scene.net.deliver()
    assert dict(scene.net.opened(scene.reader, scene.session_id)) == {"a": 2}


def test_one_that_is_frozen_is_waited_for_once_a_second_and_not_by_each_request() -> None:
    scene = Parted()
    net, manager = scene.net, scene.net.managers[scene.reader]
    manager._core.finding.young_until_ms = 0  # it has been here for long
    net.freeze(scene.keeper)
    took = []
    for _ in range(2):
        given: list[Session] = []
        manager.open_deferred(scene.session_id).addCallback(given.append)
        net.deliver()
        took.append(0)
        while not given:
            net.advance(0.1)
            took[-1] += 1
        assert given[0].stale
        assert dict(given[0]) == {"a": 1}
    assert 0 < took[0] <= 6
    assert took[1] == 0


def test_a_holder_that_lacks_what_it_once_had_says_that_others_may_have_more() -> None:
    scene = Parted()
    holder = scene.net.managers[scene.holders[0]]
    holder._core.replica.departed.parted(scene.key, {scene.net.members[0].uid: 2**40}, [scene.net.members[scene.keeper].uid])
    effects = holder._core.finding.asked(scene.net.members[scene.reader].uid, scene.key, 0)
    said = [decode(effect.message.payload) for effect in effects if isinstance(effect, Send)]
    assert [message[3] for message in said if message[1] == ANSWER] == [LEFT]


def test_parts_of_a_record_and_what_has_ended_are_not_remembered() -> None:
    replica = Replica(ME)
    replica.commit(KEY, {"a": b"1"}, 0, 0, ME)
    record = replica.record(KEY, replica.get(KEY))  # type: ignore[arg-type]
    assert record is not None
    record.partial = True
    replica.drop(KEY)
    assert KEY not in replica.departed.copies
    replica.commit(OTHER, {"a": b"1"}, 0, 0, ME)
    replica.drop(OTHER)
    assert OTHER in replica.departed.copies
    replica.merge_head(OTHER, Head(INVALIDATED, 2, A, A, ended_ms=1), Outcome())
    assert OTHER not in replica.departed.copies


def test_a_key_that_follows_another_remembers_what_was_in_its_copies() -> None:
    departed, record = Departed(ME), Record()
    counter, author = departed.use(KEY, record)
    record.write(counter, author, {"a": b"1"})
    departed.parted(KEY, record.applied, (OTHER,))
    new = b"n" * 16
    departed.follow(KEY, new)
    assert departed.lacks(new, {})
    assert departed.trusted(new) == (OTHER,)
    assert departed.author(new, {}, counter + 1) != ME  # what it wrote before is missing there


def test_a_key_that_follows_another_keeps_the_name_that_it_has_by_then() -> None:
    gone, new = Departed(ME), b"n" * 16
    gone.parted(KEY, {ME: 7}, [])
    old = gone.author(KEY, {}, 8)
    gone.follow(KEY, new)
    gone.parted(new, {ME: 7, old: 8}, [])
    name = gone.author(new, {ME: 7}, 9)
    assert name not in (ME, old)
    gone.follow(KEY, new)
    assert gone.author(new, {ME: 7, name: 9}, 10) == name, "under an older one it might count what others have heard"
