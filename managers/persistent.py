"""`PersistentManager`: sessions live in a store that all servers share, and nowhere else. Any server serves any of them, and none tells another.

For many servers behind a balancer without stickiness, where the database is there anyway and its answer may be waited for. Each request asks the store, and what is in memory is a cache of
it: what has not changed is not read again. Each change is stored before the response leaves, against the revision it was made of; who comes second merges and saves again, so nothing is
overwritten. While the store is in trouble, what is cached is served, marked `stale`, and what is changed waits for it. Tomcat's manager of that name with its `PersistentValve` is the model; there
the last request overwrites the others.

Members still see each other: they grant each other's locks, and ends of all sessions of a principal (`epochs.py`) are replicated, as each request has to know them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..membership.channel import Channel
from ..membership.errors import LocalError
from .alone import Alone
from .base import SessionManager
from .messages import FOUND
from .session import Session
from .settings import ManagerSettings
from .stores.settings import StoreSettings
from .stores.worker import StoreWorker
from .surveying import items_of, page

__all__ = ["PersistentManager"]

_SWAP_S = 60.0  # the longest that what nobody uses is cached, unless the settings say


class PersistentManager(SessionManager):
    """Raises `LocalError` without a store."""

    def __init__(
        self, name: str, channel: Channel, settings: ManagerSettings, *, store: tuple[StoreWorker, StoreSettings] | None = None, **options: Any
    ) -> None:
        if store is None:
            raise LocalError(f'manager {name!r}: type = "persistent" keeps sessions in a store, and there is none; give [store] a url')
        worker, chosen = store
        super().__init__(name, channel, _suited(settings), Alone, store=(worker, replace(chosen, write="through", load=False)), **options)
        assert self.persistence is not None, "there is a store"
        self._persistence = self.persistence
        self._persistence.fetching.is_shared = True
        self._core.expiry.leaves_it_to_a_store = True
        self._committing.confirming.is_alone = True
        self._core.renewals.on_absent = lambda old, new: channel.wake(lambda: self._bring(old, new))

    def _bring(self, old: bytes, new: bytes) -> None:
        """Something was written to an id that was replaced, on a server that does not have the session by its new one."""

        def loaded(verdict: int) -> None:
            if verdict == FOUND:
                with self._lock:
                    self._core.renewals.wrote((old,))
                    self._core.renewals.bring(self._core.placement)

        self._persistence.fetching.fetch(new, loaded)

    @property
    def in_sync(self) -> bool:
        """Whether this member may serve: ends of logins, which no session must get around, are loaded. There is nobody to reconcile with."""
        return self._persistence.fetching.ready()

    def is_live(self, session: Session) -> bool | None:
        """Whether nobody has ended the session; None: the store would have to be asked."""
        live = super().is_live(session)
        return False if live is False else None

    def remaining(self) -> tuple[int, int]:
        """While this member leaves: (sessions with changes that the store lacks, 0)."""
        with self._lock:
            return len(self._persistence.storing), 0

    def survey_page(self, after: bytes, limit: int) -> list[bytes]:
        """What the store has survives the loss of any member: so of what is here, the rest."""
        with self._lock:
            return page(self._core, after, limit, self._is_only_here)

    def survey_items(self, keys: Any) -> list[bytes]:
        with self._lock:
            return items_of(self._core, [key for key in keys if self._is_only_here(key)])

    def _is_only_here(self, key: bytes) -> bool:
        entry = self._core.replica.get(key)
        return entry is not None and not self._persistence.storing.has_all(key, entry)


def _suited(settings: ManagerSettings) -> ManagerSettings:
    """Confirmations are the store's, and so is what a browser wrote last; what nobody uses leaves memory soon, as its copy here learns nothing of its use elsewhere."""
    idle_s = settings.idle_timeout_s / 2 or _SWAP_S
    turns = settings.turns or "queue"
    return replace(
        settings, acks="none", read_your_writes="node", turns=turns, max_idle_backup_s=0.0, max_idle_swap_s=settings.max_idle_swap_s or min(_SWAP_S, idle_s)
    )
