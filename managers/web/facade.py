"""What frameworks hand out for a session: a mapping in their own idiom, over the session of the request's visit.

The session underneath stays in charge: values are checked when they are set, changes inside values are found, and nothing is
decoded that is not read. A facade adds what its framework's users know (`permanent`, `flash`, `clear` as logout).
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from typing import Any

from markupsafe import Markup

from ...membership.errors import LocalError
from ..locks import SessionLock
from ..session import Session
from ..values import ValueTypes
from .policy import Visit

__all__ = ["SessionFacade", "Underneath", "peek", "put_again", "register_markup"]


class Underneath:
    """An attribute of the session itself, to read and to set; of a class with a property `underneath`."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, facade: Any, owner: type | None = None) -> Any:
        return self if facade is None else getattr(facade.underneath, self._name)

    def __set__(self, facade: Any, value: Any) -> None:
        setattr(facade.underneath, self._name, value)


class SessionFacade(MutableMapping[str, Any]):
    """Attributes and errors as of `Session`. Of one request; not for two threads at a time."""

    id, new, unknown, ended, quarantined, stale = (Underneath() for _ in range(6))
    acks, principal, signed_on, role, max_idle_s, max_age_s, size_bytes, largest, tab, tabs = (Underneath() for _ in range(10))

    def __init__(self, visit: Visit) -> None:
        self.visit = visit

    @property
    def underneath(self) -> Session:
        return self.visit.session

    @property
    def is_primary(self) -> bool:
        """Whether this node is the session's primary: where a sticky balancer should send its requests."""
        return self.visit.is_primary

    def __repr__(self) -> str:
        return repr(self.visit.session)

    def __getitem__(self, name: str) -> Any:
        return self.visit.session[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.visit.session[name] = value

    def __delitem__(self, name: str) -> None:
        del self.visit.session[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.visit.session)

    def __len__(self) -> int:
        return len(self.visit.session)

    def login(self, principal: str, role: str | None = None, **about: str) -> None:
        """A new id, and who has logged in: see `Session.login`."""
        self.visit.session.login(principal, role, **about)

    def cycle_id(self) -> None:
        """A new id for the same contents, at login: see `Session.cycle_id`."""
        self.visit.session.cycle_id()

    def lock(self, timeout_s: float | None = None, lease_s: float | None = None) -> SessionLock:
        """The session for this request alone: see `Session.lock`."""
        lock = self.visit.session.lock(timeout_s, lease_s)
        lock.gives = self
        return lock

    def invalidate(self) -> None:
        """The end of the session, at logout: see `Session.invalidate`. Raises `SessionUnknown` where nobody knows whether there is one to end."""
        self.visit.end()


def peek(session: Session, name: str, default: Any = None) -> Any:
    """An attribute that the front reads for itself: that is no use of the session."""
    if type(session) is Session and session.hidden(name) is None:  # mostly; a transient one is not seen so
        return default
    accessed = session.accessed
    value = session.get(name, default)
    session.accessed = accessed
    return value


def put_again(session: Session, save_mode: str) -> None:
    """The application says that something inside a value has changed. That is found anyway, except where only what was set is looked at."""
    if save_mode == "on_set" and not session.unknown:
        for name in list(session):
            session[name] = session[name]


def register_markup(types: ValueTypes) -> None:
    """Let sessions hold `Markup`: templates give it, and flashed messages carry it."""
    with suppress(LocalError):  # another application of this process has done it
        types.register(Markup, "markupsafe.Markup", str.__str__, Markup)
