"""Requests of one session, one after the other on one node: who has the turn, and who is next. A core without I/O.

Many frameworks and applications take it for granted that a session is not changed by two requests at the same time. Here two requests of one session merge; where that is not what is wanted,
they *take turns*, in the order in which they came. Whoever waits too long is turned away, and so is who comes when very many wait already. That holds on one node: for the whole cluster there is
`session.lock()`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

__all__ = ["WAITING_MAX", "Turn", "Turns"]

WAITING_MAX = 100  #: for one session: as many as one HTTP/2 connection may ask at once


class Turn:
    """A place in the queue of one session. `go(is_ours)` is called once: it is our turn, or it will never be."""

    __slots__ = ("go", "is_over", "key", "until")

    def __init__(self, key: bytes, until: float, go: Callable[[bool], None]) -> None:
        self.key = key
        self.until = until
        self.go = go
        self.is_over = False  #: given back, or turned away


class Turns:
    """Of one manager, guarded by its lock; times are seconds of a monotonic clock. Whoever's turn it is, or is not any more, is returned for the caller to tell."""

    def __init__(self) -> None:
        self._queues: dict[bytes, deque[Turn]] = {}  # the first has the turn
        self._waiting: dict[Turn, None] = {}  # all that wait; they have the same patience, so the first is the next to lose it
        self.waits = self.refused = 0

    def take_free(self, key: bytes) -> Turn | None:
        """The turn, if nobody has it."""
        return None if key in self._queues else self.take(key, 0.0, lambda is_ours: None, False)[0]

    def take(self, key: bytes, until: float, go: Callable[[bool], None], waits: bool) -> tuple[Turn | None, bool]:
        """(a place, whether it is the first). No place: somebody has the turn, and nobody is to wait, or too many do."""
        queue = self._queues.get(key)
        turn = Turn(key, until, go)
        if queue is None:
            self._queues[key] = deque((turn,))
            return turn, True
        if not waits or len(queue) > WAITING_MAX:
            self.refused += 1
            return None, False
        queue.append(turn)
        self._waiting[turn] = None
        self.waits += 1
        return turn, False

    def give_back(self, turn: Turn) -> Turn | None:
        """It is over, or was not wanted any more. Returns whose turn it is now. Repeats are harmless."""
        queue = self._queues.get(turn.key)
        if turn.is_over or queue is None:
            return None
        turn.is_over = True
        if queue[0] is not turn:
            self._leave(queue, turn)
            return None
        queue.popleft()
        if not queue:
            del self._queues[turn.key]
            return None
        following = queue[0]
        self._waiting.pop(following, None)
        return following

    def late(self, now: float) -> list[Turn]:
        """Those whose patience is over."""
        over = []
        for turn in self._waiting:
            if now < turn.until:
                break
            over.append(turn)
        for turn in over:
            turn.is_over = True
            self._leave(self._queues[turn.key], turn)
        self.refused += len(over)
        return over

    def _leave(self, queue: deque[Turn], turn: Turn) -> None:
        queue.remove(turn)
        self._waiting.pop(turn, None)

    @property
    def deadline(self) -> float | None:
        first = next(iter(self._waiting), None)
        return None if first is None else first.until

    def __len__(self) -> int:
        """Sessions that a request has the turn of."""
        return len(self._queues)
