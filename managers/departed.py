"""What a member remembers of the copies that it parted from: what was in them, and who has it now.

A copy goes when all who are to hold the session have confirmed what is in it. If these are lost or cut off a moment later, an
older copy may come back, from somebody who was beyond a cut. Of what was here, two things must not be taken back in silence:

- **What was shown here.** *A copy that lacks commits which ours had is not believed before those who confirmed them have been asked*; if
  they cannot show them either, the session is served as it is, and marked stale. (Monotonic reads, by version vectors: Terry et
  al. 1994, "Session Guarantees for Weakly Consistent Replicated Data".)
- **What was written here.** A record says of each author up to which commit it has *all* of that author's; counters, sets, and what is
  forgotten of removed attributes build on that. A member that writes on where its own later commits are missing would break
  it: where the two copies meet, those would pass for removed, or for counted. So it writes under another name there, as if it were
  another member, and both count.

Nothing of that is needed while a member holds a session, nor where it gets back all that was in its copy; so what is kept here is small.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

from ..membership.member import UID_BYTES
from .merging import Version
from .record import Record

__all__ = ["Departed"]

_KEPT_MAX = 65_536  # keys; an older copy comes back within seconds, or not at all
_KEPT_MAX_BYTES = 16 * 1024 * 1024
_COUNTER_BYTES = 7  # up to `COUNTER_MAX`
_STEP = UID_BYTES + _COUNTER_BYTES
_AGAIN_MS = 1000  # who did not answer is not asked, and waited for, by each request


class _Copy(NamedTuple):
    applied: bytes  #: the map of its record: uid and counter, again and again
    trusted: tuple[bytes, ...]  #: who had confirmed what was in it, and has not shown since what it has; or with whom those say that it is
    due_ms: int = 0  #: when they may be asked again


class Departed:
    """Guarded by the manager's lock. Keys, uids and names are 16 bytes."""

    def __init__(self, me: bytes) -> None:
        self._me = me
        self.copies: OrderedDict[bytes, _Copy] = OrderedDict()  #: by key; what was in them has not come back, as far as is known
        self._bytes = 0  # of `applied`, all together
        self._left: OrderedDict[bytes, int] = OrderedDict()  # key -> our last commit in a copy that went
        self._names: OrderedDict[bytes, bytes] = OrderedDict()  # key -> our name there, where that is not our own
        self._used = 0  # the highest counter of our commits
        self._spent = 0  # up to here we may have used counters in copies that are not here any more

    def next_version(self, key: bytes, record: Record | None) -> Version:
        """That of our next commit to this record (None: to a new one). None is used twice, though a copy that comes back to us may lack commits of ours."""
        counter = max(record.counter if record is not None else 0, self._spent) + 1
        return counter, self.author(key, record.applied if record is not None else {}, counter)

    def use(self, key: bytes, record: Record) -> Version:
        """The same, and it is made now."""
        version = self.next_version(key, record)
        self._used = max(self._used, version[0])
        return version

    def spend(self) -> None:
        """Something went from here."""
        self._spent = self._used

    def parted(self, key: bytes, applied: Mapping[bytes, int], trusted: Sequence[bytes]) -> None:
        """A copy with these commits goes, as these members have confirmed them. If it is an older one, what was in the newer is not forgotten."""
        ours = max(applied.get(self._names.get(key, self._me), 0), self._left.get(key, 0))
        if ours:
            _keep(self._left, key, ours)
        due_ms, had = 0, dict(applied)
        if self.lacks(key, applied):
            newer = self.copies[key]
            due_ms, trusted = newer.due_ms, tuple(dict.fromkeys((*newer.trusted, *trusted)))
            for uid, counter in _pairs(newer.applied):
                had[uid] = max(had.get(uid, 0), counter)
        self.forget(key)
        copy = _Copy(b"".join(uid + counter.to_bytes(_COUNTER_BYTES, "big") for uid, counter in had.items()), tuple(trusted), due_ms)
        self.copies[key] = copy
        self._bytes += len(copy.applied)
        while len(self.copies) > _KEPT_MAX or self._bytes > _KEPT_MAX_BYTES:
            self.forget(next(iter(self.copies)))

    def lacks(self, key: bytes, applied: Mapping[bytes, int]) -> bool:
        """Whether a copy with these commits lacks some that ours had. One that has all of them is remembered no more: what is here only grows."""
        copy = self.copies.get(key)
        if copy is None:
            return False
        if any(applied.get(uid, 0) < counter for uid, counter in _pairs(copy.applied)):
            return True
        self.forget(key)
        return False

    def trusted(self, key: bytes) -> tuple[bytes, ...]:
        """Who may have what was in our copy."""
        copy = self.copies.get(key)
        return copy.trusted if copy is not None else ()

    def is_due(self, key: bytes, now_ms: int) -> bool:
        """Whether they may be asked: none of them was silent a moment ago."""
        copy = self.copies.get(key)
        return copy is not None and now_ms >= copy.due_ms

    def silent(self, key: bytes, now_ms: int) -> None:
        """Some of them did not answer."""
        copy = self.copies.get(key)
        if copy is not None:
            self.copies[key] = copy._replace(due_ms=now_ms + _AGAIN_MS)

    def heard(self, key: bytes, uid: bytes, named: Sequence[bytes] = ()) -> None:
        """This member has shown what it has of the session, or has `named` those who have it now."""
        copy = self.copies.get(key)
        if copy is not None and uid in copy.trusted:
            left = (*(other for other in copy.trusted if other != uid), *named)
            self.copies[key] = copy._replace(trusted=tuple(dict.fromkeys(left)))

    def forget(self, key: bytes) -> None:
        """It has ended, or nobody is left who could have what was in our copy."""
        copy = self.copies.pop(key, None)
        if copy is not None:
            self._bytes -= len(copy.applied)

    def follow(self, old: bytes, new: bytes) -> None:
        """The session of that key goes on under this one: what was in our copy of it is missed here as well."""
        copy = self.copies.get(old)
        if old in self._names and new not in self._names:
            _keep(self._names, new, self._names[old])
        if old in self._left:
            _keep(self._left, new, max(self._left[old], self._left.get(new, 0)))
        if copy is not None:
            self.parted(new, dict(_pairs(copy.applied)), copy.trusted)

    def author(self, key: bytes, applied: Mapping[bytes, int], counter: int) -> bytes:
        """Our name for a commit with this counter to the copy that has applied this. The same again until it is dropped."""
        name = self._names.get(key, self._me)
        if applied.get(name, 0) >= self._left.get(key, 0):
            return name
        del self._left[key]
        name = sha256(self._me + counter.to_bytes(8, "big")).digest()[:16]
        _keep(self._names, key, name)
        return name


def _pairs(applied: bytes) -> Iterator[tuple[bytes, int]]:
    for at in range(0, len(applied), _STEP):
        yield applied[at : at + UID_BYTES], int.from_bytes(applied[at + UID_BYTES : at + _STEP], "big")


def _keep(table: OrderedDict[bytes, int] | OrderedDict[bytes, bytes], key: bytes, value: int | bytes) -> None:
    table[key] = value  # type: ignore[assignment]
    table.move_to_end(key)
    if len(table) > _KEPT_MAX:
        table.popitem(last=False)
