"""What `PersistentManager` promises, as checks apart from the code; the names are those of `checkers.py`.

*Always*: S1 a cookie yields its own session only; S2 an id whose end was stored (its own, or of all sessions of its user) is served nowhere, but for a copy that says that it is `stale`, and by nobody who refused it once; nothing written to it is confirmed
later, and what nobody used for its time is over; S3 what was confirmed as stored, or read on another node than it was written on, every request finds that comes after it, wherever it comes, unless it hears that the
session is unknown or stale; S4 what was stored survives the loss of all nodes, and no session is called gone, or told to have ended by time, that was in use; S6 nobody on one node goes back to an older value,
whether or not it is stale, and no addition is lost or counted twice; S7 only what is in trouble says so: ten seconds after the store is well no request hears unknown or stale, and every change is stored; nobody waits
long; *turns*: requests of one session on one node never overlap, come in their order, and are turned away for a reason.
*Settled*: S5 all nodes show the same of every session; S4 what was written on nodes that are still alive is stored, too; S2 what has ended is known to the store as ended.
"""

from __future__ import annotations

from typing import Any

from caterwaul.managers.kept import KeptEnd, read_item
from caterwaul.managers.listeners import SessionDestroyed
from caterwaul.managers.session import Session, key_of

from .checkers import COUNTER
from .history import Add, History, Out, Write, token_in
from .node import SimCluster, SimNode
from .persistent_history import Asked, Known
from .stored import Shelf
from .world import World

__all__ = ["SharedStoreCheckers"]

_LOOK_EVERY_S = 0.05
_WELL_S = 10.0  # after its store is back, a node is well
_BEHIND_S = 2.5  # after which what nobody waits for is stored
_CLOCKS_S = 4.0  # what walls' clocks differ by, a step and drifts in it
_OPENED_S = 3.0  # a load that is under way, and one's own, each with a store that hangs
_FINAL_S = 0.3  # a receipt, after its time
_SLOW_CLOCK = 0.85


