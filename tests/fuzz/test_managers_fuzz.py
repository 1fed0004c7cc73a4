"""Whatever a member says to a session manager raises a remote error or nothing, and the sessions held are served on."""

from __future__ import annotations

import contextlib
import os
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from caterwaul.managers.heads import EXPIRED, INVALIDATED, Cover, Head, live_head
from caterwaul.managers.messages import Session
from caterwaul.managers.placement import partition_of
from caterwaul.managers.record import Record
from caterwaul.managers.session import key_of
from caterwaul.membership.codec import decode, encode
from caterwaul.membership.errors import RemoteError
from tests.doubles import Net

OP_MAX = 16
_BURST = int(os.environ.get("CATERWAUL_FUZZ_EXAMPLES", "2000")) // 100

uids = st.sampled_from([bytes([n]) * 16 for n in (1, 2, 3)]) | st.binary(min_size=16, max_size=16)
numbers = st.integers(0, 9) | st.integers(-(2**63), 2**64 - 1)
leaves = st.none() | st.booleans() | numbers | st.floats() | st.text(max_size=4) | st.binary(max_size=40) | uids
plain = st.recursive(leaves, lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=4) | uids, inner, max_size=4), max_leaves=25)
arguments = st.lists(plain, max_size=5)


class Fixture:
    """A manager that holds a session, in the middle of things: a round, a look-up and a question of expiry are under way."""

    def __init__(self) -> None:
        self.net = Net(3)
        one = self.net.managers[0]
        session = one.open_local(None)
        session["a"] = [1]
        one.commit(session)
        self.net.deliver()
        self.id = session.id
        self.key = key_of(session.id)
        self.core = one._core
        self.peer = self.net.members[1].uid
        self.core.link_opened(1000, self.peer, False)
        self.core.finding.ask(b"?" * 16, 1000)

    def feed(self, message: object) -> None:
        """What the channel lets through is an array [name, operation, ...]."""
        if type(message) is not list or len(message) < 2 or type(message[1]) is not int:
            return
        with contextlib.suppress(RemoteError):
            for effect in self.core.receive(2000, self.peer, message, 7):
                assert effect is not None

    def check(self) -> None:
        """All it holds can be packed and told, and it goes on working."""
        core, replica = self.core, self.core.replica
        live = dead = 0
        for key, entry in replica.entries():
            assert replica.get(key) is entry
            body = replica.body_of(entry)
            if body is not None:
                assert Record.unpack(body).pack() is not None
            if entry.head is None or not entry.head.state:
                live += 1
            else:
                dead += 1
        assert (live, dead) == (replica.live, replica.tombstones)
        core.tick(3000)
        fresh = self.net.managers[0].open_local(None)
        fresh["still"] = "works"
        self.net.managers[0].commit(fresh)
        assert dict(self.net.managers[0].open_local(fresh.id)) == {"still": "works"}


def valid(fixture: Fixture) -> list[bytes]:
    """One message of each kind about the session that is held, and about others."""
    say, key, uid = fixture.core.say, fixture.key, fixture.peer
    record = Record()
    record.write(3, uid, {"a": b"\x81\x02", "b": None})
    cover = Cover({uid: 1}, {uid: 5})
    other = b"o" * 16
    round_ = fixture.core.entropy._rounds[uid]
    delta = [key, 4, 3, {fixture.core.me: 1}, {"a": b"\x01", "c": None}, 900]
    return [m if type(m) is bytes else m.payload for m in (
        encode(["default", 1, uid, [delta, [other, 1, 0, {}, {"a": b"\x01"}, 900, 800]]]),
        say.records([Session(key, live_head(2, uid, uid), 5, (uid, 9, 9), record.pack()), Session(other, Head(INVALIDATED, 3, uid, uid, (), None, 9), 5, (), None)]),
        say.touches([(key, 50), (other, 60)]),
        say.heads([(key, Head(EXPIRED, 2, uid, uid, (), cover, 10)), (other, live_head(1, uid, uid))]),
        say.want([key, other]), say.offer(), say.inventory(1, 0, 4096, [(key, b"d" * 8), (other, b"e" * 8)]),
        say.covered(1, 4096, [key]), say.synced(1), say.lookup(key), say.answer(b"?" * 16, 0), say.ask([key, other]), say.access([(key, (uid, 8, 8), False)]),
        say.sums(1, 4094, b"s" * 16), say.differ(round_.number, round_.start, round_.stop, [round_.start]),
        say.inventory(1, 0, 4096, [(other, b"e" * 8)], [partition_of(other)]), say.covered(round_.number, round_.stop, [key, other], [b"d" * 8]),
    )]  # fmt: skip


@given(st.integers(0, OP_MAX), arguments)
def test_any_plain_data_as_the_arguments_of_any_operation(op, rest):
    fixture = Fixture()
    fixture.feed(decode(encode(["default", op, *rest])))
    fixture.check()


@given(st.lists(st.tuples(st.integers(0, 16), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=2)), min_size=1, max_size=6))
def test_valid_messages_with_a_few_bytes_changed_in_any_order(steps):
    fixture = Fixture()
    messages = valid(fixture)
    for which, changes in steps:
        data = bytearray(messages[which])
        for position, byte in changes:
            data[position % len(data)] = byte
        with contextlib.suppress(RemoteError):
            fixture.feed(decode(bytes(data)))
    fixture.check()


def test_thousands_of_messages_with_an_element_exchanged():
    """Deeper than bytes: any element of a valid message becomes another plain value."""
    rng = Random(5)
    odd = [None, True, -1, 0, 2**53, 2**64 - 1, 1.5, "", "a", b"", b"u" * 16, [], {}, [[]], {"a": 1}, {b"u" * 16: 2}, ["x"] * 7, [b"k" * 16] * 3]

    def exchange(value: object) -> object:
        if isinstance(value, list) and value and rng.random() < 0.85:
            i = rng.randrange(len(value))
            return [*value[:i], exchange(value[i]), *value[i + 1 :]]
        if isinstance(value, dict) and value and rng.random() < 0.7:
            key = rng.choice(sorted(value))
            return {**value, key: exchange(value[key])}
        return rng.choice(odd)

    for _ in range(_BURST):
        fixture = Fixture()
        messages = [decode(data) for data in valid(fixture)]
        for _ in range(60):
            message = rng.choice(messages)
            changed = exchange(message[2:])
            fixture.feed(decode(encode([*message[:2], *(changed if isinstance(changed, list) else [changed])])))
        fixture.check()


@given(st.binary(max_size=300))
def test_any_bytes_as_a_record_body(data):
    try:
        record = Record.unpack(data)
    except RemoteError:
        return
    assert Record.unpack(record.pack()).registers == record.registers
