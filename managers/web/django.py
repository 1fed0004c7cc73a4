"""Django: `request.session`.

    SESSION_ENGINE = "caterwaul.managers.web.django"
    MIDDLEWARE = ["caterwaul.managers.web.django.SessionMiddleware", ...]  # in the place of Django's own
    CATERWAUL = "node.toml"  # or a dictionary, {"node": {"name": "a"}}: what `ClusterManager` takes

Why a middleware besides the store: with Django's own the cookie is the session's key and nothing else, so there is no route for
a balancer and no token for `read_your_writes`; a shared cache is told `Vary` and not `no-store`; a store that cannot be written is an
error 500; and nobody says when a request is over. Ours is a subclass, which Django's checks accept, keeps Django's idioms (no save for a
5xx, 400 when the session was deleted meanwhile, `SESSION_COOKIE_*`, `SESSION_SAVE_EVERY_REQUEST`) and has the policy of all other fronts. With
Django's own middleware the store works too, without these.

`session_key` is the id. The mapping inside is the session itself: nothing is decoded that is not read, changes inside values are found,
and two requests that change different keys both count. A session expires `get_expiry_age()` seconds after its last use, reads included (and, like
all, after the manager's `absolute_timeout_s`); at a date, if `set_expiry` was given one. Expired sessions go by themselves, so `clearsessions` has nothing to do.

The node starts at the first request of a process: after the fork, and never for `manage.py migrate`. `CATERWAUL_MANAGER` names a function that gives the
session manager, instead of `CATERWAUL`.
"""

# mypy: disable-error-code="misc"
from __future__ import annotations

from collections.abc import Callable
from http.cookies import Morsel, SimpleCookie
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.sessions.backends.base import UpdateError
from django.contrib.sessions.exceptions import SessionInterrupted
from django.contrib.sessions.middleware import SessionMiddleware as DjangoSessionMiddleware
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse

from ...membership.errors import LocalError
from ..base import SessionManager
from ..errors import SessionUnavailable
from ..receipts import Receipt
from ..session import Session
from ..throttle import Origin
from .cookies import CookieSettings, Ticket
from .django_store import EXPIRY, SessionStore, aopen_session, awaited, is_over, open_session, the_manager
from .facade import peek
from .policy import EVENT_STREAM, RETRY_AFTER_S, Front, Visit, unavailable, wait
from .streaming import AsyncStream, Stream
from .wsgi import origin_of

__all__ = ["SessionMiddleware", "SessionStore", "replace_sessions", "the_manager"]

_DJANGOS = "django.contrib.sessions.middleware.SessionMiddleware"


def _cookie_settings() -> CookieSettings:
    """What `SESSION_COOKIE_*` say. Raises `ImproperlyConfigured` for what cannot be honoured."""
    if not settings.SESSION_COOKIE_SAMESITE:
        raise ImproperlyConfigured('SESSION_COOKIE_SAMESITE = False: browsers take a cookie that does not say for "Lax", so say "Lax", "Strict" or "None"')
    try:
        return CookieSettings(
            name=settings.SESSION_COOKIE_NAME,
            secure=bool(settings.SESSION_COOKIE_SECURE),
            http_only=bool(settings.SESSION_COOKIE_HTTPONLY),
            same_site=settings.SESSION_COOKIE_SAMESITE,
            path=settings.SESSION_COOKIE_PATH,
            domain=settings.SESSION_COOKIE_DOMAIN or "",
            route=getattr(settings, "CATERWAUL_ROUTE", True),
        )
    except LocalError as error:
        raise ImproperlyConfigured(f"SESSION_COOKIE_...: {error}") from None


