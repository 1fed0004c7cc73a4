"""Who may ask the admin service over TCP, and for what.

The Unix socket is its user's by file permissions. Over TCP each request shows a token (``Authorization: Bearer``), or the connection
a certificate of somebody who may administer; nothing else passes, not even a question for a path that does not exist. What changes something
is refused unless the settings allow it. Somebody who guesses is slowed by address: ten wrong tokens at once, and then one in six seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from ..membership.errors import LocalError
from ..membership.rate import Rate
from ..membership.secret import Secret

__all__ = ["Gate", "GuardedSite"]

_WRONG_MAX, _WRONG_PER_S = 10, 1 / 6
_LOOKS = (b"GET", b"HEAD")
_REFUSALS = {
    401: "a token is needed: Authorization: Bearer TOKEN",
    403: "this listener only answers questions (admin.listen_read_only)",
    429: "too many wrong tokens from this address; wait a minute",
}


class Gate:
    """Core. `tokens`: none where certificates are asked for instead."""

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
        if not is_known:
            if not self._wrong.take(now, address):
                return 429
            if not self._is_token(authorization):
                return 401
            self._wrong.give_back(now, address)
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


class GuardedSite(Site):
    """A site behind a gate. `is_known(request)`: whether its connection has shown a certificate that may administer."""

    def __init__(self, resource: Resource, gate: Gate, clock: Any, is_known: Any) -> None:
        super().__init__(resource)  # type: ignore[no-untyped-call]
        self._gate = gate
        self._clock = clock
        self._is_known = is_known

    def getResourceFor(self, request: Request) -> Any:
        authorization = request.getHeader("authorization") or ""
        address: Any = request.getClientAddress()
        status = self._gate.refusal(self._clock.seconds(), str(getattr(address, "host", "")), authorization, request.method, is_known=self._is_known(request))
        return _Refused(status) if status else super().getResourceFor(request)  # type: ignore[no-untyped-call]


class _Refused(Resource):
    isLeaf = True

    def __init__(self, status: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._status = status

    def render(self, request: Request) -> bytes:
        request.setResponseCode(self._status)
        request.setHeader(b"content-type", b"application/json")
        request.setHeader(b"cache-control", b"no-store")
        if self._status == 401:
            request.setHeader(b"www-authenticate", b"Bearer")
        return f'{{"error": "{_REFUSALS[self._status]}"}}'.encode()
