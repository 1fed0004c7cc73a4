"""Every decoder of bytes that somebody else hands us: a stranger on the network, a member, a browser.

One table: what runs an input, what it may raise (mostly `RemoteError`, or nothing at all), how many bytes its caller lets through, and
valid examples, made by our own encoders. A runner checks more than that nothing escapes: what was understood can be said again and is
the same, however a stream is cut it says the same, and a manager that was told nonsense goes on working.

A target whose runner keeps state gets a new one every `lives` inputs; what failed is then all inputs since the last new one.
"""

from __future__ import annotations

import zlib
from base64 import urlsafe_b64decode
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import partial
from random import Random
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from twisted.internet.task import Clock

from caterwaul.cluster.balancer.choice import route_of
from caterwaul.cluster.frames import ACK, CONTROL, DATA, FrameDecoder, encode_ack, encode_hello, encode_piece, encode_refuse
from caterwaul.cluster.handshake import ACCEPTED, DIALLED, Answer, Greeting, Handshake, encode_answer, encode_greeting
from caterwaul.cluster.link import Link
from caterwaul.cluster.locks import LockDesk
from caterwaul.cluster.meeting import Links
from caterwaul.cluster.pipeline import Pipeline
from caterwaul.cluster.rehearsal import Rehearsal
from caterwaul.cluster.requests import Requests
from caterwaul.cluster.security.proof import EXPORTER_BYTES, Proof
from caterwaul.cluster.stages.compressing import compress
from caterwaul.managers.changes import batch_prefix, check_deltas, encode_batch, encode_delta
from caterwaul.managers.errors import ValueDamaged, ValueRefused
from caterwaul.managers.heads import INVALIDATED, Head
from caterwaul.managers.kept import Kept, KeptEnd, is_end, joined_items, read_item
from caterwaul.managers.merging import (
    COUNTER,
    MAX,
    MERGING,
    MIN,
    NEVER,
    NUMBER,
    SET,
    TEXT,
    Birth,
    State,
    build,
    elements,
    extreme,
    join,
    parse,
    reborn,
    total,
    unpruned,
)
from caterwaul.managers.merging_types import Counter, Max, MergingSet, Min, merging_from
from caterwaul.managers.record import Record, clashes
from caterwaul.managers.tokens import add_commit, authentic, claimed, write_token
from caterwaul.managers.values import ValueTypes
from caterwaul.managers.web.cookies import CookieSettings, read_cookie, write_cookie
from caterwaul.membership.channel import CONTROL as CONTROL_LANE
from caterwaul.membership.channel import DATA as DATA_LANE
from caterwaul.membership.channel import Message
from caterwaul.membership.codec import decode, encode
from caterwaul.membership.discovery.base import parse_address
from caterwaul.membership.errors import LocalError, RemoteError
from caterwaul.membership.member import Member
from caterwaul.membership.messages import (
    DATAGRAM_BYTES_MAX,
    Alive,
    Announcement,
    Ask,
    Farewell,
    Heartbeat,
    Known,
    Probe,
    Verdict,
    decode_control,
    decode_heartbeat,
)  # fmt: skip
from caterwaul.membership.sealing import SealedDatagrams
from caterwaul.membership.secret import Secret

from .forms import ALL, FRAMED, Form, after, framed
from .managers import KINDS, Fixture, valid

__all__ = ["FRAME_MAX", "TARGETS", "Target"]

FRAME_MAX = 64 * 1024  # larger ones are the business of test_bombs: nothing new is in them but size

Run = Callable[[bytes], object]

ME = Member(b"m" * 16, "n1", "10.0.0.1", 7000, zone="z", payload={"managers": ["default"], "kinds": {"default": "backup/1"}})
PEER = Member(b"p" * 16, "n2", "::1", 7001, domain="blue", machine="rack", weight=0, versions=(1, 1))
FRESH, EPOCH, KEY, SECRET = b"f" * 8, b"e" * 8, b"k" * 16, b"s" * 16
GREETING = encode_greeting(replace(PEER, versions=(1, 2)), "c", epoch=EPOCH, fresh=FRESH, peer=None, received=(3, 4))
ANSWER = encode_answer(PEER, "c", Answer(PEER, 1, False, EPOCH, (0, 0)))


