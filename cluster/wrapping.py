"""An application gets replicated sessions without a line of it being changed.

What it is decides how. A framework with sessions of its own is given ours in their place, as its front in `managers/web` knows how
(`replace_sessions`); whatever else is WSGI or ASGI finds its session where those fronts put it. A framework is recognised by the names of its
classes, also inside of middleware that keeps what it wraps in an attribute of a usual name, so none is imported that the application has not.
What would be served with its old sessions, and lose them with its node, is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from inspect import isclass, iscoroutinefunction, signature
from typing import Any, NamedTuple

from ..managers.base import SessionManager
from ..managers.web.asgi import SessionMiddleware as AsgiMiddleware
from ..managers.web.cookies import CookieSettings
from ..managers.web.wsgi import SessionMiddleware as WsgiMiddleware
from ..membership.errors import LocalError

__all__ = ["Recognised", "is_asgi", "recognise", "refuse_other_kinds", "wrapped"]

#: The front in `managers/web` that replaces the sessions of such an application.
_FRONTS = {
    "flask.app.Flask": "flask",
    "django.core.handlers.wsgi.WSGIHandler": "django",
    "django.core.handlers.asgi.ASGIHandler": "django",
    "starlette.applications.Starlette": "starlette",
    "pyramid.router.Router": "pyramid",
}
#: Whose sessions cannot be replaced from outside, and what to do instead.
_REFUSED = {
    "litestar.app.Litestar": "add SessionPlugin of caterwaul.managers.web.litestar to it (docs/litestar.md)",
    "quart.app.Quart": "put SessionMiddleware of caterwaul.managers.web.asgi around it (docs/asgi.md)",
}
#: What is neither WSGI nor ASGI but has a front, and what to do instead.
_ELSEWHERE = {
    "aiohttp.web_app.Application": "call setup of caterwaul.managers.web.aiohttp, and serve it as aiohttp does (docs/aiohttp.md)",
    "klein._app.Klein": "serve SessionSite(app.resource(), manager) with Twisted, and procure sessions with caterwaul.managers.web.klein (docs/klein.md)",
    "twisted.web.resource.Resource": "serve it with SessionSite of caterwaul.managers.web.twisted_web (docs/fronts.md)",
    "twisted.web.server.Site": "make it a SessionSite of caterwaul.managers.web.twisted_web (docs/fronts.md)",
}
_INSIDE = ("application", "app", "wsgi_app", "wsgi_application", "_app")  # where middleware keeps what it wraps
_DEPTH_MAX = 20


class Recognised(NamedTuple):
    framework: str  #: `flask`, `django`, `starlette` (FastAPI too), `pyramid`; empty: none that has a session of its own
    application: Any  #: that framework's object, at the bottom of what wraps it


def refuse_other_kinds(application: Any) -> None:
    """Raises `LocalError`, which says what to do instead, for what servers of WSGI and ASGI do not serve."""
    for kind in type(application).__mro__:
        instead = _ELSEWHERE.get(f"{kind.__module__}.{kind.__qualname__}")
        if instead is not None:
            raise LocalError(f"{kind.__name__} of {kind.__module__.partition('.')[0]} is neither a WSGI nor an ASGI application: {instead}")


def recognise(application: Any) -> Recognised:
    """What this WSGI or ASGI application is. Raises `LocalError` for what cannot be wrapped."""
    if isclass(application):
        raise LocalError(
            f"{application.__qualname__} is a class, and no WSGI or ASGI application: name one of its objects, or a function that makes one, MODULE:make()"
        )
    refuse_other_kinds(application)
    for layer in _layers(application):
        for kind in type(layer).__mro__:
            name = f"{kind.__module__}.{kind.__qualname__}"
            if name in _FRONTS:
                return Recognised(_FRONTS[name], layer)
            if name in _REFUSED:
                raise LocalError(f"the sessions of {kind.__name__} cannot be replaced from outside: {_REFUSED[name]}")
    if "django.core.wsgi" in sys.modules or "django.core.asgi" in sys.modules:
        raise LocalError(
            f"Django is loaded, but {application!r} does not show where its handler is, so its sessions cannot be replaced: "
            "name what get_wsgi_application() or get_asgi_application() gave, or change its settings (docs/django.md)"
        )
    if not _takes(application, 3 if is_asgi(application) else 2):
        raise LocalError(
            f"{application!r} is neither a WSGI application, called with environ and start_response, nor an ASGI one, with scope, receive and send"
        )
    return Recognised("", application)


def _takes(function: Any, arguments: int) -> bool:
    """Whether it can be called with so many, as far as it says."""
    try:
        signature(function).bind(*range(arguments))
    except TypeError:
        return False
    except ValueError:  # what is written in C may not say
        return True
    return True


def is_asgi(application: Any) -> bool:
    """Whether it is called with `scope, receive, send`."""
    return iscoroutinefunction(application) or iscoroutinefunction(type(application).__call__)


def wrapped(application: Any, manager: SessionManager, cookie: CookieSettings) -> Any:
    """What is to be served. `cookie`: for applications that do not say what theirs is like. Raises `LocalError`, as `recognise`."""
    framework, inner = recognise(application)
    if framework:
        import_module(f"{_WEB}.{framework}").replace_sessions(inner, manager, cookie)
        return application
    return AsgiMiddleware(application, manager, cookie) if is_asgi(application) else WsgiMiddleware(application, manager, cookie)


_WEB = AsgiMiddleware.__module__.rpartition(".")[0]


def _layers(application: Any) -> Iterator[Any]:
    """From the outermost to the innermost."""
    for _ in range(_DEPTH_MAX):
        yield application
        inner = next((found for name in _INSIDE if callable(found := getattr(application, name, None))), None)
        if inner is None:
            return
        application = inner
