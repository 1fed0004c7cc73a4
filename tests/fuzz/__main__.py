"""``python -m tests.fuzz``: every decoder for its share of the time, or one input again.

Each target has a process of its own (`child.py`), so that one that hangs, eats memory or crashes the interpreter takes nobody with it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from random import SystemRandom
from time import monotonic
from typing import Any

import click

from .limits import CPU_MS_MAX, MEMORY_BYTES_MAX, Failed, Feeder, load, measure
from .targets import TARGETS

_SECONDS_MIN = 2.0
_PATIENCE_S = 60.0  # beyond its time: importing, and one input that takes long
_FOLDER = Path(".fuzz")
CHILD = ["-m", "tests.fuzz.child"]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", type=click.FloatRange(0), default=1.0, show_default=True, help="For all targets together.")
@click.option("--target", "names", multiple=True, type=click.Choice(list(TARGETS)), metavar="NAME", help="Only this one; may be given several times.")
@click.option("--jobs", type=click.IntRange(1), default=os.cpu_count() or 1, show_default=True, help="Processes at a time.")
@click.option("--seed", type=int, help="Of all chance; printed when it is not given.")
@click.option(
    "--folder", type=click.Path(path_type=Path), default=_FOLDER, show_default=True, help="Where the corpus is kept from run to run, and failures are."
)
@click.option(
    "--replay",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Run the inputs of this file once more, and say what they cost.",
)
@click.option("--list", "listed", is_flag=True, help="Say which targets there are.")
def main(minutes: float, names: tuple[str, ...], jobs: int, seed: int | None, folder: Path, replay: Path | None, listed: bool) -> None:
    """Hostile bytes against every decoder. Exit code 1 when anything but the error that is allowed came out of one, when an input took more than
    50 ms of CPU or 100 MiB of memory, or when a process died; the output says how to replay it.
    """
    if listed:
        click.echo("\n".join(TARGETS))
    elif replay is not None:
        sys.exit(_replay(replay))
    else:
        sys.exit(_campaign(names or tuple(TARGETS), minutes, jobs, SystemRandom().randrange(2**31) if seed is None else seed, folder))


def _replay(path: Path) -> int:
    name, inputs = load(path.read_bytes())
    target = TARGETS[name]
    feeder = Feeder(target)
    try:
        for data in inputs:
            feeder.feed(data)
    except Failed as failed:
        click.echo(f"{name}: {len(inputs)} inputs, the last one of {len(inputs[-1])} bytes {inputs[-1][:200].hex()}\n{failed}", err=True)
        return 1
    least_ms, most = measure(target, inputs)
    fine = least_ms <= CPU_MS_MAX and most <= MEMORY_BYTES_MAX
    click.echo(f"{name}: nothing escaped; the last of {len(inputs)} inputs took {least_ms:.2f} ms and {most / 2**20:.2f} MiB")
    return 0 if fine else 1


def _campaign(names: tuple[str, ...], minutes: float, jobs: int, seed: int, folder: Path) -> int:
    seconds = max(_SECONDS_MIN, minutes * 60 * min(jobs, len(names)) / len(names))
    folder.mkdir(parents=True, exist_ok=True)
    click.echo(f"{len(names)} targets, {seconds:.0f} s each, {jobs} at a time, seed {seed}")
    begin, rows, failures = monotonic(), {}, {}
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(_child, name, seconds, folder, seed + number): name for number, name in enumerate(names)}
        for future in as_completed(running):
            name = running[future]
            rows[name], failure = future.result()
            if failure:
                failures[name] = failure
            click.echo(f"{monotonic() - begin:6.0f} s  {name:20} {rows[name].get('executions', 0):>10,} executions  {'FAILED' if failure else ''}")
    click.echo(_table({name: rows[name] for name in names}))
    for name, failure in failures.items():
        click.echo(f"\n{name}: {failure}", err=True)
    return 1 if failures else 0


def _child(name: str, seconds: float, folder: Path, seed: int) -> tuple[dict[str, Any], str]:
    """(what it told last, why it failed or nothing)."""
    status, log = folder / f"{name}.json", folder / f"{name}.log"
    status.unlink(missing_ok=True)
    command = [sys.executable, *CHILD, name, str(seconds), str(folder.resolve()), str(seed)]
    code: int | str
    with log.open("wb") as output:
        try:
            code = subprocess.run(command, stdout=output, stderr=output, timeout=seconds + _PATIENCE_S, check=False).returncode
        except subprocess.TimeoutExpired:
            code = "hangs"
    told = json.loads(status.read_text()) if status.exists() else {}
    text = log.read_text(errors="replace")
    told["features"] = int(([0, *re.findall(r"\bft: (\d+)", text)])[-1])
    if code == 0:
        return told, ""
    if told.get("failed"):
        shutil.copy(log, Path(told["failed"]).with_suffix(".txt"))
        said = text[text.rfind("Traceback") :] if "Traceback" in text else text[-2000:]
        return told, f"{said.strip()}\nreplay: python -m tests.fuzz --replay {told['failed']}"
    return told, f"its process ended with {code}; the end of {log}:\n{text[-2000:]}"


def _table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [f"\n{'target':20} {'executions':>12} {'exec/s':>9} {'refused':>8} {'features':>9} {'slowest ms':>11} {'most MiB':>9}"]
    for name, row in rows.items():
        executions, seconds = row.get("executions", 0), row.get("seconds", 0.0)
        lines.append(
            f"{name:20} {executions:>12,} {executions / seconds if seconds else 0:>9,.0f} {100 * row.get('refused', 0) // max(1, executions):>7}%"
            f" {row['features'] if row.get('guided') else '-':>9} {row.get('slowest_ms', 0.0):>11.2f} {row.get('most_bytes', 0) / 2**20:>9.2f}"
        )
    lines.append(f"{'all':20} {sum(row.get('executions', 0) for row in rows.values()):>12,}")
    if not all(row.get("guided") for row in rows.values()):
        lines.append("without coverage: atheris is not installed (pip install -e '.[fuzz]'; it has wheels for CPython 3.11 to 3.13 on x86-64 Linux)")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
