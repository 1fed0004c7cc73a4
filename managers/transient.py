"""Attributes that never leave this process: those whose names match `managers.NAME.transient`.

What cannot travel (an open connection, a compiled template) or is not worth it (what could be computed again) may be kept in a session all the same. Such a value is
an object as it is: not encoded, not compared, not counted. Another node does not see it, nor does this one after a restart, so who reads it must be able to do without.
It is there from the moment it is set, whatever becomes of the request. It alone begins no session: without a replicated attribute it goes
with its request. It goes when its session ends, and with its least recently used sessions when there are too many.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from fnmatch import translate
from functools import partial
from threading import Lock
from typing import Any

from .entry import Destroyed
from .session import Session
from .settings import ManagerSettings

__all__ = ["TransientSession", "Transients"]


class Transients:
    """By session, for all its requests in this process. Any thread."""

    def __init__(self, settings: ManagerSettings) -> None:
        self.matches = re.compile("|".join(map(translate, settings.transient))).match
        #: What makes a session; a plain one where no attribute is transient.
        self.session_kind: Callable[..., Session] = partial(TransientSession, self) if settings.transient else Session
        self._sessions_max = settings.transient_sessions_max
        self._kept: dict[bytes, dict[str, Any]] = {}  # the least recently used first
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, key: bytes) -> dict[str, Any]:
        """What is kept for this session; it is the youngest from now on."""
        with self._lock:
            values = self._kept.pop(key, None)
            return {} if values is None else self._kept.setdefault(key, values)

    def keep(self, key: bytes, values: dict[str, Any]) -> dict[str, Any]:
        """These are the session's from now on, joined with what another request has set meanwhile."""
        with self._lock:
            kept = self._kept.setdefault(key, values)
            if kept is not values:
                kept.update(values)
            while len(self._kept) > self._sessions_max:
                del self._kept[next(iter(self._kept))]
            return kept

    def forget(self, key: bytes) -> None:
        with self._lock:
            self._kept.pop(key, None)

    def ended(self, events: Iterable[object]) -> None:
        """What happened to sessions that are held here."""
        for event in events if self._kept else ():
            if isinstance(event, Destroyed):
                self.forget(event.key)


class TransientSession(Session):
    """A session with such attributes."""

    __slots__ = ("_here", "_transients")

    def __init__(self, transients: Transients, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._transients = transients
        self._here: dict[str, Any] = {} if self.new else transients.of(self.key)

    def __getitem__(self, name: str) -> Any:
        if not self._is_transient(name):
            return super().__getitem__(name)
        self.accessed = True
        return self._here[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if not self._is_transient(name):
            super().__setitem__(name, value)
            return
        self._check_name(name)
        self._check_writable()
        self._here[name] = value
        if not self.new and self.previous_id is None:
            self._here = self._transients.keep(self.key, self._here)

    def __delitem__(self, name: str) -> None:
        if self._is_transient(name):
            del self._here[name]
        else:
            super().__delitem__(name)

    def __iter__(self) -> Iterator[str]:
        yield from (name for name in super().__iter__() if not self._transients.matches(name))
        yield from list(self._here)

    def _is_transient(self, name: object) -> bool:
        return isinstance(name, str) and self._transients.matches(name) is not None

    def invalidate(self) -> None:
        super().invalidate()
        self._here = {}

    def committed(self, changes: dict[str, bytes | None], version: tuple[int, bytes]) -> None:
        super().committed(changes, version)
        if self._over:
            self._transients.forget(self.key)
        elif self._here:
            self._here = self._transients.keep(self.key, self._here)

    def dropped(self) -> None:
        super().dropped()
        self._here = {}
