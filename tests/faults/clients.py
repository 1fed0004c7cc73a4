"""Clients that write into a `History` while the nodes are being harmed, and read back at the end what is there.

A `Writer` is a thread in the switch's network namespace, with one session, or with one that several share. It does one request
at a time, at a steady pace, stays with its node while that answers, and goes on with the next one of its list when it does not, as behind a
sticky balancer. It begins a new list in its session with each node and after fifty tokens, and logs out now and then if it is told to.
"""

from __future__ import annotations

import http.client
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread
from types import TracebackType
from typing import Any

from ..real.processes import until
from .history import History, Kill, Operation, Reading, Verdict
from .lab import WEB_PORT, Lab, LabNode
from .network import enter

__all__ = ["Clients", "Shared", "Writer"]

PACE_S = 0.05  # from one request of a writer to the next: twenty a second
MINIMUM_PER_S = 5.0  # of each writer, while all is well; below, a history is void
_TIMEOUT_S = 2.0  # a request; confirmations are waited for 0.8 s at most
_LIST_MAX = 50  # tokens; a list travels as a whole
_TRIED_AGAIN_S = 0.2  # after a request that failed
_READERS = 4


class Shared:
    """A session, by the number that the history has for it, and its cookie once there is one."""

    numbers = itertools.count(1)

    def __init__(self) -> None:
        self.number = next(self.numbers)
        self.cookie = ""


def request(connection: http.client.HTTPConnection, method: str, path: str, cookie: str) -> tuple[int, dict[str, Any], str]:
    """Status, body (of the application; the front's own has none), and the session's cookie if a new one came."""
    connection.request(method, path, headers={"Cookie": cookie} if cookie else {})
    response = connection.getresponse()
    body = response.read()
    found = json.loads(body) if response.headers.get_content_type() == "application/json" else {}
    new = (response.headers.get("Set-Cookie") or "").partition(";")[0]
    return response.status, found, new if new.partition("=")[2] else ""


