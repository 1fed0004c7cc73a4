"""Discovery from a fixed list: every seed is named again and again, so one that starts later is met too.

Who is a member already is known to the group, which dials it no more.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime

from .base import Polling, parse_address

__all__ = ["StaticDiscovery"]


class StaticDiscovery(Polling):
    """`seeds`: ``host:port`` texts. Raises `LocalError` for one that is none."""

    def __init__(self, seeds: Sequence[str], default_port: int, retry_s: float, clock: IReactorTime) -> None:
        super().__init__(retry_s, clock)
        self._seeds = [parse_address(seed, default_port) for seed in seeds]

    def poll(self, now: float) -> None:
        for host, port in self._seeds:
            self.tell(host, port)
