"""What the URL of a Redis or Valkey says, for a server, a group watched by Sentinel, or a Cluster.

    redis://[USER:PASSWORD@]HOST[:PORT][/DB]                                   rediss:// with TLS
    unix://[USER:PASSWORD@]/PATH/OF/SOCKET[?db=N]
    redis+sentinel://[USER:PASSWORD@]HOST:PORT,HOST:PORT/SERVICE[/DB]          rediss+sentinel://
    redis+cluster://[USER:PASSWORD@]HOST:PORT,HOST:PORT                        rediss+cluster://

User and password are the servers'; Sentinels that want some get them by `?sentinel_username=` and `?sentinel_password=`. With TLS the certificate is always checked, by the machine's
authorities or those of `?ssl_ca_certs=FILE`; `?ssl_certfile=` and `?ssl_keyfile=` are the client's own, and `?ssl_check_hostname=no` is for servers that
announce themselves by addresses which their certificates do not name.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from ...membership.errors import LocalError

__all__ = ["SCHEMES", "RedisAddress", "parse"]

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
_PORT, _SENTINEL_PORT = 6379, 26379
_TLS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname")
_NO = ("no", "false", "0")


class RedisAddress(NamedTuple):
    """`hosts`: none for a socket of this machine. `service`: what Sentinels call the group. `options`: arguments of redis-py's connections; `sentinel_options`: of those to Sentinels."""

    kind: str  #: "server", "sentinel", "cluster" or "unix"
    hosts: tuple[tuple[str, int], ...]
    service: str
    options: dict[str, Any]
    sentinel_options: dict[str, Any]


def parse(url: str) -> RedisAddress:
    """Raises `LocalError`, which says what is wrong and repeats nothing that could be a password."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise LocalError("its host is neither a name nor an address") from error
    if "@" in f"{parts.path}{parts.query}{parts.fragment}":  # then that was no path, and what else is said of the URL could show the password
        raise LocalError("in user and password /, ?, #, and @ have to be written as %2F, %3F, %23 and %40")
    protocol, _, kind = parts.scheme.partition("+")
    kind = "unix" if protocol == "unix" else kind or "server"
    named = dict(parse_qsl(parts.query, keep_blank_values=True))
    tls = _tls_of(named) if protocol == "rediss" else {}
    sentinel = {name: named.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in named} if kind == "sentinel" else {}
    service, database = _service_and_database(kind, parts, named)
    if named:
        raise LocalError(f"it does not take {', '.join(sorted(named))}")
    hosts, login = _hosts_and_login(kind, parts)
    options = {**login, **tls, **({"db": database} if database else {})}
    if kind == "unix":
        options["path"] = _path_of(parts)
    return RedisAddress(kind, hosts, service, options, {**sentinel, **tls})


def _tls_of(named: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {name: named.pop(name) for name in _TLS if name in named}
    if "ssl_check_hostname" in found:
        found["ssl_check_hostname"] = found["ssl_check_hostname"].lower() not in _NO
    return {"ssl": True, **found}


def _service_and_database(kind: str, parts: SplitResult, named: dict[str, str]) -> tuple[str, int]:
    path = [unquote(part) for part in parts.path.split("/") if part]
    if kind == "unix":
        return "", _number(named.pop("db", "0"))
    service = ""
    if kind == "sentinel":
        if not path:
            raise LocalError("the name that the Sentinels know the servers by is missing: redis+sentinel://HOST:PORT/SERVICE")
        service = path.pop(0)
    if len(path) > 1 or (path and kind == "cluster"):
        raise LocalError(f"a Cluster has no {'/'.join(path)}, only database 0" if kind == "cluster" else f"{'/'.join(path)!r} is no database's number")
    return service, _number(path[0]) if path else 0


def _number(text: str) -> int:
    if not text.isdecimal():
        raise LocalError(f"{text!r} is no database's number")
    return int(text)


def _hosts_and_login(kind: str, parts: SplitResult) -> tuple[tuple[tuple[str, int], ...], dict[str, str]]:
    login, at, places = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    found = {"username": unquote(user), "password": unquote(password)}
    listed = [part for part in places.split(",") if part]
    if kind == "unix":
        if listed:
            raise LocalError("a socket of this machine has no host: unix:///PATH, with three slashes")
    elif not listed or (kind == "server" and len(listed) > 1):
        raise LocalError("it names no host" if not listed else "it names several hosts: redis+sentinel:// or redis+cluster:// takes them")
    port = _SENTINEL_PORT if kind == "sentinel" else _PORT
    return tuple(_host(part, port) for part in listed), {name: value for name, value in found.items() if at and value}


def _host(text: str, port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, given = parts.hostname, parts.port
    except ValueError as error:
        raise LocalError(f"{text!r} is no host and port") from error
    if not host or (given is not None and not given):
        raise LocalError(f"{text!r} is no host and port")
    return host, given or port


def _path_of(parts: SplitResult) -> str:
    path = unquote(parts.path)
    if not path.strip("/"):
        raise LocalError("it names no socket: unix:///PATH")
    return path
