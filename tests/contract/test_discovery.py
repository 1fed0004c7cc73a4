"""One contract for every way to find members, run over all of them (multicast over a fake socket, DNS over a fake resolver)."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import CannotListenError, MulticastJoinError
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.names import dns
from twisted.names.error import DNSNameError, DNSServerError

from caterwaul.membership.discovery import Carrier, DnsDiscovery, FileDiscovery, MulticastDiscovery, StaticDiscovery, parse_address
from caterwaul.membership.errors import LocalError
from caterwaul.membership.messages import DATAGRAM_BYTES_MAX, Heartbeat, decode_heartbeat
from caterwaul.membership.settings import MembershipSettings

SEED = ("10.0.0.1", 7000)
PERIOD_S = 5.0


class MemoryDiscovery:
    """The simplest one that keeps the contract: a list in memory, named once at each start and when it grows."""

    def __init__(self) -> None:
        self.errors = 0
        self.addresses: list[tuple[str, int]] = []
        self.found: Callable[[str, int], None] | None = None

    def start(self, found) -> None:
        self.found = found
        for address in self.addresses:
            found(*address)

    def stop(self) -> None:
        self.found = None

    def add(self, host: str, port: int) -> None:
        self.addresses.append((host, port))
        if self.found is not None:
            self.found(host, port)


class FakePort:
    def __init__(self, reactor: FakeReactor, protocol) -> None:
        self.reactor, self.protocol = reactor, protocol
        self.options: dict[str, object] = {}
        self.joined: list[tuple[str, str]] = []

    def write(self, datagram: bytes, address: tuple[str, int]) -> None:
        if self.reactor.send_error is not None:
            raise self.reactor.send_error
        self.reactor.sent.append((datagram, address))

    def joinGroup(self, group: str, interface: str = "") -> Deferred[None]:
        self.joined.append((group, interface))
        return succeed(None) if self.reactor.join_error is None else fail(self.reactor.join_error)

    def setTTL(self, ttl: int) -> None:
        self.options["ttl"] = ttl

    def setLoopbackMode(self, mode: int) -> None:
        self.options["loopback"] = mode

    def setOutgoingInterface(self, interface: str) -> Deferred[int]:
        self.options["interface"] = interface
        return succeed(1)

    def getHandle(self) -> None:
        return None

    def stopListening(self) -> None:
        self.reactor.ports.remove(self)
        self.protocol.doStop()


class FakeReactor(Clock):
    """A clock with multicast sockets that reach nobody by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.ports: list[FakePort] = []
        self.sent: list[tuple[bytes, tuple[str, int]]] = []
        self.send_error: Exception | None = None
        self.join_error: Exception | None = None
        self.listen_error: Exception | None = None

    def listenMulticast(self, port, protocol, interface="", maxPacketSize=8192, listenMultiple=False) -> FakePort:
        if self.listen_error is not None:
            raise self.listen_error
        assert listenMultiple
        assert maxPacketSize > DATAGRAM_BYTES_MAX
        self.ports.append(FakePort(self, protocol))
        protocol.makeConnection(self.ports[-1])
        return self.ports[-1]

    def arrive(self, datagram: bytes) -> None:
        for port in self.ports:
            port.protocol.datagramReceived(datagram, ("10.0.0.1", 45564))


class FakeResolver:
    def __init__(self) -> None:
        self.broken: Exception | None = None
        self.silent = False
        self.asked: list[str] = []

    def _answer(self, name: str, *records) -> Deferred:
        self.asked.append(name)
        if self.silent:
            return Deferred()
        if self.broken is not None:
            return fail(self.broken)
        if not records:
            return fail(DNSNameError(name))
        return succeed(([dns.RRHeader(name, type=record.TYPE, payload=record) for record in records], [], []))

    def lookupAddress(self, name, timeout=None):
        return self._answer(name, *([dns.Record_A("10.0.0.1")] if name != "six" else []))

    def lookupIPV6Address(self, name, timeout=None):
        return self._answer(name, *([dns.Record_AAAA("fd00::1")] if name == "six" else []))

    def lookupService(self, name, timeout=None):
        return self._answer(name, dns.Record_SRV(0, 0, 7001, "pod"), dns.Record_SRV(0, 0, 7002, "six"))