class Writer(Thread):
    """`nodes`: where it goes, the first one first. `session`: shared with others. `logs_out_after`: so many appends. `query`: what each append also says."""

    def __init__(
        self, number: int, history: History, namespace: str, nodes: Sequence[LabNode], *, session: Shared | None, logs_out_after: int, query: str
    ) -> None:
        super().__init__(name=f"writer-{number}", daemon=True)
        self.sessions = [session or Shared()]
        self.error: BaseException | None = None
        self._number = number
        self._history = history
        self._namespace = namespace
        self._nodes = nodes
        self._logs_out_after = 0 if session else logs_out_after
        self._query = query
        self._enough = Event()
        self._at = 0
        self._connection: http.client.HTTPConnection | None = None
        self._lists = itertools.count()
        self._list = ""
        self._in_list = self._appended = 0

    @property
    def session(self) -> Shared:
        return self.sessions[-1]

    def enough(self) -> None:
        """No more requests than the one under way."""
        self._enough.set()

    def end(self) -> None:
        """Raises what the thread has died of."""
        self.enough()
        self.join()
        if self.error is not None:
            raise self.error

    def run(self) -> None:
        try:
            enter(self._namespace)
            tokens = itertools.count()
            while not self._enough.is_set():
                begun = time.monotonic()
                done = self._step(f"{self._number}-{next(tokens)}")
                self._enough.wait(max(0.0, begun + PACE_S - time.monotonic()) if done else _TRIED_AGAIN_S)
        except BaseException as error:
            self.error = error
        finally:
            self._leave()

    def _step(self, token: str) -> bool:
        node, session = self._nodes[self._at % len(self._nodes)], self.session
        logs_out = bool(session.cookie) and 0 < self._logs_out_after <= self._appended
        if not self._list or self._in_list >= _LIST_MAX:
            self._list, self._in_list = f"{self._number}-{next(self._lists)}", 0
        if logs_out:
            one = Operation(time.monotonic(), node.name, session.number, "logout")
        else:
            one = Operation(time.monotonic(), node.name, session.number, "append", self._list, token)
            self._in_list += 1
        self._history.operations.append(one)
        path = "/logout?" if logs_out else f"/append?list={self._list}&token={token}"
        self._do(one, node, session, path + self._query)
        if logs_out or (not one.answered and not session.cookie):  # it is over, or nobody will ever know which it was
            self.sessions.append(Shared())
            self._list, self._appended = "", 0
        self._appended += not logs_out
        return one.answered

    def _do(self, one: Operation, node: LabNode, session: Shared, path: str) -> None:
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection(node.managed, WEB_PORT, timeout=_TIMEOUT_S)
            status, found, cookie = request(self._connection, "POST", path, session.cookie)
        except (OSError, http.client.HTTPException) as error:
            one.refused = f"{type(error).__name__}: {error}"
            self._leave()
            return
        one.end_s = time.monotonic()
        if status == 200:
            one.answered, one.confirmed = True, tuple(found["confirmed"])
            session.cookie = cookie or session.cookie
        else:
            one.refused = f"{status} {found}"

    def _leave(self) -> None:
        """Go to the next node, and write to a list of one's own there."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._at += 1
        self._list = ""


class Clients:
    """All writers of a lab, and their history. A context manager, which ends them."""

    def __init__(self, lab: Lab) -> None:
        self.history = History()
        self.writers: list[Writer] = []
        self._lab = lab
        self._pool = ThreadPoolExecutor(_READERS, initializer=enter, initargs=(lab.network.switch,))

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for writer in self.writers:
            writer.enough()
        for writer in self.writers:
            writer.join()
        self._pool.shutdown()

    def add(self, names: str, count: int = 1, session: Shared | None = None, logs_out_after: int = 0, query: str = "") -> None:
        """So many writers that go to these nodes, the first one first."""
        nodes = [self._lab[name] for name in names]
        for _ in range(count):
            writer = Writer(
                len(self.writers), self.history, self._lab.network.switch, nodes, session=session, logs_out_after=logs_out_after, query=query
            )  # fmt: skip
            self.writers.append(writer)
            writer.start()

    def watch(self, seconds: float) -> tuple[float, float]:
        """Let the writers write so long, all being well; fails if it is so little that the history would be void. Returns that time."""
        begin = time.monotonic()
        until(lambda: time.monotonic() >= begin + seconds, seconds + 1.0)
        end = time.monotonic()
        assert not (reason := self.history.void(begin, end, MINIMUM_PER_S * len(self.writers))), reason
        return begin, end

    def killed(self, name: str, at_s: float) -> None:
        self.history.kills.append(Kill(name, at_s))

    def get(self, node: LabNode, method: str, path: str, cookie: str = "", timeout_s: float = _TIMEOUT_S) -> tuple[int, dict[str, Any], str]:
        """One request on a connection of its own."""
        return self._pool.submit(_once, node.managed, method, path, cookie, timeout_s).result()

    def in_network(self, act: Callable[..., Any], *arguments: Any) -> Any:
        """Call it in a thread that lives in the network of the clients."""
        return self._pool.submit(act, *arguments).result()

    def read(self, names: str) -> dict[str, dict[int, Reading | None]]:
        """What these nodes show of each session."""
        sessions = {session.number: session.cookie for writer in self.writers for session in writer.sessions if session.cookie}
        chosen = [self._lab[name] for name in names]
        shown = self._pool.map(lambda node: _read_all(node.managed, sessions), chosen)
        return dict(zip(names, shown, strict=True))

    def settle(self, names: str, timeout_s: float, since_s: float = 0.0) -> tuple[float, Verdict]:
        """End the writers, and wait until these nodes show nothing that violates a promise: how long it took (from `since_s` or the last write on),
        and the verdict. Fails with what is wrong when it does not come to that."""
        for writer in self.writers:
            writer.end()
        begun = since_s or time.monotonic()
        verdict = Verdict()

        def good() -> bool:
            nonlocal verdict
            verdict = self.history.judge(self.read(names))
            return verdict.good

        try:
            until(good, begun + timeout_s - time.monotonic(), "all nodes show the same, and what they should")
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *verdict.told])) from None
        return time.monotonic() - begun, verdict


def _once(address: str, method: str, path: str, cookie: str, timeout_s: float) -> tuple[int, dict[str, Any], str]:
    connection = http.client.HTTPConnection(address, WEB_PORT, timeout=timeout_s)
    try:
        return request(connection, method, path, cookie)
    finally:
        connection.close()


def _read_all(address: str, cookies: Mapping[int, str]) -> dict[int, Reading | None]:
    connection = http.client.HTTPConnection(address, WEB_PORT, timeout=_TIMEOUT_S)
    shown: dict[int, Reading | None] = {}
    for number, cookie in cookies.items():
        try:
            status, found, _ = request(connection, "GET", "/read", cookie)
        except (OSError, http.client.HTTPException):
            connection.close()
            status = 0
        if status == 200:
            shown[number] = Reading(True, found["lists"], found["count"])
        else:
            shown[number] = Reading(False) if status == 410 else None
    connection.close()
    return shown
