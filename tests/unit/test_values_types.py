"""Attribute values: what is accepted, what is refused and how the refusal reads, and what damaged bytes do."""

from __future__ import annotations

import enum
import re
import time as clock
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal, localcontext
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import cbor2
import pytest
from cbor2 import CBORTag

from caterwaul.managers.errors import ValueDamaged, ValueRefused
from caterwaul.managers.values import DEPTH_MAX, ValueTypes
from caterwaul.membership.errors import LocalError

TAG = 0x43570000
PATH = "session['cart']"


@dataclass(frozen=True)
class Money:
    amount: Decimal
    currency: str


class Foo:
    pass


class Color(enum.IntEnum):
    RED = 1


class Markup(str):
    __slots__ = ()


Point = namedtuple("Point", "x y")


class Lunar(tzinfo):
    def utcoffset(self, when: datetime | None) -> timedelta:
        return timedelta(hours=1)


@pytest.fixture
def types() -> ValueTypes:
    return ValueTypes()


def nested(depth: int) -> Any:
    value: Any = "core"
    for _ in range(depth):
        value = (value,)
    return value


class TestFidelity:
    def test_bool_and_int_and_float_stay_apart(self, types: ValueTypes) -> None:
        back = types.decode(types.encode([True, 1, 1.0, False, 0, -0.0], PATH))
        assert [type(item) for item in back] == [bool, int, float, bool, int, float]
        assert repr(back[5]) == "-0.0"

    def test_a_dict_keeps_its_order_and_the_types_of_its_keys(self, types: ValueTypes) -> None:
        value = {"z": 1, 2: "b", None: 3, b"y": 4, 1.5: 5, False: 6}
        back = types.decode(types.encode(value, PATH))
        assert list(back.items()) == list(value.items())
        assert [type(key) for key in back] == [type(key) for key in value]

    def test_a_named_zone_keeps_its_key_and_the_ambiguous_hour(self, types: ValueTypes) -> None:
        value = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)
        back = types.decode(types.encode(value, PATH))
        assert (back.tzinfo.key, back.fold, back.utcoffset()) == ("Europe/Berlin", 1, timedelta(hours=1))

    @pytest.mark.parametrize("offset", [timedelta(0), timedelta(hours=5, minutes=30), timedelta(microseconds=-1), timedelta(seconds=-1)])
    def test_a_fixed_offset_is_kept_to_the_microsecond(self, types: ValueTypes, offset: timedelta) -> None:
        for value in (datetime(2026, 1, 2, 3, tzinfo=timezone(offset)), time(3, 4, tzinfo=timezone(offset))):
            back = types.decode(types.encode(value, PATH))
            assert (back, back.utcoffset()) == (value, offset)

    def test_a_decimal_does_not_depend_on_the_threads_context(self, types: ValueTypes) -> None:
        expected = types.encode(Decimal("1E+7"), PATH)
        with localcontext() as context:
            context.capitals = 0
            context.prec = 2
            assert types.encode(Decimal("1E+7"), PATH) == expected
            assert str(types.decode(types.encode(Decimal("1.23456"), PATH))) == "1.23456"

    def test_a_value_that_is_plain_is_plain_cbor(self, types: ValueTypes) -> None:
        value = {"items": [{"sku": "a", "qty": 2}], "note": None}
        assert types.encode(value, PATH) == cbor2.dumps(value)

    def test_encoding_leaves_the_value_alone(self, types: ValueTypes) -> None:
        inner = (1, 2)
        value = {"a": [inner, {"b": inner}]}
        types.encode(value, PATH)
        assert value == {"a": [(1, 2), {"b": (1, 2)}]}
        assert value["a"][0] is inner

    def test_the_bytes_of_each_tag_are_frozen(self, types: ValueTypes) -> None:
        value = [
            datetime(2026, 1, 2, 3, 4, 5),
            datetime(2026, 1, 2, tzinfo=UTC),
            date(2026, 1, 2),
            time(3, 4),
            timedelta(1, 2, 3),
            Decimal("1.10"),
            UUID(int=1),
            {2, 1},
            frozenset({"a"}),
            (1,),
            {1: 2},
            1 << 64,
        ]
        assert types.encode(value, PATH).hex() == (
            "8cda4357000173323032362d30312d30325430333a30343a3035da435700018373323032362d30312d30325430303a30303a30300000"
            "da435700026a323032362d30312d3032da435700036830333a30343a3030da4357000483010203da4357000564312e3130"
            "da435700065000000000000000000000000000000001da43570007820102da43570008816161da435700098101da4357000a820102"
            "c249010000000000000000"
        )


