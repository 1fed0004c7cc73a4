"""twisted.web, by the bytes of its protocol."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.web.resource import Resource
from twisted.web.server import Site

from caterwaul.managers.web.twisted_web import SessionSite

from .driving import Driver, TwistedWeb
from .work import COOKIE, Sessions, handle

__all__ = ["drive", "site"]


def drive(sessions: Sessions) -> Driver:
    return TwistedWeb(reactor, site(_Page(), sessions))


def site(root: Any, sessions: Sessions) -> Any:
    return Site(root) if sessions.manager is None else SessionSite(root, sessions.manager, COOKIE)


class _Page(Resource):
    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        return handle(request.path.decode()[1:], getattr(request, "caterwaul_session", None))
