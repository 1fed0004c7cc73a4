"""Django's session store over a session manager; `django.py` says how the two fit together.

`SessionBase` keeps a dictionary that is loaded as a whole and saved as a whole. Here the mapping inside is the session itself, so that
nothing is decoded that is not read, a value is checked where it is set, and two requests that change different keys both count. Each
method has the form of Django's, sync and async; both open from memory where this node may say, and only wait where it may not.

A store without a visit (one that no middleware made: in a shell, in a task) opens its session when it is first used.
"""

# mypy: disable-error-code="misc"
from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user
from django.contrib.auth.signals import user_logged_in
from django.contrib.sessions.backends.base import CreateError, SessionBase, UpdateError
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.module_loading import import_string
from django.utils.safestring import SafeString

from ...membership.errors import LocalError
from ..base import SessionManager
from ..errors import LoginRefused
from ..locks import SessionLock
from ..receipts import DROPPED, Receipt
from ..session import Session
from .cookies import CookieSettings, Ticket, read_cookie
from .facade import Underneath, peek, put_again
from .lazily import Lazily
from .policy import Front, Visit, wait

__all__ = ["EXPIRY", "SessionStore", "aopen_session", "awaited", "is_over", "open_session", "the_manager"]

_CLUSTER = "caterwaul.ClusterManager"  # by name, as Django names all its backends: this package knows nothing of clusters
EXPIRY = "_session_expiry"  # Django's name for what `set_expiry` was given
_SHORTEST_S = 1.0
_AS_VALUE = CookieSettings(name="s", secure=False)  # to read what a cookie holds
_NOBODY = ("", "")


def _make_manager() -> SessionManager:
    """What the project's settings name. Raises `ImproperlyConfigured`, and what the start of a node raises."""
    named = getattr(settings, "CATERWAUL_MANAGER", None)
    if named is not None:
        found = import_string(named) if isinstance(named, str) else named
        manager = found() if callable(found) else found
    else:
        manager = _start(getattr(settings, "CATERWAUL", None)).manager()
    with suppress(LocalError):  # registered already
        manager.types.register(SafeString, "django.SafeString", str.__str__, SafeString)
    return manager  # type: ignore[no-any-return]


def _start(given: Any) -> Any:
    if given is None:
        raise ImproperlyConfigured('set CATERWAUL = {"node": {"name": "a"}}, or to the path of a node.toml, or CATERWAUL_MANAGER to the name of a function')
    cluster = import_string(_CLUSTER)(**given) if isinstance(given, Mapping) else import_string(_CLUSTER)(given)
    cluster.start()
    cluster.wait_ready()  # or the first requests might not find what others hold
    return cluster


the_manager = Lazily(_make_manager)  #: call it for this process's session manager
_front = Front(the_manager)  # of stores that no middleware made; its cookie is nobody's


def _forget(*, setting: str, **_: Any) -> None:
    """Tests change settings."""
    if setting in ("CATERWAUL", "CATERWAUL_MANAGER"):
        the_manager.forget()


setting_changed.connect(_forget)


def _logged_in(*, request: Any, user: Any, **_: Any) -> None:
    """Whose session it is, so that all of a user's can be found and ended (`ClusterManager.sessions_of`, `SessionManager.end_all`)."""
    session = getattr(request, "session", None)
    if isinstance(session, SessionStore):
        try:
            session.principal = str(user.pk)
        except LoginRefused:  # whoever catches it shows a page to nobody
            for name in (SESSION_KEY, BACKEND_SESSION_KEY, HASH_SESSION_KEY):
                session.pop(name, None)
            request.user = get_user(request)
            raise


user_logged_in.connect(_logged_in)


