"""A setting that explains itself.

Each package declares its settings as a frozen dataclass of *knobs*; `cluster/settings.py` reads them from TOML or
keywords and checks them, `caterwaul config` prints them with their documentation, and a test refuses a knob without it.
The text gives meaning, formula and what raising or lowering it costs; the unit is the end of the name (`_s`, `_bytes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Any

__all__ = ["knob"]


def knob(
    default: Any,
    doc: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[Any] | None = None,
) -> Any:
    """A dataclass field with its documentation and bounds (inclusive). A list default is copied for each instance."""
    metadata = {"doc": doc, "minimum": minimum, "maximum": maximum, "choices": tuple(choices) if choices else None}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)
