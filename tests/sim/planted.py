"""Bugs that the simulator must catch. `tests/sim/test_planted.py` plants them one by one into the production code.

A simulator finds only what a checker states. Each row is a mistake that somebody could make again, the seeds to try, and the promise that
must be reported as broken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from caterwaul.cluster import locks as lock_desk
from caterwaul.cluster import logins, outbox, redial, rehearsal
from caterwaul.managers import (
    antientropy,
    base,
    core,
    digests,
    finding,
    handover,
    locking,
    locks,
    lookup,
    merging,
    moving,
    near,
    opening,
    parting,
    placement,
    principals,
    record,
    renewal,
    renewing,
    replica,
    settings,
    surveying,
    users,
)
from caterwaul.managers.identity import Offer
from caterwaul.managers.messages import ABSENT, SUM_BYTES, UNSURE
from caterwaul.managers.receipts import DONE
from caterwaul.managers.web import single
from caterwaul.membership import detector, group

from .run import RATE

__all__ = ["BUGS", "Bug"]

_FEW = 25.0

Patch = Callable[[Any, str, Any], None]


@dataclass(frozen=True)
class Bug:
    """`plant(patch)` uses ``patch(target, name, value)``. `promises`: how the failure's text may begin. `kinds`: classes of faults, None: all. `manager`: its type.
    `scene`: the story that shows it; none: random faults do. `feature`: what the seeds are to have (`features.py`); with little else going on then.
    `seed`: the first to try, one that is known to show it early. `rate`: requests a second; fewer where only the last checks, when all is over, show it."""

    name: str
    plant: Callable[[Patch], None]
    promises: tuple[str, ...]
    kinds: tuple[str, ...] | None = None
    manager: str = "delta"
    scene: str = ""
    feature: str = ""
    seed: int = 1
    rate: float = RATE


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


def _last_writer_of_these_wins(patch: Patch, *kinds: int) -> None:
    real = merging._joined_births

    def joined_births(one: Any, two: Any) -> Any:
        return max(one, two, key=lambda birth: birth.changed) if one.kind in kinds else real(one, two)

    patch(merging, "_joined_births", joined_births)


def _last_writer_of_a_set_wins(patch: Patch) -> None:
    _last_writer_of_these_wins(patch, merging.SET)


def _last_offer_wins(patch: Patch) -> None:
    _last_writer_of_these_wins(patch, merging.MAX, merging.MIN)


def _never_reconcile(patch: Patch) -> None:
    def begin(self: Any, peer: bytes, version: int, now_ms: int, stuck: bool = False) -> list[Any]:
        self.in_sync.add(peer)
        return []

    patch(antientropy.AntiEntropy, "begin", begin)


def _all_sums_are_equal(patch: Patch) -> None:
    patch(digests.Digests, "differing", lambda self, peer, start, theirs, now_ms: (start + len(theirs) // SUM_BYTES, []))


def _lite_members_hold_too(patch: Patch) -> None:
    real = placement.Ranking.__init__

    def begin(self: Any, view: Any) -> None:
        real(self, view)
        self.members = [replace(member, weight=member.weight or 1.0) for member in view]

    patch(placement.Ranking, "__init__", begin)


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
    patch(principals.Logins, "is_over", lambda self, key, entry, last_look=False: False)


def _only_sessions_that_are_here_end(patch: Patch) -> None:
    """An end of all reaches the sessions that members hold when they hear of it, and no others."""
    is_over, affected, marked = principals.Logins.is_over, principals.Logins.affected, set()

    def marking(self: Any, whose: bytes) -> list[bytes]:
        keys = affected(self, whose)
        marked.update((id(self), key) for key in keys if (entry := self._replica.get(key)) is not None and is_over(self, key, entry))
        return keys

    patch(principals.Logins, "affected", marking)
    patch(principals.Logins, "is_over", lambda self, key, entry, last_look=False: (id(self), key) in marked)


def _an_id_is_replaced_by_two(patch: Patch) -> None:
    """Each member makes an id of its own."""
    patch(renewal.Renewals, "next_of", lambda self, session_id, key: renewal.next_id(session_id, self._me))


def _what_is_written_to_an_old_id_stays_there(patch: Patch) -> None:
    patch(renewal.Renewals, "bring", lambda self, placement: [])


def _an_old_id_is_good_for_ever(patch: Patch) -> None:
    patch(renewing, "Renewed", lambda key, until_ms: renewal.Renewed(key, until_ms + 10**9))


def _who_ends_an_old_id_ends_that_only(patch: Patch) -> None:
    patch(renewal.Renewals, "ends", lambda self, now_ms: self.over.clear() or [])
    patch(renewing.RenewingCommits, "follow", lambda self, session: None)


def _all_who_ask_hold_the_lock(patch: Patch) -> None:
    patch(locks.LockTable, "ask", lambda self, now, key, asker, lease_s, patience_s: [locks.Answered(key, asker, locks.GRANTED, {})])


def _what_was_written_under_the_lock_is_not_told(patch: Patch) -> None:
    real = lock_desk.LockDesk.release
    patch(lock_desk.LockDesk, "release", lambda self, grant, written: real(self, grant, {}))


def _a_lease_has_no_end(patch: Patch) -> None:
    real = locks.LockTable._grant
    patch(locks.LockTable, "_grant", lambda self, now, key, lock, asker, lease_s: real(self, now, key, lock, asker, 1000.0))


def _who_asks_last_is_first(patch: Patch) -> None:
    real = locks.LockTable.ask

    def ask(self: Any, now: float, key: bytes, asker: Any, lease_s: float, patience_s: float) -> Any:
        lock = self._locks.get(key)
        if lock is not None and asker not in lock.holders and asker not in lock.queue:
            lock.queue = {asker: (lease_s, now + patience_s), **lock.queue}
            self.askers += 1
        return real(self, now, key, asker, lease_s, patience_s)

    patch(locks.LockTable, "ask", ask)


def _nobody_is_asked_what_it_holds(patch: Patch) -> None:
    async def collect(self: Any, desk: Any, view: Any) -> None:
        desk.claims_of = view
        desk.driver.run(desk.table.go_on(self._clock.seconds()))

    patch(lock_desk.LockDesk, "_collect", collect)


def _a_holder_is_not_told_that_its_time_is_over(patch: Patch) -> None:
    patch(locking.Locks, "is_ours", lambda self, grant: True)


def _a_logout_is_of_one_application(patch: Patch) -> None:
    patch(users.Users, "end_shared", lambda self, tag: DONE)


def _a_login_is_of_one_application(patch: Patch) -> None:
    patch(single.SignOn, "offer", lambda self, session: None)


def _a_login_elsewhere_is_taken_without_a_password(patch: Patch) -> None:
    """Also by an application that asks for it again."""
    patch(single, "Offer", lambda principal, login, tag, is_taken: Offer(principal, login, tag, True))


def _a_guest_logs_the_browser_out_elsewhere(patch: Patch) -> None:
    """The end of a session in which nobody is logged in, where the application asks for the password again."""
    real = single.SignOn.opened

    def opened(self: Any, entry: Any, session: Any) -> None:
        real(self, entry, session)
        self._had = self._had or self._offer is not None

    patch(single.SignOn, "opened", opened)


def _principals_are_of_one_application(patch: Patch) -> None:
    patch(settings.ManagerSettings, "realm", lambda self, name: name)


def _nobody_has_too_many_sessions(patch: Patch) -> None:
    patch(principals.Logins, "_is_too_many", lambda self, key, whose, last_look: False)


async def _no_limit(self: Any, name: str, whose: Any) -> None:
    pass


def _nobody_counts_the_sessions_of_others(patch: Patch) -> None:
    patch(logins.LoginDesk, "_limit", _no_limit)


def _who_is_lost_counts_as_a_survivor(patch: Patch) -> None:
    real = rehearsal.Rehearsal._of_manager
    patch(rehearsal.Rehearsal, "_of_manager", lambda self, name, lost, others: real(self, name, lost, [*others, *lost]))


def _an_older_copy_is_as_good(patch: Patch) -> None:
    patch(surveying, "OTHER", surveying.SAME)


BUGS = (
    Bug("skip a tombstone", _skip_a_tombstone, ("S2", "S4", "S5"), seed=9),
    Bug("ack before applying", _ack_before_applying, ("S4",)),
    Bug("expire before reading", _expire_before_reading, ("membership",), ("pause_long",)),
    Bug("no incarnation check", _no_incarnation_check, ("membership",), seed=2),
    Bug("unbounded outbox", _unbounded_outbox, ("S8",)),
    Bug("lost reconnect", _lost_reconnect, ("S5", "S4"), seed=4, rate=_FEW),
    Bug("last to arrive wins", _last_to_arrive_wins, ("S3/S6", "S4", "S5"), seed=12),
    Bug("a counter's last writer wins", _last_writer_of_a_counter_wins, ("S6",), rate=_FEW, seed=3),
    Bug("a set's last writer wins", _last_writer_of_a_set_wins, ("S6: the set",), rate=_FEW, seed=3),
    Bug("the last offer wins", _last_offer_wins, ("S6: 'most'", "S6: 'least'"), rate=_FEW, seed=3),
    Bug("never reconcile", _never_reconcile, ("S5", "S4"), rate=_FEW),
    Bug("all sums are equal", _all_sums_are_equal, ("S5", "S4"), rate=_FEW),
    Bug("lite members hold too", _lite_members_hold_too, ("S5",), manager="partitioned", scene="lite"),
    Bug("logins do not end", _logins_do_not_end, ("S2",), seed=4),
    Bug("only sessions that are here end", _only_sessions_that_are_here_end, ("S2",), seed=4),
    Bug("drop a copy before it is confirmed", _drop_before_confirmation, ("S3/S6", "S4", "S5"), manager="backup"),
    Bug("the displaced are not told", _the_displaced_are_not_told, ("S5",), manager="backup", rate=_FEW),
    Bug("a copy too few", _a_copy_too_few, ("S5",), manager="backup", rate=_FEW),
    Bug("questions have no end", _questions_have_no_end, ("S7",), manager="backup"),
    Bug("one no is enough", _one_no_is_enough, ("S3:",), manager="backup", seed=6),
    Bug("a doubtful answer is unknown", _a_doubtful_answer_is_unknown, ("S7", "S3:"), manager="backup", seed=5),
    Bug("readers are not told", _readers_are_not_told, ("S2", "S3/S6", "S5"), manager="partitioned", rate=_FEW),
    Bug("serve before it arrived", _serve_before_it_arrived, ("S3:",)),
    Bug("leave before all is handed over", _leave_before_all_is_handed_over, ("n",), manager="partitioned", scene="rolling"),
    Bug("the last writer of a map's counter wins", _last_writer_of_a_counter_wins, tuple(f"n{number}: hits" for number in range(5)), scene="maps"),
    Bug("an id is replaced by two", _an_id_is_replaced_by_two, ("renewal one session", "renewal S3"), feature="renewal", seed=2),
    Bug("what is written to an old id stays there", _what_is_written_to_an_old_id_stays_there, ("renewal S3", "renewal S4"), feature="renewal"),
    Bug("an old id is good for ever", _an_old_id_is_good_for_ever, ("renewal grace",), feature="renewal"),
    Bug("who ends an old id ends that only", _who_ends_an_old_id_ends_that_only, ("renewal S2",), feature="renewal"),
    Bug("all who ask hold the lock", _all_who_ask_hold_the_lock, ("locks one holder",), feature="locks"),
    Bug("what was written under the lock is not told", _what_was_written_under_the_lock_is_not_told, ("locks lost change",), feature="locks"),
    Bug("a lease has no end", _a_lease_has_no_end, ("locks lease",), feature="locks", seed=4),
    Bug("who asks last is first", _who_asks_last_is_first, ("locks order",), feature="locks"),
    Bug("nobody is asked what it holds", _nobody_is_asked_what_it_holds, ("locks one holder",), feature="locks", seed=3),
    Bug("a holder is not told that its time is over", _a_holder_is_not_told_that_its_time_is_over, ("locks one holder",), feature="locks", seed=3),
    Bug("a logout is of one application", _a_logout_is_of_one_application, ("logins S2",), feature="logins", seed=2),
    Bug("a login is of one application", _a_login_is_of_one_application, ("logins one login",), feature="logins", seed=2),
    Bug("a login elsewhere is taken without a password", _a_login_elsewhere_is_taken_without_a_password, ("logins reauthenticate",), feature="logins", seed=6),
    Bug("a guest logs the browser out elsewhere", _a_guest_logs_the_browser_out_elsewhere, ("logins reauthenticate",), feature="logins", seed=6),
    Bug("principals are of one application", _principals_are_of_one_application, ("logins S2",), feature="logins", seed=2),
    Bug("nobody has too many sessions", _nobody_has_too_many_sessions, ("logins limit",), feature="logins"),
    Bug("nobody counts the sessions of others", _nobody_counts_the_sessions_of_others, ("logins limit",), manager="backup", feature="logins"),
    Bug("who is lost counts as a survivor", _who_is_lost_counts_as_a_survivor, ("rehearsal",), manager="backup", scene="rehearsal", seed=2),
    Bug("an older copy is as good", _an_older_copy_is_as_good, ("rehearsal",), scene="rehearsal"),
    Bug("domains do not matter", _domains_do_not_matter, tuple(f"n{number} of " for number in range(6)), scene="domains"),
)
