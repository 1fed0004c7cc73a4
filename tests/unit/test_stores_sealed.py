"""What a seal promises: only who has the secret makes items, or reads them where they are encrypted, and each is good in its place only."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import globalLogPublisher

from caterwaul.managers.stores.opening import open_store
from caterwaul.managers.stores.sealed import SealedStore
from caterwaul.managers.stores.store import NOTHING, Save, Store
from caterwaul.membership.errors import LocalError
from caterwaul.membership.secret import Secret

FAR_MS = 4_000_000_000_000
KEY, OTHER = b"k" * 16, b"o" * 16
SECRET, ANOTHER = Secret(b"a secret of the test"), Secret(b"another of the test")
DATA = b"the contents of a session"
FORMS = [False, True]
_numbers = count()


@pytest.fixture
def url() -> str:
    return f"memory:sealed-{next(_numbers)}"


@pytest.fixture
def logged() -> Iterator[list[str]]:
    events: list[str] = []

    def observe(event: dict[str, Any]) -> None:
        if "text" in event:
            events.append(event["log_format"].format(**event))

    globalLogPublisher.addObserver(observe)
    yield events
    globalLogPublisher.removeObserver(observe)


def of(url: str, space: str = "shop", **settings: Any) -> SealedStore:
    store = open_store(url, space, **settings)
    assert isinstance(store, SealedStore)
    return store


def saved(store: Store, *keys: bytes) -> None:
    assert store.save_many([Save(key, DATA, FAR_MS) for key in keys or [KEY]])


def stored(url: str, space: str = "shop", key: bytes = KEY) -> bytes:
    """What the store behind the seal has."""
    return of(url, space)._store.load([key])[key].data


def replant(url: str, data: bytes, space: str = "shop", key: bytes = KEY, until_ms: int = FAR_MS) -> None:
    behind = of(url, space)._store
    there = behind.load([key]).get(key)
    assert behind.save_many([Save(key, data, until_ms, NOTHING if there is None else there.revision)])


@pytest.mark.parametrize("encrypt", FORMS)
def test_only_encrypted_data_hides(url: str, encrypt: bool) -> None:
    saved(of(url, secret=SECRET, encrypt=encrypt))
    assert (DATA in stored(url)) != encrypt


@pytest.mark.parametrize("encrypt", FORMS)
def test_it_is_good_in_its_own_place_only(url: str, encrypt: bool) -> None:
    """Not under another key, in another space, or for longer."""
    saved(of(url, secret=SECRET, encrypt=encrypt))
    data = stored(url)
    replant(url, data, key=OTHER)
    replant(url, data, space="shop2")
    store, other = (of(url, space, secret=SECRET, encrypt=encrypt) for space in ("shop", "shop2"))
    assert store.load([KEY, OTHER]).keys() == {KEY}
    assert other.load([KEY]) == {}
    replant(url, data, until_ms=FAR_MS + 1)
    assert store.load([KEY]) == {}
    assert (store.refused, other.refused) == ({"forged": 2}, {"forged": 1})
    assert (store.damaged, other.damaged) == (2, 1)
    assert store.keys() == []


@pytest.mark.parametrize("encrypt", FORMS)
@given(draw=st.data())
def test_whatever_is_changed_is_noticed(encrypt: bool, draw: st.DataObject) -> None:
    url = f"memory:sealed-{next(_numbers)}"
    store = of(url, secret=SECRET, encrypt=encrypt)
    saved(store)
    data = bytearray(stored(url))
    if draw.draw(st.booleans()):
        data[draw.draw(st.integers(0, len(data) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    else:
        del data[draw.draw(st.integers(0, len(data) - 1)) :]
    replant(url, bytes(data))
    assert store.load([KEY]) == {}
    assert store.damaged == 1 == store.refused.total()
    saved(store)
    assert store.load([KEY])[KEY].data == DATA


@pytest.mark.parametrize("encrypt", FORMS)
@given(st.binary(max_size=120))
def test_no_bytes_open(encrypt: bool, data: bytes) -> None:
    url = f"memory:sealed-{next(_numbers)}"
    for beginning in (b"", b"\xffcwseal1", b"\xffcwseal1e" + SECRET.id, b"\xffcwseal1m" + SECRET.id):
        replant(url, beginning + data)
        assert of(url, secret=SECRET, encrypt=encrypt).load([KEY]) == {}


@pytest.mark.parametrize(
    ("wrote", "reads", "reason", "says"),
    [
        ({}, {"secret": SECRET}, "unsealed", "was written without a secret"),
        ({}, {"secret": SECRET, "encrypt": True}, "unsealed", "was written without a secret"),
        ({"secret": SECRET}, {}, "sealed", f"is sealed with secret {SECRET.id.hex()}, and there is none here"),
        ({"secret": SECRET, "encrypt": True}, {}, "sealed", f"is sealed with secret {SECRET.id.hex()}, and there is none here"),
        ({"secret": SECRET}, {"secret": ANOTHER}, "foreign", f"is sealed with secret {SECRET.id.hex()}, which is none of those"),
    ],
)
def test_sealed_and_not_sealed_do_not_mix(url: str, logged: list[str], wrote: Any, reads: Any, reason: str, says: str) -> None:
    """What was written otherwise is out of the way and counted, the log says why once, and all goes on."""
    saved(of(url, **wrote), KEY, OTHER)
    store = of(url, **reads)
    assert store.load([KEY, OTHER]) == {}
    assert store.refused == {reason: 2}
    assert store.damaged == 2
    assert [says in text and "memory:sealed" in text for text in logged] == [True]
    saved(store)
    assert store.load([KEY])[KEY].data == DATA


@pytest.mark.parametrize("encrypt", FORMS)
def test_a_secret_is_changed_with_the_older_one_still_known(url: str, encrypt: bool) -> None:
    saved(of(url, secret=SECRET, encrypt=encrypt))
    store = of(url, secret=ANOTHER, encrypt=encrypt, older=[SECRET])
    item = store.load([KEY])[KEY]
    assert item.data == DATA
    assert store.save_many([Save(KEY, DATA, FAR_MS, item.revision)])
    assert of(url, secret=ANOTHER, encrypt=encrypt).load([KEY])[KEY].data == DATA


def test_encryption_is_switched_at_any_time(url: str) -> None:
    for encrypt in (False, True, False):
        store = of(url, secret=SECRET, encrypt=encrypt)
        item = store.load([KEY]).get(KEY)
        assert item is None or item.data == DATA
        assert store.save_many([Save(KEY, DATA, FAR_MS, NOTHING if item is None else item.revision)])
        assert (DATA in stored(url)) != encrypt


def test_no_two_saves_are_encrypted_alike(url: str) -> None:
    store, seen, revision = of(url, secret=SECRET, encrypt=True), set(), NOTHING
    for _ in range(50):
        revision = store.save_many([Save(KEY, DATA, FAR_MS, revision)])[KEY]
        seen.add(stored(url)[13:29])
    assert len(seen) == 50


@pytest.mark.parametrize("settings", [{"encrypt": True}, {"older": [SECRET]}])
def test_to_encrypt_takes_a_secret(url: str, settings: Any) -> None:
    with pytest.raises(LocalError, match="takes a secret"):
        of(url, **settings)


def test_what_another_member_has_put_right_meanwhile_stays(url: str) -> None:
    """Two find the same bad item; one puts it away and saves anew; the other must not put that away."""
    store = of(url, secret=SECRET)
    replant(url, b"bad")
    behind, load = store._store, store._store.load
    found = load([KEY])

    def late(keys: Any) -> Any:
        if found:
            answer = dict(found)
            found.clear()
            other = of(url, secret=SECRET)
            assert other.load([KEY]) == {}
            saved(other)
            return answer
        return load(keys)

    behind.load = late  # type: ignore[method-assign]
    assert store.load([KEY]) == {}
    assert store.load([KEY])[KEY].data == DATA
    assert store.damaged == 0
