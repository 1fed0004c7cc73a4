"""Which node answers a request: the core of the embedded reverse proxy.

The rules, in the order in which they are tried:

1. *Sticky.* The cookie ends in ``.name``; while that node is up it answers.
2. *The same stand-in.* While it is down, a session goes to one node chosen by the session's id, so that its user
   reads there what was written there a click ago.
3. *Round robin* for requests without a session.
4. *A node that is down* is better than a refusal: it is asked when no other is left, a session's own first. While another joins, all may say
   for a moment that they are not ready, and the session is where it was: elsewhere, even at the one that joins, it would have to be looked up.

A node that refuses, breaks a connection or is silent for too long is *down* at once, and every request that waits for a
silent one is given up, to be tried elsewhere. Whether a node is up again only probes say, one every `probe_interval_s`;
they ask whether it is ready (in sync), not whether its kernel accepts connections: a stopped process still does that.
Where several processes take turns behind an address (`Node.prefork`), a broken connection is the end of one of them and says nothing of the others: a probe is sent at once.
A node is added as down and asked at once, so "new" needs no rules of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from zlib import crc32

from ...membership.effects import Effect, Notify
from ...membership.knobs import knob

__all__ = ["Balancer", "BalancerSettings", "GiveUp", "Node", "NodeDown", "NodeUp", "Probe", "route_of"]

_ID_CHARACTERS = 43  # 32 random bytes, URL-safe base64
_ASLEEP_S = 0.5  # a tick later than this: not the nodes were silent, we did not listen


@dataclass(frozen=True, slots=True)
class Node:
    """A node's HTTP address under the name that ends its cookies. `prefork`: several processes take turns behind it."""

    name: str
    host: str
    port: int
    prefork: bool = False


@dataclass(frozen=True)
class BalancerSettings:
    """Times and limits of the embedded reverse proxy."""

    cookie: str = knob("sid", "Name of the session cookie, whose value ends in `.` and the name of the node that serves the session.")
    probe_path: str = knob("/health/ready", "What a probe asks for; status 200 means that the node may be sent requests.")
    probe_interval_s: float = knob(0.5, "Time between probes of a node. Lower readmits nodes sooner and costs them a request each time.", minimum=0.05)
    probe_timeout_s: float = knob(
        2.0, "A probe without an answer for this long marks the node down. Lower finds stopped processes sooner, and mistakes busy ones for them.", minimum=0.1
    )
    response_timeout_s: float = knob(
        10.0,
        "A request without the head of an answer for this long is given up, and its node marked down. Above the slowest page of the application.",
        minimum=0.1,
    )
    connect_timeout_s: float = knob(1.0, "How long a connection to a node may take.", minimum=0.1)
    retry_non_idempotent: bool = knob(
        False,
        "Send a POST again, to another node, although the first may have done it. For applications whose writes may be repeated; else the user gets 502 and decides.",
    )
    body_max_bytes: int = knob(1024 * 1024, "A request's body at most (kept in memory, so that it can be sent again); larger ones get 413.", minimum=1024)
    idle_connections_max: int = knob(64, "Unused connections kept open to each node.", minimum=1)
    idle_connection_s: float = knob(
        15.0, "How long an unused connection is kept. Shorter than the idle limit of the nodes (60 s), so that they never close one in use.", minimum=1.0
    )


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask the node whether it is ready; report with `Balancer.probed` under this ticket."""

    ticket: int
    node: Node


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Stop waiting for what was sent under this ticket (a request or a probe); a request may be tried elsewhere."""

    ticket: int


@dataclass(frozen=True, slots=True)
class NodeUp:
    name: str


@dataclass(frozen=True, slots=True)
class NodeDown:
    name: str
    reason: str


def route_of(cookie: bytes | None) -> str | None:
    """The node's name at the end of a session cookie, ``ID.NODE`` or ``ID:TOKEN.NODE``; None if there is none."""
    if cookie is None or cookie[_ID_CHARACTERS : _ID_CHARACTERS + 1] not in (b".", b":"):
        return None
    return cookie[_ID_CHARACTERS:].partition(b".")[2].decode("ascii", "replace") or None


@dataclass(slots=True)
class _Entry:
    node: Node
    probe_due: float  #: when to send the next probe; meaningless while one is under way
    up: bool = False
    probe: int | None = None  #: the ticket of the probe under way


