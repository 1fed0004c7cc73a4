"""Sub-sessions: attributes of one browser tab, inside the session that all tabs of the browser share.

A checkout in two tabs must not mix its steps, though both have the same cookie. So each tab has a mapping of its own, named by an id that the page carries along. Its
attributes are attributes of the session, ``_tab.ID.NAME``: they replicate, merge and count like all others. A *mark*, ``_tab.ID``, says in which order tabs were
written to last, without a clock; over `tabs_max` the tabs that were not written to for longest go, with all they hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, MutableMapping
from typing import Any

from .attributes import Attributes
from .errors import ValueRefused

__all__ = ["Tab", "tab_ids"]

_PREFIX = "_tab."
_is_id = re.compile(r"[A-Za-z0-9_-]{1,64}").fullmatch


class Tab(MutableMapping[str, Any]):
    """Of one request, as its session. Errors are those of `Session`; `ValueRefused` too for an id that is not 1 to 64 of letters, digits, ``_`` and ``-``."""

    __slots__ = ("_mark", "_most", "_prefix", "_session", "id")

    def __init__(self, session: Attributes, tab_id: str, most: int) -> None:
        if not isinstance(tab_id, str) or not _is_id(tab_id):
            raise ValueRefused(f"session.tab({tab_id!r:.80}): use 1 to 64 letters, digits, '_' or '-'")
        self.id = tab_id
        self._session = session
        self._most = most
        self._mark = _PREFIX + tab_id
        self._prefix = f"{self._mark}."

    def __repr__(self) -> str:
        return f"<Tab {self.id} of {self._session!r}>"

    def __getitem__(self, name: str) -> Any:
        return self._session[self._prefix + name]

    def __setitem__(self, name: str, value: Any) -> None:
        if type(name) is not str or not name:
            raise ValueRefused(f"session.tab({self.id!r})[{name!r}]: an attribute's name is a non-empty text")
        self._session[self._prefix + name] = value
        self._use()

    def __delitem__(self, name: str) -> None:
        del self._session[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        return (name[len(self._prefix) :] for name in self._session.names(self._prefix) if name in self._session)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def close(self) -> None:
        """The tab is gone, with all it holds. Repeats are harmless."""
        self.clear()
        self._session.pop(self._mark, None)

    def _use(self) -> None:
        """It was written to last; who was not for longest makes room."""
        marks = _marks(self._session)
        last = max(marks.values(), default=0)
        if marks.get(self.id) != last or not last or list(marks.values()).count(last) > 1:
            self._session[self._mark] = last + 1
            marks[self.id] = last + 1
        for tab_id in _by_use(marks)[self._most :]:
            Tab(self._session, tab_id, self._most).close()


def tab_ids(session: Attributes) -> list[str]:
    """The tabs of this session, the one written to last first."""
    return _by_use(_marks(session))


def _marks(session: Attributes) -> dict[str, int]:
    found = {}
    for name in session.names(_PREFIX):
        tab_id = name[len(_PREFIX) :]
        if _is_id(tab_id) and name in session:  # the marks are small; what the tabs hold is not looked at
            mark = session[name]
            found[tab_id] = mark if type(mark) is int else 0
    return found


def _by_use(marks: dict[str, int]) -> list[str]:
    return sorted(marks, key=lambda tab_id: (-marks[tab_id], tab_id))
