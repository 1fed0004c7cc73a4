"""What clients did, what they were told, and what of it must be found at the end. Pure: no sockets, no clock.

A client appends unique tokens to lists in its session and bumps a `Counter` with each, in one commit; some sessions are logged out. A
list has one writer and one node: a client that moves to another node begins another list, as of two writes to the *same* attribute at
the same time one wins (promise S6), and what it sent to the node that it left may still be done there. So nothing here excuses a loss but this:

- an append that was answered is **owed**, unless the node that answered was killed within a second after and no other node had confirmed it (S4);
- an append that was *not* answered may be there or not, but not twice;
- what was never sent to this session is **foreign**;
- each list's tokens stand in the order in which they were sent, and the counter is the number of tokens: a commit is whole, and done once;
- a session whose logout was answered is over everywhere, and nothing of it is shown; whatever was answered before.

All nodes that are read must show the same. A history with too few operations while all was well says nothing: it is void.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["EXCUSED_S", "History", "Kill", "Operation", "Reading", "Verdict"]

EXCUSED_S = 1.0
_TOLD_MAX = 20  # violations described one by one


@dataclass(slots=True)
class Operation:
    """One request. `end` is infinite until it is answered; times are seconds of one monotonic clock."""

    start_s: float
    node: str
    session: int
    what: str  #: ``append`` or ``logout``
    list: str = ""
    token: str = ""
    end_s: float = float("inf")
    answered: bool = False  #: as done
    confirmed: tuple[str, ...] = ()  #: other nodes that had it by then
    refused: str = ""  #: what came instead of the answer


@dataclass(frozen=True, slots=True)
class Kill:
    node: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Reading:
    """What a node shows of a session: nothing at all where `live` is false."""

    live: bool
    lists: Mapping[str, Sequence[str]] = field(default_factory=dict)
    count: int = 0


@dataclass
class Verdict:
    """Violations, by kind. Each is one token or one session on one node."""

    found: int = 0
    lost: int = 0
    excused: int = 0
    foreign: int = 0
    twice: int = 0
    disordered: int = 0
    miscounted: int = 0
    resurrected: int = 0
    different: int = 0  #: sessions of which two nodes show different things
    unread: int = 0
    told: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.lost or self.foreign or self.twice or self.disordered or self.miscounted or self.resurrected or self.different or self.unread)

    def tell(self, kind: str, line: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.told) < _TOLD_MAX:
            self.told.append(f"{kind}: {line}")


class History:
    """Everything that was done. One thread appends to an operation, any thread to the history."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.kills: list[Kill] = []

    # -- how much, and how fast

    def done(self, begin_s: float, end_s: float, nodes: Sequence[str] = ()) -> list[Operation]:
        """The operations answered as done that began in that time (at these nodes)."""
        return [one for one in self.operations if one.answered and begin_s <= one.start_s < end_s and (not nodes or one.node in nodes)]

    def failed(self, begin_s: float, end_s: float, nodes: Sequence[str] = ()) -> list[Operation]:
        """Those that came to nothing; not those that are under way."""
        return [one for one in self.operations if one.refused and begin_s <= one.start_s < end_s and (not nodes or one.node in nodes)]

    def void(self, begin_s: float, end_s: float, minimum_per_s: float) -> str:
        """Why the history says nothing, all having been well in that time; empty if it says something."""
        rate = len(self.done(begin_s, end_s)) / (end_s - begin_s)
        return "" if rate >= minimum_per_s else f"VOID: {rate:.1f} operations a second while all was well, below {minimum_per_s:g}: too few to show anything"

    def quantile_s(self, begin_s: float, end_s: float, part: float, nodes: Sequence[str] = ()) -> float:
        """The time within which `part` of the answers came."""
        times = sorted(one.end_s - one.start_s for one in self.done(begin_s, end_s, nodes))
        return times[min(len(times) - 1, int(part * len(times)))] if times else float("inf")

    # -- the verdict

    def judge(self, readings: Mapping[str, Mapping[int, Reading | None]]) -> Verdict:
        """`readings`: for each node what it shows of each session; None: it gave no answer. Sessions that are not named are not judged."""
        verdict = Verdict()
        sent: dict[int, list[Operation]] = {}
        for one in self.operations:
            sent.setdefault(one.session, []).append(one)
        for session in sorted({session for shown in readings.values() for session in shown}):
            views = {node: shown[session] for node, shown in readings.items() if session in shown}
            for node, view in views.items():
                if view is None:
                    verdict.tell("unread", f"{node} gives no answer for session {session}")
                else:
                    self._judge(verdict, node, session, sent.get(session, []), view)
            shapes = {(view.live, view.count, tuple(sorted((name, tuple(tokens)) for name, tokens in view.lists.items()))) for view in views.values() if view}
            if len(shapes) > 1:
                verdict.tell("different", f"session {session} is not the same on {', '.join(sorted(views))}")
        return verdict

    def _judge(self, verdict: Verdict, node: str, session: int, sent: Sequence[Operation], view: Reading) -> None:
        logouts = [one for one in sent if one.what == "logout"]
        if any(one.answered for one in logouts):
            if view.live:
                verdict.tell("resurrected", f"{node} shows session {session}, which was logged out")
            return
        if not view.live and logouts:
            return  # the logout was not answered, and was done
        attempts = {one.token: (number, one) for number, one in enumerate(sent) if one.what == "append"}
        shown = Counter(token for tokens in view.lists.values() for token in tokens)
        for token, times in shown.items():
            if token not in attempts:
                verdict.tell("foreign", f"{node}: session {session} holds {token}, which was never sent to it")
            elif times > 1:
                verdict.tell("twice", f"{node}: session {session} holds {token} {times} times")
            else:
                verdict.found += 1
        for name, tokens in view.lists.items():
            order = [attempts[token][0] for token in tokens if token in attempts]
            if order != sorted(order):
                verdict.tell("disordered", f"{node}: list {name} of session {session} is not in the order of its writes")
        if view.count != sum(shown.values()):
            verdict.tell("miscounted", f"{node}: session {session} counts {view.count}, and holds {sum(shown.values())} tokens")
        for token, (_, one) in attempts.items():
            if one.answered and token not in shown:
                self._missing(verdict, node, one)

    def _missing(self, verdict: Verdict, node: str, one: Operation) -> None:
        if not one.confirmed and any(
            kill.node == one.node and one.end_s <= kill.at_s + EXCUSED_S and kill.at_s - EXCUSED_S <= one.end_s for kill in self.kills
        ):
            verdict.excused += 1
            return
        by = f"confirmed by {', '.join(one.confirmed)}" if one.confirmed else "confirmed by no other node"
        verdict.tell("lost", f"{node}: {one.token} of session {one.session} is missing; answered by {one.node} at {one.end_s:.3f}, {by}")
