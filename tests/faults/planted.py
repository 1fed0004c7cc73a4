"""Bugs that only real sockets and limits show, besides those of the simulator's list."""

from __future__ import annotations

from caterwaul.managers import replica
from caterwaul.membership import sealing

from ..sim import planted
from ..sim.planted import Bug, Patch

__all__ = ["BUGS"]


def _believe_repeats(patch: Patch) -> None:
    patch(sealing._Sender, "is_repeat", lambda self, counter: False)


def _raise_on_forgeries(patch: Patch) -> None:
    patch(sealing, "InvalidTag", ZeroDivisionError)


def _sessions_are_not_counted(patch: Patch) -> None:
    patch(replica.Replica, "live", property(lambda self: 0, lambda self, count: None))


BUGS = (
    *planted.BUGS,
    Bug("believe repeated datagrams", _believe_repeats, ()),
    Bug("raise on a forged datagram", _raise_on_forgeries, ()),
    Bug("sessions are not counted", _sessions_are_not_counted, ()),
)