class Target(NamedTuple):
    """`fresh` makes a runner. `form`: where the CBOR is in an input, if it is CBOR."""

    fresh: Callable[[], Run]
    seeds: Callable[[], list[bytes]]
    may_raise: tuple[type[Exception], ...] = (RemoteError,)
    bytes_max: int = FRAME_MAX
    form: Form | None = None
    lives: int = 0  #: inputs of one runner; 0: it keeps no state

    @staticmethod
    def of(run: Run, seeds: Callable[[], list[bytes]], *more: Any, **options: Any) -> Target:
        """Without state."""
        return Target(lambda: run, seeds, *more, **options)


# -- datagrams


SECRETS = [Secret(b"s" * 32), Secret(b"t" * 32)]


def sealed(uid: bytes) -> SealedDatagrams:
    return SealedDatagrams(SECRETS, "shop", uid, Random(1).randbytes)


def heartbeats() -> list[bytes]:
    return [Heartbeat("shop", b"u" * 16, "n1", "10.0.0.1", 7000).encode(), Heartbeat.of(PEER, "c").encode()]


def heartbeat(data: bytes) -> None:
    heard = decode_heartbeat(data)
    assert decode_heartbeat(encode(["CW", 1, heard.cluster, heard.uid, heard.name, heard.host, heard.port, heard.domain])) == heard


def sealed_datagram(data: bytes) -> None:
    """Nobody without the secret can say anything, and what is sealed comes out as it went in, once."""
    sealer, opener = sealed(b"a" * 16), sealed(b"b" * 16)
    opened = opener.open(data)
    assert opened is None or data in sealed_heartbeats()
    again = sealer.seal(data)
    assert opener.open(again) == data
    assert opener.open(again) is None


def sealed_heartbeats() -> list[bytes]:
    sealer = sealed(b"d" * 16)
    return [sealer.seal(data) for data in heartbeats()]


# -- admission


def prover(*, dialled: bool) -> Proof:
    return Proof({secret.id: secret for secret in SECRETS}, "shop", (b"a" if dialled else b"b") * 16, b"e" * EXPORTER_BYTES, dialled=dialled)


def proofs(dialled: bool) -> list[bytes]:
    """What this end is told by the one that holds the same secrets, on the same connection."""
    one, two = prover(dialled=True), prover(dialled=False)
    offer = one.begin()
    answer, _ = two.receive(offer)
    last, _ = one.receive(answer)
    return [answer] if dialled else [offer + last]


def proof(dialled: bool, data: bytes) -> None:
    """However it is cut, and whatever it is, nobody is admitted but by these very bytes."""
    end = prover(dialled=dialled)
    end.begin()
    for at in range(0, len(data), 7):
        if end.identity is None:
            end.receive(data[at : at + 7])
    assert end.identity is None or data.startswith(proofs(dialled)[0])


# -- frames and handshakes


def frames() -> list[bytes]:
    how, small = compress(encode(["x", 1, "a" * 3000]))
    control, data = [encode(control.to_wire()) for control in CONTROLS], encode_batch(batch_prefix("default", 1, PEER.uid), deltas())
    stream = GREETING + encode_ack(1, 2) + b"".join(encode_piece(CONTROL, n, 5, 0, body) for n, body in enumerate(control, 1))
    cut = encode_piece(DATA, 1, 5, 1, data[:20]) + encode_piece(DATA, 2, 6, 0, data[20:])
    general = framed(encode([CONTROL, 1, 5, 0, control[0]])) + framed(encode([ACK, 0, 1]))
    return [GREETING, ANSWER, encode_refuse("cluster: no"), stream, GREETING + cut, general, encode_piece(DATA, 1, 2, how << 1, small), encode_hello({})]


def stream(data: bytes) -> None:
    """However it is cut, the same frames come out, and then the same error."""

    def feed(cuts: Random | None) -> tuple[list[Any], bool]:
        decoder, at, found = FrameDecoder(), 0, []
        try:
            while at < len(data) or not at:
                size = len(data) + 1 if cuts is None else cuts.choice((0, 1, 2, 3, 4, 5, 7, 30, 1000))
                found += decoder.feed(data[at : at + size])
                at += size or (cuts is None or len(data) == 0)
        except RemoteError:
            return found, True
        return found, False

    whole, cut = feed(None), feed(Random(zlib.crc32(data)))
    assert repr(cut[0][: len(whole[0])]) == repr(whole[0])  # of a chunk with an error nothing comes out
    assert cut[1] == whole[1]
    assert whole[1] or len(cut[0]) == len(whole[0])


