"""One process of a measurement: a real node (`ClusterManager`), told what to do by lines of JSON.

``["update", {"threads": 8, ...}]`` comes in on standard input, an object goes out on standard output; the end of the input
ends the process. The writer does what a web request does: open the session, set one attribute, commit, release, and with
`acks` wait for the receipt. A replica is watched from between the channel and the manager: a delta counts as applied
when the manager has returned from merging it, and that moment is kept (`time.monotonic` is one clock for all processes
of a machine).
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import random
import resource
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from caterwaul.cluster.manager import ClusterManager
from caterwaul.managers.base import SessionManager
from caterwaul.managers.changes import KEY_BYTES
from caterwaul.managers.messages import DELTAS, RECORDS
from caterwaul.managers.receipts import Receipt
from caterwaul.managers.session import Session, key_of
from caterwaul.membership.channel import Message, Waiter
from caterwaul.membership.member import Member
from caterwaul.membership.view import ViewChanged

from .figures import percentile

__all__ = ["Node", "Watch", "Writer", "digest_of", "main", "value_of", "wait_until"]

_STAMP = struct.Struct(">QQ")  # when the call began, ns, and how often this session was updated
_CREATE_AT_ONCE = 500  # sessions created between two waits for the replicas, so that no outbox fills
_WAIT_S = 120.0


def value_of(size: int, number: int) -> bytes:
    """A new value of `size` bytes: now, a number, and zeros."""
    return _STAMP.pack(time.monotonic_ns(), number) + bytes(size - _STAMP.size)


def digest_of(attributes: Iterable[tuple[str, Any]]) -> str:
    """Equal exactly for equal names and values."""
    hashed = hashlib.sha256()
    for name, value in sorted(attributes):
        data = value if type(value) is bytes else repr(value).encode()
        hashed.update(b"%d %s %d " % (len(name), name.encode(), len(data)) + data)
    return hashed.hexdigest()[:16]


class Watch:
    """Stands where the manager is attached, passes everything on, and notes when deltas and records have been merged."""

    def __init__(self, manager: SessionManager) -> None:
        self._manager = manager
        self.first_contact_ns = self.last_contact_ns = 0
        self.each = False  #: note every delta, not only the last
        self.clear()

    def clear(self) -> None:
        self.deltas = self.records = self.messages = self.last_ns = 0
        self.seen: list[tuple[int, int]] = []  #: (when its call began, when it was applied), ns

    def received(self, peer: Member, message: list[Any], offset_ms: int) -> None:
        self._manager.received(peer, message, offset_ms)
        if message[1] == DELTAS:
            self.last_ns = now = time.monotonic_ns()
            self.deltas += len(message[3])
            self.messages += 1
            if self.each:
                for delta in message[3]:
                    for value in delta[4].values():
                        self.seen.append((_STAMP.unpack_from(self._manager.types.decode(value))[0], now))
        elif message[1] == RECORDS:
            self.last_ns = time.monotonic_ns()
            self.records += len(message[2])

    def link_opened(self, peer: Member, resumed: bool) -> None:
        self.last_contact_ns = time.monotonic_ns()
        self.first_contact_ns = self.first_contact_ns or self.last_contact_ns
        self._manager.link_opened(peer, resumed)

    def link_lost(self, peer: Member) -> None:
        self._manager.link_lost(peer)

    def refill(self, peer: Member, keys: Iterable[bytes], waiters: Sequence[Waiter]) -> Iterable[Message]:
        return self._manager.refill(peer, keys, waiters)


class Writer:
    """The application: creates sessions, then updates one attribute of one session per call, from some threads."""

    def __init__(self, manager: SessionManager) -> None:
        self._manager = manager
        self.ids: list[str] = []
        self._numbers: list[int] = []

    def create(self, sessions: int, attributes: int, size: int) -> None:
        manager = self._manager
        for i in range(sessions):
            session = manager.open(None)
            for k in range(attributes):
                session[f"a{k}"] = value_of(size, 0)
            wait = i % _CREATE_AT_ONCE == _CREATE_AT_ONCE - 1 or i == sessions - 1
            manager.commit(session, acks="all" if wait else "none").wait()
            manager.release(session)
            assert session.id is not None
            self.ids.append(session.id)
            self._numbers.append(0)

    def change(self, every: int, size: int) -> int:
        """One attribute of each `every`th session becomes something that cannot be compressed. How many sessions that are."""
        changed = self.ids[::every]
        for session_id in changed:
            session = self._manager.open(session_id)
            session["a0"] = os.urandom(size)
            self._manager.commit(session)
            self._manager.release(session)
        return len(changed)

    def update(self, threads: int, ms: int, size: int, acks: str, rate: float = 0.0, closely: bool = False) -> dict[str, Any]:
        """For `ms` milliseconds, as fast as it goes or `rate` a second over all threads. Thread i has sessions i, i + threads, ... `closely`: also what each commit takes, alone."""
        start = time.monotonic_ns()
        parts = [(_ClosePart if closely else _Part)(self._manager, self.ids, self._numbers, i, threads, size, acks) for i in range(threads)]
        period = int(1e9 * threads / rate) if rate else 0
        workers = [threading.Thread(target=part.run, args=(start, start + ms * 1_000_000, period)) for part in parts]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        end = time.monotonic_ns()
        for part in parts:
            if part.error is not None:
                raise part.error
        calls = sorted(call for part in parts for call in part.calls)
        return {
            "sent": len(calls), "start_ns": start, "end_ns": end, "call_p50_us": percentile(calls, 0.5) / 1e3, "call_p99_us": percentile(calls, 0.99) / 1e3,
            "unconfirmed": sum(part.unconfirmed for part in parts), "threads_cpu_s": sum(part.cpu_s for part in parts), **_commits(parts),
        }  # fmt: skip


class _Part:
    """What one application thread does."""

    def __init__(self, manager: SessionManager, ids: list[str], numbers: list[int], first: int, step: int, size: int, acks: str) -> None:
        self._manager, self._ids, self._numbers = manager, ids, numbers
        self._first, self._step, self._size, self._acks = first, step, size, acks
        self.calls: list[int] = []
        self.commits: list[tuple[int, int]] = []  # ns that each took: of this thread's CPU, and of the clock
        self.unconfirmed = 0
        self.cpu_s = 0.0
        self.error: Exception | None = None

    def run(self, start_ns: int, end_ns: int, period_ns: int) -> None:
        cpu = time.thread_time()
        try:
            self._run(start_ns, end_ns, period_ns)
        except Exception as error:
            self.error = error
        self.cpu_s = time.thread_time() - cpu

    def _run(self, start_ns: int, end_ns: int, period_ns: int) -> None:
        manager, ids, numbers, calls, clock = self._manager, self._ids, self._numbers, self.calls, time.monotonic_ns
        padding = bytes(self._size - _STAMP.size)
        at, due = self._first, start_ns
        while True:
            began = clock()
            if period_ns:
                while began < due:
                    time.sleep((due - began) / 1e9)
                    began = clock()
                due += period_ns
            if began >= end_ns:
                return
            session = manager.open(ids[at])
            numbers[at] += 1
            session["a0"] = _STAMP.pack(began, numbers[at]) + padding
            receipt = self._commit(session)
            if receipt.needs_wait:
                receipt.wait()
            if not receipt.satisfied:
                self.unconfirmed += 1
            manager.release(session)
            calls.append(clock() - began)
            at += self._step
            if at >= len(ids):
                at = self._first

    def _commit(self, session: Session) -> Receipt:
        return self._manager.commit(session, self._acks)


class _ClosePart(_Part):
    """Looks at the clocks before and after each commit, which takes half a microsecond itself."""

    def _commit(self, session: Session) -> Receipt:
        began, cpu = time.monotonic_ns(), time.thread_time_ns()
        receipt = self._manager.commit(session, self._acks)
        self.commits.append((time.thread_time_ns() - cpu, time.monotonic_ns() - began))
        return receipt


def _commits(parts: Iterable[_Part]) -> dict[str, float]:
    """What commits took by themselves, where somebody has looked."""
    commits = [commit for part in parts for commit in part.commits]
    times = {"commit_cpu": sorted(cpu for cpu, _ in commits), "commit": sorted(took for _, took in commits)}
    return {f"{name}_p{share}_us": percentile(found, share / 100) / 1e3 for name, found in times.items() for share in (50, 99)}


class Node:
    """The commands. Each takes keywords and returns what is answered."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._started_ns = time.monotonic_ns()
        self._cluster = ClusterManager(**settings)
        self._gone: list[tuple[str, int]] = []
        self._cluster.on_view_changed(self._view_changed)
        self._cluster.start()
        self._manager = self._cluster.manager()
        self._watch = Watch(self._manager)
        self._manager._channel.attach(self._manager.name, self._watch)  # the manager's own place, before anybody can have been met
        self._writer = Writer(self._manager)

    def _view_changed(self, change: ViewChanged) -> None:
        now = time.monotonic_ns()
        self._gone += [(member.name, now) for member in change.disappeared]

    def about(self) -> dict[str, Any]:
        watch = self._watch
        return {
            "port": self._manager.me.port, "started_ns": self._started_ns, "first_contact_ns": watch.first_contact_ns, "last_contact_ns": watch.last_contact_ns,
        }  # fmt: skip

    def meet(self, members: int) -> dict[str, Any]:
        """Wait until so many members are in the view and this one is in sync with them. When that was, within 10 ms."""
        wait_until(lambda: len(self._cluster.members) == members and self._cluster.is_ready, f"{members} members", 0.01)
        return {"met_ns": time.monotonic_ns(), **self.about()}

    def create(self, **what: Any) -> dict[str, Any]:
        self._writer.create(**what)
        return {}

    def change(self, **what: Any) -> dict[str, Any]:
        return {"changed": self._writer.change(**what)}

    def update(self, **what: Any) -> dict[str, Any]:
        return self._writer.update(**what)

    def reset(self, each: bool = False) -> dict[str, Any]:
        self._watch.clear()
        self._watch.each = each
        return {}

    def state(self) -> dict[str, Any]:
        watch = self._watch
        return {"deltas": watch.deltas, "records": watch.records, "messages": watch.messages, "last_ns": watch.last_ns, "sessions": self._manager.count}

    def seen(self) -> dict[str, Any]:
        return {"seen": self._watch.seen}

    def hold(self, sessions: int) -> dict[str, Any]:
        """Wait until so many sessions are here and this node is in sync. When that was, within 5 ms."""
        wait_until(lambda: self._manager.count >= sessions and self._manager.in_sync, f"{sessions} sessions", 0.005)
        return {"held_ns": time.monotonic_ns(), **self.about()}

    def ids(self, every: int = 1) -> dict[str, Any]:
        return {"ids": self._writer.ids[::every]}

    def keys(self) -> dict[str, Any]:
        return {"keys": [key_of(session_id).hex() for session_id in self._writer.ids]}

    def items(self) -> dict[str, Any]:
        """(key, digest) of each session of which this node holds a copy that counts."""
        items = self._manager.survey_page(b"", sys.maxsize)
        return {"items": [(item[:KEY_BYTES].hex(), item[KEY_BYTES:].hex()) for item in items]}

    def visit(self, ids: list[str]) -> dict[str, Any]:
        """Open each of these sessions once, as a request that only reads."""
        calls, missing = [], 0
        for session_id in ids:
            began = time.monotonic_ns()
            session = self._manager.open(session_id)
            calls.append(time.monotonic_ns() - began)
            missing += session.new or session.unknown
            self._manager.release(session)
        calls.sort()
        return {
            "p50_us": percentile(calls, 0.5) / 1e3, "p99_us": percentile(calls, 0.99) / 1e3, "missing": missing,
            "near_hits": self._manager.statistics()["near_hits"],
        }  # fmt: skip

    def serve(self, ids: list[str], ms: int, rate: float, write_every: int, size: int, seed: int) -> dict[str, Any]:
        """Requests for any of these sessions, `rate` a second: each reads, one in `write_every` also writes."""
        chance, manager = random.Random(seed), self._manager
        reads: list[int] = []
        writes: list[int] = []
        missing, due = 0, time.monotonic_ns()
        end = due + ms * 1_000_000
        while due < end:
            time.sleep(max(0, due - time.monotonic_ns()) / 1e9)
            due += int(1e9 / rate)
            writing = (len(reads) + len(writes)) % write_every == write_every - 1
            began = time.monotonic_ns()
            session = manager.open(chance.choice(ids))
            missing += session.new or session.unknown
            session.get("a0")
            if writing:
                session["a0"] = value_of(size, seed)
                manager.commit(session)
            manager.release(session)
            (writes if writing else reads).append(time.monotonic_ns() - began)
        reads.sort()
        writes.sort()
        return {
            "requests": len(reads) + len(writes), "missing": missing, "read_p50_us": percentile(reads, 0.5) / 1e3, "read_p99_us": percentile(reads, 0.99) / 1e3,
            "write_p50_us": percentile(writes, 0.5) / 1e3, "write_p99_us": percentile(writes, 0.99) / 1e3,
        }  # fmt: skip

    def requests(self, threads: int, ms: int, size: int, writes: bool, acks: str = "none") -> dict[str, Any]:
        """Whole requests for the sessions that this node has made, as fast as so many threads do them: each reads, or reads and writes."""
        manager, ids = self._manager, self._writer.ids
        calls: list[list[int]] = [[] for _ in range(threads)]
        bad = [0] * threads
        start = time.monotonic_ns()
        end = start + ms * 1_000_000

        def work(number: int) -> None:
            chance = random.Random(number)
            mine = ids[number::threads]
            while (began := time.monotonic_ns()) < end:
                session = manager.open(chance.choice(mine))
                bad[number] += session.unknown or session.stale or "a0" not in session
                if writes:
                    session["a0"] = value_of(size, began & 0xFFFF)
                bad[number] += not manager.commit(session, acks).wait().satisfied
                manager.release(session)
                calls[number].append(time.monotonic_ns() - began)

        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        times = sorted(call for some in calls for call in some)
        return {
            "per_s": len(times) / ((time.monotonic_ns() - start) / 1e9), "p50_us": percentile(times, 0.5) / 1e3, "p99_us": percentile(times, 0.99) / 1e3, "wrong": sum(bad),
        }  # fmt: skip

    def digests(self, ids: list[str]) -> dict[str, Any]:
        """Of each session's names and values, as an application reads them here; empty where the session is not."""
        wait_until(lambda: self._manager.in_sync, "sync with all members", 0.01)
        result = []
        for session_id in ids:
            session = self._manager.open(session_id)
            result.append("" if session.new or session.unknown else digest_of(session.items()))
            self._manager.release(session)
        return {"digests": result}

    def cpu(self) -> dict[str, Any]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {"cpu_s": used.ru_utime + used.ru_stime}

    def memory(self, packed: bool = False) -> dict[str, Any]:
        """Resident bytes, after everything that can be given back was; `packed`: wait until idle records are packed."""
        if packed:
            core = self._manager._core
            wait_until(lambda: not core.replica.in_use and not core.packing.cooling, "packed records", 0.1)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/statm") as file:
            return {"bytes": int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")}

    def gone(self, name: str, since_ns: int = 0) -> dict[str, Any]:
        """Wait until this member has disappeared from the view, after `since_ns`. When that was."""
        wait_until(lambda: any(gone == name and at > since_ns for gone, at in self._gone), f"the loss of {name}", 0.005)
        return {"gone_ns": next(at for gone, at in self._gone if gone == name and at > since_ns)}

    def statistics(self) -> dict[str, Any]:
        return self._cluster.statistics()


def wait_until(true: Callable[[], bool], what: str, step_s: float) -> None:
    end = time.monotonic() + _WAIT_S
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"no {what} after {_WAIT_S:g} s")
        time.sleep(step_s)


def main(kind: type[Node] = Node) -> None:
    node = kind(json.loads(sys.stdin.readline()))
    print(json.dumps(node.about()), flush=True)
    for line in sys.stdin:
        command, keywords = json.loads(line)
        try:
            answer = getattr(node, command)(**keywords)
        except Exception as error:
            answer = {"error": f"{command}: {type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
