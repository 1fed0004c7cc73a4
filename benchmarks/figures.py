"""Numbers to tables: what every measurement needs, without any measuring.

A figure is always the median of its repetitions with the lowest and highest beside it: on a shared machine one number
alone says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from statistics import median
from typing import NamedTuple

__all__ = ["Spread", "chosen", "digits", "markdown", "percentile", "plain", "spread"]


class Spread(NamedTuple):
    low: float
    middle: float
    high: float

    def __str__(self) -> str:
        """``median (low-high)``; only one number where all are the same."""
        texts = [digits(value) for value in (self.middle, self.low, self.high)]
        return texts[0] if texts[1] == texts[2] else f"{texts[0]} ({texts[1]}-{texts[2]})"


def spread(values: Iterable[float]) -> Spread:
    """Lowest, median and highest. Raises `ValueError` without any value."""
    found = sorted(values)
    if not found:
        raise ValueError("no repetition gave this figure")
    return Spread(found[0], median(found), found[-1])


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of the sorted values do not exceed: nearest rank, so always one of them. 0.0 of none."""
    if not ordered:
        return 0.0
    rank = -(-len(ordered) * share // 1)  # rounded up
    return ordered[min(len(ordered), max(1, int(rank))) - 1]


def digits(value: float) -> str:
    """Three significant digits, without an exponent; whole numbers from 100 on."""
    size = abs(value)
    if size >= 99.95 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"


def chosen(name: str, selections: Sequence[str]) -> bool:
    """Whether one of the selections (the beginning of a row's name, or a pattern with ``*``) means this row. No selection means all."""
    return not selections or any(name.startswith(one) or fnmatchcase(name, one) for one in selections)


def plain(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns for a terminal, the first one to the left, the others to the right."""
    table = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(head))]
    lines = []
    for line in table:
        cells = [cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)
