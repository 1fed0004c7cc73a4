"""Waiting for commits that a browser knows of and this member's record has not applied yet.

Nearly always such a commit is on its way: its author put it into the outbox before the browser heard of it. So a wait
begins with *patience*, a tenth of its time, and costs nothing on the wire. Then, or at once when an author cannot be heard, every
member that should hold the session is asked for it by a LOOKUP; what comes back is merged like anything else. A wait ends

- CAME: the record has them all, or the session has ended;
- LOST: no author is in the view, and every other holder has shown its record: nobody here has them, and nobody is left who could;
- LATE: the same, but for members who cannot be heard or are not sure; or the time is over.

An author that let a wait run out is *silent* until anything is heard of it: others are asked, it is not waited for. So a frozen
member costs one wait, not one for each request. One wait per session serves all its requests: it waits for the union, and
each request then looks for itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import Any

from ..membership.effects import Effect, Notify, Send
from .heads import LIVE
from .messages import DELTAS, FOUND, HEADS, RECORDS, UNSURE, Speaker
from .replica import Replica
from .tokens import Written, is_of, uncovered

__all__ = ["CAME", "LATE", "LOST", "Freshness", "WaitEnded"]

CAME, LATE, LOST = range(3)
_KEYS_AT = {DELTAS: 3, RECORDS: 2, HEADS: 2}  # where a message lists elements that begin with a key
_PENDING_MAX = 4096
_PATIENCE = 10  # parts of the whole time


class WaitEnded(Notify):
    """`event` is (key, verdict): CAME, LATE or LOST."""


class _Wait:
    __slots__ = ("asked", "authors", "expires_ms", "holders", "missing", "shown", "unsure")

    def __init__(self, missing: Written, holders: Sequence[bytes], authors: set[bytes], expires_ms: int) -> None:
        self.missing = missing
        self.holders = holders
        self.authors = authors  #: those in the view, whether or not they hold the session or can be heard
        self.expires_ms = expires_ms
        self.asked = False
        self.shown: set[bytes] = set()  #: holders whose record came, or who have none
        self.unsure: set[bytes] = set()  #: holders who said that they cannot know


class Freshness:
    """A part of the manager's core: waits by key. `cut`: members whose link is down, kept up to date by the core."""

    def __init__(self, speaker: Speaker, replica: Replica, cut: Set[bytes], wait_ms: int) -> None:
        self._say = speaker
        self._replica = replica
        self._cut = cut
        self._wait_ms = wait_ms
        self.pending: dict[bytes, _Wait] = {}
        self._patient: dict[bytes, int] = {}  # key -> when to ask
        self.silent: set[bytes] = set()
        self.waits = self.asked = 0

    def begin(self, key: bytes, missing: Written, holders: Sequence[bytes], view: Iterable[bytes], now_ms: int) -> list[Effect]:
        """Wait for these commits. `view`: the other members; `holders`: those of them that should have the session."""
        if self._is_here(key, missing):
            return [WaitEnded((key, CAME))]
        authors = {uid for uid in view if is_of(uid, missing)}
        wait = self.pending.get(key)
        if wait is not None:
            wait.missing = {short: max(wait.missing.get(short, 0), missing.get(short, 0)) for short in wait.missing | missing}
            wait.authors |= authors
            return []
        if len(self.pending) >= _PENDING_MAX:
            return [WaitEnded((key, LATE))]
        self.waits += 1
        wait = self.pending[key] = _Wait(missing, holders, authors, now_ms + self._wait_ms)
        if len(authors) < len(missing) or authors & self._cut or authors & self.silent:
            return self._ask(key, wait)
        self._patient[key] = now_ms + self._wait_ms // _PATIENCE
        return []

    def heard(self, peer: bytes, message: list[Any]) -> list[Effect]:
        """A message of this member was merged: what it brought may be waited for. To be called while anything is pending, or anybody silent."""
        self.silent.discard(peer)
        at = _KEYS_AT.get(message[1])
        effects: list[Effect] = []
        for element in message[at] if at is not None else ():
            key = element[0]
            wait = self.pending.get(key)
            if wait is not None:
                if wait.asked and message[1] == RECORDS:
                    wait.shown.add(peer)
                effects += self._settle(key, wait)
        return effects

    def answered(self, peer: bytes, key: bytes, verdict: int) -> list[Effect]:
        """An answer to a LOOKUP. The record answers for one who found it: a full outbox holds records back, answers never."""
        wait = self.pending.get(key)
        if wait is None or not wait.asked or verdict == FOUND:
            return []
        (wait.unsure if verdict == UNSURE else wait.shown).add(peer)
        return self._settle(key, wait)

    def lost(self, peer: bytes, left: bool) -> list[Effect]:
        """The link to this member is gone; `left`: and the member from the view."""
        if left:
            self.silent.discard(peer)
        effects: list[Effect] = []
        for key, wait in list(self.pending.items()):
            waited_for = peer in wait.authors
            if not waited_for and peer not in wait.holders:
                continue
            if left:
                wait.holders = [uid for uid in wait.holders if uid != peer]
                wait.authors.discard(peer)
            effects += self._ask(key, wait) if waited_for and not wait.asked else self._settle(key, wait)
        return effects

    def tick(self, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        for key in [key for key, at in self._patient.items() if now_ms >= at]:
            effects += self._ask(key, self.pending[key])
        for key in [key for key, wait in self.pending.items() if now_ms >= wait.expires_ms]:
            self.silent |= self.pending[key].authors
            effects += self._end(key, LATE)
        return effects

    @property
    def deadline_ms(self) -> int | None:
        """All waits are of one length, and so is all patience: the first of each is the next."""
        if not self.pending:
            return None
        expires_ms = next(iter(self.pending.values())).expires_ms
        return min(expires_ms, next(iter(self._patient.values()), expires_ms))

    def _ask(self, key: bytes, wait: _Wait) -> list[Effect]:
        self._patient.pop(key, None)
        wait.asked = True
        self.asked += 1
        reachable = tuple(uid for uid in wait.holders if uid not in self._cut)
        ask: list[Effect] = [Send(reachable, self._say.lookup(key))] if reachable else []
        return ask + self._settle(key, wait)

    def _settle(self, key: bytes, wait: _Wait) -> list[Effect]:
        if self._is_here(key, wait.missing):
            return self._end(key, CAME)
        if not wait.asked or wait.authors - self.silent:
            return []
        left = [uid for uid in wait.holders if uid not in wait.shown]
        if any(uid not in wait.unsure and uid not in self._cut and uid not in self.silent for uid in left):
            return []
        return self._end(key, LATE if left or wait.authors else LOST)

    def _end(self, key: bytes, verdict: int) -> list[Effect]:
        del self.pending[key]
        self._patient.pop(key, None)
        return [WaitEnded((key, verdict))]

    def _is_here(self, key: bytes, missing: Written) -> bool:
        """Nothing is left to wait for."""
        entry = self._replica.get(key)
        if entry is None or (entry.head is not None and entry.head.state != LIVE):
            return True
        record = self._replica.record(key, entry)
        return record is not None and not uncovered(missing, record.applied)