class SharedStoreCheckers:
    """`idle_s`, `touch_s`: the manager's idle limit, and how long it may keep a use to itself. `waits`: whether requests of one session wait for their turn."""

    def __init__(self, world: World, cluster: SimCluster, shelf: Shelf, *, idle_s: float, touch_s: float, patience_s: float, ack_s: float, waits: bool) -> None:
        self._world = world
        self._cluster = cluster
        self._shelf = shelf
        self._idle_s, self._touch_s, self._patience_s, self._ack_s, self._waits = idle_s, touch_s, patience_s, ack_s, waits
        self.history = History()
        self.known: dict[str, Known] = {}
        self._by_key: dict[bytes, str] = {}
        self._wrong_at: dict[str, float] = {}  # life -> when it had no store that is well, or was not well itself
        self._slept_at: dict[str, float] = {}
        self._began: dict[str, float] = {}
        self._outs_stored: dict[int, float] = {}  # ids of ends of all sessions of a user -> when they were confirmed
        self._queues: dict[tuple[str, str], list[int]] = {}  # (life, id) -> requests that are not over, as they came
        self._serving: dict[tuple[str, str], int] = {}  # the one that is served
        self._numbers = 0
        self._listened: set[str] = set()
        world.queue.at(world.now, self._look, None)

    def fail(self, promise: str, what: str) -> None:
        self._world.fail(f"{promise}: {what}")

    def of(self, session_id: str) -> Known:
        if session_id not in self.known:
            self.known[session_id] = Known(used_at=self._world.now)
            self._by_key[key_of(session_id)] = session_id
        return self.known[session_id]

    # -- how well a node should be

    def _look(self, _: object) -> None:
        now = self._world.now
        self._world.queue.at(now + _LOOK_EVERY_S, self._look, None)
        for node in self._cluster.nodes.values():
            life = node.reactor.name
            self._began.setdefault(life, now)
            if node.reactor.paused:
                self._slept_at[life] = now
            if life not in self._wrong_at or self._shelf.is_wrong_for(node.reactor.host.address) or node.reactor.paused or not node.is_ready:
                self._wrong_at[life] = now
            if node.managers and life not in self._listened:
                self._listened.add(life)
                node.manager.listen(SessionDestroyed, lambda event, life=life: self._told(life, event))

    def calm_s(self, node: SimNode) -> float:
        return self._world.now - self._wrong_at.get(node.reactor.name, self._world.now)

    def _living(self, life: str) -> SimNode | None:
        node = self._cluster.nodes.get(int(life[1:].partition(".")[0]))
        return node if node is not None and node.reactor.name == life else None

    def _is_alive(self, life: str) -> bool:
        return self._living(life) is not None

    def _slept(self, life: str, since: float) -> bool:
        return self._slept_at.get(life, -1.0) >= since - _LOOK_EVERY_S

    # -- requests and their turns

    def asks(self, node: SimNode, user: str, session_id: str | None) -> Asked:
        self._numbers += 1
        asked = Asked(node.reactor.name, user, session_id, self._world.now, self._numbers)
        if session_id is not None:
            known = self.of(session_id)
            asked.must = {attribute: tuple(tokens) for attribute, tokens in known.must.items()}
            asked.stored_adds, asked.end_stored, asked.kept_at = known.stored_adds, known.end_stored, known.kept_at
            self._queues.setdefault((asked.life, session_id), []).append(asked.number)
        return asked

    def over(self, asked: Asked) -> None:
        """Its response has left."""
        if asked.session_id is not None:
            at = (asked.life, asked.session_id)
            if self._serving.get(at) == asked.number:
                del self._serving[at]
            self._queues[at].remove(asked.number)

    def refused(self, node: SimNode, asked: Asked, status: int) -> None:
        waited_s = self._world.now - asked.at
        assert asked.session_id is not None
        others = len(self._queues[asked.life, asked.session_id]) - 1
        if not self._waits:
            if status != 429 or not others:
                self.fail("turns", f"{asked.life} refuses a request with {status}, and {others} others of its session are there")
        elif status != 503 or waited_s < _SLOW_CLOCK * self._patience_s:
            self.fail("turns", f"{asked.life} refuses a request with {status} after {waited_s:.3f} s, with {others} others of its session")

    def given(self, node: SimNode, asked: Asked, session: Session) -> None:
        """The request has its session, or hears that nobody can tell."""
        waited_s = self._world.now - asked.at
        if waited_s > _OPENED_S + (self._patience_s if self._waits else 0.0) and not self._slept(asked.life, asked.at):
            self.fail("S7", f"{asked.life} lets a request wait for {waited_s:.3f} s")
        if asked.session_id is None:
            if not session.new:
                self.fail("S1", f"{asked.life} gave a session to somebody without a cookie")
            return
        at = (asked.life, asked.session_id)
        if at in self._serving:
            self.fail("turns", f"{asked.life} serves two requests of {_short(asked.session_id)} at once")
        self._serving[at] = asked.number
        if self._queues[at][0] != asked.number:
            self.fail("turns", f"{asked.life} serves request {asked.number} of {_short(asked.session_id)} before {self._queues[at][0]}")
        if (session.unknown or session.stale) and self.calm_s(node) >= _WELL_S:
            what = "unknown" if session.unknown else "stale"
            self.fail("S7", f"{asked.life} calls {_short(asked.session_id)} {what}, {self.calm_s(node):.1f} s after its store was in trouble")
        self._world.counters["unknown"] += session.unknown
        self._world.counters["stale"] += session.stale
        if not session.unknown:
            self._answered(asked, asked.session_id, session)

    def _answered(self, asked: Asked, session_id: str, session: Session) -> None:
        now, life, known = self._world.now, asked.life, self.of(session_id)
        if session.new:
            known.refused_by.add(life)
            if not self._may_be_over(session_id) and now - asked.kept_at < self._idle_s / 2:
                self.fail("S4", f"{life} calls {_short(session_id)} gone, which was stored")
            return
        if session.id != session_id:
            self.fail("S1", f"{life} gave another session than was asked for")
        if life in known.refused_by and known.end_asked:
            self.fail("S2", f"{life} serves {_short(session_id)} again, which had ended")
        if asked.end_stored and not session.stale:
            self.fail("S2", f"{life} serves {_short(session_id)}, whose end was stored")
        for out in self.history.outs_of(session_id):
            self._world.counters["outs_checked"] += 1
            if life in out.known_by or self._began[life] > self._outs_stored.get(id(out), 1e9):
                self.fail("S2", f"{life} serves {_short(session_id)}, and all sessions of its user were ended at {out.at:.3f}")
        others = [number for (_, other), number in self._serving.items() if other == session_id and number != asked.number]
        if now - known.used_at > self._idle_s + 2 * self._touch_s + _CLOCKS_S and not others and not session.stale:
            self.fail("S2", f"{life} serves {_short(session_id)}, which nobody used for {now - known.used_at:.1f} s")
        self.used(life, session_id)
        self._shows(asked, session_id, session)

    def _shows(self, asked: Asked, session_id: str, session: Session) -> None:
        life, history = asked.life, self.history
        shown = {attribute: token_in(session[attribute]) for attribute in session if attribute != COUNTER}
        for attribute, token in shown.items():
            if not token.startswith(f"{asked.user}:{attribute}:"):
                self.fail("S1", f"{life} shows {token!r} as {attribute} of {asked.user}")
            before = history.shown.get((life, session_id, attribute))
            if before is not None and before != token and history.is_older(token, before):
                self.fail("S6", f"{life} shows {token!r} after {before!r}, which replaced it")
            history.shown[life, session_id, attribute] = token
            self._is_elsewhere(life, session_id, session, attribute, token)
        if session.stale:
            return
        for attribute, tokens in asked.must.items():
            for token in tokens:
                self._world.counters["reads_checked"] += 1
                if not history.is_kept(token, shown.get(attribute)):
                    self.fail("S3", f"{life} shows {shown.get(attribute)!r} as {attribute}, and {token!r} was stored")
        self._counts(life, session_id, session, asked.stored_adds)

    def _is_elsewhere(self, life: str, session_id: str, session: Session, attribute: str, token: str) -> None:
        """Who reads what was written on another node has it from the store, and so have all who come later."""
        if not session.stale and life not in self.history.writes[token].holders and life != self.of(session_id).carrier:
            self.stored(session_id, attribute, token)

    def _counts(self, life: str, session_id: str, session: Session, least: int) -> None:
        known, there = self.of(session_id), int(session.get(COUNTER, 0))
        if not known.carried + least <= there <= known.carried + len(known.adds):
            self.fail("S6", f"{life} counts {there} in {_short(session_id)}; {known.carried} + {least} were stored, of {len(known.adds)} additions")

    # -- what they did

    def used(self, life: str, session_id: str) -> None:
        known, now = self.of(session_id), self._world.now
        known.used_at = now
        self._world.queue.at(now + self._touch_s + _BEHIND_S, self._is_use_stored, (life, known, now))

    def _is_use_stored(self, use: tuple[str, Known, float]) -> None:
        life, known, at = use
        node = self._living(life)
        if node is not None and self.calm_s(node) >= _WELL_S:
            known.kept_at = max(known.kept_at, at)

    def wrote(self, node: SimNode, session: Session, write: Write) -> None:
        """It is committed."""
        life, history = node.reactor.name, self.history
        write.session_id = session.id or ""
        write.holders.add(life)
        history.writes[write.token] = write
        history.shown[life, write.session_id, write.attribute] = write.token
        version = session._registers[write.attribute][:2]
        other = history.versions.setdefault((write.session_id, version), write.token)
        if other != write.token:
            self.fail("S6", f"{other!r} and {write.token!r} have one version, {version[0]} of {life}")
        self.used(life, write.session_id)

    def added(self, node: SimNode, session: Session, add: Add) -> None:
        add.session_id = session.id or ""
        add.holders.add(node.reactor.name)
        self.of(add.session_id).adds.append(add)
        self.used(node.reactor.name, add.session_id)

    def saved(self, node: SimNode, did: Write | Add, ended_before: bool, is_satisfied: bool) -> None:
        """What the receipt of a commit says. `ended_before`: the end of its session was stored when it was made."""
        known = self.of(did.session_id)
        if not is_satisfied:
            self.unsaved(node, did.session_id)
            return
        if ended_before:
            self.fail("S2", f"{node.reactor.name} confirmed a change of {_short(did.session_id)}, whose end was stored before")
        known.kept_at = max(known.kept_at, did.at)
        if isinstance(did, Add):
            known.stored_adds += 1
        else:
            self.stored(did.session_id, did.attribute, did.token)
        self._world.counters["acknowledged"] += 1

    def unsaved(self, node: SimNode, session_id: str) -> None:
        self._world.counters["unsaved"] += 1
        if self._is_alive(node.reactor.name) and self.calm_s(node) >= _WELL_S and not self._may_be_over(session_id):
            self.fail("S7", f"{node.reactor.name} could not store a change of {_short(session_id)}, {self.calm_s(node):.1f} s after its store was in trouble")

    def final(self, node: SimNode, since: float) -> None:
        """A receipt of a commit of then is final."""
        if self._world.now - since > self._ack_s + _FINAL_S and not self._slept(node.reactor.name, since):
            self.fail("S7", f"{node.reactor.name} lets a change wait for {self._world.now - since:.3f} s")

    def stored(self, session_id: str, attribute: str, token: str) -> None:
        tokens = self.of(session_id).must.setdefault(attribute, set())
        if not any(self.history.is_older(token, other) for other in tokens):
            tokens -= {other for other in tokens if self.history.is_older(other, token)}
            tokens.add(token)

    def ends(self, session_id: str) -> None:
        """Somebody has asked for the end of this id."""
        self.of(session_id).end_asked = True

    def ended(self, node: SimNode, session_id: str, is_satisfied: bool) -> None:
        self._world.counters["ends"] += 1
        if is_satisfied:
            self.of(session_id).end_stored = True
            self._world.counters["ends_stored"] += 1
        elif self._is_alive(node.reactor.name) and self.calm_s(node) >= _WELL_S:
            self.fail("S7", f"{node.reactor.name} could not store the end of {_short(session_id)}, {self.calm_s(node):.1f} s after its store was in trouble")

    def outs(self, user: str, out: Out) -> None:
        """All sessions of this user are to end."""
        self._world.counters["outs"] += 1
        self.history.outs.setdefault(user, []).append(out)

    def out_on(self, out: Out, names: tuple[str, ...], is_satisfied: bool) -> None:
        """These know of it; if all who could confirmed it, so does whoever starts from now on."""
        lives = {node.reactor.name: node for node in self._cluster.nodes.values()}
        out.known_by |= {life for life, node in lives.items() if node.me.name in names and self._began.get(life, out.at) < out.at}
        if is_satisfied:
            self._outs_stored[id(out)] = self._world.now

    def _may_be_over(self, session_id: str) -> bool:
        known = self.of(session_id)
        return known.end_asked or known.told_at is not None or bool(self.history.outs_of(session_id))

    def cycled(self, node: SimNode, session: Session, login: tuple[str, dict[bytes, int]] | None) -> None:
        """What it shows now went to a new id."""
        life = node.reactor.name
        assert session.id is not None
        known = self.of(session.id)
        if login is not None:
            self.history.logins[session.id] = login
        known.carried, known.carrier = int(session.get(COUNTER, 0)), life
        for attribute in session:
            if attribute != COUNTER:
                self.history.shown[life, session.id, attribute] = token_in(session[attribute])
        self.used(life, session.id)

    def cycle_saved(self, session_id: str, at: float, contents: dict[str, str]) -> None:
        for attribute, token in contents.items():
            self.stored(session_id, attribute, token)
        self.of(session_id).kept_at = max(self.of(session_id).kept_at, at)

    def _told(self, life: str, event: SessionDestroyed) -> None:
        session_id = self._by_key.get(event.key)
        if session_id is None:
            return  # a request has made it, and has not heard of it yet
        known, now = self.of(session_id), self._world.now
        self._world.counters[f"told_{event.reason.replace(' ', '_')}"] += 1
        if event.reason != "expired":
            if not known.end_asked and not self.history.outs_of(session_id):
                self.fail("S2", f"{life} tells that {_short(session_id)} ended ({event.reason}), and nobody has ended it")
            return
        if known.must and now - known.kept_at < self._idle_s / 2:
            self.fail("S4", f"{life} tells that the time of {_short(session_id)} is over, {now - known.kept_at:.1f} s after it was used")
        known.told_at = known.told_at or now

    # -- when all has been well for long enough

    def settled(self) -> None:
        """Every node is asked for every session. Let the world run for a second after it."""
        for node in self._cluster.nodes.values():
            figures = node.manager.statistics()
            if figures["store_waiting"] or figures["store_open"]:
                self.fail(
                    "S7", f"{node.reactor.name} has {figures['store_waiting']} sessions that the store lacks, {self.calm_s(node):.1f} s after all was well"
                )
        items = self._shelf.space("default")
        for session_id, known in sorted(self.known.items()):
            found = items.load([key_of(session_id)])
            if known.end_stored and found and not isinstance(read_item(found[key_of(session_id)].data), KeptEnd):
                self.fail("S2", f"{_short(session_id)} lives in the store, where its end was")
            shown: dict[str, dict[str, Any]] = {}
            for node in self._cluster.nodes.values():
                node.manager.open_deferred(session_id).addCallback(self._looked, node, session_id, shown)

    def _looked(self, session: Session, node: SimNode, session_id: str, shown: dict[str, dict[str, Any]]) -> None:
        life, known = node.reactor.name, self.of(session_id)
        node.manager.release(session)
        self._world.counters["settled"] += 1
        if session.unknown or session.stale:
            self.fail("S7", f"{life} cannot tell what {_short(session_id)} is, {self.calm_s(node):.1f} s after its store was in trouble")
        outs = self.history.outs_of(session_id)
        if not session.new and (known.end_stored or any(id(out) in self._outs_stored or any(map(self._is_alive, out.known_by)) for out in outs)):
            self.fail("S2", f"{life} serves {_short(session_id)}, whose end was stored")
        if self._world.now - known.used_at > self._idle_s / 2:
            return  # one may have ended it, while others see what they cached
        shown[life] = {name: int(session[name]) if name == COUNTER else token_in(session[name]) for name in session}
        if shown[life] != (first := next(iter(shown.values()))):
            self.fail("S5", f"of {_short(session_id)} nodes show {first} and {shown[life]}")
        if self._may_be_over(session_id):
            return
        for write in self.history.writes.values():
            is_due = write.session_id == session_id and (any(map(self._is_alive, write.holders)) or write.token in known.must.get(write.attribute, ()))
            there = shown[life].get(write.attribute)
            if is_due and not self.history.is_kept(write.token, there):
                self.fail("S4", f"{life} shows {there!r} as {write.attribute}, and {write.token!r} was written on {write.holders}")
        self._counts(life, session_id, session, max(known.stored_adds, sum(any(map(self._is_alive, add.holders)) for add in known.adds)))

    def all_are_over(self) -> None:
        """Nobody has used anything for long: of all that there was the store has ends only, and of each session that ended by itself somebody was told."""
        items = self._shelf.space("default")
        for session_id, known in sorted(self.known.items()):
            found = items.load([key_of(session_id)])
            if found and not isinstance(read_item(found[key_of(session_id)].data), KeptEnd):
                self.fail("S7", f"{_short(session_id)} is still in the store, {self._world.now - known.used_at:.1f} s after it was used last")
            if found and not self._may_be_over(session_id):
                self.fail("S4", f"nobody was told that {_short(session_id)} ended")


def _short(session_id: str) -> str:
    return key_of(session_id).hex()[:8]