def handshake(state: str, data: bytes) -> None:
    """Through to the link that comes of it."""
    first = FrameDecoder().feed(data)[:1]
    links = Links("c", Random(1).randbytes, outbox_max_bytes=1 << 20, message_max_bytes=1 << 20)
    offer = links.offer(ME, ("10.0.0.2", 7000))
    for frame in first:
        said = Handshake(state, ME.uid, "c").receive(frame)
        if isinstance(said, Greeting):
            links.refuse_duplicate(ME, said, 0.0, lambda _: False)
            links.admit(ME, said, 0.0)
            FrameDecoder().feed(links.admit(ME, said, 0.0).answer)
        else:
            assert isinstance(said, Answer)
            links.conclude(offer, ("10.0.0.2", 7000), said, 0.0)


class Inbound:
    """An established link, as the channel has it, up to the decoded message: frames, assembly, inflating, CBOR."""

    def __init__(self) -> None:
        self.pipeline = Pipeline(chunk_bytes=1024, message_max_bytes=1 << 20, compress_above_bytes=1024)

    def __call__(self, data: bytes) -> None:
        link, decoder = Link(PEER, outbox_max_bytes=1 << 20, message_max_bytes=1 << 20), FrameDecoder()
        link.begin(EPOCH, FRESH)
        for lane in (CONTROL_LANE, DATA_LANE):
            message = Message("x", lane, b"x" * 10)
            link.put(self.pipeline.outbound(message), message, 10)
        link.pull(1, 1 << 20)
        decoder.feed(GREETING)
        for frame in decoder.feed(data):
            if frame[0] in (CONTROL, DATA):
                payload = link.accept(frame)
                if payload is not None:
                    decode(self.pipeline.inbound(payload, frame[3]))
                    link.applied(frame)
            elif frame[0] == ACK:
                link.acknowledged(frame[1], frame[2])
        FrameDecoder().feed(link.pull(2, 1 << 20))


def pipeline(data: bytes) -> None:
    """The first byte is the flags of the message's last frame."""
    line = Pipeline(chunk_bytes=1024, message_max_bytes=1 << 20, compress_above_bytes=0)
    assert len(line.inbound(data[1:], data[0] % 6 if data else 0)) <= 1 << 20


def compressed() -> list[bytes]:
    how, small = compress(b"the same again and again " * 100)
    return [bytes((how << 1,)) + small, b"\x02" + zlib.compress(b"", 9), b"\0plain", b"\x04(\xb5/\xfd"]


# -- membership and requests

CONTROLS = (
    Probe(1), Alive(2**62), Ask(3, b"u" * 16), Verdict(3, b"u" * 16, True), Known(((b"u" * 16, "10.0.0.1", 1), (b"v" * 16, "::1", 2))), Farewell(),
    Announcement(ME),
)  # fmt: skip


def control(data: bytes) -> None:
    message = decode(data)
    if type(message) is list and len(message) >= 2:
        found = decode_control(message)
        again = decode_control(decode(encode(found.to_wire())))
        assert encode(again.to_wire()) == encode(found.to_wire())


def member(data: bytes) -> None:
    found = Member.from_wire(decode(data))
    assert Member.from_wire(decode(encode(found.to_wire()))) == found
    assert found.managers >= set()
    assert isinstance(found.kind_of("default"), str)
    assert found.version
    assert repr(found)


class Mute:
    """A channel that carries nothing. `serve` is what the node's channel has besides."""

    me = ME

    def __init__(self) -> None:
        self.requests = Requests(self, Clock())  # type: ignore[arg-type]
        self.serve = self.requests.serve

    def send(self, to: Any, message: Message) -> None:
        decode(message.payload)


