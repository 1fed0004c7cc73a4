"""What cores ask of their shells.

A core returns an ordered list of effects; the order is the obligation (what is to be saved before it is sent comes
first). Effects are values: tests compare them, the simulator replays them. Cores of a package add their own kinds beside
their code; here are the ones that more than one core uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .channel import Message

__all__ = ["Close", "Effect", "Notify", "Send"]


@dataclass(frozen=True, slots=True)
class Send:
    """Give `message` to the channel for these members (uids)."""

    to: Sequence[bytes]
    message: Message


@dataclass(frozen=True, slots=True)
class Notify:
    """Something happened (an event in the past tense); the shell tells whoever listens."""

    event: object


@dataclass(frozen=True, slots=True)
class Close:
    """End the link to this member; `reason` is logged here and told to the peer."""

    uid: bytes
    reason: str


#: Any effect: each shell knows the kinds its core returns, and fails loudly on others.
Effect = object
