"""What an operator may know of a node and do to it, as plain data: what the admin service answers with.

Nothing here decides; it asks the parts of the node, and puts what they say into tables. Reactor thread.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from ..managers.base import SessionManager
from ..managers.changes import KEY_BYTES
from ..managers.principals import EPOCHS
from ..membership.errors import LocalError
from ..membership.service import MembershipService
from ..membership.view import View
from .channel import GroupChannel
from .draining import Drain
from .logins import LoginDesk
from .rehearsal import Rehearsal
from .settings import Settings
from .snapshots import SnapshotDesk

__all__ = ["Administration", "Parts"]


class Parts(Protocol):
    """Of a node. `engines`: its managers, and those underneath maps."""

    settings: Settings
    managers: dict[str, SessionManager]
    engines: dict[str, SessionManager]
    drain: Drain | None
    rehearsal: Rehearsal | None
    logins: LoginDesk | None
    snapshots: SnapshotDesk | None

    @property
    def is_ready(self) -> bool: ...

    @property
    def view(self) -> View: ...

    def running(self) -> tuple[GroupChannel, MembershipService]:
        """Raises `LocalError` before the start."""

    def statistics(self) -> dict[str, Any]: ...

    def end(self) -> bool:
        """End the process, if it is nothing but this node; whether it is."""


class Administration:
    """`admin.Administered`. Raises `LocalError` for what cannot be answered."""

    def __init__(self, node: Parts) -> None:
        self._node = node

    @property
    def settings(self) -> Settings:
        return self._node.settings

    @property
    def is_ready(self) -> bool:
        return self._node.is_ready

    def statistics(self) -> dict[str, Any]:
        return self._node.statistics()

    def members_report(self) -> list[dict[str, Any]]:
        """Each member of the group, by name, those of other domains too: what this node knows of it."""
        channel, membership = self._node.running()
        report = []
        for member in sorted(membership.everyone, key=lambda member: (member.name, member.uid)):
            here = member.uid == channel.me.uid
            if member.domain != channel.me.domain:
                state = "other domain"
            elif member.payload.get("draining") is True:
                state = "draining"
            elif here:
                state = "in sync" if self._node.is_ready else "joining"
            elif channel.is_degraded(member.uid):
                state = "degraded"
            else:
                state = "in sync" if all(engine.is_in_sync_with(member.uid) for engine in self._node.engines.values()) else "joining"
            report.append({
                "name": member.name, "uid": member.uid.hex()[:8], "address": f"{member.host}:{member.port}", "domain": member.domain,
                "zone": member.zone, "weight": member.weight, "state": state, "lag_bytes": channel.backlog_bytes(member.uid), "me": here,
                "managers": sorted(name for name in member.managers if name != EPOCHS), "pid": member.payload.get("pid"), "http": member.payload.get("http"),
            })  # fmt: skip
        return report

    def sessions_report(self, manager: str, limit: int, after: str) -> dict[str, Any]:
        """One page of the sessions held here. `manager`: empty for the only one."""
        found = self._manager(manager)
        page = found.summaries(limit, _key(after, "after"))
        return {"manager": found.name, "count": found.count, "sessions": page}

    def logins_report(self, manager: str, principal: str) -> Deferred[dict[str, Any]]:
        """The sessions of a principal, see `LoginDesk.sessions_of`."""
        return self._desk().sessions_of(self._manager(manager).name, principal)

    def logout(self, manager: str, principal: str | None) -> Deferred[dict[str, Any]]:
        """End all sessions of this principal, None: of all. Fires with ``{"done", "confirmed": names, "unconfirmed": names}``."""
        receipt = self._manager(manager).end_all(principal)
        return receipt.deferred().addCallback(
            lambda _: {"done": receipt.satisfied and not receipt.unconfirmed, "confirmed": list(receipt.confirmed), "unconfirmed": list(receipt.unconfirmed)}
        )

    def end_session(self, manager: str, key: str) -> Deferred[dict[str, Any]]:
        """The same for the session of this key, which is `done` when who holds it has confirmed."""
        ended = self._desk().end(self._manager(manager).name, _key(key, "session", exact=True))
        return ended.addCallback(lambda done: {"done": done, "confirmed": [], "unconfirmed": []})

    def rehearse(self, lose: Sequence[str]) -> Deferred[dict[str, Any]]:
        """Which sessions would not survive the loss of the nodes of these names; see `Rehearsal.run`. Changes nothing."""
        if self._node.rehearsal is None:
            raise LocalError("the node is not started")
        return self._node.rehearsal.run(self._node.view, lose)

    def snapshot_overview(self) -> dict[str, Any]:
        """Whom to ask for what; see `SnapshotDesk`."""
        return self._snapshots().overview(self._node.view)

    def snapshot_page(self, manager: str, member: str, after: str) -> Deferred[dict[str, Any]]:
        """One page of the sessions that this member (its uid) answers for."""
        found = self._snapshots().page(self._node.view, manager, _key(member, "member", exact=True), _key(after, "after"))
        return found.addCallback(lambda page: {**page, "items": b64encode(page["items"]).decode(), "after": page["after"].hex()})

    def snapshot_restore(self, manager: str, data: bytes, as_used: bool) -> Deferred[dict[str, Any]]:
        return self._snapshots().restore(manager, data, as_used)

    def drain_report(self) -> dict[str, Any]:
        """How far a drain is; see `Drain.report`."""
        return self._draining().report()

    def begin_drain(self) -> dict[str, Any]:
        self._draining().begin()
        return self.drain_report()

    def cancel_drain(self) -> dict[str, Any]:
        self._draining().cancel()
        return self.drain_report()

    def end(self) -> dict[str, Any]:
        """End the process if it is nothing but this node (`left_process` says whether); an application's own process goes on, with a node that holds nothing."""
        return {"left_process": self._node.end()}

    def _manager(self, name: str) -> SessionManager:
        """Empty: the only one."""
        managers = self._node.managers
        found = next(iter(managers.values())) if not name and len(managers) == 1 else managers.get(name)
        if found is None:
            raise LocalError(f"no manager {name!r}; this node has {', '.join(sorted(managers))}")
        return found

    def _desk(self) -> LoginDesk:
        if self._node.logins is None:
            raise LocalError("the node is not started")
        return self._node.logins

    def _snapshots(self) -> SnapshotDesk:
        if self._node.snapshots is None:
            raise LocalError("the node is not started")
        return self._node.snapshots

    def _draining(self) -> Drain:
        if self._node.drain is None:
            raise LocalError("the node is not started")
        return self._node.drain


def _key(text: str, what: str, exact: bool = False) -> bytes:
    """Of a session, or its beginning. Raises `LocalError`."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = None
    if key is None or (exact and len(key) != KEY_BYTES):
        raise LocalError(f"{what}: {text!r} is not the key of a session in hexadecimal")
    return key