class TestRefusal:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            ([0, 1, {"when": Foo()}], "[2]['when']: object of type Foo cannot be replicated; register it with ValueTypes.register or store a plain value"),
            (OrderedDict(a=1), ": object of type OrderedDict cannot be replicated; "),
            ({"c": Color.RED}, "['c']: object of type Color cannot be replicated; "),
            ([Markup("<b>")], "[0]: object of type Markup cannot be replicated; "),
            (Point(1, 2), ": object of type Point cannot be replicated; "),
            (bytearray(b"x"), ": object of type bytearray cannot be replicated; "),
            (1j, ": object of type complex cannot be replicated; "),
            ({(1, 2): 3}, ": a key of type tuple cannot be replicated; "),
            ({1: [Foo()]}, "[1][0]: object of type Foo "),
            ({"tags": {(1, Foo())}}, "['tags']{...}[1]: object of type Foo "),
            ({"a": ["fine", "\ud800"]}, "['a'][1]: text with a lone surrogate is no Unicode"),
            ({"\ud800": 1}, ": text with a lone surrogate"),
            ("\udfff", ": text with a lone surrogate"),
            ([1 << 4096], "[0]: an int of more than 4096 bits"),
            ({1 << 4096: 1}, ": an int of more than 4096 bits"),
            (Decimal((0, (1,) * 1001, 0)), ": a Decimal of more than 1000 digits"),
            (Decimal((0, (1,), 10_000_000)), ": a Decimal of more than"),
            (datetime(2026, 1, 1, tzinfo=Lunar()), ": a time zone of type Lunar cannot be replicated; use zoneinfo"),
            ({(1 << 61) * k - k for k in range(400)}, ": too many elements of equal hash"),
        ],
    )
    def test_a_refusal_names_the_path_inside_the_value(self, types: ValueTypes, value: Any, text: str) -> None:
        with pytest.raises(ValueRefused, match=re.escape(PATH + text)):
            types.encode(value, PATH)

    def test_a_cycle_is_refused(self, types: ValueTypes) -> None:
        loop: list[Any] = []
        loop.append({"self": loop})
        with pytest.raises(ValueRefused, match="contains itself"):
            types.encode(loop, PATH)

    def test_nesting_is_refused_beyond_the_limit_and_comes_back_at_it(self, types: ValueTypes) -> None:
        assert types.decode(types.encode(nested(DEPTH_MAX), PATH)) == nested(DEPTH_MAX)
        with pytest.raises(ValueRefused, match=f"deeper than {DEPTH_MAX}"):
            types.encode(nested(DEPTH_MAX + 1), PATH)

    def test_a_value_that_explodes_by_sharing_is_refused(self, types: ValueTypes) -> None:
        value: Any = []
        for _ in range(30):
            value = [value, value]
        with pytest.raises(ValueRefused, match="elements in all"):
            types.encode(value, PATH)


class TestRegisteredClasses:
    @pytest.fixture
    def types(self) -> ValueTypes:
        types = ValueTypes()
        types.register(Money, "money", lambda money: (money.amount, money.currency), lambda plain: Money(*plain))
        return types

    def test_an_instance_comes_back_as_its_class_anywhere_in_a_value(self, types: ValueTypes) -> None:
        price = Money(Decimal("9.90"), "EUR")
        value = {"price": price, "seen": {price}, 3: [(price,)]}
        assert types.decode(types.encode(value, PATH)) == value
        assert not types.is_immutable(price)

    def test_a_subclass_can_be_registered_for_itself(self, types: ValueTypes) -> None:
        types.register(Color, "color", int, Color)
        assert types.decode(types.encode([Color.RED, 1], PATH)) == [Color.RED, 1]
        assert type(types.decode(types.encode(Color.RED, PATH))) is Color

    def test_a_name_or_class_is_registered_once_and_built_in_types_never(self, types: ValueTypes) -> None:
        for cls, name in ((Money, "other"), (Foo, "money"), (str, "text"), (datetime, "when")):
            with pytest.raises(LocalError, match="registered already"):
                types.register(cls, name, str, str)

    def test_what_an_encoder_returns_is_checked_like_any_value(self, types: ValueTypes) -> None:
        types.register(Foo, "foo", lambda foo: {"inner": [object()]}, lambda plain: Foo())
        with pytest.raises(ValueRefused, match=re.escape(PATH + "[0].foo['inner'][0]: object of type object ")):
            types.encode([Foo()], PATH)

    def test_an_encoder_that_raises_is_a_refusal_with_its_cause(self, types: ValueTypes) -> None:
        types.register(Foo, "foo", lambda foo: foo.missing, lambda plain: Foo())
        with pytest.raises(ValueRefused, match=re.escape(PATH + "[0]: the registered encoder of 'foo' raised AttributeError")) as caught:
            types.encode([Foo()], PATH)
        assert isinstance(caught.value.__cause__, AttributeError)

    def test_an_encoder_that_returns_its_own_object_ends(self, types: ValueTypes) -> None:
        types.register(Foo, "foo", lambda foo: foo, lambda plain: Foo())
        with pytest.raises(ValueRefused, match="nested deeper"):
            types.encode(Foo(), PATH)

    def test_a_node_without_the_class_finds_the_value_damaged_and_says_which(self, types: ValueTypes) -> None:
        data = types.encode(Money(Decimal(1), "EUR"), PATH)
        with pytest.raises(ValueDamaged, match='no class is registered as "money"'):
            ValueTypes().decode(data)

    def test_a_decoder_that_raises_is_damage(self, types: ValueTypes) -> None:
        with pytest.raises(ValueDamaged, match="TypeError"):
            types.decode(cbor2.dumps(CBORTag(TAG + 11, ["money", [1, 2, 3]])))