class Harness:
    """How one kind is built, made to see SEED, broken by the outside, and mended."""

    def __init__(self, tmp_path) -> None:
        self.reactor = FakeReactor()
        self.seen: list[tuple[str, int]] = []
        self.path = tmp_path / "seeds"
        self.resolver = FakeResolver()
        self.discovery = self.build()

    def found(self, host: str, port: int) -> None:
        self.seen.append((host, port))

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.appear()
            self.reactor.advance(0.1)

    def build(self):
        raise NotImplementedError

    def appear(self) -> None:
        """SEED shows itself now, where it has to."""

    def break_it(self) -> None: ...

    def mend(self) -> None: ...


class Memory(Harness):
    def build(self):
        discovery = MemoryDiscovery()
        discovery.add(*SEED)
        return discovery


class Static(Harness):
    def build(self):
        return StaticDiscovery(["10.0.0.1"], 7000, PERIOD_S, self.reactor)


class File(Harness):
    def build(self):
        self.mend()
        return FileDiscovery(str(self.path), 7000, 1.0, PERIOD_S, self.reactor)

    def break_it(self):
        self.path.unlink()
        self.path.mkdir()

    def mend(self):
        if self.path.is_dir():
            self.path.rmdir()
        self.path.write_text("# seeds\n10.0.0.1:7000\n")


class Dns(Harness):
    def build(self):
        return DnsDiscovery(["pods.example"], 7000, PERIOD_S, self.reactor, self.resolver)

    def break_it(self):
        self.resolver.broken = DNSServerError("SERVFAIL")

    def mend(self):
        self.resolver.broken = None


class Multicast(Harness):
    def build(self):
        def received(datagram: bytes) -> None:
            heartbeat = decode_heartbeat(datagram)
            self.found(heartbeat.host, heartbeat.port)

        return MulticastDiscovery(MembershipSettings(), "127.0.0.1", self.reactor, received)

    def appear(self):
        if self.reactor.send_error is None:
            self.reactor.arrive(Heartbeat("shop", b"u" * 16, "n", *SEED).encode())
        self.discovery.send(b"mine")

    def break_it(self):
        self.reactor.send_error = OSError(errno.ENETUNREACH, "Network is unreachable")

    def mend(self):
        self.reactor.send_error = None


@pytest.fixture(params=[Memory, Static, File, Dns, Multicast], ids=lambda kind: kind.__name__)
def harness(request, tmp_path):
    return request.param(tmp_path)


class TestContract:
    def test_it_finds_the_seed_soon_after_start_and_nothing_before(self, harness):
        harness.pass_time(1)
        assert harness.seen == []
        harness.discovery.start(harness.found)
        harness.pass_time(0.2)
        assert set(harness.seen) == {SEED}

    def test_after_stop_it_finds_nothing_and_leaves_no_timer(self, harness):
        harness.discovery.start(harness.found)
        harness.pass_time(1)
        harness.discovery.stop()
        harness.seen.clear()
        assert harness.reactor.getDelayedCalls() == []
        assert harness.reactor.ports == []
        harness.pass_time(60)
        assert harness.seen == []

    def test_stopping_twice_or_before_the_start_is_harmless(self, harness):
        harness.discovery.stop()
        harness.discovery.start(harness.found)
        harness.discovery.stop()
        harness.discovery.stop()
        assert harness.reactor.getDelayedCalls() == []

    def test_it_can_start_again(self, harness):
        harness.discovery.start(harness.found)
        harness.discovery.stop()
        harness.seen.clear()
        harness.discovery.start(harness.found)
        harness.pass_time(PERIOD_S + 1)
        assert set(harness.seen) == {SEED}

    def test_trouble_outside_is_counted_and_never_raises_and_it_goes_on_afterwards(self, harness):
        harness.discovery.start(harness.found)
        harness.pass_time(1)
        harness.break_it()
        harness.pass_time(3 * PERIOD_S)
        if not isinstance(harness, Memory | Static):  # nothing outside of them can break
            assert harness.discovery.errors >= 2
        harness.mend()
        harness.seen.clear()
        if not isinstance(harness, Memory):
            harness.pass_time(PERIOD_S + 2)
            assert set(harness.seen) == {SEED}


