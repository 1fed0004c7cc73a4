"""Whose sessions are these, and which logins are over.

A session of a logged-in user keeps two registers: the *principal* (who that is, as the application names them) and the *login*:
the epochs of that principal that were known when it logged in (`epochs.py`). Every end of all sessions of a principal is one
more epoch, so a login that does not cover the present epochs is over, wherever its session comes from: made at the same moment elsewhere, or
on the other side of a partition. Nobody has to find the sessions for that: a member that knows of the epoch does not serve them
any more, and the one that watches over a session (`expiry.py`) ends it.

A principal's sessions can be bounded too: of more than `principal_sessions_max` the youngest logins stand. `number` orders logins without a
clock: one more than the highest of the same principal; equal ones go by key, so all members agree. Who does not hold every session does not know
that number: such a login has none (0) and counts as the youngest until its member has asked the others, or is gone.

Principals are known by a hash here (`principal_key`); names stay in the sessions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple

from ..membership.codec import decode, encode
from ..membership.errors import RemoteError
from ..membership.member import UID_BYTES
from .entry import Entry
from .errors import ValueRefused
from .heads import COUNTER_MAX, LIVE
from .placement import Placement
from .record import LOGIN, PRINCIPAL, Record, Register
from .replica import Replica

__all__ = ["KEY_BYTES", "YOUNGEST", "Epoch", "Login", "Logins", "check_login", "principal_key", "read_login"]

KEY_BYTES = 16
YOUNGEST = COUNTER_MAX
_TEXTS_MAX_BYTES = 1000
_FEW = 8  # sessions of one principal that a tuple holds; a set takes five times the memory

Epoch = Mapping[bytes, int]  #: ``{uid of who ended them: how often that member had ended anything by then}``


def principal_key(manager: str, principal: str | None) -> bytes:
    """What stands for this principal of this manager, 16 bytes; None: for everybody who is logged in."""
    who = b"*" if principal is None else b"=" + principal.encode("utf-8", "replace")
    return sha256(b"caterwaul principal\0%s\0%s" % (manager.encode(), who)).digest()[:KEY_BYTES]


class Login(NamedTuple):
    """What a session says of its login. `whose`: the principal's key. `about`: what the application says of it (a device, an address), shown to who asks."""

    whose: bytes = b""
    number: int = 0
    epoch: Epoch = {}  # noqa: RUF012  (a NamedTuple's default; nobody changes it)
    about: Mapping[str, str] = {}

    def pack(self) -> bytes:
        return encode([self.whose, self.number, dict(sorted(self.epoch.items())), dict(sorted(self.about.items()))])


def check_login(principal: str, about: Mapping[str, str]) -> None:
    """Raises `ValueRefused` for what cannot be said."""
    try:
        is_good = bool(principal) and sum(len(text.encode()) for text in (principal, *about.values())) <= _TEXTS_MAX_BYTES
    except (AttributeError, UnicodeEncodeError):
        is_good = False
    if not is_good:
        raise ValueRefused(f"session.login({principal!r:.40}): use a name and short texts about the login, of {_TEXTS_MAX_BYTES} bytes of UTF-8 in all at most")


@lru_cache(maxsize=1024)
def read_login(value: bytes | None) -> Login:
    """That of a register, which a peer has sent. One that is none knows of no epoch."""
    try:
        wire = decode(value) if value is not None else None
    except RemoteError:
        return Login()
    if type(wire) is not list or len(wire) < 3:
        return Login()
    whose, number, epoch = wire[:3]
    if not (
        type(whose) is bytes and len(whose) == KEY_BYTES and type(number) is int and 0 <= number <= COUNTER_MAX and type(epoch) is dict
        and all(type(uid) is bytes and len(uid) == UID_BYTES and type(count) is int and count >= 0 for uid, count in epoch.items())
    ):  # fmt: skip
        return Login()
    about = wire[3] if len(wire) > 3 else {}
    if type(about) is not dict or not all(type(text) is str for pair in about.items() for text in pair):
        about = {}
    return Login(whose, number, epoch, about)


def joined(one: Epoch | None, other: Epoch | None) -> Epoch:
    """Two epochs in one; None: none."""
    if not one or not other:
        return one or other or {}
    return {uid: max(one.get(uid, 0), other.get(uid, 0)) for uid in one.keys() | other.keys()}


