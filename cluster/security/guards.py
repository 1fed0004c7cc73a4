"""The ways a cluster tells friends from strangers: one secret for all, or a certificate for each.

A guard gives TLS its context, admits connections, and says later whether it still would: what is read again while the node
runs (`replace`) counts for connections that are open already, too.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

from ...membership.secret import Secret
from ..errors import HandshakeRefused
from .admission import Admission, Identity, Open
from .certificates import NODE, Credentials, Revoked, has_issued, name_in
from .proof import EXPORTER_BYTES, EXPORTER_LABEL, Proof
from .tls import make_context

__all__ = ["CertificateGuard", "Guard", "SecretGuard"]

_BEGIN, _END = (datetime.datetime(year, 1, 1, tzinfo=datetime.UTC) for year in (2000, 2100))  # of a certificate that nobody looks at


class Guard(Protocol):
    """Reactor thread, except `context`, which only hands out. `mode`: its kind, in one word."""

    mode: str

    def context(self) -> SSL.Context:
        """For the next connection, whichever end dials."""

    def admission(self, tls: SSL.Connection, uid: bytes, *, dialled: bool) -> Admission:
        """After TLS's handshake. `uid`: this process. Raises `HandshakeRefused`."""

    def admits(self, identity: Identity) -> bool:
        """Whether what this identity has proven still counts."""

    def statistics(self, now: datetime.datetime) -> dict[str, Any]:
        """`now`: in UTC, with time zone."""


class SecretGuard:
    """One secret for the whole cluster. It cannot tell nodes apart, nor shut a single one out."""

    mode = "secret"

    def __init__(self, secrets: Sequence[Secret], cluster: str) -> None:
        self._cluster = cluster
        self._context = _ephemeral_context()
        self.replace(secrets)

    def replace(self, secrets: Sequence[Secret]) -> None:
        """From now on these; the first one is preferred."""
        self._secrets = {secret.id: secret for secret in secrets}
        self._credentials = {key_id.hex() for key_id in self._secrets}

    def statistics(self, now: datetime.datetime) -> dict[str, Any]:
        """`secrets`: their ids, the preferred one first."""
        return {"secrets": [key_id.hex() for key_id in self._secrets]}

    def context(self) -> SSL.Context:
        return self._context

    def admission(self, tls: SSL.Connection, uid: bytes, *, dialled: bool) -> Admission:
        exporter = tls.export_keying_material(EXPORTER_LABEL, EXPORTER_BYTES)
        return Proof(self._secrets, self._cluster, uid, exporter, dialled=dialled)

    def admits(self, identity: Identity) -> bool:
        return identity.credential in self._credentials


class CertificateGuard:
    """A certificate for each node, of the cluster's own authority. The dialler and the acceptor look at each other's."""

    mode = "certificates"

    def __init__(self, credentials: Credentials, cluster: str) -> None:
        self._cluster = cluster
        self.revoked = Revoked()
        self._own = credentials.chain[0]
        self.replace(credentials)

    def replace(self, credentials: Credentials) -> bool:
        """From now on these; a list of revoked ones that is older than the one known already counts for nothing. Whether the node's own certificate is another."""
        context = make_context(credentials.chain, credentials.key, credentials.authorities)
        is_another = self._own != credentials.chain[0]
        self._context, self.authorities, self._own = context, credentials.authorities, credentials.chain[0]
        self.revoke(credentials.revoked)
        return is_another

    def revoke(self, revoked: Revoked) -> bool:
        """Whether that list is newer than the one in use, and is in use now."""
        newer = revoked.number > self.revoked.number
        if newer:
            self.revoked = revoked
        return newer

    def valid_for_s(self, now: datetime.datetime) -> int:
        """How long this node's own certificate is still good; below 0: it is not."""
        return int((self._own.not_valid_after_utc - now).total_seconds())

    def statistics(self, now: datetime.datetime) -> dict[str, Any]:
        return {
            "certificate": f"{self._own.serial_number:x}", "valid_for_s": self.valid_for_s(now),
            "authorities": len(self.authorities), "revoked": len(self.revoked.serials), "revoked_number": self.revoked.number,
        }  # fmt: skip

    def context(self) -> SSL.Context:
        return self._context

    def identify(self, tls: SSL.Connection, scheme: str = NODE) -> Identity:
        """Whose certificate the other end has shown, and TLS has checked. Raises `HandshakeRefused` if it is nobody's of this cluster, or for something else."""
        shown = tls.get_peer_certificate(as_cryptography=True)
        name = name_in(shown, self._cluster, scheme) if shown is not None else ""
        if shown is None or not name:
            raise HandshakeRefused("certificate", f"the certificate is not one for {scheme}://{self._cluster}")
        return Identity(name=name, credential=f"{shown.serial_number:x}", shown=shown)

    def admission(self, tls: SSL.Connection, uid: bytes, *, dialled: bool) -> Admission:
        identity = self.identify(tls)
        if not self.admits(identity):
            raise HandshakeRefused("revoked", f"the certificate {identity.credential} of {identity.name!r} has been revoked")
        return Open(identity)

    def admits(self, identity: Identity) -> bool:
        """Whether it is not revoked, and issued by an authority that is trusted still. When it ends is TLS's question, at the next handshake."""
        shown = identity.shown
        return shown is not None and shown.serial_number not in self.revoked.serials and any(has_issued(authority, shown) for authority in self.authorities)


def _ephemeral_context() -> SSL.Context:
    """A certificate of this process's own: TLS wants one, and who is there is proven by the secret."""
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "caterwaul")])
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(_BEGIN).not_valid_after(_END).sign(key, SHA256())
    )  # fmt: skip
    return make_context([certificate], key)
