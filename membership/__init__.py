"""Who is here: members, views, discovery, failure detection.

The names below are public; everything else may change. `MembershipService` is the running whole, `Group` its heart
without I/O, `View` what everybody above reacts to.
"""

from .channel import CONTROL, DATA, Channel, Message, Receiver, Waiter
from .detector import MemberCleared, MemberSuspected
from .errors import ClusterError, LocalError, RemoteError
from .group import EveryoneChanged, Group, Slept, Stopped
from .member import Member
from .sealing import DatagramSealer, PlainDatagrams, SealedDatagrams
from .secret import Secret
from .service import MembershipService
from .settings import MembershipSettings
from .view import View, ViewChanged

__all__ = [
    "CONTROL", "DATA", "Channel", "ClusterError", "DatagramSealer", "EveryoneChanged", "Group", "LocalError", "Member",
    "MemberCleared", "MemberSuspected", "MembershipService", "MembershipSettings", "Message", "PlainDatagrams", "Receiver",
    "RemoteError", "SealedDatagrams", "Secret", "Slept", "Stopped", "View", "ViewChanged", "Waiter",
]  # fmt: skip
