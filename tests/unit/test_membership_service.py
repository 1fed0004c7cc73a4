"""The service around the group: effects reach the channel, events reach subscribers, and trouble ends nothing."""

from __future__ import annotations

import errno
from random import Random

import pytest
from twisted.internet.defer import succeed
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from caterwaul.membership import MembershipService, MembershipSettings, PlainDatagrams, SealedDatagrams, Secret, Stopped, ViewChanged
from caterwaul.membership.codec import decode
from caterwaul.membership.discovery import DnsDiscovery, FileDiscovery, MulticastDiscovery, StaticDiscovery
from caterwaul.membership.errors import LocalError, RemoteError
from caterwaul.membership.group import EveryoneChanged
from caterwaul.membership.member import Member
from caterwaul.membership.messages import Announcement, Farewell, Heartbeat, decode_control, to_message
from caterwaul.membership.service import discoveries_of

ME, A, B = (Member(letter.encode() * 16, letter, "127.0.0.1", 7000 + n) for n, letter in enumerate("mab"))


class FakeChannel:
    """Notes what it is asked to do."""

    def __init__(self) -> None:
        self.receivers: dict[str, object] = {}
        self.calls: list[tuple] = []
        self.messages: list = []

    def attach(self, name, receiver, listens=False) -> None:
        self.receivers[name] = receiver

    def detach(self, name) -> None:
        del self.receivers[name]

    def send(self, to, message) -> None:
        self.messages.append((tuple(to), message))

    def dial(self, host, port) -> None:
        self.calls.append(("dial", host, port))

    def close(self, uid, reason) -> None:
        self.calls.append(("close", uid))

    def said(self) -> list:
        return [(to, decode_control(decode(message.payload))) for to, message in self.messages]


class FakeCarrier:
    """A discovery that carries datagrams and can be told to fail at the start."""

    def __init__(self, broken: bool = False) -> None:
        self.errors, self.sent, self.running, self.broken = 0, [], False, broken

    def start(self, found) -> None:
        if self.broken:
            raise LocalError("no route")
        self.running, self.found = True, found

    def stop(self) -> None:
        self.running = False

    def send(self, datagram: bytes) -> None:
        self.sent.append(datagram)


class Rig:
    def __init__(self, sealer=PlainDatagrams(), **settings) -> None:  # noqa: B008  (it has no state)
        self.clock, self.channel, self.carrier = Clock(), FakeChannel(), FakeCarrier()
        self.clock.advance(1000)
        self.service = MembershipService(
            ME, MembershipSettings(**settings), "shop", self.channel, self.clock, rng=Random(1), sealer=sealer, discoveries=[self.carrier]
        )
        self.events: list[object] = []
        self.service.subscribe(self.events.append)
        self.service.startService()
        self.clock.advance(0)

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds * 20)):
            self.clock.advance(0.05)


def test_it_beats_while_it_runs_and_is_the_receiver_of_the_empty_name():
    rig = Rig()
    rig.wait(10)
    assert rig.channel.receivers == {"": rig.service}
    assert set(rig.carrier.sent) == {Heartbeat.of(ME, "shop").encode()}
    assert 19 <= len(rig.carrier.sent) <= 21


def test_a_heartbeat_of_a_stranger_is_dialled_and_its_link_makes_it_a_member():
    rig = Rig()
    rig.service.datagram(Heartbeat.of(A, "shop").encode())
    assert rig.channel.calls == [("dial", "127.0.0.1", 7001)]
    rig.service.link_opened(A, False)
    assert [member.name for member in rig.service.view] == ["a", "m"]
    assert [type(event) for event in rig.events] == [ViewChanged, EveryoneChanged]


def test_without_a_sealer_no_datagram_is_sent_or_believed():
    rig = Rig(sealer=None)
    rig.service.datagram(Heartbeat.of(A, "shop").encode())
    rig.wait(2)
    assert not rig.carrier.sent
    assert not rig.channel.calls
    assert rig.service.statistics()["unsealed"] == 1


def test_what_a_discovery_finds_is_dialled():
    rig = Rig()
    rig.carrier.found("10.0.0.9", 7000)
    assert rig.channel.calls == [("dial", "10.0.0.9", 7000)]


def test_a_refused_redial_ends_a_member_and_its_link():
    rig = Rig()
    rig.service.link_opened(A, False)
    rig.service.link_lost(A)
    rig.service.unreachable(A.uid)
    assert rig.channel.calls == [("close", A.uid)]
    assert len(rig.service.view) == 1


def test_frames_heard_keep_a_member_and_their_absence_ends_it():
    rig = Rig()
    rig.service.link_opened(A, False)
    for _ in range(100):
        rig.service.heard(A.uid)
        rig.wait(0.1)
    assert len(rig.service.view) == 2
    rig.wait(4)
    assert len(rig.service.view) == 1


