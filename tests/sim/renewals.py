"""Sessions whose ids are replaced by themselves (`renewal_timeout_s`), while requests with older ids go on elsewhere.

Users write and read with the cookie that they have or with one of before, some requests take a while, some responses are lost, and now and then somebody logs out, or in,
with whatever id the request had. What docs/fronts.md promises, as checks:

- S1 an id leads to the session that it was of, and to no other;
- *one session*: no id is ever replaced by two, and of all ids that descend from one at most one has a live session after healing;
- S3 within the grace an id is called gone by nobody who can ask somebody who has it, and nobody goes back to an older value, unless it has not heard yet that
  this id was replaced;
- S4 no write is lost that a member still alive had, under whichever id it was made;
- S2 a session that was ended under one of its ids is over under all. **Not so** where the id that ended it had been replaced for longer than the grace: there only that one ends;
- *grace*: after it no member that knows of the new id serves the old one, and after healing nobody does. **Not so** where the process that replaced it is gone before it could
  tell anybody, so that nobody has heard of the new id.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from caterwaul.managers.errors import SessionError
from caterwaul.managers.heads import LIVE
from caterwaul.managers.receipts import DROPPED
from caterwaul.managers.record import Record
from caterwaul.managers.renewal import read_renewed
from caterwaul.managers.session import Session, key_of
from caterwaul.managers.web.cookies import Ticket
from caterwaul.managers.web.policy import Visit

from .browsers import Browser, Site
from .checkers import Checkers
from .copies import difference
from .history import Ended, History, Write
from .node import SimCluster, SimNode
from .world import World

__all__ = ["Renewers", "renewal_settings"]

_NAME = "renewing"
_TIMEOUT_S, _GRACE_S = 5.0, 10.0
_SLACK_S = 3.0  # members do not agree on when a session began by what a message took that said so
_USERS, _RATE = 10, 18.0
_STICKY, _OLD, _LOST = 0.5, 0.25, 0.1
_ATTRIBUTES = ("cart", "name", "seen")
_ACKS = ("none", "none", "one", "quorum", "all")
_OVER_S = 1.0  # an end by time is looked for this often, about


def renewal_settings() -> dict[str, Any]:
    return {
        "idle_timeout_s": 0.0, "pack_after_s": 3.0, "expire_check_s": 0.5, "read_your_writes": "cluster", "renewal_timeout_s": _TIMEOUT_S, "renewal_grace_s": _GRACE_S,
        "cookie": {"name": f"__Host-{_NAME}"},
    }  # fmt: skip


class _Lines:
    """Which keys are of one session. `root`: the first of a key's; `replaced`: when a key was, first and last."""

    def __init__(self) -> None:
        self.root: dict[bytes, bytes] = {}
        self.following: dict[bytes, bytes] = {}
        self.replaced: dict[bytes, tuple[float, float]] = {}
        self.users: dict[bytes, str] = {}  # by root

    def begin(self, key: bytes, user: str) -> None:
        self.root[key] = key
        self.users[key] = user

    def moved(self, key: bytes, to: bytes, now: float) -> bytes:
        """What this key was replaced by first."""
        self.root.setdefault(to, self.root[key])
        self.replaced[key] = (self.replaced.get(key, (now, now))[0], now)
        return self.following.setdefault(key, to)

    def chain(self, key: bytes) -> Iterator[bytes]:
        """It, and what it was replaced by."""
        at: bytes | None = key
        while at is not None:
            yield at
            at = self.following.get(at)

    def keys(self, root: bytes) -> list[bytes]:
        return [key for key, other in self.root.items() if other == root]


