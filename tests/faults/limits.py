"""What a process may use: descriptors (prlimit) and time on the processor (a cgroup of its own). Both are given back by `Undo`."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable
from functools import cache
from pathlib import Path

from .network import Undo

__all__ = ["cpu_quota", "cpu_used_s", "descriptors", "throttled", "why_not_quota"]

_V1, _V2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
_PERIOD_US = 100_000


def descriptors(pid: int, more: int) -> Undo:
    """The process may open about so many descriptors more than it has now; those it has stay open."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    limit = max(map(int, os.listdir(f"/proc/{pid}/fd"))) + 1 + more
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    return Undo(_unless_gone(lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, before)))


def cpu_used_s(pid: int) -> float:
    """Of all its threads, since its start."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@cache
def why_not_quota() -> str:
    """Why no process can be held to a part of a processor here; empty if one can."""
    try:
        group = _group("try")
    except OSError as error:
        return f"no cgroup for the processor's time can be made here: {error}"
    group.rmdir()
    return ""


def cpu_quota(pid: int, part: float) -> Undo:
    """The process gets this part of one processor, in slices of a tenth of a second."""
    group = _group(str(pid))
    quota_us = int(part * _PERIOD_US)
    if _is_v1():
        (group / "cpu.cfs_quota_us").write_text(str(quota_us))
    else:
        (group / "cpu.max").write_text(f"{quota_us} {_PERIOD_US}")
    home = _home(pid)
    (group / "cgroup.procs").write_text(str(pid))
    return Undo(group.rmdir, _unless_gone(lambda: home.write_text(str(pid))))


def throttled(pid: int) -> int:
    """How many times its quota was used up before its slice was over."""
    lines = (_home(pid).parent / "cpu.stat").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("nr_throttled"))


def _unless_gone(step: Callable[[], object]) -> Callable[[], None]:
    def tried() -> None:
        with contextlib.suppress(ProcessLookupError):  # it took its limits with it
            step()

    return tried


def _is_v1() -> bool:
    return (_V1 / "cgroup.procs").exists()


def _home(pid: int) -> Path:
    """Where the process is, by the file that moves others there."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if (_is_v1() and "cpu" in controllers.split(",")) or (not _is_v1() and not controllers):
            return (_V1 if _is_v1() else _V2) / path.lstrip("/") / "cgroup.procs"
    raise OSError("the process is in no cgroup")


def _group(name: str) -> Path:
    if not _is_v1():
        controllers = _V2 / "cgroup.subtree_control"
        if "cpu" not in controllers.read_text().split():
            controllers.write_text("+cpu")
    group = (_V1 if _is_v1() else _V2) / f"caterwaul-{os.getpid()}-{name}"
    group.mkdir()
    if not _is_v1() and not (group / "cpu.max").exists():
        group.rmdir()
        raise OSError("the controller cpu is not there")
    return group