class TestMulticast:
    def make(self, interface: str = "127.0.0.1", **settings):
        reactor, got = FakeReactor(), []
        return reactor, got, MulticastDiscovery(MembershipSettings(**settings), interface, reactor, got.append)

    def test_it_sends_to_the_group_with_the_ttl_over_the_interface_and_hears_itself(self):
        reactor, _, discovery = self.make(multicast_ttl=3)
        discovery.start(lambda *_: None)
        discovery.send(b"x")
        assert isinstance(discovery, Carrier)
        assert reactor.sent == [(b"x", ("228.0.0.4", 45564))]
        assert reactor.ports[0].options == {"ttl": 3, "loopback": 1, "interface": "127.0.0.1"}
        assert reactor.ports[0].joined[0] == ("228.0.0.4", "127.0.0.1")

    def test_a_datagram_that_is_too_long_is_handed_on_for_who_reads_it_counts_it(self):
        reactor, got, discovery = self.make()
        discovery.start(lambda *_: None)
        reactor.arrive(b"x" * 1200)
        reactor.arrive(b"x" * (DATAGRAM_BYTES_MAX + 1))
        assert got == [b"x" * 1200, b"x" * 1201]

    def test_a_missing_route_is_explained_with_the_way_out_and_leaves_nothing_open(self):
        reactor, _, discovery = self.make()
        reactor.join_error = MulticastJoinError("228.0.0.4", "127.0.0.1", errno.ENODEV, "No such device")
        with pytest.raises(LocalError, match=r"(?s)cannot join.*No such device.*multicast route.*'static'.*membership\.seeds"):
            discovery.start(lambda *_: None)
        assert reactor.ports == []
        assert reactor.getDelayedCalls() == []

    def test_a_port_in_use_is_named(self):
        reactor, _, discovery = self.make()
        reactor.listen_error = CannotListenError("", 45564, OSError(errno.EADDRINUSE, "Address already in use"))
        with pytest.raises(LocalError, match=r"UDP port 45564.*Address already in use"):
            discovery.start(lambda *_: None)

    def test_it_joins_again_every_minute_and_a_failure_then_is_only_counted(self):
        """F32: an interface that went and came back."""
        reactor, _, discovery = self.make()
        discovery.start(lambda *_: None)
        reactor.advance(0)
        joins = len(reactor.ports[0].joined)
        reactor.join_error = MulticastJoinError("228.0.0.4", "127.0.0.1", errno.ENODEV, "No such device")
        reactor.pump([1.0] * 61)
        assert (len(reactor.ports[0].joined), discovery.errors) == (joins + 1, 1)
        reactor.join_error = MulticastJoinError("228.0.0.4", "127.0.0.1", errno.EADDRINUSE, "joined already")
        reactor.pump([1.0] * 60)
        assert (len(reactor.ports[0].joined), discovery.errors) == (joins + 2, 1)

    def test_a_socket_that_the_reactor_gave_up_is_opened_again(self):
        reactor, got, discovery = self.make()
        discovery.start(lambda *_: None)
        reactor.ports[0].stopListening()
        reactor.pump([1.0] * 61)
        reactor.arrive(b"x")
        assert got == [b"x"]

    @pytest.mark.parametrize("address", ["10.0.0.1", "ff02::1", "group", ""])
    def test_an_address_that_is_no_group_is_refused(self, address):
        with pytest.raises(LocalError, match="multicast_address"):
            self.make(multicast_address=address)


