"""Sealed heartbeats: who does not hold the cluster's secret can neither read, forge nor repeat them.

``magic 2 | version 1 | key id 4 | sender uid 16 | counter 8 | ciphertext | tag 16``, AES-256-GCM. Each sender has its own
key (HKDF of the secret, salted with the sender's uid, bound to the cluster's name) and counts its datagrams, so a nonce
never repeats under a key; the counter starts at a random point, so that not even two processes that took the same uid from
one snapshot share nonces. The header is authenticated with the rest. Repeats are told by a 64-wide window per sender and
key: no clock takes part, so a clock that is a day off loses nothing. What is older than the newest heard of a sender is no repeat and no
news either, and is not opened: a heartbeat says nothing that a later one does not, and what a network lost could else be said for a dead
process by whoever has recorded it. Nothing is tried: the key id selects the secret.
Secrets change while the node runs (`replace`); whose secret is gone is a stranger from the next datagram on.

A seal keeps strangers out and no more: what it protects is a hint (see `group`), and nothing is ever answered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .errors import LocalError
from .member import UID_BYTES
from .secret import KEY_ID_BYTES, Secret

__all__ = ["DatagramSealer", "PlainDatagrams", "SealedDatagrams"]

_MAGIC, _VERSION = b"CS", b"\x01"
_COUNTER_BYTES, _TAG_BYTES = 8, 16
_HEADER_BYTES = 3 + KEY_ID_BYTES + UID_BYTES + _COUNTER_BYTES
_SENDERS_MAX = 1024  # four times the default of members; who is forgotten could be repeated, which costs one refused dial
_WINDOW = 64


class DatagramSealer(Protocol):
    """Between heartbeats and the wire."""

    def seal(self, data: bytes) -> bytes: ...

    def open(self, data: bytes) -> bytes | None:
        """What was sealed; None if it is not for us, forged, a repeat, or older than what was heard before. Never raises."""


class PlainDatagrams:
    """No secret, no seal: for loopback, and for a segment where everybody is trusted."""

    def seal(self, data: bytes) -> bytes:
        return data

    def open(self, data: bytes) -> bytes | None:
        return data


class _Sender:
    """One sender's key, and which of its last 64 counters have been seen (bit 0 is `top`)."""

    __slots__ = ("aead", "seen", "top")

    def __init__(self, aead: AESGCM) -> None:
        self.aead = aead
        self.top = -1
        self.seen = 0

    def is_repeat(self, counter: int) -> bool:
        behind = self.top - counter
        return behind >= _WINDOW or (behind >= 0 and bool(self.seen >> behind & 1))

    def accept(self, counter: int) -> None:
        ahead = counter - self.top
        if ahead > 0:
            self.seen = (self.seen << min(ahead, _WINDOW) | 1) & ((1 << _WINDOW) - 1)
            self.top = counter
        else:
            self.seen |= 1 << -ahead


class SealedDatagrams:
    """The first of `secrets` seals, all of them open (rotation: add everywhere, put first, remove).

    `uid`: this process; `entropy(n)`: n random bytes. Reactor thread only. Raises `LocalError` for no secret.
    """

    def __init__(self, secrets: Sequence[Secret], cluster: str, uid: bytes, entropy: Callable[[int], bytes]) -> None:
        self._info = b"caterwaul mcast v1\0" + cluster.encode()
        self._uid = uid
        self._counter = int.from_bytes(entropy(5)) << 24
        self._senders: OrderedDict[bytes, _Sender] = OrderedDict()  # key id + uid; the one heard longest ago first
        self._counts = dict.fromkeys(("opened", "foreign", "forged", "repeated", "late"), 0)
        self.replace(secrets)

    def replace(self, secrets: Sequence[Secret]) -> None:
        """Go on with these. The counter goes on too, so a secret that comes back meets no nonce again. Raises `LocalError` for none."""
        if not secrets:
            raise LocalError("sealing datagrams takes a secret")
        self._secrets = {secret.id: secret for secret in reversed(secrets)}
        self._prefix = _MAGIC + _VERSION + secrets[0].id + self._uid
        self._own = self._sender(secrets[0].id, self._uid).aead
        for who in [who for who in self._senders if who[:KEY_ID_BYTES] not in self._secrets]:
            del self._senders[who]

    def seal(self, data: bytes) -> bytes:
        self._counter += 1
        header = self._prefix + self._counter.to_bytes(_COUNTER_BYTES)
        return header + self._own.encrypt(_nonce(header), data, header)

    def open(self, data: bytes) -> bytes | None:
        if len(data) < _HEADER_BYTES + _TAG_BYTES or data[:3] != _MAGIC + _VERSION or data[3:7] not in self._secrets:
            self._counts["foreign"] += 1
            return None
        header = data[:_HEADER_BYTES]
        who, counter = header[3:-_COUNTER_BYTES], int.from_bytes(header[-_COUNTER_BYTES:])
        sender = self._senders.get(who) or self._sender(who[:KEY_ID_BYTES], who[KEY_ID_BYTES:])
        if sender.is_repeat(counter):
            self._counts["repeated"] += 1
            return None
        try:
            opened = sender.aead.decrypt(_nonce(header), data[_HEADER_BYTES:], header)
        except InvalidTag:
            self._counts["forged"] += 1
            return None
        is_news = counter > sender.top
        sender.accept(counter)  # only now: a forgery moves no window and takes no place in the table
        self._senders[who] = sender
        self._senders.move_to_end(who)
        if len(self._senders) > _SENDERS_MAX:
            self._senders.popitem(last=False)
        self._counts["opened" if is_news else "late"] += 1
        return opened if is_news else None

    def statistics(self) -> dict[str, int]:
        return {**self._counts, "senders": len(self._senders)}

    def _sender(self, key_id: bytes, uid: bytes) -> _Sender:
        return _Sender(AESGCM(self._secrets[key_id].derive(uid, self._info, 32)))


def _nonce(header: bytes) -> bytes:
    return b"\0\0\0\0" + header[-_COUNTER_BYTES:]
