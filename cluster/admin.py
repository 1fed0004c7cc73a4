"""The admin service of a node: JSON over HTTP, on a Unix socket for this user on this machine, and over TCP behind a gate if the settings say so.

Sessions show the first half of the hash of their id and never the id, nor values: whoever may read this must
still not be able to take over a session. `/health/live` answers while the reactor turns; `/health/ready` is 200 once every
manager holds what it should, which is what balancers wait for. What only looks is a GET; what changes something (`/drain`, `/leave`, `/logout`) a POST.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from twisted.internet.defer import Deferred, ensureDeferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.web.error import UnsupportedMethod
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from ..membership.errors import LocalError
from .admin_gate import Gate, GuardedSite, Limited
from .admin_socket import prepare_path
from .crosschecks import split_address
from .errors import HandshakeRefused
from .security.certificates import ADMINISTRATOR
from .security.guards import CertificateGuard
from .security.keyring import read_secrets
from .security.service import Security
from .security.tls import tls_factory
from .settings import Settings

__all__ = ["SESSIONS_PAGE_MAX", "AdminService", "Administered", "admin_resource"]

_log = Logger()
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

    def logins_report(self, manager: str, principal: str) -> Deferred[dict[str, Any]]: ...

    def logout(self, manager: str, principal: str | None) -> Deferred[dict[str, Any]]: ...

    def end_session(self, manager: str, key: str) -> Deferred[dict[str, Any]]: ...

    def statistics(self) -> dict[str, Any]: ...

    def rehearse(self, lose: Sequence[str]) -> Deferred[dict[str, Any]]: ...

    def snapshot_overview(self) -> dict[str, Any]: ...

    def snapshot_page(self, manager: str, member: str, after: str) -> Deferred[dict[str, Any]]: ...

    def snapshot_restore(self, manager: str, data: bytes, as_used: bool) -> Deferred[dict[str, Any]]: ...

    def drain_report(self) -> dict[str, Any]: ...

    def begin_drain(self) -> dict[str, Any]: ...

    def cancel_drain(self) -> dict[str, Any]: ...

    def end(self) -> dict[str, Any]: ...


class AdminService:
    """Listens from `listen` and `listen_unix` on to `stop`. Reactor thread."""

    def __init__(self, node: Administered, security: Security, reactor: Any) -> None:
        self._node = node
        self._security = security
        self._reactor = reactor
        self._ports: list[IListeningPort] = []
        self._path: Path | None = None
        self._gate: Gate | None = None
        self.address = ""  #: `host:port` over TCP, empty: none

    def listen_unix(self, path: Path) -> None:
        """Raises `LocalError` when somebody else answers at the path, or it cannot be listened on."""
        prepare_path(path)
        site = _quiet(Site(admin_resource(self._node, with_contents=True)))
        try:
            self._ports.append(self._reactor.listenUNIX(os.fspath(path), site, mode=0o600))
        except CannotListenError as error:
            raise LocalError(f"admin socket: cannot listen on {path}: {error.socketError}") from None
        self._path = path

    def listen(self) -> None:
        """Over TCP, if the settings name an address. Raises `LocalError` when that cannot be had, or the token file cannot be used."""
        admin = self._node.settings.admin
        where = split_address(admin.listen, None)
        if not admin.listen or where is None:
            return
        host, port = where
        self._gate = Gate(read_secrets(Path(admin.token_file)) if admin.token_file else [], read_only=admin.listen_read_only)
        site: Any = _quiet(GuardedSite(admin_resource(self._node), self._gate, self._reactor, self._is_administrator))
        guard = self._security.guard
        factory = tls_factory(guard.context, site, self._reactor) if isinstance(guard, CertificateGuard) else site
        try:
            limited = Limited(factory)  # type: ignore[no-untyped-call]
            self._ports.append(self._reactor.listenTCP(port, limited, interface=host))
        except CannotListenError as error:
            raise LocalError(f"admin.listen: cannot listen on TCP port {port} of {host}: {error.socketError}") from None
        found: Any = self._ports[-1].getHost()
        self.address = f"{found.host}:{found.port}"

    def statistics(self) -> dict[str, int]:
        return {"refused": self._gate.refused if self._gate is not None else 0}

    async def stop(self) -> None:
        ports, self._ports = self._ports, []
        for port in ports:
            await maybeDeferred(port.stopListening)
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()

    def _is_administrator(self, request: Request) -> bool:
        """Whether the connection has shown a certificate that may administer."""
        guard = self._security.guard
        if not isinstance(guard, CertificateGuard):
            return False
        transport: Any = request.transport
        try:
            return guard.admits(guard.identify(transport.getHandle(), ADMINISTRATOR))
        except HandshakeRefused:
            return False


def _quiet(site: Site) -> Site:
    """An access log would show every look of a person, and a traceback what is inside."""
    site.displayTracebacks = False
    site.log = _no_log  # type: ignore[method-assign,assignment]
    return site


class _Answer(Resource):
    """GET gives what `make` returns, POST what `act` returns, as JSON; a `LocalError` of it is a bad request."""

    isLeaf = True

    def __init__(self, make: Callable[[Request], tuple[int, Any]] | None, act: Callable[[Request], Any] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._make = make
        self._act = act
        self.allowedMethods = [*([b"GET", b"HEAD"] if make else []), *([b"POST"] if act else [])]

    def render_GET(self, request: Request) -> int:
        return self._answer(request, self._make)

    def render_POST(self, request: Request) -> int:
        act = self._act
        return self._answer(request, None if act is None else lambda request: (200, act(request)))

    def _answer(self, request: Request, make: Callable[[Request], tuple[int, Any]] | None) -> int:
        if make is None:
            raise UnsupportedMethod(self.allowedMethods)

        async def answer() -> None:
            try:
                code, body = make(request)
                if isinstance(body, Deferred):
                    body = await body
            except LocalError as error:
                code, body = 400, {"error": str(error)}
            except Exception:
                _log.failure("an answer of the admin service failed")
                code, body = 500, {"error": "internal error; the node's log says more"}
            if not gone:
                request.setResponseCode(code)
                request.setHeader(b"content-type", b"application/json")
                request.setHeader(b"cache-control", b"no-store")
                request.write(json.dumps(body).encode())
                request.finish()

        gone: list[object] = []
        request.notifyFinish().addErrback(gone.append)
        ensureDeferred(answer())
        return NOT_DONE_YET


def admin_resource(node: Administered, with_contents: bool = False) -> Resource:
    """What a node answers, by path. `with_contents`: also what sessions contain, to who may read this process's memory anyway."""
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
    root.putChild(b"drain", _Answer(lambda request: (200, node.drain_report()), lambda request: _drain(node, request)))
    root.putChild(b"rehearse", _Answer(lambda request: (200, node.rehearse(_arguments(request, b"lose")))))
    root.putChild(b"logins", _Answer(lambda request: (200, node.logins_report(_argument(request, b"manager", ""), _argument(request, b"principal", "")))))
    root.putChild(b"logout", _Answer(None, lambda request: _logout(node, request)))
    root.putChild(b"leave", _Answer(None, lambda request: node.end()))
    if with_contents:
        snapshot = Resource()
        snapshot.putChild(b"", _Answer(lambda request: (200, node.snapshot_overview())))
        snapshot.putChild(b"page", _Answer(lambda request: (200, _page(node, request))))
        snapshot.putChild(b"restore", _Answer(None, lambda request: _restore(node, request)))
        root.putChild(b"snapshot", snapshot)
    return root


