"""Epochs: that all sessions of a principal ended, and how often, known to every member of the domain.

An epoch is a map ``{who ended them: count}``; counts grow by one with whatever a member ends, and only that member writes its own, so
nothing here can conflict. A login keeps the epoch it knew (`principals.py`) and is over once that does not cover the present one.
So an end reaches sessions that nobody who ended them had ever heard of: a healed partition brings the epoch across, and the logins of the other
side do not have it. Lamport's and Mattern's vector clocks are the idea.

Underneath is a manager like any other: entries are attributes of a fixed number of sessions that never end, as in `maps.py`, and every member
holds them, also one that has no weight. An entry goes after `keep_s`: no copy of a session is absent longer than that
(`retention_s`), so what it was to end is gone.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

from twisted.logger import Logger

from ..membership.channel import Channel
from ..membership.effects import Effect
from ..membership.view import View
from .base import SessionManager
from .errors import ValueDamaged
from .listeners import AttributeChanged
from .placement import EveryMember, Placement, partition_of
from .principals import KEY_BYTES, Epoch
from .receipts import Receipt
from .session import Session, key_of
from .settings import BUCKET_MAX_BYTES, ManagerSettings

__all__ = ["NAME", "Epochs"]

NAME = "epochs:"  #: no manager of an application can have it
_BUCKETS = 256
_IDS = [urlsafe_b64encode(sha256(b"caterwaul epochs\0%d" % number).digest()).rstrip(b"=").decode("ascii") for number in range(_BUCKETS)]
_BY_KEY = {key_of(bucket): bucket for bucket in _IDS}
_LOOK_EVERY_MS = 60_000

_log = Logger()


def _strategy(view: View, me: bytes) -> Placement:
    return EveryMember(replace(view, members=tuple(replace(member, weight=1) for member in view)), me)


class Epochs(SessionManager):
    """One node's, for all its managers: their `EpochBook`."""

    def __init__(self, channel: Channel, keep_s: float, **options: Any) -> None:
        settings = ManagerSettings(
            acks="all", idle_timeout_s=0.0, absolute_timeout_s=0.0, retention_s=max(keep_s, 60.0), unknown_for_s=0.0, reconcile_period_s=300.0,
            session_max_bytes=BUCKET_MAX_BYTES, attributes_max=2**40,
        )  # fmt: skip
        super().__init__(NAME, channel, settings, _strategy, **options)
        self._committing.hastens = False  # a session that an end leaves out is committed before it
        self.current: dict[bytes, Epoch] = {}  #: by principal's key
        self.on_change: list[Callable[[bytes], object]] = []
        self._keep_ms = int(keep_s * 1000)
        self._since: dict[str, int] = {}  # when each entry was heard of first, the oldest first
        self._look_ms = 0
        self.ended = 0  #: how often this member has ended anything
        self.listen(AttributeChanged, self._changed, replicas=True)

    def reserve(self) -> Epoch:
        """See `EpochBook`."""
        with self._lock:
            self.ended += 1
            return {self._uid: self.ended}

    def advance(self, whose: bytes, reserved: Epoch) -> Receipt:
        """See `EpochBook`."""
        count = reserved[self._uid]
        with self._lock:
            self._know(whose, self._uid, count)
        bucket = self._bucket(whose)
        bucket[(whose + self._uid).hex()] = count
        return self.commit(bucket, touch=False)

    def _bucket(self, whose: bytes) -> Session:
        """Of a bucket nothing needs to be read for writing to it: it never ends, and each member writes its own entries."""
        bucket = self._made()
        bucket.adopt(_IDS[whose[0] % _BUCKETS])
        return bucket

    def _know(self, whose: bytes, uid: bytes, count: int) -> None:
        """Maps are replaced, not changed: others read them."""
        known = self.current.get(whose, {})
        if count > known.get(uid, 0):
            self.current[whose] = {**known, uid: count}

    def _changed(self, event: AttributeChanged) -> None:
        try:
            name = bytes.fromhex(event.name)
        except ValueError:
            return
        if len(name) != KEY_BYTES + len(self._uid) or event.key not in _BY_KEY:
            return
        whose, uid = name[:KEY_BYTES], name[KEY_BYTES:]
        count = self._value(event.key, event.name)
        if count is None:
            self._forget(event.name, whose, uid)
            return
        self._since.setdefault(event.name, self._channel.now_ms())
        with self._lock:
            self._know(whose, uid, count)
        for callback in self.on_change:
            callback(whose)

    def _forget(self, name: str, whose: bytes, uid: bytes) -> None:
        self._since.pop(name, None)
        with self._lock:
            left = {other: count for other, count in self.current.get(whose, {}).items() if other != uid}
            if left:
                self.current[whose] = left
            else:
                self.current.pop(whose, None)

    def _value(self, key: bytes, name: str) -> int | None:
        with self._lock:
            entry = self._core.replica.get(key)
            record = self._core.replica.record(key, entry) if entry is not None else None
            register = record.registers.get(name) if record is not None else None
        if register is None or register[2] is None:
            return None
        try:
            value = self.types.decode(register[2])
        except ValueDamaged:
            return None
        return value if type(value) is int else None

    def tick(self, now: float) -> list[Effect]:
        now_ms = self._channel.now_ms()
        if now_ms >= self._look_ms:
            self._look_ms = now_ms + _LOOK_EVERY_MS
            self._drop_old(now_ms)
        return super().tick(now)

    def _drop_old(self, now_ms: int) -> None:
        """One member takes old entries out, for all; what it had not heard of for as long as others, it takes out later."""
        placement = self._core.placement
        for name, since_ms in list(self._since.items()):
            if now_ms - since_ms < self._keep_ms:
                return
            whose = bytes.fromhex(name)[:KEY_BYTES]
            if placement.keepers(partition_of(key_of(_IDS[whose[0] % _BUCKETS])))[:1] != (self._uid,):
                continue
            bucket = self.open_local(_IDS[whose[0] % _BUCKETS])
            if bucket is not None and not bucket.unknown:
                bucket.pop(name, None)
                self.commit(bucket, acks="none", touch=False)
                self.release(bucket)

    def statistics(self) -> dict[str, int]:
        return {**super().statistics(), "epochs": len(self.current)}
