"""Two ends of a link over a fake wire that cuts, delays and loses whatever it likes."""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from caterwaul.cluster.frames import ACK, FrameDecoder
from caterwaul.cluster.handshake import ACCEPTED, DIALLED, Answer, Greeting, Handshake
from caterwaul.cluster.link import Link
from caterwaul.cluster.meeting import Links, Meeting, Offer
from caterwaul.cluster.pipeline import Pipeline, cost
from caterwaul.membership.channel import CONTROL, DATA, Message, Waiter
from caterwaul.membership.codec import decode, encode
from caterwaul.membership.errors import RemoteError
from caterwaul.membership.member import Member

PIPELINE = Pipeline(chunk_bytes=1024, message_max_bytes=1 << 20, compress_above_bytes=0)


class Sent:
    """A message's waiter, which remembers what became of it."""

    def __init__(self, number: int, era: int, lane: int) -> None:
        self.number, self.era, self.lane = number, era, lane
        self.delivered = self.dropped = False
        self.told: list[str] = []

    def confirmed(self, uid: bytes) -> None:
        assert self.delivered, "confirmed before it was applied"
        self.told.append("confirmed")

    def failed(self, uid: bytes) -> None:
        self.told.append("failed")


class Wire:
    """One connection. `pipes[end]`: bytes on their way to that end."""

    def __init__(self, dialler: End, offer: Offer) -> None:
        self.dialler, self.offer = dialler, offer
        self.pipes: dict[End, bytearray] = {dialler: bytearray(), dialler.other: bytearray(offer.hello)}
        self.decoders = {end: FrameDecoder() for end in self.pipes}
        self.handshakes = {dialler: Handshake(DIALLED, dialler.me.uid, "c"), dialler.other: Handshake(ACCEPTED, dialler.other.me.uid, "c")}


class End:
    other: End

    def __init__(self, uid: int, outbox_max_bytes: int) -> None:
        self.me = Member(bytes([uid]) * 16, f"n{uid}", "10.0.0.1", uid)
        random = Random(uid)
        self.links = Links("c", random.randbytes, outbox_max_bytes=outbox_max_bytes, message_max_bytes=1 << 20)
        self.current: Wire | None = None
        self.sent: list[Sent] = []
        self.era = 0
        self.arrived: list[tuple[int, Any]] = []
        self.latest: dict[bytes, int] = {}

    @property
    def link(self) -> Link | None:
        return self.links.by_uid.get(self.other.me.uid)

    def fail(self, waiters: Any) -> None:
        for waiter in waiters:
            waiter.failed(self.other.me.uid)

    def confirm(self, messages: list[Message]) -> None:
        for message in messages:
            for waiter in message.waiters:
                waiter.confirmed(self.other.me.uid)

    def send(self, lane: int, size: int, keys: tuple[bytes, ...] = ()) -> None:
        link = self.link
        if link is None:
            return
        sent = Sent(len(self.sent), self.era, lane)
        self.sent.append(sent)
        message = Message("s", lane, encode([sent.number, bytes(size)]), keys, (sent,))
        parcels = PIPELINE.outbound(message)
        had = link.epoch
        self.fail(link.put(parcels, message, cost(parcels)))
        if link.epoch is None and had is not None:
            self.era += 1

    def meet(self, wire: Wire, meeting: Meeting) -> None:
        self.current = wire
        if not meeting.resumed:
            self.era += 1
        self.confirm(meeting.confirmed)
        self.fail(meeting.failed)

    def lose(self) -> None:
        self.current = None
        if self.link is not None:
            self.link.lost()


