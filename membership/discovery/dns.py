"""Discovery by DNS, polled: SRV records carry ports of their own, A and AAAA records go with the port of this node.

Made for headless services, whose records are the pods that are ready. A look-up that fails is counted and tried again at
the next poll: members do not leave because a resolver does.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.names import client, dns, hosts, resolve
from twisted.names.error import DNSNameError
from twisted.python.failure import Failure

from ..errors import LocalError
from .base import Polling

__all__ = ["DnsDiscovery"]

_log = Logger()
_TARGETS_MAX = 256
_TIMEOUT_S = (1, 3, 6)  # each try of one look-up


class DnsDiscovery(Polling):
    """`names`: those that begin with ``_`` are looked up as SRV. `resolver`: an `IResolver`; None: the machine's hosts file and name servers."""

    def __init__(self, names: Sequence[str], port: int, poll_s: float, reactor: IReactorTime, resolver: Any = None) -> None:
        if not names:
            raise LocalError("discovery by DNS needs names to look up (membership.dns_names)")
        super().__init__(poll_s, reactor)
        self._names = list(names)
        self._port = port
        self._resolver = resolver
        self._pending: set[str] = set()  # a slow look-up is not asked for again

    def poll(self, now: float) -> None:
        if self._resolver is None:
            self._resolver = _system_resolver(self._clock)
        for name in self._names:
            if name not in self._pending:
                self._pending.add(name)
                looked_up = self._services(name) if name.startswith("_") else self._hosts(name, self._port)
                looked_up.addErrback(self._failed, name).addBoth(self._over, name)

    def _services(self, name: str) -> Deferred[Any]:
        def targets(answer: tuple[list[Any], list[Any], list[Any]]) -> Deferred[Any]:
            services = [header.payload for header in answer[0] if header.type == dns.SRV][:_TARGETS_MAX]
            return gatherResults([self._hosts(str(service.target), service.port) for service in services], consumeErrors=True)

        found: Deferred[Any] = self._resolver.lookupService(name, timeout=_TIMEOUT_S)
        return found.addCallback(targets)

    def _hosts(self, name: str, port: int) -> Deferred[Any]:
        """A and AAAA; one of them may be missing, that is no failure."""

        def tell(answer: tuple[list[Any], list[Any], list[Any]]) -> int:
            addresses = [header.payload.dottedQuad() for header in answer[0] if header.type == dns.A]
            addresses += [_ipv6(header.payload) for header in answer[0] if header.type == dns.AAAA]
            for address in addresses[:_TARGETS_MAX]:
                self.tell(address, port)
            return len(addresses)

        def none(failure: Failure) -> int:
            failure.trap(DNSNameError)
            return 0

        def require(counts: list[int]) -> None:
            if not any(counts):
                raise LookupError(f"{name} has no address")

        kinds = (self._resolver.lookupAddress, self._resolver.lookupIPV6Address)
        lookups = [look_up(name, timeout=_TIMEOUT_S).addCallback(tell).addErrback(none) for look_up in kinds]
        return gatherResults(lookups, consumeErrors=True).addCallback(require)

    def _over(self, _: object, name: str) -> None:
        self._pending.discard(name)

    def _failed(self, failure: Failure, name: str) -> None:
        self.errors += 1
        _log.warn("DNS look-up of {name} failed: {error}; it is tried again", name=name, error=failure.getErrorMessage())


def _ipv6(record: Any) -> str:
    return socket.inet_ntop(socket.AF_INET6, record.address)


def _system_resolver(reactor: Any) -> Any:
    servers = client.Resolver(resolv=b"/etc/resolv.conf", reactor=reactor)
    return resolve.ResolverChain([hosts.Resolver(), servers])
