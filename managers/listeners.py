"""Telling the application what happens to its sessions.

`created`, `destroyed` and `attribute` events, as the servlet listeners of that name, and `conflict`. `destroyed` fires once where there is
no fault and at least once otherwise, with a stable event id and the final contents, in one live member that listens: the session's primary, or
one whose turn it is (`notices.py` says whose, and brings it there). Listeners that ask for `replicas` hear of it wherever a copy of the session ends.
Those of attributes fire where the commit is made. They run in the reactor's thread and must not block; what they raise is logged and counted.

A listener may ask for some events of its kind only, by their fields: `listen(AttributeChanged, ..., name="cart*")`, `on(SessionDestroyed, reason="expired")`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Any, NamedTuple, TypeVar, get_args

from twisted.logger import Logger

from ..membership.errors import LocalError
from .entry import Activated, Audited, Changed, Created, Destroyed, Passivated
from .errors import ValueDamaged
from .heads import REASONS, Head
from .record import PRINCIPAL, Clash, Record
from .values import ValueTypes

__all__ = [
    "AttributeChanged",
    "Audited",
    "Callback",
    "Conflict",
    "Listeners",
    "LoggedIn",
    "SessionActivated",
    "SessionCreated",
    "SessionDestroyed",
    "SessionPassivated",
    "check_listener",
    "decorator",
]

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


@dataclass(frozen=True, slots=True)
class SessionPassivated:
    """A session that lives has left the memory of this member, as a store has it. Told where that was decided; with `replicas` wherever a copy goes."""

    key: bytes


@dataclass(frozen=True, slots=True)
class SessionActivated:
    """A session came back into memory, from a store or a snapshot. Told where it was loaded."""

    key: bytes


Event = SessionCreated | SessionPassivated | SessionActivated | SessionDestroyed | AttributeChanged | Audited | LoggedIn | Conflict
Callback = TypeVar("Callback", bound=Callable[[Any], object])


class _Listener(NamedTuple):
    kind: type
    callback: Callable[[Any], object]
    replicas: bool
    where: Mapping[str, Any]

    def wants(self, event: Event) -> bool:
        """Its fields are what was asked for: texts match a shell-style pattern, everything else is equal."""
        for name, wanted in self.where.items():
            value = getattr(event, name)
            if not (fnmatchcase(value, wanted) if isinstance(value, str) and isinstance(wanted, str) else value == wanted):
                return False
        return True


def check_listener(kind: object, where: Mapping[str, Any]) -> None:
    """Raises `LocalError` for what no listener can hear."""
    if not isinstance(kind, type) or kind not in get_args(Event):
        raise LocalError(f"no listener hears {kind!r}: the events are {', '.join(event.__name__ for event in get_args(Event))} of caterwaul.managers.listeners")
    known = list(kind.__annotations__)
    for name in where:
        if name not in known:
            raise LocalError(f"{kind.__name__} has no {name!r} to choose by: it has {', '.join(known)}")


def decorator(listen: Callable[..., None], *arguments: Any, **keywords: Any) -> Callable[[Callback], Callback]:
    """For `on`: what calls `listen` with the function below it, which stays as it is."""

    def decorate(callback: Callback) -> Callback:
        listen(*arguments, callback, **keywords)
        return callback

    return decorate


class Listeners:
    """Reactor thread, except `listen` and `on`. `begun(kind, replicas)` is called for each listener, in its thread."""

    def __init__(self, me: bytes, types: ValueTypes, begun: Callable[[type, bool], None]) -> None:
        self._me = me
        self._types = types
        self._begun = begun
        self._listeners: list[_Listener] = []
        self.errors = 0

    def __bool__(self) -> bool:
        return bool(self._listeners)

    def listen(self, kind: type, callback: Callable[[Any], object], replicas: bool = False, **where: Any) -> None:
        """From now on `callback(event)` in the reactor's thread (do not block it) for events of this kind, on one member each; `replicas`: on every one that
        holds the session. `where`: only if these fields are so; texts are shell-style patterns. Any thread. Raises `LocalError` for what is no event, or not in it."""
        check_listener(kind, where)
        self._listeners = [*self._listeners, _Listener(kind, callback, replicas, where)]
        self._begun(kind, replicas)

    def on(self, kind: type, replicas: bool = False, **where: Any) -> Callable[[Callback], Callback]:
        """`listen` as a decorator: ``@manager.on(SessionDestroyed, reason="expired")``."""
        check_listener(kind, where)
        return decorator(self.listen, kind, replicas=replicas, **where)

    def tell(self, happened: Activated | Audited | Changed | Created | Destroyed | Passivated | AttributeChanged | LoggedIn | Clash) -> None:
        """Turn what the replica reports into what listeners hear, on the member whose turn it is; whose an end is, `ended` says."""
        if isinstance(happened, Destroyed):
            if self._has(SessionDestroyed, replicas=True):
                self._call(self._destroyed(happened.key, happened.head, happened.entry.body), False)
        elif isinstance(happened, Created):
            self._call(SessionCreated(happened.key), happened.by == self._me)
        elif isinstance(happened, Passivated):
            self._call(SessionPassivated(happened.key), happened.mine)
        elif isinstance(happened, Activated):
            self._call(SessionActivated(happened.key), True)
        elif isinstance(happened, Clash):
            if happened.name[:1] != "\0" and (self._has(Conflict) or self._has(Conflict, replicas=True)):
                self._call(self._conflict(happened), happened.in_records or happened.lost[1] == self._me)
        elif isinstance(happened, Changed):
            self._call(AttributeChanged(happened.key, happened.name, happened.removed), False)
        else:
            self._call(happened, True)

    def ended(self, key: bytes, head: Head, body: Any) -> None:
        """It is this member's turn to tell of this end. Listeners for `replicas` hear of it when the copy goes, if there is one here."""
        self._call(self._destroyed(key, head, body), True, of_replicas=False)

    def _has(self, kind: type, replicas: bool = False) -> bool:
        return any(one.kind is kind and one.replicas == replicas for one in self._listeners)

    def _call(self, event: Event, mine: bool, of_replicas: bool = True) -> None:
        for one in self._listeners:
            if type(event) is one.kind and (of_replicas if one.replicas else mine) and one.wants(event):
                try:
                    one.callback(event)
                except Exception:
                    self.errors += 1
                    _log.failure("session listener {callback} failed", callback=one.callback)

    def _conflict(self, happened: Clash) -> Conflict:
        (_, by, value), (_, lost_by, lost) = happened.stands, happened.lost
        return Conflict(happened.key, happened.name, self._decoded(value), self._decoded(lost), value, lost, by, lost_by)

    def _decoded(self, value: bytes | None) -> Any:
        try:
            return None if value is None else self._types.decode(value)
        except ValueDamaged:
            return None

    def _destroyed(self, key: bytes, head: Head, body: Any) -> SessionDestroyed:
        record = Record.unpack(body) if type(body) is bytes else body
        attributes: dict[str, Any] = {}
        principal = None
        for name, register in (record.registers if record is not None else {}).items():
            if name == PRINCIPAL and register[2] is not None:
                principal = register[2].decode("utf-8", "replace")
            if name[:1] == "\0" or register[2] is None:
                continue
            try:
                attributes[name] = self._types.decode(register[2])
            except ValueDamaged:
                continue
        event_id = blake2b(key + b"%d" % head.counter, digest_size=16).hexdigest()  # of two members that end it at once each has the next counter
        return SessionDestroyed(key, REASONS[head.state], event_id, attributes, principal)
