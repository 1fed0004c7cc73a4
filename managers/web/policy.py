"""What all fronts do alike: find the session of a request, commit it before the headers leave, and say so in them.

A front *admits* a request (`Front.ticket`, then `Front.admit` with the opened session) and gets a `Visit`; before the
first header byte it calls `save`, waits for the receipt if it must, and passes its headers through `headers`; at the end
it calls `save` again for what a streaming response wrote, and `release`. Nothing is saved when an exception left the
application (`fail`). A response that looked at the session is nobody else's: no shared cache may keep it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import translate
from functools import cached_property
from typing import Any, cast

from twisted.logger import Logger

from ...membership.errors import LocalError
from ..base import SessionManager
from ..errors import NotRunning, SessionRefused, SessionUnavailable, SessionUnknown
from ..in_turn import InTurn
from ..receipts import DONE, DROPPED, Joined, Receipt
from ..session import Session
from ..throttle import Origin
from .absent import RETRY_AFTER_S, NoManager, unavailable
from .cookies import CookieSettings, Ticket, delete_cookie, read_cookie, write_cookie
from .lazily import Lazily
from .single import SignOn

__all__ = ["EVENT_STREAM", "RETRY_AFTER_S", "Front", "Visit", "unavailable", "wait"]

_log = Logger()
_LOG_S = 1.0  # between two failures that are logged
EVENT_STREAM = "text/event-stream"  #: a response that goes on for as long as the browser listens
Match = Callable[[str], Any]  #: true for text that a pattern matches


class Front:
    """The sessions of one web application: a manager, a cookie, and the paths that keep nothing alive.

    `manager`: or a function that gives it, called at the first request of each process: so that servers may fork after this.
    `no_touch`: shell-style patterns (`/poll/*`) of paths; reading a session there does not postpone its expiry. Writing does. The manager's settings may name
    more (`no_touch_paths`), and requests that have no session (`no_session_paths`, `no_session_agents`). Safe from any thread.
    """

    def __init__(self, manager: SessionManager | Callable[[], SessionManager], cookie: CookieSettings | None = None, no_touch: Sequence[str] = ()) -> None:
        self._manager = manager if isinstance(manager, Lazily) else Lazily(manager if callable(manager) else lambda: manager)
        self.cookie = cookie or CookieSettings()
        self.cookies_ignored = 0  #: malformed ones, and all where one request had several; about, threads may race
        self.failures = 0  #: requests for which no session could be opened; about, likewise
        self._logged_s = 0.0
        self._no_touch_here = no_touch

    @property
    def manager(self) -> SessionManager:
        """Raises what the function raises, and `NotRunning` when it was stopped."""
        manager = self._manager()
        if not manager.is_running:
            raise NotRunning("the session manager of this process was stopped", manager.settings.on_failure)
        return manager

    @cached_property
    def shared(self) -> Front | None:
        """Of the logins that the application shares with others (`single.py`)."""
        group = self.manager.single
        return None if group is None else Front(group.manager, group.cookie)

    @cached_property
    def _no_touch(self) -> Match:
        return _any_of([*self._no_touch_here, *self.manager.settings.no_touch_paths])

    @cached_property
    def _no_session(self) -> tuple[Match, Match]:
        """Of the path, of the `User-Agent`."""
        settings = self.manager.settings
        return _any_of(settings.no_session_paths), _any_of(settings.no_session_agents, re.IGNORECASE)

    @cached_property
    def _takes_turns(self) -> bool:
        return self.manager.settings.turns not in ("", "off")

    def ticket(self, cookies: Iterable[str], path: str, agent: Callable[[], str]) -> Ticket:
        """What the values of the request's `Cookie` fields say, if a request for this path by this `User-Agent` may have a session."""
        try:
            (no_path, no_agent), shared = self._no_session, self.shared
        except LocalError:
            return _WITHOUT  # `local` says what that means
        if (no_path is not _never and no_path(path)) or (no_agent is not _never and no_agent(agent())):
            return _WITHOUT
        if shared is not None:
            cookies = list(cookies)
            ticket = self._read(cookies)._replace(shared=shared._read(cookies))
        else:
            ticket = self._read(cookies)
        return ticket._replace(in_turn=True) if ticket.id is not None and self._takes_turns else ticket

    def _read(self, cookies: Iterable[str]) -> Ticket:
        ticket = read_cookie(self.cookie, cookies)
        if ticket.found and ticket.id is None:
            self.cookies_ignored += ticket.found
        return ticket

    def local(self, ticket: Ticket, origin: Origin) -> Session | None:
        """The session as far as this node may say by itself; None: others have to be asked. Raises `SessionUnavailable` where none can be had."""
        try:
            session = self.opener(ticket).open_local(ticket.id, ticket.token)
            return session if session is not None or self.manager.throttle.may_ask(origin) else self.manager.unknown()
        except Exception as error:
            return self.instead(error)

    def open(self, ticket: Ticket) -> Session:
        """The session that others have to be asked for. Waits; not in the reactor's thread. Raises likewise."""
        try:
            return self.opener(ticket).open(ticket.id, ticket.token)
        except Exception as error:
            return self.instead(error)

    def opener(self, ticket: Ticket) -> SessionManager | InTurn:
        """What opens the session of this request. Raises what `manager` raises."""
        return self.manager.in_turn if ticket.in_turn else self.manager

    def instead(self, error: Exception) -> Session:
        """What a request gets whose session cannot be opened for this reason. Raises `SessionUnavailable`, unless `on_failure` says otherwise.

        What is wrong with the application, and was raised by the function that gives the manager, is raised as it is.
        """
        manager = self._manager.made
        if manager is None and not isinstance(error, LocalError):
            raise error
        self.failures += 1
        if manager is not None:
            manager.open_failures += 1
        now_s = time.monotonic()
        if now_s - self._logged_s >= _LOG_S:
            self._logged_s = now_s
            _log.error("a request got no session ({failures} by now): {kind}: {error}", failures=self.failures, kind=type(error).__name__, error=error)
        on_failure = manager.settings.on_failure if manager is not None else getattr(error, "on_failure", "error")
        if on_failure == "error":
            raise error if isinstance(error, SessionUnavailable) else NotRunning(f"no session can be opened: {error}") from error
        return _ABSENT.open_local(None)

    def admit(self, ticket: Ticket, session: Session, path: str, origin: Origin) -> Visit:
        """The request begins. `path` without query. Raises `TurnRefused` where it is not to. If the visit has something `wanted`, open it and give it to `Visit.sign_on` before the application runs."""
        if session.refusal is not None:
            self._manager().release(session)
            raise session.refusal
        if session.forgets:
            return Visit(self, _WITHOUT, session, False, origin)
        if ticket.id is not None and session.id is None and not session.unknown:
            self._manager().throttle.missed(origin)
        return Visit(self, ticket, session, not self._no_touch(path), origin)


