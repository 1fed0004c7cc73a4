"""How commands show things to people: columns, sizes, times, progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click

__all__ = ["print_table", "progress_bar", "size_text", "time_text"]


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """To standard output, in columns as wide as they have to be."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in [head, *rows]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def size_text(size_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} GiB"


def time_text(time_s: float) -> str:
    if time_s < 100:
        return f"{time_s:.1f} s"
    return f"{time_s / 60:.0f} min" if time_s < 100 * 60 else f"{time_s / 3600:.0f} h"


@contextmanager
def progress_bar(length: int, label: str) -> Iterator[Callable[[int], None]]:
    """On standard error, if that is a terminal. Gives what tells it of steps."""
    if not sys.stderr.isatty():
        yield lambda steps: None
        return
    with click.progressbar(length=length, label=label, file=sys.stderr) as bar:
        yield bar.update
