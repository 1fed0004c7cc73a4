"""Real node processes for tests: started, told what to do, paused, killed, and never left behind.

A `Node` is a child that runs a `ClusterManager` and answers one line of JSON to each; run as a program this file is that
child. A `Command` is the command line as a user has it. All of them die with the test process (`launch.py`), are
signalled by the id of their start only, and say what they logged when they do not do what they should. Times are of the
monotonic clock, which all processes of a machine share. Waiting is `until` (a condition, a deadline) or `holds`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

from twisted.logger import globalLogBeginner, textFileLogObserver

import caterwaul
from benchmarks.processes import free_port
from caterwaul import ClusterManager
from caterwaul.cluster.supervisor import service
from caterwaul.managers.errors import SessionUnknown
from caterwaul.managers.listeners import SessionDestroyed
from caterwaul.managers.session import key_of
from caterwaul.managers.web.wsgi import SessionMiddleware
from caterwaul.membership.view import ViewChanged

T = TypeVar("T")

#: The command line of the interpreter that runs the tests, whether or not its scripts are on the path.
CATERWAUL = [sys.executable, "-c", "from caterwaul.cluster.cli import main; main()"]

_LAUNCH = Path(service.__file__).with_name("launch.py")
_END_S = 12.0  # a node says farewell within that
_FAST = {"heartbeat_interval_s": 0.25}


def until(condition: Callable[[], T], timeout_s: float = 15.0, what: str = "") -> T:
    """The first value of `condition()` that is true. Fails when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what or condition}"
        time.sleep(0.01)
    return value


def holds(condition: Callable[[], object], seconds: float) -> None:
    """Fails unless `condition()` is true all that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert condition()
        time.sleep(0.02)


def stands_still(pid: int) -> bool:
    """Whether each thread of this process has stopped, or the process has ended."""
    try:
        return all(stat.read_text().rpartition(")")[2].split()[0] in "TtZX" for stat in Path(f"/proc/{pid}/task").glob("*/stat"))
    except (FileNotFoundError, ProcessLookupError):
        return not os.path.exists(f"/proc/{pid}")  # else one of its threads has ended


class _Child:
    """A process of ours with its standard error in a file."""

    def __init__(self, command: Sequence[str], stdin: int = subprocess.DEVNULL, environ: Mapping[str, str] | None = None) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `end`)
        launch = [sys.executable, "-I", "-S", str(_LAUNCH), str(os.getpid()), *command]
        self._process = subprocess.Popen(launch, stdin=stdin, stdout=subprocess.PIPE, stderr=self._log, env=environ)

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: signal.Signals) -> float:
        """Returns when. A process that is stopped has stopped: until each of its threads has, it may still answer somebody."""
        now = time.monotonic()
        self._process.send_signal(number)
        if number == signal.SIGSTOP:
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)
        return now

    def kill(self) -> float:
        """SIGKILL, and wait. Returns when."""
        now = self.signal(signal.SIGKILL)
        self._process.wait(_END_S)
        return now

    def exit_code(self, timeout_s: float = _END_S) -> int:
        """How it ended by itself."""
        return self._process.wait(timeout_s)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def log(self) -> str:
        """Standard error so far."""
        return os.pread(self._log.fileno(), 1 << 20, 0).decode("utf-8", "replace")

    def end(self) -> None:
        if self.is_running:
            self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._log.close()


class Command(_Child):
    """`caterwaul ARGUMENT...`, started by the program `prefix`; as a context manager it ends with the block."""

    def __init__(self, *arguments: str, prefix: Sequence[str] = ()) -> None:
        path = [str(shutil.which(prefix[0])), *prefix[1:]] if prefix else []
        super().__init__([*path, *CATERWAUL, *arguments])

    def __enter__(self) -> Command:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()


class Node(_Child):
    """A `ClusterManager` with these settings in a process of its own. `do("command", ...)` calls `Served.command`.

    `wheel`: Caterwaul is taken from there. `namespace`: of the network it lives in.
    """

    def __init__(self, settings: dict[str, Any], wheel: Path | None = None, namespace: str = "") -> None:
        self.settings = settings
        self.name: str = settings["node"]["name"]
        environ = {**os.environ, "PYTHONPATH": str(wheel)} if wheel is not None else None
        inside = [str(shutil.which("ip")), "netns", "exec", namespace] if namespace else []
        super().__init__([*inside, sys.executable, __file__], stdin=subprocess.PIPE, environ=environ)
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        self._write(settings)
        self._about: dict[str, Any] | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What it said when it had started: uid and port."""
        if self._about is None:
            self._about = self.answer()
        return self._about

    @property
    def uid(self) -> str:
        uid: str = self.about["uid"]
        return uid

    def do(self, command: str, **keywords: Any) -> Any:
        self.tell(command, **keywords)
        return self.answer()

    def tell(self, command: str, **keywords: Any) -> None:
        """Begin a command; `answer` waits for its end."""
        assert self.about
        self._write([command, keywords])

    def answer(self, timeout_s: float = 30.0) -> Any:
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            raise AssertionError(f"{self.name} did not answer in {timeout_s:g} s: {self.log}") from None
        assert line, f"{self.name} has ended: {self.log}"
        answer = json.loads(line)
        assert "error" not in answer, f"{self.name}: {answer['error']}"
        return answer["value"]

    # shorthand

    @property
    def names(self) -> list[str]:
        names: list[str] = self.do("names")
        return names

    def write(self, values: dict[str, Any], session: str | None = None, **more: Any) -> dict[str, Any]:
        written: dict[str, Any] = self.do("write", session=session, values=values, **more)
        return written

    def read(self, session: str) -> dict[str, Any]:
        found: dict[str, Any] = self.do("read", session=session)
        return found

    def when_gone(self, uid: str) -> dict[str, Any] | None:
        """The view change that first was without this member, by this node's own report."""
        return next((change for change in self.do("changes") if uid in change["gone"]), None)

    def _write(self, what: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what).encode() + b"\n")
        self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # closed by `end`
            for line in self._process.stdout:
                self._answers.put(line)
        self._answers.put(b"")