class TestDamage:
    @pytest.mark.parametrize(
        "value",
        [
            cbor2.undefined,
            [cbor2.CBORSimpleValue(5)],
            CBORTag(TAG + 9, [cbor2.undefined]),
            CBORTag(TAG + 10, ["a", cbor2.undefined]),
            {1: 2},
            CBORTag(TAG, 1),
            CBORTag(TAG + 12, 1),
            CBORTag(1 << 63, 1),
            CBORTag(2, b"\xff" * 513),
            CBORTag(2, "text"),
            CBORTag(TAG + 1, "2026-01-02"),
            CBORTag(TAG + 1, "2026-01-02T00:00:00+00:00"),
            CBORTag(TAG + 1, ["2026-01-02T00:00:00", 2, None]),
            CBORTag(TAG + 1, ["2026-01-02T00:00:00", 0, "../../etc/passwd"]),
            CBORTag(TAG + 1, ["2026-01-02T00:00:00", 0, "No/Where"]),
            CBORTag(TAG + 1, ["2026-01-02T00:00:00", 0, 1 << 70]),
            CBORTag(TAG + 1, ["2026-01-02T00:00:00", 0]),
            CBORTag(TAG + 2, "20260102"),
            CBORTag(TAG + 2, "2026-13-02"),
            CBORTag(TAG + 3, 5),
            CBORTag(TAG + 4, [1 << 40, 0, 0]),
            CBORTag(TAG + 4, [True, 0, 0]),
            CBORTag(TAG + 5, "1_0"),
            CBORTag(TAG + 5, "9" * 200_000),
            CBORTag(TAG + 5, "\u0661"),
            CBORTag(TAG + 6, b"short"),
            CBORTag(TAG + 7, [1, 1]),
            CBORTag(TAG + 7, [[]]),
            CBORTag(TAG + 7, {"a": 1}),
            CBORTag(TAG + 9, "ab"),
            CBORTag(TAG + 10, ["a"]),
            CBORTag(TAG + 10, ["a", 1, "a", 2]),
            CBORTag(TAG + 10, [CBORTag(TAG + 9, [1]), 1]),
            CBORTag(TAG + 11, ["money"]),
            CBORTag(TAG + 11, [1, 2]),
        ],
    )
    def test_well_formed_cbor_that_is_no_value_is_damaged(self, types: ValueTypes, value: Any) -> None:
        with pytest.raises(ValueDamaged):
            types.decode(cbor2.dumps(value))

    @pytest.mark.parametrize(
        "data", [b"", b"\x01\x01", b"\x61", b"\x9f\x01\xff", b"\xa2\x61a\x01\x61a\x02", b"\xff", b"\x81" * 100, b"\x61\xff", b"\x9b" + b"\x7f" * 8]
    )
    def test_malformed_cbor_is_damaged(self, types: ValueTypes, data: bytes) -> None:
        with pytest.raises(ValueDamaged):
            types.decode(data)

    def test_every_tag_that_cbor2_would_decode_by_itself_is_refused(self, types: ValueTypes) -> None:
        known = [tag for tag in [*range(1300), 43000, 55799] if tag not in (2, 3)]
        for tag in known:
            for content in ("a", 1, b"aaaaaa", [], {}, [1, 2], None):
                with pytest.raises(ValueDamaged):
                    types.decode(cbor2.dumps(CBORTag(tag, content)))

    def test_the_text_of_damage_shows_no_contents(self, types: ValueTypes) -> None:
        with pytest.raises(ValueDamaged) as caught:
            types.decode(cbor2.dumps(["secret", CBORTag(TAG + 5, "secret")]))
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize(
        "make",
        [
            lambda: b"\x81" * 1_000_000,
            lambda: b"\x9b\x00\x00\x00\x10\x00\x00\x00\x00",
            lambda: b"\x5b\x00\x00\x00\x10\x00\x00\x00\x00",
            lambda: cbor2.dumps(CBORTag(TAG + 5, "9" * 1_000_000)),
            lambda: cbor2.dumps(CBORTag(2, b"\xff" * 1_000_000)),
            lambda: cbor2.dumps(CBORTag(TAG + 7, [((1 << 61) - 1) * k for k in range(60_000)])),
            lambda: cbor2.dumps(CBORTag(TAG + 10, [((1 << 61) - 1) * (k // 2) for k in range(60_000)])),
        ],
    )
    def test_hostile_bytes_are_refused_without_work(self, types: ValueTypes, make: Callable[[], bytes]) -> None:
        """Quadratic collisions would take ten seconds and more; linear refusal takes some 50 ms on a slow machine."""
        data = make()
        began = clock.process_time()
        with pytest.raises(ValueDamaged):
            types.decode(data)
        assert clock.process_time() - began < 2
