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
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from caterwaul.cluster.manager import ClusterManager
from caterwaul.managers.base import SessionManager
from caterwaul.managers.changes import KEY_BYTES
from caterwaul.managers.messages import DELTAS, RECORDS
from caterwaul.managers.session import key_of
from caterwaul.membership.channel import Message, Waiter
from caterwaul.membership.member import Member
from caterwaul.membership.view import ViewChanged

from .figures import percentile
from .writer import STAMP, Writer, value_of

__all__ = ["Node", "Watch", "Writer", "digest_of", "main", "value_of", "wait_until"]

_WAIT_S = 120.0


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
                        self.seen.append((STAMP.unpack_from(self._manager.types.decode(value))[0], now))
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
        """Requests for any of these sessions, `rate` a second: each reads, one in `write_every` also writes.

        For `ms` from when this node says that it is ready, which is what balancers wait for. What was asked before is counted apart: `early`, and how many of those were `early_missing`.
        """
        chance, manager = random.Random(seed), self._manager
        reads: list[int] = []
        writes: list[int] = []
        missing = early = early_missing = 0
        due, end, late = time.monotonic_ns(), 0, time.monotonic() + _WAIT_S
        while not end or due < end:
            time.sleep(max(0, due - time.monotonic_ns()) / 1e9)
            if not end and self._cluster.is_ready:
                end = due + ms * 1_000_000
            elif not end and time.monotonic() > late:
                raise TimeoutError(f"this node is not ready after {_WAIT_S:g} s")
            due += int(1e9 / rate)
            writing = (len(reads) + len(writes)) % write_every == write_every - 1
            began = time.monotonic_ns()
            session = manager.open(chance.choice(ids))
            is_missing = session.new or session.unknown
            session.get("a0")
            if writing and end:
                session["a0"] = value_of(size, seed)
                manager.commit(session)
            manager.release(session)
            if end:
                missing += is_missing
                (writes if writing else reads).append(time.monotonic_ns() - began)
            else:
                early, early_missing = early + 1, early_missing + is_missing
        reads.sort()
        writes.sort()
        return {
            "requests": len(reads) + len(writes), "missing": missing, "read_p50_us": percentile(reads, 0.5) / 1e3, "read_p99_us": percentile(reads, 0.99) / 1e3,
            "write_p50_us": percentile(writes, 0.5) / 1e3, "write_p99_us": percentile(writes, 0.99) / 1e3, "early": early, "early_missing": early_missing,
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
