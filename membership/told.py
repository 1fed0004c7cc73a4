"""A waiter for one message to several members: done when each has confirmed it, or will not."""

from __future__ import annotations

from collections.abc import Callable, Iterable

__all__ = ["Told"]


class Told:
    """The channel's `Waiter`. `done` is called once; `check` asks whether there was anybody to wait for."""

    def __init__(self, uids: Iterable[bytes], done: Callable[[], None]) -> None:
        self.uids = set(uids)
        self._done: Callable[[], None] | None = done

    def check(self) -> None:
        if not self.uids and self._done is not None:
            done, self._done = self._done, None
            done()

    def confirmed(self, uid: bytes) -> None:
        self.uids.discard(uid)
        self.check()

    failed = confirmed