class SessionStore(SessionBase):
    """A session as Django has it. `session_key`: an id, or all that the cookie holds. Not for two threads at a time.

    Writes raise `ValueRefused` where a value is set, `SessionUnknown` while nobody knows the session (the middleware answers 503).
    `acks`, `principal`, `role`, `max_age_s`, `quarantined`, `signed_on`, `stale`, `unknown`, `size_bytes`, `largest`, `tab` and `tabs` are those of `Session`.
    """

    acks, principal, role, max_age_s, quarantined, signed_on, stale, unknown, size_bytes, largest, tab, tabs = (Underneath() for _ in range(12))

    def __init__(self, session_key: str | None = None, visit: Visit | None = None) -> None:
        ticket = read_cookie(_AS_VALUE, (f"{_AS_VALUE.name}={session_key}",)) if session_key and visit is None else Ticket()
        self._session_key = ticket.id or session_key  # instead of Django's `__init__`, which looks up the serializer each time
        self.accessed = self.modified = False
        self._token = ticket.token
        self.visit = visit  #: None until something is read or written
        if visit is not None:
            self._bind(visit)

    @cached_property
    def serializer(self) -> Any:
        """Of `encode` and `decode`, which are not used here."""
        return import_string(settings.SESSION_SERIALIZER)

    # -- the session inside

    @property
    def underneath(self) -> Session:
        return self._get_session()

    def lock(self, timeout_s: float | None = None, lease_s: float | None = None) -> SessionLock:
        """The session for this request alone, `with` in a sync view and `async with` in an async one: see `Session.lock`."""
        lock = self._get_session().lock(timeout_s, lease_s)
        lock.gives = self
        return lock

    def _bind(self, visit: Visit) -> Session:
        """From now on this is the session."""
        self.visit = visit
        self._session_cache = visit.session
        if not visit.session.unknown:
            self._session_key = None if visit.session.new else visit.session.id
        return visit.session

    def _adopt(self, session: Session) -> Session:
        """A session that was opened without a request: nobody says when its use ends, so it ends here."""
        visit = _front.admit(Ticket(session.id), _unless_over(self, session), "", _NOBODY)
        visit.manager.release(visit.session)
        return self._bind(visit)

    def _get_session(self, no_load: bool = False) -> Session:
        self.accessed = True
        if "_session_cache" not in self.__dict__:
            return self._adopt(open_session(None if no_load else self.session_key, self._token))
        return self._session_cache

    async def _aget_session(self, no_load: bool = False) -> Session:
        self.accessed = True
        if "_session_cache" not in self.__dict__:
            return self._adopt(await aopen_session(None if no_load else self.session_key, self._token))
        return self._session_cache

    _session = property(_get_session)

    # -- what Django asks of a store

    def load(self) -> Session:
        return self._loaded(open_session(self.session_key, self._token))

    async def aload(self) -> Session:
        return self._loaded(await aopen_session(self.session_key, self._token))

    def _loaded(self, session: Session) -> Session:
        session = _unless_over(self, session)
        _front.manager.release(session)
        if session.id is None and not session.unknown:
            self._session_key = None  # an id that nobody knows is never adopted
        return session

    def exists(self, session_key: str | None) -> bool:
        return _exists(open_session(session_key))

    async def aexists(self, session_key: str | None) -> bool:
        return _exists(await aopen_session(session_key))

    def save(self, must_create: bool = False) -> None:
        self._get_session(must_create)
        wait(self._save(must_create))

    async def asave(self, must_create: bool = False) -> None:
        await self._aget_session(must_create)
        await awaited(self._save(must_create))

    def create(self) -> None:
        wait(self._create())

    async def acreate(self) -> None:
        await awaited(self._create())

    def delete(self, session_key: str | None = None) -> None:
        key = session_key or self.session_key
        if key is not None:
            wait(_end(open_session(key)))

    async def adelete(self, session_key: str | None = None) -> None:
        key = session_key or self.session_key
        if key is not None:
            await awaited(_end(await aopen_session(key)))

    def flush(self) -> None:
        self._get_session()
        wait(self._flush())

    async def aflush(self) -> None:
        await self._aget_session()
        await awaited(self._flush())

    def cycle_key(self) -> None:
        self._get_session()
        wait(self._cycle())

    async def acycle_key(self) -> None:
        await self._aget_session()
        await awaited(self._cycle())

    def clear(self) -> None:
        session = self._get_session()
        for name in list(session):
            del session[name]
        self.modified = True

    @classmethod
    def clear_expired(cls) -> None:
        """Nothing to do: each session is ended when its time has come."""

    @classmethod
    async def aclear_expired(cls) -> None:
        """Nothing to do."""

    # -- the same for both ways of waiting

    def commit(self) -> Receipt | None:
        """Save what was changed. Raises `UpdateError` where the session was deleted meanwhile, and what a commit raises."""
        visit = self.visit
        assert visit is not None, "opened"
        session = visit.session
        if self.modified:
            put_again(session, visit.manager.settings.save_mode)
        changed = session.modified
        if changed and session.id is not None and not session.ended and (not session.new or len(session)):
            self._limit(session)
        receipt = visit.save()
        if receipt is DROPPED and changed:
            raise UpdateError
        if not session.unknown:
            self._session_key = None if session.new or session.ended else session.id
        return receipt

    def _save(self, must_create: bool) -> Receipt | None:
        session = self._session_cache
        if must_create and self.session_key is not None:
            raise CreateError
        if session.new:
            self._limit(session)  # an empty session is one too, if it is saved
        return self.commit()

    def _create(self) -> Receipt | None:
        """Django's `create`: another session with what this one holds."""
        contents = dict(self._session_cache) if "_session_cache" in self.__dict__ else {}
        session = (_front if self.visit is None else self.visit).manager.open_local(None)
        assert session is not None, "a new session is nobody else's"
        self._adopt(session).update(contents)
        self.modified = True
        return self._save(True)

    def _flush(self) -> Receipt | None:
        assert self.visit is not None, "opened"
        receipt = self.visit.restart()
        self._bind(self.visit)
        self.modified = True
        return receipt

    def _cycle(self) -> Receipt | None:
        self._session_cache.cycle_id()
        self.modified = True
        try:
            return self._save(False)
        except UpdateError:  # a parallel login or logout was first: what this one writes begins a session
            return self._save(False)

    def _limit(self, session: Session) -> None:
        """Django's expiry as the session's idle limit. What ends at a date is looked at when it is opened; its limit must not be less."""
        expiry = peek(session, EXPIRY)
        seconds = max(_SHORTEST_S, self.get_expiry_age(expiry=expiry))
        if session.new or session.max_idle_s < seconds or (session.max_idle_s != seconds and not isinstance(expiry, str)):
            session.max_idle_s = seconds