class Questions:
    """Requests, and the services that managers have with each other."""

    def __init__(self) -> None:
        mute = Mute()
        self.requests = mute.requests
        managers = {"default": Fixture().manager}
        Rehearsal(mute, managers, Clock())
        LockDesk(mute, managers, Clock())
        self.requests.start()
        for _ in range(3):
            self.requests.request((PEER.uid,), "survey", 0, ["default", b"", 10], timeout_s=60.0).addErrback(lambda _: None)

    def __call__(self, data: bytes) -> None:
        message = decode(data)
        if type(message) is list and len(message) >= 2 and message[0] == "?" and type(message[1]) is int:
            self.requests.received(PEER, message, 0)


def questions() -> list[bytes]:
    bodies = [[0, ["default", b"", 100]], [1, ["default", [KEY]]], [2, ["default", KEY + b"d" * 8]]]
    asks = [encode(["?", 0, 9, "survey", op, body]) for op, body in bodies]
    bodies = [[0, ["default", KEY, 7, 1000, 1000, b"v" * 8]], [1, ["default", KEY, 7, [[b"author", 3]]]], [2, ["default", 1]]]
    asks += [encode(["?", 0, 9, "locks", op, body]) for op, body in bodies]
    return [*asks, encode(["?", 1, 1, b"d" * 24]), encode(["?", 2, 2, "nobody serves this here"])]


# -- what managers keep


def manager(kind: str) -> Target:
    return Target(lambda: Fixture(kind).feed_bytes, lambda: valid(Fixture(kind)), form=ALL, lives=200)


def records() -> list[bytes]:
    empty, one, two = Record(), Record(), Record()
    one.write(1, ME.uid, {"a": b"\x01", "b": None, "n": COUNTED, "\0token": SECRET})
    two.merge_delta(5, PEER.uid, 3, {ME.uid: 1}, {"a": b"\x02", "s": SETS, "n": COUNTED})
    two.write(6, ME.uid, {"c": None})
    two.prune()
    both = Record.unpack(one.pack())
    both.merge(two)
    return [record.pack() for record in (empty, one, two, both)]


def record(data: bytes) -> None:
    """The same again when packed, and whatever is in it, it merges with others in both directions. (The laws of merging are of records that can be: tests/property.)"""
    found = Record.unpack(data)
    again = Record.unpack(found.pack())
    assert (again.registers, again.size, again.removed) == (found.registers, found.size, found.removed)
    for other in map(Record.unpack, records()):
        here, there = Record.unpack(data), Record.unpack(other.pack())
        clashes(here, other, KEY)
        here.merge(other)
        there.merge(found)
        for merged in (here, there):
            again = Record.unpack(merged.pack())
            assert (again.registers, again.size, again.removed, again.applied, again.floor) == (
                merged.registers,
                merged.size,
                merged.removed,
                merged.applied,
                merged.floor,
            )
    found.prune()
    Record.unpack(found.pack())


def kept(data: bytes) -> None:
    """What a store or a snapshot has of a session."""
    found = read_item(data)
    assert read_item(found.pack()) == found
    assert is_end(data) is isinstance(found, KeptEnd)
    if isinstance(found, Kept):
        Record.unpack(found.body)
    joined_items(data, data)


def deltas() -> list[bytes]:
    return [
        encode_delta(KEY, 4, 3, {ME.uid: 1}, {"a": b"\x01", "c": None, "n": COUNTED}, 900),
        encode_delta(b"o" * 16, 1, 0, {}, {}, 2**40, -5),
        encode_delta(b"q" * 16, 300, 0, {}, {f"a{n}": b"x" * 30 for n in range(30)}, 900, 800, PEER.uid),
    ]


def merged_deltas(data: bytes) -> None:
    """A batch's deltas, checked and merged."""
    batch = decode(data)
    check_deltas(batch)
    into = Record()
    into.write(3, ME.uid, {"a": b"\x01", "n": COUNTED, "s": SETS})
    for delta in batch:
        into.merge_delta(delta[1], PEER.uid, delta[2], delta[3], delta[4], KEY)
    assert Record.unpack(into.pack()).registers == into.registers


# -- values

