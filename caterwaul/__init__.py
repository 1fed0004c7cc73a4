"""Caterwaul: in-memory HTTP session replication for Python web servers.

The names below are public. Web fronts are imported from where they are, `caterwaul.managers.web.wsgi` and its neighbours.
Importing this package does not import Twisted's reactor: a server may still fork.
"""

from . import requirements as _requirements  # noqa: F401  (first: it checks what the others import)
from .cluster.config import SettingsError
from .cluster.manager import ClusterManager
from .cluster.settings import Settings, load
from .managers.errors import LockLost, LockTimeout, NotConfirmed, SessionEnded, SessionError, SessionUnknown, ValueRefused
from .managers.listeners import AttributeChanged, Conflict, LoggedIn, SessionActivated, SessionCreated, SessionDestroyed, SessionPassivated
from .managers.merging_types import Counter, Max, MergingSet, Min
from .managers.values import ValueTypes
from .managers.web.cookies import CookieSettings
from .membership.errors import ClusterError, LocalError
from .membership.member import Member
from .membership.view import View, ViewChanged

__all__ = [
    "AttributeChanged", "ClusterError", "ClusterManager", "Conflict", "CookieSettings", "Counter", "LocalError", "LockLost", "LockTimeout", "LoggedIn", "Max", "Member", "MergingSet", "Min", "NotConfirmed",
    "SessionActivated", "SessionCreated", "SessionDestroyed", "SessionEnded", "SessionError", "SessionPassivated", "SessionUnknown", "Settings", "SettingsError", "ValueRefused", "ValueTypes", "View", "ViewChanged", "load",
]  # fmt: skip
