"""Reconciling by sums: what travels, what does not, who does without, and what becomes of tombstones near their end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from caterwaul.managers import digests as digests_module
from caterwaul.managers.digests import Digests
from caterwaul.managers.entry import Entry, Outcome
from caterwaul.managers.heads import INVALIDATED, Head, live_head
from caterwaul.managers.messages import COVERED, DIFFER, INVENTORY, OFFER, RECORDS, SUMS, SYNCED, Speaker, read_covered, read_differ, read_inventory, read_sums
from caterwaul.managers.placement import PARTITIONS, WHOLE, partition_of
from caterwaul.managers.replica import Replica
from caterwaul.managers.session import key_of
from caterwaul.managers.settings import ManagerSettings
from caterwaul.membership.channel import DATA, Message
from caterwaul.membership.codec import decode, encode
from caterwaul.membership.errors import RemoteError
from tests.doubles import Net, wrong_sums

QUIET = ManagerSettings(reconcile_period_s=3600, idle_timeout_s=0, absolute_timeout_s=0)
OFTEN = ManagerSettings(reconcile_period_s=1, idle_timeout_s=0, absolute_timeout_s=0, retention_s=1000)


def fill(net: Net, count: int, number: int = 0) -> list[str]:
    ids = []
    for n in range(count):
        session = net.managers[number].open_local(None)
        session["n"] = [n]
        net.managers[number].commit(session)
        ids.append(session.id)
    net.deliver()
    return ids


def change(net: Net, ids: list[str], number: int = 0, **values: Any) -> None:
    for session_id in ids:
        session = net.managers[number].open_local(session_id)
        session.update(values or {"n": "changed"})
        net.managers[number].commit(session)
        net.managers[number].release(session)
    net.deliver()


def end(net: Net, session_id: str, number: int = 0) -> None:
    session = net.managers[number].open_local(session_id)
    session.invalidate()
    net.managers[number].commit(session)
    net.managers[number].release(session)
    net.deliver()


def equal(net: Net) -> bool:
    first, *rest = net.bodies()
    return all(other == first for other in rest) and all(manager.in_sync and not wrong_sums(manager) for manager in net.managers if manager.me.uid in net.alive)


class Traffic:
    """What is said from now on."""

    def __init__(self, net: Net) -> None:
        self._net = net
        self._before = {m.uid: len(net.channels[m.uid].sent) for m in net.members}

    def of(self, op: int) -> list[list[Any]]:
        net = self._net
        return [message for m in net.members for _, message in net.channels[m.uid].sent[self._before.get(m.uid, 0) :] if message[1] == op]

    @property
    def records(self) -> int:
        return sum(len(message[2]) for message in self.of(RECORDS))

    @property
    def items(self) -> int:
        return sum(len(message[5]) // 24 for message in self.of(INVENTORY))


# -- rounds


def test_of_one_percent_changed_only_that_moves_and_only_its_partitions_are_told() -> None:
    net = Net(2, QUIET)
    ids = fill(net, 1000)
    net.part(0, 1)
    changed = ids[::100]
    change(net, changed[:5], 0)
    change(net, changed[5:], 1, other=2)
    traffic = Traffic(net)
    net.heal(0, 1)
    net.deliver()
    assert equal(net)
    partitions = {partition_of(key) for key in net.bodies()[0]}
    touched = sum(1 for key in net.bodies()[0] if partition_of(key) in {partition_of(key_of(session_id)) for session_id in changed})
    assert len(traffic.of(SUMS)) == len(traffic.of(DIFFER)) == 2  # around the circle, from its middle
    assert traffic.items == touched < len(partitions)
    assert traffic.records == 5 + 5 + 5, "of what the follower changed once, of what the leader changed its own too: it was used since"
    assert net.managers[0].statistics()["partitions_differing"] == len({partition_of(key_of(session_id)) for session_id in changed})


def away(net: Net, seconds: float = 1.0) -> None:
    net.advance(seconds, seconds)
    net.part(0, 1)
    net.advance(seconds, seconds)


@pytest.mark.parametrize("number", [0, 1])
def test_what_changed_on_one_side_travels_once_whichever_side_that_is(number: int) -> None:
    net = Net(2, QUIET)
    ids = fill(net, 200)
    away(net)
    change(net, ids[:20], number)
    traffic = Traffic(net)
    net.heal(0, 1)
    net.deliver()
    assert equal(net)
    assert traffic.records == 20


def test_what_changed_on_both_sides_is_merged_on_both_whoever_kept_what_back() -> None:
    """The follower's clock says that nothing was used there since: wrongly, and it sends what it has all the same."""
    for wrongly in (False, True):
        net = Net(2, QUIET)
        ids = fill(net, 50)
        away(net)
        change(net, ids[:20], 0, mine=1)
        change(net, ids[:20], 1, yours=1)
        if wrongly:
            net.managers[1]._core.entropy._met[net.members[0].uid] = 10**9
        traffic = Traffic(net)
        net.heal(0, 1)
        net.deliver()
        assert equal(net)
        assert dict(net.managers[0].open_local(ids[0])).keys() == {"n", "mine", "yours"}
        assert traffic.records == 40