def open_session(key: str | None, token: str = "", front: Front = _front) -> Session:
    session = front.manager.open_local(key, token)
    return front.manager.open(key, token) if session is None else session


async def aopen_session(key: str | None, token: str = "", front: Front = _front) -> Session:
    """From memory if this node may say, else in a thread."""
    session = front.manager.open_local(key, token)
    return await sync_to_async(front.manager.open, thread_sensitive=False)(key, token) if session is None else session


async def awaited(receipt: Receipt | None) -> None:
    if receipt is not None and receipt.needs_wait:
        await sync_to_async(receipt.wait, thread_sensitive=False)()


def _exists(session: Session) -> bool:
    """Unknown counts: nothing may be put in its place."""
    _front.manager.release(session)
    return session.id is not None or session.unknown


def _end(session: Session, by_time: bool = False) -> Receipt | None:
    visit = _front.admit(Ticket(session.id), session, "", _NOBODY)
    try:
        visit.end(by_time)
        return visit.save()
    finally:
        visit.release()


def is_over(store: SessionStore, session: Session) -> bool:
    """Whether the date has come that `set_expiry` was given."""
    if session.id is None:
        return False
    expiry = peek(session, EXPIRY)
    return bool(expiry) and store.get_expiry_age(expiry=expiry) <= 0


def _unless_over(store: SessionStore, session: Session) -> Session:
    if not is_over(store, session):
        return session
    _end(session, by_time=True)
    return open_session(None)
