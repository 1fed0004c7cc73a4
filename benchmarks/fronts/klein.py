"""Klein: the session is procured as an application does it, before its handler runs."""

from __future__ import annotations

from typing import Any

from klein import Klein
from klein.interfaces import ISession
from twisted.internet import reactor

from caterwaul.managers.web.klein import SessionProcurer

from .driving import Driver, TwistedWeb
from .twisted_web import site
from .work import BODY_BYTES, Sessions, handle

__all__ = ["drive"]

_procurer = SessionProcurer()


def drive(sessions: Sessions) -> Driver:
    app = Klein()

    @app.route("/<what>")
    async def page(request: Any, what: str) -> bytes:
        request.setHeader(b"Content-Length", b"%d" % BODY_BYTES)
        if sessions.manager is None:
            return handle(what, None)
        procured = await _procurer.procureSession(request)
        assert ISession.providedBy(procured)
        return handle(what, procured.data)

    return TwistedWeb(reactor, site(app.resource(), sessions))
