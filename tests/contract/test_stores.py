"""Every kind of store under the contract of stores."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

pytest.register_assert_rewrite("tests.contract.stores")

from caterwaul.managers.stores.store import BATCH_MAX, NOTHING, Save, Store, StoreError  # noqa: E402

from .stores import FAR_MS, KEYS, KINDS, OVER_MS, WRONG, Kind, Lockstep, Place  # noqa: E402

KEY = b"k" * 16


def _with_each(kinds: list[Kind]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", kinds, ids=[kind.name for kind in kinds])


@pytest.fixture(autouse=True)
def _is_here(kind: Kind) -> None:
    if reason := kind.missing():
        pytest.skip(reason)


@pytest.fixture
def in_turns() -> Iterator[None]:
    """Threads of Python take turns so often that they meet in the middle of anything."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def place(kind: Kind, tmp_path: Path) -> Iterator[Place]:
    with kind.place(tmp_path) as place:
        yield place


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    store = _opened(place)
    yield store
    store.close()


def _opened(place: Place, space: str = "shop") -> Store:
    store = place.store(space)
    store.open(create=True)
    return store


def _data(store: Store, key: bytes = KEY) -> bytes | None:
    item = store.load([key]).get(key)
    return None if item is None else item.data


@_with_each(KINDS)
def test_it_does_what_a_dictionary_does(kind: Kind, tmp_path: Path) -> None:
    numbers = count()
    run_state_machine_as_test(lambda: Lockstep(kind, tmp_path / str(next(numbers))), settings=settings(max_examples=40, stateful_step_count=25, deadline=None))  # type: ignore[no-untyped-call]


@_with_each(KINDS)
@pytest.mark.usefixtures("in_turns")
def test_threads_that_save_one_item_lose_nothing(store: Store, place: Place) -> None:
    """Each adds its tokens by loading, merging and saving until it was not refused."""
    other, together = _opened(place), Barrier(8)

    def add(number: int) -> None:
        mine = (store, other)[number % 2]
        together.wait(60)
        for token in range(5):
            while True:
                item = mine.load([KEY]).get(KEY)
                data, revision = (item.data, item.revision) if item is not None else (b"", NOTHING)
                if mine.save_many([Save(KEY, data + b"%d.%d " % (number, token), FAR_MS, revision)]):
                    break

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add, range(8)))
    data = _data(store)
    other.close()
    assert data is not None
    assert sorted(data.split()) == sorted(b"%d.%d" % (number, token) for number in range(8) for token in range(5))


@_with_each(KINDS)
@pytest.mark.usefixtures("in_turns")
def test_batches_that_meet_in_any_order_are_each_saved_once(store: Store, place: Place) -> None:
    """Nobody waits for ever for somebody who waits for him; of all who replace the same, one does."""
    other = _opened(place)
    keys = [bytes([17 * number]) * 16 for number in range(16)]

    def save(number: int) -> dict[bytes, bytes]:
        shuffled = random.Random(number).sample(keys, len(keys))
        return (store, other)[number % 2].save_many([Save(key, b"%d" % number, FAR_MS) for key in shuffled])

    with ThreadPoolExecutor(8) as threads:
        saved = list(threads.map(save, range(8)))
    found = store.load(keys)
    other.close()
    assert sorted(key for some in saved for key in some) == keys
    assert all(found[key].data == b"%d" % number and found[key].revision == some[key] for number, some in enumerate(saved) for key in some)


@_with_each(KINDS)
@pytest.mark.parametrize("size", [0, 1, 70_000, 2 * 1024 * 1024])
def test_data_of_any_size_comes_back_as_it_was(store: Store, size: int) -> None:
    data = random.Random(size).randbytes(size)
    revisions = store.save_many([Save(KEY, data, FAR_MS)])
    assert store.load([KEY]) == {KEY: (data, FAR_MS, revisions[KEY])}


@_with_each(KINDS)
def test_every_byte_of_a_key_counts(store: Store) -> None:
    keys = [bytes([byte]) * 16 for byte in range(256)] + [bytes(8) + bytes([byte]) + bytes(7) for byte in range(1, 256)]
    saved = store.save_many([Save(key, key, FAR_MS) for key in keys])
    assert set(saved) == set(keys)
    assert {key: item.data for key, item in store.load(keys).items()} == {key: key for key in keys}
    assert store.keys() == sorted(keys)


@_with_each(KINDS)
def test_a_full_batch(store: Store) -> None:
    """In each call that takes one, and page by page."""
    chance = random.Random(7)
    keys = sorted(chance.randbytes(16) for _ in range(BATCH_MAX))
    saved = store.save_many([Save(key, key * 8, FAR_MS) for key in keys])
    assert set(saved) == set(keys)
    assert {key: item.data for key, item in store.load(keys).items()} == {key: key * 8 for key in keys}
    pages, after = [], b""
    while (page := store.keys(after, 300)) and len(pages) < 9:
        pages.append(page)
        after = page[-1]
    assert [len(page) for page in pages] == [300, 300, 300, 100]
    assert [key for page in pages for key in page] == keys == store.keys()
    store.quarantine({key: saved[key] for key in keys[:10]})
    assert store.damaged == 10
    store.delete(saved)
    assert store.keys() == []


