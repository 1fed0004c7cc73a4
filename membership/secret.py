"""A shared secret, as a value that never shows itself.

What is printed, logged, dumped or pickled of it is its *id*: four bytes that say which secret it is and nothing about
what it is. Everything that needs it derives a key of its own (HKDF, RFC 5869), bound to a purpose, so that no two uses share one.
"""

from __future__ import annotations

from hmac import compare_digest
from typing import NoReturn

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .errors import LocalError

__all__ = ["KEY_ID_BYTES", "SECRET_BYTES_MIN", "Secret"]

SECRET_BYTES_MIN = 16
KEY_ID_BYTES = 4


class Secret:
    """At least 16 bytes. Immutable; any thread. Raises `LocalError` if it is shorter.

    `id`: the same on every node that holds the secret; safe to show.
    """

    __slots__ = ("_value", "id")

    def __init__(self, value: bytes) -> None:
        if len(value) < SECRET_BYTES_MIN:
            raise LocalError(f"a secret of {len(value)} bytes: at least {SECRET_BYTES_MIN} bytes are needed; `caterwaul secret` makes a good one")
        self._value = value
        self.id = self.derive(b"", b"caterwaul key id", KEY_ID_BYTES)

    def derive(self, salt: bytes, info: bytes, size: int) -> bytes:
        """A key of `size` bytes for one purpose, which `info` names."""
        return HKDF(SHA256(), size, salt, info).derive(self._value)

    def __repr__(self) -> str:
        return f"<secret {self.id.hex()}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret is not pickled or copied")
