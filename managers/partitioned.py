"""`PartitionedManager`: a session lives on members that its key names, whoever serves it.

For clusters without sticky balancing, for more sessions than one member holds, and for web servers that hold nothing
(*lite members*, weight 0) in front of members that do. Any member reads and writes any session: reads come from a near
cache that is told of changes, writes go to the holders and merge there. Hazelcast's map behind its session filter and the
GigaSpaces session space are the models; writes from several members merge here by attribute.
"""

from __future__ import annotations

from typing import Any

from ..membership.channel import Channel
from ..membership.view import View
from .base import SessionManager
from .placement import Placement, Ranked
from .settings import ManagerSettings

__all__ = ["PartitionedManager"]


class PartitionedManager(SessionManager):
    def __init__(self, name: str, channel: Channel, settings: ManagerSettings, **options: Any) -> None:
        def strategy(view: View, me: bytes) -> Placement:
            return Ranked(view, me, 1 + settings.backups)

        super().__init__(name, channel, settings, strategy, **options)
