"""How much memory this process may use, by what the system says: the default of `memory_max_bytes`."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

__all__ = ["memory_bytes"]


@cache
def memory_bytes(root: str = "/") -> int:
    """What this process may use: the least that its cgroups and the machine say. 0: nobody says."""
    found = []
    with suppress(ValueError, OSError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError):
        for line in Path(root, "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                found += _limits(Path(root, "sys/fs/cgroup"), path, "memory.max")
            elif "memory" in controllers.split(","):
                found += _limits(Path(root, "sys/fs/cgroup/memory"), path, "memory.limit_in_bytes")
    return min((limit for limit in found if limit > 0), default=0)


def _limits(mount: Path, path: str, name: str) -> list[int]:
    """Of this group and all around it; in a container its own is mounted at the root, whatever the path."""
    found = []
    group = mount / path.lstrip("/")
    for folder in {mount, group, *(parent for parent in group.parents if parent.is_relative_to(mount))}:
        with suppress(OSError, ValueError):
            found.append(int((folder / name).read_text()))  # "max" is no number: no limit
    return found
