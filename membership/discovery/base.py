"""What a discovery is, and what all of them share: addresses as people write them, and asking again and again."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv6Address
from typing import Protocol, runtime_checkable

from twisted.internet.interfaces import IReactorTime

from ..driver import Driver
from ..effects import Effect
from ..errors import LocalError

__all__ = ["Carrier", "Discovery", "Found", "Poller", "Polling", "parse_address"]

#: Called with host and port of somebody who may be a member. May be called again and again for the same.
Found = Callable[[str, int], None]


class Discovery(Protocol):
    """One way to learn addresses. In the reactor's thread. After `start` no fault of the outside may raise: it is counted, and tried again."""

    errors: int  #: failures so far (look-ups, reads, sends)

    def start(self, found: Found) -> None:
        """Begin to call `found`. Raises `LocalError` if this machine cannot do it at all."""

    def stop(self) -> None:
        """End for good or until the next `start`; `found` is called no more. Stopping twice is harmless."""


@runtime_checkable
class Carrier(Discovery, Protocol):
    """A discovery that also carries heartbeat datagrams."""

    def send(self, datagram: bytes) -> None:
        """Never raises."""


class Poller:
    """Core: a beat every `interval_s`, the first at once."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._next_at = 0.0

    def tick(self, now: float) -> tuple[Effect, ...]:
        if self._next_at > now:
            return ()
        self._next_at = now + self._interval_s
        return (now,)

    def deadline(self) -> float:
        return self._next_at


class Polling:
    """Base of the discoveries that ask again and again: `poll(now)` does the asking."""

    def __init__(self, interval_s: float, clock: IReactorTime) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._driver: Driver | None = None
        self._found: Found | None = None
        self.errors = 0

    def start(self, found: Found) -> None:
        if self._driver is None:
            self._found = found
            self._driver = Driver(Poller(self._interval_s), self._clock, self.poll)
            self._driver.start()

    def stop(self) -> None:
        if self._driver is not None:
            self._driver.stop()
        self._driver = self._found = None

    def poll(self, now: float) -> None:
        """Ask once. `now`: the clock's seconds."""
        raise NotImplementedError

    def tell(self, host: str, port: int) -> None:
        """Found somebody; nothing happens after `stop` (an answer that came late)."""
        if self._found is not None:
            self._found(host, port)


def parse_address(text: str, default_port: int | None = None) -> tuple[str, int]:
    """``host``, ``host:port``, ``1.2.3.4:port``, ``[::1]:port``, ``[::1]`` or ``::1`` as host and port.

    Raises `LocalError` saying what is wrong; without `default_port` a port must be given.
    """
    text = text.strip()
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not _is_ipv6(host) or (rest and not rest.startswith(":")):
            raise LocalError(f"address {text!r}: write an IPv6 address as [::1]:7000")
        port = rest[1:] if rest else None
    elif text.count(":") > 1:
        host, port = text, None
        if not _is_ipv6(host):
            raise LocalError(f"address {text!r}: neither host:port nor an IPv6 address (write [::1]:7000)")
    else:
        host, colon, number = text.partition(":")
        port = number if colon else None
    if not host or not host.isprintable() or any(c.isspace() or c in "/@[]" for c in host):
        raise LocalError(f"address {text!r}: no host name (write host:port)")
    if port is None:
        if default_port is None:
            raise LocalError(f"address {text!r}: no port (write {text}:7000)")
        return host, default_port
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 65536):
        raise LocalError(f"address {text!r}: the port must be a number from 1 to 65535")
    return host, int(port)


def _is_ipv6(host: str) -> bool:
    try:
        IPv6Address(host)
    except ValueError:
        return False
    return True
