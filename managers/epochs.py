"""Epochs: that all sessions of a principal ended, and how often, known to every member of the domain.

An epoch is a map ``{who ended them: count}``; counts grow by one with whatever a member ends. A login keeps the epoch it knew (`principals.py`) and is over
once that does not cover the present one. So an end reaches sessions that nobody who ended them had ever heard of: a healed partition brings the epoch
across, and the logins of the other side do not have it. Lamport's and Mattern's vector clocks are the idea.

Underneath is a manager like any other, which every member takes part in whatever its weight. Each end is an attribute of one of a fixed number of sessions that
never end, as in `maps.py`. Its name says all (principal, member, count), so no two writes ever meet in one attribute, and taking an old end out takes
out no other. Its value is an *age* of 0 to 7 parts of `keep_s`: who is first keeper and has heard of an end for a part of that adds one, and removes
it at last, so an end goes though no process lives that long. By then no copy of a session is left that it was for (`retention_s`).
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from itertools import takewhile
from typing import Any, NamedTuple

from ..membership.channel import Channel
from ..membership.effects import Effect
from ..membership.member import UID_BYTES
from ..membership.view import View
from .base import SessionManager
from .confirming import PRESENT
from .errors import ValueDamaged
from .heads import COUNTER_MAX
from .listeners import AttributeChanged
from .placement import EveryMember, Placement, partition_of
from .principals import EPOCHS, KEY_BYTES, Epoch
from .receipts import Receipt
from .session import Session, key_of
from .settings import BUCKET_MAX_BYTES, ManagerSettings

__all__ = ["Epochs"]

_BUCKETS = 256
_IDS = [urlsafe_b64encode(sha256(b"caterwaul epochs\0%d" % number).digest()).rstrip(b"=").decode("ascii") for number in range(_BUCKETS)]
_KEYS = [key_of(bucket) for bucket in _IDS]
_NAME_CHARACTERS = 2 * (KEY_BYTES + UID_BYTES)
_is_name = re.compile(rf"[0-9a-f]{{{_NAME_CHARACTERS}}}\.([1-9a-f][0-9a-f]{{0,13}})").fullmatch
_AGES = 8
_LOOK_EVERY_MS = 60_000
_ALONE_MS = 5000  # who meets nobody for so long is not joining others, but the others it


class _End(NamedTuple):
    """Of all sessions of a principal, by this member: its `nth`."""

    whose: bytes
    by: bytes
    nth: int

    @property
    def name(self) -> str:
        return f"{(self.whose + self.by).hex()}.{self.nth:x}"

    @property
    def bucket(self) -> int:
        return self.whose[0] % _BUCKETS


def _end_of(name: str, key: bytes) -> _End | None:
    """What this attribute of this bucket says; None: a peer made it up."""
    match = _is_name(name)
    if match is None or int(match[1], 16) > COUNTER_MAX:
        return None
    who = bytes.fromhex(name[:_NAME_CHARACTERS])
    end = _End(who[:KEY_BYTES], who[KEY_BYTES:], int(match[1], 16))
    return end if _KEYS[end.bucket] == key else None


def _strategy(view: View, me: bytes) -> Placement:
    return EveryMember(replace(view, members=tuple(replace(member, weight=1) for member in view)), me)


class Epochs(SessionManager):
    """One node's, for all its managers: their `EpochBook`."""

    def __init__(self, channel: Channel, keep_s: float, **options: Any) -> None:
        settings = ManagerSettings(
            idle_timeout_s=0.0, absolute_timeout_s=0.0, retention_s=max(keep_s, 60.0), unknown_for_s=0.0, reconcile_period_s=300.0,
            save_mode="on_set", session_max_bytes=BUCKET_MAX_BYTES, attributes_max=2**40,
        )  # fmt: skip
        super().__init__(EPOCHS, channel, settings, _strategy, **options)
        self._core.eternal = True
        self._committing.hastens = False  # a session that an end leaves out is committed before it
        self.current: dict[bytes, Epoch] = {}  #: by principal's key; maps are replaced, not changed: others read them
        self.on_change: list[Callable[[bytes], object]] = []
        self._ends: dict[bytes, set[_End]] = {}
        self._part_ms = int(keep_s * 1000) // _AGES
        self._since: dict[_End, tuple[int, int]] = {}  # (when heard of at this age, age), the longest first
        self._look_ms = 0
        self._has_joined = False
        self._alone_ms = channel.now_ms() + _ALONE_MS
        self.ended = 0  #: how often this member has ended anything
        self.listen(AttributeChanged, self._changed, replicas=True)

    @property
    def has_joined(self) -> bool:
        """See `EpochBook`."""
        if not self._has_joined:
            alone = not self._core.placement.peers()
            self._has_joined = self._channel.now_ms() >= self._alone_ms if alone else self._core.in_sync
            return self._has_joined or alone
        return True

    @property
    def is_loaded(self) -> bool:
        """See `EpochBook`."""
        return self.persistence is None or self.persistence.is_loaded

    def reserve(self) -> Epoch:
        """See `EpochBook`."""
        with self._lock:
            self.ended += 1
            return {self._uid: self.ended}

    def advance(self, whose: bytes, reserved: Epoch) -> Receipt:
        """See `EpochBook`."""
        end = _End(whose, self._uid, reserved[self._uid])
        with self._lock:
            older = [other for other in self._ends.get(whose, ()) if other.by == self._uid and other.nth < end.nth]
            self._know(end)
        bucket = self._made()
        bucket.adopt(_IDS[end.bucket])  # nothing has to be read for writing to it
        bucket[end.name] = 0
        for other in older:
            bucket.write(other.name, None)
        return self.commit(bucket, PRESENT, touch=False)

    def _know(self, end: _End) -> None:
        self._ends.setdefault(end.whose, set()).add(end)
        self._count(end.whose)

    def _forget(self, end: _End) -> None:
        self._since.pop(end, None)
        self._ends.get(end.whose, set()).discard(end)
        self._count(end.whose)

    def _count(self, whose: bytes) -> None:
        epoch: dict[bytes, int] = {}
        for end in self._ends.get(whose, ()):
            epoch[end.by] = max(end.nth, epoch.get(end.by, 0))
        if epoch:
            self.current[whose] = epoch
        else:
            self.current.pop(whose, None)
            self._ends.pop(whose, None)

    def _changed(self, event: AttributeChanged) -> None:
        end = _end_of(event.name, event.key)
        if end is None:
            return
        with self._lock:
            age = self._age(event.key, event.name)
            if age is None:
                self._forget(end)
                return
            self._since.pop(end, None)
            self._since[end] = (self._channel.now_ms(), age)
            self._know(end)
        for callback in self.on_change:
            callback(end.whose)

    def _age(self, key: bytes, name: str) -> int | None:
        """None: it is not there any more."""
        entry = self._core.replica.get(key)
        record = self._core.replica.record(key, entry) if entry is not None else None
        register = record.registers.get(name) if record is not None else None
        if register is None or register[2] is None:
            return None
        try:
            age = self.types.decode(register[2])
        except ValueDamaged:
            age = 0
        return age if type(age) is int and 0 <= age < _AGES else 0

    def tick(self, now: float) -> list[Effect]:
        now_ms = self._channel.now_ms()
        if now_ms >= self._look_ms:
            self._look_ms = now_ms + min(_LOOK_EVERY_MS, self._part_ms)
            self._grow_old(now_ms)
        return super().tick(now)

    def _grow_old(self, now_ms: int) -> None:
        due = [end for end, _ in takewhile(lambda item: now_ms - item[1][0] >= self._part_ms, self._since.items())]
        for end in due:
            if self._core.placement.keepers(partition_of(_KEYS[end.bucket]))[:1] != (self._uid,):
                continue
            age = self._since[end][1] + 1
            bucket: Session = self._made()
            bucket.adopt(_IDS[end.bucket])
            if age < _AGES:
                bucket[end.name] = age
            else:
                bucket.write(end.name, None)
            self.commit(bucket, "none", touch=False)

    def statistics(self) -> dict[str, int]:
        return {**super().statistics(), "epochs": len(self.current)}
