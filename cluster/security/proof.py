"""Both ends of a TLS connection prove that they hold a secret of the cluster, and to each other only.

    dialler  -> magic 4 | uid 16 | n 1 | n key ids of 4, the preferred first
    acceptor -> magic 4 | uid 16 | chosen key id 4 | proof 32
    dialler  -> proof 32

A proof is an HMAC over the connection's TLS exporter (RFC 9266 in spirit: a man in the middle has two connections, and their
exporters differ), over who speaks in which role, and over all that was said before. So a proof is worth nothing on another
connection, in the other role, or said by somebody else; a node that is handed its own proof back ("Selfie", RFC 9257) refuses it.
The certificates around are made for the process and prove nothing. Fixed sizes only: nothing is decoded before the proof.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from ...membership.member import UID_BYTES
from ...membership.secret import KEY_ID_BYTES, Secret
from ..errors import HandshakeRefused
from .admission import Identity

__all__ = ["EXPORTER_BYTES", "EXPORTER_LABEL", "Proof"]

EXPORTER_LABEL = b"EXPORTER-caterwaul-secret-v1"
EXPORTER_BYTES = 32
_MAGIC = b"CWP1"
_PROOF_BYTES = 32
_HEAD_BYTES = len(_MAGIC) + UID_BYTES
_ANSWER_BYTES = _HEAD_BYTES + KEY_ID_BYTES + _PROOF_BYTES
_DIALLER, _ACCEPTOR = b"dialler", b"acceptor"


class Proof:
    """`Admission` by a shared secret. `secrets`: by id, the preferred first; `exporter`: of this connection's TLS."""

    def __init__(self, secrets: Mapping[bytes, Secret], cluster: str, uid: bytes, exporter: bytes, *, dialled: bool) -> None:
        self.identity: Identity | None = None
        self._secrets = secrets
        self._uid = uid
        self._exporter = exporter
        self._cluster = cluster.encode()
        self._dialled = dialled
        self._held = b""
        self._offer = b""  # the dialler's first message
        self._said = b""  # what the acceptor said after it, without the proof
        self._key_id = b""

    def begin(self) -> bytes:
        if not self._dialled:
            return b""
        ids = list(self._secrets)
        self._offer = _MAGIC + self._uid + bytes([len(ids)]) + b"".join(ids)
        return self._offer

    def receive(self, data: bytes) -> tuple[bytes, bytes]:
        self._held += data
        if self._dialled:
            return self._read_answer()
        said = self._read_offer() if not self._offer else b""
        return said, self._read_proof() if self._offer else b""

    # -- the acceptor

    def _read_offer(self) -> bytes:
        held = self._held
        _require_magic(held)
        if len(held) <= _HEAD_BYTES:
            return b""
        size = _HEAD_BYTES + 1 + held[_HEAD_BYTES] * KEY_ID_BYTES
        if len(held) < size:
            return b""
        self._offer, self._held = held[:size], held[size:]
        if self._peer == self._uid:
            raise HandshakeRefused("self", "this is the process that dialled")
        ids = self._offer[_HEAD_BYTES + 1 :]
        offered = [ids[at : at + KEY_ID_BYTES] for at in range(0, len(ids), KEY_ID_BYTES)]
        self._key_id = next((key_id for key_id in offered if key_id in self._secrets), b"")
        if not self._key_id:
            raise HandshakeRefused("secret", "the other end holds none of this node's secrets")
        self._said = _MAGIC + self._uid + self._key_id
        return self._said + self._prove(_ACCEPTOR)

    def _read_proof(self) -> bytes:
        if len(self._held) < _PROOF_BYTES:
            return b""
        proof, rest = self._held[:_PROOF_BYTES], self._held[_PROOF_BYTES:]
        self._check(proof, _DIALLER)
        return rest

    # -- the dialler

    def _read_answer(self) -> tuple[bytes, bytes]:
        held = self._held
        _require_magic(held)
        if len(held) < _ANSWER_BYTES:
            return b"", b""
        self._said, proof, rest = held[: _ANSWER_BYTES - _PROOF_BYTES], held[_ANSWER_BYTES - _PROOF_BYTES : _ANSWER_BYTES], held[_ANSWER_BYTES:]
        self._key_id = self._said[_HEAD_BYTES:]
        if self._peer == self._uid:
            raise HandshakeRefused("self", "this is the process that was dialled")
        if self._key_id not in self._secrets:
            raise HandshakeRefused("secret", "the other end chose a secret that was not offered")
        self._check(proof, _ACCEPTOR)
        return self._prove(_DIALLER), rest

    # -- both

    @property
    def _peer(self) -> bytes:
        said = self._said if self._dialled else self._offer
        return said[len(_MAGIC) : _HEAD_BYTES]

    def _prove(self, role: bytes) -> bytes:
        key = self._secrets[self._key_id].derive(b"", b"caterwaul tcp auth v1\0" + self._cluster, 32)
        return hmac.digest(key, role + b"\0" + self._exporter + hashlib.sha256(self._offer + self._said).digest(), "sha256")

    def _check(self, proof: bytes, role: bytes) -> None:
        if not hmac.compare_digest(proof, self._prove(role)):
            raise HandshakeRefused("secret", "the proof of the secret is wrong: another cluster's, or somebody is between the two nodes")
        self.identity = Identity(uid=self._peer, credential=self._key_id.hex())


def _require_magic(held: bytes) -> None:
    if held[: len(_MAGIC)] != _MAGIC[: len(held)]:
        raise HandshakeRefused("malformed", "not the proof of a secret")