def _page(node: Administered, request: Request) -> Deferred[dict[str, Any]]:
    return node.snapshot_page(_argument(request, b"manager", ""), _argument(request, b"member", ""), _argument(request, b"after", ""))


def _restore(node: Administered, request: Request) -> Deferred[dict[str, Any]]:
    content: Any = request.content
    return node.snapshot_restore(_argument(request, b"manager", ""), content.read(), _argument(request, b"as_used", "") == "1")


def _arguments(request: Request, name: bytes) -> list[str]:
    return [value.decode("utf-8", "replace") for value in (request.args or {}).get(name, [])]


def _argument(request: Request, name: bytes, default: str) -> str:
    return next(iter(_arguments(request, name)), default)


def _drain(node: Administered, request: Request) -> dict[str, Any]:
    return node.cancel_drain() if _argument(request, b"cancel", "") else node.begin_drain()


def _logout(node: Administered, request: Request) -> Deferred[dict[str, Any]]:
    manager = _argument(request, b"manager", "")
    principals, keys, everybody = (_arguments(request, name) for name in (b"principal", b"session", b"everybody"))
    if len(principals) + len(keys) + len(everybody) != 1 or everybody not in ([], ["1"]):
        raise LocalError("name one principal, one session, or everybody")
    return node.end_session(manager, keys[0]) if keys else node.logout(manager, principals[0] if principals else None)


def _sessions(node: Administered, request: Request) -> dict[str, Any]:
    limit = _argument(request, b"limit", str(_SESSIONS_PAGE))
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 6 and int(limit) <= SESSIONS_PAGE_MAX):
        raise LocalError(f"limit: {limit!r} is not a number from 0 to {SESSIONS_PAGE_MAX}")
    return node.sessions_report(_argument(request, b"manager", ""), int(limit), _argument(request, b"after", ""))


def _no_log(request: Request) -> None:
    """Keep no access log."""
