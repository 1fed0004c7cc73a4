"""`BackupManager`: a session lives where it is served, with backups on other members.

For sticky balancers and many nodes: a write costs a delta to each backup, whatever the number of members. The two keepers
of the session's partition are the first backups, so any member finds any session in one round trip, and takes it over
when a browser comes to it. Tomcat's manager of that name is the model; there is no table of proxies here, and no member
knows of sessions that it neither serves nor backs up.
"""

from __future__ import annotations

from typing import Any

from ..membership.channel import Channel
from ..membership.view import View
from .base import SessionManager
from .placement import Placement, PrimaryAndBackups
from .settings import ManagerSettings

__all__ = ["BackupManager"]


class BackupManager(SessionManager):
    def __init__(self, name: str, channel: Channel, settings: ManagerSettings, **options: Any) -> None:
        def strategy(view: View, me: bytes) -> Placement:
            return PrimaryAndBackups(view, me, 1 + settings.backups)

        super().__init__(name, channel, settings, strategy, **options)
