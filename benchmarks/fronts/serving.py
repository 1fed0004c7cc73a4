"""The process that serves: a node as in `node.py`, and the application of one front: without sessions, with ours, over Redis."""

from __future__ import annotations

from importlib import import_module
from itertools import cycle, islice
from typing import Any

from ..node import Node, main, wait_until
from .driving import Driver
from .work import BEGIN, CHANGE, CHANGE_ONE, READ, Sessions

__all__ = ["BARE", "OURS", "REDIS", "Serving"]

BARE, OURS, REDIS = "bare", "ours", "redis"


class Serving(Node):
    def serve(self, front: str, sessions: int, redis_port: int = 0) -> dict[str, Any]:
        """Put the applications together, and begin so many sessions in each."""
        drive = import_module(f"benchmarks.fronts.{front}").drive
        places = {BARE: Sessions(), OURS: Sessions(manager=self._manager)} | ({REDIS: Sessions(redis_port=redis_port)} if redis_port else {})
        drivers = {name: drive(place) for name, place in places.items()}  # all, before the first request: Django then takes its settings as they are
        self._served = {name: _Served(driver, sessions, name != BARE) for name, driver in drivers.items()}
        return {}

    def time(self, place: str, what: str, requests: int) -> dict[str, Any]:
        """How long each request took, ns; CPU of this process until everything has been confirmed that it sent."""
        used = self.cpu()["cpu_s"]
        calls = self._served[place].time(what, requests)
        if place == OURS:
            wait_until(lambda: not self.statistics()["channel"]["backlog_bytes"], "empty outboxes", 0.005)
        return {"calls": calls, "cpu_s": self.cpu()["cpu_s"] - used}

    def wrong(self, place: str) -> dict[str, Any]:
        """Sessions that do not hold all that was changed."""
        return {"wrong": self._served[place].wrong()}

    def ids(self, every: int = 1) -> dict[str, Any]:
        return {"ids": [cookie.partition(".")[0] for cookie in self._served[OURS].cookies[::every]]}


class _Served:
    """One application and its sessions, which take turns."""

    def __init__(self, driver: Driver, sessions: int, has_sessions: bool) -> None:
        self._driver = driver
        self.cookies = [self._begun() for _ in range(sessions)] if has_sessions else ["none"]
        self._turns = cycle(range(len(self.cookies)))
        self._changes = [0] * len(self.cookies)

    def _begun(self) -> str:
        answer = self._driver.ask(BEGIN, None)
        if answer.status != 200 or answer.cookie is None:
            raise RuntimeError(f"no session begins: {answer}")
        return answer.cookie

    def time(self, what: str, requests: int) -> list[int]:
        turns = list(islice(self._turns, requests))
        if what in (CHANGE, CHANGE_ONE):
            for i in turns:
                self._changes[i] += 1
        return self._driver.time(what, [self.cookies[i] for i in turns])

    def wrong(self) -> int:
        return sum(int(self._driver.ask(READ, cookie).body) != changes for cookie, changes in zip(self.cookies, self._changes, strict=True))


if __name__ == "__main__":
    main(Serving)
