"""The session cookie: its attributes, how it is read, how it is written.

The value is the id, 43 characters; with `read_your_writes = "cluster"` a colon and a token (`tokens.py`); and after a dot the
node that serves the session, for balancers: ``ID:TOKEN.NODE``. Token and node are no part of the identity, and a token that
is none is as good as absent. What else is not exactly that is treated as absent, and so are two cookies of that name in one request: one
of them was planted by somebody else (a sibling domain, plain HTTP), and nobody can say which. An id that no node knows
is never adopted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ...membership.errors import LocalError
from ...membership.knobs import knob

__all__ = ["CookieSettings", "Ticket", "delete_cookie", "read_cookie", "write_cookie"]

_PLAIN_HTTP = 'to develop over plain HTTP set name = "sid" and secure = false'
_VALUE = re.compile(r"([A-Za-z0-9_-]{43})(?::([^.]*))?(?:\.([A-Za-z0-9_-]{1,16}))?", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}", re.ASCII)  # RFC 9110 token
_ATTRIBUTE = re.compile(r"[\x21-\x3a\x3c-\x7e]*", re.ASCII)


@dataclass(frozen=True)
class CookieSettings:
    """The session cookie. Raises `LocalError` for what browsers would refuse without a word."""

    name: str = knob("__Host-sid", "Name. Browsers accept `__Host-` only from HTTPS, for one host and the path `/`, so nobody else can plant it.")
    secure: bool = knob(True, "Send over HTTPS only. False only to develop, with a name that has no `__Host-`.")
    http_only: bool = knob(True, "Hide from scripts.")
    same_site: str = knob(
        "Lax",
        "`Lax`: other sites' links carry the session, their forms do not. `Strict`: neither. `None`: everything does; guard against forged requests yourself.",
        choices=("Lax", "Strict", "None"),
    )
    path: str = knob("/", "Paths that get the cookie. `__Host-` needs `/`.")
    domain: str = knob("", "Domain with its subdomains that gets the cookie; empty: this host only. Each subdomain can then read and plant it.")
    partitioned: bool = knob(False, "One session for each site that embeds this one in a frame (CHIPS). Needs `secure`.")
    max_age_s: int = knob(0, "Seconds that the browser keeps it, renewed at each use of the session. 0: until it is closed.", minimum=0)
    route: bool = knob(True, "Append `.NODE`, by which sticky balancers find the node that serves the session.")

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise LocalError(f"cookie.name: {self.name!r} is no cookie name")
        if not self.path.startswith("/") or not _ATTRIBUTE.fullmatch(self.path):
            raise LocalError(f"cookie.path: {self.path!r} is no path")
        if not _ATTRIBUTE.fullmatch(self.domain):
            raise LocalError(f"cookie.domain: {self.domain!r} is no domain")
        if self.same_site not in ("Lax", "Strict", "None"):
            raise LocalError(f"cookie.same_site: {self.same_site!r} is none of Lax, Strict, None")
        if self.max_age_s < 0:
            raise LocalError("cookie.max_age_s: below 0")
        name = self.name.lower()
        if name.startswith("__host-") and (not self.secure or self.path != "/" or self.domain):
            raise LocalError(f"cookie.name: {self.name} needs secure = true, path = / and no domain; {_PLAIN_HTTP}")
        if name.startswith("__secure-") and not self.secure:
            raise LocalError(f"cookie.name: {self.name} needs secure = true; {_PLAIN_HTTP}")
        if self.partitioned and not self.secure:
            raise LocalError(f"cookie.partitioned: needs secure = true; {_PLAIN_HTTP}")
        if self.same_site == "None" and not self.secure:
            raise LocalError(f"cookie.same_site: None needs secure = true; {_PLAIN_HTTP}")


class Ticket(NamedTuple):
    """What a request said about its session."""

    id: str | None = None  #: well-formed, but not believed
    route: str = ""  #: node that served it last
    found: int = 0  #: cookies of that name, good or bad
    token: str = ""  #: what its browser wrote last; any text
    without: bool = False  #: no session is opened for it, whatever it said
    in_turn: bool = False  #: requests of one session take turns, and this is one of them
    shared: Ticket | None = None  #: what it said about its login in other applications (`single.py`)


def read_cookie(settings: CookieSettings, headers: Iterable[str]) -> Ticket:
    """The session cookie of a request. `headers` are the values of its `Cookie` fields; any text is safe."""
    prefix = settings.name + "="
    values = [pair[len(prefix) :] for header in headers if prefix in header for pair in map(_strip, header.split(";")) if pair.startswith(prefix)]
    if not values:
        return _NONE
    match = _VALUE.fullmatch(values[0]) if len(values) == 1 else None
    if match is None:
        return Ticket(found=len(values))
    return Ticket(match[1], match[3] or "", 1, match[2] or "")


def write_cookie(settings: CookieSettings, session_id: str, route: str, token: str = "", max_age_s: int | None = None) -> str:
    """The value of `Set-Cookie` that gives the browser this session. `route` is the node's name, `token` what the browser wrote last, `max_age_s` this
    session's own age, if not the one of the settings."""
    value = f"{session_id}:{token}" if token else session_id
    if settings.route:
        value += f".{route}"
    age_s = settings.max_age_s if max_age_s is None else max_age_s
    age = f"; Max-Age={age_s}" if age_s else ""
    return f"{settings.name}={value}{age}{_attributes(settings)}"


def delete_cookie(settings: CookieSettings) -> str:
    """The value of `Set-Cookie` that makes the browser forget the session."""
    return f"{settings.name}=; Max-Age=0{_attributes(settings)}"


_NONE = Ticket()


def _strip(pair: str) -> str:
    return pair.strip(" \t")


def _attributes(settings: CookieSettings) -> str:
    parts = [f"; Path={settings.path}"]
    if settings.domain:
        parts.append(f"; Domain={settings.domain}")
    if settings.secure:
        parts.append("; Secure")
    if settings.http_only:
        parts.append("; HttpOnly")
    parts.append(f"; SameSite={settings.same_site}")
    if settings.partitioned:
        parts.append("; Partitioned")
    return "".join(parts)
