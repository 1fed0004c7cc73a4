"""The channel over real TCP on loopback, in one process: each test runs a reactor of its own."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from random import Random
from typing import Any

import pytest
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.task import deferLater

from caterwaul.cluster.channel import GroupChannel
from caterwaul.cluster.errors import ChannelError
from caterwaul.cluster.settings import ChannelSettings
from caterwaul.membership.channel import CONTROL, DATA, Message, Waiter
from caterwaul.membership.codec import encode
from caterwaul.membership.errors import LocalError, RemoteError
from caterwaul.membership.member import Member

SETTINGS = ChannelSettings(reconnect_min_s=0.02, reconnect_max_s=0.1)
Steps = Generator[Deferred[Any], Any, None]


class Panic(BaseException):
    """What a library in Rust raises when it gets no memory is no `Exception`."""


class Node:
    """A channel with one receiver, `app`, that writes down what it is told."""

    def __init__(self, reactor: Any, name: str, uid: int, settings: ChannelSettings = SETTINGS, cluster: str = "test") -> None:
        me = Member(bytes([uid]) * 16, name, "127.0.0.1", 0)
        self.channel = GroupChannel(me, settings, cluster, reactor, rng=Random(uid), entropy=os.urandom)
        self.events: list[Any] = []
        self.messages: list[Any] = []
        self.states: dict[bytes, Any] = {}
        self.channel.attach("app", self)

    @property
    def uid(self) -> bytes:
        return self.channel.me.uid

    def received(self, peer: Member, message: list[Any], offset_ms: int) -> None:
        if message[1] == 666:
            raise RemoteError("app: 666")
        if message[1] == 667:
            raise ZeroDivisionError
        if message[1] == 668:
            raise Panic
        assert abs(offset_ms) < 1000
        self.messages.append(message[2])

    def link_opened(self, peer: Member, resumed: bool) -> None:
        self.events.append(("opened", peer.name, resumed))

    def link_lost(self, peer: Member) -> None:
        self.events.append(("lost", peer.name))

    def refill(self, peer: Member, keys: Iterable[bytes], waiters: Sequence[Waiter]) -> Iterable[Message]:
        keys = list(keys)
        self.events.append(("refill", len(keys)))
        yield say(["state", [self.states.get(key) for key in keys]], keys=keys, waiters=waiters)

    def send(self, to: Node, *messages: Message) -> None:
        for message in messages:
            self.channel.send((to.uid,), message)


class Told:
    def __init__(self) -> None:
        self.told: list[tuple[str, bytes]] = []

    def confirmed(self, uid: bytes) -> None:
        self.told.append(("confirmed", uid))

    def failed(self, uid: bytes) -> None:
        self.told.append(("failed", uid))


def say(body: Any, lane: int = DATA, op: int = 1, keys: Sequence[bytes] = (), waiters: Sequence[Waiter] = ()) -> Message:
    return Message("app", lane, encode(["app", op, body]), keys, waiters)


class World:
    def __init__(self) -> None:
        self.reactor = EPollReactor()
        self.reactor.seconds = time.monotonic
        self.nodes: list[Node] = []

    def node(self, name: str, uid: int, *args: Any, **kwargs: Any) -> Node:
        node = Node(self.reactor, name, uid, *args, **kwargs)
        self.nodes.append(node)
        return node

    def pause(self, seconds: float) -> Deferred[None]:
        return deferLater(self.reactor, seconds, lambda: None)

    @inlineCallbacks
    def until(self, what: Callable[[], object], timeout_s: float = 10.0) -> Generator[Deferred[Any], Any, None]:
        end = time.monotonic() + timeout_s
        while not what():
            assert time.monotonic() < end, f"did not happen; {[(node.events, node.channel.statistics()) for node in self.nodes]}"
            yield self.pause(0.005)

    @inlineCallbacks
    def pair(self, *args: Any, **kwargs: Any) -> Generator[Deferred[Any], Any, tuple[Node, Node]]:
        a, b = self.node("a", 1, *args, **kwargs), self.node("b", 2, *args, **kwargs)
        yield a.channel.start()
        yield b.channel.start()
        a.channel.dial("127.0.0.1", b.channel.port)
        yield self.until(lambda: a.events and b.events)
        return a, b

    def run(self, steps: Callable[[World], Steps]) -> None:
        """Run to the end, stop all nodes, and let an error of the steps through."""
        errors: list[Any] = []

        @inlineCallbacks
        def main() -> Generator[Deferred[Any], Any, None]:
            try:
                yield inlineCallbacks(steps)(self)
            except BaseException:
                import sys

                errors.append(sys.exc_info()[1])
            for node in self.nodes:
                yield node.channel.stop()
            self.reactor.stop()

        self.reactor.callWhenRunning(main)
        self.reactor.run(installSignalHandlers=False)
        if errors:
            raise errors[0]


@pytest.fixture
def world() -> World:
    return World()


def test_messages_arrive_in_order_on_both_ends_and_are_confirmed(world: World) -> None:
    def steps(world: World) -> Steps:
        a, b = yield world.pair()
        told = Told()
        for number in range(1000):
            a.send(b, say(number))
            b.send(a, say(-number))
        a.send(b, say("last", waiters=(told,)))
        yield world.until(lambda: told.told)
        assert b.messages == [*range(1000), "last"]
        assert a.messages == [-number for number in range(1000)]
        assert told.told == [("confirmed", b.uid)]
        assert a.events == [("opened", "b", False)]
        assert a.channel.statistics()["backlog_bytes"] == 0

    world.run(steps)


def test_a_large_message_crosses_in_pieces_and_control_overtakes_it(world: World) -> None:
    def steps(world: World) -> Steps:
        a, b = yield world.pair()
        big = os.urandom(8 * 1024 * 1024)
        a.send(b, say(big))
        yield world.until(lambda: b.channel.statistics()["frames_in"] > 8)
        a.send(b, say("urgent", CONTROL))
        yield world.until(lambda: len(b.messages) == 2)
        assert b.messages == ["urgent", big]

    world.run(steps)


def test_a_compressed_message_arrives_as_it_was(world: World) -> None:
    def steps(world: World) -> Steps:
        a, b = yield world.pair(ChannelSettings(compress_above_bytes=100))
        a.send(b, say(b"x" * 1_000_000))
        yield world.until(lambda: b.messages)
        assert b.messages == [b"x" * 1_000_000]
        assert b.channel.statistics()["bytes_in"] < 50_000

    world.run(steps)


def test_a_cut_connection_resumes_and_nothing_is_lost_or_repeated(world: World) -> None:
    def steps(world: World) -> Steps:
        a, b = yield world.pair()
        count = 0
        for cut in range(6):
            for _ in range(3000):
                a.send(b, say(count))
                count += 1
            yield world.pause(0.005 * (cut % 3))
            yield world.until(lambda: all(node.channel.statistics()["connections"] for node in (a, b)))
            cutter, other = (a, b) if cut % 2 else (b, a)
            cutter.channel._connections.by_uid[other.uid].abort()
            yield world.pause(0.01)
        yield world.until(lambda: len(b.messages) >= count)
        assert b.messages == list(range(count))
        assert ("opened", "b", False) not in a.events[1:]
        assert a.events.count(("opened", "b", True)) >= 1

    world.run(steps)


def test_two_that_dial_at_once_end_with_one_connection(world: World) -> None:
    def steps(world: World) -> Steps:
        nodes = [world.node(str(number), number) for number in range(1, 7)]
        for node in nodes:
            yield node.channel.start()
        for node in nodes:
            for other in nodes:
                node.channel.dial("127.0.0.1", other.channel.port)
        yield world.until(lambda: all(node.channel.statistics()["connections"] == 5 for node in nodes))
        yield world.until(lambda: all(node.channel.statistics()["sockets"] == 5 for node in nodes))
        yield world.pause(0.3)
        for node in nodes:
            opened = [event for event in node.events if event[0] == "opened"]
            assert len(opened) == 5, node.events
            assert ("lost") not in {event[0] for event in node.events}
            node.channel.send([other.uid for other in nodes], say(node.uid))
        yield world.until(lambda: all(len(node.messages) == 5 for node in nodes))

    world.run(steps)


def test_another_cluster_is_refused_and_both_ends_count_it(world: World) -> None:
    def steps(world: World) -> Steps:
        a, b = world.node("a", 1), world.node("b", 2, cluster="other")
        yield a.channel.start()
        yield b.channel.start()
        a.channel.dial("127.0.0.1", b.channel.port)
        yield world.until(lambda: all(node.channel.statistics()["refusals"] == {"cluster": 1} for node in (a, b)))
        yield world.until(lambda: all(node.channel.statistics()["sockets"] == 0 for node in (a, b)))
        assert not a.events
        assert not b.events

    world.run(steps)


def test_dialling_oneself_is_refused_and_not_tried_by_name_twice(world: World) -> None:
    def steps(world: World) -> Steps:
        a = world.node("a", 1)
        yield a.channel.start()
        a.channel.dial("localhost", a.channel.port)
        yield world.until(lambda: a.channel.statistics()["refusals"] == {"self": 2})
        assert not a.events

    world.run(steps)


def test_a_frame_that_a_receiver_rejects_costs_the_link_its_epoch_and_not_more(world: World) -> None:
    def steps(world: World) -> Steps:
        a, b = yield world.pair()
        told = Told()
        for op in (666, 667, 668):
            a.events.clear()
            a.send(b, say("before"), say("bad", op=op, waiters=(told,)), say("behind", waiters=(told,)))
            yield world.until(lambda: ("opened", "b", False) in a.events)
        assert b.messages == ["before"] * 3
        assert told.told == [("failed", b.uid)] * 6
        a.send(b, say("after"))
        yield world.until(lambda: b.messages[-1] == "after")
        assert b.channel.statistics()["remote_errors"] == 1

    world.run(steps)


def test_a_peer_that_does_not_read_costs_its_keys_only_and_delays_nobody(world: World) -> None:
    def steps(world: World) -> Steps:
        a, b = yield world.pair(ChannelSettings(outbox_max_bytes=1_000_000))
        c = world.node("c", 3)
        yield c.channel.start()
        a.channel.dial("127.0.0.1", c.channel.port)
        yield world.until(lambda: c.events)
        b.channel._connections.by_uid[a.uid].transport.stopReading()
        told = Told()
        keys = [bytes([number]) * 16 for number in range(50)]
        for number in range(3000):
            key = keys[number % 50]
            a.states[key] = number
            a.channel.send((b.uid, c.uid), say([number, b"x" * 10_000], keys=(key,), waiters=(told,) if number == 2999 else ()))
            if number % 100 == 0:
                yield world.pause(0)
        yield world.until(lambda: len(c.messages) + 50 >= 3000 or ("refill", 50) in a.events)
        assert a.channel._links[b.uid].outbox.backlog <= 1_000_000
        assert told.told in ([], [("confirmed", c.uid)])
        b.channel._connections.by_uid[a.uid].transport.startReading()
        yield world.until(lambda: ("confirmed", b.uid) in told.told)
        last: dict[bytes, int] = {}
        for message in b.messages:
            if message[0] == "state":
                last.update(zip(keys, message[1], strict=False))
        assert a.channel.statistics()["dirty_keys"] == 0
        assert sum(isinstance(message[0], str) for message in b.messages) >= 1

    world.run(steps)


def test_a_request_gets_its_replies_and_an_error_names_who_failed(world: World) -> None:
    def steps(world: World) -> Steps:
        a, b = yield world.pair()
        b.channel.serve("double", lambda peer, op, body: body * 2)
        replies = yield a.channel.request([b.uid], "double", 0, 21, "all")
        assert replies == {b.uid: 42}
        with pytest.raises(ChannelError) as caught:
            yield a.channel.request([b.uid, b"z" * 16], "double", 0, b"x" * 100_000, "all")
        assert caught.value.failed == {b"z" * 16: "not connected"}
        with pytest.raises(ChannelError) as caught:
            yield a.channel.request([b.uid], "nothing", 0, None)
        assert caught.value.failed == {b.uid: "nobody serves this here"}
        b.channel.serve("slow", lambda peer, op, body: Deferred())
        with pytest.raises(ChannelError) as caught:
            yield a.channel.request([b.uid], "slow", 0, None, timeout_s=0.05)
        assert caught.value.failed == {b.uid: "timed out"}

    world.run(steps)


def test_a_port_in_use_is_named_with_who_asked(world: World) -> None:
    def steps(world: World) -> Steps:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            a = world.node("a", 1)
            a.channel._me = Member(a.uid, "a", "127.0.0.1", taken.getsockname()[1])
            with pytest.raises(LocalError, match=rf"port {taken.getsockname()[1]} of 127\.0\.0\.1.*node\.port"):
                yield a.channel.start()

    world.run(steps)


def test_a_stopped_member_is_redialled_until_membership_closes_it(world: World) -> None:
    def steps(world: World) -> Steps:
        a, b = yield world.pair()
        refused: list[bytes] = []
        a.channel.on_refused = refused.append
        told = Told()
        yield b.channel.stop()
        a.send(b, say("kept", waiters=(told,)))
        yield world.until(lambda: len(refused) >= 2)
        assert a.channel.is_degraded(b.uid)
        assert told.told == []
        a.channel.close(b.uid, "dead")
        assert told.told == [("failed", b.uid)]
        count = len(refused)
        yield world.pause(0.3)
        assert len(refused) <= count + 1
        a.send(b, say("unknown", waiters=(told,)))
        assert told.told == [("failed", b.uid)] * 2

    world.run(steps)


def test_a_connection_without_handshake_is_closed_in_time_and_too_many_at_once(world: World) -> None:
    def steps(world: World) -> Steps:
        a = world.node("a", 1, ChannelSettings(handshake_timeout_s=0.3, unauthenticated_max=2))
        yield a.channel.start()
        sockets = [socket.create_connection(("127.0.0.1", a.channel.port)) for _ in range(4)]
        try:
            yield world.until(lambda: a.channel.statistics()["refusals"] == {"busy": 2})
            assert a.channel.statistics()["sockets"] == 2
            yield world.until(lambda: a.channel.statistics()["sockets"] == 0)
            assert a.channel.statistics()["handshakes_expired"] == 2
        finally:
            for each in sockets:
                each.close()

    world.run(steps)


def test_bytes_that_are_no_frames_close_the_connection_with_a_reason(world: World) -> None:
    def steps(world: World) -> Steps:
        a = world.node("a", 1)
        yield a.channel.start()
        with socket.create_connection(("127.0.0.1", a.channel.port)) as peer:
            peer.setblocking(False)
            peer.send(b"GET / HTTP/1.1\r\n\r\n")
            yield world.until(lambda: a.channel.statistics()["refusals"])
            yield world.until(lambda: a.channel.statistics()["sockets"] == 0)
            assert b"malformed: frame of" in peer.recv(1000)
        assert a.channel.statistics()["refusals"] == {"malformed": 1}

    world.run(steps)
