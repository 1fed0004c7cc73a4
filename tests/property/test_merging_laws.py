"""Laws of merging values: registers join the same in any order, for any bytes; and what several members do to one attribute all counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

import cbor2
from hypothesis import given
from hypothesis import strategies as st

from caterwaul.managers.errors import ValueDamaged
from caterwaul.managers.merging import COUNTER, DECIMAL, MAX, MERGING, MIN, NEVER, NUMBER, SET, Birth, Register, State, build, join, parse, unpruned
from caterwaul.managers.merging_types import Counter, Max, MergingSet
from caterwaul.managers.record import Record
from caterwaul.managers.session import Session
from caterwaul.managers.settings import ManagerSettings
from caterwaul.managers.values import ValueTypes

TYPES = ValueTypes()
ORIGINS = [bytes([n]) * 16 for n in (1, 2, 3)]

versions = st.tuples(st.integers(1, 4), st.sampled_from(ORIGINS))
amounts = st.tuples(st.integers(0, 2), st.integers(0, 2)).filter(any)
counts = st.dictionaries(st.sampled_from(ORIGINS), amounts, max_size=2)
elements = st.sampled_from([b"\x01", b"\x02", b"a"])
numbers = st.sampled_from([0, 0.0, -0.0, 1, 1.0, 1.5, float("inf"), 2**63 - 1])
extremes = st.none() | st.tuples(st.just(NUMBER), numbers) | st.tuples(st.just(DECIMAL), st.sampled_from(["1", "1.0", "-2E+3"]))


@st.composite
def sets(draw: st.DrawFn) -> Any:
    seen = draw(st.dictionaries(st.sampled_from(ORIGINS), st.integers(1, 4), max_size=3))
    dots = [(n, origin) for origin, top in seen.items() for n in range(1, top + 1)]
    some = st.frozensets(st.sampled_from(dots), min_size=1, max_size=3) if dots else st.nothing()
    return seen, draw(st.dictionaries(elements, some, max_size=3)) if dots else {}


@st.composite
def states(draw: st.DrawFn) -> State:
    over = draw(st.just(NEVER) | versions)
    births = {}
    for stamp in draw(st.lists(versions, min_size=1, max_size=3, unique=True)):
        kind = draw(st.sampled_from([COUNTER, SET, MAX, MIN]))
        body = draw({COUNTER: counts, SET: sets()}.get(kind, extremes))
        births[stamp] = Birth(max(stamp, draw(versions)), kind, body)
    births = {stamp: birth for stamp, birth in births.items() if stamp > over}
    return State(over, births) if births else draw(states())


garbage = st.binary(max_size=4).map(lambda junk: MERGING + junk) | states().map(lambda state: build(state)[:-1])
values = st.none() | st.binary(max_size=2) | garbage | states().map(build)
registers = st.builds(lambda version, value: (*version, value), versions, values)


@given(registers, registers, registers)
def test_joining_is_commutative_associative_and_idempotent_for_any_bytes(a: Register, b: Register, c: Register) -> None:
    assert join(a, b) == join(b, a)
    assert join(join(a, b), c) == join(a, join(b, c))
    assert join(a, a) is a
    ab = join(a, b)
    assert join(ab, a) is ab
    assert join(ab, b) is ab


@given(states())
def test_a_state_has_one_encoding_and_comes_back(state: State) -> None:
    shuffled = State(state.over, dict(reversed(state.births.items())))
    assert build(shuffled) == build(state)
    assert parse(build(state)) == state
    assert build(parse(build(state)) or state) == build(state)


@given(st.lists(registers, min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_records_with_any_registers_merge_to_the_same_bytes_in_any_order(drawn: list[Register], rng: Random) -> None:
    packed = []
    for register in drawn:
        record = Record()
        record.registers["x"] = register
        record.counter = register[0]
        packed.append(record.pack())
    results = set()
    for _ in range(2):
        rng.shuffle(packed)
        whole = Record()
        for body in [*packed, packed[0]]:
            whole.merge(Record.unpack(body))
        size, removed = whole.size, whole.removed
        whole._recount()
        assert (size, removed) == (whole.size, whole.removed)
        results.add(whole.pack())
    assert len(results) == 1


@given(registers, registers)
def test_a_delta_merges_as_a_whole_record_does(old: Register, new: Register) -> None:
    if old[:2] == new[:2]:
        return
    by_delta, by_record, other = Record(), Record(), Record()
    for record in (by_delta, by_record):
        record.registers["x"] = old
        record._recount()
    other.registers["x"] = new
    by_delta.merge_delta(new[0], new[1], 0, {}, {"x": new[2]})
    by_record.merge(other)
    assert by_delta.registers == by_record.registers
    assert (by_delta.size, by_delta.removed) == (by_record.size, by_record.removed)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=16) | st.just(cbor2.undefined),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=2) | st.binary(max_size=16), inner, max_size=3),
    max_leaves=20,
)
shaped = st.builds(lambda row: [0, b"", [row]], st.tuples(st.just(1), st.just(ORIGINS[0]), st.just(1), st.just(ORIGINS[0]), st.integers(0, 4), plain))


@given(st.binary(max_size=60) | plain.map(cbor2.dumps) | shaped.map(cbor2.dumps))
def test_no_bytes_behind_the_tag_raise_anything_but_value_damaged(junk: bytes) -> None:
    try:
        value = TYPES.decode(MERGING + junk)
    except ValueDamaged:
        return
    assert TYPES.encode(value, "v") == MERGING + junk


@given(states(), st.data())
def test_a_flipped_byte_is_another_state_or_none(state: State, data: Any) -> None:
    whole = bytearray(build(state))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    again = parse(bytes(whole))
    assert again is None or build(again) == whole


# -- members that change the same attributes


@dataclass
class Act:
    """One operation; `seen`: the acts on this attribute that the request saw when it was opened."""

    name: str
    what: Any
    seen: frozenset[int]


@dataclass
class Delta:
    counter: int
    origin: bytes
    previous: int
    seen: dict[bytes, int]
    changes: dict[str, bytes | None]
    acts: dict[str, frozenset[int]]


@dataclass
class Request:
    session: Session
    seen: dict[str, frozenset[int]]


@dataclass
class Member:
    uid: bytes
    record: Record = field(default_factory=Record)
    acts: dict[str, frozenset[int]] = field(default_factory=lambda: dict.fromkeys("nsm", frozenset()))
    open: list[Request] = field(default_factory=list)


class Players:
    """Sessions over records, as the manager commits them, and a dumb model: all acts, and who had seen which."""

    def __init__(self) -> None:
        self.members = [Member(uid) for uid in ORIGINS]
        self.deltas: list[Delta] = []
        self.acts: list[Act] = []

    def open(self, member: Member) -> None:
        record = member.record
        session = Session(ManagerSettings(), TYPES, Random(1).randbytes, "i" * 43, b"k" * 16, record.registers.copy(), 0, record.size)
        member.open.append(Request(session, dict(member.acts)))

    def commit(self, member: Member, pick: int, name: str, what: Any) -> None:
        if not member.open:
            self.open(member)
        request = member.open.pop(pick % len(member.open))
        session, record = request.session, member.record
        if not self._act(session, name, what):
            return
        self.acts.append(Act(name, what, request.seen[name]))
        changes = session.changes()
        counter = record.counter + 1
        session.settle(changes, record.registers, (counter, member.uid))
        previous = record.applied.get(member.uid, 0)
        seen = {origin: n for origin, n in record.applied.items() if origin != member.uid}
        record.write(counter, member.uid, changes)
        session.committed(changes, (counter, member.uid))
        assert TYPES.encode(session[name], "") == changes[name]
        member.acts[name] |= {len(self.acts) - 1}
        self.deltas.append(Delta(counter, member.uid, previous, seen, dict(changes), {name: member.acts[name]}))

    def _act(self, session: Session, name: str, what: Any) -> bool:
        """Whether it changes what this request sees."""
        if name == "n":
            session.setdefault("n", Counter()).add(what)
            return True
        if name == "m":
            return bool(session.setdefault("m", Max()).offer(what))
        adding, element = what
        tags = session.setdefault("s", MergingSet())
        if (element in tags) is adding:
            return False
        (tags.add if adding else tags.discard)(element)
        return True

    def receive(self, member: Member, delta: Delta) -> None:
        if delta.origin == member.uid:
            return
        _, clashes = member.record.merge_delta(delta.counter, delta.origin, delta.previous, delta.seen, delta.changes)
        assert not clashes
        for name, acts in delta.acts.items():
            member.acts[name] |= acts

    def merge(self, member: Member, other: Member) -> None:
        member.record.merge(Record.unpack(other.record.pack()))
        for name, acts in other.acts.items():
            member.acts[name] |= acts

    def expected(self) -> dict[str, Any]:
        added = [act.what for act in self.acts if act.name == "n"]
        offered = [act.what for act in self.acts if act.name == "m"]
        present = set()
        for number, act in enumerate(self.acts):
            if act.name == "s" and act.what[0]:
                removals = [other for other in self.acts if other.name == "s" and other.what == (False, act.what[1])]
                if not any(number in removal.seen for removal in removals):
                    present.add(act.what[1])
        expected: dict[str, Any] = {}
        if added:
            expected["n"] = sum(added)
        if offered:
            expected["m"] = max(offered)
        if any(act.name == "s" for act in self.acts):
            expected["s"] = present
        return expected


who = st.sampled_from([0, 0, 0, 1, 1, 2])
counting = st.tuples(st.just("n"), st.integers(-3, 9).filter(bool))
tagging = st.tuples(st.just("s"), st.tuples(st.booleans(), st.sampled_from(["a", "a", 7])))
offering = st.tuples(st.just("m"), st.integers(-5, 5))


def some_steps(operations: Any) -> Any:
    """Mostly of one attribute, so that they meet."""
    commit = st.tuples(st.just("commit"), who, st.integers(0, 5), operations)
    return st.lists(
        st.one_of(
            st.tuples(st.just("open"), who, st.none(), st.none()),
            commit,
            commit,
            st.tuples(st.just("deliver"), who, st.integers(0, 50), st.none()),
            st.tuples(st.just("merge"), who, who, st.none()),
        ),
        min_size=15,
        max_size=40,
    )


steps = st.one_of(some_steps(counting), some_steps(tagging), some_steps(tagging), some_steps(offering), some_steps(counting | tagging | offering))


@given(steps)
def test_whatever_members_and_their_overlapping_requests_do_all_of_it_counts_once(steps: list[Any]) -> None:
    players = Players()
    for what, number, pick, operation in steps:
        member = players.members[number]
        if what == "open":
            players.open(member)
        elif what == "commit":
            players.commit(member, pick, *operation)
        elif what == "merge":
            players.merge(member, players.members[pick])
        elif players.deltas:
            players.receive(member, players.deltas[pick % len(players.deltas)])
    for member in players.members:
        for other in players.members:
            players.merge(member, other)
    for member in players.members:
        for other in players.members:
            players.merge(member, other)
    packed = {member.record.pack() for member in players.members}
    assert len(packed) == 1
    shown = {name: TYPES.decode(register[2] or b"") for name, register in players.members[0].record.registers.items()}
    assert {name: set(value) if name == "s" else value.value for name, value in shown.items()} == players.expected()


@given(steps, st.data())
def test_once_removed_and_pruned_nothing_of_the_past_brings_it_back(steps: list[Any], data: Any) -> None:
    players = Players()
    for what, number, pick, operation in steps:
        if what == "commit":
            players.commit(players.members[number], pick, *operation)
        elif what == "merge":
            players.merge(players.members[number], players.members[pick])
    past: list[Any] = [*players.deltas, *(Record.unpack(member.record.pack()) for member in players.members)]
    whole = Record()
    for member in players.members:
        whole.merge(Record.unpack(member.record.pack()))
    kept = {name: register for name, register in whole.registers.items() if name != "n"}
    whole.write(whole.counter + 1, ORIGINS[0], {"n": None})
    whole.prune()
    assert "n" not in whole.registers
    for item in data.draw(st.permutations(past)):
        if isinstance(item, Record):
            whole.merge(Record.unpack(item.pack()))
        else:
            whole.merge_delta(item.counter, item.origin, item.previous, item.seen, item.changes)
    assert whole.registers == kept


@given(registers, st.dictionaries(st.sampled_from(ORIGINS), st.integers(0, 4)))
def test_a_floor_leaves_what_it_does_not_cover(register: Register, floor: dict[bytes, int]) -> None:
    left = unpruned(register, floor)
    assert left is None or unpruned(left, floor) == left
    assert unpruned(register, {}) is register
    assert unpruned(register, dict.fromkeys(ORIGINS, 9)) is None
