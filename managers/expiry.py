"""When a session ends by itself.

The first keeper of a session's partition watches it (the first holder, where keepers have only its head). When its copy says that nobody used the session for its idle limit,
it asks the primary and every other present holder (touches travel late, and a request may be under way there); it ends
the session only when none of them knows later activity. With no answer from some it asks again later; a holder that is
gone from the view is asked no more. Absolute limits need no question. The others only watch their own clocks: a copy
past its deadline is not served before a keeper was asked. A session whose login is over (`principals.py`) is served no more, and ends soon, whoever uses it.

Where a store is what decides (`lapsing.py`), a copy's clock ends nothing: another server may have used the session. Then it is only said that the time seems to have come.

Deadlines live in a calendar of coarse buckets (`wheel.py`); a session that was used since goes into a later bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import takewhile
from typing import Any, NamedTuple

from ..membership.effects import Effect, Send
from .entry import Audited, Ended, Entry
from .heads import EXPIRED, ID_CHANGED, INVALIDATED, LIVE, Head
from .limits import Limits, limits_of
from .messages import Speaker
from .placement import Placement, partition_of
from .principals import EPOCHS, Logins
from .record import RENEWED, Record, Register, Touches
from .renewal import read_renewed
from .replica import Replica
from .settings import ManagerSettings
from .wheel import Wheel

__all__ = ["Expiry", "SharedEnded", "TimeSeemsOver", "deadline_of"]

_LOOKS_AT_ONCE = 1000  # keys looked at in one tick: a few milliseconds under the lock
_ASK_AT_ONCE = 256
_GRACE_MS = 1000  # a session whose login is over is not served, and ends so much later: another login may be on its way


def deadline_of(entry: Entry, record: Record | None, managers: Limits) -> tuple[int | None, bool]:
    """When the session ends if nobody uses it, in our ms; and whether that is its absolute limit. None: never. `managers`: limits of those that have none of their own."""
    if record is not None and RENEWED in record.registers and (renewed := read_renewed(record.registers)) is not None:
        return entry.created_ms + renewed.until_ms, True
    limits = limits_of(record.registers, managers) if record is not None else managers
    by_idle = entry.last_access_ms + limits.idle_ms if limits.idle_ms else None
    by_age = entry.created_ms + limits.absolute_ms if limits.absolute_ms else None
    if by_idle is None or (by_age is not None and by_age <= by_idle):
        return by_age, True
    return by_idle, False


class _Question:
    __slots__ = ("asked", "expires_ms")

    def __init__(self, asked: set[bytes], expires_ms: int) -> None:
        self.asked = asked
        self.expires_ms = expires_ms


class Expiry:
    """A part of the manager's core. `in_use` counts the requests that have a session open here."""

    def __init__(self, me: bytes, speaker: Speaker, replica: Replica, settings: ManagerSettings, in_use: dict[bytes, int], logins: Logins) -> None:
        self.me = me
        self._logins = logins
        self._say = speaker
        self._replica = replica
        self._in_use = in_use
        self.limits = Limits(int(settings.idle_timeout_s * 1000), int(settings.absolute_timeout_s * 1000))
        self._retention_ms = int(settings.retention_s * 1000)
        self._again_ms = max(int(settings.expire_check_s * 1000), min(int(settings.save_period_s * 1000), self.limits.idle_ms // 10 or 1000))
        self._patience_ms = int(settings.ack_timeout_s * 1000)
        self._wheel = Wheel(int(settings.expire_check_s * 1000))
        self._questions: dict[bytes, _Question] = {}
        self.is_awaited: Callable[[bytes], bool] = lambda key: False  #: whether a store is to be told of this end yet
        self.leaves_it_to_a_store = False  #: nothing ends here by itself, see `TimeSeemsOver`
        self.expired = self.asked = 0

    def is_over(self, key: bytes, entry: Entry, now_ms: int) -> bool:
        """Past its own deadline here: not to be served before somebody who knows better was asked. Or its login is over: not to be served at all."""
        if entry.principal is not None and self._logins.is_over(key, entry):
            return True
        deadline, _ = deadline_of(entry, self._replica.record(key, entry), self.limits)
        return deadline is not None and now_ms >= deadline and (key not in self._in_use or self._is_replaced(entry))

    def is_near(self, key: bytes, entry: Entry, now_ms: int, within_ms: int) -> bool:
        """Whether its idle limit ends it within this time for all who do not hear of a use."""
        deadline, is_absolute = deadline_of(entry, self._replica.record(key, entry), self.limits)
        return deadline is not None and not is_absolute and now_ms + within_ms >= deadline

    def _is_replaced(self, entry: Entry) -> bool:
        """Whether the session goes on under another key, so that who uses it uses that."""
        return RENEWED in self._registers(entry)

    def _registers(self, entry: Entry) -> Mapping[str, Register]:
        """Of a record that was just looked at, and so is not packed."""
        return entry.body.registers if isinstance(entry.body, Record) else {}

    def schedule(self, key: bytes, now_ms: int) -> None:
        """Look at this key when its time comes: a new session, one whose login is over, or one that ended (its tombstone's retention)."""
        entry = self._replica.get(key)
        if entry is None:
            return
        if entry.head is not None and entry.head.state != LIVE:
            self._wheel.add(key, entry.head.ended_ms + self._retention_ms)
            return
        if self._logins.is_over(key, entry):
            self._wheel.add(key, now_ms + _GRACE_MS)
            return
        if entry.body is None:
            entry.created_ms = now_ms  # only its head has come: its age comes with the record
        record = self._replica.record(key, entry) if entry.body is not None else None
        deadline, _ = deadline_of(entry, record, self.limits)
        self._wheel.add(key, now_ms + self._again_ms * 60 if deadline is None else deadline)

    def look_soon(self, keys: Iterable[bytes], now_ms: int) -> None:
        """Logins of these may be over."""
        for key in keys:
            self._wheel.add(key, now_ms + _GRACE_MS)

    def tick(self, now_ms: int, placement: Placement) -> list[Effect]:
        questions: dict[bytes, list[bytes]] = {}
        effects: list[Effect] = []
        for key, _ in list(takewhile(lambda item: now_ms >= item[1].expires_ms, self._questions.items())):
            del self._questions[key]
            self._wheel.add(key, now_ms + self._again_ms)
        for key in self._wheel.due(now_ms, _LOOKS_AT_ONCE):
            effects += self._look(key, now_ms, placement, questions)
        for peer, keys in sorted(questions.items()):
            for i in range(0, len(keys), _ASK_AT_ONCE):
                effects.append(Send((peer,), self._say.ask(keys[i : i + _ASK_AT_ONCE])))
        return effects

    def _look(self, key: bytes, now_ms: int, placement: Placement, questions: dict[bytes, list[bytes]]) -> list[Effect]:
        entry = self._replica.get(key)
        if entry is None or key in self._questions:
            return []
        if entry.head is not None and entry.head.state != LIVE:
            self._look_at_end(key, entry.head, now_ms)
            return []
        is_out = self._logins.is_over(key, entry, last_look=True)
        deadline, by_age = (now_ms, True) if is_out else deadline_of(entry, self._replica.record(key, entry), self.limits)
        if deadline is None:
            self._wheel.add(key, now_ms + self._again_ms * 60)
            return []
        if now_ms < deadline:
            self._wheel.add(key, deadline)
            return []
        if self.leaves_it_to_a_store:
            self._wheel.add(key, now_ms + self._again_ms)
            return [TimeSeemsOver(key)]
        holders = placement.holders(key, entry.primary)
        watchers = [uid for uid in placement.keepers(partition_of(key)) if uid in holders] or holders
        if is_out:  # who knows of logins; an older member does not
            watchers = [uid for uid in (*watchers, *holders) if EPOCHS in placement.view.by_uid[uid].managers] or watchers
        if (
            (watchers and watchers[0] != self.me)
            or (key in self._in_use and not is_out and not self._is_replaced(entry))
            or (entry.body is None and self.me not in holders)
        ):
            self._wheel.add(key, now_ms + self._again_ms)
            return []
        asked = {uid for uid in holders if uid != self.me}
        if entry.head is not None and entry.head.primary != self.me and entry.head.primary in placement.view:
            asked.add(entry.head.primary)
        if is_out:
            self._logins.ended += 1
            by = self._logins.ender(key, entry)
            tag = self._logins.tag(key) if by == "limit" else None
            return [*self._end(key, INVALIDATED, now_ms, "ended", by), *([] if tag is None else [SharedEnded(tag)])]
        if (renewed := read_renewed(self._registers(entry))) is not None:
            return self._end(key, ID_CHANGED, now_ms, went=renewed.key)
        if by_age or not asked:
            self.expired += 1
            return self._end(key, EXPIRED, now_ms)
        self.asked += 1
        self._questions[key] = _Question(asked, now_ms + self._patience_ms)
        for uid in asked:
            questions.setdefault(uid, []).append(key)
        return []

    def _look_at_end(self, key: bytes, head: Head, now_ms: int) -> None:
        over_ms = head.ended_ms + self._retention_ms
        if now_ms < over_ms:
            self._wheel.add(key, over_ms)
        elif self.is_awaited(key):  # what is stored lives, and would come back
            self._wheel.add(key, now_ms + self._again_ms)
        else:
            self._replica.forget(key)

    def _end(self, key: bytes, state: int, now_ms: int, what: str = "expired", by: str = "", went: bytes = b"") -> list[Effect]:
        who = self._logins.who(key) if state != ID_CHANGED else None  # that was told when it was replaced
        head = self._replica.end(key, state, now_ms, went)
        if head is None:
            return []
        if who is not None:
            self._replica.events.append(Audited(what, key, *who, by))
        return [Ended(key, head)]

    def asked_for(self, keys: list[bytes]) -> list[tuple[bytes, Touches, bool]]:
        """What we know of the last use of these sessions: (key, touches, in use)."""
        answers: list[tuple[bytes, Touches, bool]] = []
        for key in keys:
            entry = self._replica.get(key)
            answers.append((key, entry.touches if entry is not None else (), key in self._in_use))
        return answers

    def answered(self, peer: bytes, answers: list[tuple[bytes, Touches, bool]], now_ms: int, outcome: Any) -> list[Effect]:
        effects: list[Effect] = []
        for key, touches, in_use in answers:
            for i in range(0, len(touches), 3):
                self._replica.touch(key, touches[i], touches[i + 1], touches[i + 2], outcome)
            question = self._questions.get(key)
            entry = self._replica.get(key)
            if question is None or entry is None:
                continue
            question.asked.discard(peer)
            deadline, _ = deadline_of(entry, self._replica.record(key, entry), self.limits)
            if in_use or deadline is None or now_ms < deadline:
                del self._questions[key]
                self._wheel.add(key, max(deadline or 0, now_ms + self._again_ms))
            elif not question.asked:
                del self._questions[key]
                self.expired += 1
                effects += self._end(key, EXPIRED, now_ms)
        return effects

    def lost(self, peer: bytes) -> None:
        """A holder is gone: its answer is waited for no more; whoever else was asked decides, or the question is put again."""
        for question in self._questions.values():
            question.asked.discard(peer)

    @property
    def deadline_ms(self) -> int | None:
        asked = next((question.expires_ms for question in self._questions.values()), None)  # all have the same time, so the first is the oldest
        return min((at for at in (asked, self._wheel.next_ms) if at is not None), default=None)


class TimeSeemsOver(NamedTuple):
    """Effect: the time of this session, or of its login, is over by what is known here, and the store decides."""

    key: bytes


class SharedEnded(NamedTuple):
    """Effect: the login that applications share under this tag is over for all of them."""

    tag: bytes
