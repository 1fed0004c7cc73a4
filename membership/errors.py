"""Every error of Caterwaul, by who is to blame.

One root, `ClusterError`; below it *local* errors (our caller erred, or this machine refuses) and *remote* errors (a peer
sent what it must not). A remote error closes the link it came from, is counted and logged once. Anything else that
escapes a parser is a bug of ours, and the fuzz tests say so.
"""

from __future__ import annotations

__all__ = ["ClusterError", "LocalError", "RemoteError", "printable"]


class ClusterError(Exception):
    """Root of everything Caterwaul raises on purpose."""


class LocalError(ClusterError):
    """The caller, the configuration or this machine is the cause; the text says what to do."""


class RemoteError(ClusterError):
    """A peer's bytes broke the protocol; the text is safe to log: no payload, no secret, and nothing in it begins a line of its own."""

    def __init__(self, text: str = "") -> None:
        super().__init__(printable(text))


def printable(text: str) -> str:
    """The same on one line, whatever a peer has put into it."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
