"""Which members exist for me.

A domain splits a large group: for the replicas of one domain the members of all others do not exist. Everybody still
meets everybody, so the console and the balancer see the whole group; this is the one place that draws the line.
"""

from __future__ import annotations

from collections.abc import Iterable

from .member import Member

__all__ = ["own_domain"]


def own_domain(me: Member, members: Iterable[Member]) -> tuple[Member, ...]:
    """Those of `members` that exist for `me`, in the same order."""
    return tuple(member for member in members if member.domain == me.domain)
