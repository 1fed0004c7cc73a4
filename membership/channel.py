"""The seam between those who decide what to say (membership, managers) and the one who carries it (cluster).

Membership and managers are *receivers*: they attach under a name and get decoded messages of that name, in order per
lane, from authenticated members. They speak through a `Channel`. Both are protocols, so the simulator and the unit tests
put something else in their place, and `cluster` is imported by nobody below it.

A message is one CBOR array ``[receiver name, op, ...]``, encoded once whatever the number of members it goes to. It
travels on one of two lanes: CONTROL (small, urgent: probes, heads, tombstones) overtakes DATA (deltas, records).
Each lane of a link is numbered, in order, without repeats, and resent after a reconnect.

Confirmation is free: a peer acknowledges a frame after it has *applied* it, so a message's waiter is told by the
cumulative acks of its link.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from .member import Member

__all__ = ["CONTROL", "DATA", "Channel", "Message", "Receiver", "Waiter", "confirm", "fail"]

CONTROL, DATA = 0, 1


class Waiter(Protocol):
    """Somebody waits for members to have applied a message. Called in the reactor's thread, at most once per member and message."""

    def confirmed(self, uid: bytes) -> None:
        """The member has applied it."""

    def failed(self, uid: bytes) -> None:
        """The member will not confirm it: its link ended for good or was reset, or it left."""


class Message:
    """One message on its way out. Shared by all links it goes to, so nobody changes it after `Channel.send`.

    `payload`: the encoded array. `keys`: of sessions it speaks of (or whatever brings it back); when an outbox is over its bound the
    message is dropped there, its keys become *dirty*, and the receiver is asked for their current state later
    (`Receiver.refill`). A message without keys is never dropped: its sender bounds it (requests, credits).
    `waiters`: told when a member has applied it.
    """

    __slots__ = ("keys", "lane", "payload", "receiver", "waiters")

    def __init__(self, receiver: str, lane: int, payload: bytes, keys: Sequence[bytes] = (), waiters: Sequence[Waiter] = ()) -> None:
        self.receiver = receiver
        self.lane = lane
        self.payload = payload
        self.keys = keys
        self.waiters = waiters

    def __repr__(self) -> str:
        return f"<Message {self.receiver!r} lane={self.lane} {len(self.payload)} B keys={len(self.keys)}>"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Message)
            and (self.receiver, self.lane, self.payload) == (other.receiver, other.lane, other.payload)
            and list(self.keys) == list(other.keys)
        )

    __hash__ = None  # type: ignore[assignment]


def confirm(messages: Iterable[Message], uid: bytes) -> None:
    """This member has applied these messages. Reactor's thread."""
    for message in messages:
        for waiter in message.waiters:
            waiter.confirmed(uid)


def fail(waiters: Iterable[Waiter], uids: Iterable[bytes]) -> None:
    """None of these members will confirm. Reactor's thread."""
    for waiter in waiters:
        for uid in uids:
            waiter.failed(uid)


class Receiver(Protocol):
    """Membership, or one session manager. All calls come in the reactor's thread."""

    def received(self, peer: Member, message: list[Any], offset_ms: int) -> None:
        """A message ``[name, op, ...]`` from an authenticated member, decoded and otherwise unchecked.

        `offset_ms` turns the sender's clock into ours: ``ours = theirs + offset_ms`` (monotonic milliseconds; the flight
        time counts as if it were none). Raises `RemoteError` if it breaks the schema; then nothing of it was applied,
        and the channel closes the connection.
        """

    def link_opened(self, peer: Member, resumed: bool) -> None:
        """A link to this member is up. Not `resumed`: numbering began anew on both sides, what was under way is lost: reconcile."""

    def link_lost(self, peer: Member) -> None:
        """The link's connection is gone; it may come back (resumed or not)."""

    def refill(self, peer: Member, keys: Iterable[bytes], waiters: Sequence[Waiter]) -> Iterable[Message]:
        """The outbox to `peer` dropped messages of these keys and now has room: their current state, as messages.

        `waiters` are those of the dropped messages; hand them to the last message returned, or fail them.
        """


class Channel(Protocol):
    """What cluster offers to receivers. In the reactor's thread, except `wake`, `hasten` and `now_ms`."""

    @property
    def me(self) -> Member: ...

    def attach(self, name: str, receiver: Receiver, listens: bool = False) -> None:
        """Messages of this name go to this receiver. Announces it to the members (``payload["managers"]``) if it is a manager's, and, when it `listens`,
        that the application here wants to hear of the ends of its sessions (``payload["ends"]``). Again, to announce something else."""

    def detach(self, name: str) -> None: ...

    def send(self, to: Iterable[bytes], message: Message) -> None:
        """Queue for each of these uids. Never blocks, never raises for a peer; an unknown uid fails the message's waiters at once."""

    def close(self, uid: bytes, reason: str) -> None:
        """Drop the link and forget its state (the member left, or is dead)."""

    def dial(self, host: str, port: int) -> None:
        """Try to meet whoever is at this address; success shows as `link_opened`, refusal is silent."""

    def is_degraded(self, uid: bytes) -> bool:
        """No live link, or a confirmation timed out and nothing has been confirmed since: nobody waits for it."""

    def degrade(self, uid: bytes) -> None:
        """A confirmation by this member timed out."""

    def wake(self, flush: Callable[[], None], lazily: bool = False) -> None:
        """Any thread: run `flush` in the reactor's thread soon, after what was to be run before. The caller coalesces (calls once until it has run).
        `lazily`: nobody waits for it, so a millisecond does not matter."""

    def run(self, flush: Callable[[], None]) -> None:
        """Run `flush` now, as one step: what it sends leaves together, and nobody else's comes in between."""

    def hasten(self, flush: Callable[[], None]) -> bool:
        """Any thread: run `flush` now, in this thread, if all links are idle and no other thread is at work here; its messages leave at once.

        `flush` may call `send` and nothing else here. False: it was not run, use `wake`.
        """

    def now_ms(self) -> int:
        """Any thread: monotonic milliseconds of this process, the clock of `offset_ms`."""
