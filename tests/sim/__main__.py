"""``python -m tests.sim``: many seeds on all cores, or one seed again."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from time import monotonic

import click
from twisted.logger import globalLogBeginner

from .run import attempt
from .scenes import SCENES, WITHOUT_MANAGER
from .scenes import attempt as attempt_scene


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seeds", type=click.IntRange(1), default=30, show_default=True, help="How many seeds that prove something (void ones are replaced).")
@click.option("--first", type=int, default=1, show_default=True, help="The first seed.")
@click.option("--seed", type=str, help="Run this one only, and print its trace's digest.")
@click.option("--manager", type=click.Choice(["delta", "backup", "partitioned"]), default="delta", show_default=True, help="The type of session manager.")
@click.option("--scene", type=click.Choice(sorted(SCENES)), help="Not random faults, but this story.")
@click.option(
    "--features",
    is_flag=True,
    help="Seeds have what they draw of ids that change by themselves, locks and single sign-on, some several; else each even one has one.",
)
@click.option("--jobs", type=click.IntRange(1), default=os.cpu_count() or 1, show_default=True, help="Processes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def main(seeds: int, first: int, seed: str | None, manager: str, scene: str | None, features: bool, jobs: int, as_json: bool) -> None:
    """Run seeds of the simulator. Exit code 1 when a promise was broken; the output says how to replay it."""
    begin = monotonic()
    if scene is not None:
        sys.exit(_scene(scene, [int(seed)] if seed is not None else list(range(first, first + seeds)), manager, jobs))
    wanted = 1 if seed is not None else seeds
    queue = iter([int(seed) if seed.lstrip("-").isdigit() else seed] if seed is not None else range(first, first + 10 * seeds + 10))
    totals: Counter[str] = Counter()
    failed: dict[str, str] = {}
    voids: dict[str, str] = {}
    done = 0
    with ProcessPoolExecutor(jobs, initializer=_quiet) as pool:
        running = {pool.submit(attempt, one, manager, features): one for one in [next(queue) for _ in range(min(wanted, 2 * jobs))]}
        while running:
            future = next(as_completed(running))
            this = running.pop(future)
            result = future.result()
            if isinstance(result, str):
                failed[str(this)] = result
                click.echo(f"\n{result}\n\nreplay: make sim SEED={this} MANAGER={manager}{' FEATURES=1' if features else ''}\n", err=True)
            elif result.void and seed is None:
                voids[str(this)] = result.void
            else:
                done += 1
                totals.update(result.counters)
                if seed is not None:
                    click.echo(f"digest {result.digest}")
            if len(failed) < 10 and done + len(failed) + len(running) < wanted:
                following = next(queue, None)
                if following is not None:
                    running[pool.submit(attempt, following, manager, features)] = following
            if sys.stderr.isatty():
                click.echo(f"\r{done} seeds passed, {len(failed)} failed, {len(voids)} void ", err=True, nl=False)
            elif not as_json and done and done % 100 == 0 and not isinstance(result, str) and not result.void:
                click.echo(f"{done} seeds passed, {len(failed)} failed, {len(voids)} void, {monotonic() - begin:.0f} s", err=True)
    seconds = monotonic() - begin
    if as_json:
        click.echo(
            json.dumps({"passed": done, "failed": sorted(failed), "void": voids, "seconds": round(seconds, 1), "counters": dict(sorted(totals.items()))})
        )
    else:
        click.echo(
            f"{done} seeds passed, {len(failed)} failed, {len(voids)} void, {seconds:.0f} s; {totals['operations']} requests, {totals['acknowledged']} acknowledged writes"
        )
    sys.exit(1 if failed else 0)


def _quiet() -> None:
    """What coroutines of a world that is over log when they are collected concerns nobody. Errors of one that runs end it (`world.py`)."""
    globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)


def _scene(scene: str, seeds: list[int], manager: str, jobs: int) -> int:
    """The exit code."""
    failed, totals = 0, Counter[str]()
    with_manager = scene not in WITHOUT_MANAGER
    with ProcessPoolExecutor(jobs, initializer=_quiet) as pool:
        for seed, result in zip(seeds, pool.map(partial(attempt_scene, manager=manager, scene=scene), seeds), strict=True):
            if isinstance(result, str):
                failed += 1
                click.echo(f"\n{result}\n\nreplay: make sim SCENE={scene} SEED={seed}{f' MANAGER={manager}' if with_manager else ''}\n", err=True)
            else:
                totals.update(result)
    click.echo(
        f"{scene}{f', {manager}' if with_manager else ''}: {len(seeds) - failed} of {len(seeds)} seeds passed; {totals['requests']} requests, {totals['unknown']} unknown"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    main()