def test_when_nothing_differs_the_round_ends_at_once() -> None:
    net = Net(3, QUIET)
    fill(net, 200)
    traffic = Traffic(net)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        net.part(one, other)
        net.heal(one, other)
    net.deliver()
    assert equal(net)
    assert not traffic.of(INVENTORY)
    assert not traffic.of(RECORDS)
    assert not traffic.of(COVERED)
    assert len(traffic.of(SYNCED)) == 3
    assert len(traffic.of(SUMS)) <= 6


def test_a_joiner_is_led_without_sums() -> None:
    net = Net(2, QUIET)
    fill(net, 300)
    traffic = Traffic(net)
    net.join()
    net.deliver()
    assert equal(net)
    assert not traffic.of(SUMS)
    assert traffic.of(INVENTORY)


def test_after_a_flood_sums_are_made_and_compared_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests_module, "_READ_AT_ONCE", 50)
    net = Net(2, QUIET)
    ids = fill(net, 1000)
    net.part(0, 1)
    change(net, ids[:700], 1)
    read = [manager._core.digests.read for manager in net.managers]
    traffic = Traffic(net)
    net.heal(0, 1)
    most = [0, 0]
    while net.step():
        now = [manager._core.digests.read for manager in net.managers]
        most = [max(so_far, new - old) for so_far, new, old in zip(most, now, read, strict=True)]
        read = now
    assert equal(net)
    assert len(traffic.of(SUMS)) > 10
    assert most[1] <= 50 + 5, "the follower stopped where it had read enough"
    assert traffic.records <= 2 * 700


def test_a_round_in_the_background_compares_every_pair_once_a_period_and_reads_what_changed_only() -> None:
    net = Net(4, OFTEN)
    ids = fill(net, 400)
    net.advance(2.0)
    traffic = Traffic(net)
    read = net.managers[0]._core.digests.read
    change(net, ids[:1])
    net.advance(10.0)
    assert equal(net)
    assert 6 * 9 <= len(traffic.of(SYNCED)) <= 6 * 11
    assert not traffic.of(OFFER)
    assert not traffic.of(RECORDS)
    assert net.managers[0]._core.digests.read - read < 100, "the partition that changed, and the few that are doubted"


def test_what_changed_without_a_mark_is_found_in_the_end() -> None:
    net = Net(2, OFTEN)
    ids = fill(net, 20)
    net.advance(3.0)
    replica = net.managers[1]._core.replica
    key = key_of(ids[3])
    del replica.partitions[partition_of(key)][key]
    net.advance(140.0, 0.5)
    assert replica.get(key) is not None
    assert equal(net)


def test_a_round_that_gets_on_is_not_begun_again_by_the_background_and_one_that_does_not_is() -> None:
    net = Net(2, OFTEN)
    fill(net, 50)
    net.freeze(1)
    core, peer = net.managers[0]._core, net.members[1].uid
    started = core.entropy.rounds
    net.advance(1.5)  # begins one, nobody answers
    assert core.entropy.rounds == started + 1
    net.advance(1.0)  # it is new: it may get on yet
    assert core.entropy.rounds == started + 1
    net.advance(1.0)
    assert core.entropy.rounds == started + 2
    assert not core.entropy.is_moving(net.members[0].uid)
    net.thaw(1)
    net.advance(3.0)
    assert equal(net)
    assert peer in core.entropy.in_sync


