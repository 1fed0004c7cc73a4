"""Errors of the channel: who refused whom, and which members a request failed with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..membership.errors import ClusterError, RemoteError

__all__ = ["ChannelError", "HandshakeRefused"]


class ChannelError(ClusterError):
    """A request did not get the replies it asked for.

    `failed`: member uid -> why (timed out, not connected, or what its handler said). `replies`: those that did come.
    """

    def __init__(self, text: str, failed: Mapping[bytes, str], replies: Mapping[bytes, Any]) -> None:
        super().__init__(text)
        self.failed = dict(failed)
        self.replies = dict(replies)


class HandshakeRefused(RemoteError):
    """One end will not talk to the other. `code` is one of a few fixed words (what is counted), the text is for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
