"""Whose sessions are these, and which logins are over.

A session of a logged-in user keeps three registers: the *principal* (who that is, as the application names them), the *login*: the epochs of
that principal that were known when it logged in (`epochs.py`), and the login's *number*. Every end of all sessions of a principal is one
more epoch, so a login that does not cover the present epochs is over, wherever its session comes from: made at the same moment elsewhere, or
on the other side of a partition. Nobody has to find the sessions for that: a member that knows of the epoch does not serve them
any more, and the one that watches over a session (`expiry.py`) ends it.

A principal's sessions can be bounded too: of more than `principal_sessions_max` the youngest logins stand, or, where more are refused (`principal_sessions_policy`), the oldest. The number orders logins without a
clock: one more than the highest of the same principal. Who does not hold every session does not know that: such a login has none (0) and counts as
the youngest until its member has asked the others, or is gone. Nothing of this is kept: it follows from what is held at the moment, so
order of arrival decides nothing. Logins of equal number stay until the second look, by when a new id's old one is gone.

Applications may share logins (single sign-on, `web/single.py`). All sessions of one shared login, whichever application they are of, keep one more
register: its *tag*, random bytes. A tag never comes again, so there is no epoch to compare: an epoch under that name says that the login is over, for all of
them and on both sides of a partition. Principals are known by one name for all applications that share logins (`ManagerSettings.realm`).

Principals are known by a hash here (`principal_key`); names stay in the sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
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
from .record import LOGIN, LOGIN_NUMBER, PRINCIPAL, RENEWED, SIGNED_ON, Record, Register
from .replica import Replica
from .settings import ManagerSettings

__all__ = ["EPOCHS", "KEY_BYTES", "TAG_BYTES", "YOUNGEST", "Epoch", "Login", "Logins", "check_login", "joined", "number_bytes", "principal_key", "read_login"]

EPOCHS = "epochs:"  #: name of the manager that keeps epochs; no manager of an application can have it
KEY_BYTES = 16
TAG_BYTES = 16
YOUNGEST = COUNTER_MAX  #: stands for the number that a login does not have yet
_TEXTS_MAX_BYTES = 1000
_CACHED_MAX_BYTES = 512
_FEW = 8  # sessions of one principal that a tuple holds; a set takes five times the memory

Epoch = Mapping[bytes, int]  #: ``{uid of who ended them: how often that member had ended anything by then}``


def principal_key(manager: str, principal: str | bytes | None) -> bytes:
    """What stands for this principal of this manager, 16 bytes; None: for everybody who is logged in."""
    encoded = principal.encode("utf-8", "surrogatepass") if isinstance(principal, str) else principal
    who = b"*" if encoded is None else b"=" + encoded
    return sha256(b"caterwaul principal\0%s\0%s" % (manager.encode(), who)).digest()[:KEY_BYTES]


class Login(NamedTuple):
    """What a session says of its login. `whose`: the principal's key. `about`: what the application says of it (a device, an address), shown to who asks."""

    whose: bytes = b""
    epoch: Epoch = {}  # noqa: RUF012  (a NamedTuple's default; nobody changes it)
    about: Mapping[str, str] = {}

    def pack(self) -> bytes:
        return encode([self.whose, dict(sorted(self.epoch.items())), dict(sorted(self.about.items()))])


def check_login(principal: str, about: Mapping[str, str]) -> None:
    """Raises `ValueRefused` for what cannot be said."""
    try:
        is_good = bool(principal) and sum(len(text.encode()) for text in (principal, *about.values())) <= _TEXTS_MAX_BYTES
    except (AttributeError, UnicodeEncodeError):
        is_good = False
    if not is_good:
        raise ValueRefused(f"login of {principal!r:.40}: use a name and short texts about the login, of {_TEXTS_MAX_BYTES} bytes of UTF-8 in all at most")


def read_login(value: bytes | None) -> Login:
    """That of a register, which a peer has sent. One that is none knows of no epoch."""
    if value is None:
        return Login()
    return _read_login(value) if len(value) <= _CACHED_MAX_BYTES else _read_login.__wrapped__(value)


@lru_cache(maxsize=1024)
def _read_login(value: bytes) -> Login:
    try:
        wire = decode(value)
    except RemoteError:
        return Login()
    if type(wire) is not list or len(wire) < 3:
        return Login()
    whose, epoch, about = wire[:3]
    if not (
        type(whose) is bytes and len(whose) == KEY_BYTES and type(epoch) is dict and type(about) is dict
        and all(type(uid) is bytes and len(uid) == UID_BYTES and type(count) is int and 0 < count <= COUNTER_MAX for uid, count in epoch.items())
        and all(type(text) is str for pair in about.items() for text in pair)
    ):  # fmt: skip
        return Login()
    return Login(whose, epoch, about)


