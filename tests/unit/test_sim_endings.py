"""How simulated connections end, and how a bug in a protocol ends the world."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.internet import error
from twisted.internet.error import ConnectionDone, ConnectionLost

from ..sim.reactor import SimReactor
from ..sim.world import SimulationError, World
from .stream_bench import Bench, Peer


@pytest.fixture
def bench() -> Iterator[Bench]:
    with World(1) as world:
        yield Bench(world=world)


def test_lose_connection_flushes_first_and_both_ends_end_cleanly(bench: Bench) -> None:
    client, server = bench.connected()
    client.transport.write(b"z" * 1_000_000)
    client.transport.loseConnection()
    bench.world.run_for(10.0)
    assert (len(server.got), client.lost, server.lost) == (1_000_000, ConnectionDone, ConnectionDone)


def test_abort_is_a_reset_for_the_other_end(bench: Bench) -> None:
    client, server = bench.connected()
    client.transport.abortConnection()
    bench.world.run_for(1.0)
    assert server.lost is ConnectionLost
    assert bench.client.getReaders() == bench.server.getWriters() == []


def test_a_cut_resets_both_ends_and_what_was_delivered_is_a_beginning_of_what_was_written(bench: Bench) -> None:
    client, server = bench.connected()
    client.transport.write(b"abc" * 100_000)
    bench.world.run_for(0.0004)
    assert bench.world.network.reset_connections(bench.client.host, bench.server.host) == 1
    bench.world.run_for(1.0)
    assert (client.lost, server.lost) == (ConnectionLost, ConnectionLost)
    assert (b"abc" * 100_000).startswith(server.got)
    assert bench.world.network.reset_connections(bench.client.host, bench.server.host) == 0


def test_a_process_that_dies_on_a_live_host_is_known_at_once(bench: Bench) -> None:
    client, _ = bench.connected()
    bench.server.end()
    bench.world.run_for(0.05)
    assert client.lost is ConnectionDone
    bench.dial(Peer())
    bench.world.run_for(0.05)
    assert bench.failures == [error.ConnectionRefusedError]


def test_a_process_that_dies_with_unread_bytes_resets(bench: Bench) -> None:
    client, _ = bench.connected()
    bench.server.pause()
    client.transport.write(b"unread")
    bench.world.run_for(1.0)
    bench.server.end()
    bench.world.run_for(0.05)
    assert client.lost is ConnectionLost


def test_a_host_that_dies_is_silent_and_answers_old_connections_with_a_reset_once_it_is_up_again(bench: Bench) -> None:
    client, _ = bench.connected()
    bench.server.host.up = False
    bench.server.end(host_crashed=True)
    client.transport.write(b"anybody there?")
    bench.dial(Peer(), timeout=2.0)
    bench.world.run_for(10.0)
    assert client.lost is None
    assert bench.failures == [error.TimeoutError]
    bench.server.host.boot()
    bench.world.run_for(15.0)
    assert client.lost is ConnectionLost
    bench.dial(Peer())
    bench.world.run_for(1.0)
    assert bench.failures == [error.TimeoutError, error.ConnectionRefusedError]


def test_an_idle_connection_to_a_host_that_booted_stays_half_open_until_somebody_writes(bench: Bench) -> None:
    client, _ = bench.connected()
    bench.server.host.up = False
    bench.server.end(host_crashed=True)
    bench.server.host.boot()
    bench.world.run_for(30.0)
    assert client.lost is None
    client.transport.write(b"?")
    bench.world.run_for(0.1)
    assert client.lost is ConnectionLost


class Failing(Peer):
    def dataReceived(self, data: bytes) -> None:
        raise ZeroDivisionError("a bug in a protocol")


def test_an_exception_that_leaves_a_protocol_ends_the_world_and_says_how_to_come_back(bench: Bench) -> None:
    client, _ = bench.connected(Failing)
    client.transport.write(b"boom")
    with pytest.raises(SimulationError, match=r"seed 1, at 1\.\d+ s: ZeroDivisionError: a bug in a protocol"):
        bench.world.run_for(1.0)


def test_an_error_that_was_only_logged_ends_the_world_too(bench: Bench) -> None:
    class Unborn(Peer):
        def connectionMade(self) -> None:
            raise ZeroDivisionError("swallowed and logged by Twisted's port")

    bench.listen(Unborn)
    bench.dial(Peer())
    with pytest.raises(SimulationError, match="swallowed and logged"):
        bench.world.run_for(1.0)


def test_one_process_is_one_reactor(bench: Bench) -> None:
    assert isinstance(bench.server, SimReactor)
    assert bench.server.seconds() != bench.client.seconds()
    with pytest.raises(AssertionError):
        bench.server.run()
