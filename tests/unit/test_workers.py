"""What `node.workers = "lite"` makes of a host's settings, and by which name others know a worker."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from caterwaul.cluster.config import SettingsError
from caterwaul.cluster.errors import HandshakeRefused
from caterwaul.cluster.security.admission import Identity
from caterwaul.cluster.settings import Settings
from caterwaul.cluster.workers import as_worker, is_worker
from caterwaul.membership.member import Member
from caterwaul.membership.service import discoveries_of

HOST: dict[str, Any] = {"name": "web1", "host": "10.0.0.1", "port": 7000, "workers": "lite", "weight": 3, "drain_on_term": True, "machine": "rack-4"}


def worker_of(**more: Any) -> Settings:
    return as_worker(Settings.of(node=HOST, security={"secret_file": "/etc/secret"}, **more), 4711)


def test_a_worker_holds_nothing_and_has_nothing_that_a_host_has_once() -> None:
    worker = worker_of(
        admin={"listen": "127.0.0.1:7001", "token_file": "/etc/token"},
        web={"listen": "127.0.0.1:8080", "application": "shop:app"},
        managers={"shop": {"type": "backup"}, "default": {}},
    )
    assert is_worker(worker.node)
    assert (worker.node.name, worker.node.weight, worker.node.drain_on_term) == ("web1+4711", 0, False)
    assert (worker.node.machine, worker.node.host) == ("rack-4", "10.0.0.1"), "copies and primaries are placed by where it is"
    assert (worker.admin.socket, worker.admin.listen, worker.web.listen) == ("", "", "")
    assert worker.managers["shop"].type == "backup"


def test_it_asks_its_node_first_and_goes_on_to_the_others_when_that_is_down() -> None:
    worker = worker_of(membership={"discovery": ["multicast", "static"], "seeds": ["10.0.0.2", "10.0.0.3:7003"]})
    assert worker.membership.discovery == ["static", "multicast"]
    assert worker.membership.seeds == ["10.0.0.1:7000", "10.0.0.2", "10.0.0.3:7003"]
    me = Member(bytes(16), worker.node.name, "10.0.0.1", 54321)
    found: list[tuple[str, int]] = []
    static = discoveries_of(me, worker.membership, clock := Clock(), lambda data: None, worker.node.port)[0]
    static.start(lambda host, port: found.append((host, port)))
    clock.advance(0.0)
    assert found[1] == ("10.0.0.2", 7000), "a seed without a port has that of the nodes, not the worker's own"
    static.stop()


def test_without_a_port_of_its_node_it_finds_it_as_others_do() -> None:
    settings = Settings.of(node={"name": "web1", "workers": "lite"})
    assert as_worker(settings, 1).membership == settings.membership
    six = Settings.of(node={"name": "web1", "host": "::1", "port": 7000})
    assert as_worker(six, 1).membership.seeds == ["[::1]:7000"]


def test_no_node_is_called_like_a_worker_and_the_setting_is_one_of_two() -> None:
    for wrong in ({"name": "web1+7"}, {"workers": "none"}):
        with pytest.raises(SettingsError):
            Settings.of(node=wrong)


def test_cookies_and_certificates_know_it_as_its_node() -> None:
    worker, node = Member(bytes(16), "web1+4711", "10.0.0.1", 1), Member(bytes(15) + b"1", "web1", "10.0.0.1", 2)
    assert worker.route == node.route == "web1"
    Identity(name="web1").require(worker)
    for name in ("web", "web1+4711", "web11"):
        with pytest.raises(HandshakeRefused):
            Identity(name=name).require(worker)
