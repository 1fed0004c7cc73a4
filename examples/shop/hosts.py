"""What an operator sees of the shop: its hosts, and on each the node that holds sessions and the workers that serve. Made of what every member knows of the others."""

from __future__ import annotations

import os
from typing import NamedTuple

from caterwaul import ClusterManager

__all__ = ["WORKERS", "Host", "hosts"]

WORKERS = 4  # of each host


class Host(NamedTuple):
    name: str
    node: int | None  #: process id of who holds the sessions; None: it is down
    workers: list[int]

    @property
    def pids(self) -> list[int]:
        return [*([self.node] if self.node is not None else []), *self.workers]

    @property
    def state(self) -> str:
        if not self.pids:
            return "down"
        if self.node is None:
            return "node down, workers go on"
        missing = WORKERS - len(self.workers)
        return "all there" if missing <= 0 else f"{missing} of {WORKERS} workers missing"


def hosts(cluster: ClusterManager) -> list[Host]:
    """All that should be there, by name, also those of which nothing is."""
    found = {name: Host(name, None, []) for name in os.environ["SHOP_HOSTS"].split()}
    for member in cluster.members:
        host, pid = found.get(member.route), member.payload.get("pid")
        if host is None or not isinstance(pid, int):
            continue
        if member.weight:
            found[member.route] = host._replace(node=pid)
        else:
            host.workers.append(pid)
    return list(found.values())