def test_with_a_member_of_protocol_1_inventories_are_compared_as_ever() -> None:
    net = Net(2, OFTEN, old=[1])
    ids = fill(net, 100)
    net.part(0, 1)
    change(net, ids[:3], 1)
    traffic = Traffic(net)
    net.heal(0, 1)
    net.deliver()
    assert equal(net)
    assert not traffic.of(SUMS)
    assert not traffic.of(DIFFER)
    assert traffic.items == 100
    assert all(len(message) == 6 for message in traffic.of(INVENTORY)), "it would take an inventory of some partitions for one of all"
    rounds = net.managers[0].statistics()["reconcile_rounds"]
    net.advance(5.0)
    assert net.managers[0].statistics()["reconcile_rounds"] == rounds, "it is expensive, and the other one begins by itself"


def test_answers_to_another_round_or_range_change_nothing() -> None:
    net = Net(2, QUIET)
    fill(net, 20)
    one, two = net.managers
    net.freeze(1)
    one.link_opened(net.members[1], False)
    round_ = one._core.entropy._rounds[two.me.uid]
    say = Speaker("default")
    for message in (
        say.differ(round_.number + 1, round_.start, round_.stop, [round_.start]),
        say.differ(round_.number, round_.start + 1, round_.stop, [round_.stop - 1]),
        say.covered(round_.number, round_.stop, []),
        say.synced(round_.number),
    ):
        net.channels[one.me.uid].deliver(net.members[1], message, 0)
    assert (round_.todo, round_.left, round_.answered) == ([], PARTITIONS, False)
    net.channels[one.me.uid].deliver(net.members[1], say.differ(round_.number, round_.start, round_.start + 1, [round_.start]), 0)
    assert round_.todo == [round_.start - 1]
    assert round_.left == PARTITIONS - 1


@pytest.mark.parametrize(
    "message",
    [
        ["m", SUMS], ["m", SUMS, 1, 0, 1], ["m", SUMS, 1, 0, 1, b"\1"], ["m", SUMS, 1, 0, 1, b"\1", b"s" * 7], ["m", SUMS, 1, 0, 2, b"\1", b"s" * 16],
        ["m", SUMS, 1, 4095, 4097, b"\3", b"s" * 16], ["m", SUMS, 1, -1, 0, b"\1", b"s" * 8], ["m", SUMS, None, 0, 1, b"\1", b"s" * 8],
        ["m", SUMS, 1, True, 2, b"\1", b"s" * 8], ["m", SUMS, 1, 0, 1, b"\1", "s" * 8], ["m", SUMS, 1, 0, 1, "1", b"s" * 8], ["m", SUMS, 1, 3, 3, b"", b""],
        ["m", SUMS, 1, 0, 1, b"\2", b"s" * 8], ["m", SUMS, 1, 0, 9, b"\1", b"s" * 8],
        ["m", DIFFER, 1, 0, 8], ["m", DIFFER, 1, 0, 8, b""], ["m", DIFFER, 1, 0, 8, b"bb"], ["m", DIFFER, 1, 0, 7, b"\x80"], ["m", DIFFER, 1, 8, 8, b"b"],
        ["m", DIFFER, 1, 0, 4097, b"b" * 513], ["m", DIFFER, 1, -8, 0, b"b"], ["m", DIFFER, "1", 0, 8, b"b"], ["m", DIFFER, 1, 0, 8, [1]],
        ["m", INVENTORY, 1, 0, 8, b"", b""], ["m", INVENTORY, 1, 0, 7, b"", b"\x80"], ["m", INVENTORY, 1, 0, 8, b"", "b"],
        ["m", INVENTORY, 1, 0, 8, bytes(24), b"\x02"], ["m", COVERED, 1, 8, bytes(16), b"d"], ["m", COVERED, 1, 8, bytes(16), b"d" * 16],
        ["m", COVERED, 1, 8, bytes(16), "d" * 8],
    ],
)  # fmt: skip
def test_sums_and_bits_of_another_length_or_type_are_a_remote_error(message: list[Any]) -> None:
    reader: Any = {SUMS: read_sums, DIFFER: read_differ, INVENTORY: read_inventory, COVERED: read_covered}[message[1]]
    with pytest.raises(RemoteError, match="malformed"):
        reader(message)


