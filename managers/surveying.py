"""Who holds what, in pages: for questions about the cluster as a whole, such as which sessions would not survive a loss.

An *item* is a key and a digest of what is held under it, 24 bytes; equal digests mean equal copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

from .changes import KEY_BYTES
from .core import SessionCore
from .digests import digest
from .entry import Entry, is_whole
from .heads import LIVE
from .messages import DIGEST_BYTES
from .placement import partition_of

__all__ = ["ABSENT", "ITEM_BYTES", "OTHER", "SAME", "compare", "items_of", "page"]

ABSENT, OTHER, SAME = range(3)  #: what is held here, compared with an item: nothing, another version, the same
ITEM_BYTES = KEY_BYTES + DIGEST_BYTES


def page(core: SessionCore, after: bytes, limit: int, wanted: Callable[[bytes], bool] = lambda key: True) -> list[bytes]:
    """Items of live sessions of which this member holds a copy that counts, by key, those after the key `after` (empty: from the beginning).
    At most `limit`; fewer only at the end. Only those that are `wanted`."""
    entries = core.replica.entries(partition_of(after) if after else 0)
    return list(islice((_item(core, key, entry) for key, entry in entries if key > after and _counts(core, key, entry) and wanted(key)), limit))


def items_of(core: SessionCore, keys: Iterable[bytes]) -> list[bytes]:
    """The same for these keys, as far as they are held."""
    entries = ((key, core.replica.get(key)) for key in keys)
    return [_item(core, key, entry) for key, entry in entries if entry is not None and _counts(core, key, entry)]


def compare(core: SessionCore, items: Iterable[bytes]) -> bytes:
    """For each item one byte: `ABSENT`, `OTHER` or `SAME`."""
    verdicts = bytearray()
    for item in items:
        key = item[:KEY_BYTES]
        entry = core.replica.get(key)
        if entry is None or not _counts(core, key, entry):
            verdicts.append(ABSENT)
        else:
            verdicts.append(SAME if _item(core, key, entry) == item else OTHER)
    return bytes(verdicts)


def _counts(core: SessionCore, key: bytes, entry: Entry) -> bool:
    """A near copy may go at any time, and a part is no copy. One that is just being handed over is kept until that is done."""
    stays = key not in core.moving.near or key in core.moving.handover.parting.leaving
    return stays and entry.body is not None and is_whole(entry) and (entry.head is None or entry.head.state == LIVE)


def _item(core: SessionCore, key: bytes, entry: Entry) -> bytes:
    return key + digest(None, core.replica.body_of(entry))
