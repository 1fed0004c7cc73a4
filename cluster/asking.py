"""Which running node a command asks, and how: its Unix socket, or its address over TCP with a token or a certificate.

`@asking` gives a command the options that choose, and hands it an `Asked`.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Callable
from functools import wraps
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import click

from ..membership.errors import LocalError
from .admin_socket import ANSWER_S, answer_of, answers, ask, find_running
from .security.certificates import AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE, NODE, REVOKED_FILE, Revoked, read_authorities, read_revoked
from .security.keyring import read_lines
from .settings import load

__all__ = ["Asked", "asking"]

Command = TypeVar("Command", bound=Callable[..., Any])


class Asked(Protocol):
    """A running node's admin service. Its methods raise `LocalError` saying why there is no answer."""

    def ask(self, target: str, method: str = "GET", timeout_s: float = ANSWER_S, body: bytes = b"") -> Any:
        """One request: the decoded JSON."""

    def answers(self) -> bool:
        """Whether it is there."""


class _OnSocket:
    def __init__(self, path: Path) -> None:
        self._path = path

    def ask(self, target: str, method: str = "GET", timeout_s: float = ANSWER_S, body: bytes = b"") -> Any:
        return ask(self._path, target, method, timeout_s, body)

    def answers(self) -> bool:
        return answers(self._path)


class _OverTcp:
    """`certificates`: the directory that `caterwaul ca issue admin` has filled."""

    def __init__(self, url: str, token_file: Path | None, certificates: Path | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not parts.port:
            raise LocalError(f"--url {url}: write http://HOST:PORT, or https://HOST:PORT with --certificates")
        if (parts.scheme == "https") != (certificates is not None):
            raise LocalError("--certificates goes with an https address, and with no other")
        if parts.scheme == "http" and not _is_loopback(parts.hostname):
            raise LocalError(f"--url {url}: a token would be overheard on the way there; over the network use https and --certificates")
        self._url, self._host, self._port = url, parts.hostname, parts.port
        self._headers = {"Authorization": f"Bearer {read_lines(token_file)[0]}"} if token_file is not None else {}
        self._trust = _trust_of(certificates) if certificates is not None else None

    def ask(self, target: str, method: str = "GET", timeout_s: float = ANSWER_S, body: bytes = b"") -> Any:
        connection = self._connection(timeout_s)
        return answer_of(connection, self._url, target, method, self._headers, timeout_s, body)

    def answers(self) -> bool:
        try:
            self.ask("/health/live")
        except LocalError:
            return False
        return True

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        if self._trust is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        return _NodeConnection(self._host, self._port, timeout_s, *self._trust)


class _NodeConnection(http.client.HTTPSConnection):
    """To a node, before anything is said to it: an administrator's certificate, of the same authority, is no node's, and one that was revoked is nobody's."""

    def __init__(self, host: str, port: int, timeout_s: float, context: ssl.SSLContext, revoked: Revoked) -> None:
        super().__init__(host, port, timeout=timeout_s, context=context)
        self._revoked = revoked

    def connect(self) -> None:
        super().connect()
        shown: Any = self.sock.getpeercert()  # checked against the authority, so there is one
        why = ""
        if not any(kind == "URI" and value.startswith(f"{NODE}://") for kind, value in shown.get("subjectAltName", ())):
            why = "is no node of the cluster"
        elif int(shown["serialNumber"], 16) in self._revoked.serials:
            why = "is no node of the cluster any more: its certificate has been revoked"
        if why:
            self.close()
            raise LocalError(f"who answers at {self.host}:{self.port} {why}")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _trust_of(certificates: Path) -> tuple[ssl.SSLContext, Revoked]:
    """The cluster's authority only, without what it has revoked as far as the directory says. Nodes are named by URI and not by host, so there is no host
    name to compare. (OpenSSL could check the list too, but wants one of each authority, and while that is changed there are two, and one list.)"""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(certificates / AUTHORITY_FILE)
        context.load_cert_chain(certificates / CERTIFICATE_FILE, certificates / KEY_FILE)
    except OSError as error:  # SSLError is one
        raise LocalError(f"--certificates {certificates}: {error.strerror or error}") from None
    return context, read_revoked(certificates / REVOKED_FILE, read_authorities(certificates / AUTHORITY_FILE))


def asking(command: Command) -> Command:
    """The options that choose a running node; the command gets it as `node`."""

    @click.option("--config", "-c", "path", metavar="FILE", help="Ask the node that runs with this configuration file.")
    @click.option("--socket", metavar="PATH", help="Admin socket of the node to ask.")
    @click.option("--url", metavar="URL", help="Ask over TCP, where admin.listen allows it: http://127.0.0.1:7001.")
    @click.option("--token-file", type=click.Path(path_type=Path), metavar="FILE", help="With --url: file with the token.")
    @click.option(
        "--certificates",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="With an https --url: directory of your certificate; whom its revoked.crl names is not asked.",
    )
    @wraps(command)
    def found(*, path: str | None, socket: str | None, url: str | None, token_file: Path | None, certificates: Path | None, **options: Any) -> Any:
        node: Asked = _OverTcp(url, token_file, certificates) if url else _OnSocket(_find(path, socket))
        return command(node=node, **options)

    return found  # type: ignore[return-value]


def _find(path: str | None, socket: str | None) -> Path:
    """The admin socket of the node that is meant. Raises `LocalError` when that is none, or more than one."""
    if socket:
        return Path(socket)
    settings = load(path) if path else None
    if settings is not None and settings.admin.socket == "":
        raise LocalError(f'{path} has admin.socket = "", so that node cannot be asked')
    if settings is not None and settings.admin.socket != "auto":
        return Path(settings.admin.socket)
    name = settings.node.name if settings is not None else ""
    running = find_running(name)
    if not running:
        who = f"no node {name} of this user is running" if name else "no node of this user is running"
        raise LocalError(f"{who} on this machine; start one with `caterwaul node`, or name its socket with --socket")
    if len(running) > 1:
        choices = "\n".join(f"  --socket {found.path}   ({found.name}, process {found.pid})" for found in running)
        raise LocalError(f"{len(running)} nodes are running; choose one:\n{choices}")
    return running[0].path
