"""What members say to each other about membership: one datagram, and seven messages on the control lane of their links.

The *heartbeat* is a CBOR array sent to the multicast group: who I am and where to dial me. It proves nothing; it only
causes a dial, or keeps a member that was proven before from being called silent. The control messages are the channel's
arrays ``["", op, ...]``: membership is the receiver of the empty name. Both are decoded strictly: exact lengths, exact
types, hosts that are IP addresses (a name would make us ask the DNS for anybody), bounded sizes, and `RemoteError` for
everything else. Op numbers and schemas are frozen by golden bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .channel import CONTROL, Message, Waiter
from .codec import decode, encode
from .errors import LocalError, RemoteError
from .member import UID_BYTES, Member, is_address

__all__ = [
    "DATAGRAM_BYTES_MAX", "HEARTBEAT_BYTES_MAX", "KNOWN_MAX", "RECEIVER", "Alive", "Announcement", "Ask", "Control", "Farewell", "Heartbeat",
    "Known", "Probe", "Verdict", "decode_control", "decode_heartbeat", "to_message",
]  # fmt: skip

RECEIVER = ""  #: the channel's name for membership

HEARTBEAT_BYTES_MAX = 252  # with the 47 bytes of sealing still under 300: 1.4 times as many in a receive buffer as 400 would be
DATAGRAM_BYTES_MAX = 1200  # what passes every path unfragmented; anything longer is not ours
KNOWN_MAX = 256  # addresses in one message; a longer list takes several

_MAGIC, _VERSION = "CW", 1
_TEXT_MAX = 255
_NONCE_END = 1 << 63


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """I am here: ``["CW", 1, cluster, uid, name, host, port, domain]``."""

    cluster: str
    uid: bytes
    name: str
    host: str
    port: int
    domain: str = ""

    @classmethod
    def of(cls, member: Member, cluster: str) -> Heartbeat:
        return cls(cluster, member.uid, member.name, member.host, member.port, member.domain)

    def encode(self) -> bytes:
        """Raises `LocalError` if cluster, host and domain are together too long for one small datagram."""
        data: bytes = encode([_MAGIC, _VERSION, self.cluster, self.uid, self.name, self.host, self.port, self.domain])
        if len(data) > HEARTBEAT_BYTES_MAX:
            raise LocalError(
                f"a heartbeat of this node would be {len(data)} bytes, at most {HEARTBEAT_BYTES_MAX} are sent: shorten the names of cluster, host or domain"
            )
        return data


def decode_heartbeat(data: bytes) -> Heartbeat:
    """Raises `RemoteError`, whatever the bytes."""
    if len(data) > HEARTBEAT_BYTES_MAX:
        raise RemoteError("heartbeat: too long")
    match decode(data):
        case [magic, version, cluster, uid, name, host, port, domain] if magic == _MAGIC and type(version) is int:
            if version != _VERSION:
                raise RemoteError(f"heartbeat: version {version} is unknown")
            _require(_is_text(cluster) and _is_uid(uid) and _is_text(name, 1) and _is_host(host) and _is_port(port) and _is_text(domain), "heartbeat")
            return Heartbeat(cluster, uid, name, host, port, domain)
    raise RemoteError("heartbeat: malformed")


@dataclass(frozen=True, slots=True)
class Probe:
    """Are you alive? The process answers `Alive` with the same nonce; its kernel cannot."""

    nonce: int

    def to_wire(self) -> list[Any]:
        return [RECEIVER, 1, self.nonce]


@dataclass(frozen=True, slots=True)
class Alive:
    """The answer to a probe."""

    nonce: int

    def to_wire(self) -> list[Any]:
        return [RECEIVER, 2, self.nonce]


@dataclass(frozen=True, slots=True)
class Ask:
    """I do not reach this member; do you?"""

    nonce: int
    target: bytes

    def to_wire(self) -> list[Any]:
        return [RECEIVER, 3, self.nonce, self.target]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to `Ask`."""

    nonce: int
    target: bytes
    reached: bool

    def to_wire(self) -> list[Any]:
        return [RECEIVER, 4, self.nonce, self.target, self.reached]


