"""Flask: `flask.session`.

    app = Flask(__name__)
    CaterwaulSession(app, manager)  # or a function that gives the manager, called once in each process

Flask saves a session when the view has returned: too early for what a stream writes, and with no say over an answer whose
session cannot be saved. So this is two things: the `SessionInterface`, which hands out the session and keeps Flask's idioms, and
around the application the middleware of `wsgi.py`, which opens and commits as in every other front.

`SESSION_COOKIE_*` of the configuration are read at the first request; the name stands as it is (the default is `session`, over plain HTTP too).
A session that is `permanent` expires, and its cookie with it, after `PERMANENT_SESSION_LIFETIME` without use (and, like all, after the
manager's `absolute_timeout_s`). An exception that no error handler takes saves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

from flask import Flask, Request, Response, got_request_exception, request
from flask.sessions import SessionInterface, SessionMixin

from ...membership.errors import LocalError
from ..base import SessionManager
from ..errors import SessionUnavailable
from .cookies import CookieSettings
from .facade import SessionFacade, peek, put_again, register_markup
from .lazily import Lazily
from .policy import RETRY_AFTER_S, Visit, unavailable, wait
from .wsgi import SessionMiddleware, open_visit

__all__ = ["CaterwaulSession", "FlaskSession", "cookie_settings", "replace_sessions"]

_EXTENSION = "caterwaul"


class FlaskSession(SessionFacade, SessionMixin):
    """`flask.session`: a mapping, with `permanent`, `new`, `modified`, and what `SessionFacade` has besides.

    `clear()` is a logout: it ends the session. What is set after it goes on under a new id, so that one which somebody else may
    know is worth nothing after a login.
    """

    def __init__(self, visit: Visit, app: Flask, alone: bool) -> None:
        super().__init__(visit)
        self.alone = alone  #: without the middleware: a test's `session_transaction`
        self.cleared = False
        self._app = app

    @property
    def permanent(self) -> bool:
        """Outlives the browser's being closed, for `PERMANENT_SESSION_LIFETIME`. Saying again what holds already changes nothing."""
        return bool(self.get("_permanent", False))

    @permanent.setter
    def permanent(self, value: bool) -> None:
        if bool(value) != self.permanent:
            self["_permanent"] = bool(value)
            self.max_idle_s = self._app.permanent_session_lifetime.total_seconds() if value else None

    @property
    def modified(self) -> bool:
        """Whether there may be something to save, or was. Changes inside values are found; to set this is never needed."""
        return self.visit.wrote or self.visit.session.modified

    @modified.setter
    def modified(self, value: bool) -> None:
        if value:
            put_again(self.visit.session, self.visit.manager.settings.save_mode)

    def clear(self) -> None:
        if self.unknown:
            self.invalidate()  # which says why not
        for name in list(self):
            del self[name]
        if self.principal is not None:
            self.principal = None
        self.cleared = True


