"""The page of the demo: a WSGI application with two fields, and JSON for those who are no browser.

Every page says which node answered, so that a failover can be seen. Reads and writes go through
``environ["caterwaul.session"]`` like those of any application; what the node knows of itself comes from `NodeFacts`
(`app.py` makes them from ``environ["caterwaul.node"]``, the tests from nothing).

The demo's proxy sends a POST again when its node dies, so every POST here may arrive twice: setting a pair is idempotent,
and *kill* names the process it means. The node that gets it second sees another's pid, spares itself and shows the page.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, quote

from jinja2 import Environment, FileSystemLoader, Template

from ...managers.errors import SessionUnknown
from ...managers.web.cookies import CookieSettings, read_cookie
from ...membership.errors import LocalError

__all__ = ["COOKIE", "LOOK", "MANAGER", "DemoPage", "NodeFacts", "colour", "of_another_site"]

#: The demo speaks plain HTTP on loopback, for which browsers refuse `__Host-` and Secure.
COOKIE = CookieSettings(name="sid", secure=False)
MANAGER = "demo"  #: name of the session manager
LOOK = Path(__file__).parent  #: where `look.html` is, which the pages of other demonstrations extend too

_BODY_MAX_BYTES = 64 * 1024
_NAME_MAX, _VALUE_MAX = 100, 10_000  # characters of a pair
_NODE_NAME = re.compile(r"[A-Za-z0-9_-]{1,16}")
_COLOURS = 6  # classes c0..c5 of the style sheet

StartResponse = Callable[..., Any]


class NodeFacts(Protocol):
    """What a node knows of itself and of the others. Called from any thread."""

    @property
    def name(self) -> str: ...

    @property
    def ready(self) -> bool:
        """In sync: a balancer may send users here."""

    def members(self) -> list[dict[str, Any]]:
        """This node and those it sees, by name: ``{"name", "uid", "pid", "self", "in_sync"}``; a pid that is not known is None."""

    def sessions(self) -> int:
        """How many live sessions this node holds."""

    def save(self, session: Any, acks: str | None) -> tuple[list[str], list[str]]:
        """Commit now; names of the members that confirmed, and of those that did not."""


class _Refused(Exception):
    """The request cannot be served: a status line and a sentence for the user."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.status = status


