"""Who wrote what, what was confirmed, and what of it is found again: the bookkeeping of `caterwaul demo --check`.

Every write has a token that no other write has, under a name of its own, so nothing is overwritten and every loss shows.
What a node shows of a client's session is judged so:

- a write that another node had confirmed is missing: *lost*, never allowed;
- a write that was answered without confirmation is missing: excused if a killed node answered it in the last second
  before its kill (its outbox died with it), else *lost* too;
- a write that was never answered may be there or not;
- a value that this client did not write under this name: *foreign*, never allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Ledger", "Verdict", "Write"]

EXCUSED_S = 1.0  # promise S4: without acknowledgement a crash loses less than the last second
_TOLD_MAX = 20  # losses described one by one


@dataclass(slots=True)
class Write:
    """One write of one client; times are monotonic seconds."""

    client: int
    name: str
    token: str
    wants_ack: bool
    node: str = ""  #: who answered; empty: nobody yet
    answered_at: float = 0.0
    confirmed_by: tuple[str, ...] = ()


@dataclass
class Verdict:
    """What reading back has shown. `found` counts pairs of one write and one reading."""

    found: int = 0
    lost: int = 0  #: writes missing in at least one place, without excuse
    excused: int = 0  #: unacknowledged writes of the last second before the kill, missing in at least one place
    foreign: int = 0
    unread: int = 0  #: sessions that could not be read somewhere
    told: list[str] = field(default_factory=list)  #: the first losses, in words

    @property
    def good(self) -> bool:
        return not (self.lost or self.foreign or self.unread)


class Ledger:
    """All writes of one run."""

    def __init__(self) -> None:
        self._writes: list[list[Write]] = []
        self.answered = 0
        self.acknowledged = 0

    @property
    def attempted(self) -> int:
        return sum(map(len, self._writes))

    def begin(self, client: int, token: str, wants_ack: bool) -> Write:
        """A client is about to write. `token` is unique; the name is made here."""
        while len(self._writes) <= client:
            self._writes.append([])
        mine = self._writes[client]
        write = Write(client, f"w{len(mine):04d}", token, wants_ack)
        mine.append(write)
        return write

    def answer(self, write: Write, now: float, node: str, confirmed_by: Sequence[str]) -> None:
        """The write was answered as done by `node`; `confirmed_by` names the other nodes that have it too."""
        write.node, write.answered_at, write.confirmed_by = node, now, tuple(confirmed_by)
        self.answered += 1
        self.acknowledged += bool(confirmed_by)

    def judge(self, readings: Mapping[str, Mapping[int, Mapping[str, str] | None]], kills: Sequence[tuple[str, float]]) -> Verdict:
        """`readings`: for each place (a node, the proxy) and client the pairs that were read there; None: no session was found or read.
        `kills`: the nodes that were killed, and when."""
        verdict = Verdict()
        lost: set[tuple[int, str]] = set()
        excused: set[tuple[int, str]] = set()
        for place, sessions in readings.items():
            for client, writes in enumerate(self._writes):
                pairs = sessions.get(client)
                if pairs is None:
                    if any(write.node for write in writes):
                        verdict.unread += 1
                        self._tell(verdict, f"{place}: the session of client {client} cannot be read")
                    continue
                self._judge_session(verdict, place, writes, pairs, lost, excused, kills)
        verdict.lost, verdict.excused = len(lost), len(excused - lost)
        return verdict

    def _judge_session(
        self,
        verdict: Verdict,
        place: str,
        writes: Sequence[Write],
        pairs: Mapping[str, str],
        lost: set[tuple[int, str]],
        excused: set[tuple[int, str]],
        kills: Sequence[tuple[str, float]],
    ) -> None:
        known = {write.name: write.token for write in writes}
        for name, value in sorted(pairs.items()):
            if known.get(name) == value:
                verdict.found += 1
            else:
                verdict.foreign += 1
                self._tell(verdict, f"{place}: a session holds {name}={value}, which its client never wrote")
        for write in writes:
            if not write.node or write.name in pairs:
                continue
            key = (write.client, write.name)
            if not write.confirmed_by and any(write.node == killed and at - EXCUSED_S <= write.answered_at <= at + EXCUSED_S for killed, at in kills):
                excused.add(key)
                continue
            lost.add(key)
            when = ", ".join(f"{write.answered_at - at:+.3f} s from the kill of {killed}" for killed, at in kills)
            confirmed = f"confirmed by {', '.join(write.confirmed_by)}" if write.confirmed_by else "not confirmed by another node"
            self._tell(verdict, f"{place}: {write.token} of client {write.client} is missing; answered by {write.node} {when}, {confirmed}")

    def _tell(self, verdict: Verdict, line: str) -> None:
        if len(verdict.told) < _TOLD_MAX:
            verdict.told.append(line)
