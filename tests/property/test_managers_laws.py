"""Laws of heads, placement, the calendar of expiry, and receipts."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from math import ceil
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from caterwaul.managers.changes import check_deltas, encode_delta
from caterwaul.managers.entry import Entry, Outcome
from caterwaul.managers.heads import EXPIRED, ID_CHANGED, INVALIDATED, LIVE, Cover, Head, live_head
from caterwaul.managers.placement import HEAD, NOTHING, PARTITIONS, WHOLE, EveryMember, PrimaryAndBackups, Ranked, Ranking, partition_of
from caterwaul.managers.receipts import Waiting, needed_confirmations
from caterwaul.managers.record import Record
from caterwaul.managers.replica import Replica
from caterwaul.managers.wheel import Wheel
from caterwaul.membership.codec import decode
from caterwaul.membership.errors import RemoteError
from caterwaul.membership.member import Member
from caterwaul.membership.view import View

ORIGINS = [bytes([n]) * 16 for n in (1, 2, 3)]
ME = b"m" * 16
KEY = b"k" * 16

versions = st.tuples(st.integers(2, 4), st.sampled_from(ORIGINS))


@st.composite
def head_sets(draw: st.DrawFn) -> list[Head]:
    """Heads of one session as members may have made them: one head to a version, a cover for an expiry."""
    made = []
    for counter, origin in draw(st.lists(versions, unique=True, min_size=1, max_size=5)):
        state = draw(st.sampled_from([LIVE, EXPIRED, INVALIDATED, ID_CHANGED]))
        cover = Cover({ORIGINS[0]: draw(st.integers(0, 2))}, {ORIGINS[0]: draw(st.integers(0, 2))}) if state == EXPIRED else None
        made.append(live_head(counter, origin, origin) if state == LIVE else Head(state, counter, origin, ORIGINS[0], (), cover, 5))
    return made


def replica_with(applied: int, touch: int) -> Replica:
    replica = Replica(ME)
    record = Record()
    record.write(applied, ORIGINS[0], {"a": b"x"})
    replica._insert(KEY, Entry(live_head(1, ORIGINS[0], ORIGINS[0]), record, 0, (ORIGINS[0], touch, touch)))
    return replica


def merged(heads: tuple[Head, ...]) -> tuple[Head | None, bool]:
    replica = replica_with(1, 1)
    outcome = Outcome()
    for head in heads:
        replica.merge_head(KEY, head, outcome)
    entry = replica.get(KEY)
    assert entry is not None
    assert replica.live + replica.tombstones == 1
    assert (entry.body is None) is bool(entry.head and entry.head.state)
    return entry.head, bool(outcome.spreads)


@given(head_sets())
def test_a_final_end_beats_everything_in_any_order(heads):
    final = [head for head in heads if head.final]
    assume(final)
    for order in permutations(heads[:4] if len(heads) < 5 else [*final[:1], *heads[:3]]):
        head, _ = merged(order)
        expected = max((h for h in order if h.final), key=lambda h: h.version, default=None)
        assert expected is None or head == expected


@given(head_sets())
def test_live_heads_merge_to_the_highest_version_in_any_order(heads):
    live = [head for head in heads if head.state == LIVE]
    assume(live)
    assert {merged(order)[0] for order in permutations(live[:4])} == {max(live[:4], key=lambda h: h.version)}


@given(st.integers(0, 2), st.integers(0, 2), st.integers(1, 2), st.integers(0, 2))
def test_an_expiry_ends_a_live_session_exactly_if_it_covers_writes_and_touches(cover_applied, cover_touch, applied, touch):
    replica, outcome = replica_with(applied, touch), Outcome()
    head = Head(EXPIRED, 2, ORIGINS[1], ORIGINS[0], (), Cover({ORIGINS[0]: cover_applied}, {ORIGINS[0]: cover_touch}), 5)
    replica.merge_head(KEY, head, outcome)
    covered = cover_applied >= applied and cover_touch >= touch
    entry = replica.get(KEY)
    assert entry is not None
    assert entry.head is not None
    assert (entry.head.state == EXPIRED) is covered
    assert bool(outcome.spreads) is not covered
    assert replica.revivals == (0 if covered else 1)


members_ = st.lists(
    st.builds(
        lambda uid, zone, machine, weight: Member(uid, "n", "h", 1, zone=zone, machine=machine, weight=weight),
        st.binary(min_size=16, max_size=16), st.sampled_from(["", "z1", "z2"]), st.sampled_from(["", "m1", "m2"]), st.integers(0, 3),
    ),
    unique_by=lambda m: m.uid, min_size=1, max_size=7,
)  # fmt: skip
some_partitions = st.integers(0, PARTITIONS - 1)


@given(members_, some_partitions, st.randoms())
def test_every_member_computes_the_same_keepers_which_are_distinct_and_apart_where_they_can_be(members, partition, rng):
    shuffled = list(members)
    rng.shuffle(shuffled)
    keepers = Ranking(View.of(1, members)).keepers(partition)
    assert keepers == EveryMember(View.of(9, shuffled), members[0].uid).keepers(partition)
    holding = {m.uid: m for m in members if m.weight}
    assert len(set(keepers)) == len(keepers) == min(2, len(holding))
    assert set(keepers) <= set(holding)
    if len(keepers) == 2:
        first, second = holding[keepers[0]], holding[keepers[1]]
        others = [m for m in holding.values() if m is not first]
        if any(m.zone != first.zone for m in others):
            assert second.zone != first.zone
        elif any((m.machine or m.host) != (first.machine or first.host) for m in others):
            assert (second.machine or second.host) != (first.machine or first.host)


@given(members_, some_partitions, st.data())
def test_one_member_more_or_less_moves_nothing_between_the_others(members, partition, data):
    gone = data.draw(st.sampled_from(members))
    before = Ranking(View.of(1, members)).rank(partition)
    after = Ranking(View.of(2, [m for m in members if m is not gone])).rank(partition)
    assert [m for m in before if m is not gone] == after


@given(members_)
def test_every_member_with_a_weight_holds_everything_and_one_without_holds_nothing(members):
    view = View.of(1, members)
    placement = EveryMember(view, members[0].uid)
    holding = tuple(m.uid for m in view if m.weight)
    assert placement.holders(KEY, members[-1].uid) == holding
    assert placement.peers() == tuple(m.uid for m in view if m.uid != members[0].uid)
    assert placement.everywhere == (members[0].weight > 0 or not holding)


@given(members_, st.binary(min_size=16, max_size=16), st.integers(1, 4), st.sampled_from([PrimaryAndBackups, Ranked]), st.data())
def test_some_members_hold_a_session_and_every_member_names_the_same_ones(members, key, copies, strategy, data):
    named = data.draw(st.sampled_from([*members, Member(b"?" * 16, "gone", "h", 1)]))
    placements = [strategy(View.of(1, members), member.uid, copies) for member in members]
    holders = placements[0].holders(key, named.uid)
    weighted = {member.uid for member in members if member.weight}
    assert {placement.holders(key, named.uid) for placement in placements} == {holders}
    assert len(set(holders)) == len(holders) == min(copies, len(weighted))
    assert set(holders) <= weighted
    keepers = placements[0].keepers(partition_of(key))
    if copies >= 2 and strategy is Ranked:
        assert set(keepers) <= set(holders)
    if copies >= 3:
        assert set(keepers) <= set(holders)
    if strategy is PrimaryAndBackups and named.uid in weighted:
        assert holders[0] == named.uid
        if copies == 2 and len(weighted) > 1:
            assert holders[1] in keepers
    for member, placement in zip(members, placements, strict=True):
        others = [uid for group in placement.others(key, named.uid) for uid in group]
        assert others == [uid for uid in holders if uid != member.uid]
        told = {uid for group in placement.heads(key, named.uid) for uid in group}
        assert told == ({*holders, *keepers} - {member.uid})
        assert placement.depth(member.uid, key, named.uid) == (WHOLE if member.uid in holders else HEAD if member.uid in keepers else NOTHING)
        appointed = placement.appoint(key)
        assert not weighted or strategy is Ranked or appointed in weighted


@given(st.lists(st.sampled_from(["z1", "z2", "z3"]), min_size=3, max_size=6), st.binary(min_size=16, max_size=16))
def test_copies_are_spread_over_zones_where_there_are_enough(zones, key):
    members = [Member(bytes([n + 1]) * 16, f"n{n}", f"10.0.0.{n}", 1, zone=zone) for n, zone in enumerate(zones)]
    zone_of = {member.uid: member.zone for member in members}
    for named in members:
        holders = PrimaryAndBackups(View.of(1, members), named.uid, 3).holders(key, named.uid)
        used = {zone_of[uid] for uid in holders}
        keepers = PrimaryAndBackups(View.of(1, members), named.uid, 3).keepers(partition_of(key))
        wanted = {zone_of[uid] for uid in (named.uid, *keepers)}
        assert used >= wanted


@given(st.binary(min_size=16, max_size=16))
def test_a_partition_is_the_first_twelve_bits_of_a_key(key):
    assert partition_of(key) == int.from_bytes(key, "big") >> (128 - 12)


def test_shares_follow_weights():
    members = [Member(bytes([n]) * 16, "n", "h", 1, weight=weight) for n, weight in ((1, 1), (2, 1), (3, 2))]
    ranking = Ranking(View.of(1, members))
    first = [ranking.keepers(p)[0] for p in range(PARTITIONS)]
    shares = [first.count(m.uid) / PARTITIONS for m in members]
    assert all(abs(share - wanted) < 0.03 for share, wanted in zip(shares, (0.25, 0.25, 0.5), strict=True))


def drawn(weights, count, chosen=()):
    """How likely each is among `count` that are drawn one after the other, each by its weight among those that are left."""
    if len(chosen) == count:
        return [float(n in chosen) for n in range(len(weights))]
    left = [n for n in range(len(weights)) if n not in chosen]
    ways = [(weights[n] / sum(weights[m] for m in left), drawn(weights, count, (*chosen, n))) for n in left]
    return [sum(chance * found[n] for chance, found in ways) for n in range(len(weights))]


@pytest.mark.parametrize(("weights", "copies"), [((1, 1, 1, 1, 2, 2), 2), ((1, 1, 1, 3), 2), ((1, 1, 1, 1, 2, 2), 3)])
def test_copies_follow_weights_as_far_as_no_member_holds_two_of_one_session(weights, copies):
    members = [Member(bytes([n + 1]) * 16, f"n{n}", f"h{n}", 1, weight=weight) for n, weight in enumerate(weights)]
    placement = Ranked(View.of(1, members), members[0].uid, copies)
    held = Counter(uid for p in range(PARTITIONS) for uid in placement.holders((p << 4).to_bytes(2, "big") + bytes(14), b""))
    for member, wanted in zip(members, drawn(weights, copies), strict=True):
        assert abs(held[member.uid] / PARTITIONS - wanted) < 0.03


steps = st.lists(
    st.tuples(st.just("add"), st.integers(0, 9), st.integers(0, 500)) | st.tuples(st.just("due"), st.integers(1, 4), st.integers(0, 100)), max_size=40
)


@given(st.integers(1, 50), steps)
def test_the_calendar_gives_each_key_at_its_time_and_within_one_bucket_of_it(width, steps):
    """Against a dumb model: a set of (end of the bucket, key)."""
    wheel, model, now = Wheel(width), set(), 0
    for what, a, b in steps:
        if what == "add":
            key = bytes([a])
            wheel.add(key, b)
            model.add(((b // width + 1) * width, key))
            assert b < (b // width + 1) * width <= b + width
        else:
            now += b
            taken = wheel.due(now, a)
            ready = sorted(item for item in model if item[0] <= now)[:a]
            assert taken == [key for _, key in ready]
            model.difference_update(ready)
        assert wheel.next_ms == min((at for at, _ in model), default=None)
        assert len(wheel) == len(model)


UIDS = [bytes([n]) * 16 for n in range(1, 5)]
heard = st.lists(st.tuples(st.sampled_from(["confirm", "fail"]), st.sampled_from(UIDS)) | st.just(("expire", b"")), max_size=12)


@given(st.integers(0, 5), st.lists(st.sampled_from(UIDS), unique=True), heard, st.integers(1, 2))
def test_a_receipt_is_final_when_its_level_is_reached_or_out_of_reach_and_never_before(needed, able, events, messages):
    """Against a dumb model of counts."""
    receipt: Any = Waiting(needed, {uid: f"n{uid[0]}" for uid in UIDS}, dict.fromkeys(able, messages), 100, False)
    left = dict.fromkeys(able, messages)
    confirmed: list[bytes] = []
    final = not 0 < needed <= len(able)
    assert receipt.needs_wait is not final
    fired: list[Any] = []
    receipt.deferred().addCallback(fired.append)
    for what, uid in events:
        if what == "confirm":
            receipt.ear.confirmed(uid)
            if uid in left:
                left[uid] -= 1
                if not left[uid]:
                    del left[uid]
                    confirmed.append(uid)
        elif what == "fail":
            receipt.ear.failed(uid)
            left.pop(uid, None)
        else:
            late = receipt.expire()
            assert late == ([] if final else sorted(left))
            if not final:
                left = {}
        final = final or len(confirmed) >= needed or len(confirmed) + len(left) < needed
        assert receipt.needs_wait is not final
        assert receipt.satisfied is (len(confirmed) >= needed)
        assert receipt.confirmed == tuple(f"n{u[0]}" for u in confirmed)
        assert receipt.unconfirmed == tuple(f"n{u[0]}" for u in UIDS if u not in confirmed)
        assert bool(fired) is final
    if final:
        assert receipt.wait() is receipt


@given(st.integers(0, 9))
def test_levels_count_the_members_besides_the_writer(others):
    assert needed_confirmations("none", others) == 0
    assert needed_confirmations("one", others) == 1
    assert needed_confirmations("all", others) == max(1, others)
    assert needed_confirmations("quorum", others) == max(1, ceil((others + 2) / 2) - 1 if others % 2 else others // 2)
    assert needed_confirmations("3", others) == needed_confirmations(3, others) == 3
    if others:
        assert 2 * (needed_confirmations("quorum", others) + 1) > others + 1


def test_a_session_made_for_another_to_lead_says_so_and_is_merged_so():
    author, leader = b"a" * 16, b"l" * 16
    wire = encode_delta(KEY, 1, 0, {}, {"x": b"\x01"}, 5, 5, leader)
    delta = decode(wire)
    check_deltas([delta])
    replica = Replica(b"m" * 16)
    replica.merge_deltas(author, [delta], lambda ms: ms, Outcome())
    entry = replica.get(KEY)
    assert entry is not None
    assert (entry.primary, entry.head.origin) == (leader, author)
    with pytest.raises(RemoteError):
        check_deltas([[*delta[:7], b"short"]])
