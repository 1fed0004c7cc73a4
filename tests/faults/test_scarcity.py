"""Too little of something: a link that is slow (F13), descriptors (F25), time on the processor (F33); see docs/faults.md."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from ..real.processes import holds, until
from .clients import Clients
from .lab import WEB_PORT, Lab, seconds_until, wait
from .limits import cpu_used_s, throttled, why_not_cgroup
from .network import why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "there are namespaces")

Measured = Callable[..., None]

OUTBOX_BYTES = 1 << 20
PAD_BYTES = 20_000


def test_f13_a_link_that_is_too_slow_for_what_is_written(measured: Measured) -> None:
    """About 12 Mbit/s of writes to a node behind 1 Mbit/s, 12 s: what is kept for it stays under `channel.outbox_max_bytes` (1 MiB here, 32 by
    default), the others are served as before (the matrix: within a fifth; here, on a machine that does other things, half of the answers within twice the time and
    99 of 100 within a second), and it has everything within 10 s of the end."""
    with Lab(3, channel__outbox_max_bytes=OUTBOX_BYTES) as lab, Clients(lab) as clients:
        lab.start()
        for name in "ab":
            clients.add(name, 2, query=f"&pad={PAD_BYTES}")
        begin, end = clients.watch(4.0)
        p50_before_s, before, most, begun = clients.history.quantile_s(begin, end, 0.5), lab.views("ab"), 0, time.monotonic()
        with lab.network.slow(2, "1mbit") as fault:
            while time.monotonic() < begun + 12.0:
                most = max(most, lab["a"].lag_bytes("c"), lab["b"].lag_bytes("c"))
            healed = time.monotonic()
            p50_s, p99_s = (clients.history.quantile_s(begun, healed, part) for part in (0.5, 0.99))
            dropped = sum(lab.each("channel", "messages_dropped").values())
            fault()
        settle_s, verdict = clients.settle("abc", 10.0, healed)
        changes = {name: number - before[name] for name, number in lab.views("ab").items()}
        measured(
            most_kept_bytes=most, messages_dropped=dropped, p50_before_s=p50_before_s, p50_s=p50_s, p99_s=p99_s, settle_s=settle_s,
            view_changes=max(changes.values()), found=verdict.found,
        )  # fmt: skip
        assert not clients.history.failed(begun, healed)
        assert OUTBOX_BYTES / 2 < most <= OUTBOX_BYTES * 1.1
        assert p50_s <= 2 * p50_before_s + 0.01
        assert p99_s <= 1.0


def test_f25_a_node_without_descriptors(measured: Measured) -> None:
    """It takes no more connections, uses less than half a processor meanwhile, keeps its links and its users, and serves again within 5 s."""
    with Lab(3) as lab, Clients(lab) as clients, ExitStack() as stack:
        lab.start()
        for name in "abc":
            clients.add(name)
        clients.watch(3.0)
        before, node = lab.views(), lab["b"]
        with node.descriptors(4):
            held = clients.in_network(_connect, node.managed, 40)
            for connection in held:
                stack.callback(connection.close)
            until(lambda: not _serves(clients, lab), 5.0, "the fault works")
            begun, used = time.monotonic(), cpu_used_s(node.process.pid)
            wait(begun + 4.0)
            cpu = (cpu_used_s(node.process.pid) - used) / (time.monotonic() - begun)
            assert not _serves(clients, lab), "still none"
            assert lab["a"].state("b") == lab["c"].state("b") == "in sync"
            assert not clients.history.failed(begun, time.monotonic()), "whose connections are open are served"
            freed = time.monotonic()
            stack.close()
            recovered_s = seconds_until(lambda: _serves(clients, lab), 5.0, "b takes connections again", freed)
        settle_s, verdict = clients.settle("abc", 10.0)
        measured(cpu=cpu, recovered_s=recovered_s, settle_s=settle_s, found=verdict.found)
        assert lab.views() == before
        assert cpu < 0.5


@pytest.mark.skipif(bool(why_not_cgroup("cpu")), reason=why_not_cgroup("cpu") or "there are cgroups")
def test_f33_a_node_with_a_tenth_of_a_processor(measured: Measured) -> None:
    """With users of its own, who want more, 20 s (the matrix: 5 minutes): it removes nobody, nobody removes it, and the others' users notice nothing."""
    with Lab(3) as lab, Clients(lab) as clients:
        lab.start()
        clients.add("a")
        clients.add("c", logs_out_after=40)
        clients.add("b", 6)
        clients.watch(3.0)
        before, begun = lab.views(), time.monotonic()
        with lab["b"].quota(0.1):
            used = cpu_used_s(lab["b"].process.pid)
            holds(lambda: lab["a"].names() == lab["c"].names() == ["a", "b", "c"], 20.0)
            cpu = (cpu_used_s(lab["b"].process.pid) - used) / (time.monotonic() - begun)
            assert throttled(lab["b"].process.pid) > 20, "the fault works"
            p99_s, own_p99_s = (clients.history.quantile_s(begun, time.monotonic(), 0.99, names) for names in ("ac", "b"))
            refused = clients.history.failed(begun, time.monotonic(), "ac")
        settle_s, verdict = clients.settle("abc", 10.0)
        slept = lab["b"].statistics()["membership"]["slept"]
        measured(cpu=cpu, p99_s=p99_s, own_p99_s=own_p99_s, settle_s=settle_s, slept=slept, found=verdict.found)
        assert lab.views() == before
        assert set(lab.each("membership", "disappeared").values()) == {0}
        assert not refused
        assert p99_s <= 1.0


def _connect(address: str, count: int) -> list[socket.socket]:
    """Connections that say nothing. The kernel makes them, whether or not the process takes them."""
    return [socket.create_connection((address, WEB_PORT), 5.0) for _ in range(count)]


def _serves(clients: Clients, lab: Lab) -> bool:
    try:
        return clients.get(lab["b"], "GET", "/read", timeout_s=1.0)[0] == 200
    except OSError:
        return False
