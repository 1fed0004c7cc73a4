"""The cluster's own authority: what it issues is accepted, and nothing else is. Requirements 17 and 26."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from caterwaul.cluster.security.admission import Identity
from caterwaul.cluster.security.authority import CertificateAuthority, make_request, utc_now
from caterwaul.cluster.security.certificates import ADMINISTRATOR, Credentials, Revoked, load_credentials, name_in, read_authorities, uri_of
from caterwaul.cluster.security.guards import CertificateGuard
from caterwaul.cluster.security.private_files import write_file
from caterwaul.membership.errors import LocalError


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.init(tmp_path / "ca", "shop")


def load(directory: Path, node: str, cluster: str = "shop", days: int = 0) -> Credentials:
    return load_credentials(directory, cluster, node, utc_now() + datetime.timedelta(days=days))


def issued(authority: CertificateAuthority, node: str) -> Path:
    out = authority.directory.parent / node
    authority.issue(node, out, 90)
    return out


def test_what_is_issued_is_accepted(authority: CertificateAuthority) -> None:
    found = load(issued(authority, "a"), "a")
    assert name_in(found.chain[0], "shop") == "a"
    assert name_in(found.chain[0], "crm") == ""
    assert (len(found.authorities), len(found.multicast)) == (1, 1)
    assert not found.revoked.serials


def test_only_the_owner_reads_keys(authority: CertificateAuthority) -> None:
    out = issued(authority, "a")
    private = [authority.directory / "ca.key", authority.directory / "multicast.secret", out / "node.key", out / "multicast.secret"]
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (authority.directory, out)} == {0o700}
    assert not (out / "ca.key").exists()
    (out / "node.key").chmod(0o640)
    with pytest.raises(LocalError, match=r"the private key .* has mode 0640"):
        load(out, "a")


@pytest.mark.parametrize(
    ("node", "cluster", "days", "text"),
    [
        ("b", "shop", 0, "was issued for node 'a', and this is 'b'"),
        ("a", "crm", 0, "names no node of cluster 'crm'"),
        ("a", "shop", 91, "is valid from .* and it is"),
        ("a", "shop", -1, "is valid from .* and it is"),
    ],
)
def test_a_certificate_is_for_one_node_of_one_cluster_and_for_a_time(authority: CertificateAuthority, node: str, cluster: str, days: int, text: str) -> None:
    with pytest.raises(LocalError, match=text):
        load(issued(authority, "a"), node, cluster, days)


def test_another_authority_is_not_trusted(authority: CertificateAuthority, tmp_path: Path) -> None:
    out = issued(authority, "a")
    other = CertificateAuthority.init(tmp_path / "other", "shop")
    (out / "ca.pem").write_bytes((other.directory / "ca.pem").read_bytes())
    with pytest.raises(LocalError, match="was not issued by an authority"):
        load(out, "a")


def test_a_node_is_no_authority(authority: CertificateAuthority) -> None:
    out = issued(authority, "a")
    (out / "ca.pem").write_bytes((out / "node.pem").read_bytes())
    with pytest.raises(LocalError, match="is no authority"):
        load(out, "a")


def test_a_key_goes_with_its_certificate(authority: CertificateAuthority) -> None:
    one, two = issued(authority, "a"), issued(authority, "b")
    (one / "node.key").write_bytes((two / "node.key").read_bytes())
    with pytest.raises(LocalError, match="is not the certificate of the key"):
        load(one, "a")


@pytest.mark.parametrize("name", ["node.pem", "node.key", "ca.pem", "revoked.crl", "multicast.secret"])
def test_a_damaged_file_is_named_and_not_quoted(authority: CertificateAuthority, name: str) -> None:
    out = issued(authority, "a")
    (out / name).write_bytes(b"canary")
    with pytest.raises(LocalError, match=name) as caught:
        load(out, "a")
    assert "canary" not in str(caught.value)


def test_without_a_multicast_secret_there_is_none(authority: CertificateAuthority) -> None:
    out = issued(authority, "a")
    (out / "multicast.secret").unlink()
    assert not load(out, "a").multicast


def test_a_revoked_node_cannot_start_and_others_know(authority: CertificateAuthority) -> None:
    a, b = issued(authority, "a"), issued(authority, "b")
    authority.issue("b", b, 90)
    assert authority.revoke("b") == 2, "all that were issued to it"
    with pytest.raises(LocalError, match=r"no certificate of 'b' is valid"):
        authority.revoke("b")
    authority.publish(a)
    assert len(load(a, "a").revoked.serials) == 2
    authority.publish(b)
    with pytest.raises(LocalError, match="has been revoked"):
        load(b, "b")
    authority.issue("b", b, 90)
    load(b, "b")


def test_a_list_is_believed_only_when_an_authority_has_signed_it(authority: CertificateAuthority, tmp_path: Path) -> None:
    found = load(issued(authority, "a"), "a")
    other = CertificateAuthority.init(tmp_path / "other", "shop")
    other.issue("a", tmp_path / "x", 90)
    other.revoke("a")
    forged = (other.directory / "revoked.crl").read_bytes()
    with pytest.raises(ValueError, match="not signed by an authority"):
        Revoked.read(forged, found.authorities)
    with pytest.raises(ValueError, match="parsing"):
        Revoked.read(b"no list", found.authorities)


def test_an_older_list_does_not_replace_a_newer_one(authority: CertificateAuthority) -> None:
    a = issued(authority, "a")
    issued(authority, "b")
    old = load(a, "a").revoked
    authority.revoke("b")
    authority.publish(a)
    guard = CertificateGuard(load(a, "a"), "shop")
    assert not guard.revoke(old)
    assert (guard.revoked.number, len(guard.revoked.serials)) == (old.number + 1, 1)


def test_while_the_authority_changes_both_are_trusted(authority: CertificateAuthority) -> None:
    a, b = issued(authority, "a"), issued(authority, "b")
    authority.rotate()
    with pytest.raises(LocalError, match="is under way"):
        authority.rotate()
    for node in (a, b):
        authority.publish(node)
    before = load(a, "a")
    assert (len(before.authorities), len(before.multicast)) == (2, 2)
    authority.issue("b", b, 90)
    after = load(b, "b")
    assert after.chain[0].issuer == after.authorities[0].subject != before.chain[0].issuer
    authority.finish_rotation()
    with pytest.raises(LocalError, match="no change"):
        authority.finish_rotation()
    authority.publish(b)
    done = load(b, "b")
    assert (len(done.authorities), [found.id for found in done.multicast]) == (1, [after.multicast[1].id])
    authority.publish(a)
    with pytest.raises(LocalError, match="was not issued by an authority"):
        load(a, "a")


def test_a_key_that_never_leaves_its_node(authority: CertificateAuthority, tmp_path: Path) -> None:
    node, brought = tmp_path / "node", tmp_path / "brought"
    request = make_request("a", node)
    key = (node / "node.key").read_bytes()
    authority.issue("a", brought, 90, request)
    assert not (brought / "node.key").exists()
    for name in ("node.pem", "ca.pem", "revoked.crl", "multicast.secret"):
        write_file(node / name, (brought / name).read_bytes())
    assert name_in(load(node, "a").chain[0], "shop") == "a"
    make_request("a", node)
    assert (node / "node.key").read_bytes() == key, "a renewal asks for the same key"


def test_a_request_is_signed_by_the_key_it_asks_for(authority: CertificateAuthority, tmp_path: Path) -> None:
    request = make_request("a", tmp_path / "node")
    lines = request.read_text().splitlines()
    request.write_text("\n".join([*lines[:-2], lines[-2][:-8] + "AAAA" + lines[-2][-4:], lines[-1]]) + "\n")
    with pytest.raises(LocalError, match="ca request"):
        authority.issue("a", tmp_path / "out", 90, request)
    with pytest.raises(LocalError, match="cannot be read"):
        authority.issue("a", tmp_path / "out", 90, tmp_path / "none")


def test_the_directory_of_the_authority_is_nobodys_elses(authority: CertificateAuthority, tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="another one than the authority's"):
        authority.issue("a", authority.directory, 90)
    with pytest.raises(LocalError, match="holds an authority already"):
        CertificateAuthority.init(authority.directory, "shop")
    with pytest.raises(LocalError, match="holds no authority"):
        CertificateAuthority(tmp_path / "none")
    with pytest.raises(LocalError, match="node name"):
        authority.issue("../x", tmp_path / "y", 90)


@pytest.mark.parametrize(
    ("name", "act", "text"),
    [
        ("ca.key", lambda directory: CertificateAuthority(directory), "ca.key is no private key in PEM form"),
        ("revoked.crl", lambda directory: CertificateAuthority(directory).revoke("a"), "revoked.crl is no list of revoked certificates"),
        ("ca.pem", lambda directory: CertificateAuthority(directory), "ca.pem is no certificate in PEM form"),
    ],
)
def test_a_damaged_file_of_the_authority_is_named(authority: CertificateAuthority, name: str, act: Callable[[Path], object], text: str) -> None:
    issued(authority, "a")
    (authority.directory / name).write_bytes(b"damaged")
    with pytest.raises(LocalError, match=text):
        act(authority.directory)


def test_an_authority_without_its_list_begins_no_other(authority: CertificateAuthority) -> None:
    issued(authority, "a")
    (authority.directory / "revoked.crl").unlink()
    with pytest.raises(LocalError, match=r"revoked\.crl cannot be read"):
        authority.revoke("a")


def test_names_of_clusters_and_nodes_cannot_be_taken_for_others(authority: CertificateAuthority) -> None:
    assert uri_of("a/b", "c") != uri_of("a", "b/c")
    certificate = x509.load_pem_x509_certificate((issued(authority, "a") / "node.pem").read_bytes())
    assert certificate.public_bytes(Encoding.DER)
    assert name_in(certificate, "sho") == ""


def identity(found: Credentials) -> Identity:
    return Identity(name="x", credential="", shown=found.chain[0])


def test_an_authority_that_is_trusted_no_more_counts_for_open_connections_too(authority: CertificateAuthority, tmp_path: Path) -> None:
    """Somebody has stolen its key: what it has issued is on nobody's list."""
    a, forged = issued(authority, "a"), issued(authority, "b")
    stolen = identity(load(forged, "b"))
    guard = CertificateGuard(load(a, "a"), "shop")
    authority.rotate()
    authority.issue("a", a, 90)
    guard.replace(load(a, "a"))
    assert guard.admits(stolen)
    authority.finish_rotation()
    authority.publish(a)
    guard.replace(load(a, "a"))
    assert not guard.admits(stolen)


