"""Bugs that only real sockets and limits show, besides those of the simulator's list."""

from __future__ import annotations

from typing import Any

from caterwaul.managers.settings import ManagerSettings
from caterwaul.membership import sealing

from ..sim import planted
from ..sim.planted import Bug, Patch

__all__ = ["BUGS"]


def _believe_repeats(patch: Patch) -> None:
    patch(sealing._Sender, "is_repeat", lambda self, counter: False)


def _raise_on_forgeries(patch: Patch) -> None:
    patch(sealing, "InvalidTag", ZeroDivisionError)


def _no_limit_on_sessions(patch: Patch) -> None:
    real = ManagerSettings.__init__

    def init(self: ManagerSettings, *values: Any, **named: Any) -> None:
        real(self, *values, **named)
        object.__setattr__(self, "sessions_max", 1 << 40)

    patch(ManagerSettings, "__init__", init)


BUGS = (
    *planted.BUGS,
    Bug("believe repeated datagrams", _believe_repeats, ()),
    Bug("raise on a forged datagram", _raise_on_forgeries, ()),
    Bug("no limit on sessions", _no_limit_on_sessions, ()),
)
