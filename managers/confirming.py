"""For whom a commit waits: which members have to confirm it, and, where it must be stored too, the store.

The receipts that are under way stand here by deadline, as all have the same patience; the manager's timer ends those that are late.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from ..membership.channel import Channel
from .core import SessionCore
from .placement import Groups, Uids
from .receipts import Joined, Receipt, Waiting, needed_confirmations

__all__ = ["PRESENT", "Confirming"]

PRESENT = "present"  #: a level of confirmation: everybody who can answer, whether or not it has compared with us. Not for users.


class Confirming:
    """Under the manager's lock, except `joined`."""

    def __init__(self, core: SessionCore, channel: Channel) -> None:
        self._core = core
        self._channel = channel
        self._settings = core.settings
        self.waitings: list[Waiting] = []
        self.is_alone = False  #: nobody else holds anything: what confirms a commit is the store, whatever level was asked for
        #: Sees that what stands under a key is stored, and gives a receipt; None: requests do not wait for a store.
        self.stored_soon: Callable[[bytes], Waiting] | None = None
        self.save: Callable[[], None] = lambda: None  #: called in the reactor's thread after that

    def await_(self, waiting: Waiting) -> None:
        """It ends when its time is over."""
        if waiting.needs_wait:
            self.waitings.append(waiting)

    def take_late(self, now_ms: int) -> list[Waiting]:
        late = [waiting for waiting in self.waitings if waiting.needs_wait and now_ms >= waiting.expires_ms]
        self.waitings = [waiting for waiting in self.waitings if waiting.needs_wait and now_ms < waiting.expires_ms]
        return late

    def by_level(self, holders: Uids, level: str | int) -> Waiting:
        """A receipt for the holders that can answer now."""
        synced, channel = self._core.entropy.in_sync, self._channel
        others = [uid for uid in holders if uid != self._core.me]
        if level == PRESENT:
            able = [uid for uid in others if not channel.is_degraded(uid)]
            return self._receipt(len(able), others, able, False)
        able = [uid for uid in others if uid in synced and not channel.is_degraded(uid)]
        needed = needed_confirmations(level, len(others), len(others) < len(holders))
        return self._receipt(needed, others, able, self._settings.strict_acks)

    def by_groups(self, *groups: Groups) -> Waiting:
        """For one message to each of these, as often as they are named, as far as they can answer."""
        return self.by_messages(Counter(uid for some in groups for group in some for uid in group))

    def by_messages(self, messages: Mapping[bytes, int]) -> Waiting:
        """For so many messages to each of these, as far as they can answer."""
        able = [uid for uid in messages if not self._channel.is_degraded(uid)]
        return self._receipt(len(able), list(messages), {uid: messages[uid] for uid in able}, strict=False)

    def _receipt(self, needed: int, others: Sequence[bytes], able: Sequence[bytes] | Mapping[bytes, int], strict: bool) -> Waiting:
        members = self._core.placement.view.by_uid
        names = {uid: members[uid].name for uid in others}
        return Waiting(needed, names, able, self._channel.now_ms() + int(self._settings.ack_timeout_s * 1000), strict)

    # -- the store

    def stored(self, *keys: bytes) -> list[Waiting]:
        """Receipts for what a request changed, if it has to be stored before its response leaves."""
        if self.stored_soon is None:
            return []
        stored = [self.stored_soon(key) for key in keys]
        self.waitings += stored
        return stored

    def joined(self, receipt: Receipt, stored: Sequence[Waiting]) -> Receipt:
        """Both in one. Any thread, without the lock."""
        if not stored:
            return receipt
        self._channel.wake(self.save)
        return Joined((receipt, *stored))
