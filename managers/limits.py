"""How long a session lives: the limits of its manager, of the role it logged in with, and its own; the nearest to the session counts.

Limits travel in the session's registers, those of a role too, as the member that logged it in has them in its settings: so whoever decides about the session's end obeys them,
whatever it has in its own. A limit is a register of eight bytes, ms; 0: none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..membership.codec import decode, encode
from ..membership.errors import RemoteError
from .errors import ValueRefused
from .heads import COUNTER_MAX
from .record import AGE_LIMIT, IDLE_LIMIT, ROLE, Register

__all__ = ["Limits", "Role", "chosen", "limits_of", "pack_limit", "read_limit", "read_role"]

_MOST_S = 3.2e9  # a century
_ROLE_MAX_BYTES = 256


class Limits(NamedTuple):
    """Of a manager, or of one session: ms; 0: none."""

    idle_ms: int
    absolute_ms: int


class Role(NamedTuple):
    """What a session was logged in as, and the limits that go with it; None: the manager's."""

    name: str
    idle_ms: int | None = None
    absolute_ms: int | None = None

    @classmethod
    def of(cls, name: str, timeouts: Mapping[str, list[float]]) -> Role:
        """`timeouts`: idle and absolute seconds by role, of the settings. Raises `ValueRefused` for what is no name."""
        try:
            is_good = isinstance(name, str) and 0 < len(name.encode()) <= _ROLE_MAX_BYTES
        except UnicodeEncodeError:
            is_good = False
        if not is_good:
            raise ValueRefused(f"role {name!r:.40}: use a text of 1 to {_ROLE_MAX_BYTES} bytes of UTF-8")
        idle_s, absolute_s = timeouts.get(name, (None, None))
        return cls(name, None if idle_s is None else int(idle_s * 1000), None if absolute_s is None else int(absolute_s * 1000))

    def pack(self) -> bytes:
        return encode(list(self))


def read_role(value: bytes | None) -> Role | None:
    """That of a register, which a peer has sent; None for what is none."""
    if value is None:
        return None
    try:
        wire = decode(value)
    except RemoteError:
        return None
    if type(wire) is not list or len(wire) < 3 or type(wire[0]) is not str:
        return None
    if not all(limit is None or (type(limit) is int and 0 <= limit <= COUNTER_MAX) for limit in wire[1:3]):
        return None
    return Role(*wire[:3])


def pack_limit(what: str, seconds: float | None) -> bytes | None:
    """The value of a limit's register; None: no limit of its own. Raises `ValueRefused`."""
    if seconds is not None and not 0 <= seconds <= _MOST_S:
        raise ValueRefused(f"{what} = {seconds!r}: use 0 (never) to {_MOST_S:.0f} seconds, or None for the manager's limit")
    return None if seconds is None else int(seconds * 1000).to_bytes(8, "big")


def read_limit(value: bytes | None) -> int | None:
    """ms; None for what is none."""
    return int.from_bytes(value, "big") if value is not None and len(value) == 8 else None


def limits_of(registers: Mapping[str, Register], managers: Limits) -> Limits:
    """Those that count for a session of these registers."""
    role, idle, age = registers.get(ROLE), registers.get(IDLE_LIMIT), registers.get(AGE_LIMIT)
    if role is None and idle is None and age is None:
        return managers
    return chosen(None if role is None else read_role(role[2]), None if idle is None else idle[2], None if age is None else age[2], managers)


def chosen(role: Role | None, idle: bytes | None, age: bytes | None, managers: Limits) -> Limits:
    """The session's own (the two registers), else its role's, else the manager's."""
    idle_ms, absolute_ms = read_limit(idle), read_limit(age)
    if role is not None:
        idle_ms = role.idle_ms if idle_ms is None else idle_ms
        absolute_ms = role.absolute_ms if absolute_ms is None else absolute_ms
    return Limits(managers.idle_ms if idle_ms is None else idle_ms, managers.absolute_ms if absolute_ms is None else absolute_ms)
