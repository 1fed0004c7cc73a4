"""Who is logged in, as one request sees it: a part of `Session`.

A login made by the application writes the principal, what the login says (`principals.py`) and a new id. A login that is *offered*, by a single sign-on that the
browser is part of (`web/single.py`), becomes one when the application first asks who is there: a page that does not ask begins no session for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from .errors import LoginRefused
from .limits import Role, read_role
from .principals import TAG_BYTES, check_login
from .record import LOGIN, LOGIN_NUMBER, PRINCIPAL, ROLE, SIGNED_ON
from .settings import ManagerSettings

__all__ = ["Identity", "Offer"]


class Offer(NamedTuple):
    """A login of this browser that is shared with other applications. `login`: the register of the session that has it. `is_taken`: asking for the principal takes it; else
    the application is only told of it."""

    principal: str
    login: bytes | None
    tag: bytes
    is_taken: bool


class Shared(NamedTuple):
    """What a login has of the one that it is one with."""

    login: bytes | None
    tag: bytes


class Identity:
    """What it uses of the session is that one's. Not for two threads at a time."""

    __slots__ = ("accessed", "admitted", "is_shared", "logged_in", "offered", "origin")

    accessed: bool
    admitted: str | None  #: of this principal the other members have been asked whether there is room for one more session
    logged_in: bool  #: by this request, and not committed yet
    is_shared: bool  #: the login that this request makes is one that another application has made
    offered: Offer | None
    origin: tuple[str, str]  #: of the request, see `Audited`; the front says it
    _entropy: Callable[[int], bytes]
    _frozen: bool
    _stamp: Callable[[str, Mapping[str, str], bytes, bool, tuple[str, str] | None], tuple[bytes, bytes]] | None
    _settings: ManagerSettings
    key: bytes

    @property
    def principal(self) -> str | None:
        """Who is logged in, as the application names them; replicated. Setting another than it was is a login. None: nobody."""
        self.accessed = True
        offer = self.offered
        if offer is not None and offer.is_taken:
            if self._frozen:
                return offer.principal  # too late for a new id; the next request has it
            try:
                self.sign_on(offer.principal, offer.login, offer.tag)
            except LoginRefused:  # nobody asked for it, so nobody is told
                self.offered = offer._replace(is_taken=False)
        value = self._current(PRINCIPAL)
        return None if value is None else value.decode("utf-8", "replace")  # a peer may have sent anything

    @principal.setter
    def principal(self, name: str | None) -> None:
        if name is not None:
            check_login(name, {})
        if name == self.principal:  # no login: its epoch stays that of the one before
            self._check_writable()
        else:
            self._log_in(name, {})

    @property
    def signed_on(self) -> str | None:
        """Who is logged in with this browser in another application that shares its logins with this one, while nobody is here. For a form that asks
        them for their password again (`sso_reauthenticate`), and then logs them in."""
        self.accessed = True
        return None if self.offered is None else self.offered.principal

    def login(self, principal: str, role: str | None = None, **about: str) -> None:
        """Log in: a new id (against fixation), and `principal`, also if it is logged in already. `role`: with its limits, see the property. `about`: what
        `ClusterManager.sessions_of` is to show of it, such as ``device="Firefox on Linux", address="192.0.2.7"``; short texts. Raises `ValueRefused`, and `SessionError` when the headers are sent.

        With `principal_sessions_policy = "refuse"` also `LoginRefused`; to know that other members may have to be asked, which a thread waits for. In asyncio use
        `web.waiting.log_in`, in the reactor's thread `SessionManager.login_deferred`."""
        check_login(principal, about)
        self._check_changeable()
        chosen = None if role is None else Role.of(role, self._settings.role_timeouts)
        self._log_in(principal, about)
        self._become(chosen)
        self.cycle_id()

    @property
    def role(self) -> str | None:
        """What the session is logged in as; replicated. It decides about the session's limits, as `managers.NAME.role_timeouts` has them when it is set; one that is not in there
        leaves those of the manager. Whoever gets more rights should get a new id too (`login`, `cycle_id`). Another login ends it. None: none."""
        self.accessed = True
        found = read_role(self._current(ROLE))
        return None if found is None else found.name

    @role.setter
    def role(self, name: str | None) -> None:
        self._check_writable()
        self._become(None if name is None else Role.of(name, self._settings.role_timeouts))

    def _become(self, role: Role | None) -> None:
        value = None if role is None else role.pack()
        if value != self._current(ROLE):
            self._put(ROLE, value)

    def sign_on(self, principal: str, login: bytes | None, tag: bytes | None) -> bytes:
        """For fronts: a login that is one with those of other applications which have this tag. None: a new one, which is returned. `login`: the register `LOGIN` of the session
        that it comes from. It is not made anew: an end of all that came after that login ends this one, too."""
        made = tag or self._entropy(TAG_BYTES)
        self._check_changeable()
        self._log_in(principal, {}, Shared(login, made))
        self.cycle_id()
        return made

    def _log_in(self, name: str | None, about: Mapping[str, str], shared: Shared | None = None) -> None:
        self._check_writable()
        asks, login, number = shared is None, None, None
        if name is not None and self._stamp is not None:
            login, number = self._stamp(name, about, self.key, asks and name != self.admitted, self.origin if asks else None)
        if shared is not None:
            login = shared.login
        self.offered = self.admitted = None
        self._become(None)
        for register, value in (
            (PRINCIPAL, None if name is None else name.encode()),
            (LOGIN, login),
            (LOGIN_NUMBER, number),
            (SIGNED_ON, shared and shared.tag),
        ):
            if value != self._current(register):
                self._put(register, value)
        self.logged_in, self.is_shared = name is not None, not asks

    # -- of the session

    def cycle_id(self) -> None:
        raise NotImplementedError

    def _check_writable(self) -> None:
        raise NotImplementedError

    def _check_changeable(self) -> None:
        raise NotImplementedError

    def _current(self, name: str) -> bytes | None:
        raise NotImplementedError

    def _put(self, name: str, encoded: bytes | None) -> None:
        raise NotImplementedError
