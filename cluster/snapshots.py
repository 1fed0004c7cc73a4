"""A copy of all sessions of a running cluster, and their way back: what the admin socket's `/snapshot` does.

Each member gives pages of the sessions it answers for (`managers/snapshots.py`); whoever wants them all asks each member, manager by manager. The epochs of principals
and the parts of maps are sessions of managers of their own, and come along: with the epochs first, no login is served that was over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

from twisted.internet.defer import Deferred, ensureDeferred

from ..managers.principals import EPOCHS
from ..managers.settings import ManagerSettings
from ..managers.snapshots import Page, Snapshots
from ..membership.codec import decode, encode
from ..membership.errors import LocalError, RemoteError
from ..membership.member import Member
from ..membership.view import View
from .errors import ChannelError

__all__ = ["Kept", "SnapshotDesk"]

_SERVICE = "snapshot"
_PAGE, _RESTORE = range(2)
_COUNTS = ("restored", "merged", "ended", "over")
_KEY_BYTES = 16
_TIMEOUT_S = 10.0


class Kept(Protocol):
    """What is asked of a session manager."""

    snapshots: Snapshots
    settings: ManagerSettings


class SnapshotDesk:
    """One node's: answers the questions of others from the start on, and puts its own. Reactor thread."""

    def __init__(self, channel: Any, engines: Mapping[str, Kept], cluster: str) -> None:
        self._channel = channel
        self._engines = engines
        self._cluster = cluster
        channel.serve(_SERVICE, self._asked)

    def overview(self, view: View) -> dict[str, Any]:
        """Whom to ask for what: ``{"cluster", "view", "managers": [{"name", "members": [{"name", "uid"}], "retention_s"}]}``, in the order of giving back."""
        return {
            "cluster": self._cluster,
            "view": view.number,
            "managers": [
                {
                    "name": name,
                    "retention_s": self._engines[name].settings.retention_s,
                    "members": [{"name": member.name, "uid": member.uid.hex()} for member in view if name in member.managers],
                }
                for name in sorted(self._engines, key=lambda name: (name != EPOCHS, name))
            ],
        }

    def page(self, view: View, manager: str, member: bytes, after: bytes) -> Deferred[dict[str, Any]]:
        """``{"items": packed sessions as one CBOR array, "after": key to go on after or empty, "skipped", "view"}``. Fails with `LocalError`."""
        return ensureDeferred(self._page(view, manager, member, after))

    async def _page(self, view: View, manager: str, uid: bytes, after: bytes) -> dict[str, Any]:
        member = view.by_uid.get(uid)
        if member is None:
            raise LocalError("a member has left while its sessions were saved; save again")
        if uid == self._channel.me.uid:
            reply: Any = self._asked(member, _PAGE, [manager, after])
        else:
            reply = await self._ask(uid, member.name, _PAGE, [manager, after])
        match reply:
            case [list(items), bytes(following), int(skipped), *_] if all(type(item) is bytes for item in items) and (not following or following > after):
                return {"items": encode(items), "after": following, "skipped": skipped, "view": view.number}
        raise LocalError(f"{member.name} gave no usable answer")

    def restore(self, manager: str, data: bytes, as_used: bool) -> Deferred[dict[str, Any]]:
        """Give back what `page` gave: ``{"restored", "merged", "ended", "over", "unconfirmed": names}``. Fails with `LocalError`."""
        return ensureDeferred(self._restore(manager, data, as_used))

    async def _restore(self, manager: str, data: bytes, as_used: bool) -> dict[str, Any]:
        engine = self._engines.get(manager)
        if engine is None:
            raise LocalError(f"this node has no manager {manager!r}")
        try:
            items = decode(data)
            if type(items) is not list or not all(type(item) is bytes for item in items):
                raise RemoteError("not an array of byte strings")
            homes = engine.snapshots.homes(items)
        except RemoteError as error:
            raise LocalError(f"these are no sessions: {error}") from None
        counts: Counter[str] = Counter()
        unconfirmed: set[str] = set()
        for uid, some in sorted(homes.items()):
            said = await self._give_back(uid, manager, some, as_used)
            counts.update(dict(zip(_COUNTS, said, strict=False)))
            unconfirmed.update(said[len(_COUNTS)])
        return {**{name: counts[name] for name in _COUNTS}, "unconfirmed": sorted(unconfirmed)}

    async def _give_back(self, uid: bytes, manager: str, items: list[bytes], as_used: bool) -> list[Any]:
        reply: Any
        if uid == self._channel.me.uid:
            reply = await self._given(manager, items, as_used)
        else:
            reply = await self._ask(uid, "a member", _RESTORE, [manager, items, as_used])
        match reply:
            case [int(), int(), int(), int(), list(names), *_] if all(type(name) is str for name in names):
                return list(reply)
        raise LocalError("a member gave no usable answer")

    async def _given(self, manager: str, items: list[bytes], as_used: bool) -> list[Any]:
        found = self._engines[manager].snapshots.restore(items, as_used)
        if found.receipt.needs_wait:
            await found.receipt.deferred()
        return [found.restored, found.merged, found.ended, found.over, list(found.receipt.unconfirmed)]

    async def _ask(self, uid: bytes, name: str, op: int, body: list[Any]) -> Any:
        try:
            return (await self._channel.request((uid,), _SERVICE, op, body, mode="all", timeout_s=_TIMEOUT_S))[uid]
        except ChannelError as error:
            raise LocalError(f"{name} does not answer: {'; '.join(error.failed.values()) or error}") from None

    def _asked(self, peer: Member, op: int, body: object) -> list[Any] | Deferred[list[Any]]:
        """A question. Raises `RemoteError` if it is malformed."""
        match body:
            case [str(name), bytes(after), *_] if op == _PAGE and len(after) in (0, _KEY_BYTES):
                engine = self._engines.get(name)
                page = engine.snapshots.page(after) if engine is not None else Page([], b"", 0)
                return list(page)
            case [str(name), list(items), bool(as_used), *_] if op == _RESTORE and name in self._engines and all(type(item) is bytes for item in items):
                return ensureDeferred(self._given(name, items, as_used))
        raise RemoteError("snapshot: malformed")