class TestDns:
    def make(self, *names: str):
        clock, resolver, seen = Clock(), FakeResolver(), []
        discovery = DnsDiscovery(names, 7000, 10.0, clock, resolver)
        discovery.start(lambda host, port: seen.append((host, port)))
        return clock, resolver, seen, discovery

    def poll(self, clock: Clock) -> None:
        clock.advance(10)

    def test_services_bring_their_own_ports_and_both_families_count(self):
        clock, _, seen, discovery = self.make("_caterwaul._tcp.example", "six")
        self.poll(clock)
        assert (sorted(set(seen)), discovery.errors) == ([("10.0.0.1", 7001), ("fd00::1", 7000), ("fd00::1", 7002)], 0)

    def test_a_name_that_does_not_exist_is_an_error_that_changes_nothing(self):
        clock, resolver, seen, discovery = self.make("pods")
        resolver.broken = DNSNameError("pods")
        self.poll(clock)
        assert discovery.errors >= 1
        resolver.broken = None
        seen.clear()
        self.poll(clock)
        assert seen == [("10.0.0.1", 7000)]

    def test_a_look_up_under_way_is_not_asked_for_again(self):
        clock, resolver, _, _ = self.make("pods")
        resolver.silent = True
        for _ in range(5):
            self.poll(clock)
        assert resolver.asked.count("pods") <= 4

    def test_no_names_are_refused(self):
        with pytest.raises(LocalError, match="dns_names"):
            DnsDiscovery([], 7000, 10.0, Clock(), None)


class TestFile:
    def make(self, tmp_path, text: str):
        path, clock, seen = tmp_path / "seeds", Clock(), []
        path.write_text(text)
        discovery = FileDiscovery(str(path), 7000, 1.0, 60.0, clock)
        discovery.start(lambda host, port: seen.append((host, port)))
        clock.advance(0)
        return path, clock, seen, discovery

    def test_a_changed_file_is_read_at_the_next_look_and_an_unchanged_one_is_not_named_again_at_once(self, tmp_path):
        path, clock, seen, _ = self.make(tmp_path, "a\n")
        clock.pump([1.0] * 5)
        assert seen == [("a", 7000)]
        path.write_text("a\nb:8000 # new\n\n[::1]:9000\n")
        clock.pump([1.0] * 2)
        assert seen[1:] == [("a", 7000), ("b", 8000), ("::1", 9000)]

    def test_bad_lines_are_named_once_and_the_good_ones_used(self, tmp_path):
        warnings: list[str] = []

        def observe(event) -> None:
            if event.get("log_namespace", "").endswith("discovery.file"):
                warnings.append(event["trouble"])

        globalLogPublisher.addObserver(observe)
        try:
            _, clock, seen, discovery = self.make(tmp_path, "a:7000\nb:port\n:1\n")
            clock.pump([1.0] * 5)
        finally:
            globalLogPublisher.removeObserver(observe)
        assert seen == [("a", 7000)]
        assert discovery.errors == len(warnings) == 1
        assert "line 2" in warnings[0]
        assert "line 3" in warnings[0]

    def test_the_last_good_list_stays_while_the_file_is_empty_or_gone(self, tmp_path):
        path, clock, seen, _ = self.make(tmp_path, "a\n")
        path.write_text("# being rewritten\n")
        clock.pump([1.0] * 3)
        path.unlink()
        seen.clear()
        clock.pump([1.0] * 60)
        assert seen == [("a", 7000)]

    def test_no_path_is_refused(self):
        with pytest.raises(LocalError, match="seeds_file"):
            FileDiscovery("", 7000, 1.0, 5.0, Clock())


class TestAddresses:
    @pytest.mark.parametrize(
        ("text", "address"),
        [
            ("host", ("host", 7000)),
            (" host:1 ", ("host", 1)),
            ("10.0.0.1:65535", ("10.0.0.1", 65535)),
            ("[::1]:80", ("::1", 80)),
            ("[fd00::2]", ("fd00::2", 7000)),
            ("::1", ("::1", 7000)),
        ],
    )
    def test_addresses_as_people_write_them(self, text, address):
        assert parse_address(text, 7000) == address

    @pytest.mark.parametrize(
        "text", ["", ":", ":80", "host:", "host:0", "host:65536", "host:-1", "host:1x", "host:٣", "a:b:c", "[::1", "[::1]80", "[host]:1", "a b:1", "http://a"]
    )
    def test_what_is_none_is_refused_by_name(self, text):
        with pytest.raises(LocalError, match="address"):
            parse_address(text, 7000)

    def test_without_a_default_the_port_must_be_there(self):
        with pytest.raises(LocalError, match="no port"):
            parse_address("host")