class Cluster:
    """Nodes of one cluster, of a name and with a secret of its own, on loopback. Ends them all with the block."""

    def __init__(
        self,
        *,
        port: int = 0,
        name: str = "",
        channel: Mapping[str, Any] | None = None,
        manager: Mapping[str, Any] | None = None,
        security: Mapping[str, Any] | None = None,
        store: Mapping[str, Any] | None = None,
        **membership: Any,
    ) -> None:
        """`port`: of the multicast group; 0: one that nobody else uses. `channel`, `manager`, `security`, `store` and the other keywords: settings of these tables;
        `security={}`: in the clear."""
        self._directory = tempfile.TemporaryDirectory(prefix="caterwaul-real-")
        self.secret_file = Path(self._directory.name, "secret")
        if security is None:
            self.secret_file.touch(0o600)
            self.secret_file.write_text(secrets.token_urlsafe(32))
            security = {"secret_file": str(self.secret_file)}
        self._security = {"security": dict(security)} if security else {}
        self._channel = dict(channel or {})
        self._managers = {"managers": {"default": dict(manager)}} if manager else {}
        self._store = {"store": dict(store)} if store else {}
        self.name = name or f"real-{uuid.uuid4().hex[:12]}"
        self.membership = {"multicast_port": port or free_port(socket.SOCK_DGRAM), **_FAST, **membership}
        self.nodes: list[Node] = []

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for node in self.nodes:
            node.end()
        self._directory.cleanup()

    def start(
        self,
        name: str,
        port: int = 0,
        wheel: Path | None = None,
        domain: str = "",
        namespace: str = "",
        node: Mapping[str, Any] | None = None,
        security: Mapping[str, Any] | None = None,
        **membership: Any,
    ) -> Node:
        """One more; returns before it has started. `namespace`: of the network it lives in. `node`: more settings of that table; `security`: instead of the cluster's."""
        own = {"name": name, "port": port, **({"domain": domain} if domain else {}), **(node or {})}
        settings = {
            "node": own, "cluster": {"name": self.name}, "admin": {"socket": ""}, "membership": {**self.membership, **membership}, "channel": self._channel,
            **self._managers, **self._store, **(self._security if security is None else {"security": dict(security)} if security else {}),
        }  # fmt: skip
        started = Node(settings, wheel, namespace)
        self.nodes.append(started)
        return started

    def grow(self, names: str) -> list[Node]:
        """Start a node for each letter, and wait until all nodes see each other and are in sync."""
        new = [self.start(name) for name in names]
        self.meet()
        return new

    def meet(self, nodes: Iterable[Node] = ()) -> None:
        nodes = list(nodes) or self.nodes
        names = sorted(node.name for node in nodes)
        for node in nodes:
            until(lambda node=node: node.do("is_ready") and node.names == names, what=f"{node.name} sees {names} and is in sync")  # type: ignore[misc]


