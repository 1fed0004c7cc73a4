"""The demo as users run it: real processes, real signals. Fewer clients than by default, the same story."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest


def _python(call: str) -> list[str]:
    """What the command line does for `caterwaul demo`, without its lower limits of clients and writes."""
    return [
        sys.executable,
        "-c",
        f"import sys; from pathlib import Path; from caterwaul.cluster.demo.command import run_check, run_demo; from caterwaul.cluster.demo.nodes import Layout; sys.exit({call})",
    ]


def _wait_end(pidfds: list[int], timeout_s: float) -> int:
    """How many of these processes have not ended in that time."""
    waiting = list(pidfds)
    while waiting:
        ended, _, _ = select.select(waiting, [], [], timeout_s)
        if not ended:
            break
        waiting = [each for each in waiting if each not in ended]
    return len(waiting)


def test_the_check_loses_nothing_and_its_last_line_is_the_result() -> None:
    run = subprocess.run(_python("run_check(Layout(), 20, 800, None, False)"), capture_output=True, text=True, timeout=150)
    lines = run.stdout.splitlines()
    assert lines, run.stderr
    result = json.loads(lines[-1])
    assert run.returncode == 0, run.stderr
    assert result["ok"] is True
    assert (result["lost"], result["foreign"], result["unread"]) == (0, 0, 0)
    assert result["nodes"] == 3
    assert result["writes"] >= 800
    assert result["writes_acknowledged"] >= 320
    assert 0 < result["failover_ms"]["p50"] <= result["failover_ms"]["p99"]
    assert 0 < result["detection_ms"] <= 3000
    assert result["rejoin_ms"] <= result["sync_ms"]
    assert result["pause_detection_ms"] >= 2000, "a stopped process is dropped for its silence, not at once"


def test_the_stories_with_backups() -> None:
    """One after the other: each is up to seven nodes, and all of them at once would measure how long a process waits for its turn."""
    for layout, rolling, nodes in (
        ("Layout(nodes=5, manager='backup')", False, 5),
        ("Layout(nodes=4, manager='backup', backups=1)", True, 4),
        ("Layout(nodes=5, manager='partitioned')", False, 5),
        ("Layout(data=4, web=3, manager='partitioned')", False, 7),
    ):
        run = subprocess.run(_python(f"run_check({layout}, 20, 800, None, False, {rolling})"), capture_output=True, text=True, timeout=240)
        lines = run.stdout.splitlines()
        assert lines, run.stderr
        result = json.loads(lines[-1])
        assert run.returncode == 0, (layout, run.stderr)
        assert (result["lost"], result["foreign"], result["unread"]) == (0, 0, 0), layout
        assert result["nodes"] == nodes
        if rolling:
            assert result["failed_requests"] == 0


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux 5.3")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_demo_prints_its_url_and_leaves_no_process_behind_however_it_ends(number: signal.Signals, tmp_path: Path) -> None:
    demo = subprocess.Popen(_python(f"run_demo(Layout(), 0, Path({str(tmp_path / 'logs')!r}))"), stdout=subprocess.PIPE, text=True)
    pidfds: list[int] = []
    try:
        assert demo.stdout is not None
        url, pids = "", []
        for line in demo.stdout:
            url = url or "".join(re.findall(r"^  (http://\S+)$", line))
            pids += [int(pid) for pid in re.findall(r"kill -9 (\d+)", line)]
            if "Ctrl-C" in line:
                break
        assert url
        assert len(pids) == 3
        pidfds = [os.pidfd_open(pid) for pid in pids]
        with urlopen(url, timeout=10) as answer:
            assert "Kill this node" in answer.read().decode()
        os.kill(pids[0], signal.SIGSTOP)  # a node that hears nothing must end too
        demo.send_signal(number)
        assert demo.wait(20) == (-signal.SIGKILL if number == signal.SIGKILL else 0)
        assert _wait_end(pidfds, 10) == 0
        assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["node1.log", "node2.log", "node3.log"]
    finally:
        demo.kill()
        demo.wait()
        if demo.stdout is not None:
            demo.stdout.close()
        for pidfd in pidfds:
            os.close(pidfd)


def test_a_port_in_use_is_named_in_one_line() -> None:

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = subprocess.run(_python(f"run_demo(Layout(), {port}, None)"), capture_output=True, text=True, timeout=30)
    assert run.returncode == 1
    assert run.stderr.startswith(f"port {port}, asked for with --port, cannot be used: ")
    assert len(run.stderr.splitlines()) == 1