@dataclass(frozen=True, slots=True)
class Known:
    """Some members I know, as (uid, host, port): dial those you do not."""

    members: tuple[tuple[bytes, str, int], ...]

    def to_wire(self) -> list[Any]:
        return [RECEIVER, 5, [list(entry) for entry in self.members]]


@dataclass(frozen=True, slots=True)
class Farewell:
    """I leave on purpose; this incarnation does not come back."""

    def to_wire(self) -> list[Any]:
        return [RECEIVER, 6]


@dataclass(frozen=True, slots=True)
class Announcement:
    """What I announce has changed (payload, weight, labels); identity and address have not."""

    member: Member

    def to_wire(self) -> list[Any]:
        return [RECEIVER, 7, self.member.to_wire()]


Control = Probe | Alive | Ask | Verdict | Known | Farewell | Announcement


def to_message(control: Control, waiters: tuple[Waiter, ...] = ()) -> Message:
    return Message(RECEIVER, CONTROL, encode(control.to_wire()), waiters=waiters)


def decode_control(message: list[Any]) -> Control:
    """From the decoded array of a control message. Raises `RemoteError` if it is none of the seven."""
    match message:
        case [_, op, *arguments] if type(op) is int and op in _DECODERS:
            kind, decoder = _DECODERS[op]
            control = decoder(arguments)
            if control is None:
                raise RemoteError(f"membership: malformed {kind}")
            return control
    raise RemoteError("membership: unknown operation")


def _known(arguments: list[Any]) -> Known | None:
    match arguments:
        case [list(entries)] if len(entries) <= KNOWN_MAX and all(_is_entry(entry) for entry in entries):
            return Known(tuple((uid, host, port) for uid, host, port in entries))
    return None


def _one_nonce(kind: Callable[[int], Control]) -> Callable[[list[Any]], Control | None]:
    return lambda arguments: kind(arguments[0]) if len(arguments) == 1 and _is_nonce(arguments[0]) else None


def _ask(arguments: list[Any]) -> Ask | None:
    match arguments:
        case [nonce, target] if _is_nonce(nonce) and _is_uid(target):
            return Ask(nonce, target)
    return None


def _verdict(arguments: list[Any]) -> Verdict | None:
    match arguments:
        case [nonce, target, bool(reached)] if _is_nonce(nonce) and _is_uid(target):
            return Verdict(nonce, target, reached)
    return None


_DECODERS: dict[int, tuple[str, Callable[[list[Any]], Control | None]]] = {
    1: ("PROBE", _one_nonce(Probe)),
    2: ("ALIVE", _one_nonce(Alive)),
    3: ("ASK", _ask),
    4: ("VERDICT", _verdict),
    5: ("KNOWN", _known),
    6: ("FAREWELL", lambda arguments: None if arguments else Farewell()),
    7: ("MEMBER", lambda arguments: Announcement(Member.from_wire(arguments[0])) if len(arguments) == 1 else None),
}


def _require(good: bool, what: str) -> None:
    if not good:
        raise RemoteError(f"{what}: malformed")


def _is_text(value: object, minimum: int = 0) -> bool:
    return type(value) is str and minimum <= len(value) <= _TEXT_MAX and value.isprintable()


def _is_host(value: object) -> bool:
    return type(value) is str and _is_text(value, 1) and is_address(value)


def _is_uid(value: object) -> bool:
    return type(value) is bytes and len(value) == UID_BYTES


def _is_port(value: object) -> bool:
    return type(value) is int and 0 < value < 65536


def _is_nonce(value: object) -> bool:
    return type(value) is int and 0 <= value < _NONCE_END


def _is_entry(value: object) -> bool:
    return type(value) is list and len(value) == 3 and _is_uid(value[0]) and _is_host(value[1]) and _is_port(value[2])
