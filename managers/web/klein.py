"""Klein: `ISessionProcurer` and `ISessionStore`.

    procurer = SessionProcurer.fromAuthorizers([authorizeCart])
    site = SessionSite(app.resource(), manager)  # of twisted_web

Klein asks a session for capabilities, not for keys: an *authorizer* makes, out of the session's data, what provides an interface. It is a
function that Klein's `declareMemoryAuthorizer` has marked; `data` is the session, a mapping.

`SessionProcurer` gives a request of a `SessionSite` its session, with the policy of all other fronts: commit before the first byte, one
cookie with route and token. As with Klein's own, a GET that asks for a session begins one, because Klein's forms show its id while they are
written, when it is too late to begin one; with `beginOnGET=False` nothing is made until something is written. `SessionStore` is for Klein's own procurer: one cookie each for HTTPS and HTTP,
tokens in headers, a session made for each visitor. It does not know when a request ends, so each assignment is a commit of its own, and a
change inside a value has to be assigned again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any

from klein.interfaces import ISession, ISessionProcurer, ISessionStore, NoSuchSession, SessionMechanism
from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.components import Componentized
from zope.interface import implementer

from ...membership.errors import LocalError
from ..base import SessionManager
from ..errors import SessionEnded, SessionUnknown
from ..locks import SessionLock
from ..receipts import DROPPED
from ..session import Session
from .lazily import Lazily

__all__ = ["KleinSession", "SessionProcurer", "SessionStore"]

Data = MutableMapping[str, Any]
#: ``(interface, session, data)`` gives a provider, or None: this session is not allowed that.
Authorizer = Callable[[Any, Any, Data], Any]

_CONFIDENTIAL = "_klein_confidential"  # an id that has travelled in the clear is no secret any more


def _nothing(interface: Any, session: Any, data: Data) -> None:
    return None


def _by_interface(authorizers: Iterable[Any]) -> Authorizer:
    """One authorizer out of many that `declareMemoryAuthorizer` has marked."""
    known = {authorizer.__memoryAuthInterface__: authorizer for authorizer in authorizers}
    return lambda interface, session, data: known.get(interface, _nothing)(interface, session, data)


@implementer(ISession)
class KleinSession:
    """What Klein calls a session: which one, how it came, and what it may do. `data`: what authorizers get."""

    def __init__(self, data: Data, identify: Callable[[], str], confidential: bool, mechanism: SessionMechanism, authorizer: Authorizer) -> None:
        self.data = data
        self.isConfidential = confidential
        self.authenticatedBy = mechanism
        self._identify = identify
        self._authorizer = authorizer

    @property
    def identifier(self) -> str:
        """The id. Klein's forms put it into the page as proof against forged requests, so asking for it begins the session."""
        return self._identify()

    def authorize(self, interfaces: Iterable[Any]) -> Deferred[dict[Any, Any]]:
        found = {interface: self._authorizer(interface, self, self.data) for interface in interfaces}
        return succeed({interface: provider for interface, provider in found.items() if provider is not None})


@implementer(ISessionProcurer)
class SessionProcurer:
    """Sessions of requests that a `SessionSite` serves."""

    def __init__(self, authorizer: Authorizer = _nothing, *, beginOnGET: bool = True) -> None:
        self._authorizer = authorizer
        self._begins = beginOnGET

    @classmethod
    def fromAuthorizers(cls, authorizers: Iterable[Any], *, beginOnGET: bool = True) -> SessionProcurer:
        return cls(_by_interface(authorizers), beginOnGET=beginOnGET)

    def procureSession(self, request: Any, forceInsecure: bool = False) -> Deferred[Any]:
        """As Klein's: the same object each time; `NoSuchSession` for a request that changes something and brought no session."""
        components: Componentized = request
        known = components.getComponent(ISession)
        if known is not None and not forceInsecure:
            return succeed(known)
        session = getattr(request, "caterwaul_session", None)
        if session is None:
            return fail(LocalError("serve the application with SessionSite(app.resource(), manager), of caterwaul.managers.web.twisted_web"))
        if forceInsecure and request.isSecure():
            return fail(NoSuchSession("there is one cookie, and it is the one of secure requests"))
        if session.id is None and not session.unknown and request.method not in (b"GET", b"HEAD"):
            return fail(NoSuchSession(f"no session came with this {request.method.decode('ascii')} request, and only GET begins one"))
        if self._begins and request.method == b"GET" and not session.unknown and not request.startedWriting:
            _begun(session)
        made = KleinSession(session, lambda: _begun(session), bool(request.isSecure()), SessionMechanism.Cookie, self._authorizer)
        components.setComponent(ISession, made)
        return succeed(made)


