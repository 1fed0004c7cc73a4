"""A session as one request sees it: its attributes (`attributes.py`), its life, and what a commit has to send.

Changes are *found*, not declared: at commit the mutable values
that were read or set are encoded once more and compared with their bytes, so ``session["cart"].append(x)`` replicates.

A new session has no id until the first write. One object belongs to one request and is not for two threads at a time;
two requests of one session have an object each, and their commits merge by attribute.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode

from .attributes import Attributes, key_of
from .errors import SessionError, ValueDamaged
from .heads import ID_CHANGED, INVALIDATED
from .limits import Limits, chosen, pack_limit, read_role
from .locks import SessionLock
from .merging import MERGING, MERGING_BYTES, join, reborn
from .merging import build as build_merging
from .record import AGE_LIMIT, BEFORE, IDLE_LIMIT, RENEWED, ROLE, SEED, Register
from .renewal import SEED_BYTES, id_age_ms
from .tabs import Tab, tab_ids

__all__ = ["ID_CHARACTERS", "Session", "key_of"]

ID_CHARACTERS = 43  # 32 random bytes, URL-safe base64 without padding


class Session(Attributes):
    """`id` is None until the session was written for the first time. Reads raise `KeyError`; writes `ValueRefused`, `SessionEnded`, `SessionUnknown`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<Session {self.key.hex()[:8] or 'new'}{' ended' if self.ended else ''}>"

    # -- the session's life

    @property
    def modified(self) -> bool:
        """Whether a commit may have more to send than a touch: something was set, or a mutable value was read."""
        return bool(self.ending or self.renewing or self._encoded) or not all(map(self._types.is_immutable, self._values.values()))

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

    def renew(self, age_ms: int, limit_ms: int) -> None:
        """For fronts, before a commit: `cycle_id` by itself if the id is older than the limit, of a session that is `age_ms` old. The old id stands for the new one for a while."""
        if self.id is None or self.new or self.ending or self._over or self.unknown or self._frozen or age_ms - id_age_ms(self._registers) < limit_ms:
            return
        if self._current(SEED) is None:  # it is older than the setting: the next time
            self._put(SEED, self._entropy(SEED_BYTES))
        else:
            self.renewing = True

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

    def tab(self, tab_id: str) -> Tab:
        """Attributes of one browser tab alone: a mapping inside this session, see `tabs.py`. Nothing is written before something is set in it. Raises `ValueRefused` for what is no id."""
        return Tab(self, tab_id, self._settings.tabs_max)

    @property
    def tabs(self) -> list[str]:
        """Ids of the tabs that hold something, the one written to last first."""
        return tab_ids(self)

    def write(self, name: str, encoded: bytes | None) -> None:
        """For managers: set one, or remove it, whether or not it has been seen."""
        self._put(name, encoded)

    @property
    def max_idle_s(self) -> float:
        """Seconds without use after which this session ends: its own limit if it was set, else its role's, else the manager's. 0: never. Set None for no limit of its own."""
        return self._limits().idle_ms / 1000

    @max_idle_s.setter
    def max_idle_s(self, seconds: float | None) -> None:
        self._put(IDLE_LIMIT, pack_limit("session.max_idle_s", seconds))

    @property
    def max_age_s(self) -> float:
        """Seconds after its creation at which this session ends whatever its use, likewise. A new id is no new session."""
        return self._limits().absolute_ms / 1000

    @max_age_s.setter
    def max_age_s(self, seconds: float | None) -> None:
        self._put(AGE_LIMIT, pack_limit("session.max_age_s", seconds))

    def _limits(self) -> Limits:
        settings = self._settings
        managers = Limits(int(settings.idle_timeout_s * 1000), int(settings.absolute_timeout_s * 1000))
        return chosen(read_role(self._current(ROLE)), self._current(IDLE_LIMIT), self._current(AGE_LIMIT), managers)

    def lock(self, timeout_s: float | None = None, lease_s: float | None = None) -> SessionLock:
        """The session for this request alone, in the whole cluster, as far as all who change the same attribute take the lock: see `SessionLock`.

        `timeout_s`: the longest wait for it; `lease_s`: how long it is ours at most. None: the manager's `lock_timeout_s`, `lock_lease_s`.
        """
        if self._locked is None:
            raise SessionError("this session belongs to no node: there is nobody to grant its lock")
        return self._locked(self, timeout_s, lease_s)

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
        contents: dict[str, bytes | None] = {name: value for name, value in whole.items() if value is not None and name not in (BEFORE, RENEWED)}
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
        self.last = version
        self.new = False
        self._over = self.ending == INVALIDATED
        self.ending = 0
        self.renewing = False
        self.previous_id = None

    def reload(self, registers: dict[str, Register]) -> None:
        """From now on the session holds this, and nothing that was not committed."""
        self._registers, self._values, self._encoded, self.merging = registers, {}, {}, {}
        self._size = sum(len(name) + len(register[2]) for name, register in registers.items() if register[2] is not None)

    def base(self) -> dict[str, Register]:
        """What the last `reload`, or the opening, gave, with what this request has committed since: for `reload`."""
        return self._registers

    def undo(self, session_id: str, registers: dict[str, Register]) -> None:
        """Nothing since then has been done that was not committed."""
        if self.previous_id is not None or self.ending:
            self.id, self.key = session_id, key_of(session_id)
            self.previous_id, self.ending = None, 0
        self.logged_in = False
        self.reload(registers)

    def dropped(self) -> None:
        """It had been ended by somebody else before our end, or our new id, could be: there is no session here."""
        self._over = self.ending == INVALIDATED
        self.ending = 0
        self.renewing = False
        self.id = self.previous_id = None
        self.key = b""
        self.logged_in = False
        self.offered = None
        self._registers, self._values, self._encoded, self.merging, self._size = {}, {}, {}, {}, 0
        self.new = True
