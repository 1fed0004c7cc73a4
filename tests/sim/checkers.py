"""The promises, as checks apart from the code: each says which one was broken, where and how.

*Always*: S1 a cookie yields its own session only; S2 an id that was ended is refused by every member that confirmed it, and
by whoever refused it once, and so are sessions whose login did not know of an end of all sessions of its user; S3 a node shows what was written through it, or what replaced that, and any node what a
browser's cookie says it wrote, unless the session is marked stale or unknown; S4 a member that confirmed a write has it, and nobody parts
from a copy with what nobody else has; S6
nobody goes back to an older value, unless the session is marked stale; S7 one request in a hundred at most waits for a second, and none much longer; a
session is called unknown, or marked stale for what others have, only where something was wrong lately; S8 outboxes stay under their bound. Of membership: no view holds two
members at one address, and a process that slept does not drop members that are there. *Settled*, after all faults
ended: views are equal, every node is in sync, S3 no browser has written what a node does not have,
S5 all copies are equal byte for byte, S4 no write is lost that a member still alive had confirmed or made, S2 no ended id is
served anywhere, and S6 a counter has all additions that a member still alive had, and none twice; a set has all that was put into it, and a
maximum and a minimum are those of all that was offered.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

from caterwaul.managers.entry import Entry, is_whole
from caterwaul.managers.heads import LIVE
from caterwaul.managers.listeners import SessionDestroyed
from caterwaul.managers.merging import parse
from caterwaul.managers.placement import Placement
from caterwaul.managers.record import Record
from caterwaul.managers.session import Session, key_of
from caterwaul.managers.tokens import claimed, is_of, uncovered
from caterwaul.membership.view import ViewChanged
from tests.doubles import unmarked_changes, wrong_sums, wrong_weights

from .copies import difference
from .history import Add, Cookie, Ended, History, Out, Write, token_in
from .node import SimCluster, SimNode
from .world import World

__all__ = ["COUNTER", "LEAST", "MARKS", "MERGING", "MOST", "Checkers"]

COUNTER, MARKS, MOST, LEAST = MERGING = ("visits", "marks", "most", "least")  # the attributes that are a Counter, a MergingSet, a Max and a Min
_LOOK_EVERY_S = 0.05
_SLACK_BYTES = 64 * 1024  # requests and credits, which their senders bound
_RESTORED_S = 12.0  # a loss is noticed and the copies are restored
_CLOCKS_S = 0.5  # what nodes know of each other's clocks
_CALM_S = 2.0  # after the last fault, who has a session is found
_SERVED_S = 1.75  # who holds a session is waited for, then its browser's commits, and the first again if it went meanwhile; by a clock that may be slow
_LOOK_UP_S = 0.6  # a question is waited for, and asked again
_KNOWN_S = 1.0  # after a session was made, those who should know of it do
_WAKING_S = 0.5  # what a process does so soon after it woke is its reaction to that


class Checkers:
    def __init__(self, world: World, cluster: SimCluster, outbox_max_bytes: int, drop_time_s: float, idle_s: float) -> None:
        self.world = world
        self.cluster = cluster
        self.history = History()
        self._outbox_max = outbox_max_bytes
        self.drop_time_s = drop_time_s
        self._idle_s = idle_s
        self._troubled: dict[tuple[int, int], float] = {}  # when something was wrong last on the way from one node to the other
        self._absent: dict[int, float] = {}  # when a node was down or stood still last
        self._began: dict[str, float] = {}
        self._heard: set[str] = set()  # lives whose ends of sessions we listen to
        self._ended: dict[bytes, float] = {}  # when a session ended last somewhere: what was written before may be gone for good
        self._woke: dict[str, float] = {}
        self._asleep: set[str] = set()
        self._slept_at: dict[str, float] = {}
        self._deaths: list[float] = []
        self._asked = 0
        self._waiting: dict[int, tuple[str, float]] = {}  # requests that others were asked for: by whom, since when
        self._wrong_at = world.now  # when something was wrong last, anywhere
        self._stuck: dict[tuple[int, int], float] = {}  # since when nothing gets through from the one to the other
        self._stuck_until: dict[tuple[int, int], float] = {}  # until when that may be so, though nothing is wrong any more: a stream backs off
        cluster.on_start = self._watch
        for number, node in cluster.nodes.items():
            self._watch(number, node)
        world.queue.at(world.now, self._look, None)

    def fail(self, promise: str, what: str) -> None:
        self.world.fail(f"{promise}: {what}")

    # -- requests

    def answered(self, node: SimNode, asked: str, session: Session) -> None:
        """A request with this id got this session."""
        life = node.reactor.name
        if session.unknown:
            self._is_unknown(node, asked)
        elif session.new:
            self._is_lost(node, asked)
        ended = self.history.ended.get(asked)
        found = not session.new and not session.unknown
        if found and session.id != asked:
            self.fail("S1", f"{life} gave another session than was asked for")
        if found and ended is not None and life in ended.refused_by:
            self.fail("S2", f"{life} serves {key_of(asked).hex()[:8]} again, which ended at {ended.at:.3f}")
        for out in self.history.outs_of(asked):
            self.world.counters["outs_checked"] += 1
            if found and life in out.known_by:
                self.fail("S2", f"{life} serves {key_of(asked).hex()[:8]}, and knows that all sessions of its user were ended at {out.at:.3f}")
        if session.new and ended is not None and self._has_tombstone(node, asked):
            ended.refused_by.add(life)  # it knows; one that never heard of the session has refused nothing

    def _is_unknown(self, node: SimNode, asked: str) -> None:
        """The node could not find out whether there is such a session. Where nothing has been wrong for a while, that is so only if all who had it are gone,
        or its time is over for all that they know, and somebody was lost lately.
        """
        key, calm_s = key_of(asked), self.world.now - self._wrong_at
        if self.world.now - self.history.used.get(asked, 0.0) >= self._idle_s - _CLOCKS_S:
            return
        have = [other.reactor.name for other in self.cluster.nodes.values() if other.managers and self._would_serve(other, key)]
        if calm_s >= _CALM_S and have:
            self.fail(
                "S7",
                f"{node.reactor.name} cannot tell whether there is a session {key.hex()[:8]}, which {', '.join(have)} have, {calm_s:.1f} s after all faults",
            )

    def _would_serve(self, node: SimNode, key: bytes) -> bool:
        return node.manager._core.servable(key, node.manager._channel.now_ms()) is not None

    def made(self, node: SimNode, session_id: str) -> None:
        """This node has made a session, or is the first that serves it."""
        self.world.queue.at(self.world.now + _KNOWN_S, self._is_known, (session_id, int(node.me.name[1:]), self.world.now))

    def _is_known(self, made: tuple[str, int, float]) -> None:
        """Unless its author was held up meanwhile, all who should know of the session do now. Without confirmations nothing goes on either."""
        session_id, author, at = made
        if not self.was_held_up(author, at):
            self.history.known.add(session_id)

    def _is_lost(self, node: SimNode, asked: str) -> None:
        """The node said that there is no such session: then nobody whom it sees and hears has it."""
        key = key_of(asked)
        if asked not in self.history.known or self.history.has_ended(asked) or key in self._ended or self._has_tombstone(node, asked):
            return
        if self.world.now - self.history.used[asked] > self._idle_s / 2:
            return
        core = node.manager._core
        if not core.placement.peers() and core.sure(node.manager._channel.now_ms()):
            return  # long alone, and its own copy's time is over: whoever used the session since is beyond the time for which it says unknown
        if core.placement.everywhere and not self.all_see_all():
            return  # it answers from memory, and who does not see it tells it nothing (a browser's token would have it ask)
        self.world.counters["gone_checked"] += 1
        for other in self.cluster.nodes.values():
            if other.managers and self.reaches(node, other) and other.manager._core.replica.held(key) is not None:
                self.fail("S3", f"{node.reactor.name} calls {key.hex()[:8]} gone, which {other.reactor.name} has")

    def was_held_up(self, number: int, since: float) -> bool:
        """Whether this node was down or stood still since then, or something could not get to it, or from it."""
        ways = [way for other in range(self.cluster.size) for way in ((number, other), (other, number))]
        return max(self._absent.get(number, 0.0), *(self._stuck_until.get(way, 0.0) for way in ways)) >= since

    def woke_at(self, node: SimNode) -> float:
        """When it went on the last time after standing still."""
        return self.world.now if node.reactor.name in self._asleep else self._woke.get(node.reactor.name, -99.0)

    def slept_at(self, node: SimNode) -> float:
        """When it last stopped."""
        return self._slept_at.get(node.reactor.name, -99.0)

    def is_stuck(self, numbers: Sequence[int], since: float) -> bool:
        """Whether something did not get through between two of these since then, or does not now."""
        for way in permutations(numbers, 2):
            path = self.world.network.path(self.cluster.host(way[0]), self.cluster.host(way[1]))
            if path.clogs or path.holes or self._stuck_until.get(way, -99.0) >= since:
                return True
        return False

    def is_troubled(self, one: int, other: int, since: float) -> bool:
        """Whether anything may have been lost between these two since then, datagrams too."""
        return max(self._troubled.get((one, other), -99.0), self._troubled.get((other, one), -99.0)) >= since

    def all_see_all(self) -> bool:
        views = {frozenset(member.uid for member in node.view) for node in self.cluster.nodes.values() if node.membership is not None}
        return len(views) == 1

    def asks(self, node: SimNode) -> int:
        """A request cannot be served at once. The number to give to `served`."""
        self._asked += 1
        self._waiting[self._asked] = (node.reactor.name, self.world.now)
        return self._asked

    def all_are_served(self) -> None:
        """Faults are over, and nobody has come for long."""
        alive = {node.reactor.name for node in self.cluster.nodes.values()}
        for life, asked_at in self._waiting.values():
            if life in alive:
                self.fail("S7", f"{life} has not served a request of {asked_at:.3f}")

    def served(self, node: SimNode, number: int) -> None:
        """A request that others were asked for is served now."""
        life, asked_at = self._waiting.pop(number)
        took_s = self.world.now - asked_at
        stood_still = life in self._asleep or self._woke.get(life, -1.0) >= asked_at - _LOOK_EVERY_S
        if took_s > 1.0 and not stood_still:
            self.world.counters["slow"] += 1
            if took_s > _SERVED_S:
                self.fail("S7", f"{life} lets a request wait for {took_s:.3f} s")

    def saw(self, node: SimNode, user: str, session: Session, attribute: str, token: str) -> None:
        life = node.reactor.name
        if not token.startswith(f"{user}:{attribute}:"):
            self.fail("S1", f"{life} shows {token!r} as {attribute} of {user}")
        assert session.id is not None
        before = self.history.shown.get((life, session.id, attribute))
        if before is not None and self.history.writes[before].at < self._ended.get(session.key, -1.0):
            before = None  # it expired in between, and lives on with what those had who used it: S6 speaks of sessions not ended
        if (
            before is not None
            and before != token
            and not session.stale
            and self.history.is_older(token, before)
            and self._is_in_reach(node, session.key, attribute, before)
        ):
            self.fail("S3/S6", f"{life} shows {token!r} after {before!r}, which replaced it")
        self.history.shown[life, session.id, attribute] = token

    def _is_in_reach(self, node: SimNode, key: bytes, attribute: str, token: str) -> bool:
        """Whether a member that this node sees and hears has that write or a later one. Where some hold a session, who gave up its copy relies on them."""
        core = node.manager._core
        if core.placement.everywhere:
            return True
        for other in self.cluster.nodes.values():
            if other.managers and self.reaches(node, other):
                there = self._token(other, key, attribute)
                if there is not None and (there == token or self.history.is_older(token, there)):
                    return True
        self.world.counters["out_of_reach"] += 1
        return False

    def reaches(self, node: SimNode, other: SimNode, manager: str = "default") -> bool:
        """Whether it sees that one, and an answer comes before a look-up is over."""
        core = node.engines[manager]._core
        if other.me.uid not in core.placement.view or other.me.uid in core._cut:
            return False
        one, two = int(node.me.name[1:]), int(other.me.name[1:])
        silent_until = max(self._stuck_until.get((one, two), 0.0), self._stuck_until.get((two, one), 0.0), self._absent.get(two, 0.0))
        return one == two or self.world.now > silent_until + _LOOK_UP_S

    def read_own(self, node: SimNode, cookie: Cookie, session: Session, shown: dict[str, str]) -> None:
        """A browser with this cookie was shown this."""
        life = node.reactor.name
        if session.stale:
            self.world.counters["stale"] += 1
            self._is_stale(node, cookie, session.key, shown)
            return
        if session.new:
            self._is_gone(node, cookie)
            return
        for attribute, (token, _) in sorted(cookie.wrote.items()):
            if self.history.writes[token].at < self._ended.get(session.key, -1.0):
                continue  # it had expired, and lives on
            self.world.counters["own_reads"] += 1
            there = shown.get(attribute)
            if not self.history.is_kept(token, there):
                self.fail("S3", f"{life} shows {there!r} to the browser that wrote {token!r}, and does not say that this is stale")

    def _is_stale(self, node: SimNode, cookie: Cookie, key: bytes, shown: dict[str, str]) -> None:
        """The node said that something may be missing. Where nothing has been wrong for a while, nobody has what this browser wrote and was not shown."""
        calm_s = self.world.now - self._wrong_at
        for attribute, (token, _) in sorted(cookie.wrote.items()) if calm_s >= _CALM_S else ():
            if self.history.is_kept(token, shown.get(attribute)):
                continue
            there = {other.reactor.name: self._token(other, key, attribute) for other in self.cluster.nodes.values() if other.managers}
            have = [name for name, other in there.items() if other is not None and (other == token or self.history.is_older(token, other))]
            if have:
                self.fail("S3", f"{node.reactor.name} lacks {token!r}, which {', '.join(have)} have, {calm_s:.1f} s after all faults")

    def _is_gone(self, node: SimNode, cookie: Cookie) -> None:
        """The node said that there is no such session: then none of those who wrote it, and whom it sees, has it."""
        if cookie.id is None or self.history.has_ended(cookie.id):
            return
        key = key_of(cookie.id)
        if key in self._ended or node.manager._core.replica.get(key) is not None:
            return
        authors = claimed(cookie.token)
        seen = node.manager._core.placement.view.by_uid
        for other in self.cluster.nodes.values():
            if is_of(other.me.uid, authors) and other.me.uid in seen and other.managers and other.manager._core.replica.held(key) is not None:
                self.fail("S3", f"{node.reactor.name} calls {key.hex()[:8]} gone, which {other.reactor.name} has, as the browser's token says")

    def nothing_is_stale(self, cookies: list[Cookie]) -> None:
        """Faults are over: what a browser wrote through a node that is still alive, every node has."""
        for cookie in cookies:
            if cookie.id is None:
                continue
            key = key_of(cookie.id)
            for node in self.cluster.nodes.values():
                entry = node.manager._core.replica.held(key)
                record = node.manager._core.replica.record(key, entry) if entry is not None else None
                missing = uncovered(claimed(cookie.token), record.applied) if record is not None else {}
                if any(is_of(other.me.uid, missing) for other in self.cluster.nodes.values()):
                    self.fail("S3", f"after healing {node.reactor.name} lacks commits to {key.hex()[:8]} that its browser knows of: {missing}")

    def wrote(self, node: SimNode, session: Session, write: Write) -> None:
        self.history.shown[node.reactor.name, write.session_id, write.attribute] = write.token
        version = session._registers[write.attribute][:2]
        other = self.history.versions.setdefault((write.session_id, version), write.token)
        if other != write.token:
            self.fail("S6", f"{other!r} and {write.token!r} have one version, {version[0]} of {node.reactor.name}")

    def confirmed(self, write: Write | Add, names: tuple[str, ...], key: bytes) -> None:
        for name in names:
            node = self.cluster.nodes.get(int(name[1:]))
            if node is None or not node.managers:
                continue  # it confirmed, and died since
            entry = node.manager._core.replica.get(key)
            if entry is not None and entry.head is not None and entry.head.state:
                continue
            if self._began[node.reactor.name] > write.at:
                continue  # this is its next life
            write.holders.add(node.reactor.name)
            if isinstance(write, Add):
                continue
            there = self._token(node, key, write.attribute)
            core = node.manager._core
            if not core.placement.everywhere and (there is None or key in core.moving.near or not self._should_hold(node, key)):
                continue  # it has handed the session over since; what it may have been given back is not the truth
            if there is None or (there != write.token and self.history.is_older(there, write.token)):
                self.fail("S4", f"{node.reactor.name} confirmed {write.token!r} and has {there!r}")

    def _should_hold(self, node: SimNode, key: bytes) -> bool:
        """By the newest head that anybody has."""
        entries = (other.manager._core.replica.get(key) for other in self.cluster.nodes.values() if other.managers)
        heads = [entry.head for entry in entries if entry is not None and entry.head is not None]
        newest = max(heads, key=lambda head: head.version, default=None)
        return newest is None or node.me.uid in node.manager._core.placement.holders(key, newest.primary)

    def lives(self, names: tuple[str, ...], since: float) -> list[str]:
        """The lives that these nodes have, of those that they had then."""
        nodes = [self.cluster.nodes.get(int(name[1:])) for name in names]
        return [node.reactor.name for node in nodes if node is not None and self._began[node.reactor.name] < since]

    def ended_on(self, ended: Ended, names: tuple[str, ...]) -> None:
        for name in names:
            node = self.cluster.nodes.get(int(name[1:]))
            if node is None or self._began[node.reactor.name] >= ended.at:
                continue
            if node.manager._core.placement.everywhere or self._has_tombstone(node, ended.session_id):  # else it has confirmed the new id only
                ended.refused_by.add(node.reactor.name)

    def out_on(self, out: Out, names: tuple[str, ...]) -> None:
        """These have confirmed that all sessions of a user have ended."""
        for name in names:
            node = self.cluster.nodes.get(int(name[1:]))
            if node is not None and self._began[node.reactor.name] < out.at:
                out.known_by.add(node.reactor.name)

    def cycled(self, node: SimNode, old: str, session: Session) -> None:
        """The contents went to a new id: what its reader saw was carried over by this node."""
        life = node.reactor.name
        assert session.id is not None
        self.history.carried[session.id] = int(session.get(COUNTER, 0))
        self.history.marked[session.id] = frozenset(session.get(MARKS, ()))
        for attribute in session:
            if attribute not in MERGING:
                self.history.shown[life, session.id, attribute] = token_in(session[attribute])

    # -- all the time

    def _watch(self, number: int, node: SimNode) -> None:
        """A new life."""
        self._began[node.reactor.name] = self.world.now
        node.subscribe(lambda event: self._viewed(number, node, event) if isinstance(event, ViewChanged) else None)

    def _viewed(self, number: int, node: SimNode, change: ViewChanged) -> None:
        life = node.reactor.name
        addresses = [member.address for member in change.after]
        if len(set(addresses)) != len(addresses):
            self.fail("membership", f"{life} sees two members at one address: {[str(member) for member in change.after]}")
        if life not in self._asleep and self.world.now - self._woke.get(life, -1.0) > _WAKING_S:
            return
        for member in change.disappeared:
            other = int(member.name[1:])
            known = self.cluster.nodes.get(other)
            if known is None or known.channel is None or known.me.uid != member.uid or member.uid in change.clean:
                continue
            since = self._slept_at.get(life, 0.0) - 2 * self.drop_time_s
            self.world.counters["wakes_checked"] += 1
            if not self.is_troubled(number, other, since) and self._absent.get(other, -99.0) < since:
                self.fail("membership", f"{life} slept, woke, and dropped {member.name}, which was there all the time")

    def _look(self, _: None) -> None:
        now = self.world.now
        self.world.queue.at(now + _LOOK_EVERY_S, self._look, None)
        weather = self.world.network.weather
        foul = any((weather.loss, weather.reorder, weather.corrupt, weather.delay_s))
        size = self.cluster.size
        hosts = [self.cluster.host(number) for number in range(size)]
        for number, host in enumerate(hosts):
            node = self.cluster.nodes.get(number)
            if node is None or node.reactor.paused or not node.managers:
                if node is None and self._absent.get(number, -1.0) < now - 2 * _LOOK_EVERY_S:
                    self._deaths.append(now)
                self._absent[number] = now
            if node is not None:
                self._look_at(node, now)
            for other, target in enumerate(hosts):
                path = self.world.network.path(host, target)
                if foul or path.clogs or path.holes or path.datagram_cuts or host.mute or target.deaf:
                    self._troubled[number, other] = now
                if path.clogs or path.holes:
                    self._stuck_until[number, other] = 2 * now - self._stuck.setdefault((number, other), now)
                else:
                    self._stuck.pop((number, other), None)
        self._wrong_at = max([self._wrong_at, *self._troubled.values(), *self._absent.values(), *self._stuck_until.values()])

    def _look_at(self, node: SimNode, now: float) -> None:
        life = node.reactor.name
        if node.reactor.paused:
            if life not in self._asleep:
                self._asleep.add(life)
                self._slept_at[life] = now
        elif life in self._asleep:
            self._asleep.discard(life)
            self._woke[life] = now - _LOOK_EVERY_S
        if node.managers and life not in self._heard:
            self._heard.add(life)
            node.manager.listen(SessionDestroyed, lambda event: self._ended.__setitem__(event.key, self.world.now), replicas=True)
            self._watch_drops(node)
        if node.channel is not None:
            for link in node.channel._links.values():
                if link.outbox.backlog > self._outbox_max + _SLACK_BYTES:
                    self.fail("S8", f"{life} keeps {link.outbox.backlog} bytes for {link.member.name}, the bound is {self._outbox_max}")

    def _watch_drops(self, node: SimNode) -> None:
        """A member parts from a copy only if somebody else has all that is in it; commits whose session went with its holders are no copy."""
        parting = node.manager._core.moving.handover.parting
        drop = parting._drop

        def watched(key: bytes, entry: Entry, placement: Placement) -> bool:
            alive = {other.me.uid for other in self.cluster.nodes.values()}  # one that has confirmed, and died since, may be in the view still
            others = [other for other in self.cluster.nodes.values() if other is not node]
            if (
                entry.body is not None
                and alive.issuperset(placement.holders(key, entry.primary))
                and (is_whole(entry) or any(other.managers and other.manager._core.replica.held(key) for other in others))
                and not any(self._covers(other, node, key, entry) for other in others)
            ):
                self.fail("S4", f"{node.reactor.name} drops {key.hex()[:8]} with what nobody else has")
            self.world.counters["drops_checked"] += 1
            return drop(key, entry, placement)

        parting._drop = watched  # type: ignore[method-assign]

    def _covers(self, other: SimNode, node: SimNode, key: bytes, entry: Entry) -> bool:
        there = other.manager._core.replica.get(key) if other.managers else None
        if there is None or (there.head is not None and there.head.state != LIVE):
            return there is not None
        record, mine = other.manager._core.replica.record(key, there), node.manager._core.replica.record(key, entry)
        return record is not None and mine is not None and record.has_seen(mine.applied)

    # -- after healing

    def agree(self) -> bool:
        return not difference(self.cluster)

    def settled(self) -> None:
        """Faults are over and had time to be forgotten."""
        if not self.cluster.is_ready():
            views = {node.reactor.name: sorted(member.name for member in node.view) for node in self.cluster.nodes.values()}
            self.fail("S5", f"not all in sync after healing: {views}")
        if self.world.counters["slow"] > self.world.counters["operations"] / 100:
            self.fail("S7", f"{self.world.counters['slow']} of {self.world.counters['operations']} requests took more than a second")
        if not self.agree():
            self.fail("S5", f"copies differ after healing: {difference(self.cluster)}")
        for node in self.cluster.nodes.values():
            if wrong := unmarked_changes(node.manager) or (node.manager._core.digests.uniform and wrong_sums(node.manager)):
                self.fail("S5", f"{node.reactor.name} has wrong sums of partitions {wrong[:5]}: a change that nobody marked")
            if wrong_weight := wrong_weights(node.manager):
                self.fail("F26", f"{node.reactor.name}: {wrong_weight}")
        alive = {node.reactor.name for node in self.cluster.nodes.values()}
        for ended in self.history.ended.values():
            entry = self._anywhere(key_of(ended.session_id)).manager._core.replica.get(key_of(ended.session_id))
            if entry is not None and (entry.head is None or entry.head.state == LIVE) and ended.refused_by & alive:
                self.fail("S2", f"{key_of(ended.session_id).hex()[:8]} ended at {ended.at:.3f}, refused by {sorted(ended.refused_by & alive)}, and lives")
        for write in self.history.writes.values():
            used = self.history.used.get(write.session_id, 0.0)
            if self.history.has_ended(write.session_id) or self.world.now - used > self._idle_s / 2 or not write.holders & alive:
                continue  # ended, may have expired, or all that had it are dead
            if write.at < self._ended.get(key_of(write.session_id), -1.0):
                continue  # it had expired, and lives on
            self.world.counters["writes_checked"] += 1
            there = self._token(self._anywhere(key_of(write.session_id)), key_of(write.session_id), write.attribute)
            if there is None or (there != write.token and self.history.is_older(there, write.token)):
                if self.is_beyond(write.at):
                    self.world.counters["beyond_backups"] += 1
                    continue
                self.fail("S4", f"{write.token!r} of {write.at:.3f} is lost, {sorted(write.holders & alive)} had it; there is {there!r}")
        self._count(alive)
        for node in self.cluster.nodes.values():
            self._versions(node)

    def all_are_logged_out(self) -> None:
        """The ends of all sessions of a user have had time to reach what they were for."""
        alive = {node.reactor.name for node in self.cluster.nodes.values()}
        for session_id in self.history.logins:
            for out in self.history.outs_of(session_id) if session_id not in self.history.ended else ():
                for node in self.cluster.nodes.values() if out.known_by & alive else ():
                    self.world.counters["outs_settled"] += 1
                    if node.manager._core.replica.held(key_of(session_id)) is not None:
                        self.fail("S2", f"{node.reactor.name} holds {key_of(session_id).hex()[:8]}; all sessions of its user ended at {out.at:.3f}")

    def _versions(self, node: SimNode) -> None:
        """A merging value says itself at which version it changed last: a register of another version is equal nowhere else."""
        for key, entry in node.manager._core.replica.entries():
            body = node.manager._core.replica.body_of(entry)
            for name, (counter, origin, value) in Record.unpack(body).registers.items() if body is not None else ():
                state = parse(value)
                if state is not None and max(birth.changed for birth in state.births.values()) != (counter, origin):
                    self.fail("S5", f"{node.reactor.name} has {name!r} of {key.hex()[:8]} at another version than what is in it")

    def _count(self, alive: set[str]) -> None:
        """What merges, of sessions that never ended."""
        for session_id, adds in self.history.adds.items():
            key, used = key_of(session_id), self.history.used.get(session_id, 0.0)
            if self.history.has_ended(session_id) or key in self._ended or self.world.now - used > self._idle_s / 2:
                continue
            value = self._value(self._anywhere(key), key, COUNTER)
            began = self.history.carried.get(session_id, 0)
            least = sum(1 for add in adds if add.holders & alive)
            if value is None and not least:
                continue  # all that had it are dead
            self.world.counters["counters_checked"] += 1
            if value is None or not began + least <= int(value) <= began + len(adds):
                self.fail("S6", f"the counter of {key.hex()[:8]} is {value}, it began with {began}, {least} to {len(adds)} were added")
            marked = self.history.marked.get(session_id, frozenset())
            must = marked.union(add.mark for add in adds if add.holders & alive)
            self._compare_marks(key, must, marked.union(add.mark for add in adds))

    def _compare_marks(self, key: bytes, must: frozenset[int], may: frozenset[int]) -> None:
        """The set holds what it must, and nothing that it may not; the best of that, which was offered with it, is the maximum, and its negative the minimum."""
        node = self._anywhere(key)
        marks = frozenset(self._value(node, key, MARKS) or ())
        if not must <= marks <= may:
            self.fail("S6", f"the set of {key.hex()[:8]} lacks {len(must - marks)} of {len(must)}, and has {len(marks - may)} that nobody put there")
        highest = max(marks, default=None)
        for attribute, best in ((MOST, highest), (LEAST, -highest if highest is not None else None)):
            merged = self._value(node, key, attribute)
            value = merged.value if merged is not None else None
            if value != best:
                self.fail("S6", f"{attribute!r} of {key.hex()[:8]} is {value}, and {best} was offered")

    def _has_tombstone(self, node: SimNode, session_id: str) -> bool:
        entry = node.manager._core.replica.get(key_of(session_id))
        return entry is not None and entry.head is not None and entry.head.state != LIVE

    def _token(self, node: SimNode, key: bytes, attribute: str) -> str | None:
        value = self._value(node, key, attribute)
        return None if value is None else token_in(value)

    def _value(self, node: SimNode, key: bytes, attribute: str) -> Any:
        replica = node.manager._core.replica
        entry = replica.get(key)
        record = replica.record(key, entry) if entry is not None else None
        register = record.registers.get(attribute) if record is not None else None
        if register is None or register[2] is None:
            return None
        return node.manager.types.decode(register[2])

    def _anywhere(self, key: bytes) -> SimNode:
        """A node that holds the session or its tombstone, if there is one: the copies are equal."""
        nodes = [node for _, node in sorted(self.cluster.nodes.items())]
        for node in nodes:
            entry = node.manager._core.replica.get(key)
            if entry is not None and (entry.body is not None or (entry.head is not None and entry.head.state != LIVE)):
                return node
        return nodes[0]

    def is_beyond(self, since: float) -> bool:
        """Whether more members died since then than copies are kept, before the copies can have been restored."""
        manager = next(node.manager for node in self.cluster.nodes.values() if node.managers)
        if manager._core.placement.everywhere:
            return False
        deaths = sorted(at for at in self._deaths if at > since)
        copies = manager.settings.backups + 1
        return any(later - first < _RESTORED_S for first, later in zip(deaths, deaths[copies - 1 :], strict=False))
