"""The admin service of a node: JSON over HTTP on a Unix socket, for this user on this machine.

Reading only. Sessions show the first half of the hash of their id and never the id, nor values: whoever may read this must
still not be able to take over a session. `/health/live` answers while the reactor turns; `/health/ready` is 200 once every
manager holds what it should, which is what balancers wait for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from twisted.internet.defer import maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from ..membership.errors import LocalError
from .admin_socket import prepare_path
from .settings import Settings

__all__ = ["SESSIONS_PAGE_MAX", "AdminService", "Administered", "admin_resource"]

SESSIONS_PAGE_MAX = 1000  #: sessions in one answer: a few hundred KB
_SESSIONS_PAGE = 100


class Administered(Protocol):
    """What the admin service shows of a node. Reactor thread."""

    @property
    def settings(self) -> Settings: ...

    @property
    def is_ready(self) -> bool: ...

    def members_report(self) -> list[dict[str, Any]]: ...

    def sessions_report(self, manager: str, limit: int, after: str) -> dict[str, Any]:
        """Raises `LocalError` for a manager that does not exist or a malformed `after`."""

    def statistics(self) -> dict[str, Any]: ...


class AdminService:
    """Listens from `start` to `stop`. Reactor thread."""

    def __init__(self, node: Administered, path: Path, reactor: Any) -> None:
        self.path = path
        self._node = node
        self._reactor = reactor
        self._port: IListeningPort | None = None

    def start(self) -> None:
        """Raises `LocalError` when somebody else answers at the path, or it cannot be listened on."""
        prepare_path(self.path)
        site = Site(admin_resource(self._node))
        site.displayTracebacks = False
        site.log = _no_log  # type: ignore[method-assign,assignment]  # an access log would show every look of a person
        try:
            self._port = self._reactor.listenUNIX(os.fspath(self.path), site, mode=0o600)
        except CannotListenError as error:
            raise LocalError(f"admin socket: cannot listen on {self.path}: {error.socketError}") from None

    async def stop(self) -> None:
        port, self._port = self._port, None
        if port is not None:
            await maybeDeferred(port.stopListening)
            with suppress(OSError):
                self.path.unlink()


class _Answer(Resource):
    """GET gives what `make` returns, as JSON; a `LocalError` of it is a bad request."""

    isLeaf = True

    def __init__(self, make: Callable[[Request], tuple[int, Any]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._make = make

    def render_GET(self, request: Request) -> bytes:
        try:
            code, body = self._make(request)
        except LocalError as error:
            code, body = 400, {"error": str(error)}
        request.setResponseCode(code)
        request.setHeader(b"content-type", b"application/json")
        request.setHeader(b"cache-control", b"no-store")
        return json.dumps(body).encode()


def admin_resource(node: Administered) -> Resource:
    """What a node answers, by path."""
    root, health = Resource(), Resource()
    for parent, name, make in (
        (root, b"members", lambda request: (200, {"members": node.members_report()})),
        (root, b"sessions", lambda request: (200, _sessions(node, request))),
        (root, b"statistics", lambda request: (200, node.statistics())),
        (root, b"config", lambda request: (200, node.settings.to_tables())),
        (health, b"live", lambda request: (200, {"live": True})),
        (health, b"ready", lambda request: (200 if node.is_ready else 503, {"ready": node.is_ready})),
    ):
        parent.putChild(name, _Answer(make))
    root.putChild(b"health", health)
    return root


def _sessions(node: Administered, request: Request) -> dict[str, Any]:
    def argument(name: bytes, default: str) -> str:
        values = (request.args or {}).get(name, [])
        return values[0].decode("utf-8", "replace") if values else default

    limit = argument(b"limit", str(_SESSIONS_PAGE))
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 6 and int(limit) <= SESSIONS_PAGE_MAX):
        raise LocalError(f"limit: {limit!r} is not a number from 0 to {SESSIONS_PAGE_MAX}")
    return node.sessions_report(argument(b"manager", ""), int(limit), argument(b"after", ""))


def _no_log(request: Request) -> None:
    """Keep no access log."""
