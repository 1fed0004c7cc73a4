"""The first two frames of a connection: who is there, do we speak alike, and does the link go on.

The dialler says HELLO, the acceptor answers HELLO or REFUSE. What may come in which state is one table; what is not in
it is an error. Only the form is judged here (and what makes talking pointless: another cluster, no common version, a
feature this end does not know, oneself); whether a link resumes or a second connection is one too many is decided by
`meeting`, which knows the links.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..membership.errors import RemoteError
from ..membership.member import PROTOCOL_MAX, PROTOCOL_MIN, Member
from .errors import HandshakeRefused
from .frames import HELLO, REFUSE, Frame, encode_hello

__all__ = ["ACCEPTED", "DIALLED", "EPOCH_BYTES", "Answer", "Greeting", "Handshake", "encode_answer", "encode_greeting"]

EPOCH_BYTES = 8
_FORMAT = 1  # value of the key "caterwaul": the form of HELLO itself
_FEATURES: frozenset[str] = frozenset()  # what a peer may list under "mandatory" and is known here: nothing is defined yet
_REFUSAL_CODES = ("cluster", "version", "mandatory", "self", "identity", "duplicate", "revoked", "malformed")

DIALLED, ACCEPTED, DONE = "dialled", "accepted", "done"


@dataclass(frozen=True, slots=True)
class Greeting:
    """The dialler's HELLO. `epoch`: its own; `fresh`: the one it takes if the link does not resume; `peer`: the acceptor's as it remembers it."""

    member: Member
    version: int  #: the highest that both ends know
    epoch: bytes | None
    fresh: bytes
    peer: bytes | None
    received: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Answer:
    """The acceptor's HELLO."""

    member: Member
    version: int
    resume: bool
    epoch: bytes
    received: tuple[int, int]


def encode_greeting(me: Member, cluster: str, *, epoch: bytes | None, fresh: bytes, peer: bytes | None, received: tuple[int, int]) -> bytes:
    return encode_hello(
        {
            "caterwaul": _FORMAT, "versions": [PROTOCOL_MIN, PROTOCOL_MAX], "cluster": cluster, "member": me.to_wire(),
            "epoch": epoch, "fresh": fresh, "peer": peer, "received": list(received),
        }
    )  # fmt: skip


def encode_answer(me: Member, cluster: str, answer: Answer) -> bytes:
    return encode_hello(
        {
            "caterwaul": _FORMAT, "version": answer.version, "cluster": cluster, "member": me.to_wire(),
            "resume": answer.resume, "epoch": answer.epoch, "received": list(answer.received),
        }
    )  # fmt: skip


class Handshake:
    """One end of one handshake. `state` is `DIALLED` or `ACCEPTED` at first, and `DONE` after one frame, whatever it was."""

    __slots__ = ("_cluster", "_uid", "state")

    def __init__(self, state: str, uid: bytes, cluster: str) -> None:
        self.state = state
        self._uid = uid
        self._cluster = cluster

    def receive(self, frame: Frame) -> Greeting | Answer:
        """What the other end said. Raises `HandshakeRefused` if it or this end will not talk, `RemoteError` if it makes no sense."""
        step = _TABLE.get((self.state, frame[0]))
        self.state = DONE
        if step is None:
            raise RemoteError(f"frame of kind {frame[0]} in the handshake")
        return step(frame[1], self._uid, self._cluster)


def _read_greeting(hello: dict[Any, Any], uid: bytes, cluster: str) -> Greeting:
    _check_format(hello, cluster)
    versions = hello.get("versions")
    if type(versions) is not list or len(versions) != 2 or any(type(number) is not int for number in versions):
        raise RemoteError("hello: 'versions' is missing or malformed")
    version = min(versions[1], PROTOCOL_MAX)
    if version < max(versions[0], PROTOCOL_MIN):
        raise HandshakeRefused("version", f"no common protocol version: {versions[0]}-{versions[1]} there, {PROTOCOL_MIN}-{PROTOCOL_MAX} here")
    fresh = _read_epoch(hello, "fresh")
    if fresh is None:
        raise RemoteError("hello: 'fresh' is missing")
    member = _read_member(hello, uid)
    if member.versions != tuple(versions):
        raise RemoteError("hello: 'versions' are not those of the member")
    return Greeting(member, version, _read_epoch(hello, "epoch"), fresh, _read_epoch(hello, "peer"), _read_received(hello))


def _read_answer(hello: dict[Any, Any], uid: bytes, cluster: str) -> Answer:
    _check_format(hello, cluster)
    version = hello.get("version")
    if type(version) is not int or not PROTOCOL_MIN <= version <= PROTOCOL_MAX:
        raise HandshakeRefused("version", f"the peer chose a protocol version outside of {PROTOCOL_MIN}-{PROTOCOL_MAX}")
    epoch, resume = _read_epoch(hello, "epoch"), hello.get("resume")
    if epoch is None or type(resume) is not bool:
        raise RemoteError("hello: 'epoch' or 'resume' is missing or malformed")
    member = _read_member(hello, uid)
    if version != member.version:
        raise HandshakeRefused("version", f"the peer chose protocol version {version}, and {member.version} is the highest that both know")
    return Answer(member, version, resume, epoch, _read_received(hello))


def _read_refusal(reason: str, uid: bytes, cluster: str) -> Greeting | Answer:
    code, _, text = reason.partition(": ")
    if code not in _REFUSAL_CODES:
        code, text = "malformed", reason
    raise HandshakeRefused(code, f"refused by the peer: {text[:300]}")


_TABLE: dict[tuple[str, int], Callable[[Any, bytes, str], Greeting | Answer]] = {
    (DIALLED, HELLO): _read_answer,
    (DIALLED, REFUSE): _read_refusal,
    (ACCEPTED, HELLO): _read_greeting,
}


def _check_format(hello: dict[Any, Any], cluster: str) -> None:
    if hello.get("caterwaul") != _FORMAT:
        raise HandshakeRefused("version", "not a HELLO of a format known here")
    theirs = hello.get("cluster")
    if theirs != cluster:
        raise HandshakeRefused("cluster", f"another cluster: {str(theirs)[:64]!r} there, {cluster!r} here")
    mandatory = hello.get("mandatory", [])
    if type(mandatory) is not list or any(type(name) is not str for name in mandatory):
        raise RemoteError("hello: 'mandatory' is malformed")
    unknown = [name[:64] for name in mandatory if name not in _FEATURES]
    if unknown:
        raise HandshakeRefused("mandatory", f"features not known here: {', '.join(unknown[:4])}")


def _read_member(hello: dict[Any, Any], uid: bytes) -> Member:
    member = Member.from_wire(hello.get("member"))
    if member.uid == uid:
        raise HandshakeRefused("self", "this is the process that dialled")
    return member


def _read_epoch(hello: dict[Any, Any], key: str) -> bytes | None:
    epoch = hello.get(key)
    if epoch is not None and (type(epoch) is not bytes or len(epoch) != EPOCH_BYTES):
        raise RemoteError(f"hello: {key!r} is malformed")
    return epoch


def _read_received(hello: dict[Any, Any]) -> tuple[int, int]:
    received = hello.get("received")
    if type(received) is not list or len(received) != 2 or any(type(n) is not int or not 0 <= n < 1 << 63 for n in received):
        raise RemoteError("hello: 'received' is missing or malformed")
    return received[0], received[1]
