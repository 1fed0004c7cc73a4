"""Pyramid."""

from __future__ import annotations

from typing import Any

from pyramid.config import Configurator
from pyramid.response import Response

from caterwaul.managers.web.pyramid import SessionFactory

from .driving import Driver, Wsgi
from .work import COOKIE, Sessions, handle

__all__ = ["drive"]


def drive(sessions: Sessions) -> Driver:
    def page(request: Any) -> Response:
        return Response(handle(request.matchdict["what"], None if sessions.manager is None else request.session), content_type="text/plain")

    with Configurator() as config:
        if sessions.manager is not None:
            config.include("caterwaul.managers.web.pyramid")
            config.set_session_factory(SessionFactory(sessions.manager, COOKIE))
        config.add_route("page", "/{what}")
        config.add_view(page, route_name="page")
        return Wsgi(config.make_wsgi_app())
