"""Ways to find the other members: by multicast, from a list, by DNS, from a file; several at once."""

from .base import Carrier, Discovery, Found, parse_address
from .dns import DnsDiscovery
from .file import FileDiscovery
from .multicast import MulticastDiscovery
from .static import StaticDiscovery

__all__ = ["Carrier", "Discovery", "DnsDiscovery", "FileDiscovery", "Found", "MulticastDiscovery", "StaticDiscovery", "parse_address"]