def test_bad_datagrams_are_counted_logged_once_in_ten_seconds_and_harmless():
    rig, logged = Rig(), []
    observe = lambda event: logged.append(event) if "ignored datagrams" in (event.get("log_format") or "") else None  # noqa: E731
    globalLogPublisher.addObserver(observe)
    try:
        for n in range(500):
            rig.service.datagram(bytes([n % 256]) * n)
    finally:
        globalLogPublisher.removeObserver(observe)
    assert rig.service.statistics()["malformed"] == 500
    assert len(logged) == 1
    assert rig.channel.calls == []


def test_with_a_secret_datagrams_are_sealed_and_plain_ones_ignored():
    def sealer(uid: bytes) -> SealedDatagrams:
        return SealedDatagrams([Secret(b"s" * 32)], "shop", uid, lambda n: bytes(n))

    rig = Rig(sealer(ME.uid))
    assert decode(sealer(A.uid).open(rig.carrier.sent[0]))[2] == "shop"
    rig.service.datagram(PlainDatagrams().seal(Heartbeat.of(A, "shop").encode()))
    assert rig.channel.calls == []
    rig.service.datagram(sealer(A.uid).seal(Heartbeat.of(A, "shop").encode()))
    assert rig.channel.calls == [("dial", "127.0.0.1", 7001)]
    assert rig.service.statistics()["unsealed"] == 1


def test_a_malformed_control_message_is_a_remote_error_for_the_channel():
    rig = Rig()
    rig.service.link_opened(A, False)
    with pytest.raises(RemoteError):
        rig.service.received(A, ["", 99], 0)


def test_announcing_tells_the_members_and_changes_my_member():
    rig = Rig()
    rig.service.link_opened(A, False)
    rig.service.announce(rig.service.me.with_payload(managers=["cart"]))
    assert rig.service.me.managers == {"cart"}
    assert ((A.uid,), Announcement(rig.service.me)) in rig.channel.said()


def test_events_come_in_order_to_everybody_even_if_one_answers_with_a_change():
    rig, numbers = Rig(), []
    rig.service.subscribe(
        lambda event: rig.service.announce(rig.service.me.with_payload(size=len(rig.service.view))) if isinstance(event, ViewChanged) else None
    )
    rig.service.subscribe(lambda event: numbers.append((type(event).__name__, event.after.number)))
    rig.service.link_opened(A, False)
    assert numbers == [("ViewChanged", 2), ("EveryoneChanged", 2), ("ViewChanged", 3), ("EveryoneChanged", 3)]


@pytest.fixture
def quiet_log():
    """Failures that a test provokes are logged; keep them off the screen, and count them."""
    failures: list[dict] = []
    globalLogPublisher.addObserver(failures.append)
    yield failures
    globalLogPublisher.removeObserver(failures.append)


def test_a_subscriber_that_raises_harms_nobody_else(quiet_log):
    rig, seen = Rig(), []

    def bad(event) -> None:
        raise ZeroDivisionError

    unsubscribe = rig.service.subscribe(bad)
    rig.service.subscribe(seen.append)
    rig.service.link_opened(A, False)
    assert [type(event) for event in seen] == [ViewChanged, EveryoneChanged]
    assert rig.service.statistics()["subscriber_errors"] == 2
    unsubscribe()
    unsubscribe()
    rig.service.link_opened(B, False)
    assert rig.service.statistics()["subscriber_errors"] == 2
    assert quiet_log


def test_t3_a_send_that_fails_does_not_end_the_heartbeats():
    """An interface that is down raises ENETUNREACH out of the socket; when it is back, heartbeats are."""

    class Port:
        def __init__(self) -> None:
            self.sent, self.broken = 0, False

        def write(self, datagram, address) -> None:
            if self.broken:
                raise OSError(errno.ENETUNREACH, "Network is unreachable")
            self.sent += 1

        def setTTL(self, ttl) -> None: ...
        def setLoopbackMode(self, mode) -> None: ...
        def getHandle(self) -> None: ...
        def stopListening(self) -> None: ...
        def setOutgoingInterface(self, interface):
            return succeed(1)

        def joinGroup(self, group, interface):
            return succeed(None)

    port = Port()

    class Reactor(Clock):
        def listenMulticast(self, number, protocol, **options) -> Port:
            return port

    reactor = Reactor()
    service = MembershipService(ME, MembershipSettings(), "shop", FakeChannel(), reactor, rng=Random(1), sealer=PlainDatagrams())
    service.startService()
    reactor.pump([0.1] * 20)
    port.broken = True
    reactor.pump([0.1] * 50)
    port.broken, sent = False, port.sent
    reactor.pump([0.1] * 20)
    assert port.sent >= sent + 3
    assert service.statistics()["discovery_errors"] == pytest.approx(10, abs=1)
    assert service.statistics()["driver_errors"] == 0