@_with_each(KINDS)
def test_empty_calls(store: Store) -> None:
    assert store.load([]) == {} == store.save_many([])
    store.delete({})
    store.quarantine({})
    store.clear()
    assert store.keys() == [] == store.spaces()
    assert store.damaged == 0


@_with_each(KINDS)
def test_what_is_over_is_found_until_nothing_is(kind: Kind, store: Store) -> None:
    keys = [bytes([number]) * 16 for number in range(30)]
    store.save_many([Save(key, b"x", OVER_MS if number % 3 else FAR_MS) for number, key in enumerate(keys)])
    found: set[bytes] = set()
    while over := store.expired(OVER_MS, 7):
        assert len(over) <= 7
        assert not found & set(over)
        found |= set(over)
        store.delete(over)
    assert kind.drops or len(found) == 20
    assert store.keys() == keys[::3]


@_with_each(KINDS)
def test_what_is_saved_anew_is_over_when_that_says(kind: Kind, store: Store) -> None:
    first = store.save_many([Save(KEY, b"one", OVER_MS + 5)]) if not kind.drops else {KEY: NOTHING}
    second = store.save_many([Save(KEY, b"two", FAR_MS, first[KEY])])
    assert store.expired(FAR_MS - 1) == {}
    if not kind.drops:
        assert store.expired(FAR_MS) == second


@_with_each(KINDS)
def test_a_space_may_have_any_name(place: Place) -> None:
    """And no two that differ are the same, nor anything else than a name."""
    names = [
        "shop",
        "Shop",
        "sso:x",
        "a/b",
        "..",
        ".",
        "",
        " ",
        "a b",
        "a%2Fb",
        "a%b",
        "käse",
        "かな",
        "\n",
        "*",
        "'; --",
        "{a}",
        "x" * 100,
        "con.",
        "-",
        "~",
        "s",
    ]
    stores = [_opened(place, name) for name in names]
    for name, store in zip(names, stores, strict=True):
        assert set(store.save_many([Save(KEY, name.encode(), FAR_MS)])) == {KEY}
    assert [_data(store) for store in stores] == [name.encode() for name in names]
    assert sorted(stores[0].spaces()) == sorted(names)
    stores[3].clear()
    assert [_data(store) is None for store in stores] == [name == "a/b" for name in names]
    assert sorted(stores[3].spaces()) == sorted(set(names) - {"a/b"})
    for store in stores:
        store.close()


@_with_each(KINDS)
def test_what_was_put_out_of_the_way_is_not_there(store: Store) -> None:
    saved = store.save_many([Save(key, b"x", FAR_MS) for key in KEYS])
    store.quarantine({KEYS[0]: saved[KEYS[0]], KEY: WRONG})
    assert store.damaged == 1
    assert store.load([KEYS[0]]) == {}
    assert store.keys() == sorted(KEYS)[1:]
    anew = store.save_many([Save(KEYS[0], b"y", FAR_MS)])
    assert set(anew) == {KEYS[0]}
    store.quarantine({KEYS[0]: saved[KEYS[0]], KEYS[1]: NOTHING})
    assert store.damaged == 1, "somebody has saved it anew meanwhile"
    assert store.load([KEYS[0]])[KEYS[0]].data == b"y"
    store.quarantine(anew)
    assert store.damaged == 2
    assert store.spaces() == ["shop"]


@_with_each(KINDS)
def test_what_is_refused_changes_nothing(store: Store) -> None:
    saved = store.save_many([Save(KEY, b"one", FAR_MS)])
    for replaces in (NOTHING, WRONG, saved[KEY][:-1], saved[KEY] + b"x"):
        assert store.save_many([Save(KEY, b"two", FAR_MS, replaces)]) == {}
        store.delete({KEY: replaces})
    assert store.load([KEY]) == {KEY: (b"one", FAR_MS, saved[KEY])}


@_with_each(KINDS)
def test_it_is_closed_any_number_of_times(place: Place) -> None:
    store = place.store("shop")
    store.close()
    store = _opened(place)
    store.save_many([Save(KEY, b"x", FAR_MS)])
    store.close()
    store.close()
    again = place.store("shop")
    again.open()
    assert _data(again) == b"x"
    again.close()


@_with_each([kind for kind in KINDS if kind.breaks])
def test_in_trouble_every_call_is_a_store_error_and_afterwards_all_is_there(kind: Kind, place: Place, store: Store) -> None:
    saved = store.save_many([Save(KEY, b"x", FAR_MS)])
    calls = {
        "load": lambda: store.load([KEY]), "save_many": lambda: store.save_many([Save(KEY, b"y", FAR_MS, saved[KEY])]), "delete": lambda: store.delete(saved),
        "keys": store.keys, "quarantine": lambda: store.quarantine({KEY: WRONG}), "spaces": store.spaces, "clear": store.clear, "open": lambda: place.store("shop").open(),
    }  # fmt: skip
    with place.broken():
        for name, call in calls.items():
            with pytest.raises(StoreError) as caught:
                call()
            assert store.name in str(caught.value), name
        if not kind.drops:
            with pytest.raises(StoreError):
                store.expired(FAR_MS)
    assert store.load([KEY]) == {KEY: (b"x", FAR_MS, saved[KEY])}
    assert store.damaged == 0