class CaterwaulSession(SessionInterface):
    """Gives a Flask application its sessions. `no_touch`: see `Front`.

    `cookie`: instead of what the application's `SESSION_COOKIE_*` say. Without `app`, call `init_app` later.
    """

    session_class = FlaskSession

    def __init__(
        self,
        app: Flask | None = None,
        manager: SessionManager | Callable[[], SessionManager] | None = None,
        *,
        cookie: CookieSettings | None = None,
        no_touch: Sequence[str] = (),
    ) -> None:
        self._manager = manager
        self._cookie = cookie
        self._no_touch = no_touch
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask, manager: SessionManager | Callable[[], SessionManager] | None = None) -> None:
        """Give this application its sessions. Raises `LocalError` without a manager, and when it has them already."""
        chosen = manager or self._manager
        if chosen is None:
            raise LocalError("CaterwaulSession needs a session manager: CaterwaulSession(app, manager)")
        if _EXTENSION in app.extensions:
            raise LocalError(f"the application {app.name!r} has Caterwaul's sessions already")
        app.extensions[_EXTENSION] = outer = _Outer(app, chosen, self._cookie, self._no_touch)
        app.wsgi_app = outer  # type: ignore[method-assign]  # Flask's documented place for middleware
        app.session_interface = self
        app.register_error_handler(SessionUnavailable, _unavailable)
        got_request_exception.connect(_failed, app)

    def is_null_session(self, obj: object) -> bool:
        return False  # Flask's own looks at the class in a way that costs a microsecond

    def open_session(self, app: Flask, request: Request) -> FlaskSession:
        outer = app.extensions.get(_EXTENSION)
        if outer is None:
            raise LocalError("set up the application with CaterwaulSession(app, manager), not with app.session_interface alone")
        visit = request.environ.get("caterwaul.visit")
        alone = visit is None
        if visit is None:
            visit = open_visit(outer.middleware.front, request.environ, in_turn=False)
            visit.manager.release(visit.session)  # nobody says when this one ends
        return self.session_class(visit, app, alone)

    def save_session(self, app: Flask, session: FlaskSession, response: Response) -> None:  # type: ignore[override]  # what open_session gave
        """The view has returned: decide about id and cookie. The middleware commits when the first byte leaves."""
        visit, underneath = session.visit, session.visit.session
        if session.cleared and not underneath.ended:
            session.invalidate() if not session else session.cycle_id()
        if peek(underneath, "_permanent"):
            visit.max_age_s = int(app.permanent_session_lifetime.total_seconds())
        visit.renews = bool(app.config["SESSION_REFRESH_EACH_REQUEST"])
        if session.alone:
            wait(visit.save())
            for name, value in visit.headers(()):
                response.headers.add(name, value)


class _Outer:
    """Around the application; made of its configuration at the first request."""

    def __init__(self, app: Flask, manager: SessionManager | Callable[[], SessionManager], cookie: CookieSettings | None, no_touch: Sequence[str]) -> None:
        self._app = app
        self._inner = app.wsgi_app
        self._manager = Lazily(lambda: _prepared(manager))
        self._cookie = cookie
        self._no_touch = no_touch

    @cached_property
    def middleware(self) -> SessionMiddleware:
        return SessionMiddleware(self._inner, self._manager, self._cookie or cookie_settings(self._app), no_touch=self._no_touch)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        return self.middleware(environ, start_response)


def _prepared(manager: SessionManager | Callable[[], SessionManager]) -> SessionManager:
    made = manager() if callable(manager) else manager
    register_markup(made.types)
    return made


def cookie_settings(app: Flask) -> CookieSettings:
    """What the application's configuration says about its cookie. Raises `LocalError` for what cannot be honoured."""
    config, interface = app.config, app.session_interface
    same_site = config["SESSION_COOKIE_SAMESITE"] or "Lax"  # None is Flask's "say nothing", which browsers take for Lax
    try:
        return CookieSettings(
            name=interface.get_cookie_name(app),
            secure=interface.get_cookie_secure(app),
            http_only=interface.get_cookie_httponly(app),
            same_site=same_site,
            path=interface.get_cookie_path(app),
            domain=interface.get_cookie_domain(app) or "",
            partitioned=interface.get_cookie_partitioned(app),
        )
    except LocalError as error:
        raise LocalError(f"SESSION_COOKIE_...: {error}") from None


def _unavailable(error: SessionUnavailable) -> Response:
    """A write that cannot be: the application's own handler for this class takes precedence."""
    status, body = unavailable(error)
    return Response(body, status, {"Retry-After": str(RETRY_AFTER_S)}, mimetype="text/plain")


def _failed(sender: Flask, exception: BaseException, **_: Any) -> None:
    """No handler takes this exception: Flask makes an error page of it, and nothing is saved."""
    visit = request.environ.get("caterwaul.visit")
    if visit is not None:
        visit.fail()


def replace_sessions(app: Flask, manager: SessionManager, cookie: CookieSettings) -> None:
    """For `caterwaul wrap`: of an application that knows nothing of this. Its own `SESSION_COOKIE_*` count. Raises `LocalError`."""
    CaterwaulSession(app, manager)
    cookie_settings(app)  # says now what is wrong with them
