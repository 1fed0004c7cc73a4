"""Stages: what happens to a message between its sender and its link, one idea each, two pure functions each."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Stage"]


class Stage(Protocol):
    """Both functions are pure and know no neighbours: ``inbound(outbound(payload)) == payload``."""

    def outbound(self, payload: bytes) -> bytes: ...

    def inbound(self, payload: bytes) -> bytes:
        """Raises `RemoteError` for anything that `outbound` cannot have made; bounds its output before it makes it."""