def test_what_is_said_is_read_again() -> None:
    say = Speaker("m")
    for sums in (b"s" * 16, bytes(8) + b"s" * 8, bytes(16), bytes(8) + b"s" * 8 + bytes(7 * 8) + b"t" * 8):
        assert read_sums(decode(say.sums(1, 1000, sums).payload)) == (1, 1000, sums)
    assert len(say.sums(1, 0, bytes(8 * PARTITIONS)).payload) < 600
    assert read_differ(decode(say.differ(1, 10, 4096, [10, 77, 4095]).payload)) == (1, 10, 4096, [10, 77, 4095])
    assert read_inventory(decode(say.inventory(1, 0, 9, [(bytes(16), b"d" * 8)], [0, 8]).payload)).only == [0, 8]
    assert read_inventory(decode(say.inventory(1, 0, 9, []).payload)).only is None


# -- tombstones


def skew(net: Net, number: int, session_id: str, ms: int) -> None:
    """This member takes the session to have ended so much later than the others do."""
    entry = net.managers[number]._core.replica.get(key_of(session_id))
    entry.head = entry.head._replace(ended_ms=entry.head.ended_ms + ms)
    net.managers[number]._core.replica.changed[partition_of(key_of(session_id))] = 1


@pytest.mark.parametrize("late", [0, 1])
def test_a_tombstone_leaves_the_sums_at_nine_tenths_of_its_retention_and_is_not_sent_to_and_fro_meanwhile(late: int) -> None:
    """The clocks of the two disagree by 5 s of 1000: for 5 s their sums differ."""
    net = Net(2, OFTEN)
    fill(net, 5)
    (session_id,) = fill(net, 1)
    end(net, session_id)
    skew(net, late, session_id, 5000)
    number = partition_of(key_of(session_id))
    net.advance(895.0, 1.0)
    traffic = Traffic(net)
    cores = [manager._core for manager in net.managers]
    sums = [[core.digests.sums(b"", number, number + 1, manager._channel.now_ms())[1] for core, manager in zip(cores, net.managers, strict=True)]]
    net.advance(8.0, 1.0)
    sums.append([core.digests.sums(b"", number, number + 1, manager._channel.now_ms())[1] for core, manager in zip(cores, net.managers, strict=True)])
    net.advance(4.0, 1.0)
    sums.append([core.digests.sums(b"", number, number + 1, manager._channel.now_ms())[1] for core, manager in zip(cores, net.managers, strict=True)])
    assert sums[0][0] == sums[0][1] != bytes(8)
    assert bytes(8) in sums[1]
    assert sums[1][0] != sums[1][1]
    assert sums[2][0] == sums[2][1]
    assert traffic.of(INVENTORY)
    assert traffic.records == 0
    assert all(core.replica.get(key_of(session_id)) is not None for core in cores), "it still refuses"
    quiet = Traffic(net)
    net.advance(50.0, 1.0)
    assert not quiet.of(INVENTORY)
    net.advance(60.0, 1.0)
    assert not quiet.records
    assert all(core.replica.get(key_of(session_id)) is None for core in cores)


def test_a_tombstone_that_counts_no_more_still_ends_a_copy_that_shows_up() -> None:
    net = Net(2, OFTEN)
    (session_id,) = fill(net, 1)
    net.part(0, 1)
    end(net, session_id)
    net.advance(950.0, 1.0)
    assert net.managers[1].open_local(session_id) is not None
    net.heal(0, 1)
    net.deliver()
    assert [manager.count for manager in net.managers] == [0, 0]


def test_a_joiner_gets_the_tombstones_that_count_and_nothing_is_left_to_compare() -> None:
    net = Net(2, OFTEN)
    for session_id in fill(net, 20):
        end(net, session_id)
        net.advance(1.0, 1.0)
    net.advance(882.0, 1.0)  # now 883 to 902 s old
    net.join()
    net.deliver()
    joined = net.managers[2]._core.replica.tombstones
    assert 0 < joined < 20
    assert all(not wrong_sums(manager) for manager in net.managers)
    traffic = Traffic(net)
    net.advance(1.5)
    assert not traffic.of(RECORDS)


