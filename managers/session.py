"""A session as one request sees it: a mapping of attributes, its own view from the moment it was opened.

Attributes are decoded when they are first read, from the bytes the record had when the session was opened; nothing that
other requests or members commit meanwhile shows here. Changes are *found*, not declared: at commit the mutable values
that were read or set are encoded once more and compared with their bytes, so ``session["cart"].append(x)`` replicates.
A value that cannot travel is refused when it is set; one that cannot be decoded (after a deploy) is quarantined: it is
absent here, and its bytes stay in the record untouched.

A new session has no id until the first write. One object belongs to one request and is not for two threads at a time;
two requests of one session have an object each, and their commits merge by attribute.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from hashlib import sha256
from typing import Any

from .errors import SessionEnded, SessionError, SessionUnknown, ValueDamaged, ValueRefused
from .heads import ID_CHANGED, INVALIDATED
from .identity import Identity
from .merging import MERGING, MERGING_BYTES, join, reborn
from .merging import build as build_merging
from .merging_types import Merging
from .record import IDLE_LIMIT, Register
from .settings import ManagerSettings
from .values import ValueTypes

__all__ = ["ID_CHARACTERS", "Session", "key_of"]

ID_CHARACTERS = 43  # 32 random bytes, URL-safe base64 without padding
_IDLE_MAX_S = 3.2e9  # a century
_MISSING = object()


def key_of(session_id: str) -> bytes:
    """What is replicated, stored, logged and shown instead of the id: 16 bytes of its SHA-256."""
    return sha256(session_id.encode("ascii")).digest()[:16]


class Session(Identity, MutableMapping[str, Any]):
    """`id` is None until the session was written for the first time. Reads raise `KeyError`; writes `ValueRefused`, `SessionEnded`, `SessionUnknown`."""

    __slots__ = (
        "_encoded", "_entropy", "_frozen", "_over", "_registers", "_settings", "_size", "_stamp", "_types", "_values",
        "acks", "created_ms", "ending", "id", "key", "merging", "new", "opened", "previous_id", "quarantined", "stale", "token", "unknown",
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
    ) -> None:
        self._settings = settings
        self._stamp = stamp  # what the login of a principal is to say, see `users.py`
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
        self.opened = b""  #: the key that the manager counts as in use
        self.accessed = False
        self.ending = 0  #: the state its head is to get at commit: INVALIDATED, ID_CHANGED, or 0
        self.previous_id: str | None = None  #: the id before `cycle_id`
        self.quarantined: set[str] = set()  #: attributes whose bytes could not be decoded
        self.logged_in = False
        self.offered = None
        self.admitted = None
        self.is_shared = False
        self.origin = ("", "")
        self.acks: str | int | None = None  #: this request's override of the manager's `acks`
        self.stale = False  #: commits are missing here that this browser has made (`read_your_writes`), or that this member has shown before, and nobody who could be asked has them
        self.token = ""  #: what the browser's cookie should carry from now on, see `tokens.py`

    def __repr__(self) -> str:
        return f"<Session {self.key.hex()[:8] or 'new'}{' ended' if self.ended else ''}>"

    # -- the mapping

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

    def __delitem__(self, name: str) -> None:
        if name[:1] == "\0" or self._current(name) is None:
            raise KeyError(name)
        self._put(name, None)
        self._values.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        self.accessed = True
        for name, register in self._registers.items():
            if name[:1] != "\0" and name not in self._encoded and register[2] is not None and self._readable(name):
                yield name
        for name, value in list(self._encoded.items()):
            if value is not None and name[:1] != "\0":
                yield name

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
            raise ValueRefused(f"session[{name!r}]: the session would have {size} bytes, the limit is {limit} (session_max_bytes)")
        most = self._settings.attributes_max
        if before is None and name[:1] != "\0" and len(self._registers) + len(self._encoded) >= most and len(self) >= most:
            raise ValueRefused(f"session[{name!r}]: the session has {most} attributes already (attributes_max)")
        return size

    def _current(self, name: str) -> bytes | None:
        if name in self._encoded:
            return self._encoded[name]
        register = self._registers.get(name)
        return register[2] if register is not None else None

    # -- the session's life

    @property
    def ended(self) -> bool:
        return self._over or self.ending == INVALIDATED

    @property
    def modified(self) -> bool:
        """Whether a commit may have more to send than a touch: something was set, or a mutable value was read."""
        return bool(self.ending or self._encoded) or not all(map(self._types.is_immutable, self._values.values()))

    def invalidate(self) -> None:
        """End the session at commit: on every member, for good. Reads see nothing from now on."""
        self.ending = INVALIDATED
        self.accessed = True
        self.offered = None
        self._registers, self._values, self._encoded, self.merging = {}, {}, {}, {}

    def cycle_id(self) -> None:
        """A new id for the same contents (at login, against fixation). At commit the old id ends on every member, for good."""
        self._check_changeable()
        if self.id is None:
            return
        if not self.new and self.previous_id is None:
            self.previous_id = self.id
            self.ending = ID_CHANGED
        self.id = urlsafe_b64encode(self._entropy(32)).rstrip(b"=").decode("ascii")
        self.key = key_of(self.id)
        self.token = ""

    def _check_changeable(self) -> None:
        self._check_writable()
        if self._frozen:
            raise SessionError("the response's headers are sent: the id cannot change any more")

    def adopt(self, session_id: str) -> None:
        """This new session gets this id, and not one of its own. For ids that are not secrets of a browser (`maps.py`)."""
        self.id, self.key = session_id, key_of(session_id)

    def freeze_id(self) -> None:
        """The headers are sent: from now on creating the session or changing its id raises `SessionError`."""
        self._frozen = True

    def hidden(self, name: str) -> bytes | None:
        """For managers: a register that is no attribute, or an attribute's encoding."""
        return self._current(name)

    def write(self, name: str, encoded: bytes | None) -> None:
        """For managers: set one, or remove it, whether or not it has been seen."""
        self._put(name, encoded)

    @property
    def max_idle_s(self) -> float:
        """This session's own idle limit; the manager's unless it was set. 0: never."""
        value = self._current(IDLE_LIMIT)
        return self._settings.idle_timeout_s if value is None else int.from_bytes(value, "big") / 1000

    @max_idle_s.setter
    def max_idle_s(self, seconds: float | None) -> None:
        if seconds is not None and not 0 <= seconds <= _IDLE_MAX_S:
            raise ValueRefused(f"session.max_idle_s = {seconds!r}: use 0 (never) to {_IDLE_MAX_S:.0f} seconds, or None for the manager's limit")
        self._put(IDLE_LIMIT, None if seconds is None else int(seconds * 1000).to_bytes(8, "big"))

    # -- for the manager

    def changes(self) -> dict[str, bytes | None]:
        """What a commit has to send: ``{name: bytes, None for removed}``. Raises `ValueRefused` for a nested value that cannot travel."""
        registers, encoded = self._registers, self._encoded
        mode = self._settings.save_mode
        changes = dict(encoded)
        size = self._size
        if mode != "on_set":
            is_immutable, encode = self._types.is_immutable, self._types.encode
            for name, value in self._values.items():
                if is_immutable(value):
                    continue
                now = encode(value, f"session[{name!r}]")
                changed = now != self._current(name)
                if changed:
                    size = self._size_with(name, now, size)
                if changed or mode != "on_change":
                    changes[name] = now
        if mode == "on_change":
            for name in encoded:
                register = registers.get(name)
                if changes[name] == (register[2] if register is not None else None):
                    del changes[name]
        if mode == "always" and (changes or self.accessed):
            for name, register in registers.items():
                if register[2] is not None and register[2][:MERGING_BYTES] != MERGING and name[:1] != "\0":
                    changes.setdefault(name, register[2])
        if self.merging:
            self._check_merging(changes)
        return changes

    def _check_merging(self, changes: dict[str, bytes | None]) -> None:
        for name, value in self.merging.items():
            if not value.pending:
                changes.pop(name, None)  # no mode sends again what others may have changed since
            elif name in changes:
                changes[name] = self._types.encode(value, f"session[{name!r}]")

    def settle(self, changes: dict[str, bytes | None], registers: dict[str, Register], version: tuple[int, bytes]) -> None:
        """Under the manager's lock: put what this request did to merging values into `changes`, joined with what the record holds by now.

        `changes` are `changes()`. What was done to one that others have removed or replaced meanwhile is gone with it.
        """
        for name, value in self.merging.items():
            if name not in changes or not value.pending:
                continue
            opened, now = self._registers.get(name), registers.get(name)
            if now is None and not value.new:
                del changes[name]
                continue
            mine: Register = (*version, build_merging(value.contribution(opened, now, version)))
            joined = mine if now is None else join(now, mine)
            if joined is now:
                del changes[name]
            else:
                changes[name] = joined[2]

    def contents(
        self, changes: dict[str, bytes | None], registers: dict[str, Register], version: tuple[int, bytes], first: tuple[int, bytes]
    ) -> dict[str, bytes | None]:
        """All attributes for a new id: what the record holds by now, and what this request changed; `version` is the next one there, `first` that of the
        new id's first commit."""
        self.settle(changes, registers, version)
        whole = {name: register[2] for name, register in registers.items()} | changes
        contents: dict[str, bytes | None] = {name: value for name, value in whole.items() if value is not None}
        for name, value in contents.items():
            if value is not None and value[:MERGING_BYTES] == MERGING:
                contents[name] = reborn(value, first)
        self._rebase(contents)
        return contents

    def _rebase(self, changes: dict[str, bytes | None]) -> None:
        for name, value in list(self.merging.items()):
            if name not in changes and not value.pending:
                continue
            try:
                value.rebase(changes.get(name) or self._current(name) or b"", self._types)
            except ValueDamaged:  # somebody added what this process cannot decode
                del self.merging[name], self._values[name]

    def committed(self, changes: dict[str, bytes | None], version: tuple[int, bytes]) -> None:
        """The record has them: what is changed from here on is another commit's."""
        for name, value in changes.items():
            before = self._current(name)
            if value is not before:  # it grew or shrank inside, or, with a new id, is another request's
                self._size += len(value or b"") - len(before or b"") + (len(name) if before is None else 0)
            self._registers[name] = (*version, value)
        self._encoded.clear()
        if self.merging:
            self._rebase(changes)
        self.new = False
        self._over = self.ending == INVALIDATED
        self.ending = 0
        self.previous_id = None

    def dropped(self) -> None:
        """It had been ended by somebody else before our end, or our new id, could be: there is no session here."""
        self._over = self.ending == INVALIDATED
        self.ending = 0
        self.id = self.previous_id = None
        self.key = b""
        self.logged_in = False
        self.offered = None
        self._registers, self._values, self._encoded, self.merging, self._size = {}, {}, {}, {}, 0
        self.new = True
