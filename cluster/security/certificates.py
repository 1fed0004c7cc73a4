"""A node's certificate, the authorities it trusts, and the list of certificates that are trusted no more.

All of it lies in one directory, as `caterwaul ca issue` fills it: ``node.pem``, ``node.key`` (its owner's alone), ``ca.pem`` (one authority, two
while it is being changed), ``revoked.crl`` and ``multicast.secret``. Who somebody is stands in one place of a certificate, a URI
``caterwaul://CLUSTER/NODE`` in its subject alternative name; the common name is for people. Only the cluster's own authorities are trusted.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from ...membership.errors import LocalError
from ...membership.secret import Secret
from .keyring import read_secrets
from .private_files import read_private

__all__ = [
    "ADMINISTRATOR",
    "AUTHORITY_FILE",
    "CERTIFICATE_FILE",
    "FILES",
    "KEY_FILE",
    "MULTICAST_FILE",
    "NODE",
    "REVOKED_FILE",
    "Credentials",
    "Revoked",
    "has_issued",
    "load_credentials",
    "name_in",
    "read_as",
    "read_authorities",
    "read_certificates",
    "read_key",
    "read_revoked",
    "uri_of",
]  # fmt: skip

CERTIFICATE_FILE, KEY_FILE, AUTHORITY_FILE, REVOKED_FILE, MULTICAST_FILE = "node.pem", "node.key", "ca.pem", "revoked.crl", "multicast.secret"
FILES = (CERTIFICATE_FILE, KEY_FILE, AUTHORITY_FILE, REVOKED_FILE, MULTICAST_FILE)  #: of a node's directory
NODE, ADMINISTRATOR = "caterwaul", "caterwaul-admin"  #: schemes of the URI: what a certificate is for

Parsed = TypeVar("Parsed")


@dataclass(frozen=True, slots=True)
class Revoked:
    """A list signed by an authority. `number` grows with each list; `serials`: of certificates that count no more. The empty one: number 0."""

    number: int = 0
    serials: frozenset[int] = frozenset()
    der: bytes = field(default=b"", repr=False)

    @staticmethod
    def read(der: bytes, authorities: Iterable[x509.Certificate]) -> Revoked:
        """Raises `ValueError` if it is no such list, or not signed by any of the authorities."""
        crl = x509.load_der_x509_crl(der)
        if not any(_has_signed(authority, crl) for authority in authorities):
            raise ValueError("not signed by an authority of this cluster")
        try:
            number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        except (x509.ExtensionNotFound, x509.DuplicateExtension):
            raise ValueError("the list has no number") from None
        return Revoked(number, frozenset(entry.serial_number for entry in crl), der)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a node shows and whom it trusts. `chain`: its certificate first; `multicast`: secrets of the datagrams, none: multicast is off."""

    chain: Sequence[x509.Certificate]
    key: EllipticCurvePrivateKey = field(repr=False)
    authorities: Sequence[x509.Certificate]
    revoked: Revoked
    multicast: Sequence[Secret]


def uri_of(cluster: str, name: str, scheme: str = NODE) -> str:
    """How a certificate names a node, or an administrator."""
    return f"{scheme}://{quote(cluster, safe='')}/{quote(name, safe='')}"


def name_in(certificate: x509.Certificate, cluster: str, scheme: str = NODE) -> str:
    """The node (or administrator) that this certificate names in that cluster; empty: none. It names one only, and is for one purpose only."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return ""
    prefix = uri_of(cluster, "", scheme)
    found = names.get_values_for_type(x509.UniformResourceIdentifier)
    return unquote(found[0][len(prefix) :]) if len(found) == 1 and found[0].startswith(prefix) else ""


def read_as(path: Path, what: str, parse: Callable[[bytes], Parsed], hint: str = "") -> Parsed:
    """What `parse` makes of a file that everybody may read; its `ValueError`: that is no `what`. Raises `LocalError`, with the hint at its end."""
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise LocalError(f"{path} cannot be read: {error.strerror}{hint}") from None
    except ValueError as error:
        raise LocalError(f"{path} is no {what}: {error}{hint}") from None


def read_key(path: Path, what: str = "the private key") -> EllipticCurvePrivateKey:
    """Of a PEM file that only its owner may read. `what` names it in errors. Raises `LocalError`."""
    try:
        key = load_pem_private_key(read_private(path, what), None)
    except (ValueError, TypeError):  # the library's own text may quote the file
        raise LocalError(f"{path} is no private key in PEM form without a passphrase") from None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise LocalError(f"{path} is no key on an elliptic curve, as `caterwaul ca issue` makes them")
    return key


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Of a PEM file, in order. Raises `LocalError`."""
    return read_as(path, "certificate in PEM form", x509.load_pem_x509_certificates, "; `caterwaul ca issue` makes it")


def read_authorities(path: Path) -> list[x509.Certificate]:
    """The same, of certificates that may sign others. Raises `LocalError`."""
    found = read_certificates(path)
    for authority in found:
        try:
            is_authority = authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except x509.ExtensionNotFound:
            is_authority = False
        if not is_authority:
            raise LocalError(f"{path}: {authority.subject.rfc4514_string()} is no authority, it may not sign certificates")
    return found


def load_credentials(directory: Path, cluster: str, node: str, now: datetime.datetime) -> Credentials:
    """What the directory of a node holds, checked as other nodes will check it. `now`: in UTC, with time zone. Raises `LocalError`."""
    path = directory / CERTIFICATE_FILE
    chain = read_certificates(path)
    key = read_key(directory / KEY_FILE)
    authorities = read_authorities(directory / AUTHORITY_FILE)
    own = chain[0]
    if own.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != key.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    ):
        raise LocalError(f"{path} is not the certificate of the key in {directory / KEY_FILE}")
    if not any(has_issued(authority, own) for authority in authorities):
        raise LocalError(f"{path} was not issued by an authority in {directory / AUTHORITY_FILE}")
    named = name_in(own, cluster)
    if not named:
        raise LocalError(f"{path} names no node of cluster {cluster!r}; is cluster.name right?")
    if named != node:
        raise LocalError(f"{path} was issued for node {named!r}, and this is {node!r}: set node.name, or issue another")
    if not own.not_valid_before_utc <= now <= own.not_valid_after_utc:
        raise LocalError(
            f"{path} is valid from {own.not_valid_before_utc:%Y-%m-%d %H:%M} to {own.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, and it is {now:%Y-%m-%d %H:%M}"
        )
    revoked = read_revoked(directory / REVOKED_FILE, authorities)
    if own.serial_number in revoked.serials:
        raise LocalError(f"{path} has been revoked; `caterwaul ca issue {node}` makes another")
    multicast = directory / MULTICAST_FILE
    return Credentials(chain, key, authorities, revoked, read_secrets(multicast) if multicast.exists() else [])


def read_revoked(path: Path, authorities: Sequence[x509.Certificate]) -> Revoked:
    """The list in a file; the empty one if there is no file. Raises `LocalError`."""
    return read_as(path, "list of revoked certificates", lambda der: Revoked.read(der, authorities)) if path.exists() else Revoked()


def has_issued(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Whether its signature says so."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _has_signed(authority: x509.Certificate, crl: x509.CertificateRevocationList) -> bool:
    key = authority.public_key()
    try:
        return crl.issuer == authority.subject and crl.is_signature_valid(key)  # type: ignore[arg-type]
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return False
