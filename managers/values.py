"""What an attribute may hold, and its bytes.

A value is what comes back *equal and of the same types all the way down*: types are matched exactly, so a subclass (an
`Enum`, `Markup`, `OrderedDict`) is refused until it is registered, rather than silently flattened. Plain data is plain
CBOR; everything else wears one of our own tags, each checked on decoding; cbor2's own tags are refused. There is no pickle.
Merging values (`merging_types.py`) have a form of their own, and stand at the top of a value only.
Equal sets have equal bytes, because the session finds its changes by comparing encodings. Whatever can be encoded can be
decoded (the limits below hold on both sides), and no bytes whatsoever raise anything but `ValueDamaged`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from typing import Any, TypeVar

from cbor2 import CBORDecoder, CBORTag, dumps

from ..membership.errors import LocalError
from .errors import ValueDamaged, ValueRefused
from .merging import MERGING, MERGING_BYTES
from .merging_types import MERGING_TYPES, merging_from
from .value_tags import CLASS, DECODERS, FROZENSET, KEYS, LEAVES, MAP, SET, TUPLE, Unfit, bounded, crowded, no_simple_values, refuse

__all__ = ["DEPTH_MAX", "ITEMS_MAX", "ValueTypes"]

DEPTH_MAX = 32  # containers inside containers
ITEMS_MAX = 1 << 20  # elements of one value; ends the walk of `a = [b, b]; b = [c, c]; ...`

T = TypeVar("T")

_DIRECT = frozenset({type(None), bool, float, str, bytes})  # encoded by cbor2 as they are; int needs a look at its size
_TEXT = frozenset({str, bytes})  # keys of a plain CBOR map; Python hashes these with a secret, so nobody makes them collide
_FLAT = _DIRECT | {int}  # nothing is inside these, however long
_OWN = _DIRECT | LEAVES.keys() | MERGING_TYPES | {int, list, dict, tuple, set, frozenset}
_WORD = 1 << 63
_TEXT_HEAD, _TEXT_HEAD_1 = 0x60, 0x78  # of a text: its bytes, up to 23, are added to it; the next byte says how many
_SIMPLE = re.compile(rb"[\xe0-\xf3\xf7\xf8]")  # without one of these bytes there is no CBOR simple value


class ValueTypes:
    """The types that sessions can hold: the built-in ones, and the classes that the application registered.

    Register at import time, the same on every node; `encode`, `decode` and `is_immutable` are then safe from any thread.
    """

    def __init__(self) -> None:
        self._classes: dict[type, tuple[str, Callable[[Any], Any]]] = {}
        self._decoders: dict[str, Callable[[Any], Any]] = {}
        self._profile: dict[str, Any] = {
            "max_depth": 2 * DEPTH_MAX + 2,  # a level is a tag and its array; inside the last, a tagged scalar
            "allow_indefinite": False,
            "allow_duplicate_keys": False,
            "strict_hashable_types": True,
            "semantic_decoders": DECODERS | {CLASS: self._decode_class},
            "tag_hook": refuse,
        }

    def register(self, cls: type[T], name: str, encode: Callable[[T], Any], decode: Callable[[Any], T]) -> None:
        """Let attributes hold instances of exactly `cls`: `encode` gives a value of known types, `decode` takes it back.

        `name` is what travels: keep it when the class moves. Raises `LocalError` when either is taken.
        """
        if cls in _OWN or cls in self._classes:
            raise LocalError(f"{cls.__qualname__} is registered already")
        if name in self._decoders:
            raise LocalError(f"the name {name!r} is registered already, for another class")
        self._classes[cls] = (name, encode)
        self._decoders[name] = decode

    def encode(self, value: Any, path: str) -> bytes:
        """The bytes of `value`. Raises `ValueRefused`, its text beginning with `path` and the way inside the value."""
        try:
            kind = type(value)
            if kind in _DIRECT:
                return dumps(value)
            if kind is int:
                return dumps(bounded(value))
            if kind in MERGING_TYPES:
                return value.encoded(self, path)  # type: ignore[no-any-return]
            return dumps(_Walk(self._classes, _DIRECT).plain(value, DEPTH_MAX))
        except Unfit as error:
            raise _refused(error, path) from error.__cause__
        except UnicodeEncodeError:  # a lone surrogate somewhere; look again, now at each text
            pass
        try:
            return dumps(_Walk(self._classes, _DIRECT - _TEXT).plain(value, DEPTH_MAX))
        except Unfit as error:
            raise _refused(error, path) from None

    def decode(self, data: bytes) -> Any:
        """The value of these bytes, all of them. Raises `ValueDamaged` and nothing else, whatever the bytes.

        The cost is linear in `len(data)`, whose limit is the caller's.
        """
        try:
            head = data[0] if data else 0
            if _TEXT_HEAD <= head <= _TEXT_HEAD_1:  # what is read most; to make a decoder costs ten times as much
                begin = 2 if head == _TEXT_HEAD_1 else 1
                if len(data) - begin == (data[1] if begin == 2 else head - _TEXT_HEAD):
                    return data[begin:].decode()
            stream = BytesIO(data)
            value = CBORDecoder(stream, read_size=len(data) or 1, **self._profile).decode()
            if type(value) not in _FLAT and _SIMPLE.search(data):
                no_simple_values(value)
        except Exception as error:
            if data[:MERGING_BYTES] == MERGING:
                return merging_from(data, self)
            cause = error if isinstance(error, Unfit) else error.__cause__
            reason = cause.reason if isinstance(cause, Unfit) else type(cause or error).__name__
            raise ValueDamaged(f"stored value cannot be decoded: {reason}") from None
        if stream.tell() != len(data):
            raise ValueDamaged("stored value cannot be decoded: bytes after its end")
        return value

    def is_immutable(self, value: Any) -> bool:
        """Whether `value` can never change in place, so that a commit need not compare it."""
        kind = type(value)
        if kind is tuple or kind is frozenset:
            return all(map(self.is_immutable, value))
        return kind in _DIRECT or kind is int or kind in LEAVES

    def _decode_class(self, content: Any, _: bool) -> Any:
        if type(content) is not list or len(content) != 2:
            raise Unfit("a malformed tag")
        name, plain = content
        no_simple_values(plain)
        decode = self._decoders.get(name) if type(name) is str else None
        if decode is None:
            raise Unfit(f"no class is registered as {json.dumps(name[:80])}" if type(name) is str else "class without a name")
        return decode(plain)


class _Walk:
    """One pass from a value to what cbor2 encodes; parts that are plain already are shared, not copied."""

    __slots__ = ("classes", "direct", "left")

    def __init__(self, classes: dict[type, tuple[str, Callable[[Any], Any]]], direct: frozenset[type]) -> None:
        self.classes = classes
        self.direct = direct
        self.left = ITEMS_MAX

    def plain(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in self.direct:
            return value
        if kind is int:
            return bounded(value)
        if kind is dict:
            return self._dict(value, depth)
        if kind is list:
            return self._items(value, depth)
        if kind in LEAVES:
            return LEAVES[kind](value)
        if kind is tuple:
            return CBORTag(TUPLE, self._items(value, depth))
        if kind is set or kind is frozenset:
            return CBORTag(SET if kind is set else FROZENSET, sorted(self._elements(value, depth), key=dumps))
        if kind in self.classes:
            return self._registered(value, depth)
        if kind is bytes:
            return value
        if kind is str:
            return _text(value)
        if kind in MERGING_TYPES:
            raise Unfit(f"a {kind.__name__} merges only as an attribute of its own, not inside another value")
        raise Unfit(f"object of type {kind.__qualname__} cannot be replicated; {_advice(kind)}")

    def _items(self, items: Sequence[Any], depth: int) -> Sequence[Any]:
        depth = self._deeper(depth, len(items))
        direct = self.direct
        if direct.issuperset(map(type, items)):
            return items
        made = None
        for index, item in enumerate(items):
            kind = type(item)
            if kind in direct or (kind is int and -_WORD < item < _WORD):
                continue
            try:
                plain = self.plain(item, depth)
            except Unfit as error:
                error.path.append(f"[{index}]")
                raise
            if plain is not item:
                if made is None:
                    made = list(items)
                made[index] = plain
        return items if made is None else made

    def _dict(self, value: dict[Any, Any], depth: int) -> Any:
        depth = self._deeper(depth, len(value))
        direct = self.direct
        made = None
        if not direct.issuperset(map(type, value.values())):
            for key, item in value.items():
                kind = type(item)
                if kind in direct or (kind is int and -_WORD < item < _WORD):
                    continue
                try:
                    plain = self.plain(item, depth)
                except Unfit as error:
                    error.path.append(f"[{_key_text(key)}]")
                    raise
                if plain is not item:
                    if made is None:
                        made = dict(value)
                    made[key] = plain
        made = value if made is None else made
        if _TEXT.issuperset(map(type, value)) and str in direct:
            return made
        return self._mapping(made)

    def _mapping(self, value: dict[Any, Any]) -> CBORTag:
        """Keys that are not text travel as a list of key, item, key, item: collisions are then ours to find."""
        flat: list[Any] = []
        for key, item in value.items():
            if type(key) not in KEYS:
                raise Unfit(f"a key of type {type(key).__qualname__} cannot be replicated; keys are str, bytes, int, float, bool or None")
            flat += (_text(key) if type(key) is str else bounded(key) if type(key) is int else key, item)
        if crowded(value):
            raise Unfit("too many keys of equal hash")
        return CBORTag(MAP, flat)

    def _elements(self, value: Iterable[Any], depth: int) -> Sequence[Any]:
        elements = list(value)
        if crowded(elements):
            raise Unfit("too many elements of equal hash")
        try:
            return self._items(elements, depth)
        except Unfit as error:
            error.path[-1:] = ["{...}"] if error.path else []  # elements of a set have no number
            raise

    def _registered(self, value: Any, depth: int) -> CBORTag:
        name, encode = self.classes[type(value)]
        depth = self._deeper(depth, 1)
        try:
            content = encode(value)
        except Exception as error:
            raise Unfit(f"the registered encoder of {name!r} raised {type(error).__name__}") from error
        try:
            return CBORTag(CLASS, [name, self.plain(content, depth)])
        except Unfit as error:
            error.path.append(f".{name}")
            raise

    def _deeper(self, depth: int, items: int) -> int:
        self.left -= items
        if not depth:
            raise Unfit(f"nested deeper than {DEPTH_MAX} containers, or contains itself")
        if self.left < 0:
            raise Unfit(f"more than {ITEMS_MAX} elements in all")
        return depth - 1


def _refused(error: Unfit, path: str) -> ValueRefused:
    return ValueRefused(f"{path}{''.join(reversed(error.path))}: {error.reason}")


def _advice(kind: type) -> str:
    base = next((known.__name__ for known in kind.__mro__ if known in _OWN), None)
    flat = f" (as a {base} it would come back as another type)" if base else ""
    return f"register it with ValueTypes.register or store a plain value{flat}"


def _key_text(key: object) -> str:
    text = repr(key)
    return text if len(text) <= 60 else text[:60] + "..."


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unfit("text with a lone surrogate is no Unicode") from None
    return value
