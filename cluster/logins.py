"""Whose sessions are where: asked of all members, because none of them holds all.

Each member answers for what it holds. From all answers come a list of one principal's sessions, the end of one of them by its key, and the
limit of sessions a principal may have: after a login its sessions are counted, and after members came (out of a partition, perhaps)
those of everybody who has some here; the oldest logins over the limit are ended by the members that lead their sessions. Where
every member holds every session, managers see to the limit themselves (`managers/principals.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, ensureDeferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from ..managers.base import SessionManager
from ..managers.listeners import LoggedIn
from ..managers.principals import KEY_BYTES, YOUNGEST, principal_key
from ..managers.summaries import LoginHere
from ..membership.errors import LocalError, RemoteError
from ..membership.member import Member
from ..membership.view import ViewChanged
from .errors import ChannelError

__all__ = ["LoginDesk"]

_SERVICE = "logins"
_OF, _END, _NUMBER = range(3)
_TIMEOUT_S = 2.0
_TOGETHER = 200  # principals in one question
_ANSWER_MAX = 20_000  # sessions in one answer
_PAUSES_S = (0.1, 0.3, 0.3, 1.0, 2.0, 5.0, 10.0)  # before it is tried again: a session may be between two members, and a member slow or about to be dropped
_HEALED_S = 3.0  # after members came: what they and we have is exchanged by then

_log = Logger()


class LoginDesk:
    """One node's: answers the others from the start on, and puts its own questions. Reactor thread."""

    def __init__(self, channel: Any, managers: Mapping[str, SessionManager], clock: Any) -> None:
        self._channel = channel
        self._managers = managers
        self._clock = clock
        self._checking: set[str] = set()
        channel.serve(_SERVICE, self._asked)
        for name, manager in managers.items():
            manager.users.ask = partial(self._asked_for, name)
            if manager.settings.principal_sessions_max:
                manager.listen(LoggedIn, partial(self._logged_in, name))

    # -- what applications ask

    def sessions_of(self, manager: str, principal: str) -> Deferred[dict[str, Any]]:
        """Fires with ``{"principal", "sessions": [{"key", "node", "age_s", "idle_s", "login", "about"}], "silent": names}``, the youngest login first: `key` in
        hexadecimal, `node` leads it, `login` grows with each, `about` is what was said at `session.login`. `silent` members did not answer; what only they hold is missing."""
        return ensureDeferred(self._sessions_of(manager, principal))

    def end(self, manager: str, key: bytes) -> Deferred[bool]:
        """End the session of this key, wherever it is. Fires with whether a member held it and all who can answer know."""
        return ensureDeferred(self._end_everywhere(manager, key))

    async def _sessions_of(self, manager: str, principal: str) -> dict[str, Any]:
        found, silent = await self._ask_all(manager, [self._key(manager, principal)])
        sessions = [{**login.shown(), "node": member.name} for login, member in _best(found)]
        return {"principal": principal, "sessions": sessions, "silent": sorted(silent)}

    async def _end_everywhere(self, manager: str, key: bytes) -> bool:
        for member in self._taking_part(manager):
            try:
                if await self._ask(member, _END, [manager, [key], b""]) == 1:
                    return True
            except LocalError as error:
                _log.warn("{error}", error=error)
        return False

    def _asked_for(self, name: str, whose: bytes) -> Deferred[list[LoginHere]]:
        """What members lead that answer soon, for a login that is to be refused where there are too many; the youngest first. Nobody waits for one that did not answer before,
        and a copy that was left behind somewhere, which may have ended, does not count."""
        manager = self._managers[name]
        members = [member for member in self._taking_part(name) if member.uid == self._channel.me.uid or not self._channel.is_degraded(member.uid)]
        found = ensureDeferred(self._ask_all(name, [whose], members, manager.settings.ack_timeout_s))
        return found.addCallback(lambda answers: [login for login, _ in _best(answers[0]) if login.leads])

    # -- the limit

    def view_changed(self, change: ViewChanged) -> None:
        """Members that came may have sessions of whom we have sessions."""
        if any(member.uid != self._channel.me.uid for member in change.appeared):
            for name, manager in self._managers.items():
                if manager.settings.principal_sessions_max and not manager.knows_all and name not in self._checking:
                    self._checking.add(name)
                    deferLater(self._clock, _HEALED_S, lambda name=name: ensureDeferred(self._check_all(name))).addErrback(_complain)

    def _logged_in(self, name: str, event: LoggedIn) -> None:
        if not self._managers[name].users.has_number(event.key):
            ensureDeferred(self._number(name, self._key(name, event.principal), event.key)).addErrback(_complain)

    async def _number(self, name: str, whose: bytes, key: bytes) -> None:
        """Have a login get its number, now that the others can be asked, and see that there are not too many. Who leads its session gives it: the copy of the one that
        has committed the login may be gone by now."""
        for pause_s in _PAUSES_S:
            logins = await self._ask_all_best(name, [whose])
            number = 1 + max((login.number for login, _ in logins if login.number < YOUNGEST), default=0)
            for login, member in logins:
                if login.key == key and await self._has_got(member, name, login, number):
                    return await self._limit(name, [whose])
            await deferLater(self._clock, pause_s)
        return await self._limit(name, [whose])

    async def _has_got(self, member: Member, name: str, login: LoginHere, number: int) -> bool:
        """Whether this login, as `member` knows it, has a number; this one if it had none."""
        if 0 < login.number < YOUNGEST:
            return True
        try:
            return bool(await self._ask(member, _NUMBER, [name, [login.key], login.whose, number]) == 1)
        except LocalError as error:
            _log.info("{error}", error=error)
            return False

    async def _check_all(self, name: str) -> None:
        """Those of whom this member leads a session; who else has one does the same for the rest."""
        self._checking.discard(name)
        manager = self._managers[name]
        principals = manager.users.principals_here()
        for at in range(0, len(principals), _TOGETHER):
            led = [login for login in manager.users.logins_of(principals[at : at + _TOGETHER]) if login.leads]
            for login in led:
                if login.number == YOUNGEST:  # whoever has it from the application could not reach this member
                    await self._number(name, login.whose, login.key)
            if led:
                await self._limit(name, sorted({login.whose for login in led}))

    async def _limit(self, name: str, whose: Sequence[bytes]) -> None:
        """End the oldest of these principals' sessions that are too many, until all members have said that there are none."""
        for pause_s in _PAUSES_S:
            found, silent = await self._ask_all(name, whose)
            over = self._over(name, found)
            for login, member in over:
                try:
                    await self._ask(member, _END, [name, [login.key], login.whose])
                except LocalError as error:
                    _log.warn("a session over principal_sessions_max could not be ended: {error}", error=error)
            if not over and not silent:
                return
            await deferLater(self._clock, pause_s)  # one may have been taken over by another member meanwhile

    def _over(self, name: str, found: Iterable[tuple[LoginHere, Member]]) -> list[tuple[LoginHere, Member]]:
        """(session that is too many, who leads it). Only logins with a number are counted: who gets its own last sees all others', and since numbers do not change, nobody
        ends the one that is to stay; two who judged each other before that could end both."""
        by_principal: dict[bytes, list[tuple[LoginHere, Member]]] = {}
        for login, member in _best(found):
            if login.number < YOUNGEST:
                by_principal.setdefault(login.whose, []).append((login, member))
        settings = self._managers[name].settings
        order = -1 if settings.principal_sessions_policy == "refuse" else 1  # who was there first stays
        return [one for logins in by_principal.values() for one in logins[::order][settings.principal_sessions_max :]]

    # -- questions

    async def _ask_all_best(self, manager: str, whose: Sequence[bytes]) -> list[tuple[LoginHere, Member]]:
        """Of each session what its primary says, else any who holds it; the youngest login first."""
        return _best((await self._ask_all(manager, whose))[0])

    async def _ask_all(
        self, manager: str, whose: Sequence[bytes], members: Sequence[Member] = (), timeout_s: float = _TIMEOUT_S
    ) -> tuple[list[tuple[LoginHere, Member]], list[str]]:
        """(what members hold, names of those that did not answer). `members`: only these."""
        members = members or self._taking_part(manager)
        answers = await DeferredList([ensureDeferred(self._ask(member, _OF, [manager, list(whose)], timeout_s)) for member in members], consumeErrors=True)
        found, silent = [], []
        for member, (is_good, answer) in zip(members, answers, strict=True):
            logins = _read(answer) if is_good else None
            if logins is None:
                silent.append(member.name)
            else:
                found += [(login, member) for login in logins if login.whose in whose]
        return found, silent

    def _key(self, manager: str, principal: str) -> bytes:
        found = self._managers.get(manager)
        return principal_key(manager if found is None else found.settings.realm(manager), principal)

    def _taking_part(self, manager: str) -> list[Member]:
        """This node first."""
        if manager not in self._managers:
            raise LocalError(f"no manager {manager!r}; this node has {', '.join(sorted(self._managers))}")
        return sorted(self._managers[manager].view, key=lambda member: (member.uid != self._channel.me.uid, member.uid))

    async def _ask(self, member: Member, op: int, body: list[Any], timeout_s: float = _TIMEOUT_S) -> Any:
        """Raises `LocalError`."""
        if member.uid == self._channel.me.uid:
            answer = self._asked(member, op, body)
            return await answer if isinstance(answer, Deferred) else answer
        try:
            replies = await self._channel.request((member.uid,), _SERVICE, op, body, mode="all", timeout_s=timeout_s)
        except ChannelError as error:
            raise LocalError(f"{member.name} does not answer: {'; '.join(error.failed.values()) or error}") from None
        return replies[member.uid]

    def _asked(self, peer: Member, op: int, body: object) -> Any:
        """A question. Raises `RemoteError` if it is malformed."""
        if type(body) is not list or len(body) < 2 or type(body[0]) is not str or type(body[1]) is not list:
            raise RemoteError("logins: malformed")
        manager = self._managers.get(body[0])
        if manager is None:
            raise RemoteError("logins: no such manager here")
        keys = body[1]
        if op not in (_OF, _END, _NUMBER) or len(keys) > _TOGETHER or not all(type(key) is bytes and len(key) == KEY_BYTES for key in keys):
            raise RemoteError("logins: malformed")
        if op == _OF:
            return [list(login) for login in manager.users.logins_of(keys)[:_ANSWER_MAX]]
        whose = body[2] if len(body) > 2 else b""
        if type(whose) is not bytes or len(whose) not in (0, KEY_BYTES):
            raise RemoteError("logins: malformed")
        if op == _END:
            done = [manager.users.end_login(key, whose) for key in keys]
        else:
            number = body[3] if len(body) > 3 else None
            if type(number) is not int or not 0 < number < YOUNGEST:
                raise RemoteError("logins: malformed")
            done = [manager.users.number_login(key, whose, number) for key in keys]
        confirmed = DeferredList([receipt.deferred() for receipt in done], consumeErrors=True)
        return confirmed.addCallback(lambda receipts: sum(is_good and receipt.satisfied for is_good, receipt in receipts))


def _read(answer: object) -> list[LoginHere] | None:
    """None: it is no usable answer."""
    if type(answer) is not list or not all(_is_login(one) for one in answer):
        return None
    return [LoginHere(*one[:7]) for one in answer]


def _is_login(one: object) -> bool:
    if type(one) is not list or len(one) < 7:
        return False
    whose, key, *numbers, leads, about = one[:7]
    return (
        type(whose) is bytes and len(whose) == KEY_BYTES and type(key) is bytes and len(key) == KEY_BYTES
        and all(type(number) is int for number in numbers) and type(leads) is bool
        and type(about) is dict and all(type(text) is str for pair in about.items() for text in pair)
    )  # fmt: skip


def _best(found: Iterable[tuple[LoginHere, Member]]) -> list[tuple[LoginHere, Member]]:
    """Of each session what its primary says, else any; the youngest login first."""
    best: dict[bytes, tuple[LoginHere, Member]] = {}
    for login, member in found:
        if login.key not in best or login.leads:
            best[login.key] = (login, member)
    return sorted(best.values(), key=lambda one: (one[0].number, one[0].key), reverse=True)


def _complain(failure: Any) -> None:
    _log.warn("sessions per principal could not be counted: {error}", error=failure.getErrorMessage())
