"""The demo's page as a node serves it: ``web.application = "caterwaul.cluster.demo.app:application"``."""

from __future__ import annotations

from typing import Any

from ..node import Node
from .page import MANAGER, DemoPage

__all__ = ["application"]


class _Facts:
    """What the page shows of the node that serves it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._manager = node.managers[MANAGER]

    @property
    def name(self) -> str:
        return self._node.name

    @property
    def ready(self) -> bool:
        return self._node.is_ready

    def members(self) -> list[dict[str, Any]]:
        me = self._manager.me.uid
        return [
            {
                "name": member.name,
                "uid": member.uid.hex(),
                "pid": member.payload.get("pid"),
                "self": member.uid == me,
                "in_sync": self.ready if member.uid == me else self._manager.is_in_sync_with(member.uid),
            }
            for member in sorted(self._node.view, key=lambda member: (member.name, member.uid))
        ]

    def sessions(self) -> int:
        return self._manager.count

    def save(self, session: Any, acks: str | None) -> tuple[list[str], list[str]]:
        receipt = self._manager.commit(session, acks)
        if receipt.needs_wait:
            receipt.wait()
        return list(receipt.confirmed), list(receipt.unconfirmed)


application = DemoPage(lambda environ: _Facts(environ["caterwaul.node"]))