class DemoPage:
    """The WSGI application; any number of threads."""

    def __init__(self, facts: Callable[[dict[str, Any]], NodeFacts]) -> None:
        """`facts`: from a request's environ."""
        self._facts = facts
        self._template: Template = Environment(loader=FileSystemLoader(LOOK), autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template("page.html")
        self._template.globals["colour"] = colour
        self._routes: dict[tuple[str, str], Callable[[_Request], _Reply]] = {
            ("GET", "/"): self._page,
            ("GET", "/get"): self._get,
            ("GET", "/members"): self._members,
            ("GET", "/health/live"): lambda request: _json({"live": True}),
            ("GET", "/health/ready"): self._ready,
            ("POST", "/set"): self._set,
            ("POST", "/remove"): self._remove,
            ("POST", "/logout"): self._logout,
            ("POST", "/cycle"): self._cycle,
            ("POST", "/kill"): self._kill,
        }

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        request = _Request(environ, self._facts(environ))
        try:
            method = "GET" if request.method == "HEAD" else request.method
            route = self._routes.get((method, request.path))
            if route is None:
                known = any(path == request.path for _, path in self._routes)
                raise _Refused("405 Method Not Allowed" if known else "404 Not Found", "There is nothing here.")
            if method == "POST":
                request.refuse_other_sites()
            reply = route(request)
        except _Refused as refused:
            reply = self._refusal(request, refused.status, str(refused))
        status, headers, body = reply
        start_response(status, [*headers, ("Content-Length", str(len(body))), ("X-Content-Type-Options", "nosniff")])
        return [b"" if request.method == "HEAD" else body]

    def _page(self, request: _Request, status: str = "200 OK", error: str = "") -> _Reply:
        session, nonce = request.session, secrets.token_urlsafe(12)
        body = self._template.render(
            node=request.facts.name,
            pid=os.getpid(),
            pairs=sorted(session.items()),
            members=request.facts.members(),
            sessions=request.facts.sessions(),
            failover_from=request.failover_from,
            has_session=session.id is not None,
            nonce=nonce,
            error=error,
        ).encode()
        policy = f"default-src 'none'; img-src data:; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        return status, [("Content-Type", "text/html; charset=utf-8"), ("Content-Security-Policy", policy), ("Cache-Control", "no-store")], body

    def _get(self, request: _Request) -> _Reply:
        return _json({**self._who(request), "pairs": dict(request.session.items())})

    def _members(self, request: _Request) -> _Reply:
        return _json({**self._who(request), "ready": request.facts.ready, "sessions": request.facts.sessions(), "members": request.facts.members()})

    def _ready(self, request: _Request) -> _Reply:
        ready = request.facts.ready
        return _json({"ready": ready, "node": request.facts.name, "pid": os.getpid()}, "200 OK" if ready else "503 Service Unavailable")

    def _set(self, request: _Request) -> _Reply:
        name, value = request.field("name").strip(), request.field("value")
        if not name:
            raise _Refused("400 Bad Request", "A pair needs a name.")
        if len(name) > _NAME_MAX or len(value) > _VALUE_MAX:
            raise _Refused("400 Bad Request", f"A name has at most {_NAME_MAX} characters, a value {_VALUE_MAX}.")
        try:
            request.session[name] = value
            confirmed, missing = request.facts.save(request.session, request.field("acks") or None)
        except SessionUnknown as error:
            raise _Refused("503 Service Unavailable", str(error)) from error
        except LocalError as error:
            raise _Refused("400 Bad Request", str(error)) from error
        return self._done(request, confirmed=confirmed, missing=missing)

    def _remove(self, request: _Request) -> _Reply:
        request.session.pop(request.field("name"), None)
        return self._done(request)

    def _logout(self, request: _Request) -> _Reply:
        request.session.invalidate()
        return self._done(request)

    def _cycle(self, request: _Request) -> _Reply:
        if request.session.id is not None:
            request.session.cycle_id()
        return self._done(request)

    def _kill(self, request: _Request) -> _Reply:
        if request.field("pid") == str(os.getpid()):
            os.kill(os.getpid(), signal.SIGKILL)  # no farewell, no flush, no answer: the real thing
        return self._done(request)

    def _done(self, request: _Request, **facts: Any) -> _Reply:
        if request.wants_json:
            return _json({**self._who(request), **facts})
        location = f"/?from={quote(request.failover_from)}" if request.failover_from else "/"
        return "303 See Other", [("Location", location)], b""

    def _refusal(self, request: _Request, status: str, text: str) -> _Reply:
        if request.wants_json or status.startswith("404"):
            return _json({"error": text}, status)
        return self._page(request, status, text)

    def _who(self, request: _Request) -> dict[str, Any]:
        return {"node": request.facts.name, "pid": os.getpid(), "failover_from": request.failover_from}


_Reply = tuple[str, list[tuple[str, str]], bytes]


class _Request:
    """What the page reads of a request."""

    def __init__(self, environ: dict[str, Any], facts: NodeFacts) -> None:
        self._environ = environ
        self.facts = facts
        self._form: dict[str, list[str]] | None = None
        self._query = parse_qs(environ.get("QUERY_STRING", ""), max_num_fields=10)
        self.method: str = environ["REQUEST_METHOD"]
        self.path: str = environ.get("PATH_INFO", "") or "/"
        self.wants_json = "application/json" in environ.get("HTTP_ACCEPT", "")
        route = read_cookie(COOKIE, (environ.get("HTTP_COOKIE", ""),)).route
        before = route if route != facts.name else self._query.get("from", [""])[0]
        #: the node that served this session before, if it was another; a form's answer passes it on to the page
        self.failover_from = before if before != facts.name and _NODE_NAME.fullmatch(before) else ""

    @property
    def session(self) -> Any:
        return self._environ["caterwaul.session"]

    def field(self, name: str) -> str:
        """A field of the form that was sent; empty if it is absent."""
        if self._form is None:
            length = self._environ.get("CONTENT_LENGTH") or "0"
            if not length.isdecimal() or int(length) > _BODY_MAX_BYTES:
                raise _Refused("413 Content Too Large", "That is too long.")
            try:
                body = self._environ["wsgi.input"].read(int(length))  # closed when the client has gone: a ValueError too
                self._form = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=10, errors="strict")
            except ValueError:
                raise _Refused("400 Bad Request", "That is no form.") from None
        return self._form.get(name, [""])[0]

    def refuse_other_sites(self) -> None:
        if of_another_site(self._environ):
            raise _Refused("403 Forbidden", "This form came from another site.")


def of_another_site(environ: dict[str, Any]) -> bool:
    """A page of another site must not kill nodes here. Browsers say where a form came from; other clients do not."""
    return environ.get("HTTP_SEC_FETCH_SITE", "same-origin") not in ("same-origin", "none")


def colour(node: str) -> int:
    """Which of the page's colours is this node's; neighbours in number differ."""
    digits = re.search(r"\d+$", node)
    return (int(digits[0]) - 1 if digits else sum(node.encode())) % _COLOURS


def _json(value: Any, status: str = "200 OK") -> _Reply:
    return status, [("Content-Type", "application/json"), ("Cache-Control", "no-store")], json.dumps(value).encode()
