"""The ordered, confirmed stream between two members; it outlives its connections.

Each lane numbers its frames from 1. A number belongs to its frame for ever: what was sent is kept until the peer has
confirmed it and goes out again, with the same number, when a new connection *resumes* the link. Confirmation is
cumulative and comes after the receiver has applied a frame, so a frame is applied exactly once as long as the link
lives, and when it does not, both ends know.

Whether it lives is decided by epochs: 8 random bytes per end, valid as long as this end has lost nothing it ever
numbered or received. A handshake resumes only if each end remembers the other's current epoch; in any other case both
take new ones and begin at 1, and what was under way is lost, with notice. An end that must discard (its outbox
overflowed while there was no connection, or a frame could not be applied) has no epoch until the next handshake; until
then it keeps nothing, as nothing could be delivered.

No clock and no I/O here: the connection asks for bytes with `pull` whenever its transport is writable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ..membership.channel import CONTROL as CONTROL_LANE
from ..membership.channel import DATA as DATA_LANE
from ..membership.channel import Message, Waiter
from ..membership.errors import RemoteError
from ..membership.member import Member
from .frames import CONTROL, MORE, PIECE_HEADER_BYTES, Frame, encode_ack, pack_piece_header
from .outbox import Outbox
from .pipeline import PARCEL_COST, Parcel
from .stages.cutting import Assembly

__all__ = ["Link"]

_LANES = (CONTROL_LANE, DATA_LANE)


class Link:
    """One end of a link. `member` is the other end; `connected` whether a connection carries it now.

    `dialled`: the connection was made by this end. Counters: frames and bytes in and out, repeats dropped.
    """

    __slots__ = (
        "_ack_due", "_again", "_assemblies", "_confirmed", "_numbered", "_unconfirmed", "bytes_in", "bytes_out", "connected", "dialled",
        "epoch", "frames_in", "frames_out", "member", "messages_in", "messages_out", "outbox", "peer_epoch", "received", "repeats", "settled_at",
    )  # fmt: skip

    def __init__(self, member: Member, *, outbox_max_bytes: int, message_max_bytes: int) -> None:
        self.member = member
        self.outbox = Outbox(outbox_max_bytes)
        self.connected = False
        self.dialled = False
        self.settled_at = 0.0  #: from then on a second connection replaces this one instead of being a duplicate
        self.epoch: bytes | None = None
        self.peer_epoch: bytes | None = None
        self.received = [0, 0]  #: per lane, the number up to which frames were applied here
        self._assemblies = (Assembly(message_max_bytes), Assembly(message_max_bytes))
        self._numbered = [0, 0]  # per lane, the last number given
        self._confirmed = [0, 0]  # per lane, the number up to which the peer has applied
        self._unconfirmed: tuple[deque[Parcel], deque[Parcel]] = (deque(), deque())  # numbers _confirmed + 1 .. _numbered
        self._again: tuple[deque[Parcel], deque[Parcel]] = (deque(), deque())  # the end of _unconfirmed that this connection has yet to repeat
        self._ack_due = False
        self.messages_in = self.messages_out = self.frames_in = self.frames_out = self.bytes_in = self.bytes_out = self.repeats = 0

    # -- the life of the link

    def resumes(self, peer_epoch: bytes | None, my_epoch: bytes | None, confirmed: Sequence[int]) -> bool:
        """Whether the peer, whose epoch is `peer_epoch` and which remembers `my_epoch` of us, can go on where this end is.

        Not if it has applied more than was sent (`confirmed`, per lane): it is not where it says it is.
        """
        return (
            self.epoch is not None and self.epoch == my_epoch and self.peer_epoch is not None and self.peer_epoch == peer_epoch
            and all(confirmed[lane] <= self._numbered[lane] for lane in _LANES)
        )  # fmt: skip

    def resume(self, confirmed: Sequence[int]) -> list[Message]:
        """A new connection carries on, as `resumes` allowed. `confirmed`: what the peer has applied, per lane; returns the messages that confirms."""
        messages = self.acknowledged(confirmed[CONTROL_LANE], confirmed[DATA_LANE])
        for lane in _LANES:
            self._again[lane].clear()
            self._again[lane].extend(self._unconfirmed[lane])
        self.connected = True
        self._ack_due = True
        return messages

    def begin(self, epoch: bytes, peer_epoch: bytes) -> list[Waiter]:
        """A new connection starts at number 1. Returns the waiters of everything lost."""
        waiters = self.discard()
        self.epoch, self.peer_epoch = epoch, peer_epoch
        self.connected = True
        return waiters

    def lost(self) -> None:
        """The connection is gone; the link stays."""
        self.connected = False

    def discard(self) -> list[Waiter]:
        """Forget all that is under way and the epoch with it, so that the next handshake cannot resume. Returns its waiters."""
        waiters = [waiter for sent in self._unconfirmed for parcel in sent if parcel[2] is not None for waiter in parcel[2].waiters]
        waiters += self.outbox.discard()
        for lane in _LANES:
            self._unconfirmed[lane].clear()
            self._again[lane].clear()
            self._assemblies[lane].clear()
            self.received[lane] = self._numbered[lane] = self._confirmed[lane] = 0
        self._ack_due = False
        self.epoch = self.peer_epoch = None
        return waiters

    # -- outbound

    def put(self, parcels: Sequence[Parcel], message: Message, size: int) -> Sequence[Waiter]:
        """Queue a message (`size`: its `cost`). Returns waiters that will never be confirmed: its own, or everybody's."""
        outbox = self.outbox
        if self.epoch is None:
            return message.waiters
        if not self.connected and outbox.is_full(size) and not (message.keys and outbox.is_dirty):
            return [*self.discard(), *message.waiters]
        self.messages_out += 1
        outbox.put(parcels, message, size)
        return ()

    def pull(self, now_ms: int, budget: int) -> bytes:
        """Frames to write now, about `budget` bytes of them: an ACK that is due, then control, then data. Empty: there is nothing."""
        parts: list[bytes | memoryview] = []
        if self._ack_due:
            self._ack_due = False
            parts.append(encode_ack(self.received[CONTROL_LANE], self.received[DATA_LANE]))
        for lane in _LANES:
            if self._again[lane]:
                budget = self._pull_again(lane, now_ms, budget, parts)
            queue = self.outbox.queues[lane]
            if not queue or budget <= 0:
                continue
            kind, number, unconfirmed, flags = CONTROL + lane, self._numbered[lane], self._unconfirmed[lane], 0
            while queue and budget > 0:
                parcel = queue.popleft()
                payload, flags, _ = parcel
                unconfirmed.append(parcel)
                number += 1
                size = len(payload)
                parts.append(pack_piece_header(kind, number, now_ms, flags, size))
                parts.append(payload)
                budget -= size + PIECE_HEADER_BYTES
            self._numbered[lane] = number
            self.outbox.begun[lane] = bool(flags & MORE)
        data = b"".join(parts)
        self.frames_out += (len(parts) + 1) // 2
        self.bytes_out += len(data)
        return data

    def _pull_again(self, lane: int, now_ms: int, budget: int, parts: list[bytes | memoryview]) -> int:
        again = self._again[lane]
        while again and budget > 0:
            number = self._numbered[lane] - len(again) + 1
            payload, flags, _ = again.popleft()
            parts.append(pack_piece_header(CONTROL + lane, number, now_ms, flags, len(payload)))
            parts.append(payload)
            budget -= len(payload) + PIECE_HEADER_BYTES
        return budget

    def acknowledged(self, control_n: int, data_n: int) -> list[Message]:
        """The peer has applied up to these numbers. Returns the messages with waiters that this confirms, in order. Raises `RemoteError`."""
        messages: list[Message] = []
        freed = 0
        for lane, upto in ((CONTROL_LANE, control_n), (DATA_LANE, data_n)):
            count = upto - self._confirmed[lane]
            if count <= 0:
                continue  # nothing new, or older than what another connection told
            unconfirmed, again = self._unconfirmed[lane], self._again[lane]
            if count > len(unconfirmed):
                raise RemoteError(f"acknowledges frame {upto} of lane {lane}, the last one sent is {self._numbered[lane]}")
            self._confirmed[lane] = upto
            for _ in range(count):
                payload, _flags, message = unconfirmed.popleft()
                freed += len(payload) + PARCEL_COST
                if message is not None and message.waiters:
                    messages.append(message)
            while len(again) > len(unconfirmed):
                again.popleft()  # applied already: this connection need not repeat it
        self.outbox.backlog -= freed
        return messages

    def statistics(self) -> dict[str, int]:
        return {
            "messages_in": self.messages_in, "messages_out": self.messages_out, "frames_in": self.frames_in, "frames_out": self.frames_out,
            "bytes_in": self.bytes_in, "bytes_out": self.bytes_out, "repeats": self.repeats, "messages_dropped": self.outbox.dropped,
        }  # fmt: skip

    @property
    def is_awaiting(self) -> bool:
        """Whether frames were sent that the peer has not confirmed."""
        return bool(self._unconfirmed[CONTROL_LANE] or self._unconfirmed[DATA_LANE])

    # -- inbound

    def accept(self, frame: Frame) -> bytes | None:
        """The message that a CONTROL or DATA frame completes, or None (a repeat, or more is to come).

        The caller applies it and then calls `applied`. Raises `RemoteError` for a gap in the numbers and for a message that is too large.
        """
        kind, number, _, flags, payload = frame
        lane = kind - CONTROL
        expected = self.received[lane] + 1
        if number != expected:
            if number > expected:
                raise RemoteError(f"frame {number} of lane {lane} where {expected} is next")
            self.repeats += 1
            self._ack_due = True
            return None
        assembly = self._assemblies[lane]
        if flags & MORE:
            assembly.add(payload, True)
            self.applied(frame)
            return None
        if assembly:
            return assembly.add(payload, False)
        return payload  # type: ignore[no-any-return]

    def applied(self, frame: Frame) -> None:
        """The message that this frame completed is applied (a piece that is kept counts as applied)."""
        self.received[frame[0] - CONTROL] = frame[1]
        self._ack_due = True
