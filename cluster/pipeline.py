"""*The* order in which a message passes the stages, and why.

Outbound: the application's own stages first (they see the message as it was made), then compression (of the whole
message, once for all its receivers; cut pieces would compress worse), then cutting (what travels is then already small),
then the link numbers the pieces. Inbound is the mirror image.

A *parcel* is one piece on its way: ``(payload, flags, message or None)``; the message rides on its last piece only, where
its keys and waiters are needed. Parcels are shared by all links, as nothing in them belongs to one peer.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..membership.channel import Message
from .frames import COMPRESSION_SHIFT, CONTROL_FRAME_MAX, MORE, PIECE_HEADER_BYTES
from .stages import Stage
from .stages.compressing import compress, inflate
from .stages.cutting import cut

__all__ = ["PARCEL_COST", "Parcel", "Pipeline", "cost"]

Parcel = tuple["bytes | memoryview", int, "Message | None"]

PARCEL_COST = 128  #: bytes charged to an outbox for a parcel besides its payload (objects, header), so tiny messages are bounded too


def cost(parcels: Sequence[Parcel]) -> int:
    """Bytes an outbox is charged for these."""
    return sum(len(parcel[0]) + PARCEL_COST for parcel in parcels)


class Pipeline:
    """`stages`: the application's, in outbound order. Sizes in bytes."""

    def __init__(self, *, chunk_bytes: int, message_max_bytes: int, compress_above_bytes: int, stages: Sequence[Stage] = ()) -> None:
        self._piece_max = (min(chunk_bytes, CONTROL_FRAME_MAX - PIECE_HEADER_BYTES), chunk_bytes)
        self._message_max = message_max_bytes
        self._compress_above = compress_above_bytes
        self._stages = tuple(stages)

    def outbound(self, message: Message) -> list[Parcel]:
        """The parcels of a message, in order, for any number of links."""
        payload = message.payload
        for stage in self._stages:
            payload = stage.outbound(payload)
        how = 0
        if 0 < self._compress_above < len(payload):
            how, payload = compress(payload)
        flags = how << COMPRESSION_SHIFT
        piece_max = self._piece_max[message.lane]
        if len(payload) <= piece_max:
            return [(payload, flags, message)]
        pieces = cut(payload, piece_max)
        parcels: list[Parcel] = [(piece, flags | MORE, None) for piece in pieces[:-1]]
        parcels.append((pieces[-1], flags, message))
        return parcels

    def inbound(self, payload: bytes, flags: int) -> bytes:
        """The message's own bytes again. Raises `RemoteError`."""
        how = flags >> COMPRESSION_SHIFT
        if how:
            payload = inflate(how, payload, self._message_max)
        for stage in reversed(self._stages):
            payload = stage.inbound(payload)
        return payload
