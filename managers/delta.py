"""`DeltaManager`: every member of the domain holds every session, so any of them answers from memory.

For small clusters: a write costs a delta to each of the others. Tomcat's manager of that name is the model; here the
deltas have versions, so nothing is lost by reordering and nothing is overwritten by what is older.
"""

from __future__ import annotations

from typing import Any

from ..membership.channel import Channel
from .base import SessionManager
from .placement import EveryMember
from .settings import ManagerSettings

__all__ = ["DeltaManager"]


class DeltaManager(SessionManager):
    def __init__(self, name: str, channel: Channel, settings: ManagerSettings, **options: Any) -> None:
        super().__init__(name, channel, settings, EveryMember, **options)
