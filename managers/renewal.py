"""Ids that are replaced by themselves when they are old, and how requests with the old one find the session meanwhile.

A session's record moves to a new key as it is, versions and all; the old key keeps its copy for a grace, marked with where it went (`RENEWED`). A request with the old id
is given the session under its new one. Parallel requests that still write to the old key lose nothing: what comes there is merged into the new record,
by everybody who holds both, else by who leads the old one; merging is what makes two copies one, whatever their keys.
The new record says where it came from (`BEFORE`), so who has that and an old key without its mark, which travels by itself and may be lost with who made it, sets the mark. Who leads a new key
that a member replaced which is lost asks for the old one.
A logout or login with the old id, by a member that had not heard, ends the new one: whoever learns of both sees to it.

The new id is made of the old one and a *seed* that the session's copies keep, not from anything new, and so is the new id's seed: so two members that renew at once make the same one, and the two
sides of a partition the same ones, however often. Everybody who is shown the old id can tell the new one, and nobody else can, neither a member without the old id nor a thief without the seed. The first
seed is random, and each login makes another. The grace is an age of the session, so no clock takes part.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from ..membership.codec import decode, encode
from ..membership.effects import Send
from ..membership.errors import RemoteError
from ..membership.member import Member
from .attributes import Attributes, key_of
from .changes import KEY_BYTES
from .entry import Destroyed, Ended, Entry, InUse, Outcome, is_whole
from .heads import COUNTER_MAX, EXPIRED, INVALIDATED, LIVE, Head, live_head
from .limits import read_limit
from .messages import Session, Speaker
from .placement import Placement, partition_of
from .record import BEFORE, FIRST, ID_AGE, RENEWED, SEED, Record, Register
from .replica import Replica

__all__ = ["SEED_BYTES", "Renewals", "Renewed", "first_key", "id_age_ms", "id_marks", "next_id", "next_seed", "read_renewed"]

SEED_BYTES = 16
_LOOK_EVERY_MS = 60_000
_LEFT_MAX = 256  # a look-up each
_TOLD_MAX = 500  # a record each, in one tick
_TELL_MS = 1000  # by then a mark that is only late has come
_OWN = (RENEWED, SEED, ID_AGE, BEFORE)  # of the old key; the new one has its own


class Renewed(NamedTuple):
    """Of an old key: where its session went, and at what age of the session the old id ends, ms."""

    key: bytes
    until_ms: int

    def pack(self) -> bytes:
        return encode(list(self))


class _Link(NamedTuple):
    """Of an old key, as the new one's record says: the mark that it has or should have, and until when that is remembered, our ms."""

    to: bytes
    mark: Register
    until_ms: int


def read_renewed(registers: Mapping[str, Register]) -> Renewed | None:
    """None: it went nowhere, or a peer said what means nothing."""
    register = registers.get(RENEWED)
    return None if register is None else _unpacked(register[2])


def _unpacked(value: bytes | None) -> Renewed | None:
    if value is None:
        return None
    try:
        wire = decode(value)
    except RemoteError:
        return None
    if type(wire) is not list or len(wire) < 2 or type(wire[0]) is not bytes or len(wire[0]) != KEY_BYTES or type(wire[1]) is not int:
        return None
    return Renewed(wire[0], wire[1]) if 0 <= wire[1] <= COUNTER_MAX else None


def next_id(session_id: str, seed: bytes) -> str:
    """The id that takes this one's place."""
    digest = hmac.digest(seed, b"caterwaul renewal\0" + session_id.encode("ascii"), "sha256")
    return urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")


def next_seed(key: bytes, seed: bytes) -> bytes:
    """That of the id after the one of this key."""
    return hmac.digest(seed, b"caterwaul renewal seed\0" + key, "sha256")[:SEED_BYTES]


def id_age_ms(registers: Mapping[str, Register]) -> int:
    """How old the session was when it got this id."""
    register = registers.get(ID_AGE)
    return (read_limit(register[2]) or 0) if register is not None else 0


def first_key(session: Attributes) -> bytes:
    """The key that the session had before any of its ids was replaced: what stands for it whatever its id (`locking.py`)."""
    first = session.hidden(FIRST)
    return first if first is not None and len(first) == KEY_BYTES else session.key


