"""The cluster's own certificate authority, as files in one directory: what `caterwaul ca` does.

    ca.pem            the authority's certificate; after `rotate` the new one first, and the one of before until `rotate --finish`
    ca.key            its key: whoever reads it can be any node
    issued.json       serial, node and end of each certificate that may still be valid
    revoked.crl       the list of revoked ones, signed; its number grows
    multicast.secret  seals the heartbeats

The directory belongs on no node: nodes get their own directory from `issue`, in which nothing is that could make another one.
Keys are P-256, signatures SHA-256. A certificate begins an hour ago, because clocks disagree.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, EllipticCurvePublicKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ...membership.errors import LocalError
from ...membership.member import require_name
from .certificates import (
    ADMINISTRATOR,
    AUTHORITY_FILE,
    CERTIFICATE_FILE,
    KEY_FILE,
    MULTICAST_FILE,
    NODE,
    REVOKED_FILE,
    Revoked,
    name_in,
    read_as,
    read_authorities,
    read_certificates,
    read_key,
    uri_of,
)
from .keyring import make_secret, read_lines, write_secrets
from .private_files import read_private, write_file

__all__ = ["AUTHORITY_KEY_FILE", "REQUEST_FILE", "CertificateAuthority", "make_request", "utc_now"]

AUTHORITY_KEY_FILE, REQUEST_FILE, _ISSUED_FILE = "ca.key", "node.csr", "issued.json"
_AUTHORITY_DAYS = 3650
_LIST_DAYS = 3650  # a list is replaced by one with a higher number, and never by time
_BEFORE = datetime.timedelta(hours=1)


class CertificateAuthority:
    """The authority of one cluster, in `directory`. Everything raises `LocalError` with what to do."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if not (directory / AUTHORITY_KEY_FILE).exists():
            raise LocalError(f"{directory} holds no authority ({AUTHORITY_KEY_FILE} is missing); `caterwaul ca init` makes one")
        self._authorities = read_authorities(directory / AUTHORITY_FILE)
        self._key = read_key(directory / AUTHORITY_KEY_FILE, "the authority's key")

    @property
    def cluster(self) -> str:
        """The cluster whose nodes it names."""
        found = self._authorities[0].subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        return str(found[0].value)

    @classmethod
    def init(cls, directory: Path, cluster: str) -> CertificateAuthority:
        """Make a new one. The directory must not hold one."""
        _make_directory(directory)
        if (directory / AUTHORITY_KEY_FILE).exists():
            raise LocalError(f"{directory} holds an authority already; `caterwaul ca rotate` replaces its key")
        key = generate_private_key(SECP256R1())
        write_file(directory / AUTHORITY_KEY_FILE, _pem_of(key), replace=False)
        write_file(directory / AUTHORITY_FILE, _authority(cluster, key).public_bytes(Encoding.PEM), private=False)
        write_secrets(directory / MULTICAST_FILE, [make_secret()], replace=False)
        authority = cls(directory)
        authority._write_issued([])
        authority._write_revoked((), int(utc_now().timestamp()))  # above those of an authority that was here before
        return authority

    def issue(self, node: str, out: Path, days: int, request: Path | None = None, *, scheme: str = NODE) -> datetime.datetime:
        """Fill the directory `out` for that node (or administrator): a certificate, and what it has to trust. Returns when it ends.

        `request`: what `make_request` has made on the node; without one the key is made here, and is in `out` too.
        """
        require_name(node)
        _make_directory(out)
        if out.resolve() == self.directory.resolve():
            raise LocalError("a node's directory is another one than the authority's")
        key = generate_private_key(SECP256R1()) if request is None else None
        certificate = self._certificate(node, _requested_key(request) if key is None else key.public_key(), days, scheme)
        self._write_issued(
            [*self.issued(), {"serial": f"{certificate.serial_number:x}", "node": node, "for": scheme, "until": certificate.not_valid_after_utc.isoformat()}]
        )
        if key is not None:
            write_file(out / KEY_FILE, _pem_of(key))
        write_file(out / CERTIFICATE_FILE, certificate.public_bytes(Encoding.PEM), private=False)
        self.publish(out)
        return certificate.not_valid_after_utc

    def publish_revoked(self, out: Path) -> None:
        """Copy the list of revoked certificates into the directory of a node."""
        write_file(out / REVOKED_FILE, (self.directory / REVOKED_FILE).read_bytes(), private=False)

    def publish(self, out: Path) -> None:
        """Copy what all nodes share into the directory of one: authorities, revoked certificates, and multicast secrets, which an administrator does not get."""
        write_file(out / AUTHORITY_FILE, (self.directory / AUTHORITY_FILE).read_bytes(), private=False)
        self.publish_revoked(out)
        own = out / CERTIFICATE_FILE
        if not own.exists() or not name_in(read_certificates(own)[0], self.cluster, ADMINISTRATOR):
            write_file(out / MULTICAST_FILE, read_private(self.directory / MULTICAST_FILE, "the multicast secret"))

    def revoke(self, node: str, more: Sequence[int] = ()) -> int:
        """Trust no certificate of that node any more (empty: of none), nor those of these serial numbers. Returns how many were trusted until now."""
        revoked = self._revoked()
        found = [int(entry["serial"], 16) for entry in self.issued() if node and entry["node"] == node]
        fresh = {*found, *more} - revoked.serials
        if not fresh:
            raise LocalError(f"no certificate of {node or 'these numbers'!r} is valid; `caterwaul ca list` shows which are")
        self._write_revoked(revoked.serials | fresh, revoked.number + 1)
        return len(fresh)

    def rotate(self) -> None:
        """Begin a change of the authority's key and of the multicast secret: the new ones are made, and the old ones still trusted."""
        if len(self._authorities) > 1:
            raise LocalError("a change of the authority is under way; end it with `caterwaul ca rotate --finish` when all nodes have new certificates")
        revoked = self._revoked()
        key = generate_private_key(SECP256R1())
        authorities = [_authority(self.cluster, key), *self._authorities]
        write_file(self.directory / AUTHORITY_FILE, b"".join(found.public_bytes(Encoding.PEM) for found in authorities), private=False)
        write_file(self.directory / AUTHORITY_KEY_FILE, _pem_of(key))
        lines = read_lines(self.directory / MULTICAST_FILE)
        write_secrets(self.directory / MULTICAST_FILE, [*lines[:1], make_secret()], replace=True)
        self._authorities, self._key = authorities, key
        self._write_revoked(revoked.serials, revoked.number + 1)

    def finish_rotation(self) -> None:
        """End it: only the new authority and the new multicast secret are left."""
        if len(self._authorities) == 1:
            raise LocalError("no change of the authority is under way; `caterwaul ca rotate` begins one")
        del self._authorities[1:]
        write_file(self.directory / AUTHORITY_FILE, self._authorities[0].public_bytes(Encoding.PEM), private=False)
        write_secrets(self.directory / MULTICAST_FILE, read_lines(self.directory / MULTICAST_FILE)[-1:], replace=True)

    def issued(self) -> list[dict[str, Any]]:
        """`serial` (hexadecimal), `node`, `until` (ISO 8601) of each certificate that has not ended, oldest first."""
        path = self.directory / _ISSUED_FILE
        try:
            found: list[dict[str, Any]] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise LocalError(f"{path} cannot be read: {error}") from None
        now = utc_now()
        return [entry for entry in found if datetime.datetime.fromisoformat(entry["until"]) > now]

    @property
    def revoked_serials(self) -> frozenset[int]:
        return self._revoked().serials

    # -- inside

    def _certificate(self, node: str, key: EllipticCurvePublicKey, days: int, scheme: str) -> x509.Certificate:
        return (
            _builder(_subject(self.cluster, node), days)
            .issuer_name(self._authorities[0].subject)
            .public_key(key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri_of(self.cluster, node, scheme))]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, SHA256())
        )

    def _revoked(self) -> Revoked:
        """An authority always has a list; to begin another would be to take back what this one says."""
        return read_as(self.directory / REVOKED_FILE, "list of revoked certificates", lambda der: Revoked.read(der, self._authorities))

    def _write_revoked(self, serials: Iterable[int], number: int) -> None:
        now = utc_now()
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._authorities[0].subject)
        builder = builder.last_update(now - _BEFORE).next_update(now + datetime.timedelta(days=_LIST_DAYS))
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
        for serial in sorted(serials):
            builder = builder.add_revoked_certificate(x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build())
        write_file(self.directory / REVOKED_FILE, builder.sign(self._key, SHA256()).public_bytes(Encoding.DER), private=False)

    def _write_issued(self, entries: Sequence[dict[str, Any]]) -> None:
        write_file(self.directory / _ISSUED_FILE, json.dumps(entries, indent=1).encode())


