"""Telling the application what happens to its sessions.

`created`, `destroyed` and `attribute` events, as the servlet listeners of that name, and `conflict`. `destroyed` fires once where there is
no fault and at least once otherwise, with a stable event id and the final contents, in one live member: the session's
primary, or, if that is gone, the member that ended it. Listeners that ask for `replicas` hear of it on every member.
Those of attributes fire where the commit is made. They run in the reactor's thread and must not block; what they raise is logged and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from twisted.logger import Logger

from .entry import Audited, Changed, Created, Destroyed
from .errors import ValueDamaged
from .heads import REASONS
from .placement import Placement
from .record import PRINCIPAL, Clash, Record
from .values import ValueTypes

__all__ = ["AttributeChanged", "Audited", "Conflict", "Listeners", "LoggedIn", "SessionCreated", "SessionDestroyed"]

_log = Logger()


@dataclass(frozen=True, slots=True)
class SessionCreated:
    key: bytes  #: 16 bytes, the hash of the id


@dataclass(frozen=True, slots=True)
class SessionDestroyed:
    key: bytes
    reason: str  #: expired, invalidated, id changed
    event_id: str  #: the same for the same end of the same session, wherever and however often it is told
    attributes: Mapping[str, Any]  #: final contents; what cannot be decoded is left out
    principal: str | None


@dataclass(frozen=True, slots=True)
class AttributeChanged:
    key: bytes
    name: str
    removed: bool


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """A session got a principal. Told where that was committed."""

    key: bytes
    principal: str


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two members wrote an attribute, neither knowing of the other's write, and one of the two was given up. Merging attributes have none.

    Told where the write that was given up was made; with `replicas` on every member that saw both. Where two whole records meet (after a partition) the
    members that merge them tell it, as its author may be gone: once at least, and by each that is given what the other side had.
    """

    key: bytes
    name: str
    value: Any  #: what stands, decoded; None where it was removed, or cannot be decoded
    lost: Any  #: what was given up, likewise
    value_bytes: bytes | None  #: encoded; None: removed
    lost_bytes: bytes | None
    value_by: bytes  #: uid of the member that wrote it
    lost_by: bytes


Event = SessionCreated | SessionDestroyed | AttributeChanged | Audited | LoggedIn | Conflict


class Listeners:
    """Reactor thread, except `add`."""

    def __init__(self, me: bytes, types: ValueTypes) -> None:
        self._me = me
        self._types = types
        self._listeners: list[tuple[type, Callable[[Any], None], bool]] = []
        self.errors = 0

    def __bool__(self) -> bool:
        return bool(self._listeners)

    def add(self, kind: type, callback: Callable[[Any], None], replicas: bool = False) -> None:
        self._listeners = [*self._listeners, (kind, callback, replicas)]

    def tell(self, happened: Audited | Changed | Created | Destroyed | AttributeChanged | LoggedIn | Clash, placement: Placement) -> None:
        """Turn what the replica reports into what listeners hear, on the member whose turn it is."""
        if isinstance(happened, Destroyed):
            head = happened.head
            hears = placement.moves_primary and not placement.is_lite(head.primary)  # else it may not hold the session
            led = head.primary if hears else placement.primary(happened.key, head.primary)
            mine = led == self._me or (led not in placement.view and head.origin == self._me)
            self._call(self._destroyed(happened), mine)
        elif isinstance(happened, Created):
            self._call(SessionCreated(happened.key), happened.by == self._me)
        elif isinstance(happened, Clash):
            if happened.name[:1] != "\0" and any(kind is Conflict for kind, _, _ in self._listeners):
                self._call(self._conflict(happened), happened.in_records or happened.lost[1] == self._me)
        elif isinstance(happened, Changed):
            self._call(AttributeChanged(happened.key, happened.name, happened.removed), False)
        else:
            self._call(happened, True)

    def _call(self, event: Event, mine: bool) -> None:
        for kind, callback, replicas in self._listeners:
            if type(event) is kind and (mine or replicas):
                try:
                    callback(event)
                except Exception:
                    self.errors += 1
                    _log.failure("session listener {callback} failed", callback=callback)

    def _conflict(self, happened: Clash) -> Conflict:
        (_, by, value), (_, lost_by, lost) = happened.stands, happened.lost
        return Conflict(happened.key, happened.name, self._decoded(value), self._decoded(lost), value, lost, by, lost_by)

    def _decoded(self, value: bytes | None) -> Any:
        try:
            return None if value is None else self._types.decode(value)
        except ValueDamaged:
            return None

    def _destroyed(self, happened: Destroyed) -> SessionDestroyed:
        body = happened.entry.body
        record = Record.unpack(body) if type(body) is bytes else body
        attributes: dict[str, Any] = {}
        principal = None
        for name, register in (record.registers if record is not None else {}).items():  # type: ignore[union-attr]
            if name == PRINCIPAL and register[2] is not None:
                principal = register[2].decode("utf-8", "replace")
            if name[:1] == "\0" or register[2] is None:
                continue
            try:
                attributes[name] = self._types.decode(register[2])
            except ValueDamaged:
                continue
        head = happened.head
        event_id = blake2b(happened.key + b"%d " % head.counter + head.origin, digest_size=16).hexdigest()
        return SessionDestroyed(happened.key, REASONS[head.state], event_id, attributes, principal)