class Balancer:
    """Marks of the nodes, and tickets of what waits for them. `now` is monotonic seconds."""

    def __init__(self, settings: BalancerSettings) -> None:
        self._settings = settings
        self._entries: dict[str, _Entry] = {}
        # Both in the order of their deadlines, since each kind has one constant time: the first entry is the next one due.
        self._requests: dict[int, tuple[float, str]] = {}
        self._probes: dict[int, tuple[float, str]] = {}
        self._tickets = 0
        self._turn = 0
        self._requests_sent: dict[str, int] = {}
        self._given_up = 0
        self._failures = 0

    def add(self, now: float, node: Node) -> list[Effect]:
        """A node that may be sent requests once a probe found it ready. Replaces the one of that name."""
        effects = self.remove(node.name)
        self._entries[node.name] = entry = _Entry(node, now)
        effects.append(self._probe(now, entry))
        return effects

    def remove(self, name: str) -> list[Effect]:
        """Send it nothing any more; what waits for it is given up. An unknown name is no error."""
        if self._entries.pop(name, None) is None:
            return []
        return self._give_up(name)

    def choose(self, cookie: bytes | None, tried: Collection[str] = ()) -> Node | None:
        """The node to ask, after those of the names `tried` failed; None: all were tried."""
        route = route_of(cookie)
        left = [entry for name, entry in sorted(self._entries.items()) if name not in tried]
        candidates = [entry for entry in left if entry.up] or left
        own = next((entry.node for entry in candidates if entry.node.name == route), None)
        if own is not None:
            return own
        if not candidates:
            return None
        if cookie is not None:
            return candidates[crc32(cookie[:_ID_CHARACTERS]) % len(candidates)].node  # the rest changes with what is written
        self._turn += 1
        return candidates[self._turn % len(candidates)].node

    def sent(self, now: float, name: str) -> int:
        """A request goes to this node; returns the ticket to give to `ended`."""
        ticket = self._ticket()
        self._requests[ticket] = (now + self._settings.response_timeout_s, name)
        self._requests_sent[name] = self._requests_sent.get(name, 0) + 1
        return ticket

    def ended(self, ticket: int) -> None:
        """The head of the answer came, or the request failed or was given up."""
        self._requests.pop(ticket, None)

    def failed(self, now: float, name: str, reason: str, *, one: bool = False) -> list[Effect]:
        """The node refused or broke a connection: down until a probe finds it ready, and the first goes out now. `one`: one of its processes did, and it is not down.

        Other requests to it go on: their own connections say what becomes of them.
        """
        self._failures += 1
        entry = self._entries.get(name)
        if entry is None:
            return []
        effects = [] if one else self._down(entry, reason)
        if entry.probe is None and (effects or one):
            effects.append(self._probe(now, entry))
        return effects

    def probed(self, now: float, ticket: int, problem: str | None) -> list[Effect]:
        """A probe's answer: no problem, or what is wrong. Late answers, after `GiveUp`, are ignored."""
        _, name = self._probes.pop(ticket, (0.0, ""))
        entry = self._entries.get(name)
        if entry is None or entry.probe != ticket:
            return []
        entry.probe = None
        entry.probe_due = now + self._settings.probe_interval_s
        if problem is not None:
            return self._down(entry, problem)
        if entry.up:
            return []
        entry.up = True
        return [Notify(NodeUp(name))]

    def tick(self, now: float) -> list[Effect]:
        due = self.deadline()
        if due is not None and now - due > _ASLEEP_S:
            self._postpone(now - due)
        effects: list[Effect] = []
        for table, what in ((self._requests, "no answer to a request"), (self._probes, "no answer to a probe")):
            silent = sorted({name for ticket, name in self._overdue(table, now)})
            for name in silent:
                effects += self._silent(now, name, what)
        effects.extend(self._probe(now, entry) for _, entry in sorted(self._entries.items()) if entry.probe is None and entry.probe_due <= now)
        return effects

    def deadline(self) -> float | None:
        deadlines = [entry.probe_due for entry in self._entries.values() if entry.probe is None]
        deadlines += [next(iter(table.values()))[0] for table in (self._requests, self._probes) if table]
        return min(deadlines, default=None)

    def is_up(self, name: str) -> bool:
        entry = self._entries.get(name)
        return entry is not None and entry.up

    def statistics(self) -> dict[str, object]:
        return {
            "nodes": {name: {"up": entry.up, "requests": self._requests_sent.get(name, 0)} for name, entry in sorted(self._entries.items())},
            "waiting": len(self._requests),
            "failures": self._failures,
            "given_up": self._given_up,
        }

    def _overdue(self, table: dict[int, tuple[float, str]], now: float) -> Iterable[tuple[int, str]]:
        for ticket, (deadline, name) in table.items():
            if deadline > now:
                return
            yield ticket, name

    def _postpone(self, late: float) -> None:
        """This process was asleep: answers may lie unread in its sockets, so everybody gets as long as was missed."""
        for table in (self._requests, self._probes):
            table.update({ticket: (deadline + late, name) for ticket, (deadline, name) in table.items()})

    def _probe(self, now: float, entry: _Entry) -> Probe:
        ticket = self._ticket()
        entry.probe = ticket
        self._probes[ticket] = (now + self._settings.probe_timeout_s, entry.node.name)
        return Probe(ticket, entry.node)

    def _give_up(self, name: str) -> list[Effect]:
        effects: list[Effect] = []
        for table in (self._requests, self._probes):
            tickets = [ticket for ticket, (_, waiting_for) in table.items() if waiting_for == name]
            for ticket in tickets:
                del table[ticket]
            effects.extend(map(GiveUp, tickets))
        self._given_up += len(effects)
        return effects

    def _silent(self, now: float, name: str, reason: str) -> list[Effect]:
        effects = self._give_up(name)
        entry = self._entries.get(name)
        if entry is not None:
            entry.probe = None
            entry.probe_due = now + self._settings.probe_interval_s
            effects += self._down(entry, reason)
        return effects

    def _down(self, entry: _Entry, reason: str) -> list[Effect]:
        if not entry.up:
            return []
        entry.up = False
        return [Notify(NodeDown(entry.node.name, reason))]

    def _ticket(self) -> int:
        self._tickets += 1
        return self._tickets
