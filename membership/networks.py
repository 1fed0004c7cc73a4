"""Networks that members may be in: whoever tells us of an address makes us dial it, so it should not be just any."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from .errors import LocalError

__all__ = ["in_networks", "parse_networks"]


def parse_networks(texts: Iterable[str]) -> tuple[IPv4Network | IPv6Network, ...]:
    """Raises `LocalError` naming the one that is none."""
    found = []
    for text in texts:
        try:
            found.append(ip_network(text))
        except ValueError as error:
            raise LocalError(f"{text!r} is not a network such as 10.0.0.0/8: {error}") from None
    return tuple(found)


def in_networks(host: str, texts: Sequence[str]) -> bool:
    """Whether this IP address is in one of the networks; a name never is."""
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return any(address in network for network in _parsed(tuple(texts)))


@lru_cache(maxsize=64)
def _parsed(texts: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    try:
        return parse_networks(texts)
    except LocalError:  # the settings' own check says so
        return ()