class Renewers:
    """The users, from now on. A `Feature`."""

    def __init__(self, world: World, cluster: SimCluster, checkers: Checkers, until: float) -> None:
        self._world = world
        self._cluster = cluster
        self._until = until
        self._rng = world.rng("renewals")
        self._site = Site(world, cluster, _NAME, self._rng, _LOST)
        self._users = [Browser(f"r{number}") for number in range(_USERS)]
        self._writes = 0
        self._checks = _Checks(world, cluster, checkers)
        self.settled, self.over = self._checks.settled, self._checks.over
        world.queue.at(world.now, self._next, None)

    def healed(self) -> None:
        pass

    def difference(self) -> str:
        return difference(self._cluster, _NAME)

    def _next(self, _: None) -> None:
        now, rng = self._world.now, self._rng
        if now >= self._until:
            return
        self._world.queue.at(now + rng.uniform(0.5, 1.5) / _RATE, self._next, None)
        user = rng.choice(self._users)
        node = self._site.choose(user, _STICKY)
        if node is None:
            return
        self._world.counters["renewal_requests"] += 1
        self._checks.watch(node)
        ticket = self._site.ticket(node, rng.choice(user.before) if user.before and rng.random() < _OLD else user.jar)
        dice, lasts_s = rng.random(), rng.uniform(0.02, 1.0) if rng.random() < 0.5 else 0.0
        self._site.open(node, ticket, lambda visit: self._serve(user, node, ticket, visit, dice, lasts_s))

    def _serve(self, user: Browser, node: SimNode, ticket: Ticket, visit: Visit, dice: float, lasts_s: float) -> None:
        session = visit.session
        if ticket.id is not None:
            self._checks.opened(node, key_of(ticket.id), session)
        if session.unknown:
            self._world.counters["renewal_unknown"] += 1
            self._site.give_up(user, visit)
            return
        self._checks.saw(node, user.name, session)
        self._site.later(node, lasts_s, lambda: self._act(user, node, visit, dice))

    def _act(self, user: Browser, node: SimNode, visit: Visit, dice: float) -> None:
        session, before, is_new = visit.session, visit.session.key, visit.session.new
        write: Write | None = None
        if dice < 0.45:
            attribute = _ATTRIBUTES[int(dice * 100) % 3]
            self._writes += 1
            write = Write(f"{user.name}:{attribute}:{self._writes}", session.get(attribute), "", attribute, self._world.now)
            session[attribute] = write.token
        elif dice < 0.465 and not is_new:
            visit.end()
        elif dice < 0.475 and not is_new:
            session.cycle_id()
        session.acks = self._rng.choice(_ACKS)

        def saved(receipt: Any) -> None:
            if receipt is DROPPED:
                self._world.counters["renewal_dropped"] += 1
            elif write is not None:
                self._checks.wrote(node, user.name, session, write, is_new, receipt)
            elif 0.45 <= dice < 0.475 and not is_new:
                self._checks.ended(node, user.name, before, session, receipt)

        try:
            self._site.finish(user, visit, saved)
        except SessionError:
            self._world.counters["renewal_refused"] += 1


