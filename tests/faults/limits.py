"""What a process may use: descriptors and addresses (prlimit), time on the processor and memory (a cgroup of its own). All are given back by `Undo`."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from ..real.processes import until
from .network import Undo

__all__ = ["MemoryCap", "address_space", "cpu_quota", "cpu_used_s", "descriptors", "resident_bytes", "throttled", "why_not_cgroup"]

_CGROUPS = Path("/sys/fs/cgroup")
_PERIOD_US = 100_000


def descriptors(pid: int, more: int) -> Undo:
    """The process may open about so many descriptors more than it has now; those it has stay open."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    limit = max(map(int, os.listdir(f"/proc/{pid}/fd"))) + 1 + more
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    return Undo(_unless_gone(lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, before)))


def address_space(pid: int, more_bytes: int) -> Undo:
    """The process may map about so many bytes more than it has now; what it asks for beyond that it does not get (`MemoryError`)."""
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    mapped = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.prlimit(pid, resource.RLIMIT_AS, (mapped + more_bytes, before[1]))
    return Undo(_unless_gone(lambda: resource.prlimit(pid, resource.RLIMIT_AS, before)))


def cpu_used_s(pid: int) -> float:
    """Of all its threads, since its start."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@cache
def why_not_cgroup(controller: str) -> str:
    """Why no process can be held to a part of the processor (``cpu``) or of memory (``memory``) here; empty if one can."""
    try:
        group = _group(controller, "try")
    except OSError as error:
        return f"no cgroup for {controller} can be made here: {error}"
    group.rmdir()
    return ""


def cpu_quota(pid: int, part: float) -> Undo:
    """The process gets this part of one processor, in slices of a tenth of a second."""
    quota_us = int(part * _PERIOD_US)
    return _confine(pid, "cpu", {"cpu.cfs_quota_us": str(quota_us)} if _is_v1("cpu") else {"cpu.max": f"{quota_us} {_PERIOD_US}"})


def throttled(pid: int) -> int:
    """How many times its quota was used up before its slice was over."""
    return _counted(_home(pid, "cpu") / "cpu.stat", "nr_throttled")


class MemoryCap(Undo):
    """The process may use about so many bytes more than it has now, and none of swap; the kernel kills it when it needs more."""

    def __init__(self, pid: int, more_bytes: int) -> None:
        limit, swap = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") if _is_v1("memory") else ("memory.max", "memory.swap.max")
        super().__init__(_confine(pid, "memory", {limit: str(more_bytes)}))
        self._group = _home(pid, "memory")  # what the process had before is counted where it was before
        if (self._group / swap).exists():  # else there is no swap to limit
            (self._group / swap).write_text(str(more_bytes) if _is_v1("memory") else "0")

    @property
    def most_bytes(self) -> int:
        """The most of it that was in use so far."""
        return int((self._group / ("memory.max_usage_in_bytes" if _is_v1("memory") else "memory.peak")).read_text())

    @property
    def has_killed(self) -> bool:
        return _counted(self._group / ("memory.oom_control" if _is_v1("memory") else "memory.events"), "oom_kill") > 0


def resident_bytes(pid: int) -> int:
    """Memory in use by the process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _unless_gone(step: Callable[[], object]) -> Callable[[], None]:
    def tried() -> None:
        with contextlib.suppress(ProcessLookupError):  # it took its limits with it
            step()

    return tried


def _counted(path: Path, what: str) -> int:
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.split()[0] == what)


# -- cgroups, of either version: one tree for each controller, or one for all


def _confine(pid: int, controller: str, limits: Mapping[str, str]) -> Undo:
    """The process lives in a group of its own, with these limits, and goes back to where it was."""
    group, home = _group(controller, str(pid)), _home(pid, controller) / "cgroup.procs"
    for name, limit in limits.items():
        (group / name).write_text(limit)
    (group / "cgroup.procs").write_text(str(pid))
    return Undo(lambda: until(lambda: _removed(group)), _unless_gone(lambda: home.write_text(str(pid))))


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:  # a process that was killed is still being taken apart
        return False
    return True


def _is_v1(controller: str) -> bool:
    return (_CGROUPS / controller / "cgroup.procs").exists()


def _home(pid: int, controller: str) -> Path:
    """The group that the process is in."""
    v1 = _is_v1(controller)
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") if v1 else not controllers:
            return (_CGROUPS / controller if v1 else _CGROUPS) / path.lstrip("/")
    raise OSError("the process is in no cgroup")


def _group(controller: str, name: str) -> Path:
    """A new one."""
    v1 = _is_v1(controller)
    if not v1:
        controllers = _CGROUPS / "cgroup.subtree_control"
        if controller not in controllers.read_text().split():
            controllers.write_text(f"+{controller}")
    group = (_CGROUPS / controller if v1 else _CGROUPS) / f"caterwaul-{os.getpid()}-{name}"
    group.mkdir()
    return group
