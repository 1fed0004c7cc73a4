"""The file of a snapshot: a first line, blocks, and a sum of all of it at the end.

A block is its length (4 bytes, big-endian) and so much CBOR: first what it is a snapshot of (a map), then pages ``[manager, sessions as one CBOR array]``, last the numbers (a map); then the
BLAKE2b-256 of all before. With a secret each block is sealed (AES-256-GCM; the key from the secret and 16 random bytes behind the first line by HKDF-SHA-256, the nonce its number). It is written aside, and
there under its name only when it is whole. It holds what sessions hold, so nobody but its owner may read it; and whoever could write it could make sessions, so one that others may write is not read.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ..membership.codec import decode, encode
from ..membership.errors import LocalError, RemoteError
from ..membership.secret import Secret

__all__ = ["SnapshotFile", "SnapshotWriter", "read_snapshot"]

_MAGIC, _SEALED_MAGIC = b"caterwaul snapshot 1\n", b"caterwaul snapshot s\n"  # of one length
_SALT_BYTES, _NONCE_BYTES = 16, 12
_SUM_BYTES = 32
_LENGTH_BYTES = 4
_BLOCK_MAX_BYTES = 256 * 1024 * 1024


class _Seal:
    """Of the blocks of one file, in their order. Without a secret they are plain."""

    def __init__(self, secret: Secret | None, salt: bytes) -> None:
        self._cipher = AESGCM(secret.derive(salt, b"caterwaul snapshot", 32)) if secret is not None else None
        self._number = 0

    def close(self, data: bytes) -> bytes:
        return self._cipher.encrypt(self._nonce(), data, None) if self._cipher is not None else data

    def open(self, data: bytes) -> bytes:
        """Raises `InvalidTag`."""
        return self._cipher.decrypt(self._nonce(), data, None) if self._cipher is not None else data

    def _nonce(self) -> bytes:
        self._number += 1
        return self._number.to_bytes(_NONCE_BYTES, "big")


class SnapshotWriter:
    """`with SnapshotWriter(path, about) as file: file.add(...); file.finish(...)`. Raises `LocalError` for what cannot be written; what was there before stays then."""

    def __init__(self, path: Path, about: dict[str, Any], secret: Secret | None = None) -> None:
        self._path = path
        self._aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        self._sum = blake2b(digest_size=_SUM_BYTES)
        self._finished = False
        try:
            descriptor = os.open(self._aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise LocalError(f"{path} cannot be written: {error.strerror}") from None
        self._file: BinaryIO = os.fdopen(descriptor, "wb")
        salt = secrets.token_bytes(_SALT_BYTES)
        self._seal = _Seal(secret, salt)
        self._write(_SEALED_MAGIC + salt if secret is not None else _MAGIC)
        self._block(about)

    def __enter__(self) -> SnapshotWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(OSError):
            self._file.close()
        if not self._finished:
            with suppress(OSError):
                self._aside.unlink()

    def add(self, manager: str, sessions: bytes) -> None:
        self._block([manager, sessions])

    def finish(self, numbers: dict[str, Any]) -> int:
        """How many bytes it has."""
        self._block(numbers)
        try:
            self._file.write(self._sum.digest())
            self._file.flush()
            os.fsync(self._file.fileno())
            size = self._file.tell()
            self._aside.rename(self._path)
            descriptor = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise LocalError(f"{self._path} cannot be written: {error.strerror}") from None
        self._finished = True
        return size

    def _block(self, content: Any) -> None:
        data = self._seal.close(encode(content))
        self._write(len(data).to_bytes(_LENGTH_BYTES, "big") + data)

    def _write(self, data: bytes) -> None:
        self._sum.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise LocalError(f"{self._path} cannot be written: {error.strerror}") from None


class SnapshotFile(NamedTuple):
    """One that is whole. `about`: ``{"cluster", "at_ms", "managers": [{"name", "retention_s"}]}``; `numbers`: ``{"sessions": {manager: number}, "skipped"}``."""

    path: Path
    about: dict[str, Any]
    numbers: dict[str, Any]
    secret: Secret | None = None

    def pages(self) -> Iterator[tuple[str, bytes]]:
        """(manager, sessions as one CBOR array), in the order of the file. Raises `LocalError` if it has changed since it was looked at."""
        for block in _blocks(self.path, self.secret):
            if type(block) is list:
                yield block[0], block[1]


def read_snapshot(path: Path, secret: Secret | None = None) -> SnapshotFile:
    """Look through the whole of it. Raises `LocalError` if it is not there, open to others, damaged, sealed with another secret, or of another kind."""
    first: Any = None
    last: Any = None
    for block in _blocks(path, secret):
        first, last = (block, None) if first is None else (first, block)
    if not _is_about(first) or not _is_numbers(last):
        raise LocalError(f"snapshot {path} is damaged: it does not say what it is of")
    return SnapshotFile(path, first, last, secret)


def _blocks(path: Path, secret: Secret | None) -> Iterator[Any]:
    """Its blocks; what comes before the end of the iteration is not yet known to be undamaged."""
    sum_ = blake2b(digest_size=_SUM_BYTES)
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise LocalError(f"{path} is no file")
            if found.st_uid not in (os.geteuid(), 0):
                raise LocalError(f"snapshot {path} belongs to user {found.st_uid}, and this process is user {os.geteuid()}: chown it, if you know who wrote it")
            if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise LocalError(f"snapshot {path} has mode {stat.S_IMODE(found.st_mode):04o}, so others of this machine can use it: chmod 600 {path}")
            line = file.read(len(_MAGIC))
            if line not in (_MAGIC, _SEALED_MAGIC):
                raise LocalError(f"{path} is no snapshot of this version of Caterwaul: it does not begin with {_MAGIC.decode().strip()!r}")
            is_sealed = line == _SEALED_MAGIC
            if is_sealed != (secret is not None):
                raise LocalError(f"snapshot {path} is {'sealed: give' if is_sealed else 'not sealed: leave out'} --secret-file")
            salt = file.read(_SALT_BYTES) if is_sealed else b""
            seal = _Seal(secret, salt)
            left = found.st_size - file.tell() - _SUM_BYTES
            sum_.update(line + salt)
            while left > 0:
                head = file.read(_LENGTH_BYTES)
                length = int.from_bytes(head, "big")
                if length > min(left - _LENGTH_BYTES, _BLOCK_MAX_BYTES):
                    raise LocalError(f"snapshot {path} is damaged, or was cut off")
                data = file.read(length)
                sum_.update(head)
                sum_.update(data)
                left -= _LENGTH_BYTES + length
                yield _decoded(path, seal, data)
            if left < 0 or file.read(_SUM_BYTES) != sum_.digest():
                raise LocalError(f"snapshot {path} is damaged, or was cut off: its sum is wrong")
    except OSError as error:
        raise LocalError(f"snapshot {path} cannot be read: {error.strerror}") from None


def _decoded(path: Path, seal: _Seal, data: bytes) -> Any:
    try:
        block = decode(seal.open(data))
    except InvalidTag:
        raise LocalError(f"snapshot {path} is damaged, or sealed with another secret") from None
    except RemoteError as error:
        raise LocalError(f"snapshot {path} is damaged: {error}") from None
    if type(block) is list and not (len(block) >= 2 and type(block[0]) is str and type(block[1]) is bytes):
        raise LocalError(f"snapshot {path} is damaged: a page is malformed")
    return block


def _is_about(block: Any) -> bool:
    match block:
        case {"cluster": str(), "at_ms": int(), "managers": list(managers)}:
            return all(type(one) is dict and type(one.get("name")) is str and type(one.get("retention_s")) in (int, float) for one in managers)
    return False


def _is_numbers(block: Any) -> bool:
    match block:
        case {"sessions": dict(sessions), "skipped": int()}:
            return all(type(name) is str and type(number) is int for name, number in sessions.items())
    return False