class Logins:
    """A part of the manager's core. `epochs`: those of all principals by key, kept up to date by somebody else. `most`: sessions of a principal; 0: any number.
    `placement`: the present one, set by the core at each change of view. Guarded by the manager's lock."""

    def __init__(self, manager: str, replica: Replica, epochs: Mapping[bytes, Epoch], most: int, placement: Placement) -> None:
        self.placement = placement
        self._manager = manager
        self._replica = replica
        self._epochs = epochs
        self._everybody = principal_key(manager, None)
        self._most = most
        self._sessions: dict[bytes, Collection[bytes]] = {}  # of each principal, those held here
        self._excess: set[bytes] = set()  # sessions that are over because their principal has younger ones
        replica.on_gone = self._gone
        self.ended = 0  #: sessions that this member has ended because their login was over

    def __len__(self) -> int:
        """Principals who have sessions here."""
        return len(self._sessions)

    def key_of(self, principal: str | None) -> bytes:
        return principal_key(self._manager, principal)

    def stamp(self, principal: str, about: Mapping[str, str], reserved: Epoch | None = None) -> bytes:
        """The value of the login register of who logs in now; `reserved`: and knows of this epoch, which is to come."""
        whose = self.key_of(principal)
        number = 1 + max((self.login(key).number for key in self._sessions.get(whose, ())), default=0)
        return Login(whose, number if self.placement.everywhere else 0, joined(self._epoch(whose), reserved), about).pack()

    def of(self, whose: bytes) -> list[bytes]:
        """Keys of the live sessions of this principal that are held here, whole, the youngest login first."""
        keys = self._sessions.get(whose, ())
        return sorted((key for key in keys if self._replica.held(key) is not None), key=lambda key: (self.number(key), key), reverse=True)

    def principals(self) -> list[bytes]:
        """Keys of all who have sessions here."""
        return list(self._sessions)

    def affected(self, whose: bytes) -> list[bytes]:
        """The sessions here whose logins an epoch of this key may have ended."""
        if whose == self._everybody:
            return [key for keys in self._sessions.values() for key in keys]
        return list(self._sessions.get(whose, ()))

    def is_over(self, key: bytes, entry: Entry) -> bool:
        """Whether its login has been ended: nobody is to see it, and its watcher ends it."""
        whose = entry.principal
        if whose is None or not (self._epochs or self._excess):
            return False
        if key in self._excess:
            return True
        epoch = self._epoch(whose)
        if not epoch:
            return False
        login = self.login(key)
        known: Epoch = login.epoch if login.whose == whose else {}
        return any(known.get(uid, 0) < count for uid, count in epoch.items())

    def note(self, key: bytes) -> Iterable[bytes]:
        """This session has come, has changed its principal, or has ended. Returns those that are over by that."""
        entry = self._replica.get(key)
        if entry is None:
            return ()
        whose = self._principal(key, entry)
        if whose != entry.principal:
            self._gone(key, entry)
            if whose is not None:
                self._add(whose, key)
                entry.principal = whose
        if whose is None or not self._most or len(self._sessions[whose]) <= self._most:
            return ()
        over = [old for old in self.of(whose)[self._most :] if old not in self._excess]
        self._excess.update(over)
        return over

    def _epoch(self, whose: bytes) -> Epoch:
        return joined(self._epochs.get(whose), self._epochs.get(self._everybody))

    def _principal(self, key: bytes, entry: Entry) -> bytes | None:
        if entry.body is None or (entry.head is not None and entry.head.state != LIVE):
            return None
        register = self._record(key, entry).registers.get(PRINCIPAL)
        return None if register is None or register[2] is None else self.key_of(register[2].decode("utf-8", "replace"))

    def login(self, key: bytes) -> Login:
        """What a session that is held here says of its login."""
        register = self._register(key)
        return Login() if register is None else read_login(register[2])

    def number(self, key: bytes) -> int:
        """Of the login of a session that is held here: younger ones have higher numbers."""
        register = self._register(key)
        if register is None:
            return 0
        number = read_login(register[2]).number
        return YOUNGEST if not number and register[1] in self.placement.view else number

    def _register(self, key: bytes) -> Register | None:
        entry = self._replica.get(key)
        return None if entry is None or entry.body is None else self._record(key, entry).registers.get(LOGIN)

    def _record(self, key: bytes, entry: Entry) -> Record:
        record = self._replica.record(key, entry)
        assert record is not None
        return record

    def _add(self, whose: bytes, key: bytes) -> None:
        keys = self._sessions.get(whose, ())
        if isinstance(keys, set):
            keys.add(key)
        else:
            self._sessions[whose] = (*keys, key) if len(keys) < _FEW else {*keys, key}

    def _gone(self, key: bytes, entry: Entry) -> None:
        """It is nobody's here any more."""
        whose, entry.principal = entry.principal, None
        self._excess.discard(key)
        if whose is None:
            return
        keys = self._sessions[whose]
        if isinstance(keys, set):
            keys.discard(key)
        else:
            self._sessions[whose] = keys = tuple(one for one in keys if one != key)
        if not keys:
            del self._sessions[whose]