class Served:
    """The child's side: what `Node.do` can ask for."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.cluster = ClusterManager(**settings)
        self._changes: list[dict[str, Any]] = []
        self._writing: threading.Thread | None = None
        self._enough = threading.Event()
        self._rounds = 0
        self._ends: list[dict[str, Any]] = []
        self.cluster.on_view_changed(self._changed)
        self.cluster.start()
        self.manager = self.cluster.manager()

    def listen(self) -> None:
        """From now on the application here listens to ends."""
        self.manager.listen(SessionDestroyed, self._ended)

    def _ended(self, event: SessionDestroyed) -> None:
        self._ends.append({"id": event.event_id, "key": event.key.hex(), "reason": event.reason, "attributes": dict(event.attributes)})

    def ends(self) -> list[dict[str, Any]]:
        return self._ends

    def _changed(self, change: ViewChanged) -> None:
        before, after = set(change.before.by_uid), set(change.after.by_uid)
        self._changes.append({
            "at": time.monotonic(), "uids": sorted(uid.hex() for uid in after), "gone": [uid.hex() for uid in before - after],
            "clean": [uid.hex() for uid in change.clean], "names": sorted(member.name for member in change.after),
        })  # fmt: skip

    def about(self) -> dict[str, Any]:
        return {"uid": self.manager.me.uid.hex(), "port": self.manager.me.port, "versions": list(self.manager.me.versions), "path": caterwaul.__file__}

    def names(self) -> list[str]:
        return [member.name for member in self.cluster.members]

    def everyone(self) -> list[list[str]]:
        return [[member.name, member.domain] for member in self.cluster.everyone]

    def changes(self) -> list[dict[str, Any]]:
        return list(self._changes)

    def is_ready(self) -> bool:
        return self.cluster.is_ready

    def statistics(self) -> dict[str, Any]:
        return self.cluster.statistics()

    def write(self, session: str | None, values: dict[str, Any], acks: str | int | None = None) -> dict[str, Any]:
        opened = self.manager.open(session)
        opened.update(values)
        receipt = self.manager.commit(opened, acks=acks).wait()
        self.manager.release(opened)
        return {"id": opened.id, "satisfied": receipt.satisfied, "confirmed": sorted(receipt.confirmed), "unconfirmed": sorted(receipt.unconfirmed)}

    def fill(self, count: int) -> list[str]:
        """So many new sessions; their ids."""
        return [self.write(None, {"number": number, "text": "x" * 100})["id"] for number in range(count)]

    def read(self, session: str) -> dict[str, Any]:
        opened = self.manager.open(session)
        self.manager.release(opened)
        return {"unknown": opened.unknown, "values": dict(opened)}

    def login(self, principal: str, session: str | None = None) -> str:
        """The id of a session in which this one is logged in, and that all members have."""
        opened = self.manager.open(session)
        opened.cycle_id()
        opened.principal = principal
        self.manager.commit(opened, acks="all").wait()
        self.manager.release(opened)
        assert opened.id is not None
        return opened.id

    def hit(self, session: str, times: int, threads: int) -> list[str]:
        """In so many threads at once, so many requests each through the front of WSGI: each adds one to `n`, with no lock of its own. What they were answered."""

        def page(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            opened = environ["caterwaul.session"]
            opened["n"] = opened["n"] + 1
            start_response("200 OK", [])
            return [b""]

        application, answers = SessionMiddleware(page, self.manager), []

        def go_on() -> None:
            for _ in range(times):
                environ = {"HTTP_COOKIE": f"__Host-sid={session}", "PATH_INFO": "/"}
                application(environ, lambda status, headers, exc_info=None: answers.append(status[:3]))  # type: ignore[func-returns-value]

        workers = [threading.Thread(target=go_on) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return answers

    def add(self, session: str, times: int, threads: int) -> list[str]:
        """In so many threads at once, add one to `n` so many times each, under the session's lock; names of errors."""
        errors: list[str] = []

        def go_on() -> None:
            for _ in range(times):
                opened = self.manager.open(session)
                try:
                    with opened.lock(timeout_s=60.0):
                        opened["n"] = opened["n"] + 1
                except Exception as error:
                    errors.append(f"{type(error).__name__}: {error}")
                finally:
                    self.manager.release(opened)

        working = [threading.Thread(target=go_on) for _ in range(threads)]
        for thread in working:
            thread.start()
        for thread in working:
            thread.join()
        return errors

    def hang(self, session: str, lease_s: float) -> float:
        """Take the session's lock, and keep it. Returns when."""
        self.hung = self.manager.open(session)
        self.hung_lock = self.hung.lock(lease_s=lease_s)
        self.hung_lock.__enter__()
        return time.monotonic()

    def take(self, session: str, timeout_s: float) -> tuple[float, Any]:
        """Take the session's lock and give it back. Returns when, and what `n` was."""
        opened = self.manager.open(session)
        with opened.lock(timeout_s=timeout_s):
            taken = time.monotonic(), opened.get("n")
        self.manager.release(opened)
        return taken

    def sessions_of(self, principal: str) -> dict[str, Any]:
        return _result(self.cluster.sessions_of(principal))

    def end_session(self, key: str) -> bool:
        return _result(self.cluster.end_session(key))

    def end_all(self, principal: str | None) -> list[str]:
        """Who has confirmed it."""
        return sorted(self.manager.end_all(principal).wait().confirmed)

    def lives(self, session: str) -> bool:
        opened = self.manager.open(session)
        self.manager.release(opened)
        assert not opened.unknown
        return not opened.new

    def invalidate(self, session: str) -> list[str]:
        opened = self.manager.open(session)
        opened.invalidate()
        return list(self.manager.commit(opened).wait().confirmed)

    def digest(self, sessions: list[str]) -> str:
        """Of the contents of these sessions, as they are read here."""
        found = hashlib.sha256()
        for session in sessions:
            found.update(json.dumps(self.read(session), sort_keys=True).encode())
        return found.hexdigest()

    def begin_writing(self, sessions: list[str]) -> None:
        """Go on changing these sessions in a thread, about 500 times a second, ten in a round. What is unknown at the moment is left out, and does not count."""

        def go_on() -> None:
            round_ = written = 0
            while not self._enough.is_set():
                round_ += 1
                for session in sessions[round_ * 37 % len(sessions) :][:10]:
                    with contextlib.suppress(SessionUnknown):
                        self.write(session, {"round": round_})
                        written += 1
                self._enough.wait(0.02)
                self._rounds = written // 10

        self._writing = threading.Thread(target=go_on)
        self._writing.start()

    def rounds(self) -> int:
        return self._rounds

    def end_writing(self) -> int:
        self._enough.set()
        assert self._writing is not None
        self._writing.join()
        return self._rounds

    def count(self) -> int:
        return self.manager.count

    def holders(self, session: str) -> list[str]:
        """Names of the members that should hold it, the primary first, as this one sees it."""
        core, key = self.manager._core, key_of(session)
        entry = core.replica.get(key)
        names = {member.uid: member.name for member in core.placement.view}
        return [names[uid] for uid in core.placement.holders(key, entry.primary if entry is not None else b"")]

    def stop(self) -> None:
        self.cluster.stop()

    def drain(self) -> dict[str, Any]:
        report: dict[str, Any] = self.cluster.drain(20.0).result
        return report


def _result(fired: Any) -> Any:
    """Of a Deferred that has fired."""
    found: list[Any] = []
    fired.addCallback(found.append)
    return found[0]


def _serve(lines: Iterator[bytes]) -> None:
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    served = Served(json.loads(next(lines)))
    _say(served.about())
    for line in lines:
        command, keywords = json.loads(line)
        try:
            _say(getattr(served, command)(**keywords))
        except Exception as error:
            _say(f"{command}: {type(error).__name__}: {error}", "error")


def _say(value: Any, key: str = "value") -> None:
    sys.stdout.write(json.dumps({key: value}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _serve(iter(sys.stdin.buffer.readline, b""))
