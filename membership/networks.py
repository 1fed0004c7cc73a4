"""Networks that members may be in: whoever tells us of an address makes us dial it, so it should not be just any."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from .errors import LocalError

__all__ = ["PRIVATE_NETWORKS", "in_networks", "parse_networks"]

#: Loopback, and what is routed inside of organizations only: RFC 1918, 3927, 4193, 4291, 6598.
PRIVATE_NETWORKS = ["127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "fc00::/7", "fe80::/10"]


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