class Visit:
    """One request's use of its session. Not for two threads at a time."""

    __slots__ = (
        "_early", "_failed", "_front", "_in_use", "_known", "_origin", "_over", "_released", "_restarted", "_sign_on", "_ticket", "_touches", "keeps_alive", "manager", "max_age_s", "renews", "session", "wrote",
    )  # fmt: skip

    def __init__(self, front: Front, ticket: Ticket, session: Session, touches: bool, origin: Origin) -> None:
        self.manager: SessionManager = cast(SessionManager, _ABSENT) if session.forgets else front._manager()  #: of the session; it may have been stopped since
        session.forgets = session.forgets or ticket.without
        self.session = session
        session.origin = self._origin = origin
        self._known = False  # the session has been committed to
        self._front = front
        self._ticket = ticket
        self.keeps_alive = touches  #: reading postpones the session's expiry
        self._touches = touches
        self._in_use = True
        self._over = ticket.without  # nothing more to save
        self._failed = False
        self._released = False
        self._restarted = False  # a session of this request has ended, and another may follow
        self._early: list[Receipt] = []  # of what was committed before the response, and is waited for with that
        if self.manager.settings.write == "immediate" and not session.forgets:
            session.at_once = self._save_at_once
        self.wrote = False  #: something was committed, besides touches
        #: Of the cookie, if one is set, or what gives it; frameworks have one for each session.
        self.max_age_s: int | Callable[[], int] = front.cookie.max_age_s
        self.renews = True  #: a cookie with an age is set at each use, not only after writing
        shared = None if ticket.without else front.shared
        self._sign_on = None if shared is None else SignOn(shared, self.manager.single.reauthenticates, ticket.shared, session, origin)

    @property
    def wanted(self) -> tuple[Front, Ticket] | None:
        """A login that the browser has in other applications, and that other nodes have to be asked for: to be opened with this front."""
        ticket = None if self._sign_on is None else self._sign_on.wanted
        return None if ticket is None or self._front.shared is None else (self._front.shared, ticket)

    def sign_on(self, found: Session) -> None:
        """What was `wanted`."""
        assert self._sign_on is not None, "wanted"
        self._sign_on.opened(found, self.session)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """What is done before the application runs: if it fails, the request is over."""
        try:
            yield
        except BaseException:
            self.release()
            raise

    @property
    def is_primary(self) -> bool:
        """Whether this node is the session's primary: where a sticky balancer should send its requests."""
        return self.manager.is_primary(self.session)

    def save(self) -> Receipt | None:
        """Commit what changed, and the touch; None when there is nothing. The caller waits when `needs_wait`. May raise what `commit` raises."""
        receipt = self._save()
        if not self._early:
            return receipt
        early, self._early = self._early, []
        return Joined([*early, receipt or DONE])

    def _save_at_once(self) -> None:
        """With `write = "immediate"`: something was assigned."""
        try:
            receipt = self._save()
        except SessionUnavailable:
            self.fail()  # an application that makes a page of it is not asked again
            raise
        if receipt is not None and receipt.needs_wait:
            self._early.append(receipt)

    def _save(self) -> Receipt | None:
        session = self.session
        self.wrote = self.wrote or session.last is not None
        if self._over or self._released or session.unknown:
            return None
        touch = self._touches and session.accessed and session.id is not None
        if touch or session.modified:
            self.manager.renew(session)
        else:
            return None
        if self._begins() and not self.manager.throttle.may_begin(self._origin):
            raise SessionRefused("too many sessions from this address (creations_per_s)", 429)
        self._touches = False  # once is enough
        self.wrote = self.wrote or session.modified
        self._over = session.ended  # nothing can follow that
        if self._sign_on is None:
            return self.manager.commit(session, session.acks, touch)
        shared = self._sign_on.settle(session, touch)
        receipt = self.manager.commit(session, session.acks, touch)
        if receipt is DROPPED:
            self._sign_on.dropped()
            return receipt
        return receipt if shared is None else Joined((receipt, shared))

    def _begins(self) -> bool:
        """Whether the commit makes a session that was not there; said once."""
        session, known = self.session, self._known
        self._known = True
        return not known and session.new and session.previous_id is None and (session.id is None or session.id != self._ticket.id)

    def restart(self, by_time: bool = False) -> Receipt | None:
        """End the session now, and give what is written from here on to another. The caller waits as after `save`. Raises what that raises. `by_time`: see `end`."""
        manager, before, sign_on = self.manager, self.session, self._sign_on
        self.end(by_time)
        receipt = self.save()
        following = manager.open_local(None)
        assert following is not None, "a new session is nobody else's"
        following.accessed = True
        following.origin = self._origin
        following.at_once, before.at_once = before.at_once, None
        self.session = following
        if by_time and sign_on is not None:
            self._sign_on = sign_on
            sign_on.offer(following)
        self._over, self._restarted = self._ticket.without, True
        manager.release(before)
        return receipt

    def end(self, by_time: bool = False) -> None:
        """The session ends with the next `save`. Raises `SessionUnknown`: a logout must not seem to have worked. `by_time`: its time has come; that is no logout, which
        would count for other applications too."""
        if self.session.unknown:
            raise SessionUnknown("the members that could know this session do not answer, so it cannot be ended; try again in a moment")
        if by_time:
            self._sign_on = None
        self.session.invalidate()

    def fail(self) -> None:
        """An exception left the application: what is not committed yet is dropped."""
        self._over = self._failed = True

    def headers(self, headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """The response's headers with the session's. From here on the id cannot change."""
        session = self.session
        if session.id is not None and not session.forgets:
            self.manager.follow(session)
        shared = self._sign_on
        cookies = () if self._failed else (self.cookie(), None if shared is None else shared.cookie())
        session.freeze_id()
        if not session.accessed and not any(cookies):
            return list(headers)
        made = []
        private = varies = False
        for name, value in headers:
            lower = name.lower()
            if lower == "cache-control":
                if not _words(value) & {"private", "no-store"}:
                    continue  # a shared cache would hand this to somebody else
                private = True
            elif lower == "content-type" and value.startswith(EVENT_STREAM):
                self.end_turn()
            elif lower == "vary":
                value = value if _words(value) & {"cookie", "*"} else f"{value}, Cookie"
                varies = True
            made.append((name, value))
        if not varies:
            made.append(("Vary", "Cookie"))
        if not private:
            made.append(("Cache-Control", "no-store"))
        if any(cookies):
            made += [("Set-Cookie", cookie) for cookie in cookies if cookie]
        return made

    def release(self) -> None:
        """The request is over. Repeats are harmless."""
        if not self._released:
            self._released = True
            self.let_expire()

    def let_expire(self) -> None:
        """The session may expire although this visit goes on."""
        if self._in_use:
            self._in_use = False
            self.manager.release(self.session)
            if self._sign_on is not None:
                self._sign_on.release()

    def end_turn(self) -> None:
        """The next request of this session need not wait for the end of this one."""
        turn, self.session.turn = self.session.turn, None
        if turn is not None:
            turn.give_back()

    def cookie(self) -> str | None:
        """The value of `Set-Cookie`, or None: the browser has the right one, or none is due."""
        session, ticket, settings = self.session, self._ticket, self._front.cookie
        if session.unknown or ticket.without:
            return None
        if session.ended or (session.new and self._restarted):
            return delete_cookie(settings) if ticket.found else None
        if session.new or session.id is None:  # an id alone is no session: what was set may have been taken away again
            return None
        route = self.manager.route
        known = session.id == ticket.id and session.token == ticket.token and (not settings.route or route == ticket.route or self._stays(ticket.route))
        if known and not (session.accessed if self.renews else self.wrote):
            return None
        max_age_s = self.max_age_s if isinstance(self.max_age_s, int) else self.max_age_s()
        if known and not max_age_s:
            return None
        if session.id == ticket.id and self.manager.is_live(session) is False:
            return None  # by a request at the same time: at a login its response has given the browser another id
        return write_cookie(settings, session.id, route, session.token, max_age_s)

    def _stays(self, route: str) -> bool:
        """Whether the node that the cookie names is there, and any other will do.

        Then a response that wrote nothing leaves the cookie alone: it may come after that of a request at the same time which
        wrote, and would take its newer token away.
        """
        manager = self.manager
        return manager.settings.read_your_writes == "cluster" and manager.has_member(route)


def wait(receipt: Receipt | None) -> None:
    """Block until a commit is confirmed as it was asked for, if it was. Not in the reactor's thread. Raises `NotConfirmed`."""
    if receipt is not None and receipt.needs_wait:
        receipt.wait()


def _words(value: str) -> set[str]:
    return {word.partition("=")[0].strip().lower() for word in value.split(",")}


def _any_of(patterns: Sequence[str], flags: int = 0) -> Match:
    return re.compile("|".join(map(translate, patterns)), flags).match if patterns else _never


_never: Match = lambda text: None  # noqa: E731
_WITHOUT = Ticket(without=True)
_ABSENT = NoManager()
