"""What one client address may cost: sessions that it begins, and ids that nobody knows.

Whoever drops every cookie makes a new session with every request, and whoever makes ids up has others asked for each. Both are
counted by the client's address, and slowed beyond a rate: a request over it gets no new session (429), or is not looked for
elsewhere (it is *unknown*, so nothing of its browser's is lost). Other addresses notice nothing.

The address is the connection's, or the one that a trusted proxy names in `X-Forwarded-For` (the last that is no trusted proxy
itself: what stands before that anybody can have written). A trusted proxy that names nobody is not limited: it would be everybody.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from ..membership.networks import in_networks
from ..membership.rate import Rate
from .settings import ManagerSettings

__all__ = ["Origin", "Throttle", "address_of"]

_BURST_S = 10.0  # so many seconds' worth at once: a page that loads, an office that begins its day

#: The address of a request's connection, and its `X-Forwarded-For`.
Origin = tuple[str, str]


def address_of(origin: Origin, trusted: list[str]) -> str:
    """Who asks; empty: nobody can say."""
    peer, forwarded = origin
    if peer and not in_networks(peer, trusted):
        return peer
    for text in reversed(forwarded.split(",")):
        address = text.strip().strip("[]")
        if not in_networks(address, trusted):
            return address
    return ""


class Throttle:
    """Of one session manager; any thread. `seconds`: a monotonic clock."""

    def __init__(self, settings: ManagerSettings, seconds: Callable[[], float]) -> None:
        self._trusted = settings.trusted_proxies
        self._seconds = seconds
        self._lock = Lock()
        self._creations = _rate(settings.creations_per_s)
        self._misses = _rate(settings.misses_per_s)
        self.creations_refused = self.lookups_refused = 0

    def may_begin(self, origin: Origin) -> bool:
        """Whether this request may make a session; counts it."""
        address = address_of(origin, self._trusted) if self._creations is not None else ""
        if self._creations is None or not address:
            return True
        with self._lock:
            may = self._creations.take(self._seconds(), address)
            self.creations_refused += not may
        return may

    def may_ask(self, origin: Origin) -> bool:
        """Whether others are asked for an id that is not known here."""
        address = address_of(origin, self._trusted) if self._misses is not None else ""
        if self._misses is None or not address:
            return True
        with self._lock:
            may = self._misses.has(self._seconds(), address)
            self.lookups_refused += not may
        return may

    def missed(self, origin: Origin) -> None:
        """Its id was nobody's."""
        address = address_of(origin, self._trusted) if self._misses is not None else ""
        if self._misses is not None and address:
            with self._lock:
                self._misses.take(self._seconds(), address)


def _rate(per_s: float) -> Rate | None:
    return Rate(per_s, per_s * _BURST_S) if per_s else None
