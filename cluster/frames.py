"""Frames: a 4-byte big-endian length, then one CBOR array whose first element is the kind.

The two kinds that carry nearly all bytes (CONTROL and DATA) and ACK are written with fixed-width integers, so that a
header is one `struct` call and a payload is never copied to be framed. The decoder knows that layout and takes the
payload out with one slice; any other valid encoding of the same array is accepted through the general decoder. A frame
is a plain tuple ``(kind, ...)``: at hundreds of thousands a second anything richer costs more than the work.

Rules: the length is checked before anything is kept (64 KiB until a HELLO has passed and for everything but DATA, 1 MiB
for DATA); whatever the bytes, only `RemoteError` comes out; every byte is copied at most once while a frame is incomplete.
"""

from __future__ import annotations

from struct import Struct
from typing import Any

from ..membership.codec import decode, encode
from ..membership.errors import RemoteError

__all__ = [
    "ACK", "COMPRESSION_SHIFT", "CONTROL", "CONTROL_FRAME_MAX", "DATA", "DATA_FRAME_MAX", "HELLO", "MORE", "PIECE_HEADER_BYTES", "REFUSE",
    "Frame", "FrameDecoder", "encode_ack", "encode_hello", "encode_piece", "encode_refuse", "pack_piece_header",
]  # fmt: skip

HELLO, REFUSE, CONTROL, DATA, ACK = range(5)

MORE = 1  #: flag: more pieces of this message follow
COMPRESSION_SHIFT = 1  #: the two bits above MORE: how the whole message is compressed
_FLAGS_MAX = 5  # MORE | (zstd << COMPRESSION_SHIFT); compression 3 is not assigned

CONTROL_FRAME_MAX = 64 * 1024  #: what the length of any frame but DATA may say
DATA_FRAME_MAX = 256 * 1024  #: what the length of a DATA frame may say: the dearest takes less than 20 ms to decode
_REASON_MAX = 300  # characters of a reason; longer ones are cut when written

#: ``(HELLO, map)``, ``(REFUSE, reason)``, ``(CONTROL | DATA, number, now_ms, flags, payload)``, ``(ACK, control_n, data_n)``
Frame = tuple[Any, ...]

_LENGTH = Struct(">I")
_PIECE = Struct(">IHBQBQBBI")  # length, array of 5 + kind, u64 number, u64 now_ms, flags, bytes of u32 length
_ACK = Struct(">IHBQBQ")  # length, array of 3 + kind, u64, u64
_U64, _BYTES_U32 = 0x1B, 0x5A
_CONTROL_HEAD, _DATA_HEAD, _ACK_HEAD = 0x8500 | CONTROL, 0x8500 | DATA, 0x8300 | ACK
_PIECE_HEADS = {_CONTROL_HEAD: CONTROL, _DATA_HEAD: DATA}

PIECE_HEADER_BYTES = _PIECE.size
_ACK_BODY = _ACK.size - 4
_PIECE_BODY = PIECE_HEADER_BYTES - 4  # the part of a piece's length that is not payload

_SHAPES: dict[int, tuple[type, ...]] = {
    HELLO: (dict,), REFUSE: (str,), CONTROL: (int, int, int, bytes), DATA: (int, int, int, bytes), ACK: (int, int),
}  # fmt: skip


def encode_hello(content: dict[str, Any]) -> bytes:
    return _framed(encode([HELLO, content]))


def encode_refuse(reason: str) -> bytes:
    return _framed(encode([REFUSE, reason[:_REASON_MAX]]))


def encode_ack(control_n: int, data_n: int) -> bytes:
    return _ACK.pack(_ACK_BODY, _ACK_HEAD, _U64, control_n, _U64, data_n)


def pack_piece_header(kind: int, number: int, now_ms: int, flags: int, size: int) -> bytes:
    """What goes before `size` bytes of payload in a CONTROL or DATA frame."""
    return _PIECE.pack(_PIECE_BODY + size, 0x8500 | kind, _U64, number, _U64, now_ms, flags, _BYTES_U32, size)


def encode_piece(kind: int, number: int, now_ms: int, flags: int, payload: bytes) -> bytes:
    return pack_piece_header(kind, number, now_ms, flags, len(payload)) + payload


