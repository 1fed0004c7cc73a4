"""A session manager in the middle of things, and one valid message of each of its operations.

It holds a session; a round of reconciling, a look-up and a question of expiry are under way; two peers are there. Whatever a peer says to it
raises a remote error or nothing, all it holds can be packed and told afterwards, and it goes on serving.
"""

from __future__ import annotations

import contextlib
from typing import Any

from caterwaul.managers.backup import BackupManager
from caterwaul.managers.base import SessionManager
from caterwaul.managers.delta import DeltaManager
from caterwaul.managers.heads import EXPIRED, INVALIDATED, Cover, Head, live_head
from caterwaul.managers.merging_types import Counter, Max, MergingSet
from caterwaul.managers.messages import HEAD_MARK, RECORD_MARK, TRUTH_MARK, Session
from caterwaul.managers.partitioned import PartitionedManager
from caterwaul.managers.placement import partition_of
from caterwaul.managers.record import Record
from caterwaul.managers.session import key_of
from caterwaul.managers.settings import ManagerSettings
from caterwaul.membership.channel import Message
from caterwaul.membership.codec import decode, encode
from caterwaul.membership.errors import RemoteError
from tests.doubles import Net

__all__ = ["KINDS", "OP_MAX", "Fixture", "receive", "valid"]

OP_MAX = 21  # one more than there is
KINDS: dict[str, type[SessionManager]] = {"delta": DeltaManager, "backup": BackupManager, "partitioned": PartitionedManager}
_OTHER = b"o" * 16


class Fixture:
    def __init__(self, kind: str = "delta") -> None:
        self.net = Net(3, ManagerSettings(backups=1), kind=KINDS[kind])
        one = self.net.managers[0]
        session = one.open_local(None)
        session["a"] = [1]
        session["n"], session["s"], session["m"] = Counter(3), MergingSet({1, "x"}), Max(4)
        one.commit(session)
        self.net.deliver()
        assert session.id is not None
        self.id = session.id
        self.key = key_of(session.id)
        self.manager = one
        self.core = one._core
        self.member = self.net.members[1]
        self.peer = self.member.uid
        self.core.link_opened(1000, self.peer, False)
        self.core.finding.ask(b"?" * 16, 1000)
        self._checked = 0

    def feed(self, message: object) -> None:
        """One message of the peer; whatever the channel lets through is an array [name, operation, ...]. Raises `RemoteError`."""
        if type(message) is list and len(message) >= 2 and message[0] == self.manager.name and type(message[1]) is int:
            self.manager.received(self.member, message, 7)

    def feed_bytes(self, data: bytes) -> None:
        self.feed(decode(data))
        self._checked += 1
        if self._checked % 50 == 0:
            self.check()

    def check(self) -> None:
        """All it holds can be packed and told, and it goes on working."""
        core, replica = self.core, self.core.replica
        live = dead = 0
        for key, entry in replica.entries():
            assert replica.get(key) is entry
            body = replica.body_of(entry)
            if body is not None:
                assert Record.unpack(body).pack() is not None
            if entry.head is None or not entry.head.state:
                live += 1
            else:
                dead += 1
        assert (live, dead) == (replica.live, replica.tombstones)
        core.tick(3000)
        fresh = self.manager.open_local(None)
        fresh["still"] = "works"
        self.manager.commit(fresh)
        assert dict(self.manager.open_local(fresh.id)) == {"still": "works"}


def receive(fixture: Fixture, message: object) -> None:
    """`feed`, where a remote error is as good."""
    with contextlib.suppress(RemoteError):
        fixture.feed(message)


def valid(fixture: Fixture) -> list[bytes]:
    """One message of each kind about the session that is held, and about others."""
    say, key, uid = fixture.core.say, fixture.key, fixture.peer
    held = Record.unpack(fixture.core.replica.body_of(fixture.core.replica.get(key)))
    record = Record()
    record.write(3, uid, {"a": b"\x81\x02", "b": None, **{name: held.registers[name][2] for name in "nsm"}})
    cover = Cover({uid: 1}, {uid: 5})
    round_ = fixture.core.entropy._rounds.get(uid)
    number, start, stop = (round_.number, round_.start, round_.stop) if round_ is not None else (1, 0, 4096)
    delta = [key, 4, 3, {fixture.core.me: 1}, {"a": b"\x01", "c": None}, 900]
    messages: list[Any] = [
        encode(["default", 1, uid, [delta, [_OTHER, 1, 0, {}, {"a": b"\x01"}, 900, 800]]]),
        encode(["default", 1, uid, [[b"p" * 16, 1, 0, {}, {}, 900, 800, fixture.core.me]]]),
        say.records([Session(key, live_head(2, uid, uid), 5, (uid, 9, 9), record.pack()), Session(_OTHER, Head(INVALIDATED, 3, uid, uid, (), None, 9), 5, (), None)]),
        say.records([Session(_OTHER, live_head(2, uid, uid, (fixture.core.me,)), 5, (uid, 9, 9), record.pack(), True)]),
        say.touches([(key, 50), (_OTHER, 60)]),
        say.heads([(key, Head(EXPIRED, 2, uid, uid, (), cover, 10)), (_OTHER, live_head(1, uid, uid))]),
        say.want([key, _OTHER]), say.offer(), say.inventory(1, 0, 4096, [(key, b"d" * 8), (_OTHER, b"e" * 8)]),
        say.covered(1, 4096, [key]), say.synced(1), say.lookup(key), say.answer(b"?" * 16, 0), say.ask([key, _OTHER]), say.access([(key, (uid, 8, 8), False)]),
        say.sums(1, 4094, b"s" * 16), say.differ(number, start, stop, [start]),
        say.inventory(1, 0, 4096, [(_OTHER, b"e" * 8)], [partition_of(_OTHER)]), say.covered(number, stop, [key, _OTHER], [b"d" * 8]),
        say.check([(key, HEAD_MARK + b"h" * 8), (_OTHER, RECORD_MARK + b"r" * 8)]), say.checked([(key, TRUTH_MARK + b"t" * 8)]), say.changed([key]), say.stored([(key, b"d" * 8, b"h" * 8)]),
    ]  # fmt: skip
    return [message.payload if isinstance(message, Message) else message for message in messages]