V1, V2, V3 = (1, ME.uid), (2, PEER.uid), (3, ME.uid)
COUNTED = build(State(NEVER, {V1: Birth(V2, COUNTER, {ME.uid: (5, 1), PEER.uid: (0, 2)})}))
SETS = build(
    State(V1, {V2: Birth(V3, SET, ({PEER.uid: 2, ME.uid: 3}, {b"\x01": frozenset({V2}), b"\x61x": frozenset({V2, V3})})), V3: Birth(V3, SET, ({}, {}))})
)
EXTREMES = build(State(NEVER, {V1: Birth(V1, MAX, (NUMBER, 1.5)), V2: Birth(V2, MIN, (TEXT, "a")), V3: Birth(V3, MAX, None)}))


def merging_values() -> list[bytes]:
    types = ValueTypes()
    offered = ("a", b"b", Decimal("1.5"), date(2020, 1, 2), datetime(2020, 1, 2), datetime(2020, 1, 2, tzinfo=UTC), timedelta(1), 2**60)
    made: list[Any] = [Counter(-5), MergingSet({1, "x", (1, 2), None}), *map(Max, offered), *map(Min, offered[:2])]
    return [COUNTED, SETS, EXTREMES, *(types.encode(value, "a") for value in made)]


def merging(data: bytes) -> None:
    """Raises nothing: what is no merging value is plain. Joining is commutative and idempotent for anything."""
    state = parse(data)
    if state is not None:
        assert build(state) == data
        kind = state.births[max(state.births)].kind
        {COUNTER: total, SET: elements, MAX: extreme, MIN: extreme}[kind](state)
        assert parse(reborn(data, (9, KEY))) is not None
    mine = (7, PEER.uid, data)
    unpruned(mine, {ME.uid: 2, PEER.uid: 2})
    for other in (COUNTED, SETS, EXTREMES, b"\x01", None):
        theirs = (5, ME.uid, other)
        both = join(mine, theirs)
        assert both == join(theirs, mine) == join(both, mine) == join(both, theirs)


def merging_object(data: bytes) -> None:
    """What an application sees of it, uses and commits."""
    types = ValueTypes()
    found: Any = merging_from(data, types)
    assert repr(found)
    assert found == found
    if isinstance(found, Counter):
        found.add(1)
    elif isinstance(found, MergingSet):
        found.add("another")
    else:
        found.value  # noqa: B018
    assert parse(found.encoded(types, "a")) is not None


class Point(NamedTuple):
    x: int
    y: int


def value_types() -> ValueTypes:
    types = ValueTypes()
    types.register(Point, "point", list, lambda content: Point(*content))
    return types


VALUES: tuple[Any, ...] = (
    None, True, 1, -(2**70), 1.5, "text", b"bytes", [1, [2, [3]]], {"a": {"b": b"c"}}, {1: 2, None: 3, "x": 4.5}, (1, (2, "x")), {1, 2, "a"}, frozenset({b"x"}),
    datetime(2020, 1, 2, 3, 4, 5, 6), datetime(2020, 1, 2, tzinfo=ZoneInfo("Europe/Berlin"), fold=1), datetime(2020, 1, 2, tzinfo=timezone(timedelta(minutes=90))),
    date(2020, 1, 2), time(3, 4, fold=1), timedelta(-1, 5, 7), Decimal("-1.50E+3"), Decimal("NaN"), UUID(int=5), Point(1, 2), [{"when": [date.max, Point(0, 1)]}],
)  # fmt: skip


def value(types: ValueTypes, data: bytes) -> None:
    """What comes out can be looked at; what can be encoded again comes out the same."""
    found = types.decode(data)
    types.is_immutable(found)
    try:
        again = types.encode(found, "a")
    except ValueRefused:
        return
    assert types.encode(types.decode(again), "a") == again


# -- browsers

COOKIE = CookieSettings()
ID = "A" * 43


def cookies() -> list[bytes]:
    token = write_token({b"o" * 6: 5, b"p" * 6: 2**40}, SECRET, KEY)
    written = [
        write_cookie(COOKIE, ID, "n1"),
        write_cookie(COOKIE, ID, "n1", token),
        f"{COOKIE.name}={ID}",
        f"a=b; {COOKIE.name}={ID}.n1 ;c=d",
        f"{COOKIE.name}=",
    ]
    return [text.encode() for text in written]


