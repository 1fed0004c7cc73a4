"""Turns plain tables (from TOML or keywords) into frozen dataclasses of knobs, and reports every mistake at once.

The rules are the same for every table: a key that no knob has is refused (with the nearest one that exists), a value of
another type is refused (an integer counts as a float; a boolean never counts as a number), bounds and choices are those
of the knob. Nothing here knows which tables exist; `settings.py` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import Field, fields
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ..membership.errors import LocalError

__all__ = ["Problems", "SettingsError", "build", "nearest"]

T = TypeVar("T")

_KINDS = {str: "text in quotes", int: "a whole number", float: "a number", bool: "true or false"}


class SettingsError(LocalError):
    """The configuration cannot be used. `lines` holds one complete sentence for each mistake."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = list(lines)
        super().__init__("\n".join(self.lines))


class Problems:
    """Mistakes found so far. `source` (a file's name, or empty for keywords) starts each line."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: list[str] = []

    def add(self, where: str, what: str) -> None:
        """``FILE: table.key: what is wrong``."""
        self.lines.append(": ".join(part for part in (self.source, where, what) if part))

    def raise_if_any(self) -> None:
        """Raises `SettingsError` with all lines."""
        if self.lines:
            raise SettingsError(self.lines)


def build(kind: type[T], table: object, where: str, problems: Problems) -> T:
    """An instance of the dataclass `kind` from a plain table; a key with a mistake keeps its default, so that checks can go on."""
    if not isinstance(table, Mapping):
        problems.add(where, f"{table!r} is not a table of settings")
        return kind()
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    good: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            problems.add(f"{where}.{key}", f"no such setting{nearest(key, known)}")
            continue
        fault = _fault(known[key], hints[key], value)
        if fault:
            problems.add(f"{where}.{key}", fault)
        else:
            good[key] = float(value) if hints[key] is float else list(value) if isinstance(value, list | tuple) else value
    try:
        return kind(**good)
    except LocalError as error:  # a check of the dataclass's own: "last part of where.key: what is wrong"
        at, _, what = str(error).partition(": ")
        problems.add(f"{where.rpartition('.')[0]}.{at}", what)
        return kind()


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean X?``, or nothing when nothing is near."""
    found = get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


def _fault(field: Field[Any], hint: Any, value: object) -> str:
    """What is wrong with this value, or nothing."""
    if get_origin(hint) is list:
        if not isinstance(value, list | tuple):
            return f"{value!r} is not a list"
        faults = (_fault_of_one(field, get_args(hint)[0], item) for item in value)
        return next((fault for fault in faults if fault), "")
    if get_origin(hint) is dict:
        if not isinstance(value, Mapping):
            return f"{value!r} is not a table"
        faults = (f"{name}: {fault}" for name, inner in value.items() if (fault := _fault(field, get_args(hint)[1], inner)))
        return next(faults, "")
    return _fault_of_one(field, hint, value)


def _fault_of_one(field: Field[Any], kind: type, value: object) -> str:
    accepted = (int, float) if kind is float else (kind,)
    if type(value) not in accepted:
        return f"{value!r} is not {_KINDS[kind]}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value!r} is not a finite number"
    choices, low, high = (field.metadata[name] for name in ("choices", "minimum", "maximum"))
    if choices and value not in choices:
        return f"{value!r} is none of {', '.join(map(str, choices))}{nearest(str(value), map(str, choices))}"
    if low is not None and isinstance(value, int | float) and value < low:
        return f"{value!r} is below the least allowed, {low}"
    if high is not None and isinstance(value, int | float) and value > high:
        return f"{value!r} is above the most allowed, {high}"
    return ""
