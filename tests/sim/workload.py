"""Users of a simulated cluster: they write, read, log in and out, on the node that served them last or on any other.

Half of them *roam*: no balancer keeps them on a node, their cookies carry the product's tokens (`read_your_writes`), and
they often follow a write with a read elsewhere at once, as after a redirect. The others have cookies without a token.

A request runs as an application's thread does: straight into the manager, beside the reactor; what has to be asked of
others goes through the reactor. It happens at one moment, also in a process that has just been woken and whose reactor has
not yet noticed that it slept. A node that is down or stands still gets no requests, as behind a balancer. Everything
that was promised and seen goes to the checkers.
"""

from __future__ import annotations

from random import Random
from typing import Any

from caterwaul.managers.errors import SessionError
from caterwaul.managers.merging_types import Counter, Max, MergingSet, Min
from caterwaul.managers.principals import principal_key
from caterwaul.managers.session import Session
from caterwaul.managers.tokens import claimed, is_of

from .checkers import COUNTER, LEAST, MARKS, MERGING, MOST, Checkers
from .history import Add, Cookie, Ended, History, Out, Write, token_in
from .node import SimCluster, SimNode
from .world import World

__all__ = ["Workload"]

_ATTRIBUTES = ("cart", "name", "blob")
_PADDING = "|" + "x" * 8000  # so that a clogged link fills its outbox
_STICKY = 0.8
_ACKS = ("none", "none", "one", "one", "quorum", "all")
_FOLLOWED = 0.3  # of the writes of those who roam
_REDIRECT_S = 0.002


class _User:
    __slots__ = ("cookie", "counts", "name", "node", "quiet_until", "roams", "writes")

    def __init__(self, name: str, roams: bool, counts: bool) -> None:
        self.name = name
        self.roams = roams
        self.counts = counts
        self.cookie = Cookie()
        self.node: int | None = None
        self.quiet_until = 0.0
        self.writes = 0


