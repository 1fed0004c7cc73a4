"""A session's attributes as one request sees them: a mapping, its own view from the moment it was opened.

Attributes are decoded when they are first read, from the bytes the record had when the session was opened; nothing that
other requests or members commit meanwhile shows here. A value that cannot travel is refused when it is set; one that cannot be
decoded (after a deploy) is quarantined: it is absent here, and its bytes stay in the record untouched. What a commit does with all that: `session.py`.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from hashlib import sha256
from typing import Any

from .errors import SessionEnded, SessionError, SessionUnknown, ValueDamaged, ValueRefused
from .heads import INVALIDATED
from .identity import Identity
from .locks import SessionLock
from .merging import MERGING, MERGING_BYTES
from .merging_types import Merging
from .record import Register
from .settings import ManagerSettings
from .values import ValueTypes

__all__ = ["Attributes", "key_of"]

_MISSING = object()


def key_of(session_id: str) -> bytes:
    """What is replicated, stored, logged and shown instead of the id: 16 bytes of its SHA-256."""
    return sha256(session_id.encode("ascii")).digest()[:16]


class Attributes(Identity, MutableMapping[str, Any]):
    """Reads raise `KeyError`; writes `ValueRefused`, `SessionEnded`, `SessionUnknown`."""

    __slots__ = (
        "_encoded", "_entropy", "_frozen", "_locked", "_over", "_registers", "_settings", "_size", "_stamp", "_types", "_values",
        "acks", "at_once", "created_ms", "ending", "forgets", "held", "id", "key", "last", "merging", "new", "opened", "previous_id", "quarantined", "refusal", "renewing", "stale", "token", "turn", "unknown",
    )  # fmt: skip

    def __init__(
        self,
        settings: ManagerSettings,
        types: ValueTypes,
        entropy: Callable[[int], bytes],
        session_id: str | None = None,
        key: bytes = b"",
        registers: dict[str, Register] | None = None,
        created_ms: int = 0,
        size: int = 0,
        unknown: bool = False,
        stamp: Callable[[str, Mapping[str, str], bytes, bool, tuple[str, str] | None], tuple[bytes, bytes]] | None = None,
        locked: Callable[[Any, float | None, float | None], SessionLock] | None = None,
    ) -> None:
        self._settings = settings
        self._stamp = stamp  # what the login of a principal is to say, see `users.py`
        self._locked = locked  # makes `lock()`
        self._types = types
        self._entropy = entropy
        self._registers: dict[str, Register] = {} if registers is None else registers
        self._values: dict[str, Any] = {}  # decoded or set
        self._encoded: dict[str, bytes | None] = {}  # set or deleted here, not yet committed
        self.merging: dict[str, Merging] = {}  #: of `_values`, those that are joined at commit
        self._size = size
        self._frozen = False
        self._over = False  # its invalidation is committed
        self.id = session_id if registers is not None else None
        self.key = key
        self.new = registers is None  #: not committed yet by anybody
        self.created_ms = created_ms
        self.unknown = unknown  #: nobody could say whether it exists: reads see nothing, writes raise
        self.at_once: Callable[[], None] | None = None  #: called after each assignment (`write = "immediate"`)
        self.forgets = False  #: what is written goes with this request: it may have no session, or none could be had for it
        self.opened = b""  #: the key that the manager counts as in use
        self.turn: Any = None  #: what this request has to give back for the next one of its session (`in_turn.py`)
        self.refusal: SessionError | None = None  #: this request is to be answered with that, and has no session
        self.accessed = False
        self.ending = 0  #: the state its head is to get at commit: INVALIDATED, ID_CHANGED, or 0
        self.previous_id: str | None = None  #: the id before `cycle_id`
        self.renewing = False  #: it gets its next id at commit, see `renewal.py`
        self.quarantined: set[str] = set()  #: attributes whose bytes could not be decoded
        self.logged_in = False
        self.offered = None
        self.admitted = None
        self.is_shared = False
        self.origin = ("", "")
        self.acks: str | int | None = None  #: this request's override of the manager's `acks`
        self.stale = False  #: commits are missing here that this browser has made (`read_your_writes`), or that this member has shown before, and nobody who could be asked has them
        self.held: SessionLock | None = None  #: the lock that this request has
        self.last: tuple[int, bytes] | None = None  #: this request's last commit that had changes: counter, author
        self.token = ""  #: what the browser's cookie should carry from now on, see `tokens.py`

    def __getitem__(self, name: str) -> Any:
        self.accessed = True
        value = self._values.get(name, _MISSING)
        if value is not _MISSING:
            return value
        register = self._registers.get(name)
        if register is None or register[2] is None or name in self._encoded or name[:1] == "\0":
            raise KeyError(name)
        try:
            value = self._types.decode(register[2])
        except ValueDamaged:
            self.quarantined.add(name)
            raise KeyError(name) from None
        self._values[name] = value
        if register[2][:MERGING_BYTES] == MERGING:
            self.merging[name] = value
        return value

    def __setitem__(self, name: str, value: Any) -> None:
        self._check_name(name)
        encoded = self._types.encode(value, f"session[{name!r}]")
        merges = encoded[:MERGING_BYTES] == MERGING
        if merges and value.taken and value is not self._values.get(name):
            raise ValueRefused(f"session[{name!r}]: this {type(value).__name__} belongs to another attribute; set a new one with its value")
        self._put(name, encoded)
        self._values[name] = value
        if merges:
            value.taken = True
            self.merging[name] = value
        if self.at_once is not None:
            self.at_once()

    def __delitem__(self, name: str) -> None:
        if name[:1] == "\0" or self._current(name) is None:
            raise KeyError(name)
        self._put(name, None)
        self._values.pop(name, None)
        if self.at_once is not None:
            self.at_once()

    def __iter__(self) -> Iterator[str]:
        self.accessed = True
        for name, register in self._registers.items():
            if name[:1] != "\0" and name not in self._encoded and register[2] is not None and self._readable(name):
                yield name
        for name, value in list(self._encoded.items()):
            if value is not None and name[:1] != "\0":
                yield name

    def names(self, prefix: str) -> list[str]:
        """Of attributes, those that begin so. Their values are not decoded, so one may turn out to be unreadable."""
        self.accessed = True
        return [
            name
            for name in dict.fromkeys((*self._registers, *self._encoded))
            if name.startswith(prefix) and name[:1] != "\0" and self._current(name) is not None
        ]

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _readable(self, name: str) -> bool:
        try:
            self[name]
        except KeyError:
            return False
        return True

    def _check_name(self, name: str) -> None:
        if type(name) is not str or name[:1] == "\0" or not name:
            raise ValueRefused(f"session[{name!r}]: an attribute's name is a non-empty text that does not begin with NUL")
        if not name.isascii() or len(name) > self._settings.attribute_name_max_bytes:
            try:
                length = len(name.encode())
            except UnicodeEncodeError:
                raise ValueRefused(f"session[{name!r}]: the name has lone surrogates") from None
            if length > self._settings.attribute_name_max_bytes:
                raise ValueRefused(f"session[{name[:32]!r}...]: the name is longer than {self._settings.attribute_name_max_bytes} bytes")

    def _put(self, name: str, encoded: bytes | None) -> None:
        """All writes come here: checks, limits, and the id of a new session."""
        self._check_writable()
        size = self._size_with(name, encoded, self._size)
        if self.id is None:
            if self._frozen:
                raise SessionError("the response's headers are sent: a session cannot be created any more")
            self.id = urlsafe_b64encode(self._entropy(32)).rstrip(b"=").decode("ascii")
            self.key = key_of(self.id)
        self._encoded[name] = encoded
        self._size = size
        if self.merging:
            self.merging.pop(name, None)

    def moved(self, session_id: str, key: bytes) -> None:
        """For managers: the session goes on under this id."""
        if self.previous_id is not None:
            self.previous_id = session_id
        else:
            self.id, self.key, self.token, self.renewing = session_id, key, "", False

    @property
    def ended(self) -> bool:
        return self._over or self.ending == INVALIDATED

    def _check_writable(self) -> None:
        self.accessed = True
        if self.unknown:
            raise SessionUnknown("the members that could know this session do not answer; try again in a moment")
        if self.ended:
            raise SessionEnded("this session has ended")

    def _size_with(self, name: str, encoded: bytes | None, size: int) -> int:
        """Of `size` bytes of all names and values, how many once this one is in. Raises `ValueRefused` when a limit would be passed."""
        before = self._current(name)
        size -= len(name) + len(before) if before is not None else 0
        if encoded is None:
            return size
        size += len(name) + len(encoded)
        limit = self._settings.session_max_bytes
        if size > limit and name[:1] != "\0":  # what the manager keeps in it is small
            largest = ", ".join(f"{one!r} {count}" for one, count in self._largest({name: len(encoded)}, 3))
            raise ValueRefused(
                f"session[{name!r}]: the session would have {size} bytes, the limit is {limit} (session_max_bytes); the largest attributes: {largest}"
            )
        most = self._settings.attributes_max
        if before is None and name[:1] != "\0" and len(self._registers) + len(self._encoded) >= most and len(self) >= most:
            raise ValueRefused(f"session[{name!r}]: the session has {most} attributes already (attributes_max)")
        return size

    @property
    def size_bytes(self) -> int:
        """Encoded bytes of all names and values, what `session_max_bytes` limits. Changes inside values count once they are committed."""
        return self._size

    def largest(self, n: int = 10) -> list[tuple[str, int]]:
        """The `n` attributes with the largest values, as (name, encoded bytes), the largest first. Likewise."""
        return self._largest({}, n)

    def _largest(self, more: Mapping[str, int], n: int) -> list[tuple[str, int]]:
        names = self._registers.keys() | self._encoded.keys()
        sizes = {name: len(value) for name in names if name[:1] != "\0" and (value := self._current(name)) is not None} | dict(more)
        return sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:n]

    def hidden(self, name: str) -> bytes | None:
        """For managers: a register that is no attribute, or an attribute's encoding."""
        return self._current(name)

    def _current(self, name: str) -> bytes | None:
        if name in self._encoded:
            return self._encoded[name]
        register = self._registers.get(name)
        return register[2] if register is not None else None
