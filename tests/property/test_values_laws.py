"""Laws of attribute values: what goes in comes out, equal sets have equal bytes, and no bytes surprise the decoder."""

from __future__ import annotations

import math
from datetime import UTC, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import cbor2
from hypothesis import example, given
from hypothesis import strategies as st

from caterwaul.managers.errors import ValueDamaged
from caterwaul.managers.value_tags import LEAVES
from caterwaul.managers.values import ValueTypes

TYPES = ValueTypes()

# Offsets below a second are what `fromisoformat` gets wrong.
fixed = st.timedeltas(timedelta(hours=-24, microseconds=1), timedelta(hours=24, microseconds=-1)).map(timezone)
zones = st.none() | fixed | st.sampled_from([ZoneInfo("UTC"), UTC])
folds = st.sampled_from([0, 1])
moments = st.builds(lambda value, fold, zone: value.replace(fold=fold, tzinfo=zone), st.datetimes() | st.times(), folds, zones)
decimals = st.decimals(allow_nan=False).filter(lambda value: len(str(value)) <= 1000)  # longer ones are refused
texts = st.text()
integers = st.integers() | st.integers(-(1 << 4096), (1 << 4096) - 1)
scalars = st.one_of(
    st.none(), st.booleans(), integers, st.floats(allow_nan=False), texts, st.binary(), moments, st.dates(), st.timedeltas(), decimals, st.uuids()
)
keys = st.one_of(st.none(), st.booleans(), integers, st.floats(allow_nan=False), texts, st.binary())
hashable = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3), max_leaves=8)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(texts, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4),
        st.sets(hashable, max_size=4),
        st.frozensets(hashable, max_size=4),
    )


values = st.recursive(scalars, containers, max_leaves=20)


def shape(value: Any) -> Any:
    """`value` with its types, in a form whose equality misses nothing: 1 is not True, 0.0 is not -0.0, 1.0 is not 1.00."""
    kind = type(value)
    if kind in (list, tuple):
        return kind, [shape(item) for item in value]
    if kind in (set, frozenset):
        return kind, sorted(repr(shape(item)) for item in value)
    if kind is dict:
        return kind, [(shape(key), shape(item)) for key, item in value.items()]
    if hasattr(value, "fold"):
        return kind, repr(value), value.fold
    return kind, repr(value)


@given(values)
@example({"a": [1, {"b": (2, {3})}], 4: b"x"})
def test_what_was_encoded_comes_back_equal_and_of_the_same_types_all_the_way_down(value: Any) -> None:
    back = TYPES.decode(TYPES.encode(value, "v"))
    assert shape(back) == shape(value)
    assert back == value


@given(values)
def test_encoding_is_stable_so_an_unread_copy_never_looks_changed(value: Any) -> None:
    data = TYPES.encode(value, "v")
    assert TYPES.encode(TYPES.decode(data), "v") == data


@given(st.lists(hashable, max_size=8), st.randoms(use_true_random=False))
def test_equal_sets_encode_equally_whatever_the_order_of_insertion(items: list[Any], rng: Any) -> None:
    unique: list[Any] = []
    for item in items:  # 1 == True == 1.0: the first one stays in a set
        if item not in unique:
            unique.append(item)
    shuffled = list(unique)
    rng.shuffle(shuffled)
    assert TYPES.encode(set(unique), "v") == TYPES.encode(set(shuffled), "v")
    assert TYPES.encode([frozenset(unique)], "v") == TYPES.encode([frozenset(shuffled)], "v")


@given(st.floats())
def test_every_float_comes_back(value: float) -> None:
    back = TYPES.decode(TYPES.encode(value, "v"))
    assert type(back) is float
    assert back == value or (math.isnan(back) and math.isnan(value))


@given(st.decimals(allow_nan=True))
def test_every_decimal_comes_back_with_its_digits(value: Any) -> None:
    assert str(TYPES.decode(TYPES.encode(value, "v"))) == str(value)


def decodes_or_is_damaged(data: bytes) -> None:
    try:
        value = TYPES.decode(data)
    except ValueDamaged:
        return
    TYPES.is_immutable(value)
    # What decodes is made of our types, so it is encodable; the depth of what Hypothesis draws is within the encoder's limit.
    assert isinstance(TYPES.encode(value, "v"), bytes)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_value_damaged(data: bytes) -> None:
    decodes_or_is_damaged(data)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.just(cbor2.undefined)
    | st.builds(cbor2.CBORSimpleValue, st.integers(0, 19)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text() | st.integers(), inner, max_size=4),
        st.builds(cbor2.CBORTag, st.integers(0x43570000, 0x4357000D) | st.integers(0, 300), inner),
    ),
    max_leaves=12,
)


@given(plain)
def test_well_formed_cbor_with_any_content_in_our_tags_raises_nothing_but_value_damaged(value: Any) -> None:
    try:
        data = cbor2.dumps(value)
    except ValueError:
        return
    decodes_or_is_damaged(data)


@given(values, st.data())
def test_a_flipped_or_lost_byte_raises_nothing_but_value_damaged(value: Any, data: Any) -> None:
    whole = bytearray(TYPES.encode(value, "v"))
    place = data.draw(st.integers(0, len(whole) - 1))
    decodes_or_is_damaged(bytes(whole[:place]))
    whole[place] ^= data.draw(st.integers(1, 255))
    decodes_or_is_damaged(bytes(whole))


@given(hashable)
def test_scalars_tuples_and_frozensets_are_immutable(value: Any) -> None:
    assert TYPES.is_immutable(value)
    assert not TYPES.is_immutable([value])
    assert not TYPES.is_immutable((value, {}))


def test_every_leaf_type_is_in_these_laws() -> None:
    assert {kind.__name__ for kind in LEAVES} == {"datetime", "time", "date", "timedelta", "Decimal", "UUID"}
