"""The parts of a commit, each alone, in one process and one thread: the most a member could do if nothing else took time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.task import Clock

from caterwaul.managers.delta import DeltaManager
from caterwaul.managers.settings import ManagerSettings
from caterwaul.membership.channel import Message, Receiver
from caterwaul.membership.codec import decode
from caterwaul.membership.member import Member
from caterwaul.membership.view import View, ViewChanged

__all__ = ["commit_path"]

_SESSIONS = 1000
_ATTRIBUTES = 10


class _Desk:
    """A channel that keeps what it is given."""

    def __init__(self, me: Member) -> None:
        self.me = me
        self.messages: list[Message] = []

    def attach(self, name: str, receiver: Receiver, listens: bool = False) -> None: ...

    def detach(self, name: str) -> None: ...

    def send(self, to: Iterable[bytes], message: Message) -> None:
        self.messages.append(message)

    def close(self, uid: bytes, reason: str) -> None: ...

    def dial(self, host: str, port: int) -> None: ...

    def is_degraded(self, uid: bytes) -> bool:
        return False

    def degrade(self, uid: bytes) -> None: ...

    def wake(self, flush: Callable[[], None], lazily: bool = False) -> None: ...

    def run(self, flush: Callable[[], None]) -> None:
        flush()

    def hasten(self, flush: Callable[[], None]) -> bool:
        return False

    def now_ms(self) -> int:
        return int(time.monotonic() * 1000)


def commit_path(size: int, commits: int) -> dict[str, float]:
    """Microseconds per delta for each part, with an attribute of `size` bytes."""
    members = [Member(uid=bytes([i]) * 16, name=f"n{i}", host="127.0.0.1", port=i, payload={"managers": ["default"]}) for i in (1, 2)]
    view = View.of(1, members)
    desk, other = _Desk(members[0]), _Desk(members[1])
    writer, replica = (DeltaManager("default", each, ManagerSettings(), clock=Clock()) for each in (desk, other))
    for manager in (writer, replica):
        manager.view_changed(ViewChanged(View.of(0, [manager.me]), view, frozenset()))
    ids = []
    for _ in range(_SESSIONS):
        session = writer.open(None)
        for k in range(_ATTRIBUTES):
            session[f"a{k}"] = bytes(size)
        writer.commit(session)
        writer.release(session)
        ids.append(session.id)
    _carry(writer, desk, replica)
    values = [i.to_bytes(8, "big") + bytes(size - 8) for i in range(1, commits + 1)]
    result = {"commit_us": 0.0, "flush_us": 0.0, "decode_us": 0.0, "apply_us": 0.0, "bytes_a_delta": 0.0}
    for start in range(0, commits, _SESSIONS):
        began = time.perf_counter()
        for session_id, value in zip(ids, values[start : start + _SESSIONS], strict=False):
            session = writer.open(session_id)
            session["a3"] = value
            writer.commit(session)
            writer.release(session)
        result["commit_us"] += time.perf_counter() - began
        for part, amount in _carry(writer, desk, replica).items():
            result[part] += amount
    return {part: amount / commits * (1e6 if part.endswith("_us") else 1) for part, amount in result.items()}


def _carry(writer: DeltaManager, desk: _Desk, replica: DeltaManager) -> dict[str, float]:
    """Bring what was committed to the replica. Seconds of each part."""
    began = time.perf_counter()
    writer.flush()
    flushed = time.perf_counter()
    messages: list[list[Any]] = [decode(message.payload) for message in desk.messages]
    decoded = time.perf_counter()
    for message in messages:
        replica.received(writer.me, message, 0)
    applied = time.perf_counter()
    size = sum(len(message.payload) for message in desk.messages)
    desk.messages.clear()
    return {"flush_us": flushed - began, "decode_us": decoded - flushed, "apply_us": applied - decoded, "bytes_a_delta": float(size)}
