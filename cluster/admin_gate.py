"""Who may ask the admin service over TCP, and for what.

The Unix socket is its user's by file permissions. Over TCP each request shows a token (``Authorization: Bearer``), or the connection
a certificate of somebody who may administer; nothing else passes, not even a question for a path that does not exist. What changes something
is refused unless the settings allow it. Somebody who guesses is slowed by address: ten wrong tokens at once, and then one in six seconds.
No request has a body, so none is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from ..membership.errors import LocalError
from ..membership.rate import Rate
from ..membership.secret import Secret

__all__ = ["AdminRequest", "Gate", "GuardedSite", "Limited"]

_WRONG_MAX, _WRONG_PER_S = 10, 1 / 6
_CONNECTIONS_MAX = 32  # at once: an operator has a few, and a flood must not take the descriptors that links need
_IDLE_S = 10.0
_LOOKS = (b"GET", b"HEAD")
_REFUSALS = {
    401: "a token is needed: Authorization: Bearer TOKEN",
    403: "this listener only answers questions (admin.listen_read_only)",
    404: "there is no such path",
    413: "a request has no body here",
    429: "too many wrong tokens from this address; wait a minute",
}


class Gate:
    """Core. `tokens`: none where certificates are asked for instead. `refused`: requests that did not pass."""

    def __init__(self, tokens: Sequence[Secret], *, read_only: bool) -> None:
        self._tokens = tokens
        self._read_only = read_only
        self._wrong = Rate(_WRONG_PER_S, _WRONG_MAX)
        self.refused = 0

    def refusal(self, now: float, address: str, authorization: str, method: bytes, *, is_known: bool = False) -> int:
        """The status of a request that does not pass, 0 for one that does. `is_known`: the connection's certificate is good."""
        status = self._status(now, address, authorization, method, is_known)
        self.refused += status != 0
        return status

    def _status(self, now: float, address: str, authorization: str, method: bytes, is_known: bool) -> int:
        if not is_known and not self._is_token(authorization):  # the right one costs nothing, so nobody is shut out by somebody who guesses
            return 401 if self._wrong.take(now, address) else 429
        return 403 if self._read_only and method not in _LOOKS else 0

    def _is_token(self, authorization: str) -> bool:
        scheme, _, shown = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return False
        try:
            secret = Secret(shown.strip().encode())
        except LocalError:
            return False
        return sum(secret == token for token in self._tokens) > 0  # all of them are compared, so that time says nothing


class AdminRequest(Request):
    """A request without a body: whatever has one is closed before it is read, and before anybody asks who it is from."""

    def gotLength(self, length: int | None) -> None:
        if length == 0:
            super().gotLength(length)  # type: ignore[no-untyped-call]
            return
        channel: Any = self.channel
        self.content = _Nowhere()
        channel.transport.write(b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        channel.loseConnection()

    def process(self) -> None:
        channel: Any = self.channel
        site = self.site = channel.site
        status = site.refusal(self) or (404 if self.uri == b"*" else 0)
        if status:
            _refuse(self, status)
        else:
            super().process()  # type: ignore[no-untyped-call]


class _Nowhere(BytesIO):
    """Takes what still comes in until the connection is gone."""

    def write(self, data: Any) -> int:
        return len(data)


class GuardedSite(Site):
    """A site behind a gate. `is_known(request)`: whether its connection has shown a certificate that may administer."""

    requestFactory = AdminRequest

    def __init__(self, resource: Resource, gate: Gate, clock: Any, is_known: Callable[[Request], bool]) -> None:
        super().__init__(resource, timeout=_IDLE_S)  # type: ignore[no-untyped-call]
        self._gate = gate
        self._clock = clock
        self._is_known = is_known

    def refusal(self, request: Request) -> int:
        """The status of a request that does not pass, 0 for one that does."""
        authorization = (request.getHeader(b"authorization") or b"").decode("ascii", "replace")
        address: Any = request.getClientAddress()
        return self._gate.refusal(self._clock.seconds(), str(getattr(address, "host", "")), authorization, request.method, is_known=self._is_known(request))


class Limited(WrappingFactory):
    """So many connections at once, the others are closed at once."""

    protocol = ProtocolWrapper

    def buildProtocol(self, addr: Any) -> ProtocolWrapper | None:  # type: ignore[override]
        if len(self.protocols) >= _CONNECTIONS_MAX:
            return None
        inner = self.wrappedFactory.buildProtocol(addr)
        return None if inner is None else self.protocol(self, inner)


def _refuse(request: Request, status: int) -> None:
    request.setResponseCode(status)
    request.setHeader(b"content-type", b"application/json")
    request.setHeader(b"cache-control", b"no-store")
    if status == 401:
        request.setHeader(b"www-authenticate", b"Bearer")
    request.write(f'{{"error": "{_REFUSALS[status]}"}}'.encode())
    request.finish()
