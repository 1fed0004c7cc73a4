"""Items that only who has the secret can make, or read: around a store of any kind.

    magic 8 | form 1 | id of the secret 4 | HMAC-SHA-256 32 | data                     authenticated (`m`)
                                          | salt 16 | AES-256-GCM of the data, tag 16  encrypted too (`e`)

Space, key, `until_ms` and the head are authenticated with the data, so an item is good in its own place only. What a seal cannot tell is that the store lost an item,
or shows an older one of the same place again: it is a store, and whoever owns it can do that.

Keys come from the secret, one for each purpose (HKDF-SHA-256). To encrypt, each item has a key of its own, from 16 random bytes that are new at each save; that key is used
once, so the nonce is zero, and no counter has to survive a crash, a fork or a copied machine. After 2^64 saves two might have had the same salt.

What is not sealed with a secret that is known here, or at all, is refused: put out of the way, counted as `damaged`, and said in the log once for each reason. The same goes
for sealed items where there is no secret. So a secret that is begun with, or given up, costs what the store holds, and so does a wrong one; export before, and import afterwards.
A secret is changed without that by naming the one before among the `older` until all has been saved anew. Encryption may be switched at any time: both forms are opened.
"""

from __future__ import annotations

import secrets
import struct
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from hmac import compare_digest, digest
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from twisted.logger import Logger

from ...membership.errors import LocalError
from ...membership.secret import KEY_ID_BYTES, Secret
from .store import BATCH_MAX, Save, Store, Stored

__all__ = ["SealedStore"]

_MAGIC: Final = b"\xffcwseal1"  # no packed record begins so
_AUTHENTICATED, _ENCRYPTED = b"m", b"e"
_HEAD_BYTES = len(_MAGIC) + 1 + KEY_ID_BYTES
_MAC_BYTES, _SALT_BYTES, _TAG_BYTES, _KEY_BYTES = 32, 16, 16, 32
_ONCE = bytes(12)  # the nonce of a key that is used once
_REASONS = {
    "unsealed": "was written without a secret, and there is one here",
    "sealed": "is sealed with secret {id}, and there is none here",
    "foreign": "is sealed with secret {id}, which is none of those that are known here",
    "forged": "is not what was sealed with secret {id}: damaged, from another place, or forged",
}
_log = Logger()


class _Refused(Exception):
    """`reason`: of `_REASONS`."""

    def __init__(self, reason: str, secret: bytes = b"") -> None:
        super().__init__(reason)
        self.reason = reason
        self.secret = secret


class SealedStore:
    """What `store` holds of `space`, sealed by `secret`; without one, just that, and nothing sealed. `encrypt`: nobody else can read it. `older`: secrets that open too. Raises `LocalError`.

    `refused`: how many items, by the reason: `unsealed`, `sealed` (and no secret here), `foreign` (another secret), `forged`. Revisions are those of what is stored.
    """

    def __init__(self, store: Store, space: str, secret: Secret | None, encrypt: bool = False, older: Sequence[Secret] = ()) -> None:
        if secret is None and (encrypt or older):
            raise LocalError(f"store {store.name}: to encrypt takes a secret")
        self.name = store.name
        self.shared = store.shared
        self.refused: Counter[str] = Counter()
        self._store = store
        self._seal = _Seal(space, secret, encrypt, older) if secret is not None else None

    @property
    def damaged(self) -> int:
        return self._store.damaged

    def open(self, create: bool = False) -> None:
        self._store.open(create)

    def close(self) -> None:
        self._store.close()

    def load(self, keys: Collection[bytes]) -> dict[bytes, Stored]:
        found, refused = {}, {}
        for key, item in self._store.load(keys).items():
            try:
                found[key] = self._opened(key, item)
            except _Refused as why:
                self._tell(why)
                refused[key] = item.revision
        if refused:
            self._store.quarantine(refused)
        return found

    def save_many(self, saves: Sequence[Save]) -> dict[bytes, bytes]:
        if self._seal is not None:
            saves = [save._replace(data=self._seal.close(save.key, save.data, save.until_ms)) for save in saves]
        return self._store.save_many(saves)

    def delete(self, revisions: Mapping[bytes, bytes]) -> None:
        self._store.delete(revisions)

    def keys(self, after: bytes = b"", limit: int = BATCH_MAX) -> list[bytes]:
        return self._store.keys(after, limit)

    def expired(self, now_ms: int, limit: int = BATCH_MAX) -> dict[bytes, bytes]:
        return self._store.expired(now_ms, limit)

    def quarantine(self, revisions: Mapping[bytes, bytes]) -> None:
        self._store.quarantine(revisions)

    def spaces(self) -> list[str]:
        return self._store.spaces()

    def clear(self) -> None:
        self._store.clear()

    def _opened(self, key: bytes, item: Stored) -> Stored:
        is_sealed = item.data.startswith(_MAGIC)
        if self._seal is None:
            if is_sealed:
                raise _Refused("sealed", _id_of(item.data))
            return item
        if not is_sealed:
            raise _Refused("unsealed")
        return item._replace(data=self._seal.open(key, item.data, item.until_ms))

    def _tell(self, why: _Refused) -> None:
        self.refused[why.reason] += 1
        if self.refused[why.reason] == 1:
            text = _REASONS[why.reason].format(id=why.secret.hex())
            _log.error("store {name}: an item {text}. It is put out of the way, and so will be all like it, without further words", name=self.name, text=text)


