"""When a cluster used its store last: what stands in a store of long ago may have ended since, where nobody remembers.

Ends of sessions are remembered for `retention_s`. A store that the cluster has not used for longer (it was taken out of the configuration, or a backup was put back) can show sessions of which nobody
can know that they live. So a cluster that uses a store writes the time into it, every minute; a node that finds that time too old brings nothing back from it, and says so, until an
operator says that it is right (`caterwaul store trust`). What the cluster has in memory is stored as always.
"""

from __future__ import annotations

import time

from ..managers.stores.store import NOTHING, Save, Store
from ..membership.codec import decode, encode
from ..membership.errors import RemoteError

__all__ = ["CLOCK", "age_s", "stamp"]

CLOCK = "clock:"  #: the space of it, which no manager can have
_KEY = bytes(16)
_ETERNAL_MS = 2**53


def age_s(store: Store, now_s: float | None = None) -> float:
    """How long ago the cluster used it last; 0: never. Blocks; raises `StoreError`."""
    item = store.load([_KEY]).get(_KEY)
    try:
        used_ms = decode(item.data) if item is not None else None
    except RemoteError:
        used_ms = None
    return max(0.0, (time.time() if now_s is None else now_s) - used_ms / 1000) if type(used_ms) is int else 0.0


def stamp(store: Store, now_s: float | None = None) -> None:
    """It is used now. Of several that say so at once one is enough. Blocks; raises `StoreError`."""
    item = store.load([_KEY]).get(_KEY)
    data = encode(int((time.time() if now_s is None else now_s) * 1000))
    store.save_many([Save(_KEY, data, _ETERNAL_MS, NOTHING if item is None else item.revision)])
