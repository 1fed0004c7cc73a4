"""Under which name this member writes to a session.

A record says of each author up to which commit it has *all* of that author's; counters, sets, and what is forgotten of removed
attributes build on that. A member that parted from its copy and gets an older one back (those who have the newer are beyond a cut) would break it by
writing on: where the two copies meet, commits of its own that the older one lacks would pass for removed, or for counted. So it
writes under another name there, as if it were another member, and both count.

Nothing of that is needed while a member holds a session, nor where it gets back all that it wrote; so what is kept here is small.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from hashlib import sha256

__all__ = ["Authors"]

_KEPT_MAX = 65_536  # an older copy comes back within seconds, or not at all


class Authors:
    """Guarded by the manager's lock. Keys and names are 16 bytes."""

    def __init__(self, me: bytes) -> None:
        self._me = me
        self._left: OrderedDict[bytes, int] = OrderedDict()  # key -> our last commit in a copy that went
        self._names: OrderedDict[bytes, bytes] = OrderedDict()  # key -> our name there, where that is not our own

    def parted(self, key: bytes, counter: int) -> None:
        """A copy in which this was our last commit went."""
        _keep(self._left, key, counter)

    def of(self, key: bytes, applied: Mapping[bytes, int], counter: int) -> bytes:
        """Our name for a commit with this counter to the copy that has applied this. The same again until it is dropped."""
        name = self._names.get(key, self._me)
        if applied.get(name, 0) >= self._left.get(key, 0):
            return name
        del self._left[key]
        name = sha256(self._me + counter.to_bytes(8, "big")).digest()[:16]
        _keep(self._names, key, name)
        return name


def _keep(table: OrderedDict[bytes, int] | OrderedDict[bytes, bytes], key: bytes, value: int | bytes) -> None:
    table[key] = value  # type: ignore[assignment]
    table.move_to_end(key)
    if len(table) > _KEPT_MAX:
        table.popitem(last=False)