class _Seal:
    """Of one space. Any thread."""

    def __init__(self, space: str, secret: Secret, encrypt: bool, older: Sequence[Secret]) -> None:
        name = space.encode()
        self._place = struct.pack(">I", len(name)) + name
        self._secrets = {one.id: one for one in (*older, secret)}
        self._mac_keys = {one.id: one.derive(b"", b"caterwaul store authenticated 1", _KEY_BYTES) for one in self._secrets.values()}
        self._own = secret.id
        self._form = _ENCRYPTED if encrypt else _AUTHENTICATED

    def close(self, key: bytes, data: bytes, until_ms: int) -> bytes:
        head = _MAGIC + self._form + self._own
        bound = self._bound(head, key, until_ms)
        if self._form == _AUTHENTICATED:
            return head + digest(self._mac_keys[self._own], bound + data, "sha256") + data
        salt = secrets.token_bytes(_SALT_BYTES)
        return head + salt + self._cipher(self._own, salt).encrypt(_ONCE, data, bound)

    def open(self, key: bytes, sealed: bytes, until_ms: int) -> bytes:
        """Raises `_Refused`."""
        head, rest = sealed[:_HEAD_BYTES], sealed[_HEAD_BYTES:]
        form, secret = head[len(_MAGIC) : -KEY_ID_BYTES], _id_of(sealed)
        if secret not in self._secrets:
            raise _Refused("foreign", secret)
        bound = self._bound(head, key, until_ms)
        if form == _AUTHENTICATED:
            mac, data = rest[:_MAC_BYTES], rest[_MAC_BYTES:]
            if compare_digest(mac, digest(self._mac_keys[secret], bound + data, "sha256")):
                return data
        elif form == _ENCRYPTED and len(rest) >= _SALT_BYTES + _TAG_BYTES:
            try:
                return self._cipher(secret, rest[:_SALT_BYTES]).decrypt(_ONCE, rest[_SALT_BYTES:], bound)
            except InvalidTag:
                pass
        raise _Refused("forged", secret)

    def _cipher(self, secret: bytes, salt: bytes) -> AESGCM:
        return AESGCM(self._secrets[secret].derive(salt, b"caterwaul store encrypted 1", _KEY_BYTES))

    def _bound(self, head: bytes, key: bytes, until_ms: int) -> bytes:
        """All of a known length, so that no two places and items make the same bytes."""
        return self._place + struct.pack(">16sq", key, until_ms) + head


def _id_of(sealed: bytes) -> bytes:
    return sealed[_HEAD_BYTES - KEY_ID_BYTES : _HEAD_BYTES]
