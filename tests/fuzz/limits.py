"""What one input may cost, and how that is found out on a machine that is busy with other things.

Time is the processor's, of this thread, and a slow input is measured three times more before it counts: a garbage collection that was due
anyway is nobody's fault. Memory is what Python allocated at most while the input was run (tracemalloc, so only of inputs that
look suspicious: the slowest, and those during which the process grew).
"""

from __future__ import annotations

import contextlib
import resource
import traceback
import tracemalloc
from collections.abc import Sequence
from time import thread_time

from caterwaul.membership.codec import decode, encode

from .targets import Run, Target

__all__ = ["CPU_MS_MAX", "MEMORY_BYTES_MAX", "Failed", "Feeder", "load", "measure", "save"]

CPU_MS_MAX = 50.0
MEMORY_BYTES_MAX = 100 << 20  # of a frame, at most 1 MiB
_GROWTH_KIB = 8 << 10  # of the process while one input ran: look closer
_AGAIN = 3


class Failed(Exception):
    """`inputs`: the one that failed, after those that its runner had been fed before."""

    def __init__(self, why: str, inputs: Sequence[bytes]) -> None:
        super().__init__(why)
        self.inputs = list(inputs)


def save(name: str, inputs: Sequence[bytes]) -> bytes:
    """The file that `--replay` reads."""
    data: bytes = encode([name, list(inputs)])
    return data


def load(data: bytes) -> tuple[str, list[bytes]]:
    name, inputs = decode(data)
    return name, inputs


def _run(run: Run, data: bytes, target: Target) -> float:
    """Milliseconds of CPU."""
    begin = thread_time()
    with contextlib.suppress(target.may_raise):
        run(data)
    return (thread_time() - begin) * 1000


def measure(target: Target, inputs: Sequence[bytes]) -> tuple[float, int]:
    """(milliseconds, bytes) of the last of these inputs: the least of several times, and the most memory."""
    times = []
    for _ in range(_AGAIN):
        run = target.fresh()
        for data in inputs[:-1]:
            _run(run, data, target)
        times.append(_run(run, inputs[-1], target))
    run = target.fresh()
    for data in inputs[:-1]:
        _run(run, data, target)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        _run(run, inputs[-1], target)
        return min(times), tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


class Feeder:
    """Feeds one target input after input. `slowest_ms` and `most_bytes` are of what was measured again."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._inputs: list[bytes] = []
        self._run: Run | None = None
        self._suspicious_ms = 0.5
        self._grown = _grown_kib()
        self.executions = 0
        self.refused = 0
        self.slowest_ms = 0.0
        self.most_bytes = 0

    def feed(self, data: bytes) -> None:
        """Raises `Failed`."""
        target = self._target
        if self._run is None or len(self._inputs) >= (target.lives or 1):
            if self._run is None or target.lives:
                self._run = target.fresh()
            self._inputs.clear()
        self._inputs.append(data)
        self.executions += 1
        begin = thread_time()
        try:
            self._run(data)
        except target.may_raise:
            self.refused += 1
        except Exception:
            raise Failed(traceback.format_exc(), self._inputs) from None
        took_ms, grown = (thread_time() - begin) * 1000, _grown_kib()
        if took_ms > self._suspicious_ms or grown - self._grown > _GROWTH_KIB:
            self._look_closer(took_ms)
        self._grown = _grown_kib()

    def _look_closer(self, took_ms: float) -> None:
        least_ms, most = measure(self._target, self._inputs)
        self._suspicious_ms = max(self._suspicious_ms, min(took_ms, CPU_MS_MAX))
        self.slowest_ms, self.most_bytes = max(self.slowest_ms, least_ms), max(self.most_bytes, most)
        if least_ms > CPU_MS_MAX:
            raise Failed(f"took {least_ms:.0f} ms of CPU, the least of {_AGAIN} times; at most {CPU_MS_MAX:.0f}", self._inputs)
        if most > MEMORY_BYTES_MAX:
            raise Failed(f"took {most >> 20} MiB of memory; at most {MEMORY_BYTES_MAX >> 20}", self._inputs)


def _grown_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
