"""Simulated TCP, seen through Twisted's own endpoints and protocols, behaves as a kernel's does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.application.internet import ClientService, backoffPolicy
from twisted.internet import error
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import CannotListenError, ConnectionDone, TCPTimedOutError, UserError
from twisted.internet.interfaces import IConsumer, IPushProducer, IReactorTCP, ITCPTransport
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineReceiver
from zope.interface import implementer
from zope.interface.verify import verifyObject

from ..sim.streams import WINDOW
from ..sim.world import World
from .stream_bench import SERVER, Bench, Peer, factory_of


@pytest.fixture
def bench() -> Iterator[Bench]:
    with World(1) as world:
        yield Bench(world=world)


class Echo(LineReceiver):
    def lineReceived(self, line: bytes) -> None:
        self.sendLine(b"echo " + line)  # type: ignore[no-untyped-call]


class Lines(LineReceiver):
    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def lineReceived(self, line: bytes) -> None:
        self.lines.append(line)


def test_stock_protocols_talk_over_stock_endpoints(bench: Bench) -> None:
    bench.listen(Echo)
    lines = bench.dial(Lines())
    bench.world.run_for(1.0)
    for number in range(1000):
        lines.sendLine(b"%d" % number)
    bench.world.run_for(1.0)
    assert lines.lines == [b"echo %d" % number for number in range(1000)]


def test_it_gives_the_interfaces_that_twisted_names(bench: Bench) -> None:
    client, _ = bench.connected()
    assert IReactorTCP.providedBy(bench.client)
    assert verifyObject(ITCPTransport, client.transport)
    assert verifyObject(IConsumer, client.transport)
    client.transport.setTcpNoDelay(True)
    client.transport.setTcpKeepAlive(True)
    assert (client.transport.getPeer().host, client.transport.getPeer().port) == (SERVER, 7000)
    assert client.transport.getHost() == bench.accepted[0].transport.getPeer()


@given(st.integers(0, 2**32), st.lists(st.binary(min_size=1, max_size=3000), max_size=30), st.data())
@settings(max_examples=30, deadline=None)
def test_bytes_arrive_in_order_and_exactly_once_however_the_way_is_troubled(seed: int, pieces: list[bytes], data: st.DataObject) -> None:
    with World(seed) as world:
        bench = Bench(world=world)
        client, server = bench.connected()
        closed: list[tuple[Any, str]] = []
        for piece in pieces:
            trouble = data.draw(st.sampled_from(("", "", "hole", "clog", "pause", "heal")))
            if trouble in ("hole", "clog"):
                path = data.draw(st.sampled_from((bench.there, bench.back)))
                getattr(path, trouble)(1)
                closed.append((path, trouble))
            elif trouble == "pause" and not bench.server.paused:
                bench.server.pause()
            elif trouble == "heal" and closed:
                path, how = closed.pop()
                getattr(path, how)(-1)
            client.transport.write(piece)
            world.run_for(data.draw(st.sampled_from((0.0, 0.001, 0.3))))
        if bench.server.paused:
            bench.server.resume()
        world.network.heal()
        world.run_for(60.0)
        assert server.got == b"".join(pieces)


def test_reads_are_cut_anywhere() -> None:
    chunks = set()
    for seed in range(10):
        with World(seed) as world:
            client, server = Bench(world=world).connected()
            client.transport.write(b"x" * 1000)
            world.run_for(1.0)
            assert len(server.got) == 1000
            chunks.add(server.chunks)
    assert chunks - {1}


def test_nobody_listens_and_a_dial_is_refused_at_once(bench: Bench) -> None:
    bench.dial(Peer())
    bench.world.run_for(0.1)
    assert bench.failures == [error.ConnectionRefusedError]


def test_a_port_in_use_and_a_foreign_address_cannot_be_bound(bench: Bench) -> None:
    bench.listen()
    for port, interface in ((7000, ""), (7001, "10.9.9.9")):
        with pytest.raises(CannotListenError):
            bench.server.listenTCP(port, Factory(), interface=interface)


def test_a_dial_into_a_black_hole_times_out_and_one_to_no_host_too(bench: Bench) -> None:
    bench.listen()
    bench.there.hole()
    bench.dial(Peer(), timeout=3.0)
    connectProtocol(TCP4ClientEndpoint(bench.client, "10.7.7.7", 1, timeout=2.0), Peer()).addErrback(lambda f: bench.failures.append(f.type))
    bench.world.run_for(2.5)
    assert bench.failures == [error.TimeoutError]
    bench.world.run_for(1.0)
    assert bench.failures == [error.TimeoutError, error.TimeoutError]


def test_without_a_limit_of_its_own_a_dial_into_a_black_hole_ends_as_the_kernel_ends_it(bench: Bench) -> None:
    bench.there.hole()
    bench.dial(Peer(), timeout=1000.0)
    bench.world.run_for(120.0)
    assert bench.failures == []
    bench.world.run_for(10.0)
    assert bench.failures == [TCPTimedOutError]


def test_a_dial_into_a_black_hole_succeeds_at_the_next_try_after_it_healed(bench: Bench) -> None:
    bench.listen()
    bench.there.hole()
    bench.dial(Peer())
    bench.world.run_for(1.5)  # tried at 0 and at 1 s
    bench.there.hole(-1)
    bench.world.run_for(1.4)
    assert bench.accepted == []
    bench.world.run_for(0.2)
    assert len(bench.accepted) == 1


def test_a_black_hole_shows_no_error_and_its_bytes_come_after_it_healed(bench: Bench) -> None:
    client, server = bench.connected()
    bench.there.hole()
    for number in range(20):
        client.transport.write(b"%d," % number)
        bench.world.run_for(1.0)
    assert (server.got, client.lost, server.lost) == (b"", None, None)
    server.transport.write(b"the other way is open")
    bench.world.run_for(1.0)
    assert client.got == b"the other way is open"
    bench.there.hole(-1)
    bench.world.run_for(0.1)
    assert server.got == b""  # a kernel that was told nothing tries again when its timer says so
    bench.world.run_for(30.0)
    assert server.got == b"".join(b"%d," % number for number in range(20))


def test_a_clogged_way_loses_nothing_and_moves_on_at_once(bench: Bench) -> None:
    client, server = bench.connected()
    bench.there.clog()
    client.transport.write(b"late")
    bench.world.run_for(5.0)
    assert server.got == b""
    bench.there.clog(-1)
    bench.world.run_for(0.05)
    assert server.got == b"late"


@implementer(IPushProducer)
class Source:
    """Writes as long as it may."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.paused = self.stopped = False
        self.pauses = self.written = 0

    def produce(self) -> None:
        while not self.paused and not self.stopped:
            self.written += 1000
            self.transport.write(b"p" * 1000)

    def pauseProducing(self) -> None:
        self.paused = True
        self.pauses += 1

    def resumeProducing(self) -> None:
        self.paused = False
        self.produce() if self.written < 3_000_000 else None

    def stopProducing(self) -> None:
        self.stopped = True