class SessionMiddleware(DjangoSessionMiddleware):
    """In the place of `django.contrib.sessions.middleware.SessionMiddleware`. Sync and async without changing threads."""

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        super().__init__(get_response)
        if self.SessionStore is not SessionStore:
            raise ImproperlyConfigured(f'SESSION_ENGINE = {settings.SESSION_ENGINE!r}: with this middleware set it to "{__name__}"')
        self.front = Front(the_manager, _cookie_settings(), getattr(settings, "CATERWAUL_NO_TOUCH", ()))

    def __call__(self, request: Any) -> Any:
        if self.async_mode:
            return self.__acall__(request)
        try:
            self.process_request(request)
        except SessionUnavailable as error:
            return _unavailable(request, error)
        with _Open(request):
            return self.process_response(request, self.get_response(request))

    async def __acall__(self, request: Any) -> Any:
        try:
            ticket, origin = self._ticket(request), origin_of(request.META)
            session = self.front.local(ticket, origin)
            visit = self._begin(request, ticket, origin, await sync_to_async(self.front.open, thread_sensitive=False)(ticket) if session is None else session)
            if visit.wanted is not None:
                with visit.kept():
                    shared, login = visit.wanted
                    visit.sign_on(await aopen_session(login.id, login.token, shared))
        except SessionUnavailable as error:
            return _unavailable(request, error)
        with _Open(request):
            response = await self.get_response(request)
            try:
                await awaited(self._save(request, response))
            except SessionUnavailable as error:
                response = _unavailable(request, error)
            return self._say(request, response)

    def process_request(self, request: Any) -> None:
        ticket, origin = self._ticket(request), origin_of(request.META)
        session = self.front.local(ticket, origin)
        visit = self._begin(request, ticket, origin, self.front.open(ticket) if session is None else session)
        if visit.wanted is not None:
            with visit.kept():
                shared, login = visit.wanted
                visit.sign_on(open_session(login.id, login.token, shared))

    def process_response(self, request: Any, response: Any) -> Any:
        try:
            wait(self._save(request, response))
        except SessionUnavailable as error:
            response = _unavailable(request, error)
        return self._say(request, response)

    def process_exception(self, request: Any, exception: BaseException) -> Any:
        return _unavailable(request, exception) if isinstance(exception, SessionUnavailable) else None

    def _ticket(self, request: Any) -> Ticket:
        return self.front.ticket((request.META.get("HTTP_COOKIE", ""),), request.path, lambda: request.META.get("HTTP_USER_AGENT", ""))

    def _begin(self, request: Any, ticket: Ticket, origin: Origin, session: Session) -> Visit:
        visit = self.front.admit(ticket, session, request.path, origin)
        visit.renews = settings.SESSION_SAVE_EVERY_REQUEST
        request.session = store = SessionStore(ticket.id, visit)
        request.caterwaul_visit = visit
        if is_over(store, session):
            visit.restart(by_time=True)
            store._bind(visit)
        return visit

    def _save(self, request: Any, response: Any) -> Receipt | None:
        """As Django: nothing for a 5xx; every time, if it is told to."""
        store, visit = request.session, request.caterwaul_visit
        if response.status_code >= 500:
            visit.fail()
        if not isinstance(store, SessionStore):
            return None
        if visit.renews and store.session_key is not None:
            visit.session.accessed = True
        try:
            return None if store.visit is None else store.commit()
        except UpdateError:
            visit.fail()
            raise SessionInterrupted(
                "The request's session was deleted before the request completed. The user may have logged out in a concurrent request, for example."
            ) from None

    def _say(self, request: Any, response: Any) -> Any:
        """Cookie, `Vary` and `Cache-Control`; what a stream writes from here on is committed at its end."""
        visit = request.caterwaul_visit
        visit.max_age_s = lambda: _max_age_s(request.session, visit.session)
        headers = response.headers
        if response.streaming and headers.get("Content-Type", "").startswith(EVENT_STREAM):
            visit.end_turn()
        before = [said for name in ("Vary", "Cache-Control") if (said := headers.pop(name, None)) is not None]  # a name and its value
        for name, value in visit.headers(before):
            if name == "Set-Cookie":  # the session's, and perhaps that of a shared login
                _set_cookie(response.cookies, value)
            else:
                headers[name] = value
        visit.max_age_s = 0  # the request would refer to itself
        if not response.streaming or getattr(response, "file_to_stream", None) is not None:
            visit.release()
        elif response.is_async:
            response.streaming_content = AsyncStream(response.streaming_content, visit)
        else:
            response.streaming_content = Stream(response.streaming_content, visit)
        return response


def _max_age_s(store: SessionStore, session: Session) -> int:
    """Of its cookie; 0: until the browser is closed."""
    expiry = peek(session, EXPIRY)
    closes = settings.SESSION_EXPIRE_AT_BROWSER_CLOSE if expiry is None else expiry == 0
    return 0 if closes else max(1, store.get_expiry_age(expiry=expiry))


def _set_cookie(cookies: SimpleCookie, text: str) -> None:
    """`cookies.load(text)`, for what we have written ourselves: that parses anything, in five times the time."""
    pair, *attributes = text.split("; ")
    name, _, value = pair.partition("=")
    morsel: Morsel[str] = Morsel()
    morsel.set(name, value, value)
    for attribute in attributes:
        key, _, said = attribute.partition("=")
        morsel[key] = said or True
    cookies[name] = morsel


class _Open:
    """A request that is under way: what leaves it as an exception saves nothing."""

    def __init__(self, request: Any) -> None:
        self._visit: Visit = request.caterwaul_visit

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._visit.fail()
            self._visit.release()


def _unavailable(request: Any, error: SessionUnavailable) -> HttpResponse:
    visit = getattr(request, "caterwaul_visit", None)
    if visit is not None:
        visit.fail()
    status, body = unavailable(error)
    code, _, words = status.partition(" ")
    return HttpResponse(body, status=int(code), reason=words, content_type="text/plain", headers={"Retry-After": str(RETRY_AFTER_S)})


def replace_sessions(handler: WSGIHandler | ASGIHandler, manager: SessionManager, cookie: CookieSettings) -> None:
    """For `caterwaul wrap`: of a project that knows nothing of this. Its own `SESSION_COOKIE_*` count. Raises `LocalError`."""
    if _DJANGOS not in settings.MIDDLEWARE:
        raise LocalError(f"settings.MIDDLEWARE does not have {_DJANGOS}, so there is no place for Caterwaul's (docs/django.md)")
    settings.MIDDLEWARE = [f"{__name__}.SessionMiddleware" if name == _DJANGOS else name for name in settings.MIDDLEWARE]
    settings.SESSION_ENGINE = __name__
    settings.CATERWAUL_MANAGER = lambda: manager
    the_manager.forget()
    try:
        handler.load_middleware(is_async=isinstance(handler, ASGIHandler))  # it has been, with what the settings said before
    except ImproperlyConfigured as error:
        raise LocalError(f"the Django project cannot be wrapped: {error}") from error