def make_request(node: str, out: Path) -> Path:
    """On the node itself: a key, which stays in `out`, and a request to sign it. A key that is there already is used again."""
    require_name(node)
    _make_directory(out)
    path = out / KEY_FILE
    if not path.exists():
        write_file(path, _pem_of(generate_private_key(SECP256R1())), replace=False)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(read_key(path), SHA256())
    write_file(out / REQUEST_FILE, request.public_bytes(Encoding.PEM), private=False)
    return out / REQUEST_FILE


def _requested_key(request: Path | None) -> EllipticCurvePublicKey:
    assert request is not None, "or there is a key"
    found = read_as(request, "request in PEM form", x509.load_pem_x509_csr, "; `caterwaul ca request` makes one")
    key = found.public_key()
    if not found.is_signature_valid or not isinstance(key, EllipticCurvePublicKey):
        raise LocalError(f"{request} is not signed by the key that it asks for, or that is on no elliptic curve; `caterwaul ca request` makes one")
    return key


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise LocalError(f"{path} cannot be made: {error.strerror}") from None


def utc_now() -> datetime.datetime:
    """Certificates are about the time on the wall; nothing else of Caterwaul is."""
    return datetime.datetime.now(datetime.UTC)


def _authority(cluster: str, key: EllipticCurvePrivateKey) -> x509.Certificate:
    """A certificate that signs itself. Its name has the key's fingerprint, so that two of one cluster are not taken for each other."""
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    subject = _subject(cluster, f"Caterwaul authority {identifier.digest.hex()[:8]}")
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    return (
        _builder(subject, _AUTHORITY_DAYS)
        .issuer_name(subject)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, SHA256())
    )


def _subject(cluster: str, name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster), x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(subject: x509.Name, days: int) -> x509.CertificateBuilder:
    now = utc_now()
    builder = x509.CertificateBuilder().subject_name(subject).serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - _BEFORE).not_valid_after(now + datetime.timedelta(days=days))


def _pem_of(key: EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