def test_what_cannot_be_used_changes_nothing_of_a_guard(authority: CertificateAuthority) -> None:
    a = issued(authority, "a")
    guard = CertificateGuard(load(a, "a"), "shop")
    good = load(a, "a")
    with pytest.raises((IndexError, TypeError, ValueError)):
        guard.replace(replace(good, chain=[]))
    assert guard.admits(identity(good))


def test_an_administrator_is_no_node_and_a_node_no_administrator(authority: CertificateAuthority, tmp_path: Path) -> None:
    authority.issue("admin", tmp_path / "admin", 90, scheme=ADMINISTRATOR)
    shown = x509.load_pem_x509_certificate((tmp_path / "admin" / "node.pem").read_bytes())
    assert (name_in(shown, "shop"), name_in(shown, "shop", ADMINISTRATOR)) == ("", "admin")
    node = load(issued(authority, "a"), "a").chain[0]
    assert (name_in(node, "shop"), name_in(node, "shop", ADMINISTRATOR)) == ("a", "")
    authority.publish(tmp_path / "admin")
    assert not (tmp_path / "admin" / "multicast.secret").exists()
    with pytest.raises(LocalError, match="names no node"):
        load(tmp_path / "admin", "admin")


def test_a_certificate_that_is_on_no_list_is_revoked_by_its_number(authority: CertificateAuthority) -> None:
    out = issued(authority, "a")
    number = load(out, "a").chain[0].serial_number
    (authority.directory / "issued.json").write_text("[]")
    assert authority.revoke("", [number]) == 1
    authority.publish_revoked(out)
    with pytest.raises(LocalError, match="has been revoked"):
        load(out, "a")


def test_an_authority_made_anew_is_above_the_lists_of_the_one_before(authority: CertificateAuthority, tmp_path: Path) -> None:
    authority.issue("a", tmp_path / "a", 90)
    authority.revoke("a")
    before = Revoked.read((authority.directory / "revoked.crl").read_bytes(), load_authorities(authority)).number
    again = CertificateAuthority.init(tmp_path / "again", "shop")
    assert Revoked.read((again.directory / "revoked.crl").read_bytes(), load_authorities(again)).number >= before - 1


def load_authorities(authority: CertificateAuthority) -> list[x509.Certificate]:
    return read_authorities(authority.directory / "ca.pem")
