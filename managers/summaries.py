"""Sessions as operators see them: sizes, ages, places; never ids or values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .core import SessionCore
from .heads import LIVE
from .placement import partition_of
from .record import RENEWED, Record

__all__ = ["LoginHere", "logins_here", "summaries"]


class LoginHere(NamedTuple):
    """A logged-in session, as a member that holds it knows it. `leads`: it is the primary. `number`: later logins have higher ones."""

    whose: bytes
    key: bytes
    number: int
    age_ms: int
    idle_ms: int
    leads: bool
    about: Mapping[str, str]

    def shown(self) -> dict[str, Any]:
        """To applications and operators."""
        return {"key": self.key.hex(), "age_s": self.age_ms / 1000, "idle_s": self.idle_ms / 1000, "login": self.number, "about": dict(self.about)}


def logins_here(core: SessionCore, whose: bytes, now_ms: int) -> list[LoginHere]:
    """The sessions of this principal that are held here, the youngest login first."""
    found = []
    for key in core.logins.of(whose):
        entry = core.replica.held(key)
        if entry is not None and key not in core.moving.near and not core.logins.is_over(key, entry):
            leads = core.placement.primary(key, entry.primary) == core.me
            about = core.logins.login(key).about
            found.append(LoginHere(whose, key, core.logins.number(key), now_ms - entry.created_ms, now_ms - entry.last_access_ms, leads, about))
    return found


def summaries(core: SessionCore, limit: int, after: bytes, now_ms: int) -> list[dict[str, Any]]:
    """Up to `limit` live sessions with keys above `after`, in the order of keys."""
    result: list[dict[str, Any]] = []
    names = {member.uid: member.name for member in core.placement.view}
    start = partition_of(after) if len(after) >= 2 else 0
    for key, entry in core.replica.entries(start):
        if len(result) >= limit:
            break
        if key <= after or entry.body is None or (entry.head is not None and entry.head.state != LIVE):
            continue
        record = Record.unpack(entry.body) if type(entry.body) is bytes else entry.body
        if RENEWED in record.registers:  # type: ignore[union-attr]
            continue  # it goes on under another key
        primary = entry.head.primary if entry.head is not None else b""
        holders = core.placement.holders(key, entry.primary)
        result.append({
            "key": key.hex(),
            "age_s": round((now_ms - entry.created_ms) / 1000, 3),
            "idle_s": round((now_ms - entry.last_access_ms) / 1000, 3),
            "attributes": len([name for name, r in record.registers.items() if r[2] is not None and name[:1] != "\0"]),  # type: ignore[union-attr]
            "bytes": record.size,  # type: ignore[union-attr]
            "primary": names.get(primary, primary.hex()[:8]),
            "holders": sorted(names.get(uid, uid.hex()[:8]) for uid in holders),
        })  # fmt: skip
    return result