def cookie(data: bytes) -> None:
    ticket = read_cookie(COOKIE, [data.decode("latin-1")])
    assert ticket.id is None or (len(ticket.id) == 43 and ticket.found == 1)
    claimed(ticket.token)
    route_of(data)
    route_of(data.partition(b"=")[2])
    if ticket.id is not None:
        assert read_cookie(COOKIE, [write_cookie(COOKIE, ticket.id, ticket.route or "n", ticket.token).partition(";")[0]]).id == ticket.id


def token(data: bytes) -> None:
    """Nobody without the secret makes one."""
    text = data.decode("latin-1")
    claimed(text)
    written = authentic(text, SECRET, KEY)
    assert not written or _whole(data) in map(_whole, tokens())
    assert authentic(add_commit(text, SECRET, KEY, ME.uid, 5), SECRET, KEY)[ME.uid[:6]] >= 5


def _whole(token: bytes) -> bytes:
    return urlsafe_b64decode(token + b"=" * (-len(token) % 4))  # which says nothing of the spare bits of the last character


def tokens() -> list[bytes]:
    commits: list[dict[bytes, int]] = [{b"o" * 6: 1}, {b"o" * 6: 5, b"p" * 6: 2**40}, {bytes([n]) * 6: 2**63 for n in range(4)}]
    return [write_token(written, SECRET, KEY).encode() for written in commits]


def plain_value(data: bytes) -> None:
    found = decode(data)
    assert repr(decode(encode(found))) == repr(found)


TARGETS: dict[str, Target] = {
    "codec": Target.of(plain_value, lambda: [encode(value) for value in (None, [1, -1, 1.5, "a", b"b", {}], {"a": {b"b": [[]]}}, 2**64 - 1)], form=ALL),
    "datagram": Target.of(heartbeat, heartbeats, bytes_max=DATAGRAM_BYTES_MAX, form=ALL),
    "datagram-sealed": Target.of(sealed_datagram, sealed_heartbeats, (), DATAGRAM_BYTES_MAX),
    "proof-accepted": Target.of(partial(proof, False), partial(proofs, False)),
    "proof-dialled": Target.of(partial(proof, True), partial(proofs, True)),
    "stream": Target.of(stream, frames, form=FRAMED),
    "hello-accepted": Target.of(partial(handshake, ACCEPTED), frames, form=FRAMED),
    "hello-dialled": Target.of(partial(handshake, DIALLED), frames, form=FRAMED),
    "inbound": Target(Inbound, lambda: [seed.removeprefix(GREETING) for seed in frames()], form=FRAMED),
    "pipeline": Target.of(pipeline, compressed),
    "control": Target.of(control, lambda: [encode(control.to_wire()) for control in CONTROLS], form=ALL),
    "member": Target.of(member, lambda: [encode(one.to_wire()) for one in (ME, PEER)], form=ALL),
    "kept": Target(
        lambda: kept,
        lambda: (
            [Kept(b"k" * 16, 5, 9, record).pack() for record in records()]
            + [KeptEnd(b"k" * 16, Head(INVALIDATED, 2, b"u" * 16, b"u" * 16, (), None, 9)).pack()]
        ),
        form=ALL,
    ),
    "requests": Target(Questions, questions, form=ALL, lives=1000),
    **{f"manager-{kind}": manager(kind) for kind in KINDS},
    "record": Target.of(record, records, form=ALL),
    "deltas": Target.of(merged_deltas, lambda: [b"\x80", encode_batch(b"", deltas())], form=ALL),
    "merging": Target.of(merging, merging_values, (), form=after(len(MERGING))),
    "merging-object": Target.of(merging_object, merging_values, (ValueDamaged,), form=after(len(MERGING))),
    "value": Target(lambda: partial(value, value_types()), lambda: [value_types().encode(value, "a") for value in VALUES], (ValueDamaged,), form=ALL),
    "cookie": Target.of(cookie, cookies, ()),
    "token": Target.of(token, tokens, ()),
    "address": Target.of(lambda data: parse_address(data.decode("latin-1"), 7000), lambda: [b"10.0.0.1:7000", b"[::1]:7", b"::1", b"host"], (LocalError,)),
}
