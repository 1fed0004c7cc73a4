"""More bugs that the simulator must catch, as in `planted.py`: of sessions that live in a shared store, and nowhere else."""

from __future__ import annotations

from typing import Any

from caterwaul.managers import fetching, in_turn, opening, persistence, receipts, storing, touches, turns
from caterwaul.managers.heads import LIVE
from caterwaul.managers.stores import memory

from .planted import Bug, Patch

__all__ = ["PERSISTENT_BUGS"]


def _saves_overwrite(patch: Patch) -> None:
    """Nobody compares what is there with what is to be replaced."""
    real = memory.MemoryStore.save_many

    def save_many(self: Any, saves: Any) -> Any:
        return real(self, [save._replace(replaces=self._revision(save.key)) for save in saves])

    patch(memory.MemoryStore, "save_many", save_many)


def _what_is_there_is_not_merged(patch: Patch) -> None:
    """Who is refused learns what is there, and saves over it."""
    real = fetching.Fetching.merge

    def merge(self: Any, found: Any, asked: Any, over_too: bool = False) -> Any:
        entries = {key: self._core.replica.held(key) for key in found}
        mine = {key for key, entry in entries.items() if entry is not None and (key in self._storing._refused)}
        for key in mine:
            self._storing.met(key, None, found[key].revision, 0, 0)
        others = {key: item for key, item in found.items() if key not in mine}
        return real(self, others, [key for key in asked if key not in mine], over_too)

    patch(fetching.Fetching, "merge", merge)


def _what_is_cached_is_served_as_it_is(patch: Patch) -> None:
    real = opening.Opening._look

    def look(self: Any, about: Any, now_ms: int) -> Any:
        return real(self, about._replace(checked=about.checked or self._core.replica.held(about.key) is not None), now_ms)

    patch(opening.Opening, "_look", look)


def _an_end_is_not_saved(patch: Patch) -> None:
    """It is told, and goes no further; what was changed is."""
    real = storing.Storing.batch

    def batch(self: Any, now_ms: int, ahead_ms: int) -> Any:
        for key in list(self.waiting):
            entry = self._replica.get(key)
            if entry is not None and entry.head is not None and entry.head.state != LIVE:
                del self.waiting[key]
                self.urgent.discard(key)
        return real(self, now_ms, ahead_ms)

    patch(storing.Storing, "batch", batch)


def _confirmed_before_it_is_stored(patch: Patch) -> None:
    real = persistence.Persistence._stored_soon

    def stored_soon(self: Any, key: bytes) -> receipts.Waiting:
        waiting = real(self, key)
        waiting.heard(persistence._STORE)
        return waiting

    patch(persistence.Persistence, "_stored_soon", stored_soon)


def _who_is_refused_is_confirmed(patch: Patch) -> None:
    real = persistence.Persistence._met

    def met(self: Any, found: Any, refused: Any) -> None:
        for key in refused:
            for waiting in self._aboard.get(key, ()):
                waiting.receipt.heard(persistence._STORE)
        real(self, found, refused)

    patch(persistence.Persistence, "_met", met)


def _all_are_first(patch: Patch) -> None:
    """Nobody waits for a turn."""
    real = turns.Turns.take
    patch(turns.Turns, "take", lambda self, key, until, go, waits: (real(self, key, until, go, True)[0], True))


def _a_turn_ends_when_its_session_is_found(patch: Patch) -> None:
    def with_nothing(session: Any, held: Any) -> Any:
        held.give_back()
        return session

    patch(in_turn, "_with", with_nothing)


def _who_cannot_tell_says_gone(patch: Patch) -> None:
    patch(opening.Opening, "_unsure", lambda self, key, now_ms: self._made())


def _a_cached_copy_is_never_stale(patch: Patch) -> None:
    real = opening.Opening._fetched

    def fetched(self: Any, about: Any, verdict: int, now_ms: int) -> Any:
        session = real(self, about, verdict, now_ms)
        if hasattr(session, "stale"):
            session.stale = False
        return session

    patch(opening.Opening, "_fetched", fetched)


def _uses_are_not_stored(patch: Patch) -> None:
    real = touches.Touching.take

    def take(self: Any, now_ms: int, replica: Any, placement: Any) -> Any:
        written = set(replica.written)
        found = real(self, now_ms, replica, placement)
        replica.written &= written
        return found

    patch(touches.Touching, "take", take)


def _a_late_answer_is_believed(patch: Patch) -> None:
    """What was loaded is taken for what the store has, also after something was saved meanwhile."""
    patch(storing.Storing, "is_settled", lambda self, key, revision: key not in self._flight)


def _row(name: str, plant: Any, *promises: str) -> Bug:
    return Bug(name, plant, promises, scene="persistent")


PERSISTENT_BUGS = (
    _row("saves overwrite", _saves_overwrite, "S3", "S2", "S4", "S5", "S6"),
    _row("what is there is not merged", _what_is_there_is_not_merged, "S3", "S4", "S6"),
    _row("what is cached is served as it is", _what_is_cached_is_served_as_it_is, "S3", "S2", "S6"),
    _row("an end is not saved", _an_end_is_not_saved, "S2", "S7"),
    _row("confirmed before it is stored", _confirmed_before_it_is_stored, "S2", "S3", "S4"),
    _row("who is refused is confirmed", _who_is_refused_is_confirmed, "S2", "S3", "S4"),
    _row("all are first", _all_are_first, "turns"),
    _row("a turn ends when its session is found", _a_turn_ends_when_its_session_is_found, "turns"),
    _row("who cannot tell says gone", _who_cannot_tell_says_gone, "S4"),
    _row("a cached copy is never stale", _a_cached_copy_is_never_stale, "S3", "S2"),
    _row("uses are not stored", _uses_are_not_stored, "S4"),
    _row("a late answer is believed", _a_late_answer_is_believed, "S3", "S4", "S6"),
)
