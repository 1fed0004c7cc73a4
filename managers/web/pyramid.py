"""Pyramid: `request.session`.

    config.include("caterwaul.managers.web.pyramid")
    config.set_session_factory(SessionFactory(manager))  # or a function that gives the manager, called once in each process

A session is opened when a view first asks for `request.session`, and committed by a response callback: when the view has
returned, before the first byte leaves. What a stream (`app_iter`) writes after that is committed at its end, and cannot begin a session. `include` gives
a session that cannot be saved its answer, 503 or 429. An exception that becomes an error 500 saves nothing; others (a redirect that is raised, a 404) are answers.

`invalidate()` ends the session at once, and what is written after it goes into a new one, as Pyramid has it.
"""

# mypy: disable-error-code="misc"
from __future__ import annotations

import time
from binascii import hexlify
from collections.abc import Callable, Sequence
from os import urandom
from typing import Any

from pyramid.config import Configurator
from pyramid.interfaces import ISession, ISessionFactory
from pyramid.response import FileIter, Response
from zope.interface import implementer

from ..base import SessionManager
from ..errors import SessionUnavailable
from .cookies import CookieSettings
from .facade import SessionFacade, put_again, register_markup
from .lazily import Lazily
from .policy import RETRY_AFTER_S, Front, Visit, unavailable, wait
from .streaming import Stream
from .wsgi import open_visit

__all__ = ["PyramidSession", "SessionFactory", "includeme", "replace_sessions"]

_CSRF = "_csrft_"
_FLASH = "_f_"


@implementer(ISession)
class PyramidSession(SessionFacade):
    """A mapping, with `created`, `flash`, CSRF tokens, and what `SessionFacade` has besides."""

    @property
    def created(self) -> int:
        """Seconds since 1970, by this node's clock."""
        return int(time.time() - self.visit.manager.age_s(self.visit.session))

    def changed(self) -> None:
        """Something inside a value has changed. That is found anyway."""
        put_again(self.visit.session, self.visit.manager.settings.save_mode)

    def invalidate(self) -> None:
        wait(self.visit.restart())

    def flash(self, msg: Any, queue: str = "", allow_duplicate: bool = True) -> None:
        waiting = self.get(_FLASH + queue, [])
        if allow_duplicate or msg not in waiting:
            self[_FLASH + queue] = [*waiting, msg]

    def pop_flash(self, queue: str = "") -> list[Any]:
        return list(self.pop(_FLASH + queue, ()))

    def peek_flash(self, queue: str = "") -> list[Any]:
        return list(self.get(_FLASH + queue, ()))

    def new_csrf_token(self) -> str:
        self[_CSRF] = token = hexlify(urandom(20)).decode("ascii")
        return token

    def get_csrf_token(self) -> str:
        return self.get(_CSRF) or self.new_csrf_token()


@implementer(ISessionFactory)
class SessionFactory:
    """Makes the session of a request. `manager`, `no_touch`: see `Front`."""

    def __init__(self, manager: SessionManager | Callable[[], SessionManager], cookie: CookieSettings | None = None, *, no_touch: Sequence[str] = ()) -> None:
        self.front = Front(Lazily(lambda: _prepared(manager)), cookie, no_touch)

    def __call__(self, request: Any) -> PyramidSession:
        visit = open_visit(self.front, request.environ)
        request.add_response_callback(lambda request, response: _commit(request, response, visit))
        request.add_finished_callback(lambda request: _finished(request, visit))
        return PyramidSession(visit)


def _prepared(manager: SessionManager | Callable[[], SessionManager]) -> SessionManager:
    made = manager() if callable(manager) else manager
    register_markup(made.types)
    return made


def _commit(request: Any, response: Any, visit: Visit) -> None:
    """The view has returned, or an exception view."""
    if request.exception is not None and response.status_code >= 500:
        visit.fail()
    try:
        wait(visit.save())
    except SessionUnavailable as error:
        visit.fail()
        _refuse(response, error)
    response.headerlist = visit.headers(response.headerlist)
    if not isinstance(response.app_iter, list | tuple | FileIter):
        response.app_iter = Stream(response.app_iter, visit)
        request.caterwaul_streams = True


def _finished(request: Any, visit: Visit) -> None:
    """The request is over; its stream, if it has one, begins now."""
    if not getattr(request, "caterwaul_streams", False):
        visit.release()


def _unavailable(error: SessionUnavailable, request: Any) -> Response:
    response = Response()
    _refuse(response, error)
    return response


def _refuse(response: Any, error: SessionUnavailable) -> None:
    """Make this answer one that says so. It is too late for exception views: they run before the callbacks."""
    close = getattr(response.app_iter, "close", None)
    if close is not None:
        close()
    response.status, response.body = unavailable(error)
    response.headerlist = [("Content-Type", "text/plain"), ("Content-Length", str(len(response.body))), ("Retry-After", str(RETRY_AFTER_S))]


def includeme(config: Any) -> None:
    """`config.include`: the answer where a session cannot be saved. An application's own view of `SessionUnavailable` takes its place."""
    config.add_exception_view(_unavailable, context=SessionUnavailable)


def replace_sessions(router: Any, manager: SessionManager, cookie: CookieSettings) -> None:
    """For `caterwaul wrap`: of an application that is made already. Its own factory does not say what its cookie is like, so `cookie` counts."""
    config = Configurator(registry=router.registry)
    includeme(config)
    config.set_session_factory(SessionFactory(manager, cookie))
    config.commit()
