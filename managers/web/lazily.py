"""Something made at its first use, once in each process.

Servers fork: what a node needs, a reactor's thread above all, does not survive that. So an application that is loaded before
the fork (gunicorn's `preload_app`, Django's settings) says how its node is made, and each process makes its own at its first
request. What a parent had made is not used in the child; making it there raises what says why it cannot be.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import Lock
from typing import Any, Generic, TypeVar
from weakref import WeakSet

__all__ = ["Lazily"]

T = TypeVar("T")

_all: WeakSet[Lazily[Any]] = WeakSet()


def _after_fork() -> None:
    for one in list(_all):
        one.forget()


os.register_at_fork(after_in_child=_after_fork)  # once: what is registered there stays for ever


class Lazily(Generic[T]):
    """Call it for what `make()` gave in this process. Any thread; what `make` raises is raised, and the next call tries again."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: list[T] = []
        self._lock = Lock()
        _all.add(self)

    def __call__(self) -> T:
        made = self._made
        if not made:
            with self._lock:
                if not made:
                    made.append(self._make())
        return made[0]

    @property
    def made(self) -> T | None:
        """What this process has by now."""
        return self._made[0] if self._made else None

    def forget(self) -> None:
        """Whatever was made is not used any more. In a forked child this has happened."""
        self._made = []
        self._lock = Lock()  # whoever held it is not here
