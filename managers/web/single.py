"""Single sign-on: applications of a cluster share their logins. One login, one logout.

A shared login is an *entry*: a session of a manager of its own, with a cookie of its own, that holds a principal, what the login said, and its tag. All
sessions of the applications that have come from it keep the tag too (`principals.py`). So nobody keeps a list of them, which two nodes could write at the same time
or a partition could tear: a logout is one epoch under the tag, and ends whatever has it, wherever that is and whenever it comes back.

A request without a login in its application, whose browser shows the cookie of a live entry, is *offered* that login (`identity.py`). The entry lives as long as some
application is used with it. Its end by time ends no session, and the end of a session by time ends nothing else; a logout does. A login as somebody else is a logout before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...membership.knobs import knob
from ..identity import Offer
from ..receipts import Joined, Receipt
from ..record import LOGIN, PRINCIPAL, SIGNED_ON
from ..session import Session
from ..throttle import Origin
from .cookies import CookieSettings, Ticket, delete_cookie

if TYPE_CHECKING:
    from ..base import SessionManager
    from .policy import Front, Visit

__all__ = ["SignOn", "SingleSignOn", "SsoCookieSettings"]


@dataclass(frozen=True)
class SsoCookieSettings(CookieSettings):
    """Table `[sso.NAME.cookie]`: the cookie of shared logins. Applications on several hosts need a domain, and then a name without `__Host-`."""

    name: str = knob(
        "__Host-sso",
        "Name. For applications on several hosts of one domain: `__Secure-sso`, and that `domain`. Browsers accept `__Host-` only for one host and the path `/`.",
    )
    route: bool = knob(False, "Append `.NODE`. Balancers go by the applications' own cookies.")


@dataclass(frozen=True)
class SingleSignOn:
    """What one application knows of the logins that it shares. `manager` holds the entries; `reauthenticates`: a login elsewhere is none here."""

    manager: SessionManager
    cookie: CookieSettings
    reauthenticates: bool = False


class SignOn:
    """One request's part in it. Not for two threads at a time. `front`: of the entries."""

    __slots__ = ("_entry", "_forgets", "_front", "_had", "_made", "_mine", "_offer", "_origin", "_reauthenticates", "_tags", "_ticket", "wanted")

    def __init__(self, front: Front, reauthenticates: bool, ticket: Ticket | None, session: Session, origin: Origin) -> None:
        self._front = front
        self._reauthenticates = reauthenticates
        self._ticket = ticket or Ticket()
        self._origin = origin
        self._entry: Visit | None = None
        self._offer: Offer | None = None
        tag, principal = session.hidden(SIGNED_ON), session.hidden(PRINCIPAL)
        self._mine = None if tag is None or principal is None else (principal.decode("utf-8", "replace"), tag)  # the shared login that the session is of
        self._had = principal is not None  # somebody is logged in, whose logout counts for all
        self._tags = set() if tag is None else {tag}  # what a logout ends
        self._made = False  # the entry, by this request
        self._forgets = False  # the browser is to forget its entry
        self.wanted: Ticket | None = None  #: an entry that others have to be asked for before the application runs
        if self._ticket.id is None or session.unknown:
            return
        found = front.local(self._ticket, origin)
        if found is not None:
            self.opened(found, session)
        elif not self._had:
            self.wanted = self._ticket

    def opened(self, entry: Session, session: Session) -> None:
        """The entry that the browser's cookie names, or what is in its place."""
        self.wanted = None
        self._entry = self._front.admit(self._ticket, entry, "", self._origin)
        tag, principal = entry.hidden(SIGNED_ON), entry.hidden(PRINCIPAL)
        if tag is None or principal is None:
            return
        self._tags.add(tag)
        self._offer = Offer(principal.decode("utf-8", "replace"), entry.hidden(LOGIN), tag, not self._reauthenticates)
        self._had = self._had or not self._reauthenticates
        self.offer(session)

    def offer(self, session: Session) -> None:
        """To this session, in which nobody is logged in."""
        if not session.unknown and session.hidden(PRINCIPAL) is None:
            session.offered = self._offer

    def settle(self, session: Session, touch: bool) -> Receipt | None:
        """Before each commit of the session: its login, or its logout, becomes that of all. `touch`: the commit says that it is in use. May raise what a commit raises."""
        if session.hidden(PRINCIPAL) is None and self._had and (session.ended or session.offered is None):
            return self._log_out()
        if session.logged_in:
            self._had = True
            if session.hidden(SIGNED_ON) is None:
                return self._log_in(session)
        if touch:
            self._keep()
        return None

    def dropped(self) -> None:
        """The commit came too late: somebody had ended the session. A login that was to be shared with it is nobody's."""
        self._had = False
        if self._made:
            self._log_out()

    def cookie(self) -> str | None:
        """The value of a second `Set-Cookie`, or None."""
        if self._forgets:
            return delete_cookie(self._front.cookie) if self._ticket.found else None
        return None if self._entry is None else self._entry.cookie()

    def release(self) -> None:
        """The request is over. Repeats are harmless."""
        if self._entry is not None:
            self._entry.release()

    def _log_out(self) -> Receipt | None:
        users, ended = self._front.manager.users, frozenset(self._tags)

        def end_other(entry: Session) -> None:
            tag = entry.hidden(SIGNED_ON)
            if tag is not None and tag not in ended:
                users.end_shared(tag)

        self._elsewhere(end_other)
        receipts = [users.end_shared(tag) for tag in sorted(ended)]
        self._tags.clear()
        self._had, self._offer, self._mine, self._made, self._forgets = False, None, None, False, True
        return Joined(receipts) if receipts else None

    def _log_in(self, session: Session) -> Receipt | None:
        """By the application itself: a new entry, or the one there is, if it is the same principal's, under a new id. One that is not here is known by the session, if that
        is of it: a new one takes its place, and its tag."""
        principal, login = session.principal or "", session.hidden(LOGIN)
        here = self._offer is not None and self._offer.principal == principal
        mine = self._mine if self._offer is None else None
        same = here or (mine is not None and mine[0] == principal)
        before = self._leave(principal) if same else self._log_out()
        if not here and same:
            self._elsewhere(self._replaced)
        known = self._offer.tag if self._offer is not None else mine[1] if same and mine is not None else None
        self._had, self._made, self._forgets = True, not same, False
        entry = self._fresh(here)
        tag = entry.session.sign_on(principal, login, known)
        self._offer = Offer(principal, login, tag, not self._reauthenticates)
        self._tags.add(tag)
        session.write(SIGNED_ON, tag)
        receipts = [receipt for receipt in (before, entry.save()) if receipt is not None]
        return Joined(receipts) if receipts else None

    def _leave(self, principal: str) -> Receipt | None:
        """The session was of somebody else, under a shared login that the browser has no cookie of any more: that is over, too."""
        if self._mine is None or self._mine[0] == principal:
            return None
        self._tags.discard(self._mine[1])
        return self._front.manager.users.end_shared(self._mine[1])

    def _replaced(self, entry: Session) -> None:
        """Its id is to be worth nothing, as it would be after a login where it is."""
        tag = entry.hidden(SIGNED_ON)
        if tag is None or entry.unknown:
            return
        if tag in self._tags:
            entry.invalidate()
            self._front.manager.commit(entry)
        else:
            self._front.manager.users.end_shared(tag)

    def _fresh(self, here: bool) -> Visit:
        if here and self._entry is not None:
            return self._entry
        self.release()
        made = self._front.manager.open_local(None)
        assert made is not None, "a new session is nobody else's"
        self._entry = self._front.admit(self._ticket, made, "", self._origin)
        return self._entry

    def _keep(self) -> None:
        """The entry is in use, too."""
        if self._entry is not None:
            if not self._entry.session.new:
                self._entry.session.accessed = True
                self._entry.save()
        else:
            self._elsewhere(self._front.manager.touch)

    def _elsewhere(self, act: Callable[[Session], object]) -> None:
        """Do this with the entry that the browser's cookie names, where it is not here. Nobody waits for it."""
        if self._entry is not None or self._ticket.id is None or self._forgets:
            return
        manager = self._front.manager

        def found(entry: Session) -> None:
            try:
                act(entry)
            finally:
                manager.release(entry)

        manager.open_soon(self._ticket.id, self._ticket.token, found)