# -- the seam for placements by session


def entry(number: int) -> Entry:
    return Entry(live_head(1, b"o" * 16, b"o" * 16), bytes([number]), 0, ())


def test_sums_count_for_each_peer_what_is_shared_with_it() -> None:
    replica = Replica(b"m" * 16)
    a, b = b"a" * 16, b"b" * 16
    held = {a: {1, 2, 3}, b: {2, 3, 4}}

    def sharers(key: bytes, named: bytes) -> Iterator[tuple[bytes, int]]:
        yield from ((peer, WHOLE) for peer in held if key[1] in held[peer])

    sums = Digests(replica, 1000, sharers)
    alone = {peer: Digests(Replica(b"m" * 16), 1000) for peer in held}
    for number in range(1, 5):
        key = bytes([0, number]) + bytes(14)
        replica.merge_record(key, entry(number).head, 0, (), bytes([number]), None, Outcome())
        replica.get(key).body = bytes([number])
        for peer, those in held.items():
            if number in those:
                other = alone[peer]._replica
                other.merge_record(key, entry(number).head, 0, (), None, None, Outcome())
                other.get(key).body = bytes([number])

    def row(peer: bytes) -> bytes:
        return sums.sums(peer, 0, 8, 0)[1]

    assert row(a) != row(b)
    assert {peer: row(peer) for peer in held} == {peer: digests.sums(peer, 0, 8, 0)[1] for peer, digests in alone.items()}
    assert sums.inventory(b, 0, 0) == alone[b].inventory(b, 0, 0)
    held[a].add(4)
    sums.placed(sharers)
    assert row(a) not in (row(b), bytes(64))
    assert sums.differing(a, 0, row(a), 0) == (8, [])
    assert sums.differing(b, 0, row(a), 0) == (8, [0])


def test_equal_contents_under_exchanged_keys_are_another_sum() -> None:
    made = []
    for bodies in ((1, 2), (2, 1), (1, 1), (2, 2)):
        replica = Replica(b"m" * 16)
        for number, body in enumerate(bodies):
            replica.partitions[0][bytes([0, number]) + bytes(14)] = entry(body)
        made.append(Digests(replica, 1000).sums(b"", 0, 1, 0)[1])
    assert len(set(made)) == 4


def test_a_head_alone_counts_when_it_is_an_end_only() -> None:
    replica = Replica(b"m" * 16)
    sums = Digests(replica, 1000)
    replica.merge_head(bytes(16), live_head(1, b"o" * 16, b"o" * 16), Outcome())
    assert sums.sums(b"", 0, 1, 0)[1] == bytes(8)
    replica.merge_head(bytes(16), Head(INVALIDATED, 2, b"o" * 16, b"o" * 16), Outcome())
    assert sums.sums(b"", 0, 1, 0)[1] != bytes(8)


def test_an_unknown_element_after_those_of_sums_is_ignored() -> None:
    net = Net(2, QUIET)
    message = Message("default", DATA, encode(["default", SUMS, 1, 0, 1, b"\0", b"", "more"]))
    traffic = Traffic(net)
    net.channels[net.members[1].uid].deliver(net.members[0], message, 0)
    assert traffic.of(DIFFER) == [["default", DIFFER, 1, 0, 1, b"\0"]]


def test_an_occasion_during_a_round_is_another_round_after_it_and_no_second_one_beside_it() -> None:
    net = Net(2)
    leader, follower = net.managers[0]._core, net.members[1].uid
    rounds, sent = leader.entropy.rounds, len(net.channels[net.members[0].uid].sent)

    def begin() -> None:
        net.managers[0]._react(lambda now_ms: list(leader.entropy.begin(follower, 2, now_ms)))

    for _ in range(5):  # as when members come and go while the link crawls
        begin()
        leader.entropy.is_moving(follower)  # and the background looks
    assert leader.entropy.rounds == rounds + 1
    assert len(net.channels[net.members[0].uid].sent) == sent + 1
    net.deliver()
    assert leader.entropy.rounds == rounds + 2
    assert leader.in_sync
