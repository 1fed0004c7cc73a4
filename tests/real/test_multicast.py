"""Multicast discovery on real sockets: what the kernel does while a socket is being set up."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from twisted.internet.selectreactor import SelectReactor

from caterwaul.membership.discovery import MulticastDiscovery
from caterwaul.membership.settings import MembershipSettings

from .processes import free_port

GROUP, OTHER = "228.0.0.4", "228.0.0.5"


@pytest.mark.parametrize(("group", "heard"), [(GROUP, [b"ours"]), (OTHER, [])])
def test_what_another_group_says_before_the_socket_is_configured_is_not_heard(monkeypatch: pytest.MonkeyPatch, group: str, heard: list[bytes]) -> None:
    """A wildcard socket had it in its buffer, and the two groups became one cluster."""
    port = free_port(socket.SOCK_DGRAM)
    reactor = SelectReactor()
    found: list[bytes] = []
    discovery = MulticastDiscovery(MembershipSettings(multicast_address=GROUP, multicast_port=port), "127.0.0.1", reactor, found.append)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as neighbour:
        neighbour.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        neighbour.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        neighbour.bind(("", port))
        neighbour.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        for address in (GROUP, OTHER):
            neighbour.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(address) + socket.inet_aton("127.0.0.1"))
        opened = discovery._open

        def say_something_first() -> Any:
            listening = opened()
            neighbour.sendto(b"ours", (group, port))
            return listening

        monkeypatch.setattr(discovery, "_open", say_something_first)
        discovery.start(lambda host, number: None)
        try:
            for _ in range(5):
                reactor.iterate(0.02)
        finally:
            discovery.stop()
            reactor.iterate(0)
    assert found == heard
