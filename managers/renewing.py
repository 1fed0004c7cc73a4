"""Commits of sessions whose ids are replaced (`renewal.py`): one that replaces it, and those that come to an old one."""

from __future__ import annotations

from .changes import encode_delta
from .committing import Committing
from .entry import Audited, is_whole
from .receipts import DROPPED, Receipt, Waiting
from .record import FIRST, RENEWED
from .renewal import Renewed, first_key, id_marks, next_id, next_seed
from .session import Session, key_of

__all__ = ["RenewingCommits"]


class RenewingCommits(Committing):
    """`Committing`, and this."""

    def commit(self, session: Session, acks: str | int | None = None, touch: bool = True) -> Receipt:
        if self._core.renewals.old:
            self.follow(session)
        if session.renewing and not session.ending and not session.unknown:
            if session.held is not None:
                session.held.check()
            receipt = self._commit_renewal(session)
            if receipt is not None:
                return receipt
        return super().commit(session, acks, touch)

    commit.__doc__ = Committing.commit.__doc__

    def follow(self, session: Session) -> None:
        """Let a session that was opened with an id which was replaced meanwhile go on under the next one."""
        with self._lock:
            self._core.renewals.follow(session, self._core.in_use)

    def _commit_renewal(self, session: Session) -> Receipt | None:
        """The record moves to the key of the next id, and the old key says so. Waited for, as every new id: any node may get the next request. None: it cannot be renewed now."""
        changes, session.renewing = session.changes(), False
        grace_ms = int(self._settings.renewal_grace_s * 1000)
        core, placement, key, age_ms, origin = self._core, self._core.placement, session.key, self._channel.now_ms() - session.created_ms, first_key(session)
        with self._lock:
            entry = self._writable(session)
            seed = core.renewals.seed(key)
            if entry is False:
                return DROPPED
            if entry is None or seed is None or not is_whole(entry):
                return None
            to, named = key_of(next_id(session.id or "", seed)), self._primary(key, entry)
            before = placement.appoint(to)
            waiting = self.confirming.by_groups(placement.others(key, named), placement.others(to, before))
            if (who := core.logins.who(key)) is not None:
                core.replica.events.append(Audited("id changed", key, *who, origin=session.origin, became=to))
            self._mark(key, named, {RENEWED: Renewed(to, age_ms + grace_ms).pack()}, waiting)
            core.renewals.move(key, to, before)
            core.renewals.note(key)
            self._core.renewals.follow(session, self._core.in_use)
            there = self._writable(session)
            if not there or session.key != to:
                return DROPPED
            self._write(to, there, there.primary, changes | id_marks(next_seed(key, seed), age_ms) | {FIRST: origin}, session, None)
            groups = placement.others(to, before)
            self.outbox.put_state(groups, to, waiting.ear)
            self.outbox.put_state(tuple(group for group in placement.heads(to, before) if group not in groups), to)
            self.confirming.await_(waiting)
            stored = self.confirming.stored(key, to)
            first = self.outbox.arm()
        if first:
            self._depart(waiting, True)
        return self.confirming.joined(waiting, stored)

    def _mark(self, key: bytes, named: bytes, changes: dict[str, bytes | None], waiting: Waiting) -> None:
        """A commit of the manager's own, that its caller sees off."""
        now_ms, groups = self._channel.now_ms(), self._core.placement.others(key, named)
        author, counter, previous, seen, _ = self._core.replica.commit(key, changes, now_ms, now_ms, named)
        if author == self._uid:
            self.outbox.put(groups, key, encode_delta(key, counter, previous, seen, changes, now_ms), waiting.ear)
        else:
            self.outbox.put_state(groups, key, waiting.ear)
        if self._core.moving.watchers or not self._core.placement.everywhere:
            self._core.moving.committed(key, named, now_ms)
