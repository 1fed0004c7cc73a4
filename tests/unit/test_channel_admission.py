"""Who is admitted to a connection, and what happens when that counts no more: by name, by what was proven, connected or not."""

from __future__ import annotations

from typing import Any

import pytest

from caterwaul.cluster.handshake import encode_greeting
from caterwaul.cluster.security.admission import Identity
from caterwaul.cluster.transport import PlainTcp
from caterwaul.membership.member import Member

from .test_channel_shell import GREETING, PEER, Fixture, Wire


class Asked:
    """Admits whoever says "please"."""

    def __init__(self, identity: Identity) -> None:
        self.identity: Identity | None = None
        self._then = identity

    def begin(self) -> bytes:
        return b""

    def receive(self, data: bytes) -> tuple[bytes, bytes]:
        if data.startswith(b"please"):
            self.identity = self._then
            return b"", data[6:]
        return b"", b""


class Guarded(PlainTcp):
    """Everybody is `identity`, as long as its credential is not in `gone`."""

    def __init__(self) -> None:
        self.identity = Identity(name=PEER.name, credential="1")
        self.gone: set[str] = set()

    def admission(self, transport: Any, uid: bytes, *, dialled: bool) -> Any:
        return Asked(self.identity)

    def admits(self, identity: Identity) -> bool:
        return identity.credential not in self.gone


@pytest.fixture
def guard() -> Guarded:
    return Guarded()


@pytest.fixture
def fixture(guard: Guarded) -> Fixture:
    found = Fixture()
    found.channel._connections._endpoints = guard
    found.out: list[bytes] = []  # type: ignore[attr-defined,misc]
    found.channel.on_shut_out = found.out.append  # type: ignore[attr-defined]
    return found


def admitted(fixture: Fixture, greeting: bytes = GREETING) -> Wire:
    wire = fixture.accept()
    wire.protocol.dataReceived(b"please" + greeting)
    return wire


def refusals(fixture: Fixture) -> dict[str, int]:
    found: dict[str, int] = fixture.channel.statistics()["refusals"]
    return found


def test_nothing_is_decoded_before_and_the_rest_of_the_same_bytes_is(fixture: Fixture) -> None:
    wire = fixture.accept()
    wire.protocol.dataReceived(GREETING)
    assert (wire.frames(), fixture.app.events) == ([], [])
    wire.protocol.dataReceived(b"please" + GREETING)
    assert fixture.app.events == ["opened False"]


def test_whoever_says_another_name_is_refused(fixture: Fixture, guard: Guarded) -> None:
    guard.identity = Identity(name="other", credential="1")
    admitted(fixture)
    assert refusals(fixture) == {"identity": 1}
    assert fixture.app.events == []


def test_nobody_is_a_process_that_is_known_by_another_name(fixture: Fixture, guard: Guarded) -> None:
    """An insider has a good certificate, and says another member's uid."""
    admitted(fixture)
    liar = Member(PEER.uid, "liar", "10.0.0.66", 4000)
    guard.identity = Identity(name="liar", credential="2")
    admitted(fixture, encode_greeting(liar, "c", epoch=None, fresh=b"f" * 8, peer=None, received=(0, 0)))
    assert refusals(fixture) == {"identity": 1}
    assert fixture.app.events == ["opened False"], "the one that is known keeps its link"


def test_what_is_taken_away_while_somebody_is_being_admitted_does_not_count_afterwards(fixture: Fixture, guard: Guarded) -> None:
    wire = fixture.accept()
    guard.gone.add("1")
    fixture.channel.readmit()
    wire.protocol.dataReceived(b"please" + GREETING)
    assert refusals(fixture) == {"revoked": 1}
    assert fixture.app.events == []


def test_a_node_that_is_shut_out_is_told_of_and_cut_off(fixture: Fixture, guard: Guarded) -> None:
    wire = admitted(fixture)
    guard.gone.add("1")
    fixture.channel.readmit()
    assert wire.disconnecting
    assert fixture.out == [PEER.uid]  # type: ignore[attr-defined]
    assert fixture.app.events == ["opened False", "lost"]


def test_so_is_one_that_has_no_connection_just_then(fixture: Fixture, guard: Guarded) -> None:
    admitted(fixture).gone()
    guard.gone.add("1")
    fixture.channel.readmit()
    assert fixture.out == [PEER.uid]  # type: ignore[attr-defined]


def test_one_that_has_only_proven_a_secret_may_have_another(fixture: Fixture, guard: Guarded) -> None:
    guard.identity = Identity(uid=PEER.uid, credential="1")
    wire = admitted(fixture)
    guard.gone.add("1")
    fixture.channel.readmit()
    assert wire.disconnecting
    assert fixture.out == []  # type: ignore[attr-defined]


def test_with_another_certificate_links_go_on_over_new_connections(fixture: Fixture) -> None:
    wire = admitted(fixture)
    fixture.channel.readmit(renew=True)
    assert wire.disconnecting
    assert wire.frames()[-1][1].startswith("renewed: ")
    assert fixture.out == []  # type: ignore[attr-defined]
    assert fixture.channel.is_degraded(PEER.uid)
    fixture.reactor.advance(0.3)
    assert fixture.reactor.tcpClients[0][:2] == PEER.address


def test_a_flood_of_connections_takes_the_place_of_its_own_oldest(fixture: Fixture) -> None:
    silent = [fixture.accept() for _ in range(32)]
    fixture.reactor.advance(2.0)  # the address may open more
    late = fixture.accept()
    assert [wire.aborted for wire in silent] == [True] + [False] * 31
    late.protocol.dataReceived(b"please" + GREETING)
    assert fixture.app.events == ["opened False"]
    assert refusals(fixture) == {"busy": 1}


def test_before_the_transport_says_that_it_is_usable_nobody_is_believed(fixture: Fixture, guard: Guarded) -> None:
    guard.has_handshake = True
    wire = fixture.accept()
    wire.protocol.dataReceived(GREETING)
    assert refusals(fixture) == {"malformed": 1}
    assert fixture.app.events == []
    late = fixture.accept()
    late.protocol.handshakeCompleted()
    late.protocol.dataReceived(b"please" + GREETING)
    assert fixture.app.events == ["opened False"]
