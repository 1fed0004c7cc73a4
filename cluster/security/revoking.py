"""The list of revoked certificates goes from node to node, so that it is enough to give it to one.

    ["!", 0, number]   -> the list I have            (when a link opens, and to all when it is a new one)
    ["!", 1]           -> I have an older one, say yours
    ["!", 2, der]      -> this is mine

An authority has signed it, so it does not matter who says it; a higher number replaces a lower one. It does not go beyond members:
a node that is down hears of it within a round trip of coming back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ...membership.channel import DATA, Channel, Message, Waiter, fail
from ...membership.codec import encode
from ...membership.errors import RemoteError
from ...membership.member import Member
from .certificates import Revoked

__all__ = ["RECEIVER", "Revoking"]

RECEIVER = "!"
_HAVE, _ASK, _LIST = range(3)


class Revoking:
    """`Receiver` of these messages. `held()`: the list in use; `offered(der)`: checks one and takes it if it is newer."""

    def __init__(self, channel: Channel, held: Callable[[], Revoked], offered: Callable[[bytes], None]) -> None:
        self._channel = channel
        self._held = held
        self._offered = offered
        self._linked: set[bytes] = set()

    def announce(self) -> None:
        """Tell all which list is in use; who has a newer one says so."""
        self._say(sorted(self._linked), _HAVE, self._held().number)

    def received(self, peer: Member, message: list[Any], offset_ms: int) -> None:
        match message[1:]:
            case [0, int() as number] if number >= 0:
                held = self._held().number
                if number > held:
                    self._say([peer.uid], _ASK)
                elif number < held:
                    self._say([peer.uid], _HAVE, held)
            case [1]:
                self._say([peer.uid], _LIST, self._held().der)
            case [2, bytes() as der]:
                self._offered(der)
            case [int() as operation, *_] if operation > _LIST:
                pass  # of a later version
            case _:
                raise RemoteError("a message about revoked certificates is malformed")

    def link_opened(self, peer: Member, resumed: bool) -> None:
        self._linked.add(peer.uid)
        self._say([peer.uid], _HAVE, self._held().number)

    def link_lost(self, peer: Member) -> None:
        self._linked.discard(peer.uid)

    def refill(self, peer: Member, keys: Iterable[bytes], waiters: Sequence[Waiter]) -> Iterable[Message]:
        """Never asked: our messages name no keys."""
        fail(waiters, [peer.uid])
        return ()

    def _say(self, to: Sequence[bytes], *content: Any) -> None:
        if to:
            self._channel.send(to, Message(RECEIVER, DATA, encode([RECEIVER, *content])))
