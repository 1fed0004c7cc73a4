"""The service that looks after keys: what it does with files that change, are damaged, or cannot be read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from caterwaul.cluster.security.authority import CertificateAuthority
from caterwaul.cluster.security.guards import CertificateGuard, SecretGuard
from caterwaul.cluster.security.keyring import VARIABLE, make_secret, read_secrets, write_secrets
from caterwaul.cluster.security.service import Security
from caterwaul.cluster.tables import NodeSettings, SecuritySettings
from caterwaul.membership import PlainDatagrams
from caterwaul.membership.errors import LocalError

UID = b"u" * 16


class Channel:
    def __init__(self) -> None:
        self.readmitted = self.renewed = 0
        self.sent: list[Any] = []
        self.receivers: dict[str, Any] = {}

    def readmit(self, *, renew: bool = False) -> None:
        self.readmitted += 1
        self.renewed += renew

    def attach(self, name: str, receiver: Any, listens: bool = False) -> None:
        self.receivers[name] = receiver

    def detach(self, name: str) -> None:
        del self.receivers[name]

    def send(self, to: Any, message: Any) -> None:
        self.sent.append(message)


class Watch:
    """A service under a clock."""

    def __init__(self, node: str = "a", host: str = "127.0.0.1", **settings: str) -> None:
        self.clock, self.channel = Clock(), Channel()
        self.security = Security(SecuritySettings(**settings), NodeSettings(name=node, host=host), "shop", UID, os.urandom)
        self.security.start(self.channel, self.clock)  # type: ignore[arg-type]
        self.clock.advance(0)

    def look(self) -> dict[str, Any]:
        self.clock.advance(1.1)
        return self.security.statistics()


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    write_secrets(tmp_path / "secret", [make_secret()], replace=False)
    return tmp_path / "secret"


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    authority = CertificateAuthority.init(tmp_path / "ca", "shop")
    for name in "ab":
        authority.issue(name, tmp_path / name, 90)
    return authority


def test_outside_loopback_there_is_a_key_or_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LocalError, match="outside loopback, and there is no secret"):
        Watch(host="10.0.0.1")
    monkeypatch.setenv(VARIABLE, " \n")
    with pytest.raises(LocalError, match="outside loopback, and there is no secret"):
        Watch(host="10.0.0.1")
    monkeypatch.setenv(VARIABLE, make_secret())
    assert isinstance(Watch(host="10.0.0.1").security.guard, SecretGuard)


def test_on_loopback_a_node_without_one_speaks_in_the_clear() -> None:
    security = Watch().security
    assert (security.guard, type(security.sealer), security.mode) == (None, PlainDatagrams, "none")
    assert "so loopback only" in security.description


def test_a_file_that_others_may_read_is_read_again_when_they_may_not(secret_file: Path) -> None:
    watch = Watch(secret_file=str(secret_file))
    write_secrets(secret_file, [make_secret()], replace=True)
    secret_file.chmod(0o644)
    before = watch.look()
    assert (before["errors"], before["reloads"]) == (1, 0)
    assert watch.look()["errors"] == 1, "said once"
    secret_file.chmod(0o600)
    after = watch.look()
    assert after["reloads"] == 1
    assert after["secrets"] == [found.id.hex() for found in read_secrets(secret_file)]
    assert watch.channel.readmitted == 1
    assert watch.look()["reloads"] == 1


def test_a_newer_list_counts_although_the_rest_of_the_directory_cannot_be_used(authority: CertificateAuthority, tmp_path: Path) -> None:
    watch = Watch(certificates=str(tmp_path / "a"))
    authority.revoke("b")
    authority.publish_revoked(tmp_path / "a")
    (tmp_path / "a" / "multicast.secret").chmod(0o644)
    found = watch.look()
    assert (found["errors"], found["revoked"]) == (1, 1)
    assert watch.channel.readmitted > 0


def test_a_list_of_an_authority_that_is_not_known_here_yet_is_counted_and_had_later(authority: CertificateAuthority, tmp_path: Path) -> None:
    watch = Watch(certificates=str(tmp_path / "a"))
    authority.revoke("b")
    authority.rotate()
    der = (authority.directory / "revoked.crl").read_bytes()
    receiver = watch.channel.receivers["!"]
    receiver.received(None, ["!", 2, der], 0)
    receiver.received(None, ["!", 2, b"junk"], 0)
    assert (watch.look()["lists_refused"], watch.security.statistics()["revoked"]) == (2, 0)
    authority.publish(tmp_path / "a")
    assert watch.look()["revoked"] == 1


def test_a_list_that_a_member_says_is_kept_and_told(authority: CertificateAuthority, tmp_path: Path) -> None:
    watch = Watch(certificates=str(tmp_path / "a"))
    authority.revoke("b")
    der = (authority.directory / "revoked.crl").read_bytes()
    watch.channel.receivers["!"].received(None, ["!", 2, der], 0)
    assert (tmp_path / "a" / "revoked.crl").read_bytes() == der
    assert watch.look()["revoked"] == 1


def test_the_end_of_a_certificate_is_said_in_time(authority: CertificateAuthority, tmp_path: Path) -> None:
    authority.issue("a", tmp_path / "a", 10)
    said: list[Any] = []
    globalLogPublisher.addObserver(said.append)
    try:
        watch = Watch(certificates=str(tmp_path / "a"))
        for _ in range(5):
            watch.look()
        assert len([event for event in said if "ends in" in str(event.get("over"))]) == 1
        watch.clock.advance(86400.0)
        assert len([event for event in said if "ends in" in str(event.get("over"))]) == 2
    finally:
        globalLogPublisher.removeObserver(said.append)


def test_with_another_certificate_every_connection_is_made_anew(authority: CertificateAuthority, tmp_path: Path) -> None:
    watch = Watch(certificates=str(tmp_path / "a"))
    authority.publish(tmp_path / "a")
    watch.look()
    assert (watch.channel.readmitted, watch.channel.renewed) == (1, 0)
    authority.issue("a", tmp_path / "a", 90)
    watch.look()
    assert watch.channel.renewed == 1


def test_certificates_without_a_multicast_secret_have_no_multicast(authority: CertificateAuthority, tmp_path: Path) -> None:
    (tmp_path / "a" / "multicast.secret").unlink()
    security = Watch(certificates=str(tmp_path / "a")).security
    assert (type(security.guard), security.sealer) == (CertificateGuard, None)
