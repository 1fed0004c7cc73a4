"""The supervisor against an in-memory process reactor: what it starts, restarts, reports and stops."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from caterwaul.cluster.supervisor import Exited, Started, Supervisor


class _Process:
    def __init__(self, protocol: Any, pid: int) -> None:
        self.protocol = protocol
        self.pid = pid
        self.signals: list[str] = []

    def signalProcess(self, name: str) -> None:
        self.signals.append(name)

    def end(self, error: Exception) -> None:
        self.protocol.processEnded(Failure(error))


class _Reactor(Clock):
    def __init__(self) -> None:
        super().__init__()
        self.processes: list[_Process] = []

    def spawnProcess(self, protocol: Any, executable: str, args: list[str], **_: Any) -> _Process:
        process = _Process(protocol, 100 + len(self.processes))
        self.processes.append(process)
        protocol.makeConnection(process)
        return process


def _started() -> tuple[_Reactor, Supervisor, list[Any], list[tuple[str, str]]]:
    reactor, events, lines = _Reactor(), [], []
    supervisor = Supervisor(reactor, events.append, lambda name, line: lines.append((name, line)))
    supervisor.add("node1", ["/bin/node"])
    supervisor.add("node2", ["/bin/node"])
    supervisor.startService()
    return reactor, supervisor, events, lines


def test_starts_every_process_and_reports_its_pid() -> None:
    _, supervisor, events, _ = _started()
    assert events == [Started("node1", 100, 0), Started("node2", 101, 0)]
    assert (supervisor.pid("node1"), supervisor.pid("node2")) == (100, 101)


def test_a_killed_process_is_replaced_at_once_under_its_name() -> None:
    reactor, supervisor, events, _ = _started()
    reactor.advance(5)
    reactor.processes[0].end(ProcessTerminated(signal=9))
    assert supervisor.pid("node1") is None
    reactor.advance(0)
    assert isinstance(events[2], Exited)
    assert events[2].pid == 100
    assert events[3] == Started("node1", 102, 1)
    assert supervisor.restarts("node1") == 1


def test_a_process_that_dies_at_once_is_restarted_with_growing_pauses() -> None:
    reactor, _, _, _ = _started()
    reactor.processes[0].end(ProcessDone(None))
    reactor.advance(0.4)
    assert len(reactor.processes) == 2
    reactor.advance(0.1)
    assert len(reactor.processes) == 3
    reactor.processes[2].end(ProcessDone(None))
    reactor.advance(0.9)
    assert len(reactor.processes) == 3
    reactor.advance(0.1)
    assert len(reactor.processes) == 4


def test_stopping_waits_for_the_end_of_every_process_and_kills_the_deaf() -> None:
    reactor, supervisor, _, _ = _started()
    stopped: list[None] = []
    supervisor.stopService().addCallback(stopped.append)
    first, second = reactor.processes
    assert first.signals == second.signals == ["TERM"]
    first.end(ProcessDone(None))
    assert stopped == []
    reactor.advance(3)
    assert second.signals == ["TERM", "KILL"]
    second.end(ProcessTerminated(signal=9))
    assert stopped == [None]
    reactor.advance(60)
    assert len(reactor.processes) == 2


def test_output_is_passed_on_by_line_and_the_last_lines_are_kept() -> None:
    reactor, supervisor, _, lines = _started()
    reactor.processes[1].protocol.outReceived(b"one\ntw")
    reactor.processes[1].protocol.outReceived(b"o\n")
    reactor.processes[1].protocol.errReceived(b"\xff\n")
    assert lines == [("node2", "one"), ("node2", "two"), ("node2", r"b'\xff'")]
    assert supervisor.last_lines("node2")[-2:] == ["two", r"b'\xff'"]
    assert supervisor.last_lines("node1") == []
