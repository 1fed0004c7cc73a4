"""Questions and answers over the links: one request to several members, and a Deferred for their replies.

A receiver of the channel under the reserved name ``?``. Messages: ``["?", 0, id, name, op, body]`` asks the handler served
under `name`, ``["?", 1, id, body]`` replies, ``["?", 2, id, text]`` says that it failed. Small ones take the control lane.
Nothing is asked again: a member that does not answer, loses its link or has no such handler has failed, and the error
says which did and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..membership.channel import CONTROL, DATA, Channel, Message, Waiter
from ..membership.codec import encode
from ..membership.driver import Driver
from ..membership.errors import LocalError, RemoteError
from ..membership.member import Member
from .errors import ChannelError

__all__ = ["LOST", "RECEIVER", "UNCONNECTED", "Ended", "Handler", "RequestTable", "Requests"]

RECEIVER = "?"
#: Called with who asks, the op and the body; returns plain data or a Deferred of it. Raises `RemoteError` for a malformed body.
Handler = Callable[[Member, int, Any], Any]

_log = Logger()
_ASK, _REPLY, _FAILED = range(3)
_CONTROL_BYTES_MAX = 4096  # larger bodies would delay probes behind them
_REQUESTS_MAX = 65536  # under way at most; as many ids fit a burst of look-ups, and a leak is noticed
_ERROR_TEXT_MAX = 200
MODES = ("first", "majority", "all")
LOST, UNCONNECTED = "connection lost", "not connected"  #: why a member failed that may have a link again in a moment


@dataclass(frozen=True, slots=True)
class Ended:
    """Effect: this request is over. `error`: None when it got what it asked for."""

    number: int
    replies: dict[bytes, Any]
    failed: dict[bytes, str]
    error: str | None


@dataclass(slots=True)
class _Request:
    waiting: set[bytes]
    needed: int
    replies: dict[bytes, Any] = field(default_factory=dict)
    failed: dict[bytes, str] = field(default_factory=dict)


class RequestTable:
    """Core: which requests wait for whom, and until when."""

    def __init__(self) -> None:
        self._requests: dict[int, _Request] = {}
        self._deadlines: list[tuple[float, int]] = []  # a heap; those of requests that are over stay until they come up
        self._next = 0

    def begin(self, now: float, to: Sequence[bytes], mode: str, timeout_s: float) -> tuple[int, list[Ended]]:
        """The number of a new request. Raises `LocalError` for an unknown mode or too many requests."""
        if mode not in MODES:
            raise LocalError(f"request mode {mode!r}: one of {', '.join(MODES)}")
        if len(self._requests) >= _REQUESTS_MAX:
            raise LocalError(f"more than {_REQUESTS_MAX} requests are under way")
        waiting = set(to)
        needed = {"first": 1, "majority": len(waiting) // 2 + 1, "all": len(waiting)}[mode]
        self._next += 1
        self._requests[self._next] = _Request(waiting, needed)
        heappush(self._deadlines, (now + timeout_s, self._next))
        return self._next, self._judge(self._next)

    def replied(self, number: int, uid: bytes, body: Any) -> list[Ended]:
        request = self._requests.get(number)
        if request is None or uid not in request.waiting:
            return []  # too late, or never asked
        request.waiting.discard(uid)
        request.replies[uid] = body
        return self._judge(number)

    def failed(self, number: int, uid: bytes, why: str) -> list[Ended]:
        request = self._requests.get(number)
        if request is None or uid not in request.waiting:
            return []
        request.waiting.discard(uid)
        request.failed[uid] = why
        return self._judge(number)

    def lost(self, uid: bytes) -> list[Ended]:
        """The link to this member lost its connection: it will not reply."""
        return [ended for number in list(self._requests) for ended in self.failed(number, uid, LOST)]

    def tick(self, now: float) -> list[Ended]:
        ended: list[Ended] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, number = heappop(self._deadlines)
            request = self._requests.get(number)
            for uid in sorted(request.waiting) if request is not None else ():
                ended += self.failed(number, uid, "timed out")
        return ended

    def deadline(self) -> float | None:
        while self._deadlines and self._deadlines[0][1] not in self._requests:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def statistics(self) -> dict[str, int]:
        return {"requests_open": len(self._requests), "requests_total": self._next}

    def _judge(self, number: int) -> list[Ended]:
        request = self._requests[number]
        if len(request.replies) >= request.needed:
            error = None
        elif len(request.replies) + len(request.waiting) < request.needed:
            error = f"{len(request.replies)} of {request.needed} replies needed; {len(request.failed)} members failed"
        else:
            return []
        del self._requests[number]
        return [Ended(number, request.replies, request.failed, error)]


class _Sent:
    """Waiter of a question: that it cannot be delivered is known at once, that it was is not yet an answer."""

    __slots__ = ("_failed", "_number")

    def __init__(self, number: int, failed: Callable[[int, bytes], None]) -> None:
        self._number = number
        self._failed = failed

    def confirmed(self, uid: bytes) -> None:
        """Delivered."""

    def failed(self, uid: bytes) -> None:
        self._failed(self._number, uid)


class Requests:
    """Shell of `RequestTable`; the channel's receiver of the name ``?``. Reactor thread only."""

    def __init__(self, channel: Channel, clock: Any) -> None:
        self._channel = channel
        self._clock = clock
        self._table = RequestTable()
        self._driver = Driver(self._table, clock, self._perform)
        self._handlers: dict[str, Handler] = {}
        self._results: dict[int, Deferred[dict[bytes, Any]]] = {}

    def start(self) -> None:
        self._driver.start()

    def stop(self) -> None:
        self._driver.stop()

    def serve(self, name: str, handler: Handler) -> None:
        """Answer requests for `name` with this handler from now on."""
        self._handlers[name] = handler

    def request(self, to: Sequence[bytes], name: str, op: int, body: Any, mode: str = "first", timeout_s: float = 1.0) -> Deferred[dict[bytes, Any]]:
        """Ask these members; fires with the replies by uid as soon as `mode` (first, majority, all) is met.

        Fails with `ChannelError` as soon as it cannot be met. Cancelling gives up.
        """
        number, ended = self._table.begin(self._clock.seconds(), to, mode, timeout_s)

        def give_up(_: Deferred[Any]) -> None:
            self._results.pop(number, None)

        result: Deferred[dict[bytes, Any]] = Deferred(give_up)
        self._results[number] = result
        if not ended:
            payload = encode([RECEIVER, _ASK, number, name, op, body])
            self._channel.send(to, Message(RECEIVER, _lane(payload), payload, waiters=(_Sent(number, self._undelivered),)))
        self._driver.run(ended)
        return result

    def statistics(self) -> dict[str, int]:
        return self._table.statistics()

    # -- membership.channel.Receiver

    def received(self, peer: Member, message: list[Any], offset_ms: int) -> None:
        op = message[1]
        if len(message) < 4 or type(message[2]) is not int or message[2] < 0:
            raise RemoteError("request: malformed")
        number = message[2]
        if op == _ASK and len(message) == 6 and type(message[3]) is str and type(message[4]) is int:
            self._asked(peer, number, message[3], message[4], message[5])
        elif op == _REPLY and len(message) == 4:
            self._driver.run(self._table.replied(number, peer.uid, message[3]))
        elif op == _FAILED and len(message) == 4 and type(message[3]) is str:
            self._driver.run(self._table.failed(number, peer.uid, message[3][:_ERROR_TEXT_MAX]))
        else:
            raise RemoteError("request: malformed")

    def link_opened(self, peer: Member, resumed: bool) -> None:
        """Nothing is asked again."""

    def link_lost(self, peer: Member) -> None:
        self._driver.run(self._table.lost(peer.uid))

    def refill(self, peer: Member, keys: Iterable[bytes], waiters: Sequence[Waiter]) -> Iterable[Message]:
        """Requests speak of no keys."""
        return ()

    # -- inside

    def _asked(self, peer: Member, number: int, name: str, op: int, body: Any) -> None:
        handler = self._handlers.get(name)
        if handler is None:
            self._say(peer.uid, [RECEIVER, _FAILED, number, "nobody serves this here"])
            return

        def failed(failure: Failure) -> None:
            if failure.check(RemoteError) is None:
                _log.failure("the handler of requests for {name!r} failed", failure, name=name)
            self._say(peer.uid, [RECEIVER, _FAILED, number, failure.getErrorMessage()[:_ERROR_TEXT_MAX]])

        maybeDeferred(handler, peer, op, body).addCallback(lambda reply: self._say(peer.uid, [RECEIVER, _REPLY, number, reply])).addErrback(failed)

    def _say(self, uid: bytes, message: list[Any]) -> None:
        payload = encode(message)
        self._channel.send((uid,), Message(RECEIVER, _lane(payload), payload))

    def _undelivered(self, number: int, uid: bytes) -> None:
        self._driver.run(self._table.failed(number, uid, UNCONNECTED))

    def _perform(self, ended: Ended) -> None:
        result = self._results.pop(ended.number, None)
        if result is None:
            return
        if ended.error is None:
            result.callback(ended.replies)
        else:
            result.errback(ChannelError(ended.error, ended.failed, ended.replies))


def _lane(payload: bytes) -> int:
    return CONTROL if len(payload) <= _CONTROL_BYTES_MAX else DATA