def _begun(session: Session) -> str:
    if session.id is None:
        session[_CONFIDENTIAL] = True  # the first write gives it an id
    assert session.id is not None, "written"
    return session.id


@implementer(ISessionStore)
class SessionStore:
    """Sessions for Klein's own `SessionProcurer`. Reactor thread. `manager`: or a function that gives it, at the first use."""

    def __init__(self, manager: SessionManager | Callable[[], SessionManager], authorizer: Authorizer = _nothing) -> None:
        self._manager = Lazily(manager if callable(manager) else lambda: manager)
        self._authorizer = authorizer

    @classmethod
    def fromAuthorizers(cls, manager: SessionManager | Callable[[], SessionManager], authorizers: Iterable[Any]) -> SessionStore:
        return cls(manager, _by_interface(authorizers))

    def newSession(self, isConfidential: bool, authenticatedBy: SessionMechanism) -> Deferred[Any]:
        manager = self._manager()
        session = manager.open_local(None)
        assert session is not None, "a new session is nobody else's"
        session[_CONFIDENTIAL] = isConfidential
        receipt = manager.commit(session, touch=False)
        manager.release(session)
        made = self._made(session, isConfidential, authenticatedBy)
        return receipt.deferred().addCallback(lambda _: made) if receipt.needs_wait else succeed(made)

    def loadSession(self, identifier: str, isConfidential: bool, authenticatedBy: SessionMechanism) -> Deferred[Any]:
        """Fails with `NoSuchSession`; with `SessionUnknown` while nobody can say, so that no new one takes its place."""

        def found(session: Session) -> KleinSession:
            self._manager().release(session)
            if session.unknown:
                raise SessionUnknown("the members that could know this session do not answer; try again in a moment")
            if session.id is None or session.get(_CONFIDENTIAL) is not isConfidential:
                raise NoSuchSession("no session has this identifier")
            self._manager().commit(session)  # it is in use
            return self._made(session, isConfidential, authenticatedBy)

        return self._open(identifier).addCallback(found)

    def sentInsecurely(self, identifiers: Iterable[Any]) -> None:
        """Identifiers that came over plain HTTP: the session of one that was for HTTPS ends, since others may have read it."""

        def disclosed(session: Session) -> None:
            if session.get(_CONFIDENTIAL) is True:
                session.invalidate()
                self._manager().commit(session)
            self._manager().release(session)

        for identifier in identifiers:
            text = identifier.decode("latin-1") if isinstance(identifier, bytes) else identifier
            self._open(text).addCallback(disclosed)

    def _open(self, identifier: str) -> Deferred[Session]:
        manager = self._manager()
        session = manager.open_local(identifier)
        return manager.open_deferred(identifier) if session is None else succeed(session)

    def _made(self, session: Session, confidential: bool, mechanism: SessionMechanism) -> KleinSession:
        assert session.id is not None, "loaded, or begun"
        identifier = session.id
        return KleinSession(_AtOnce(self._manager(), session), lambda: identifier, confidential, mechanism, self._authorizer)


class _AtOnce(MutableMapping[str, Any]):
    """A session each assignment of which is a commit."""

    def __init__(self, manager: SessionManager, session: Session) -> None:
        self._manager = manager
        self._session = session

    def __getitem__(self, name: str) -> Any:
        return self._session[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._session[name] = value
        self._commit()

    def __delitem__(self, name: str) -> None:
        del self._session[name]
        self._commit()

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._session if name != _CONFIDENTIAL)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def lock(self, timeout_s: float | None = None, lease_s: float | None = None) -> SessionLock:
        """The session for this request alone: see `Session.lock`."""
        lock = self._session.lock(timeout_s, lease_s)
        lock.gives = self
        return lock

    def _commit(self) -> None:
        if self._manager.commit(self._session) is DROPPED:
            raise SessionEnded("this session has ended")
