"""The locks of sessions, between members: asks for them, grants them, gives them back.

Nothing new travels for it: questions of the service ``locks`` (`requests.py`), each about a manager by name. ASK is answered when the lock is
granted, or not; RELEASE says that it is free; CLAIMS asks a member what it holds and has granted, and tells it that the asking one grants from now on
(`managers/locks.py` says why). Before a member grants anything in a new view it has asked all others for their claims; one that does not answer
within two seconds, or knows nothing of locks, has none. So long it also waits for those who see other members than it does: of who is there, and it has not met,
it knows no claims. And it grants only to those who see the same members: who has just come, and not met all
of them yet, grants nothing to those who have. A member that gives a lock back tells all that have asked it meanwhile.

A process that stood still for longer than the drop time does nothing about locks on what it knew before: whatever comes first when it wakes (a message that lay there, a
timer, an answer), `_notice` is called before that is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from twisted.internet import defer
from twisted.internet.defer import Deferred, DeferredList, ensureDeferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from ..managers.base import SessionManager
from ..managers.errors import LockTimeout
from ..managers.locking import Grant
from ..managers.locks import (
    ELSEWHERE,
    FULL,
    GRANTED,
    LATE,
    LOCK_MAX_S,
    OWN_PART,
    Answered,
    Asker,
    Claim,
    LockTable,
    read_claims,
    read_written,
    write_claims,
    write_written,
)
from ..managers.placement import outranks
from ..managers.tokens import Written
from ..membership.driver import Driver
from ..membership.effects import Effect
from ..membership.errors import RemoteError
from ..membership.member import Member
from ..membership.view import View, ViewChanged
from .errors import ChannelError
from .lock_state import Desk, Early, Timed, Wanted, after, are_numbers, digest, has
from .requests import LOST, UNCONNECTED

__all__ = ["LockDesk"]

_SERVICE = "locks"
_ASK, _RELEASE, _CLAIMS = range(3)
_KEY_BYTES = 16
_AGAIN_S = 0.05
_AGAIN_MAX_S = 0.2  # an answer with claims may be long
_CLAIMS_S = 2.0  # for the answer to CLAIMS
_ANSWER_S = 0.5  # for an answer after its time, or to who does not want to wait; one that hangs costs no more
_CEDED_S = 30.0  # a member that asked for claims is in our view by then, or will not be
_RECENT_S, _RECENT_MAX = 30.0, 10_000  # locks given back of which claims speak

_log = Logger()


class LockDesk:
    """One node's, for all its managers. Reactor thread. `managers.locking.Granting`. `found_at`: by then who is there is found; before, this node may be
    the only one that it sees, and grants itself nothing."""

    def __init__(self, channel: Any, managers: Mapping[str, SessionManager], clock: Any, found_at: float = 0.0) -> None:
        self._channel = channel
        self._clock = clock
        self._found_at = found_at
        self._me: bytes = channel.me.uid
        self._serial = 0
        self._stopped = False
        self._desks = {name: self._desk(name, manager) for name, manager in managers.items()}
        channel.serve(_SERVICE, self._asked)
        for desk in self._desks.values():
            desk.manager.locks.desk = self
            desk.driver.start()

    def _desk(self, name: str, manager: SessionManager) -> Desk:
        desk = Desk(name, manager, LockTable(manager.settings.locks_max))
        desk.driver = Driver(Timed(desk, self._notice), self._clock, lambda effect: self._perform(name, effect))
        return desk

    def stop(self) -> None:
        """Grant nothing any more: others do from the farewell on."""
        self._stopped = True
        for desk in self._desks.values():
            desk.driver.run(desk.table.send_away(lambda key: False))
            desk.driver.stop()

    def view_changed(self, name: str, change: ViewChanged) -> None:
        """Of one manager, which knows already."""
        desk = self._desks.get(name)
        if desk is None:
            return
        for uid in [uid for uid, (_, peer) in desk.ceded.items() if has(change.after, peer)]:
            del desk.ceded[uid]
        self._notice(desk)
        desk.driver.run(desk.table.send_away(lambda key: self._granter(desk, key) == self._me))
        if desk.claims_of is not None and digest(desk.claims_of) == digest(desk.manager.view):
            desk.claims_of = desk.manager.view  # somebody has only announced something
        else:
            self._doubt(desk)
        desk.driver.run(desk.table.gone(self._clock.seconds(), (member.uid for member in change.disappeared)))

    def slept(self) -> None:
        """This process stood still for longer than the drop time: others may have granted what is held here, or was granted."""
        for desk in self._desks.values():
            self._slept(desk)

    def _slept(self, desk: Desk) -> None:
        desk.sleeps = desk.manager.locks.sleeps
        desk.driver.run(desk.table.send_away(lambda key: False))
        self._doubt(desk)
        for grant in desk.held.values():
            grant.lost = True
        for wanted in desk.wanted.values():
            wanted.void = True  # granted before, perhaps, and to be read now

    def _notice(self, desk: Desk) -> None:
        if desk.sleeps != desk.manager.locks.sleeps:
            self._slept(desk)

    def statistics(self, name: str) -> dict[str, int]:
        table = self._desks[name].table
        return {"locks_granted": table.granted, "locks_expired": table.expired, "locks_asked": table.askers}

    # -- managers.locking.Granting

    def acquire(self, manager: str, key: bytes, lease_s: float, timeout_s: float) -> Deferred[Grant]:
        return ensureDeferred(self._acquire(self._desks[manager], key, min(lease_s, LOCK_MAX_S), min(timeout_s, LOCK_MAX_S)))

    def release(self, grant: Grant, written: Written) -> None:
        desk = self._desks[grant.manager]
        now = self._clock.seconds()
        if desk.held.pop(grant.serial, None) is None:
            return
        asker = Asker(self._me, grant.serial)
        for old in list(islice(desk.recent, 2)):  # the oldest come first
            if now >= desk.recent[old][0] or len(desk.recent) >= _RECENT_MAX:
                del desk.recent[old]
        desk.recent[asker] = (now + _RECENT_S, Claim(grant.key, asker, 0.0, written))
        self._tell_free(desk, grant.key, asker, written, grant.told)

    async def _acquire(self, desk: Desk, key: bytes, lease_s: float, timeout_s: float) -> Grant:
        self._serial += 1
        serial, until = self._serial, self._clock.seconds() + timeout_s
        told: set[bytes] = set()
        why = "nobody can grant it"
        try:
            while not self._stopped:
                granter = self._granter(desk, key)
                left_s = max(0.0, until - self._clock.seconds())
                if granter:
                    if told and granter not in told:  # who was asked before may have granted that number, and say later that it is over
                        self._tell_free(desk, key, Asker(self._me, serial), {}, told)
                        desk.wanted.pop(serial, None)
                        self._serial += 1
                        serial, told = self._serial, set()
                    told.add(granter)
                    wanted = desk.wanted[serial] = Wanted(key, granter)
                    verdict, written, begins, why = await self._ask(
                        desk, granter, [desk.name, key, serial, int(lease_s * 1000), int(left_s * 1000), digest(desk.manager.view)], left_s
                    )
                    self._notice(desk)
                    grant = Grant(desk.name, key, serial, begins + lease_s * OWN_PART, written, desk.sleeps, told)
                    if verdict == GRANTED and not wanted.void and self._clock.seconds() < grant.until:
                        desk.held[serial] = grant
                        return grant
                    if verdict == FULL:
                        why = "too many locks are asked for (locks_max)"
                        break
                    if verdict == GRANTED:
                        self._tell_free(desk, key, Asker(self._me, serial), written, told)
                        del desk.wanted[serial]
                        self._serial += 1
                        serial, told = self._serial, set()  # that number is known to be over
                if self._clock.seconds() >= until:
                    break
                await deferLater(self._clock, min(_AGAIN_S, max(0.001, until - self._clock.seconds())))
        except BaseException:  # cancelled: nobody waits any more
            self._tell_free(desk, key, Asker(self._me, serial), {}, told)
            raise
        finally:
            desk.wanted.pop(serial, None)
        self._tell_free(desk, key, Asker(self._me, serial), {}, told)
        raise LockTimeout(f"the session's lock was not granted within {timeout_s:g} s: {why}")

    async def _ask(self, desk: Desk, granter: bytes, body: list[Any], left_s: float) -> tuple[int, Written, float, str]:
        """(verdict, commits to wait for, when it was granted or a little before, what went wrong)."""
        asked = self._clock.seconds()
        try:
            if granter == self._me:
                wanted = self._wants(desk, Asker(self._me, body[2]), body[1], body[3] / 1000, body[4] / 1000, body[5])
                answer: Any = await wanted.addTimeout(left_s + _ANSWER_S, self._clock)
            else:
                replies = await self._channel.request((granter,), _SERVICE, _ASK, body, mode="all", timeout_s=left_s + _ANSWER_S)
                answer = replies[granter]
        except ChannelError as error:
            return ELSEWHERE, {}, 0.0, "; ".join(error.failed.values()) or str(error)
        except defer.TimeoutError:
            return ELSEWHERE, {}, 0.0, "others do not say what they hold"
        written = read_written(answer[1]) if type(answer) is list and len(answer) > 1 else None
        if written is None or type(answer[0]) is not int:
            return ELSEWHERE, {}, 0.0, "an unusable answer"
        now = self._clock.seconds()
        begins = min(now, asked + answer[2] / 1000) if len(answer) > 2 and are_numbers(answer[2:3]) else now  # older members do not say
        return answer[0], written, begins, "others hold it" if answer[0] == LATE else "the members do not agree who grants it"

    def _tell_free(self, desk: Desk, key: bytes, asker: Asker, written: Written, told: Iterable[bytes]) -> None:
        others = sorted(uid for uid in told if uid != self._me)
        if self._me in told:
            self._freed(desk, key, asker, written)
        if others:
            said = self._channel.request(others, _SERVICE, _RELEASE, [desk.name, key, asker.serial, write_written(written)], mode="all", timeout_s=_CLAIMS_S)
            said.addErrback(lambda failure: failure.trap(ChannelError) and None)  # its lease will end

    def _granter(self, desk: Desk, key: bytes) -> bytes:
        return desk.manager.locks.granter(key)

    # -- questions of others

    def _asked(self, peer: Member, op: int, body: object) -> Any:
        """Raises `RemoteError` if it is malformed."""
        if type(body) is not list or len(body) < 2 or type(body[0]) is not str:
            raise RemoteError("locks: malformed")
        desk = self._desks.get(body[0])
        if desk is None:
            raise RemoteError("locks: no such manager here")
        if op == _CLAIMS:
            weight = body[1]
            if type(weight) not in (int, float) or not 0 <= weight <= 1_000_000:
                raise RemoteError("locks: malformed")
            return self._claims(desk, replace(peer, weight=weight))
        key, *numbers = body[1:5]
        if type(key) is not bytes or len(key) != _KEY_BYTES or not numbers or not are_numbers(numbers[:1]):
            raise RemoteError("locks: malformed")
        asker = Asker(peer.uid, numbers[0])
        if op == _ASK and len(body) > 5 and are_numbers(numbers) and type(body[5]) is bytes:
            lease_s, patience_s = (min(ms / 1000, LOCK_MAX_S) for ms in numbers[1:])
            return self._wants(desk, asker, key, lease_s, patience_s, body[5])
        written = read_written(numbers[1]) if op == _RELEASE and len(numbers) > 1 else None
        if written is None:
            raise RemoteError("locks: malformed")
        self._freed(desk, key, asker, written)
        return None

    def _wants(self, desk: Desk, asker: Asker, key: bytes, lease_s: float, patience_s: float, view: bytes) -> Deferred[list[Any]]:
        return ensureDeferred(self._want(desk, asker, key, lease_s, patience_s, view))

    async def _want(self, desk: Desk, asker: Asker, key: bytes, lease_s: float, patience_s: float, view: bytes) -> list[Any]:
        """The answer, when there is one."""
        self._notice(desk)
        now = asked = self._clock.seconds()
        for uid in [uid for uid, (until, _) in desk.ceded.items() if now >= until]:
            del desk.ceded[uid]
            self._doubt(desk)  # it may have granted something, and nobody has seen it go
        question = Early(key, asker)
        desk.early.add(question)
        try:
            await self._collected(desk)
        finally:
            desk.early.discard(question)
        now = self._clock.seconds()
        if question.void or self._stopped or view != digest(desk.manager.view) or not self._grants(desk, key):
            return [ELSEWHERE, []]
        before = desk.answers.pop((key, asker), None)
        answer = desk.answers[key, asker] = Deferred()
        desk.driver.run(desk.table.ask(now, key, asker, lease_s, max(0.0, patience_s - (now - asked))))
        if before is not None:
            before.callback([ELSEWHERE, []])
        return [*await answer, int((self._clock.seconds() - asked) * 1000)]

    def _grants(self, desk: Desk, key: bytes) -> bool:
        if self._granter(desk, key) != self._me or self._clock.seconds() < self._found_at:
            return False
        me = desk.manager.view.by_uid.get(self._me)
        return not any(outranks(member, me, key) for _, member in desk.ceded.values())

    def _freed(self, desk: Desk, key: bytes, asker: Asker, written: Written) -> None:
        self._notice(desk)
        for question in desk.early:
            question.void |= (question.key, question.asker) == (key, asker)
        if desk.asking is not None:
            desk.over.append(Claim(key, asker, 0.0, written))
        desk.driver.run(desk.table.release(self._clock.seconds(), key, asker, written))

    def _perform(self, name: str, effect: Effect) -> None:
        if not isinstance(effect, Answered):
            raise AssertionError(f"unknown effect {effect!r}")
        answer = self._desks[name].answers.pop((effect.key, effect.asker), None)
        if answer is not None:
            answer.callback([effect.verdict, write_written(effect.written)])

    # -- claims

    def _claims(self, desk: Desk, peer: Member) -> list[Any]:
        """What is held here or was granted here. The peer grants from now on wherever it ranks above us, and may grant what we are asking others for."""
        self._notice(desk)
        now = self._clock.seconds()
        me = desk.manager.view.by_uid.get(self._me)
        if not has(desk.manager.view, peer):
            desk.ceded[peer.uid] = (now + _CEDED_S, peer)
        desk.driver.run(desk.table.send_away(lambda key: not outranks(peer, me, key)))
        self._taken_over(desk, peer)
        return [digest(desk.manager.view), write_claims([*self._ours(desk), *desk.table.claims(now)])]

    def _taken_over(self, desk: Desk, by: Member) -> None:
        """This member grants now what may have been granted to requests here: it hears when they give it back, and what is still on its way to them is void."""
        members = desk.manager.view.by_uid
        for grant in desk.held.values():
            grant.told.add(by.uid)
        for wanted in desk.wanted.values():
            first = desk.manager.locks.granter(wanted.key, wanted.granter)
            wanted.void |= by.uid != wanted.granter and (first == by.uid or outranks(by, members.get(first), wanted.key))

    def _ours(self, desk: Desk) -> list[Claim]:
        """What requests of this node hold, or have given back a moment ago."""
        now, held = self._clock.seconds(), (grant for grant in desk.held.values() if not grant.lost)
        claims = [Claim(grant.key, Asker(self._me, grant.serial), max(0.0, (grant.until - now) / OWN_PART), grant.written) for grant in held]
        return claims + [claim for until, claim in desk.recent.values() if now < until]

    def _doubt(self, desk: Desk) -> None:
        """Others may have granted what is granted here: not even who waits in the table already is granted anything before they were asked."""
        desk.claims_of = None
        if desk.table.hold_up():
            ensureDeferred(self._collected(desk)).addErrback(lambda failure: _log.failure("asking for claims of locks failed", failure))

    async def _collected(self, desk: Desk) -> None:
        """Everybody in this view has been asked for claims."""
        while desk.claims_of is not desk.manager.view and not self._stopped:
            await after(desk.asking or self._begin_collecting(desk))

    def _begin_collecting(self, desk: Desk) -> Deferred[None]:
        """It is nobody's: who waits for it and gives up does not end it for the others."""
        asking: Deferred[None] = Deferred()
        desk.asking = asking

        def over(result: Any) -> None:
            desk.asking, desk.over = None, []
            asking.callback(result)

        ensureDeferred(self._collect(desk, desk.manager.view)).addBoth(over)
        return asking

    async def _collect(self, desk: Desk, view: View) -> None:
        me, until = view.by_uid.get(self._me, self._channel.me), self._clock.seconds() + _CLAIMS_S
        asked, sleeps = [ensureDeferred(self._claims_of(desk, uid, me.weight, view, until)) for uid in view.by_uid if uid != self._me], desk.sleeps
        claims: list[Claim] = []
        for is_good, found in await DeferredList(asked, consumeErrors=True):
            if is_good:
                claims += found
            else:
                _log.failure("asking a member for claims of locks failed", found)  # type: ignore[arg-type]
        self._notice(desk)
        if desk.sleeps != sleeps:
            return  # they are of before, and asked for again
        known = [claim for claim in (*claims, *self._ours(desk), *desk.over) if self._granter(desk, claim.key) == self._me]
        self._taken_over(desk, me)
        present = desk.manager.view
        desk.driver.run(desk.table.adopt(self._clock.seconds(), known, lambda uid: uid in present))
        if desk.manager.view is view:
            desk.claims_of = view
            desk.driver.run(desk.table.go_on(self._clock.seconds()))

    async def _claims_of(self, desk: Desk, uid: bytes, weight: float, view: View, until: float) -> list[Claim]:
        """Of one member. It is asked again while its link is down, and while it sees other members than we do: of those beyond nobody here has heard yet. That ends by
        itself in a moment, or it is a partition, and then we grant on our side."""
        claims, pause_s = list[Claim](), _AGAIN_S
        while True:
            left_s = until - self._clock.seconds()
            try:
                replies = await self._channel.request((uid,), _SERVICE, _CLAIMS, [desk.name, weight], mode="all", timeout_s=left_s)
                reply = replies[uid]
                if type(reply) is not list or len(reply) < 2:
                    return []
                claims = read_claims(reply[1]) or []
                if reply[0] == digest(view):
                    return claims
            except ChannelError as error:
                if error.failed.get(uid) not in (LOST, UNCONNECTED):
                    return claims  # it knows nothing of locks, or is frozen
            if self._stopped or desk.manager.view is not view or until - self._clock.seconds() <= pause_s:
                return claims
            await deferLater(self._clock, pause_s)
            pause_s = min(2 * pause_s, _AGAIN_MAX_S)
