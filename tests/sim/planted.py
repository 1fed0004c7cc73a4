"""Bugs that the simulator must catch. `tests/sim/test_planted.py` plants them one by one into the production code.

A simulator finds only what a checker states. Each row is a mistake that somebody could make again, the seeds to try, and the promise that
must be reported as broken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from caterwaul.cluster import outbox, redial
from caterwaul.managers import antientropy, base, core, finding, handover, lookup, moving, near, opening, parting, placement, principals, record, replica
from caterwaul.managers.messages import ABSENT, UNSURE
from caterwaul.membership import detector, group

__all__ = ["BUGS", "Bug"]

Patch = Callable[[Any, str, Any], None]


@dataclass(frozen=True)
class Bug:
    """`plant(patch)` uses ``patch(target, name, value)``. `promises`: how the failure's text may begin. `kinds`: classes of faults, None: all. `manager`: its type.
    `scene`: the story that shows it; none: random faults do."""

    name: str
    plant: Callable[[Patch], None]
    promises: tuple[str, ...]
    kinds: tuple[str, ...] | None = None
    manager: str = "delta"
    scene: str = ""


def _skip_a_tombstone(patch: Patch) -> None:
    real = replica.Replica._end

    def end(self: Any, key: bytes, entry: Any, head: Any) -> None:
        real(self, key, entry, head)
        self.forget(key)

    patch(replica.Replica, "_end", end)


def _ack_before_applying(patch: Patch) -> None:
    real = base.SessionManager.received

    def received(self: Any, peer: Any, message: list[Any], offset_ms: int) -> None:
        self._clock.callLater(0.4, real, self, peer, message, offset_ms)

    patch(base.SessionManager, "received", received)


def _expire_before_reading(patch: Patch) -> None:
    real = group.Group.tick

    def tick(self: Any, now: float) -> Any:
        if self._beat_at is not None:
            self._beat_at = max(self._beat_at, now - self._interval_s)
        return real(self, now)

    suspect = detector.Detector._suspect

    def at_once(self: Any, now: float, uids: list[bytes], refused: bool) -> Any:
        effects = suspect(self, now, uids, refused)
        for uid in uids:
            if uid in self._watched and self._watched[uid].inquiry is not None:
                effects += self._conclude(uid)
        return effects

    patch(group.Group, "tick", tick)
    patch(detector.Detector, "_suspect", at_once)


def _no_incarnation_check(patch: Patch) -> None:
    real = group.Group.linked

    def linked(self: Any, now: float, member: Any) -> Any:
        hidden = {uid: known for uid, known in self._members.items() if known.address == member.address and uid != member.uid}
        for uid in hidden:
            del self._members[uid]
        effects = real(self, now, member)
        self._members.update(hidden)
        return [*effects, *self._publish()]

    patch(group.Group, "linked", linked)


def _unbounded_outbox(patch: Patch) -> None:
    def put(self: Any, parcels: Any, message: Any, size: int) -> None:
        self.backlog += size
        self.queues[message.lane].extend(parcels)

    patch(outbox.Outbox, "is_full", lambda self, size: False)
    patch(outbox.Outbox, "put", put)


def _lost_reconnect(patch: Patch) -> None:
    real = redial.Redial.tick
    patch(redial.Redial, "tick", lambda self, now: [effect for effect in real(self, now) if not isinstance(effect, redial.Dial)])


def _last_to_arrive_wins(patch: Patch) -> None:
    def merge_delta(self: Any, counter: int, origin: bytes, previous: int, seen: Any, changes: Any, key: bytes) -> Any:
        self.write(counter, origin, changes)
        return True, ()

    patch(record.Record, "merge_delta", merge_delta)


def _last_writer_of_a_counter_wins(patch: Patch) -> None:
    def join_by_version(mine: Any, theirs: Any) -> Any:
        return max(mine, theirs, key=lambda register: register[:2])

    patch(record, "join", join_by_version)


def _never_reconcile(patch: Patch) -> None:
    def begin(self: Any, peer: bytes, version: int, now_ms: int, stuck: bool = False) -> list[Any]:
        self.in_sync.add(peer)
        return []

    patch(antientropy.AntiEntropy, "begin", begin)


def _drop_before_confirmation(patch: Patch) -> None:
    patch(parting.Parting, "_missing", lambda self, key, entry, placement: {})


def _the_displaced_are_not_told(patch: Patch) -> None:
    """Who has taken a session over tells those it knows of, and nobody tells the others."""
    patch(moving.Moving, "displaced", lambda self, before, peer, heads: [])


def _a_copy_too_few(patch: Patch) -> None:
    real = placement.PrimaryAndBackups.__init__
    patch(placement.PrimaryAndBackups, "__init__", lambda self, view, me, copies: real(self, view, me, copies - 1))


def _readers_are_not_told(patch: Patch) -> None:
    patch(near.Watchers, "changed", lambda self, keys, author=b"": None)


def _serve_before_it_arrived(patch: Patch) -> None:
    patch(opening, "uncovered", lambda written, applied: {})


def _leave_before_all_is_handed_over(patch: Patch) -> None:
    patch(handover.Handover, "remaining", lambda self, placement: (0, 0))


def _domains_do_not_matter(patch: Patch) -> None:
    patch(group, "own_domain", lambda me, everyone: tuple(everyone))


def _questions_have_no_end(patch: Patch) -> None:
    real = lookup.Lookups.ask

    def ask(self: Any, key: bytes, members: Any, now_ms: int, doubted: bool = False) -> Any:
        return real(self, key, members, now_ms + 10**9, doubted)

    patch(lookup.Lookups, "ask", ask)


def _one_no_is_enough(patch: Patch) -> None:
    """Also of one that has just started."""
    real = finding.Finding.ask_for
    patch(finding.Finding, "ask_for", lambda self, key, peers, now_ms, doubted: real(self, key, peers[:1], now_ms, False))
    patch(core.SessionCore, "sure", lambda self, now_ms: True)


def _a_doubtful_answer_is_unknown(patch: Patch) -> None:
    real = finding.Finding._conclude

    def conclude(self: Any, key: bytes, question: Any, now_ms: int) -> Any:
        if set(question.answers.values()) == {ABSENT}:
            return real(self, key, question, now_ms)
        return self.lookups.end(key, UNSURE)

    patch(finding.Finding, "_conclude", conclude)


def _logins_do_not_end(patch: Patch) -> None:
    patch(principals.Logins, "is_over", lambda self, key, entry: False)


def _only_sessions_that_are_here_end(patch: Patch) -> None:
    """An end of all reaches the sessions that members hold when they hear of it, and no others."""
    is_over, affected = principals.Logins.is_over, principals.Logins.affected

    def marking(self: Any, whose: bytes) -> list[bytes]:
        keys = affected(self, whose)
        self._excess.update(key for key in keys if (entry := self._replica.get(key)) is not None and is_over(self, key, entry))
        return keys

    patch(principals.Logins, "affected", marking)
    patch(principals.Logins, "is_over", lambda self, key, entry: key in self._excess)


BUGS = (
    Bug("skip a tombstone", _skip_a_tombstone, ("S2", "S4", "S5")),
    Bug("ack before applying", _ack_before_applying, ("S4",)),
    Bug("expire before reading", _expire_before_reading, ("membership",), ("pause_long",)),
    Bug("no incarnation check", _no_incarnation_check, ("membership",)),
    Bug("unbounded outbox", _unbounded_outbox, ("S8",)),
    Bug("lost reconnect", _lost_reconnect, ("S5", "S4")),
    Bug("last to arrive wins", _last_to_arrive_wins, ("S3/S6", "S4", "S5")),
    Bug("a counter's last writer wins", _last_writer_of_a_counter_wins, ("S6",)),
    Bug("never reconcile", _never_reconcile, ("S5", "S4")),
    Bug("logins do not end", _logins_do_not_end, ("S2",)),
    Bug("only sessions that are here end", _only_sessions_that_are_here_end, ("S2",)),
    Bug("drop a copy before it is confirmed", _drop_before_confirmation, ("S3/S6", "S4", "S5"), manager="backup"),
    Bug("the displaced are not told", _the_displaced_are_not_told, ("S5",), manager="backup"),
    Bug("a copy too few", _a_copy_too_few, ("S5",), manager="backup"),
    Bug("questions have no end", _questions_have_no_end, ("S7",), manager="backup"),
    Bug("one no is enough", _one_no_is_enough, ("S3:",), manager="backup"),
    Bug("a doubtful answer is unknown", _a_doubtful_answer_is_unknown, ("S7", "S3:"), manager="backup"),
    Bug("readers are not told", _readers_are_not_told, ("S2", "S3/S6", "S5"), manager="partitioned"),
    Bug("serve before it arrived", _serve_before_it_arrived, ("S3:",)),
    Bug("leave before all is handed over", _leave_before_all_is_handed_over, ("n",), manager="partitioned", scene="rolling"),
    Bug("the last writer of a map's counter wins", _last_writer_of_a_counter_wins, tuple(f"n{number}: hits" for number in range(5)), scene="maps"),
    Bug("domains do not matter", _domains_do_not_matter, tuple(f"n{number} of " for number in range(6)), scene="domains"),
)
