"""Tokens: what a browser has written last, as its cookie carries it.

A token names up to four commits, each by its origin (the first 6 bytes of the uid) and its counter; a record whose `applied`
map reaches all of them holds what this browser wrote. A message authentication code binds it to one session, with a
random key that lives in the record as a register: so nobody makes a member wait for commits that never were, and a token
that is old, cut, made up, or another session's is as good as none. Written as URL-safe base64 without padding::

    8 bytes MAC | 1 byte width | (6 bytes origin | counter of `width` bytes, big-endian) 1 to 4 times, the latest last

22 characters for one commit, 87 at most. The MAC is BLAKE2b over what follows it, keyed, with the session's key as salt.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from hashlib import blake2b
from hmac import compare_digest

from .record import Register

__all__ = [
    "SECRET_BYTES",
    "TOKEN_KEY",
    "Written",
    "add_commit",
    "authentic",
    "claimed",
    "is_of",
    "latest_token",
    "secret_of",
    "short_of",
    "uncovered",
    "write_token",
]

TOKEN_KEY = "\0token"  #: the register with the secret; made by the session's first commit
SECRET_BYTES = 16
_MAC_BYTES = 8
_ORIGIN_BYTES = 6
_ORIGINS_MAX = 4
_is_token = re.compile(r"[A-Za-z0-9_-]{22,87}").fullmatch

#: The last commits of one browser: ``{first 6 bytes of the origin: counter}``, the latest last.
Written = dict[bytes, int]


def write_token(written: Written, secret: bytes, key: bytes) -> str:
    """The token of these commits to the session of this key (16 bytes each); empty for none."""
    if not written:
        return ""
    width = (max(written.values()).bit_length() + 7) // 8
    body = bytes((width,)) + b"".join(origin + counter.to_bytes(width, "big") for origin, counter in written.items())
    return urlsafe_b64encode(_mac(body, secret, key) + body).rstrip(b"=").decode("ascii")


def claimed(text: str) -> Written:
    """What a token says, which may be a lie. Any text is safe; one that is no token says nothing."""
    return _read(text)[0]


def authentic(text: str, secret: bytes | None, key: bytes) -> Written:
    """What a token says if it was written with this secret for this session, else nothing."""
    written, mac, body = _read(text)
    return written if written and secret is not None and compare_digest(mac, _mac(body, secret, key)) else {}


def add_commit(text: str, secret: bytes, key: bytes, origin: bytes, counter: int) -> str:
    """The token of what `text` is authentic for and one commit more. The oldest of too many is left out."""
    written = authentic(text, secret, key)
    short = origin[:_ORIGIN_BYTES]
    counter = max(counter, written.pop(short, 0))
    written[short] = counter
    if len(written) > _ORIGINS_MAX:
        del written[next(iter(written))]
    return write_token(written, secret, key)


def latest_token(registers: Mapping[str, Register], applied: Mapping[bytes, int], key: bytes) -> str:
    """That of the last commit that a record with these has, by whoever; empty without a secret."""
    secret = secret_of(registers)
    if secret is None or not applied:
        return ""
    origin, counter = max(applied.items(), key=lambda item: (item[1], item[0]))
    return add_commit("", secret, key, origin, counter)


def uncovered(written: Written, applied: Mapping[bytes, int]) -> Written:
    """Those of these commits that a record with this map (by whole uids) does not have."""
    if not written:
        return {}
    have: Written = {}
    for origin, counter in applied.items():
        short = origin[:_ORIGIN_BYTES]
        if counter > have.get(short, 0):
            have[short] = counter
    return {short: counter for short, counter in written.items() if counter > have.get(short, 0)}


def short_of(uid: bytes) -> bytes:
    """What stands for this origin."""
    return uid[:_ORIGIN_BYTES]


def is_of(uid: bytes, written: Written) -> bool:
    """Whether this member is the origin of one of these commits."""
    return uid[:_ORIGIN_BYTES] in written


def secret_of(registers: Mapping[str, Register]) -> bytes | None:
    """The secret in a record's registers; None without one, or if a peer sent something else in its place."""
    register = registers.get(TOKEN_KEY)
    secret = register[2] if register is not None else None
    return secret if secret is not None and len(secret) == SECRET_BYTES else None


def _mac(body: bytes, secret: bytes, key: bytes) -> bytes:
    return blake2b(body, digest_size=_MAC_BYTES, key=secret, salt=key).digest()


def _read(text: str) -> tuple[Written, bytes, bytes]:
    """(what it says, MAC, what that covers); three times nothing if it has not the form."""
    if not _is_token(text) or len(text) % 4 == 1:
        return {}, b"", b""
    whole = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    mac, body = whole[:_MAC_BYTES], whole[_MAC_BYTES:]
    width = body[0]
    step = _ORIGIN_BYTES + width
    count, rest = divmod(len(body) - 1, step)
    if not 1 <= width <= 8 or rest or not 1 <= count <= _ORIGINS_MAX:
        return {}, b"", b""
    starts = range(1, len(body), step)
    return {body[at : at + _ORIGIN_BYTES]: int.from_bytes(body[at + _ORIGIN_BYTES : at + step], "big") for at in starts}, mac, body