def test_a_receiver_that_does_not_read_stops_the_producer_and_one_that_reads_again_lets_it_go_on(bench: Bench) -> None:
    client, server = bench.connected()
    source = Source(client.transport)
    client.transport.registerProducer(source, True)
    server.transport.pauseProducing()
    source.produce()
    assert source.paused
    bench.world.run_for(10.0)
    assert source.paused
    assert server.got == b""
    assert WINDOW <= source.written <= WINDOW + 2 * client.transport.bufferSize + 2000
    server.transport.resumeProducing()
    bench.world.run_for(60.0)
    assert source.written >= 3_000_000
    assert len(server.got) == source.written


def test_a_stopped_process_takes_no_more_than_its_kernel_holds_and_all_of_it_when_it_goes_on(bench: Bench) -> None:
    client, server = bench.connected()
    bench.server.pause()
    client.transport.write(b"q" * (WINDOW + 5000))
    bench.world.run_for(5.0)
    assert len(client.transport.dataBuffer) - client.transport.offset == 5000
    bench.server.resume()
    bench.world.run_for(5.0)
    assert len(server.got) == WINDOW + 5000


def test_a_stopped_process_still_accepts_connections_up_to_its_backlog(bench: Bench) -> None:
    factory = Factory.forProtocol(Peer)
    bench.server.listenTCP(7000, factory, backlog=1)
    bench.server.pause()
    peers = [bench.dial(Peer(), timeout=4.0) for _ in range(4)]
    bench.world.run_for(2.0)
    assert [peer.transport is not None for peer in peers] == [True, True, False, False]
    bench.world.run_for(3.0)
    assert bench.failures == [error.TimeoutError, error.TimeoutError]


def test_a_dial_that_is_given_up_leaves_nothing_behind(bench: Bench) -> None:
    port = bench.listen()
    attempt = TCP4ClientEndpoint(bench.client, SERVER, 7000).connect(Factory.forProtocol(Peer))
    attempt.addErrback(lambda f: bench.failures.append(f.type))
    bench.world.run_for(0.0001)
    attempt.cancel()
    bench.world.run_for(1.0)
    assert len(bench.failures) == 1
    assert bench.client.sockets == {}
    assert list(bench.server.sockets) == [port.socket]
    assert bench.client.getDelayedCalls() == []
    assert UserError not in bench.failures


def test_client_service_reconnects_when_the_server_comes_back(bench: Bench) -> None:
    peers: list[Peer] = []
    factory = factory_of(Peer, peers)
    policy = backoffPolicy(0.1, 2.0, jitter=lambda: 0.0)
    service = ClientService(TCP4ClientEndpoint(bench.client, SERVER, 7000), factory, retryPolicy=policy, clock=bench.client)
    bench.listen()
    service.startService()
    bench.world.run_for(1.0)
    bench.server.end()
    bench.world.run_for(5.0)
    assert [peer.lost for peer in peers] == [ConnectionDone]
    bench.server = bench.world.process("server again", SERVER)
    bench.listen()
    bench.world.run_for(3.0)
    assert [peer.lost for peer in peers] == [ConnectionDone, None]
    stopped: list[Any] = []
    service.stopService().addCallback(stopped.append)
    bench.world.run_for(1.0)
    assert (len(stopped), bench.client.getDelayedCalls()) == (1, [])


def test_after_a_pause_timers_run_before_what_waits_in_the_sockets_is_read(bench: Bench) -> None:
    order: list[str] = []

    class Noting(Peer):
        def dataReceived(self, data: bytes) -> None:
            order.append("read")

    client, _ = bench.connected(Noting)
    bench.server.callLater(2.0, order.append, "timer")
    bench.server.callLater(1.0, bench.server.callLater, 0.0, order.append, "timer of a timer")
    bench.server.pause()
    bench.server.callFromThread(order.append, "thread")
    client.transport.write(b"heartbeat")
    bench.world.run_for(5.0)
    assert order == []
    bench.server.resume()
    bench.world.run_for(0.0)
    assert order[:2] == ["thread", "timer"]
    assert sorted(order[2:]) == ["read", "timer of a timer"]


def test_calls_from_threads_run_soon_and_in_order(bench: Bench) -> None:
    seen: list[int] = []
    for number in range(3):
        bench.server.callFromThread(seen.append, number)
    assert seen == []
    bench.world.run_for(0.0)
    assert seen == [0, 1, 2]