def id_marks(seed: bytes, age_ms: int) -> dict[str, bytes | None]:
    """What an id that is new begins with, of a session that is so old."""
    return {SEED: seed, ID_AGE: max(0, age_ms).to_bytes(8, "big")}


def _is_willed(head: Head) -> bool:
    """Whether this is the end of the session, or a login, under its old id; not that the old id's grace was over: who ends it for that has the mark, and says where the session went.
    (No times are compared: members do not agree on when a session began by what a message took that said so, which may be long.)"""
    return head.final and not head.holders


class Renewals:
    """A part of the manager's core. `old`: keys here that lead elsewhere, or did a moment ago. `late`: of these, what was written to here although that is so.
    `on_absent(old, new)`: called where such a session is not here. `over`: of sessions that had ended here when we heard where they went, (where, who said so): these are to end as well.
    `links`: old keys of which the new one was here lately."""

    def __init__(self, me: bytes, speaker: Speaker, replica: Replica) -> None:
        self._me = me
        self._say = speaker
        self._replica = replica
        self.old: set[bytes] = set()
        self.late: set[bytes] = set()
        self.over: list[tuple[bytes, bytes]] = []
        self.on_absent: Callable[[bytes, bytes], object] = lambda old, new: None
        self.links: dict[bytes, _Link] = {}
        self._untold: dict[bytes, int] = {}  # old keys that were marked here because of the new one's record -> when to tell others; 0: that is not known yet
        self._look_ms = 0
        self._now_ms = -(2**62)  # of the last tick

    def of(self, key: bytes) -> Renewed | None:
        """Where the live session of this key went, as far as is known here."""
        entry = self._replica.get(key) if key in self.old else None
        record = self._replica.record(key, entry) if entry is not None and entry.body is not None else None
        return None if record is None else read_renewed(record.registers)

    def step(self, session_id: str) -> tuple[str, bytes] | None:
        """(next id, its key), if this one leads there and that is known here, alive or ended."""
        key = key_of(session_id)
        renewed = self.of(key)
        entry = self._replica.get(renewed.key) if renewed is not None else None
        if renewed is None or entry is None or not is_whole(entry):
            return None
        found = self.next_of(session_id, key)
        return None if found is None or key_of(found) != renewed.key else (found, renewed.key)

    def follow(self, session: Attributes, in_use: InUse) -> None:
        """A session whose id was replaced meanwhile goes on under the next one, and is in use there."""
        while session.id is not None:
            old = session.previous_id or session.id
            step = self.step(old)
            if step is None:
                return
            session.moved(*step)
            if session.opened == key_of(old):
                in_use.add(session.opened, -1)
                in_use.add(step[1], 1)
                session.opened = step[1]

    def next_of(self, session_id: str, key: bytes) -> str | None:
        """The next id by the seed that is here."""
        seed = self.seed(key)
        return None if seed is None else next_id(session_id, seed)

    def seed(self, key: bytes) -> bytes | None:
        entry = self._replica.get(key)
        record = self._replica.record(key, entry) if entry is not None and entry.body is not None else None
        register = record.registers.get(SEED) if record is not None else None
        return None if register is None else register[2]

    def move(self, key: bytes, to: bytes, primary: bytes) -> None:
        """The session of this key, held here, goes on under that one, which this primary leads; it may have come there already."""
        entry = self._replica.get(key)
        assert entry is not None
        self._merge(key, entry, to, live=live_head(1, self._me, primary))

    def note(self, key: bytes) -> None:
        """This key has come, or what decides about its end has changed."""
        if key in self.links:
            self._mark(key)
        entry = self._replica.get(key)
        record = self._replica.record(key, entry) if entry is not None and entry.body is not None else None
        if record is not None and entry is not None and BEFORE in record.registers:
            self._link(key, entry, record.registers[BEFORE])
        if record is None or RENEWED not in record.registers:
            self.old.discard(key)
        elif read_renewed(record.registers) is not None:
            self.old.add(key)
            self.late.add(key)

    def wrote(self, keys: Iterable[bytes]) -> None:
        """Something was written to these."""
        for key in keys:
            if key in self.links:
                self._mark(key)
            if key in self.old:
                self.late.add(key)

    def _link(self, key: bytes, entry: Entry, came: Register) -> None:
        """The record of this key says where it came from."""
        before = _unpacked(came[2])
        if before is None or before.key == key:
            return
        until_ms = entry.created_ms + before.until_ms + _LOOK_EVERY_MS
        if self._now_ms >= until_ms and self._replica.held(before.key) is None:
            return  # of long ago: a session says it for as long as it lives
        if before.key not in self.links:
            self._replica.departed.follow(before.key, key)
        mark = (*came[:2], Renewed(key, before.until_ms).pack())
        self.links[before.key] = _Link(key, mark, until_ms)
        self._mark(before.key)

    def _mark(self, key: bytes) -> None:
        """What is here of this old key says from now on where its session went."""
        to, mark, _ = self.links[key]
        entry = self._replica.get(key)
        if entry is None:
            return
        if entry.head is not None and entry.head.state != LIVE:
            if _is_willed(entry.head):
                self.over.append((to, self._me))
            return
        record = self._replica.record(key, entry) if is_whole(entry) and entry.body is not None else None
        if record is not None and RENEWED in record.registers:
            there = self._replica.get(to)
            new = self._replica.record(to, there) if there is not None and there.body is not None else None
            if new is None or not new.has_seen(record.applied):  # the mark was here first: what was written here meanwhile goes to the new one now
                self.late.add(key)
            return
        said = Record()
        said.registers[RENEWED], said.counter = mark, mark[0]
        if record is None or not record.merge(said):
            return
        self._replica.changed[partition_of(key)] = 1
        self._replica.written.add(key)
        self._replica.fresh.append(key)
        self.old.add(key)
        self.late.add(key)
        self._untold[key] = 0

    def left_by(self, lost: Iterable[Member], placement: Placement) -> list[bytes]:
        """Old keys that these have replaced, which are not here, and whose new ones are led here: somebody has to see whether their marks have come to who holds them. The latest
        first: of the others that is likely."""
        uids = {member.uid for member in lost}
        found = (
            key
            for key, link in reversed(self.links.items())
            if link.mark[1] in uids and self._replica.get(key) is None and placement.primary(link.to, self._replica.primary_of(link.to)) == self._me
        )
        return list(islice(found, _LEFT_MAX)) if uids else []

    def deltas(self, deltas: Sequence[list[Any]], peer: bytes) -> None:
        """These came from this member."""
        if self.old or self.links:
            self.wrote(delta[0] for delta in deltas)
        for delta in deltas:
            if RENEWED in delta[4]:
                self._untold.pop(delta[0], None)
                self._heard(delta[0], _unpacked(delta[4][RENEWED]), peer)

    def records(self, sessions: Sequence[Session], records: Sequence[Record | None], peer: bytes) -> None:
        """Likewise."""
        self.wrote(session.key for session in sessions)
        for session, record in zip(sessions, records, strict=True):
            entry = self._replica.get(session.key) if record is not None and BEFORE in record.registers else None
            if record is not None and entry is not None and entry.body is not None:
                self._link(session.key, entry, record.registers[BEFORE])
            if record is not None and RENEWED in record.registers:
                self._untold.pop(session.key, None)
                self._heard(session.key, read_renewed(record.registers), peer)

    def _heard(self, key: bytes, renewed: Renewed | None, peer: bytes) -> None:
        entry = self._replica.get(key)
        if renewed is not None and entry is not None and entry.head is not None and _is_willed(entry.head):
            self.over.append((renewed.key, peer))

    def ends(self, now_ms: int) -> list[Ended]:
        """A session that somebody has ended under its old id ends under the next one too, and under that one's next. Before the events are taken: they tell which."""
        over, self.over = self.over, []
        found = [self._end(*one, now_ms) for one in over]
        for event in self._replica.events:  # and those that this adds
            if type(event) is Destroyed and _is_willed(event.head) and event.entry.body is not None:
                body = event.entry.body
                renewed = read_renewed((body if isinstance(body, Record) else Record.unpack(body)).registers)
                if renewed is not None:
                    found.append(self._end(renewed.key, event.head.primary, now_ms))
        return [end for end in found if end is not None]

    def _end(self, key: bytes, primary: bytes, now_ms: int) -> Ended | None:
        """`primary`: of a session that has not come yet, and must not live when it does."""
        entry = self._replica.get(key)
        if entry is not None and (entry.head is None or entry.head.state != EXPIRED):
            head = self._replica.end(key, INVALIDATED, now_ms)
            return None if head is None else Ended(key, head)
        head = Head(INVALIDATED, 2 if entry is None or entry.head is None else entry.head.counter + 1, self._me, primary, (), None, now_ms)
        self._replica.merge_head(key, head, Outcome())
        return Ended(key, head)

    def bring(self, placement: Placement) -> list[Send]:
        """What was written to old keys goes to where their sessions are."""
        late, self.late = self.late, set()
        sends: list[Send] = []
        for key in sorted(late):
            entry, renewed = self._replica.get(key), self.of(key)
            if renewed is None or entry is None or not is_whole(entry):
                continue
            there = self._replica.get(renewed.key)
            if there is not None and (there.body is not None or (there.head is not None and there.head.state != LIVE)):
                self._merge(key, entry, renewed.key)
            elif there is None:
                self.on_absent(key, renewed.key)
            if not placement.everywhere and placement.primary(key, entry.primary) == self._me:
                sends += self._forward(key, entry, renewed.key, there, placement)
        return sends

    def _forward(self, key: bytes, entry: Entry, to: bytes, there: Entry | None, placement: Placement) -> list[Send]:
        groups = placement.others(to, there.primary if there is not None else b"")
        if not groups:
            return []
        body = self._without(key, entry).pack()
        head = there.head if there is not None else None
        if head is None:  # who has renewed it may be gone before anybody heard of more than the mark
            head = live_head(1, self._me, placement.appoint(to))
        message = self._say.records([Session(to, head, entry.created_ms, entry.touches, body)])
        return [Send(group, message) for group in groups]

    def _merge(self, key: bytes, entry: Entry, to: bytes, live: object = None) -> None:
        there = self._replica.get(to)
        incoming = self._without(key, entry)
        if there is not None and (there.head is None or there.head.state == LIVE):
            record = self._replica.record(to, there)
            if record is not None and record.has_seen(incoming.applied):
                return
        elif live is None:
            return
        self._replica.merge_record(to, live, entry.created_ms, entry.touches, incoming.pack(), incoming, Outcome())  # type: ignore[arg-type]

    def _without(self, key: bytes, entry: Entry) -> Record:
        """The record, but for what is the old key's own; instead with what the new key has from its first moment on, whoever brings it there."""
        record = Record.unpack(self._replica.body_of(entry) or b"")
        seed, renewed = (record.registers.get(name) for name in (SEED, RENEWED))
        for name in _OWN:
            record.registers.pop(name, None)
        if renewed is not None:
            version = renewed[:2]
            record.registers.setdefault(FIRST, (*version, key))
            if (said := _unpacked(renewed[2])) is not None:
                record.registers[BEFORE] = (*version, Renewed(key, said.until_ms).pack())
            if seed is not None and seed[2] is not None:
                record.registers[SEED] = (*version, next_seed(key, seed[2]))
        return Record.unpack(record.pack())

    def tick(self, now_ms: int, placement: Placement) -> list[Send]:
        """Tell others of marks that were set here, and have not come from anybody."""
        sends: list[Send] = []
        self._now_ms, left = now_ms, _TOLD_MAX
        for key, due_ms in list(self._untold.items()):
            if not due_ms:
                self._untold[key] = now_ms + _TELL_MS
            elif now_ms >= due_ms and left:
                del self._untold[key]
                left -= 1
                entry = self._replica.held(key)
                if entry is not None and is_whole(entry):
                    message = self._say.records([Session(key, entry.head, entry.created_ms, entry.touches, self._replica.body_of(entry))])
                    sends += [Send(group, message) for group in placement.others(key, entry.primary)]
        if now_ms >= self._look_ms:
            self._look_ms = now_ms + _LOOK_EVERY_MS
            self.old = {key for key in self.old if self.of(key) is not None}
            self.links = {key: link for key, link in self.links.items() if now_ms < link.until_ms}
        return sends
