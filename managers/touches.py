"""Telling the others that a session was read.

A touch costs its copy one tuple, and is remembered apart from it: a copy that is only cached here, or on its way out, may be gone before anybody was told. It travels with the next sweep: every `save_period_s`, and never less often than ten
times an idle limit, whatever was used since goes out in one message; at once, if a session would be over for the others before they heard of its use. A commit tells the access itself.
"""

from __future__ import annotations

from .entry import Entry
from .placement import Placement, Uids
from .record import touched
from .replica import Replica
from .settings import ManagerSettings

__all__ = ["Touching"]

_AT_ONCE = 1000


class Touching:
    """Guarded by the manager's lock."""

    def __init__(self, settings: ManagerSettings) -> None:
        idle = (settings.idle_timeout_s, *(idle_s for idle_s, _ in settings.role_timeouts.values()))
        period_s = min(settings.save_period_s, *(idle_s / 10 for idle_s in idle if idle_s), settings.save_period_s)
        self.period_ms = max(1, int(period_s * 1000))
        self._used: dict[bytes, tuple[int, bytes]] = {}  # key -> when it was last used here, and who led it then
        self.next_ms: int | None = None  #: when the sweep is due

    def touch(self, key: bytes, entry: Entry, me: bytes, now_ms: int, hurries: bool = False) -> None:
        """`hurries`: the sweep is due now."""
        entry.touches = touched(entry.touches, me, now_ms, now_ms)
        if hurries or not self._used:
            self.next_ms = now_ms if hurries else now_ms + self.period_ms
        self._used[key] = (now_ms, entry.primary)

    def is_pending(self, key: bytes) -> bool:
        """Whether nobody was told yet that it was used."""
        return key in self._used

    def is_due(self, now_ms: int) -> bool:
        return self.next_ms is not None and now_ms >= self.next_ms

    def take(self, now_ms: int, replica: Replica, placement: Placement) -> list[tuple[Uids, list[tuple[bytes, int]]]]:
        """What is to be told and whom, in lists for one message each; nothing before its time."""
        if not self.is_due(now_ms):
            return []
        used, self._used, self.next_ms = self._used, {}, None
        told: dict[Uids, list[tuple[bytes, int]]] = {}
        for key, (last, named) in sorted(used.items()):
            entry = replica.held(key)
            if entry is not None:
                last, named = own_access(entry, replica.me), entry.primary
                if last <= entry.sent_ms:
                    continue
                entry.sent_ms = last
                replica.written.add(key)
            for group in placement.others(key, named):
                told.setdefault(group, []).append((key, last))
        return [(group, some[i : i + _AT_ONCE]) for group, some in told.items() for i in range(0, len(some), _AT_ONCE)]


def own_access(entry: Entry, me: bytes) -> int:
    """When this member last used the session, ms; 0: never."""
    touches = entry.touches
    for i in range(0, len(touches), 3):
        if touches[i] == me:
            return touches[i + 2]  # type: ignore[no-any-return]
    return 0