class _Checks:
    def __init__(self, world: World, cluster: SimCluster, checkers: Checkers) -> None:
        self._world = world
        self._cluster = cluster
        self._checkers = checkers
        self._history = History()
        self._lines = _Lines()
        self._ended: dict[bytes, Ended] = {}  # by key
        self._watched: set[str] = set()
        self._under: dict[tuple[str, str, str], bytes] = {}  # the key under which `History.shown` was
        self._made: dict[bytes, tuple[int, float]] = {}  # by key: on which node, when

    def _fail(self, promise: str, what: str) -> None:
        self._world.fail(f"renewal {promise}: {what}")

    def watch(self, node: SimNode) -> None:
        """Hear of each id that is replaced there."""
        life = node.reactor.name
        if life in self._watched:
            return
        self._watched.add(life)
        renewals = node.managers[_NAME]._core.renewals
        move = renewals.move

        def watched(key: bytes, to: bytes, primary: bytes) -> None:
            self._world.counters["renewals"] += 1
            first = self._lines.moved(key, to, self._world.now)
            if first != to:
                self._fail("one session", f"{life} replaces {_short(key)} by {_short(to)}, and it was replaced by {_short(first)} before")
            self._made.setdefault(to, (int(node.me.name[1:]), self._world.now))
            move(key, to, primary)

        renewals.move = watched  # type: ignore[method-assign]

    # -- requests

    def opened(self, node: SimNode, asked: bytes, session: Session) -> None:
        life, now = node.reactor.name, self._world.now
        if asked not in self._lines.root or session.unknown:
            return
        if session.new:
            self._is_gone(node, asked)
            return
        chain = list(self._lines.chain(asked))
        if session.key not in chain:
            self._fail("S1", f"{life} gives {_short(session.key)} for {_short(asked)}")
        for key in chain[: chain.index(session.key) + 1]:  # of what became of that one this node may not have heard yet
            ended = self._ended.get(key)
            if ended is not None and life in ended.refused_by:
                self._fail("S2", f"{life} serves {_short(asked)}, of a session that ended there as {_short(key)} at {ended.at:.3f}")
        replaced = self._lines.replaced.get(asked)
        if replaced is not None:
            self._world.counters["old_ids"] += 1
            if now > replaced[1] + _GRACE_S + _SLACK_S and node.managers[_NAME]._core.renewals.of(asked) is not None:
                self._fail("grace", f"{life} serves {_short(asked)}, which was replaced at {replaced[1]:.3f}, and knows that")

    def _is_gone(self, node: SimNode, asked: bytes) -> None:
        """Within the grace, nobody whom this node sees and hears has it."""
        now, lines = self._world.now, self._lines
        if any(key in self._ended for key in lines.keys(lines.root[asked])):
            return
        if asked in lines.replaced and now > lines.replaced[asked][0] + _GRACE_S - _SLACK_S:
            return
        author, at = self._made[asked]
        if now < at + 1.0 or self._checkers.was_held_up(author, at):
            return
        core = node.managers[_NAME]._core
        if (not core.placement.peers() and core.sure(node.managers[_NAME]._channel.now_ms())) or (
            core.placement.everywhere and not self._checkers.all_see_all()
        ):
            return
        self._world.counters["renewal_gone_checked"] += 1
        for other in self._cluster.nodes.values():
            if other.managers and self._checkers.reaches(node, other, _NAME) and other.managers[_NAME]._core.replica.held(asked) is not None:
                self._fail("S3", f"{node.reactor.name} calls {_short(asked)} gone, which {other.reactor.name} has")

    def saw(self, node: SimNode, user: str, session: Session) -> None:
        root = self._lines.root.get(session.key)
        if root is None:
            return
        for attribute in session:
            token, place = session[attribute], (node.reactor.name, root.hex(), attribute)
            if not token.startswith(f"{user}:{attribute}:"):
                self._fail("S1", f"{place[0]} shows {token!r} as {attribute} of {user}")
            before, under = self._history.shown.get(place), self._under.get(place, session.key)
            if session.key not in self._lines.chain(under):
                continue  # an older id, at a node that has not heard that it was replaced
            if before is not None and not session.stale and self._history.is_older(token, before) and self._is_in_reach(node, root, attribute, before):
                self._fail("S3", f"{place[0]} shows {token!r} in {_short(session.key)} after {before!r}, which replaced it")
            self._show(place, token, session.key)

    def _show(self, place: tuple[str, str, str], token: str, key: bytes) -> None:
        self._history.shown[place], self._under[place] = token, key

    def _is_in_reach(self, node: SimNode, root: bytes, attribute: str, token: str) -> bool:
        if node.managers[_NAME]._core.placement.everywhere:
            return True
        near = [other for other in self._cluster.nodes.values() if other.managers and self._checkers.reaches(node, other, _NAME)]
        return any(self._history.is_kept(token, there) for other in near for key in self._lines.keys(root) if (there := self._token(other, key, attribute)))

    def wrote(self, node: SimNode, user: str, session: Session, write: Write, is_new: bool, receipt: Any) -> None:
        if is_new:
            self._begin(node, session.key, user)
        write.session_id = self._lines.root[session.key].hex()
        write.holders.add(node.reactor.name)
        self._history.writes[write.token] = write
        self._show((node.reactor.name, write.session_id, write.attribute), write.token, session.key)
        self._world.counters["renewal_writes"] += 1
        if receipt is not None:
            receipt.deferred().addCallback(lambda done: write.holders.update(self._checkers.lives(done.confirmed, write.at)))

    def ended(self, node: SimNode, user: str, before: bytes, session: Session, receipt: Any) -> None:
        """By a logout, or by a new id: then its contents go on there."""
        core = node.managers[_NAME]._core
        key = next(
            (key for key in self._lines.chain(before) if (entry := core.replica.get(key)) is not None and entry.head is not None and entry.head.final), before
        )
        ended = self._ended.setdefault(key, Ended(key.hex(), self._world.now))
        ended.refused_by.add(node.reactor.name)
        self._world.counters["renewal_ends"] += 1
        if not session.ended and session.id is not None:
            self._begin(node, session.key, user)
            for attribute in session:
                self._show((node.reactor.name, session.key.hex(), attribute), session[attribute], session.key)
        if receipt is not None and core.placement.everywhere:
            receipt.deferred().addCallback(lambda done: ended.refused_by.update(self._checkers.lives(done.confirmed, ended.at)))

    def _begin(self, node: SimNode, key: bytes, user: str) -> None:
        self._lines.begin(key, user)
        self._made[key] = int(node.me.name[1:]), self._world.now

    # -- after healing

    def settled(self) -> None:
        alive = {node.reactor.name for node in self._cluster.nodes.values()}
        present: dict[bytes, set[bytes]] = {}
        for key, record in self._live():
            if read_renewed(record.registers) is None and key in self._lines.root:
                present.setdefault(self._lines.root[key], set()).add(key)
        for root, keys in present.items():
            if len(keys) > 1:
                self._fail("one session", f"{_short(root)} has become {' and '.join(map(_short, sorted(keys)))}")
        for write in self._history.writes.values():
            root = bytes.fromhex(write.session_id)
            if not write.holders & alive or self._has_ended(root):
                continue
            self._world.counters["renewal_writes_checked"] += 1
            there = next((found for key in present.get(root, ()) for node in self._nodes() if (found := self._token(node, key, write.attribute))), None)
            if not self._history.is_kept(write.token, there) and not self._checkers.is_beyond(write.at):
                self._fail("S4", f"{write.token!r} of {write.at:.3f} is lost, {sorted(write.holders & alive)} had it; there is {there!r}")

    def over(self) -> None:
        now, lines = self._world.now, self._lines
        alive = {node.reactor.name for node in self._cluster.nodes.values()}
        over: dict[bytes, Ended] = {}
        for key, ended in self._ended.items():
            if ended.refused_by & alive and not (key in lines.replaced and ended.at > lines.replaced[key][0] + _GRACE_S - _SLACK_S):
                over[lines.root[key]] = ended
        for key, record in self._live():
            if key not in lines.root:
                continue
            if (end := over.get(lines.root[key])) is not None and read_renewed(record.registers) is None:
                self._fail("S2", f"{_short(key)} lives, of a session that ended at {end.at:.3f} as {end.session_id[:8]}")
            if key in lines.replaced and now > lines.replaced[key][1] + _GRACE_S + _SLACK_S + _OVER_S and self._is_known(lines.following[key]):
                self._fail("grace", f"{_short(key)} lives, which was replaced at {lines.replaced[key][1]:.3f}")

    def _is_known(self, key: bytes) -> bool:
        """Whether whoever replaced an id by this one has told anybody who lives of it."""
        return any(node.managers[_NAME]._core.replica.get(key) is not None for node in self._nodes())

    def _has_ended(self, root: bytes) -> bool:
        return any(key in self._ended for key in self._lines.keys(root))

    def _nodes(self) -> list[SimNode]:
        return [node for _, node in sorted(self._cluster.nodes.items())]

    def _live(self) -> Iterator[tuple[bytes, Record]]:
        for node in self._nodes():
            replica = node.managers[_NAME]._core.replica
            for key, entry in replica.entries():
                if entry.body is not None and (entry.head is None or entry.head.state == LIVE):
                    yield key, Record.unpack(replica.body_of(entry) or b"")

    def _token(self, node: SimNode, key: bytes, attribute: str) -> str | None:
        manager = node.managers[_NAME]
        entry = manager._core.replica.get(key)
        record = manager._core.replica.record(key, entry) if entry is not None else None
        register = record.registers.get(attribute) if record is not None else None
        return None if register is None or register[2] is None else manager.types.decode(register[2])


def _short(key: bytes) -> str:
    return key.hex()[:8]
