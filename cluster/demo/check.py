"""The demo's story without a person: write, kill, write on, stop, write on, read everything back, judge.

What the times of the result mean; all are milliseconds. Where several nodes are killed, each of these is the longest; `failover_ms` is of the users of all of them.

- `detection_ms`: from SIGKILL until no survivor's view holds the killed member any more;
- `failover_ms`: for each user of the killed node the first answer after the kill, measured from the kill if a request was
  under way then, else from when the user's next request was sent: what a person at a browser waits, retries included;
- `rejoin_ms`: from SIGKILL until every survivor's view holds the replacement;
- `sync_ms`: from SIGKILL until the replacement says that it is in sync, which is when the proxy sends it users;
- `pause_detection_ms` and `resume_ms`: from SIGSTOP until the others dropped it, and from SIGCONT until every node sees
  every other one and all are in sync;
- `settle_ms`: from the last write until every copy was complete;
- `stored_ms`: from then until the store had all of it; `restart_all_ms`: from the SIGKILL of all nodes until all of their replacements were in sync, and every session
  could be read from each and through the proxy.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from twisted.internet.defer import DeferredSemaphore, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from ...membership.errors import LocalError
from ..admin_socket import ask, socket_directory
from ..draining import DRAINED
from .ledger import Ledger, Verdict
from .nodes import DROP_S, DemoCluster
from .page import MANAGER
from .visitors import Browser, Visitors

__all__ = ["Check", "Failed"]

_KILL_AFTER = 0.4  # of the writes
_WRITES_PER_S = 500  # all visitors together; leaves room on two cores for what is measured
_SEED = 20  # of tokens and of when the visitors begin
_LOOK_S = 0.02
_START_S, _STEP_S, _SETTLE_S = 30.0, 30.0, 10.0  # longest wait for the first start, for one event of the story, for equal copies
_PAUSE_S = DROP_S + 2.0
_READERS = 32  # sessions read at the same time


class _Loss(NamedTuple):
    """A node that was killed, when, and what its uid was."""

    name: str
    at: float
    uid: str


class Failed(Exception):
    """The story did not go as promised; the text says where."""


class Check:
    """One run on a cluster that is not started yet. `say` gets a line for each step. `rolling`: nobody is killed; all nodes are restarted in good order.
    `restart_all`: at the end all are killed at once, and what they held has to come back from their store."""

    def __init__(
        self, reactor: Any, cluster: DemoCluster, visitors: int, writes: int, say: Callable[[str], None], rolling: bool = False, restart_all: bool = False
    ) -> None:
        self._reactor = reactor
        self._cluster = cluster
        self._writes = writes
        self._number = visitors
        self._say = say
        self._rolling = rolling
        self._restart_all = restart_all
        self._browser = Browser(reactor)
        self.ledger = Ledger()
        self._visitors: Visitors | None = None
        self._stopped: int | None = None  # pid of the node under SIGSTOP
        self.result: dict[str, Any] = {"nodes": len(cluster.addresses), "clients": visitors}

    def progress(self) -> str:
        """Where it is, for a terminal."""
        return f"{self.ledger.answered}/{self._writes} writes, {self.ledger.acknowledged} acknowledged by another node"

    async def run(self) -> dict[str, Any]:
        """The whole story; returns the result. Raises `Failed` or `LocalError`; `result` then holds what is known."""
        cluster, begun = self._cluster, self._reactor.seconds()
        try:
            cluster.start()
            await cluster.wait_ready(_START_S)
            await self._everyone_in_sync(_START_S, "the nodes find each other")
            self.result["start_ms"] = self._since(begun)
            self._say(f"{len(cluster.addresses)} nodes are up and in sync")
            self._visitors = Visitors(self._reactor, self._browser, cluster.url, self.ledger, self._number / _WRITES_PER_S, random.Random(_SEED))
            self._visitors.start(self._number)
            writing = self._reactor.seconds()
            await self._until(lambda: self.ledger.answered >= self._writes * _KILL_AFTER, 2 * _STEP_S, "the first writes are answered")
            kills = [] if self._rolling else await self._strike_all()
            if self._rolling:
                await self._roll()
            await self._until(lambda: self.ledger.answered >= self._writes, 2 * _STEP_S, "all writes are answered")
            await self._visitors.stop()
            self.result["writes_per_s"] = round(self.ledger.answered / (self._reactor.seconds() - writing))
            verdict = await self._read_back([(loss.name, loss.at) for loss in kills])
            self._conclude(verdict)
            if self._restart_all:
                await self._kill_everyone()
            return self.result
        finally:
            self._count()
            self._continue()
            await self._browser.close()

    async def _strike_all(self) -> list[_Loss]:
        """The losses of the story: of a node that serves; of a data node besides, where there are such, with one more that joins; of two nodes, the second as soon as the
        first is dropped, where there are enough copies. And where all nodes are of one kind, a stop."""
        layout = self._cluster.layout
        if layout.web:
            losses = [await self._strike(self._busiest(layout.serving))]
            await self._recover(losses)
            losses.append(await self._strike(layout.holding[0]))
            added = f"data{layout.data + 1}"
            self._cluster.grow(added)
            self._say(f"started {added}, one more")
            await self._recover(losses[1:])
            await self._until_all_say([added], lambda seen: seen["ready"], f"{added} is in sync")
            return losses
        losses = [await self._strike(self._busiest(layout.serving))]
        if layout.nodes > 3 and (layout.manager == "delta" or layout.backups > 1):
            losses.append(await self._strike(self._busiest(layout.serving, losses[0].name)))
        await self._recover(losses)
        await self._pause({loss.name for loss in losses})
        return losses

    async def _roll(self) -> None:
        """Each node drains, leaves, and is started again by the supervisor. Nobody's request may fail."""
        for name in self._cluster.layout.names:
            uid, pid, begun = await self._uid(name), self._cluster.pid(name), self._reactor.seconds()
            socket = socket_directory() / f"{name}-{pid}.sock"
            await deferToThread(ask, socket, "/drain", "POST")

            async def drained(socket: Path = socket) -> bool:
                report = await deferToThread(ask, socket, "/drain")
                return bool(report["state"] == DRAINED)

            await self._poll(drained, _STEP_S, f"{name} is drained")
            drained_ms = self._since(begun)
            await deferToThread(ask, socket, "/leave", "POST")
            await self._replacement(name, uid)
            await self._everyone_in_sync(_STEP_S, f"{name} is back")
            self.result.setdefault("drained_ms", []).append(drained_ms)
            self._say(f"{name} was drained in {drained_ms} ms, and back in sync after {self._since(begun)} ms")

    async def _kill_everyone(self) -> None:
        """Once the store has all that was written: kill every node, and read everything back from those that are started in their place."""
        names, ended = list(self._cluster.layout.names), self._reactor.seconds()

        async def stored() -> bool:
            seen = [await self._statistics(name) for name in names]
            return all(counts.get("store_waiting") == 0 for counts in seen)

        await self._poll(stored, _STEP_S, "the store has everything")
        self.result["stored_ms"] = self._since(ended)
        before = {name: (await self._uid(name), self._cluster.pid(name)) for name in names}
        killed_at = self._reactor.seconds()
        for _, pid in before.values():
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        self._say(f"killed all {len(names)} nodes at once")
        for name, (uid, _) in before.items():
            await self._replacement(name, uid)
        verdict = await self._read_back([])
        self.result["restart_all_ms"] = self._since(killed_at)
        self._conclude(verdict)
        self._say(f"all {self._number} sessions were back {self.result['restart_all_ms']} ms after the kill")

    async def _statistics(self, name: str) -> dict[str, Any]:
        """Of this node's session manager; empty if it does not answer."""
        try:
            report = await deferToThread(ask, socket_directory() / f"{name}-{self._cluster.pid(name)}.sock", "/statistics")
            counts: dict[str, Any] = report["managers"][MANAGER]
            return counts
        except (LocalError, KeyError):
            return {}

    def _busiest(self, names: Iterable[str], *but: str) -> str:
        """Who served most users last."""
        assert self._visitors is not None
        served = self._visitors.served_by()
        return max(sorted(set(names).difference(but)), key=lambda name: served.get(name, 0))

    async def _strike(self, victim: str) -> _Loss:
        """Kill this node, and wait until the others have dropped it."""
        assert self._visitors is not None
        survivors = [name for name in self._cluster.addresses if name != victim]
        uid, pid = await self._uid(victim), self._cluster.pid(victim)
        assert pid is not None
        affected = self._visitors.watch_failover(victim)
        loss = _Loss(victim, self._reactor.seconds(), uid)
        os.kill(pid, signal.SIGKILL)
        self.result.setdefault("killed", []).append(victim)
        self._say(f"killed {victim} (pid {pid}), which served {affected} of {self._number} clients")
        await self._until_all_say(survivors, lambda seen: uid not in _uids(seen), f"{victim} is dropped by the survivors")
        took_ms = self._since(loss.at)
        self.result["detection_ms"] = max(took_ms, self.result.get("detection_ms", 0))
        self._say(f"the others dropped it after {took_ms} ms")
        return loss

    async def _recover(self, losses: Sequence[_Loss]) -> None:
        """Until the replacements of these are in sync, and all their users were answered by others."""
        assert self._visitors is not None
        visitors = self._visitors
        for loss in losses:
            replacement = await self._replacement(loss.name, loss.uid)
            others = [name for name in self._cluster.addresses if name != loss.name]
            await self._until_all_say(others, lambda seen, uid=replacement: uid in _uids(seen), f"the survivors see the replacement of {loss.name}")  # type: ignore[misc]
            joined_ms = self._since(loss.at)
            await self._until_all_say([loss.name], lambda seen: seen["ready"], f"the replacement of {loss.name} is in sync")
            synced_ms = self._since(loss.at)
            self.result["rejoin_ms"] = max(joined_ms, self.result.get("rejoin_ms", 0))
            self.result["sync_ms"] = max(synced_ms, self.result.get("sync_ms", 0))
            self._say(f"the replacement of {loss.name} (pid {self._cluster.pid(loss.name)}) joined after {joined_ms} ms, in sync after {synced_ms} ms")
        await self._until(lambda: not visitors.unanswered(), _STEP_S, "every user of the killed is answered by another node")
        self.result["failover_ms"] = _percentiles(sorted(visitors.failovers))
        self.result["failed_over"] = len(visitors.failovers)
        self._say(
            f"{len(visitors.failovers)} users went on elsewhere: p50 {self.result['failover_ms'].get('p50')} ms, p99 {self.result['failover_ms'].get('p99')} ms"
        )

    async def _pause(self, other_than: set[str]) -> None:
        """Stop another node for longer than the drop time, let it go on, and wait until all is as before."""
        name = self._busiest(self._cluster.addresses, *other_than)
        uid, pid = await self._uid(name), self._cluster.pid(name)
        assert pid is not None
        others = [each for each in self._cluster.addresses if each != name]
        stopped_at = self._reactor.seconds()
        os.kill(pid, signal.SIGSTOP)
        self._stopped = pid
        self._say(f"stopped {name} (pid {pid}) for {_PAUSE_S:g} s")
        await self._until_all_say(others, lambda seen: uid not in _uids(seen), f"{name}, stopped, is dropped by the others")
        self.result["pause_detection_ms"] = self._since(stopped_at)
        await deferLater(self._reactor, max(0.0, stopped_at + _PAUSE_S - self._reactor.seconds()))
        if self._cluster.pid(name) != pid:
            raise Failed(f"{name} ended while it was stopped")
        self._continue()
        continued_at = self._reactor.seconds()
        await self._everyone_in_sync(_STEP_S, f"{name} is back")
        self.result["resume_ms"] = self._since(continued_at)
        self._say(f"dropped after {self.result['pause_detection_ms']} ms; {self.result['resume_ms']} ms after it went on all nodes were in sync")

    async def _read_back(self, kills: Sequence[tuple[str, float]]) -> Verdict:
        """Every session from every node and through the proxy, again until all is there or the time is over."""
        assert self._visitors is not None
        self._say(f"reading {self._number} sessions back from every node and through the proxy")
        ended = self._reactor.seconds()
        await self._everyone_in_sync(_SETTLE_S, "the nodes are in sync after the last write")
        while True:
            readings = {name: await self._read_all(self._cluster.node_url(name), name) for name in sorted(self._cluster.addresses)}
            readings["proxy"] = await self._read_all(self._cluster.url, "")
            verdict = self.ledger.judge(readings, kills)
            if verdict.good or self._reactor.seconds() - ended > _SETTLE_S:
                self.result["settle_ms"] = self._since(ended)
                return verdict
            await deferLater(self._reactor, 0.5)

    async def _read_all(self, url: str, route: str) -> dict[int, dict[str, str] | None]:
        assert self._visitors is not None
        readers = DeferredSemaphore(_READERS)

        async def read(cookie: str) -> dict[str, str] | None:
            if route:
                cookie = f"{cookie.partition('.')[0]}.{route}"
            for _ in range(3):
                with suppress(Exception):  # whatever broke, it is asked again, and counted as unread at the end
                    answer = await self._browser.ask(f"{url}/get", cookie=cookie)
                    if answer.status == 200:
                        pairs: dict[str, str] = answer.content["pairs"]
                        return pairs
            return None

        everybody = self._visitors.everybody
        found = await gatherResults([readers.run(read, each.cookie) for each in everybody])
        return {each.number: pairs for each, pairs in zip(everybody, found, strict=True)}

    def _conclude(self, verdict: Verdict) -> None:
        self.result.update(lost=verdict.lost, foreign=verdict.foreign, lost_unacknowledged=verdict.excused, unread=verdict.unread, found=verdict.found)
        if not verdict.good:
            raise Failed("\n".join([f"{verdict.lost} writes lost, {verdict.foreign} foreign values, {verdict.unread} sessions unreadable:", *verdict.told]))
        if self._rolling and self._visitors is not None and self._visitors.failed_requests:
            problems = ", ".join(f"{number} times {problem}" for problem, number in sorted(self._visitors.problems.items()))
            raise Failed(f"{self._visitors.failed_requests} requests failed while nodes were restarted in good order: {problems}")
        if self.ledger.acknowledged < self._writes * 0.4:
            raise Failed(f"only {self.ledger.acknowledged} of {self.ledger.answered} writes were acknowledged by another node; half of them asked for it")

    def _count(self) -> None:
        self.result.update(writes=self.ledger.answered, writes_acknowledged=self.ledger.acknowledged)
        if self._visitors is not None:
            self.result["failed_requests"] = self._visitors.failed_requests
            self.result["failed_because"] = dict(sorted(self._visitors.problems.items()))
            self.result["write_ms"] = _percentiles(sorted(self._visitors.latencies[False]))
            self.result["write_acknowledged_ms"] = _percentiles(sorted(self._visitors.latencies[True]))

    def _continue(self) -> None:
        pid, self._stopped = self._stopped, None
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def _ask(self, name: str) -> dict[str, Any] | None:
        """What this node sees; None if it does not answer."""
        try:
            return (await self._browser.ask(f"{self._cluster.node_url(name)}/members", timeout_s=1.0)).content
        except Exception:  # whatever broke: it will be asked again
            return None

    async def _uid(self, name: str) -> str:
        async def found() -> str:
            return _own_uid(await self._ask(name) or {"members": []})

        return str(await self._poll(found, _STEP_S, f"{name} answers"))

    async def _replacement(self, name: str, before: str) -> str:
        async def found() -> str:
            seen = await self._ask(name)
            uid = _own_uid(seen) if seen else ""
            return uid if uid != before else ""

        return str(await self._poll(found, _STEP_S, f"{name} is started again"))

    async def _until_all_say(self, names: Iterable[str], what: Callable[[dict[str, Any]], bool], event: str) -> None:
        for name in names:

            async def said(name: str = name) -> bool:
                seen = await self._ask(name)
                return seen is not None and "members" in seen and what(seen)

            await self._poll(said, _STEP_S, f"{event} ({name})")

    async def _everyone_in_sync(self, timeout_s: float, event: str) -> None:
        number = len(self._cluster.addresses)

        def complete(seen: dict[str, Any]) -> bool:
            return bool(seen["ready"]) and len(seen["members"]) == number and all(member["in_sync"] for member in seen["members"])

        await self._until_all_say(self._cluster.addresses, complete, event)
        await self._until(lambda: all(map(self._cluster.proxy.is_up, self._cluster.layout.serving)), timeout_s, f"{event}: the proxy uses every node")

    async def _until(self, condition: Callable[[], bool], timeout_s: float, event: str) -> None:
        async def holds() -> bool:
            return condition()

        await self._poll(holds, timeout_s, event)

    async def _poll(self, ask: Callable[[], Awaitable[Any]], timeout_s: float, event: str) -> Any:
        deadline = self._reactor.seconds() + timeout_s
        while True:
            answer = await ask()
            if answer:
                return answer
            if self._reactor.seconds() > deadline:
                raise Failed(f"waited {timeout_s:g} s in vain until: {event}")
            await deferLater(self._reactor, _LOOK_S)

    def _since(self, begun: float) -> int:
        return round(float(self._reactor.seconds() - begun) * 1000)


def _uids(seen: dict[str, Any]) -> set[str]:
    return {member["uid"] for member in seen["members"]}


def _own_uid(seen: dict[str, Any]) -> str:
    return next((member["uid"] for member in seen["members"] if member["self"]), "")


def _percentiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds; `seconds` is sorted. Empty: nothing was measured."""
    if not seconds:
        return {}
    return {name: round(seconds[min(len(seconds) - 1, int(len(seconds) * share))] * 1000, 1) for name, share in (("p50", 0.5), ("p99", 0.99))}