def _framed(body: bytes) -> bytes:
    assert len(body) <= CONTROL_FRAME_MAX
    return _LENGTH.pack(len(body)) + body


class FrameDecoder:
    """Turns a byte stream, however it is cut, into frames. After an error it is not used again."""

    __slots__ = ("_held", "_limit", "_need")

    def __init__(self) -> None:
        self._held = bytearray()  # the beginning of one frame, never more
        self._need = 4  # bytes of `_held` at which something can be done
        self._limit = CONTROL_FRAME_MAX

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes, in order. Raises `RemoteError`."""
        frames: list[Frame] = []
        at = self._complete(data, frames) if self._held else 0
        size = len(data)
        unpack_length, unpack_piece = _LENGTH.unpack_from, _PIECE.unpack_from
        while size - at >= 4:
            (length,) = unpack_length(data, at)
            end = at + 4 + length
            if length > self._limit:
                raise RemoteError(f"frame of {length} bytes, at most {self._limit} are allowed here")
            if end > size:
                self._need = 4 + length
                self._held += data[at:]
                return frames
            if length >= _PIECE_BODY:
                _, head, tag_a, number, tag_b, now_ms, flags, tag_c, payload_size = unpack_piece(data, at)
                kind = _PIECE_HEADS.get(head)
                if (
                    kind is not None and tag_a == _U64 and tag_b == _U64 and tag_c == _BYTES_U32 and flags <= _FLAGS_MAX
                    and payload_size == length - _PIECE_BODY and (kind == DATA or length <= CONTROL_FRAME_MAX)
                ):  # fmt: skip
                    frames.append((kind, number, now_ms, flags, data[at + PIECE_HEADER_BYTES : end]))
                    at = end
                    continue
            frames.append(self._general(data[at + 4 : end]))
            at = end
        if at < size:
            self._need = 4
            self._held += data[at:]
        return frames

    def _complete(self, data: bytes, frames: list[Frame]) -> int:
        """Finish the frame that earlier chunks began; returns how much of `data` that took."""
        held = self._held
        at = 0
        while True:
            part = data[at : at + self._need - len(held)]
            held += part
            at += len(part)
            if len(held) < self._need:
                return at
            (length,) = _LENGTH.unpack_from(held, 0)
            if length > self._limit:
                raise RemoteError(f"frame of {length} bytes, at most {self._limit} are allowed here")
            if len(held) == 4 + length:
                break
            self._need = 4 + length
        whole = bytes(held)
        self._held = bytearray()
        frames += self.feed(whole)
        return at

    def _general(self, body: bytes) -> Frame:
        """Any frame, checked by its kind's shape."""
        if len(body) > CONTROL_FRAME_MAX and body[1] != DATA:
            raise RemoteError(f"frame of {len(body)} bytes, at most {CONTROL_FRAME_MAX} are allowed for its kind")
        if len(body) == _ACK_BODY:
            _, head, tag_a, control_n, tag_b, data_n = _ACK.unpack(b"\0\0\0\0" + body)
            if head == _ACK_HEAD and tag_a == _U64 and tag_b == _U64:
                return ACK, control_n, data_n
        frame = decode(body)
        if type(frame) is not list or not frame or type(frame[0]) is not int:
            raise RemoteError("frame: not an array that begins with a kind")
        shape = _SHAPES.get(frame[0])
        if shape is None:
            raise RemoteError(f"frame of unknown kind {frame[0]}")
        fields = frame[1:]
        if len(fields) != len(shape) or any(type(value) is not kind for value, kind in zip(fields, shape, strict=True)):
            raise RemoteError(f"frame of kind {frame[0]} is malformed")
        if any(kind is int and not 0 <= value < 1 << 64 for value, kind in zip(fields, shape, strict=True)):
            raise RemoteError(f"frame of kind {frame[0]}: number out of range")
        if frame[0] in (CONTROL, DATA) and fields[2] > _FLAGS_MAX:
            raise RemoteError(f"frame of kind {frame[0]}: unknown flags")
        if frame[0] == HELLO:
            self._limit = DATA_FRAME_MAX
        return tuple(frame)