class World:
    def __init__(self, outbox_max_bytes: int) -> None:
        self.ends = End(1, outbox_max_bytes), End(2, outbox_max_bytes)
        self.ends[0].other, self.ends[1].other = self.ends[1], self.ends[0]
        self.wires: list[Wire] = []

    def dial(self, end: End) -> None:
        if end.current is None and len(self.wires) < 6:
            self.wires.append(Wire(end, end.links.offer(end.me, end.other.me.address)))

    def pull(self, end: End, budget: int) -> None:
        if end.current is not None and end.link is not None:
            end.current.pipes[end.other] += end.link.pull(0, budget)

    def deliver(self, wire: Wire, end: End, size: int) -> None:
        data = bytes(wire.pipes[end][:size])
        del wire.pipes[end][:size]
        try:
            for frame in wire.decoders[end].feed(data):
                self.frame(wire, end, frame)
        except RemoteError as error:
            if "meanwhile" not in str(error):  # the one thing that a late handshake may run into
                raise
            self.cut(wire)

    def frame(self, wire: Wire, end: End, frame: Any) -> None:
        handshake = wire.handshakes[end]
        if handshake.state == ACCEPTED or handshake.state == DIALLED:
            said = handshake.receive(frame)
            end.lose()
            if isinstance(said, Greeting):
                meeting = end.links.admit(end.me, said, 0.0)
                wire.pipes[end.other] += meeting.answer
            else:
                assert isinstance(said, Answer)
                meeting = end.links.conclude(wire.offer, end.other.me.address, said, 0.0)
            end.meet(wire, meeting)
        elif end.current is wire and end.link is not None:
            self.numbered(end, end.link, frame)

    def numbered(self, end: End, link: Link, frame: Any) -> None:
        if frame[0] == ACK:
            end.confirm(link.acknowledged(frame[1], frame[2]))
            return
        payload = link.accept(frame)
        if payload is not None:
            self.arrive(end, payload)
            link.applied(frame)

    def arrive(self, end: End, payload: bytes) -> None:
        number = decode(payload)[0]
        sent = end.other.sent[number]
        assert not sent.delivered, "delivered twice"
        assert all(earlier.delivered for earlier in end.other.sent[:number] if (earlier.era, earlier.lane) == (sent.era, sent.lane)), "a gap within an era"
        last = [other for lane, other in end.arrived if lane == sent.lane][-1:]
        assert not last or last[0] < number, "out of order"
        sent.delivered = True
        end.arrived.append((sent.lane, number))

    def cut(self, wire: Wire) -> None:
        if wire in self.wires:
            self.wires.remove(wire)
        for end in self.ends:
            if end.current is wire:
                end.lose()

    def reset(self, end: End) -> None:
        """Something went wrong at this end: it gives the link up."""
        if end.link is not None and end.link.epoch is not None:
            end.fail(end.link.discard())
            end.era += 1
            if end.current is not None:
                self.cut(end.current)

    def settle(self) -> None:
        """Everything fails, then one connection works for long enough."""
        for wire in list(self.wires):
            self.cut(wire)
        self.dial(self.ends[0])
        (wire,) = self.wires
        for _ in range(400):
            for end in self.ends:
                self.pull(end, 65536)
                self.deliver(wire, end, 1 << 20)


ENDS = st.integers(0, 1)
OPS = st.one_of(
    st.tuples(st.just("dial"), ENDS),
    st.tuples(st.just("send"), ENDS, st.sampled_from([CONTROL, DATA]), st.sampled_from([0, 10, 1000, 3000])),
    st.tuples(st.just("pull"), ENDS, st.sampled_from([1, 500, 5000])),
    st.tuples(st.just("deliver"), st.integers(0, 5), ENDS, st.sampled_from([1, 3, 30, 31, 200, 2000, 1 << 20])),
    st.tuples(st.just("cut"), st.integers(0, 5)),
    st.tuples(st.just("reset"), ENDS),
)


def act(world: World, op: Any) -> None:
    match op:
        case "dial", end:
            world.dial(world.ends[end])
        case "send", end, lane, size:
            world.ends[end].send(lane, size)
        case "pull", end, budget:
            world.pull(world.ends[end], budget)
        case "deliver", index, end, size if world.wires:
            world.deliver(world.wires[index % len(world.wires)], world.ends[end], size)
        case "cut", index if world.wires:
            world.cut(world.wires[index % len(world.wires)])
        case "reset", end:
            world.reset(world.ends[end])


@settings(max_examples=300)
@given(st.lists(OPS, max_size=120), st.sampled_from([1 << 20, 8000]))
def test_within_an_era_everything_arrives_once_and_in_order_and_every_waiter_learns_its_fate(ops: list[Any], outbox_max_bytes: int) -> None:
    """Handshakes in flight, answers lost, connections replaced or cut at any byte: never a repeat, a gap, or a waiter told wrongly."""
    world = World(outbox_max_bytes)
    world.dial(world.ends[0])
    world.deliver(world.wires[0], world.ends[1], 1 << 20)
    world.deliver(world.wires[0], world.ends[0], 1 << 20)
    for op in ops:
        act(world, op)
    world.settle()
    for end in world.ends:
        assert all(len(sent.told) == 1 for sent in end.sent)
        assert all(sent.delivered for sent in end.sent if sent.era == end.era and sent.told == ["confirmed"])
        assert all(sent.told == ["confirmed"] for sent in end.sent if sent.era == end.era and not sent.dropped and end.link and end.link.epoch)
        assert end.link is not None
        assert end.link.outbox.backlog == 0


