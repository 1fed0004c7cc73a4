"""Clerks of a bank: each change of an account is read, thought about and written under `session.lock()`, from any node.

A balance says how many changes led to it, and which was the last; so of two changes one follows the other, or one is lost. What docs/concurrency.md promises, as checks:

- *one holder*: while one believes that it has the lock (by its own clock, and it has not stood still) nobody else is let in. **Not so** where messages between those who hold
  and grant were held up since the first was let in (a partition, a link that hangs or was cut), their clocks ran at different speeds, or those who let them in do not see each
  other as datagrams are lost between them;
- *lost change*: who is let in sees what was committed and confirmed under the lock before, if that was held until the confirmation. **Not so** in the same cases,
  nor where the process of that commit is gone, and with it what it had to say of it;
- *order*: of those whose questions wait at the member that grants, the first to come is granted the lock;
- *lease*: who is let in loses the lock only by time (what the messages took is its own loss), or by standing still, and who waits is let in, or told that it was not, when it gives up;
- after healing every lock is granted from every node, and nothing is left of those who asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from twisted.internet.defer import Deferred

from caterwaul.managers.errors import LockLost, LockTimeout, SessionError
from caterwaul.managers.session import Session, key_of

from .checkers import Checkers
from .copies import difference
from .node import SimCluster, SimNode
from .world import World

__all__ = ["BankClerks", "bank_settings"]

_NAME = "bank"
_TIMEOUT_S, _LEASE_S = 4.0, 3.0
_ACCOUNTS, _RATE = 5, 14.0
_ACKS = ("one", "one", "one", "quorum", "all")
_LOOK_EVERY_S = 0.1
_ENTERS_S = 3.5  # what the holder before has written is waited for after the lock was granted: the product's own limit for threads and asyncio
_SETTLED_S = 3.0  # views that have not changed for so long are known to everybody whom they name
_RECONNECTS_S = 1.5
_AGREED_S = 5.1  # by then copies were compared, which these changes would disturb; and who asked before has given up
_MEET_S = 5.0  # after a partition its sides have met again


def bank_settings(renews: bool) -> dict[str, Any]:
    renewal = {"renewal_timeout_s": 7.0, "renewal_grace_s": 20.0} if renews else {}
    return {
        "idle_timeout_s": 0.0,
        "lock_timeout_s": _TIMEOUT_S,
        "lock_lease_s": _LEASE_S,
        "strict_acks": True,
        "acks": "one",
        "cookie": {"name": f"__Host-{_NAME}"},
        **renewal,
    }


class _Change:
    """One change of an account. `parent`: the one before, whose balance it saw. `granter`: uid and number of the member that let it in."""

    __slots__ = ("asked_at", "done_at", "entered_at", "granter", "lock", "node", "number", "parent", "state", "until")

    def __init__(self, number: int, node: SimNode, now: float) -> None:
        self.number, self.node, self.asked_at = number, node, now
        self.lock: Any = None
        self.entered_at = self.done_at = self.until = 0.0  # `until`: what it counts on, by its own clock
        self.parent = 0
        self.granter: tuple[bytes, int] = (b"", -1)
        self.state = "waits"  # waits, inside, kept, maybe (committed, and not confirmed), lost, gone (the account with all who had it)

    @property
    def life(self) -> str:
        return self.node.reactor.name

    @property
    def where(self) -> int:
        return int(self.node.me.name[1:])


class _Account:
    __slots__ = ("changes", "id", "kept", "open")

    def __init__(self, session_id: str) -> None:
        self.id = session_id
        self.changes: dict[int, _Change] = {}
        self.open: dict[int, _Change] = {}  # those that wait, or are inside
        self.kept: _Change | None = None  # the last that was confirmed under the lock

    def line(self, number: int) -> Iterator[_Change]:
        """This change, and those that it follows."""
        while number in self.changes:
            yield self.changes[number]
            number = self.changes[number].parent


class BankClerks:
    """From now on. A `Feature`."""

    def __init__(self, world: World, cluster: SimCluster, checkers: Checkers, until: float) -> None:
        self._world = world
        self._cluster = cluster
        self._checkers = checkers
        self._until = until
        self._rng = world.rng("locks")
        self._accounts: list[_Account] = []
        self._opened = 0
        self._number = 0
        self._last: list[_Change] = []
        self._trouble = _Trouble(world, cluster, checkers)
        self._checks = _Checks(world, cluster, checkers, self._trouble)
        world.queue.at(world.now, self._next, None)

    def _next(self, _: None) -> None:
        now, rng = self._world.now, self._rng
        if now >= self._until:
            return
        self._world.queue.at(now + rng.uniform(0.5, 1.5) / _RATE, self._next, None)
        up = [node for _, node in sorted(self._cluster.nodes.items()) if not node.reactor.paused and node.managers and node.membership is not None]
        if not up:
            return
        node = rng.choice(up)
        if len(self._accounts) + self._opened < _ACCOUNTS:
            self._begin_account(node)
        elif self._accounts:
            lasts_s = rng.uniform(0.0, 0.25) if rng.random() > 0.02 else 1.3 * _LEASE_S
            for one in up:
                self._checks.watch(one)
            self._request(rng.choice(self._accounts), node, lasts_s)

    def _begin_account(self, node: SimNode) -> None:
        """Known to the clerks when somebody else has it."""
        manager = node.managers[_NAME]
        session = manager.open_local(None)
        assert session is not None
        session["balance"] = [0, 0]
        self._opened += 1

        def done(receipt: Any) -> None:
            self._opened -= 1
            if getattr(receipt, "satisfied", False) and session.id is not None:
                self._accounts.append(_Account(session.id))

        manager.commit(session, "all").deferred().addBoth(done)

    def _request(self, account: _Account, node: SimNode, lasts_s: float) -> _Change:
        self._number += 1
        change = _Change(self._number, node, self._world.now)
        self._world.counters["lock_requests"] += 1
        change.state = "asks"
        manager = node.managers[_NAME]

        def opened(session: Session) -> None:
            if session.unknown or session.new:
                self._world.counters["lock_unknown" if session.unknown else "lock_gone"] += 1
                change.state = "lost" if self._is_held(account) else "gone"
                if session.new and not session.unknown and account in self._accounts and self._checkers.is_beyond(0.0):
                    self._accounts.remove(account)  # it went with all who had it
                manager.release(session)
                return
            manager.renew(session)
            if session.renewing:
                manager.commit(session, "one").deferred().addCallback(lambda _, new_id=session.id: setattr(account, "id", new_id)).addErrback(_not_confirmed)
            change.asked_at = self._world.now
            change.state = "waits"
            account.changes[change.number] = account.open[change.number] = change
            session.acks = self._rng.choice(_ACKS)
            change.lock = session.lock()
            change.lock.run(lambda inside: self._inside(account, change, inside, lasts_s)).addBoth(self._over, account, change, session).addErrback(
                self._broken
            )

        assert node.channel is not None
        node.channel.wake(lambda: manager.open_deferred(account.id).addCallback(opened).addErrback(self._broken) and None)
        return change

    def _inside(self, account: _Account, change: _Change, session: Session, lasts_s: float) -> Deferred[None]:
        count, change.parent = session["balance"]
        change.entered_at, change.state = self._world.now, "inside"
        self._checks.entered(account, change)
        written: Deferred[None] = Deferred()

        def write() -> None:
            session["balance"] = [count + 1, change.number]
            written.callback(None)

        change.node.reactor.callLater(lasts_s, write)
        return written

    def _over(self, result: Any, account: _Account, change: _Change, session: Session) -> None:
        """The lock is given back, or was not had. Of a process that is gone it says nothing: its coroutines end when Python collects them."""
        if change.node.reactor.dead:
            return
        change.node.managers[_NAME].release(session)
        account.open.pop(change.number, None)
        was, change.done_at = change.state, self._world.now
        if not hasattr(result, "trap"):
            change.state = "kept"
            self._world.counters["lock_changes"] += 1
            if change.done_at - change.entered_at < 0.8 * _LEASE_S:
                account.kept = change
            return
        if not result.check(SessionError):
            self._world.fail(result.getTraceback())
        kind = result.type
        self._world.counters[f"lock_{kind.__name__}"] += 1
        change.state = "maybe" if was == "inside" and kind is not LockLost else "lost"
        if kind is LockTimeout:
            self._checks.gave_up(change)
        elif kind is LockLost:
            self._checks.lost(change)

    def _broken(self, failure: Any) -> None:
        self._world.fail(failure.getTraceback())

    # -- after healing

    def healed(self) -> None:
        self._world.queue.at(self._world.now + _AGREED_S, self._ask_all, None)

    def _ask_all(self, _: None) -> None:
        for account in self._accounts:
            for _, node in sorted(self._cluster.nodes.items()):
                self._last.append(self._request(account, node, 0.02))

    def _is_held(self, account: _Account) -> bool:
        """Whether anybody has it who lives."""
        key = key_of(account.id)
        return any(node.managers and node.managers[_NAME]._core.replica.held(key) is not None for node in self._cluster.nodes.values())

    def difference(self) -> str:
        return difference(self._cluster, _NAME)

    def settled(self) -> None:
        pass

    def over(self) -> None:
        for change in self._last:
            if change.state not in ("kept", "gone"):
                self._checks.fail("lease", f"{change.life} asked for a lock at {change.asked_at:.3f}, after healing, and that change is {change.state!r}")
        self._checks.nothing_is_left()


def _not_confirmed(failure: Any) -> None:
    failure.trap(SessionError)


class _Trouble:
    """What may be an excuse: when something was wrong last, and with whom."""

    def __init__(self, world: World, cluster: SimCluster, checkers: Checkers) -> None:
        self._world = world
        self._cluster = cluster
        self._checkers = checkers
        self._cut: dict[frozenset[str], float] = {}
        self._skewed: dict[int, float] = {}
        reset = world.network.reset_connections

        def watched(one: Any, other: Any) -> int:
            self._cut[frozenset((one.address, other.address))] = world.now
            return reset(one, other)

        world.network.reset_connections = watched  # type: ignore[method-assign]
        world.queue.at(world.now, self._look, None)

    def _look(self, _: None) -> None:
        now = self._world.now
        self._world.queue.at(now + _LOOK_EVERY_S, self._look, None)
        for number, node in self._cluster.nodes.items():
            if node.reactor._rate != 1.0:
                self._skewed[number] = now

    def among(self, numbers: Iterable[int], since: float) -> bool:
        """Whether messages between these were held up since then, or their clocks were not of one speed."""
        some = sorted(set(numbers))
        hosts = {number: self._cluster.host(number).address for number in some}
        if any(self._skewed.get(number, -1.0) >= since - _LOOK_EVERY_S for number in some):
            return True
        if any(self._cut.get(frozenset((hosts[one], hosts[other])), -99.0) >= since - _RECONNECTS_S for one in some for other in some if one < other):
            return True
        return self._checkers.is_stuck(some, since)

    def dozed(self, node: SimNode, since: float) -> bool:
        """Whether it stood still since then, for less than what makes it give up its locks: what it was sent waited for it."""
        woke, slept = self._checkers.woke_at(node), self._checkers.slept_at(node)
        return woke >= since - 2 * _LOOK_EVERY_S and woke - slept < self._checkers.drop_time_s + _LOOK_EVERY_S

    def stood_still(self, node: SimNode, since: float) -> bool:
        return node.reactor.paused or self._checkers.woke_at(node) >= since - 2 * _LOOK_EVERY_S


class _Checks:
    def __init__(self, world: World, cluster: SimCluster, checkers: Checkers, trouble: _Trouble) -> None:
        self._world = world
        self._cluster = cluster
        self._checkers = checkers
        self._trouble = trouble
        self._watched: set[str] = set()

    def fail(self, promise: str, what: str) -> None:
        self._world.fail(f"locks {promise}: {what}")

    def watch(self, node: SimNode) -> None:
        """Of those who wait in this member's table the first to come gets the lock."""
        if node.reactor.name in self._watched:
            return
        self._watched.add(node.reactor.name)
        assert node._locks is not None
        table = node._locks._desks[_NAME].table
        ask, grant, came = table.ask, table._grant, dict[tuple[bytes, Any], int]()

        def asked(now: float, key: bytes, asker: Any, *more: float) -> Any:
            lock = table._locks.get(key)
            if lock is None or asker not in lock.queue:
                came[key, asker] = self._world.counters["lock_asked"]
                self._world.counters["lock_asked"] += 1
            return ask(now, key, asker, *more)

        def granted(now: float, key: bytes, lock: Any, asker: Any, lease_s: float) -> Any:
            before = [other for other in lock.queue if came.get((key, other), 2**53) < came.get((key, asker), -1)] if not lock.holders else []
            if before:
                self.fail("order", f"{node.reactor.name} grants {key.hex()[:8]} to one who asked after {len(before)} who wait")
            return grant(now, key, lock, asker, lease_s)

        table.ask, table._grant = asked, granted  # type: ignore[method-assign]

    def entered(self, account: _Account, change: _Change) -> None:
        manager = change.node.managers[_NAME]
        granter = manager.view.by_uid.get(manager.locks.granter(change.lock._key))
        change.granter = (granter.uid, int(granter.name[1:])) if granter is not None else (b"", change.where)
        change.until = change.lock._grant.until
        self._world.counters["lock_entries"] += 1
        if not self._trouble.stood_still(change.node, change.asked_at) and change.entered_at - change.asked_at > _TIMEOUT_S + _ENTERS_S:
            self.fail("lease", f"{change.life} was let in after {change.entered_at - change.asked_at:.3f} s, and would wait for {_TIMEOUT_S} s")
        for number in [number for number, other in account.open.items() if not self._is_alive(other)]:
            del account.open[number]
        for other in account.open.values():
            if other is not change and other.state == "inside":
                self._is_alone(change, other)
        if account.kept is not None:
            self._is_seen(account, change, account.kept)

    def _is_alone(self, change: _Change, other: _Change) -> None:
        if not self._believes(change) or not self._believes(other):
            return
        since = other.entered_at - (_MEET_S if self._are_apart(change, other) else 0.0)
        dozed = self._trouble.dozed(other.node, other.asked_at)
        if dozed or self._trouble.among(self._numbers(change, other), since) or self._are_parted(change, other):
            self._world.counters["lock_overlaps_excused"] += 1
            return
        self.fail("one holder", f"{change.life} is let in, and {other.life} was at {other.entered_at:.3f} and is inside still")

    def _are_apart(self, change: _Change, other: _Change) -> bool:
        """Whether those who let them in do not see each other (yet)."""
        views = [one.node.managers[_NAME].view.by_uid for one in (change, other)]
        return other.granter[0] not in views[0] or change.granter[0] not in views[1]

    def _are_parted(self, change: _Change, other: _Change) -> bool:
        """The same, as datagrams do not get through: each is on its own side of a partition, though streams would work."""
        numbers = (change.granter[1], other.granter[1])
        return self._are_apart(change, other) and self._checkers.is_troubled(*numbers, self._world.now - 2 * self._checkers.drop_time_s)

    def _believes(self, change: _Change) -> bool:
        """Whether it thinks that it has the lock."""
        grant = change.lock._grant
        return not change.node.reactor.paused and grant is not None and change.node.managers[_NAME].locks.is_ours(grant)

    def _is_seen(self, account: _Account, change: _Change, kept: _Change) -> None:
        line = list(account.line(change.parent))
        self._world.counters["lock_reads_checked"] += 1
        if kept in line:
            return
        mine = [other.number for other in account.line(kept.number)]
        apart = [other for other in line if other.number not in mine]
        ops = [change, kept, *apart]
        since = min([kept.entered_at, *(other.entered_at for other in apart)]) - _SETTLED_S
        if not all(map(self._is_alive, (kept, *apart))) or self._trouble.among(self._numbers(*ops), since) or self._are_parted(change, kept):
            self._world.counters["lock_losses_excused"] += 1
            return
        self.fail(
            "lost change", f"{change.life} is let in and reads change {change.parent}; {kept.life} has kept {kept.number} under the lock by {kept.done_at:.3f}"
        )

    def gave_up(self, change: _Change) -> None:
        waited_s = change.done_at - change.asked_at
        if waited_s > _TIMEOUT_S + _ENTERS_S and not self._trouble.stood_still(change.node, change.asked_at) and not change.entered_at:
            self.fail("lease", f"{change.life} waited for {waited_s:.3f} s, and would wait for {_TIMEOUT_S} s")

    def lost(self, change: _Change) -> None:
        if self._trouble.stood_still(change.node, change.asked_at):
            return
        held_s = change.done_at - change.entered_at
        if change.node.reactor.seconds() < change.until:
            self.fail("lease", f"{change.life} has lost its lock after {held_s:.3f} s, and not by time")
        if held_s < 0.8 * _LEASE_S and not self._trouble.among(self._numbers(change), change.asked_at):  # what messages took is the holder's loss
            self.fail("lease", f"{change.life} has lost its lock after {held_s:.3f} s")

    def nothing_is_left(self) -> None:
        for node in self._cluster.nodes.values():
            desk = node._locks._desks[_NAME]  # type: ignore[union-attr]
            left = {"askers": desk.table.askers, "answers": len(desk.answers), "wanted": len(desk.wanted), "held": len(desk.held), "early": len(desk.early)}
            if any(left.values()):
                self.fail("lease", f"{node.reactor.name} has left of locks that nobody has or wants: {left}")

    def _is_alive(self, change: _Change) -> bool:
        node = self._cluster.nodes.get(change.where)
        return node is change.node

    def _numbers(self, *changes: _Change) -> set[int]:
        return {number for change in changes for number in (change.where, change.granter[1]) if number >= 0}
