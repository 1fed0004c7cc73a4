"""Simulated UDP multicast, through Twisted's own ports, and the weather that befalls it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.error import CannotListenError, MulticastJoinError
from twisted.internet.interfaces import IMulticastTransport, IReactorMulticast
from twisted.internet.protocol import DatagramProtocol
from zope.interface.verify import verifyObject

from ..sim.world import SimulationError, World

GROUP = ("228.0.0.4", 45564)


class Ear(DatagramProtocol):
    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.origins: set[tuple[str, int]] = set()

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.heard.append(datagram)
        self.origins.add(addr)


class Bench:
    def __init__(self, world: World, hosts: int = 3) -> None:
        self.world = world
        self.processes = [world.process(f"p{number}", f"10.0.0.{number + 1}") for number in range(hosts)]
        self.ears: list[Ear] = []
        self.ports = [self.open(process) for process in self.processes]

    def open(self, process: Any, group: str = GROUP[0], ear: Ear | None = None) -> Any:
        ear = ear if ear is not None else Ear()
        self.ears.append(ear)
        port = process.listenMulticast(GROUP[1], ear, maxPacketSize=1201, listenMultiple=True)
        failures: list[Any] = []
        port.joinGroup(group).addErrback(failures.append)
        assert failures == []
        return port

    def say(self, data: bytes = b"hello", sender: int = 0) -> list[int]:
        """How many datagrams each ear got of this one."""
        before = [len(ear.heard) for ear in self.ears]
        self.ports[sender].write(data, GROUP)
        self.world.run_for(5.0)
        return [len(ear.heard) - had for ear, had in zip(self.ears, before, strict=True)]


@pytest.fixture
def bench() -> Iterator[Bench]:
    with World(1) as world:
        yield Bench(world)


def test_all_who_joined_hear_it_the_sender_too(bench: Bench) -> None:
    assert bench.say() == [1, 1, 1]
    assert bench.ears[2].origins == {("10.0.0.1", GROUP[1])}
    assert IReactorMulticast.providedBy(bench.processes[0])
    assert verifyObject(IMulticastTransport, bench.ports[0])


def test_the_settings_of_the_port_are_accepted_and_loopback_can_be_switched_off(bench: Bench) -> None:
    port = bench.ports[0]
    failures: list[Any] = []
    port.setTTL(1)
    port.setOutgoingInterface("10.0.0.1").addErrback(failures.append)
    port.setLoopbackMode(0)
    assert failures == []
    assert bench.say() == [0, 1, 1]


def test_several_processes_of_a_host_share_the_port_and_other_groups_are_not_heard(bench: Bench) -> None:
    other = bench.world.process("other", "10.0.0.1")
    bench.open(other)
    bench.open(other, "228.0.0.5")
    assert bench.say() == [1, 1, 1, 1, 0]
    with pytest.raises(CannotListenError):
        other.listenUDP(GROUP[1], Ear())


def test_joining_twice_fails_as_it_does_in_a_kernel_and_who_left_hears_nothing(bench: Bench) -> None:
    failures: list[Any] = []
    bench.ports[1].joinGroup(GROUP[0]).addErrback(failures.append)
    assert failures[0].check(MulticastJoinError)
    bench.ports[1].leaveGroup(GROUP[0])
    assert bench.say() == [1, 0, 1]


def test_a_closed_port_and_a_killed_process_hear_nothing(bench: Bench) -> None:
    closed: list[Any] = []
    bench.ports[1].stopListening().addCallback(closed.append)
    bench.processes[2].end()
    assert bench.say() == [1, 0, 0]
    assert closed == [None]
    bench.open(bench.processes[1])
    assert bench.say() == [1, 0, 0, 1]


def test_a_unicast_datagram_goes_to_one_socket(bench: Bench) -> None:
    bench.ports[0].write(b"you", ("10.0.0.3", GROUP[1]))
    bench.ports[0].write(b"nobody", ("10.0.0.9", GROUP[1]))
    bench.world.run_for(1.0)
    assert [ear.heard for ear in bench.ears] == [[], [], [b"you"]]


def test_deaf_mute_and_cut_ways_hear_nothing_and_are_counted(bench: Bench) -> None:
    hosts = [process.host for process in bench.processes]
    hosts[0].mute = 1
    assert bench.say() == [1, 0, 0]
    hosts[0].mute, hosts[1].deaf = 0, 1
    assert bench.say() == [1, 0, 1]
    hosts[1].deaf = 0
    bench.world.network.path(hosts[0], hosts[2]).cut_datagrams()
    assert bench.say() == [1, 1, 0]
    assert bench.say(sender=2) == [1, 1, 1]
    bench.world.network.heal()
    assert bench.say() == [1, 1, 1]
    counters = bench.world.counters
    assert (counters["datagrams_muted"], counters["datagrams_unheard"], counters["datagrams_cut"]) == (2, 1, 1)


def test_the_weather_loses_doubles_delays_reorders_and_flips_bits_at_its_rates(bench: Bench) -> None:
    weather, ear = bench.world.network.weather, bench.ears[1]

    def storm() -> list[bytes]:
        ear.heard.clear()
        for number in range(1000):
            bench.ports[0].write(b"%06d" % number, GROUP)
            bench.world.run_for(0.02)
        bench.world.run_for(10.0)
        return ear.heard

    sent = [b"%06d" % number for number in range(1000)]
    assert storm() == sent
    weather.loss = 0.3
    assert 600 < len(storm()) < 800
    weather.clear()
    weather.duplicate = 0.2
    doubled = storm()
    assert 1100 < len(doubled) < 1300
    assert sorted(set(doubled)) == sent
    weather.clear()
    weather.reorder = 0.1
    shuffled = list(storm())
    assert shuffled != sent
    assert sorted(shuffled) == sent
    weather.clear()
    weather.delay_s = 1.0
    assert sorted(storm()) == sent
    weather.clear()
    weather.corrupt = 0.5
    damaged = sum(1 for data, good in zip(storm(), sent, strict=True) if data != good)
    assert 400 < damaged < 600


def test_a_stopped_process_finds_its_datagrams_when_it_goes_on_and_no_more_than_its_buffer_holds(bench: Bench) -> None:
    bench.processes[1].pause()
    for _ in range(5000):
        bench.ports[0].write(b"x" * 200, GROUP)
    bench.world.run_for(1.0)
    assert bench.ears[1].heard == []
    bench.processes[1].resume()
    bench.world.run_for(0.0)
    lost = bench.world.counters["datagrams_overflowed"]
    assert lost > 0
    assert len(bench.ears[1].heard) == 5000 - lost


def test_a_datagram_handler_that_raises_ends_the_world(bench: Bench) -> None:
    class Broken(Ear):
        def datagramReceived(self, datagram: bytes, addr: Any) -> None:
            raise ZeroDivisionError("a bug")

    bench.open(bench.processes[1], ear=Broken())
    with pytest.raises(SimulationError, match="ZeroDivisionError: a bug"):
        bench.say()