@given(st.lists(st.integers(1, 400), min_size=1, max_size=60), st.integers(0, 60))
def test_a_connection_lost_at_any_byte_resumes_without_loss_or_repeat(chunks: list[int], cut_after: int) -> None:
    world = World(1 << 20)
    a, b = world.ends
    world.dial(a)
    wire = world.wires[0]
    world.deliver(wire, b, 1 << 20)
    world.deliver(wire, a, 1 << 20)
    for number in range(20):
        a.send(number % 2, number * 100)
    world.pull(a, 1 << 20)
    for index, chunk in enumerate(chunks):
        if index == cut_after:
            break
        world.deliver(wire, b, chunk)
        world.pull(b, 1000)
        world.deliver(wire, a, chunk)
    world.settle()
    assert sorted(number for _, number in b.arrived) == list(range(20))
    assert all(sent.told == ["confirmed"] for sent in a.sent)
    assert a.era == b.era == 1


@given(
    st.lists(
        st.tuples(st.sampled_from(["write", "pull", "deliver", "ack"]), st.integers(0, 9), st.sampled_from([CONTROL, DATA]), st.integers(1, 3000)), max_size=150
    )
)
def test_an_outbox_that_overflows_ends_with_every_key_at_its_latest_state(ops: list[tuple[str, int, int, int]]) -> None:
    """Deltas are dropped at the bound, memory stays under it, and the refills carry what the dropped ones said."""
    link = Link(Member(b"p" * 16, "p", "h", 1), outbox_max_bytes=10_000, message_max_bytes=1 << 20)
    peer = Link(Member(b"q" * 16, "q", "h", 2), outbox_max_bytes=10_000, message_max_bytes=1 << 20)
    link.begin(b"a" * 8, b"b" * 8)
    peer.begin(b"b" * 8, b"a" * 8)
    latest: dict[bytes, int] = {}
    there: dict[bytes, int] = {}
    waiting: dict[int, bool] = {}
    decoder, wire = FrameDecoder(), bytearray()

    class Wait:
        def __init__(self, key: bytes, version: int) -> None:
            self.key, self.version = key, version
            waiting[version] = False

        def confirmed(self, uid: bytes) -> None:
            assert not waiting[self.version]
            assert there[self.key] >= self.version
            waiting[self.version] = True

        def failed(self, uid: bytes) -> None:
            raise AssertionError("nothing fails here")

    def say(key: bytes, lane: int, size: int, waiters: tuple[Waiter, ...]) -> tuple[Any, Message, int]:
        message = Message("s", lane, encode([key, latest[key], bytes(size)]), (key,), waiters)
        parcels = PIPELINE.outbound(message)
        return parcels, message, cost(parcels)

    def refill() -> None:
        while (dirty := link.outbox.take_dirty()) is not None:
            name, keys, waiters = dirty
            assert name == "s"
            for index, key in enumerate(keys):
                link.outbox.put_refilled(*say(key, DATA, 50, tuple(waiters) if index == len(keys) - 1 else ()))
            link.outbox.refilled(len(keys), 100 * len(keys))

    def deliver(size: int) -> None:
        data = bytes(wire[:size])
        del wire[:size]
        for frame in decoder.feed(data):
            payload = peer.accept(frame)
            if payload is not None:
                key, version, _ = decode(payload)
                there[key] = max(version, there.get(key, 0))
                peer.applied(frame)

    def acknowledge() -> None:
        for message in link.acknowledged(*peer.received):
            for waiter in message.waiters:
                waiter.confirmed(b"p" * 16)
        refill()

    for version, (what, number, lane, size) in enumerate(ops, 1):
        key = bytes([number]) * 16
        if what == "write":
            latest[key] = version
            assert not link.put(*say(key, lane, size, (Wait(key, version),)))
            refill()
        elif what == "pull":
            wire += link.pull(0, size)
        elif what == "deliver":
            deliver(size)
        else:
            acknowledge()
        assert link.outbox.backlog <= 10_000
    for _ in range(100):
        wire += link.pull(0, 1 << 20)
        deliver(1 << 20)
        acknowledge()
    assert there == latest
    assert all(waiting.values())
    assert link.outbox.backlog == 0
    assert not link.outbox.is_dirty
