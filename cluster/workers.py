"""Workers of a prefork server as lite members beside their host's node.

A host has one configuration file. `caterwaul node` runs the node that holds the host's sessions with it; each worker's `ClusterManager` reads the same file, and
`node.workers = "lite"` in it makes that a member that only serves: no weight, any free port, and a name of its own (``NODE+PID``, unique on the host and gone
with the process). What others may find out by the name stays the node's: the route in cookies, as a balancer reaches the host and not one of its workers, and the
certificate. All that a host has once (admin addresses, the web port, the drain) is the node's too.
"""

from __future__ import annotations

from dataclasses import replace

from ..membership.member import WORKER_MARK
from .settings import Settings
from .tables import AdminSettings, NodeSettings, WebSettings

__all__ = ["as_worker", "is_worker"]


def is_worker(node: NodeSettings) -> bool:
    """Whether these settings are of a worker, made by `as_worker`. Its `port` is that of its host's node."""
    return WORKER_MARK in node.name


def as_worker(settings: Settings, pid: int) -> Settings:
    """The settings of process `pid` beside the node that `settings` are of. It asks that node first who else is there; other ways to find members stay, for
    the time when the node is down."""
    node, membership = settings.node, settings.membership
    if node.port:
        beside = f"[{node.host}]:{node.port}" if ":" in node.host else f"{node.host}:{node.port}"
        membership = replace(membership, seeds=[beside, *membership.seeds], discovery=[*dict.fromkeys(("static", *membership.discovery))])
    return replace(
        settings,
        node=replace(node, name=f"{node.name}{WORKER_MARK}{pid}", weight=0, drain_on_term=False),
        membership=membership,
        admin=AdminSettings(socket=""),
        web=WebSettings(),
    )
