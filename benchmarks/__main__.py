"""``python -m benchmarks``: measure, print tables."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from .processes import MeasureError
from .report import terminal
from .rows import FULL, QUICK, measure, plan

__all__ = ["main"]


def _yardstick() -> float:
    """Nanoseconds for SHA-256 of 1 KB, the best of five: how fast this machine is at this moment."""
    data, rounds, best = bytes(1024), 20000, float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(rounds):
            hashlib.sha256(data).digest()
        best = min(best, time.perf_counter() - began)
    return best / rounds * 1e9


def _machine() -> dict[str, Any]:
    return {
        "cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), "kernel": platform.release(), "twisted": version("twisted"),
        "cbor2": version("cbor2"), "reactor": "epoll" if sys.platform.startswith("linux") else "default", "load_before": round(os.getloadavg()[0], 2),
        "sha256_1KB_ns_before": round(_yardstick()),
    }  # fmt: skip


def _write(path: str, result: dict[str, Any]) -> None:
    text = json.dumps(result, indent=1)
    if path == "-":
        click.echo(text)
    else:
        Path(path).write_text(text + "\n")


@click.command()
@click.option("--rows", "selected", default="", metavar="SELECT", help="Only these rows: beginnings of names or patterns, with commas: `flood-1r,latency*all`.")
@click.option("--repetitions", type=click.IntRange(1), default=3, show_default=True, help="Measure each row so often.")
@click.option("--quick", is_flag=True, help="Short and small: shows that everything works; do not quote its figures.")
@click.option("--json", "json_path", metavar="FILE", help="Write all repetitions of all rows to this file; `-`: print them instead of tables.")
@click.option("--list", "only_list", is_flag=True, help="Print the names of the rows, and measure nothing.")
def main(selected: str, repetitions: int, quick: bool, json_path: str | None, only_list: bool) -> None:
    """Measure Caterwaul with real processes on this machine's loopback.

    Figures are medians with the lowest and highest repetition. Compare only what ran in the same hour on the same machine.
    """
    rows = plan(tuple(part.strip() for part in selected.split(",") if part.strip()))
    if only_list or not rows:
        click.echo("\n".join(row.name for row in rows) if rows else f"no row is called {selected!r}; see --list", err=not rows)
        sys.exit(0 if rows else 2)
    machine = _machine()
    result: dict[str, Any] = {"name": "Caterwaul", "quick": quick, "machine": machine, "rows": []}
    began = time.monotonic()

    def tell(what: str) -> None:
        click.echo(f"{time.monotonic() - began:6.1f} s  {what}", err=True)

    try:
        for row, figures in measure(rows, QUICK if quick else FULL, repetitions, tell):
            result["rows"].append({"name": row.name, "repetitions": figures})
    except MeasureError as error:
        click.echo(f"stopped: {error}", err=True)
        sys.exit(1)
    machine |= {"load_after": round(os.getloadavg()[0], 2), "sha256_1KB_ns_after": round(_yardstick())}
    measured = {row["name"]: row["repetitions"] for row in result["rows"]}
    if json_path != "-":
        click.echo(terminal(measured))
    if json_path:
        _write(json_path, result)
    wrong = sum(int(one.get("wrong", 0)) for figures in measured.values() for one in figures)
    if wrong:
        click.echo(f"{wrong} sessions were not equal on all members", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