class Workload:
    """`rate` requests a second by `users` users, from now until `until`. `idle_s`: the manager's idle limit."""

    def __init__(self, world: World, cluster: SimCluster, checkers: Checkers, *, users: int, rate: float, until: float, idle_s: float) -> None:
        self._world = world
        self._cluster = cluster
        self._checkers = checkers
        self.history: History = checkers.history
        self._rng: Random = world.rng("workload")
        self._marks: Random = world.rng("marks")
        self._users = [_User(f"u{number}", roams=number % 4 == 0, counts=number % 2 == 0) for number in range(users)]
        self._pause = 1.0 / rate
        self._until = until
        self._idle_s = idle_s
        world.queue.at(world.now, self._next, None)

    def cookies(self) -> list[Cookie]:
        return [user.cookie for user in self._users]

    def _next(self, _: None) -> None:
        now = self._world.now
        if now >= self._until:
            return
        self._world.queue.at(now + self._rng.uniform(0.5, 1.5) * self._pause, self._next, None)
        user = self._rng.choice(self._users)
        if now < user.quiet_until:
            user = self._rng.choice(self._users)
            if now < user.quiet_until:
                return
        node = self._choose(user)
        if node is not None:
            self._request(user, node, self._rng.random())

    def _choose(self, user: _User) -> SimNode | None:
        up = [number for number, node in sorted(self._cluster.nodes.items()) if not node.reactor.paused and node.managers and node.membership is not None]
        if not up:
            return None
        if user.node not in up or user.roams or self._rng.random() > _STICKY:
            user.node = self._rng.choice(up)
        return self._cluster.nodes[user.node]

    # -- one request

    def _request(self, user: _User, node: SimNode, dice: float) -> None:
        self._world.counters["operations"] += 1
        cookie = user.cookie
        session = node.manager.open_local(cookie.id, cookie.token)
        if session is not None:
            self._serve(user, node, cookie, session, dice)
            return
        self._world.counters["lookups"] += 1
        number = self._checkers.asks(node)

        def serve(found: Session) -> None:
            self._checkers.served(node, number)
            self._serve(user, node, cookie, found, dice)

        def ask() -> None:
            node.manager.open_deferred(cookie.id, cookie.token).addCallback(serve)

        assert node.channel is not None
        node.channel.wake(ask)

    def _serve(self, user: _User, node: SimNode, cookie: Cookie, session: Session, dice: float) -> None:
        if cookie.id is not None:
            self._checkers.answered(node, cookie.id, session)
        try:
            if not session.unknown:
                shown = self._read(user, node, session)
                if user.roams:
                    self._checkers.read_own(node, cookie, session, shown)
                    if session.new or session.token != cookie.token:  # nobody has what is not shown
                        cookie = cookie._replace(wrote=self._kept(cookie, shown))
                    if session.id is not None and session.token != cookie.token:
                        self._set_cookie(user, cookie, session, cookie.wrote)
                self._act(user, node, cookie, session, dice)
            else:
                self._world.counters["unknown"] += 1
        except SessionError:
            self._world.counters["refused"] += 1
        finally:
            if session.id is not None:
                if session.id not in self.history.used:
                    self._checkers.made(node, session.id)
                self.history.used[session.id] = self._world.now
            node.manager.release(session)

    def _read(self, user: _User, node: SimNode, session: Session) -> dict[str, str]:
        shown = {attribute: token_in(session[attribute]) for attribute in session if attribute not in MERGING}
        for attribute, token in shown.items():
            self._checkers.saw(node, user.name, session, attribute, token)
        return shown

    def _set_cookie(self, user: _User, sent: Cookie, session: Session, wrote: dict[str, tuple[str, bytes]]) -> None:
        """The response to a request with this cookie; what comes late does not replace another id."""
        if user.cookie.id != sent.id:
            return
        if not user.roams:
            user.cookie = Cookie(session.id)
            return
        authors = claimed(session.token)  # four at most: who wrote on a fifth node is not told of the first any more
        user.cookie = Cookie(session.id, session.token, {attribute: write for attribute, write in wrote.items() if is_of(write[1], authors)})

    def _kept(self, cookie: Cookie, shown: dict[str, str]) -> dict[str, tuple[str, bytes]]:
        """What is not shown is lost; what was replaced was so by a request at the same time, of which this cookie may not know."""
        return {attribute: write for attribute, write in cookie.wrote.items() if shown.get(attribute) == write[0]}

    def _follow(self, user: _User) -> None:
        node = self._choose(user)
        if node is not None:
            self._request(user, node, 0.5)

    def _act(self, user: _User, node: SimNode, cookie: Cookie, session: Session, dice: float) -> None:
        if dice < 0.30:
            self._write(user, node, cookie, session, _ATTRIBUTES[int(dice * 100) % 3])
        elif dice < 0.36 and user.counts:
            self._add(user, node, cookie, session)
        elif dice < 0.90:
            self._world.counters["reads"] += 1
            node.manager.commit(session)
        elif dice < 0.92 and session.id is not None:
            self._cycle(user, node, cookie, session, dice)
        elif dice < 0.93 and session.id is not None:
            self._invalidate(user, node, cookie, session)
        elif dice < 0.932:
            self._end_all(user, node)
        elif dice < 0.935:
            user.quiet_until = self._world.now + self._idle_s * self._rng.uniform(0.5, 2.0)
            node.manager.commit(session)
        else:
            node.manager.commit(session)

    def _write(self, user: _User, node: SimNode, cookie: Cookie, session: Session, attribute: str) -> None:
        user.writes += 1
        token = f"{user.name}:{attribute}:{user.writes}"
        before = session.get(attribute)
        if attribute == "cart":  # a nested change, found by the commit
            parent = before[-1] if before else None
            if before is None:
                session[attribute] = [token]
            else:
                before[:] = [*before[-2:], token]
        else:
            parent = before and token_in(before)
            session[attribute] = token + _PADDING if attribute == "blob" else token
        write = Write(token, parent, session.id or "", attribute, self._world.now)
        self._commit(user, node, cookie, session, write)

    def _add(self, user: _User, node: SimNode, cookie: Cookie, session: Session) -> None:
        mark = int(self._world.now * 1e6) + self._marks.randrange(5_000_000)  # most are better than all before, and of two at the same time either is
        session.setdefault(COUNTER, Counter()).add(1)
        session.setdefault(MARKS, MergingSet()).add(mark)
        session.setdefault(MOST, Max()).offer(mark)
        session.setdefault(LEAST, Min()).offer(-mark)
        self._commit(user, node, cookie, session, Add(session.id or "", self._world.now, mark=mark))

    def _commit(self, user: _User, node: SimNode, cookie: Cookie, session: Session, write: Write | Add) -> None:
        dropped = node.manager._committing.dropped
        receipt = node.manager.commit(session, self._rng.choice(_ACKS))
        if node.manager._committing.dropped != dropped:
            self._world.counters["commits_dropped"] += 1
            return
        assert session.id is not None
        write.session_id = session.id
        write.holders.add(node.reactor.name)
        wrote = cookie.wrote
        if isinstance(write, Add):
            self.history.adds.setdefault(session.id, []).append(write)
        else:
            self.history.writes[write.token] = write
            self._checkers.wrote(node, session, write)
            wrote = {**wrote, write.attribute: (write.token, node.me.uid)}
        self._set_cookie(user, cookie, session, wrote)
        if user.roams and self._rng.random() < _FOLLOWED:
            self._world.queue.at(self._world.now + _REDIRECT_S, self._follow, user)
        self._world.counters["writes"] += 1
        if receipt.needs_wait:
            key = session.key
            receipt.deferred().addCallback(lambda done: self._confirmed(write, done, key))

    def _confirmed(self, write: Write | Add, receipt: Any, key: bytes) -> None:
        if receipt.satisfied:
            self._world.counters["acknowledged"] += 1
        self._checkers.confirmed(write, receipt.confirmed, key)

    def _end(self, user: _User, node: SimNode, cookie: Cookie, session: Session, old: str) -> None:
        """Commit the end of `old` and watch who refuses it from now on."""
        dropped = node.manager._committing.dropped
        receipt = node.manager.commit(session)
        if node.manager._committing.dropped != dropped:
            self._world.counters["commits_dropped"] += 1
            return
        ended = self.history.ended.setdefault(old, Ended(old, self._world.now))
        ended.refused_by.add(node.reactor.name)
        if session.id is not None and session.id != old:
            self.history.successor[old] = session.id
            self._checkers.cycled(node, old, session)
        if session.ended:
            user.cookie = Cookie() if user.cookie.id == old else user.cookie
        else:
            kept = self._kept(cookie, {attribute: token_in(session[attribute]) for attribute in session if attribute not in MERGING})
            self._set_cookie(user, cookie, session, {attribute: (token, node.me.uid) for attribute, (token, _) in kept.items()})
        receipt.deferred().addCallback(lambda done: self._checkers.ended_on(ended, done.confirmed))

    def _cycle(self, user: _User, node: SimNode, cookie: Cookie, session: Session, dice: float) -> None:
        """A new id: by logging in, or for its own sake, and then the login is that of the old id."""
        old = session.id
        assert old is not None
        if dice < 0.91 or session.principal is None:
            session.login(user.name)
            login = user.name, dict(node.epochs.current.get(principal_key("default", user.name), {}))
            self._world.counters["logins"] += 1
        else:
            session.cycle_id()
            login = self.history.logins[old]
        assert session.id is not None
        self.history.logins[session.id] = login
        self._end(user, node, cookie, session, old)

    def _end_all(self, user: _User, node: SimNode) -> None:
        """Log out everywhere. Who is asked, and whoever confirms it, serves none of the sessions that are over."""
        receipt = node.manager.end_all(user.name)
        out = Out(node.me.uid, node.epochs.ended, self._world.now, {node.reactor.name})
        self.history.outs.setdefault(user.name, []).append(out)
        self._world.counters["logouts"] += 1
        receipt.deferred().addCallback(lambda done: self._checkers.out_on(out, done.confirmed))

    def _invalidate(self, user: _User, node: SimNode, cookie: Cookie, session: Session) -> None:
        old = session.id
        assert old is not None
        session.invalidate()
        self._world.counters["invalidations"] += 1
        self._end(user, node, cookie, session, old)
