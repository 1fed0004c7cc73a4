"""Laws of a session's record: order, repeats, gaps and transfers cannot harm; pruning neither resurrects nor loses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caterwaul.managers.changes import batch_prefix, check_deltas, encode_batch, encode_delta
from caterwaul.managers.merging import COUNTER, NEVER, Birth, State, build, parse
from caterwaul.managers.record import Record, last_access, merge_touches, touched
from caterwaul.membership.codec import decode, encode
from caterwaul.membership.errors import RemoteError

ORIGINS = [bytes([n]) * 16 for n in (1, 2, 3)]
NAMES = ["a", "b", "\0principal"]


@dataclass(frozen=True)
class Delta:
    counter: int
    origin: bytes
    previous: int
    seen: dict[bytes, int]
    changes: dict[str, bytes | None]


def copy(record: Record) -> Record:
    return Record.unpack(record.pack())


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Delta], list[Record]]:
    """What three members commit while they hear of each other now and then: all deltas, and the record of each member at its end."""
    replicas = [Record() for _ in ORIGINS]
    deltas: list[Delta] = []
    for _ in range(draw(st.integers(1, 12))):
        writer = draw(st.integers(0, 2))
        origin, record = ORIGINS[writer], replicas[writer]
        if draw(st.booleans()):
            record.merge(copy(replicas[draw(st.integers(0, 2))]))
        changes = draw(st.dictionaries(st.sampled_from(NAMES), st.none() | st.binary(max_size=3), min_size=1))
        previous = record.applied.get(origin, 0)
        seen = {other: n for other, n in record.applied.items() if other != origin}
        counter = record.counter + 1
        record.write(counter, origin, changes)
        deltas.append(Delta(counter, origin, previous, seen, changes))
    return deltas, replicas


def everything(deltas: list[Delta], replicas: list[Record]) -> Record:
    """The reference: a dumb fold over all registers, the highest version stands."""
    whole = Record()
    for record in replicas:
        whole.merge(copy(record))
    return whole


@given(histories(), st.data())
def test_deltas_and_whole_records_in_any_order_with_repeats_and_gaps_give_the_same_bytes(history, data):
    deltas, replicas = history
    expected = everything(deltas, replicas)
    inputs = [("delta", d) for d in deltas] + [("record", r) for r in replicas]
    order = data.draw(st.permutations(inputs)) + data.draw(st.lists(st.sampled_from(inputs), max_size=6))
    mine = Record()
    for kind, given_ in order:
        if kind == "delta":
            mine.merge_delta(given_.counter, given_.origin, given_.previous, given_.seen, given_.changes)
        else:
            mine.merge(copy(given_))
    assert mine.pack() == expected.pack()
    assert (mine.counter, mine.size, mine.removed) == (expected.counter, expected.size, expected.removed)


@given(histories())
def test_the_highest_version_of_each_register_stands(history):
    deltas, replicas = history
    dumb: dict[str, tuple[int, bytes, bytes | None]] = {}
    for delta in deltas:
        for name, value in delta.changes.items():
            if name not in dumb or (delta.counter, delta.origin) > dumb[name][:2]:
                dumb[name] = (delta.counter, delta.origin, value)
    assert everything(deltas, replicas).registers == dumb


@given(histories())
def test_merging_is_commutative_associative_and_idempotent(history):
    _, (a, b, c) = history
    ab, ba, a_bc = copy(a), copy(b), copy(b)
    ab.merge(copy(b))
    ba.merge(copy(a))
    assert ab.pack() == ba.pack()
    assert ab.merge(copy(b)) is False
    ab.merge(copy(c))
    a_bc.merge(copy(c))
    a_bc.merge(copy(a))
    assert ab.pack() == a_bc.pack()


@given(histories(), st.data())
def test_past_a_gap_registers_are_taken_and_the_map_waits_for_the_whole_record(history, data):
    deltas, replicas = history
    mine = Record()
    for delta in data.draw(st.permutations(deltas)):
        last = mine.applied.get(delta.origin, 0)
        ordered, _ = mine.merge_delta(delta.counter, delta.origin, delta.previous, delta.seen, delta.changes)
        assert ordered is (delta.counter <= last or delta.previous == last)
        assert mine.applied.get(delta.origin, 0) in ((delta.counter,) if ordered and delta.counter > last else (last,))
    for record in replicas:
        mine.merge(copy(record))
    assert mine.pack() == everything(deltas, replicas).pack()


@given(histories())
def test_a_packed_record_comes_back_as_it_was(history):
    for record in history[1]:
        again = copy(record)
        for slot in ("applied", "counter", "floor", "registers", "removed", "size", "partial"):
            assert getattr(again, slot) == getattr(record, slot)


@given(histories(), st.data())
def test_pruning_never_resurrects_what_it_had_seen_removed(history, data):
    """Whatever of the past arrives again, in any order: removed stays removed, and live values stay."""
    deltas, replicas = history
    pruned = everything(deltas, replicas)
    live = {name: register for name, register in pruned.registers.items() if register[2] is not None}
    pruned.prune()
    assert pruned.registers == live
    before = pruned.pack()
    inputs = [("delta", d) for d in deltas] + [("record", r) for r in replicas]
    for kind, given_ in data.draw(st.lists(st.sampled_from(inputs), max_size=10)):
        if kind == "delta":
            pruned.merge_delta(given_.counter, given_.origin, given_.previous, given_.seen, given_.changes)
        else:
            pruned.merge(copy(given_))
    assert pruned.pack() == before


@given(histories(), st.sampled_from(ORIGINS), st.sampled_from(NAMES), st.booleans())
def test_pruning_loses_no_write_made_after_it_or_beside_it(history, origin, name, by_record):
    """A write that the pruning had not seen, newer than all it had, stands; on those who had not pruned too."""
    deltas, replicas = history
    pruned, plain = everything(deltas, replicas), everything(deltas, replicas)
    previous, counter = plain.applied.get(origin, 0), plain.counter + 1
    seen = {other: n for other, n in plain.applied.items() if other != origin}
    pruned.prune()
    author = copy(plain)
    author.write(counter, origin, {name: b"new"})
    for target in (pruned, plain):
        if by_record:
            target.merge(copy(author))
        else:
            target.merge_delta(counter, origin, previous, seen, {name: b"new"})
        assert target.registers[name] == (counter, origin, b"new")
    plain.merge(copy(pruned))
    pruned.merge(copy(plain))
    assert plain.pack() == pruned.pack()


@given(histories(), st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans()), max_size=8))
def test_members_that_prune_beside_each_others_writes_end_equal(history, steps):
    """Which of a removal and a write made beside it wins may depend on who had pruned; that all agree may not."""
    _, replicas = history
    records = [copy(r) for r in replicas]
    for target, source, prune in steps:
        records[target].merge(copy(records[source]))
        if prune:
            records[target].prune()
    for _ in range(3):
        for target in records:
            for source in records:
                target.merge(copy(source))
    assert len({record.pack() for record in records}) == 1


touch = st.tuples(st.sampled_from(ORIGINS), st.integers(0, 20), st.integers(0, 20))


@given(st.lists(touch, max_size=10), st.data())
def test_touches_merge_the_same_in_any_order_and_an_echo_never_rejuvenates(touches, data):
    dumb: dict[bytes, tuple[int, int]] = {}
    for origin, counter, ms in touches:
        mine = dumb.get(origin)
        if mine is None or counter > mine[0] or (counter == mine[0] and ms < mine[1]):
            dumb[origin] = (counter, ms)
    merged: tuple[Any, ...] = ()
    for origin, counter, ms in data.draw(st.permutations(touches)):
        merged = touched(merged, origin, counter, ms)
    halves = data.draw(st.integers(0, len(touches)))
    left: tuple[Any, ...] = ()
    right: tuple[Any, ...] = ()
    for i, one in enumerate(touches):
        if i < halves:
            left = touched(left, *one)
        else:
            right = touched(right, *one)
    for result in (merged, merge_touches(left, right), merge_touches(merge_touches(right, left), right)):
        assert {result[i]: result[i + 1 : i + 3] for i in range(0, len(result), 3)} == dumb
        assert last_access(result, -1) == max((ms for _, ms in dumb.values()), default=-1)


counters = st.integers(0, 2**53) | st.sampled_from([0, 23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32])
changes = st.dictionaries(st.text(max_size=30), st.none() | st.binary(max_size=300), max_size=30)


@given(
    st.binary(min_size=16, max_size=16), counters, counters, st.dictionaries(st.binary(min_size=16, max_size=16), counters, max_size=30),
    changes, counters, st.none() | st.integers(-(2**53), 2**53),
)  # fmt: skip
def test_a_delta_put_together_by_hand_has_the_bytes_of_the_generic_encoder(key, counter, previous, seen, changes, accessed, created):
    wire = [key, counter, previous, seen, changes, accessed, *([] if created is None else [created])]
    delta = encode_delta(key, counter, previous, seen, changes, accessed, created)
    assert delta == cbor2.dumps(wire)
    prefix = batch_prefix("default", 1, ORIGINS[0])
    assert encode_batch(prefix, [delta, delta]) == cbor2.dumps(["default", 1, ORIGINS[0], [wire, wire]])


@pytest.mark.parametrize("count", [0, 1, 23, 24, 255, 256, 65535, 65536])
def test_counts_and_lengths_have_the_bytes_of_the_generic_encoder_at_every_step_of_width(count):
    wire = [bytes(16), 1, 0, {}, {"v": bytes(count)}, 5]
    assert encode_delta(bytes(16), 1, 0, {}, {"v": bytes(count)}, 5) == cbor2.dumps(wire)
    assert encode_batch(b"", [b"\x01"] * count) == cbor2.dumps([1] * count)
    if count < 65536:
        many = {str(i): None for i in range(count)}
        assert encode_delta(bytes(16), 1, 0, {}, many, 5) == cbor2.dumps([bytes(16), 1, 0, {}, many, 5])


@given(st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.binary(max_size=16) | st.text(max_size=7),
                    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=20))  # fmt: skip
def test_the_schema_of_deltas_refuses_with_a_remote_error_and_nothing_else(wire):
    plain = decode(encode([wire]))
    try:
        check_deltas(plain)
    except RemoteError:
        return
    assert plain == [] or all(len(delta) >= 6 for delta in plain)


def test_a_merging_value_that_was_removed_and_pruned_does_not_come_back_with_a_repeat():
    """Two members set a Counter at the same time; one removed and pruned its own. What the other had of that comes twice, whole and as a delta."""
    one, two = Record(), Record()
    mine, theirs = (1, ORIGINS[0]), (1, ORIGINS[1])
    one.write(*mine, {"a": build(State(NEVER, {mine: Birth(mine, COUNTER, {ORIGINS[0]: (5, 0)})}))})
    two.merge(copy(one))
    both = {theirs: Birth(theirs, COUNTER, {ORIGINS[1]: (7, 0)}), **parse(one.registers["a"][2]).births}
    two.registers["a"] = (*max(mine, theirs), build(State(NEVER, both)))
    two.applied[ORIGINS[1]] = 1
    one.write(2, ORIGINS[0], {"a": None})
    one.prune()
    for _ in range(3):
        one.merge(copy(two))
        assert list(parse(one.registers["a"][2]).births) == [theirs]
    one.merge_delta(3, ORIGINS[1], 1, {ORIGINS[0]: 1}, {"a": build(State(NEVER, {**both, theirs: both[theirs]._replace(changed=(3, ORIGINS[1]))}))})
    assert list(parse(one.registers["a"][2]).births) == [theirs]
    two.merge(copy(one))
    two.merge(copy(one))
    assert list(parse(two.registers["a"][2]).births) == [theirs]
