"""What a connection passes before its first frame, and what is known of the other end from then on.

`Admission` is a core of one connection: bytes in, bytes out, until there is an identity. Nothing of what comes after is looked at
before that. The identity is the connection's: what the other end says of itself later is checked against it, never the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from ...membership.member import Member
from ..errors import HandshakeRefused

__all__ = ["ANYBODY", "Admission", "Identity", "Open"]


@dataclass(frozen=True, slots=True)
class Identity:
    """What the other end has proven; empty: nothing. `credential`: with what (a secret's id, a certificate's serial number as text); `shown`: the certificate."""

    uid: bytes = b""
    name: str = ""
    credential: str = ""
    shown: Any = None

    def require(self, member: Member) -> None:
        """Raises `HandshakeRefused` if a member of this identity cannot be that one. Workers show the certificate of their host's node."""
        if self.uid and member.uid != self.uid:
            raise HandshakeRefused("identity", "the member in HELLO is not the one that proved the secret")
        if self.name and member.route != self.name:
            raise HandshakeRefused("identity", f"a certificate for {self.name!r} was shown by a member that calls itself {member.name!r}")


ANYBODY = Identity()


class Admission(Protocol):
    """`identity`: None until the other end is admitted."""

    identity: Identity | None

    def begin(self) -> bytes:
        """What this end says first."""

    def receive(self, data: bytes) -> tuple[bytes, bytes]:
        """(what this end says, what came beyond the admission). Raises `HandshakeRefused`."""


class Open:
    """Everybody is admitted: the transport has shown who is there, or nobody asks."""

    def __init__(self, identity: Identity = ANYBODY) -> None:
        self.identity: Identity | None = identity

    def begin(self) -> bytes:
        return b""

    def receive(self, data: bytes) -> tuple[bytes, bytes]:
        return b"", data