class Panic(BaseException):
    """What a library in Rust raises when it gets no memory is no `Exception`."""


@pytest.mark.parametrize("error", [ZeroDivisionError, Panic])
def test_a_tick_that_raises_is_followed_by_the_next(quiet_log, error):
    """The watchdog of T3: not even a bug in performing an effect ends the loop."""

    def broken(datagram):
        raise error

    rig = Rig()
    send, rig.carrier.send = rig.carrier.send, broken
    rig.wait(3)
    rig.carrier.send = send
    sent = len(rig.carrier.sent)
    rig.wait(3)
    assert len(rig.carrier.sent) >= sent + 4
    assert rig.service.statistics()["driver_errors"] >= 3
    assert quiet_log


class TestStop:
    def test_the_farewell_is_waited_for_until_all_have_it(self):
        rig = Rig()
        rig.service.link_opened(A, False)
        rig.service.link_opened(B, False)
        done = []
        rig.service.stopService().addCallback(done.append)
        to, message = rig.channel.messages[-1]
        assert (to, decode_control(decode(message.payload))) == ((A.uid, B.uid), Farewell())
        assert not rig.carrier.running
        message.waiters[0].confirmed(A.uid)
        assert done == []
        message.waiters[0].failed(B.uid)
        assert done == [None]
        assert rig.channel.receivers == {}
        assert rig.clock.getDelayedCalls() == []

    def test_a_member_that_answers_the_farewell_by_closing_its_link_has_had_it(self):
        rig, done = Rig(), []
        rig.service.link_opened(A, False)
        rig.service.stopService().addCallback(done.append)
        rig.service.link_lost(A)
        assert done == [None]

    def test_it_does_not_wait_longer_than_a_probe(self):
        rig = Rig()
        rig.service.link_opened(A, False)
        done = []
        rig.service.stopService().addCallback(done.append)
        rig.wait(0.2)
        assert done == []
        rig.wait(0.2)
        assert done == [None]
        assert isinstance(rig.events[-1], Stopped)
        assert rig.clock.getDelayedCalls() == []
        rig.channel.messages[-1][1].waiters[0].confirmed(A.uid)
        assert done == [None]

    def test_alone_it_stops_at_once_and_stopping_again_is_harmless(self):
        rig, done = Rig(), []
        rig.service.stopService().addCallback(done.append)
        rig.service.stopService()
        assert done == [None]
        assert rig.clock.getDelayedCalls() == []

    def test_after_the_stop_nothing_that_arrives_has_an_effect(self):
        rig = Rig()
        rig.service.stopService()
        rig.service.datagram(Heartbeat.of(A, "shop").encode())
        rig.service.link_opened(A, False)
        rig.service.received(A, decode(to_message(Farewell()).payload), 0)
        assert (rig.channel.calls, rig.channel.messages, len(rig.service.view)) == ([], [], 1)

    def test_a_stopped_service_does_not_start_again(self):
        rig = Rig()
        rig.service.stopService()
        with pytest.raises(LocalError, match="incarnation"):
            rig.service.startService()

    def test_a_discovery_that_cannot_start_stops_everything(self):
        clock, channel, good = Clock(), FakeChannel(), FakeCarrier()
        service = MembershipService(ME, MembershipSettings(), "shop", channel, clock, rng=Random(1), sealer=None, discoveries=[good, FakeCarrier(broken=True)])
        with pytest.raises(LocalError, match="no route"):
            service.startService()
        assert (good.running, channel.receivers, clock.getDelayedCalls(), bool(service.running)) == (False, {}, [], False)


class TestSettings:
    def test_each_discovery_is_built_from_its_settings_and_several_stack(self):
        settings = MembershipSettings(discovery=["multicast", "static", "dns", "file"], seeds=["a"], dns_names=["b"], seeds_file="c")
        built = discoveries_of(ME, settings, Clock(), lambda data: None)
        assert [type(discovery) for discovery in built] == [MulticastDiscovery, StaticDiscovery, DnsDiscovery, FileDiscovery]

    @pytest.mark.parametrize(
        "settings", [{"discovery": ["static"], "seeds": ["a:b"]}, {"discovery": ["dns"]}, {"discovery": ["file"]}, {"discovery": ["carrier pigeon"]}]
    )
    def test_what_cannot_work_is_refused_when_the_service_is_built(self, settings):
        with pytest.raises(LocalError):
            MembershipService(ME, MembershipSettings(**settings), "shop", FakeChannel(), Clock(), rng=Random(1), sealer=None)

    def test_the_refill_that_is_never_asked_for_fails_its_waiters(self):
        rig, failed = Rig(), []

        class Waiter:
            def confirmed(self, uid) -> None: ...
            def failed(self, uid) -> None:
                failed.append(uid)

        assert list(rig.service.refill(A, [], [Waiter()])) == []
        assert failed == [A.uid]