def number_bytes(number: int) -> bytes:
    """The value of the register `LOGIN_NUMBER`."""
    return number.to_bytes(8, "big")


def joined(one: Epoch | None, other: Epoch | None) -> Epoch:
    """Two epochs in one; None: none."""
    if not one or not other:
        return one or other or {}
    return {uid: max(one.get(uid, 0), other.get(uid, 0)) for uid in one.keys() | other.keys()}


class Logins:
    """A part of the manager's core. `realm`: the name under which its principals are known. `epochs`: those of all principals by key, kept up to date by somebody else.
    `placement`: the present one, set by the core at each change of view; `in_sync()`: whether what is held is all there is. Guarded by the manager's lock."""

    def __init__(
        self, realm: str, replica: Replica, epochs: Mapping[bytes, Epoch], settings: ManagerSettings, placement: Placement, in_sync: Callable[[], bool]
    ) -> None:
        self.placement = placement
        self.epochs_are_known: Callable[[], bool] = lambda: True  #: whether this member, since it started, has heard all epochs that the others had
        self._realm = realm
        self._replica = replica
        self._epochs = epochs
        self._everybody = principal_key(realm, None)
        self._most = settings.principal_sessions_max
        self._refuses = settings.principal_sessions_policy == "refuse"
        self._in_sync = in_sync
        self._sessions: dict[bytes, Collection[bytes]] = {}  # of each principal, those held here
        self._highest: dict[bytes, int] = {}  # of each of them, the highest number seen
        self._tags: dict[bytes, bytes] = {}  # of the sessions here whose logins are shared
        self._tagged: dict[bytes, tuple[bytes, ...]] = {}  # of each of these tags, the sessions
        replica.on_gone = self._gone
        self.ended = 0  #: sessions that this member has ended because their login was over

    def __len__(self) -> int:
        """Principals who have sessions here."""
        return len(self._sessions)

    # -- logging in

    def key_of(self, principal: str | bytes | None) -> bytes:
        return principal_key(self._realm, principal)

    def stamp(self, principal: str, about: Mapping[str, str]) -> tuple[bytes, bytes]:
        """The values of the registers `LOGIN` and `LOGIN_NUMBER` of who logs in now."""
        whose = self.key_of(principal)
        number = min(1 + self._highest.get(whose, 0), YOUNGEST - 1) if self.placement.sees_all and self._in_sync() else 0
        return Login(whose, self._epoch(whose), about).pack(), number_bytes(number)

    def lasting(self, principal: str, register: bytes | None, reserved: Epoch) -> bytes | None:
        """The register of a login that is to outlast this epoch, which is to come, and nothing else; None: it is over already."""
        login, whose = read_login(register), self.key_of(principal)
        if self._ends(login, whose):
            return None
        return login._replace(whose=whose, epoch=joined(login.epoch, reserved)).pack()

    # -- whose they are

    def of(self, whose: bytes) -> list[bytes]:
        """Keys of the live sessions of this principal that are held here, whole, and whose logins no epoch has ended; the youngest login first."""
        keys = [key for key in self._sessions.get(whose, ()) if (entry := self._replica.held(key)) is not None and not self.is_out(key, entry)]
        return sorted(keys, key=lambda key: (self.number(key), key), reverse=True)

    def principals(self) -> list[bytes]:
        """Keys of all who have sessions here."""
        return list(self._sessions)

    def affected(self, whose: bytes) -> list[bytes]:
        """The sessions here whose logins an epoch of this key may have ended."""
        if whose == self._everybody:
            return [key for keys in self._sessions.values() for key in keys]
        return [*self._sessions.get(whose, ()), *self._tagged.get(whose, ())]

    def tag(self, key: bytes) -> bytes | None:
        """Of the shared login of a session that is held here."""
        return self._tags.get(key)

    def login(self, key: bytes) -> Login:
        """What a session that is held here says of its login."""
        register = self._register(key, LOGIN)
        return Login() if register is None else read_login(register[2])

    def who(self, key: bytes) -> tuple[str, Mapping[str, str]] | None:
        """(principal, what was said of the login) of a session that is held here; None: nobody is logged in."""
        register = self._register(key, PRINCIPAL) if (entry := self._replica.get(key)) is not None and entry.principal is not None else None
        return None if register is None or register[2] is None else (register[2].decode("utf-8", "replace"), self.login(key).about)

    def ender(self, key: bytes, entry: Entry) -> str:
        """What has ended a login that is over, see `Audited`."""
        if not self.is_out(key, entry):
            return "limit"
        return "shared logout" if self._tags.get(key) in self._epochs else "end_all"

    def number(self, key: bytes) -> int:
        """Of the login of a session that is held here: younger ones have higher numbers."""
        register = self._register(key, LOGIN_NUMBER)
        if register is None or register[2] is None:
            return 0
        number = min(int.from_bytes(register[2][:8], "big"), YOUNGEST - 1)
        return YOUNGEST if not number and register[1] in self.placement.view else number

    # -- which are over

    def is_over(self, key: bytes, entry: Entry, last_look: bool = False) -> bool:
        """Whether its login has been ended: nobody is to see it, and its watcher ends it. `last_look`: of several equally young ones some have to go, too."""
        whose = entry.principal
        if whose is None:
            return False
        return (bool(self._epochs) and self.is_out(key, entry)) or (bool(self._most) and self._is_too_many(key, whose, last_look))

    def is_out(self, key: bytes, entry: Entry) -> bool:
        """Whether an epoch has ended it."""
        whose = entry.principal
        if whose is None:
            return False
        return self._tags.get(key) in self._epochs or (bool(self._epoch(whose)) and self._ends(self.login(key), whose))

    def _ends(self, login: Login, whose: bytes) -> bool:
        known: Epoch = login.epoch if login.whose == whose else {}
        return any(known.get(uid, 0) < count for uid, count in self._epoch(whose).items())

    def _is_too_many(self, key: bytes, whose: bytes, last_look: bool) -> bool:
        """Only where all are held; else others are asked (`cluster/logins.py`)."""
        if len(self._sessions.get(whose, ())) <= self._most or not self.placement.sees_all:
            return False
        logins = self._by_right(whose)
        if key not in logins[self._most :]:
            return False
        return last_look or self.number(logins[self._most - 1]) != self.number(key)

    def _by_right(self, whose: bytes) -> list[bytes]:
        """`of`, those first that stay where there are too many."""
        logins = self.of(whose)
        return logins[::-1] if self._refuses else logins

    def note(self, key: bytes) -> Iterable[bytes]:
        """This session has come, has changed its principal, or has ended. Returns those that may be over by that."""
        entry = self._replica.get(key)
        if entry is None:
            return ()
        whose = self._principal(key, entry)
        if whose != entry.principal:
            self._gone(key, entry)
            if whose is not None:
                self._add(whose, key)
                entry.principal = whose
        if whose is None:
            return ()
        self._tie(key, self._register(key, SIGNED_ON))
        register = self._register(key, LOGIN_NUMBER)
        if register is not None and register[2] is not None:
            self._highest[whose] = max(self._highest.get(whose, 0), min(int.from_bytes(register[2][:8], "big"), YOUNGEST - 1))
        if not self._most or len(self._sessions[whose]) <= self._most:
            return ()
        return self._by_right(whose)[self._most :]

    # -- the index

    def _epoch(self, whose: bytes) -> Epoch:
        return joined(self._epochs.get(whose), self._epochs.get(self._everybody))

    def _principal(self, key: bytes, entry: Entry) -> bytes | None:
        if entry.body is None or (entry.head is not None and entry.head.state != LIVE):
            return None
        registers = self._record(key, entry).registers
        register = registers.get(PRINCIPAL)
        return None if register is None or register[2] is None or RENEWED in registers else self.key_of(register[2])  # an id that was replaced is nobody's

    def _register(self, key: bytes, name: str) -> Register | None:
        entry = self._replica.get(key)
        return None if entry is None or entry.body is None else self._record(key, entry).registers.get(name)

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
        if whose is None:
            return
        self._tie(key, None)
        keys = self._sessions[whose]
        if isinstance(keys, set):
            keys.discard(key)
        else:
            self._sessions[whose] = keys = tuple(one for one in keys if one != key)
        if not keys:
            del self._sessions[whose]
            self._highest.pop(whose, None)

    def _tie(self, key: bytes, register: Register | None) -> None:
        """This session is of the shared login that the register names, and of no other."""
        tag = register[2] if register is not None and register[2] is not None and len(register[2]) == TAG_BYTES else None
        before = self._tags.pop(key, None)
        if before is not None and before != tag:
            self._tagged[before] = left = tuple(one for one in self._tagged[before] if one != key)
            if not left:
                del self._tagged[before]
        if tag is not None:
            self._tags[key] = tag
            if tag != before:
                self._tagged[tag] = (*self._tagged.get(tag, ()), key)
