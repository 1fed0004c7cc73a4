"""`caterwaul snapshot`: all sessions of a running cluster into a file, and back."""

from __future__ import annotations

import json
import time
from base64 import b64decode
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import click

from ..managers.principals import EPOCHS
from ..membership.codec import decode
from ..membership.errors import LocalError
from ..membership.secret import Secret
from .asking import Asked, asking
from .security.keyring import read_secrets
from .snapshot_file import SnapshotFile, SnapshotWriter, read_snapshot
from .text_tables import print_table, progress_bar, time_text

__all__ = ["snapshot"]

_PAGE_S = 60.0
_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON value on standard output.")
_secret = click.option(
    "--secret-file", type=click.Path(path_type=Path), metavar="FILE", help="File with a secret (`caterwaul secret`) that seals what is in FILE."
)
_file = click.argument("file_path", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))


@click.group()
def snapshot() -> None:
    """Save all sessions of a running cluster to a file, and give them back to one.

    For the day on which all nodes have to stop at the same time: save, stop, start, load. The file holds what sessions hold; keep it as you keep
    those.
    """


@snapshot.command()
@asking
@_as_json
@_secret
@_file
@click.pass_context
def save(ctx: click.Context, node: Asked, as_json: bool, secret_file: Path | None, file_path: Path) -> None:
    """Save the sessions of the cluster that this node belongs to (of its domain), of all managers and maps, to FILE.

    Each session is saved as it stands at some moment of the run; requests go on meanwhile. What is written after a session was saved is not in the file, so stop
    the requests first if nothing may be missing. Exit code 1: a node came or went meanwhile, or copies were just being moved; sessions may be missing.
    """
    about = node.ask("/snapshot/")
    total = sum(found["sessions"] for found in node.ask("/statistics")["managers"].values())
    numbers: Counter[str] = Counter()
    skipped, views = 0, {about["view"]}
    at_ms = int(time.time() * 1000)
    managers = [{"name": one["name"], "retention_s": one["retention_s"]} for one in about["managers"]]
    with (
        SnapshotWriter(file_path, {"cluster": about["cluster"], "at_ms": at_ms, "managers": managers}, _secret_of(secret_file)) as file,
        progress_bar(total, "saving") as advance,
    ):
        for manager in about["managers"]:
            for member in manager["members"]:
                after = ""
                while True:
                    page = node.ask(f"/snapshot/page?manager={quote(manager['name'])}&member={member['uid']}&after={after}", timeout_s=_PAGE_S)
                    sessions = b64decode(page["items"])
                    number = len(decode(sessions))
                    if number:
                        file.add(manager["name"], sessions)
                    numbers[manager["name"]] += number
                    skipped += page["skipped"]
                    views.add(page["view"])
                    advance(number)
                    after = page["after"]
                    if not after:
                        break
        size = file.finish({"sessions": {one["name"]: numbers[one["name"]] for one in managers}, "skipped": skipped})
    whole = not skipped and len(views) == 1
    if as_json:
        click.echo(json.dumps({"path": str(file_path), "bytes": size, "sessions": dict(_of_users(numbers)), "skipped": skipped, "whole": whole}, indent=2))
    else:
        click.echo(f"{sum(_of_users(numbers).values())} sessions saved to {file_path}, {size} bytes")
        if skipped:
            click.echo(f"{skipped} sessions were just being moved, and are not in it; save again", err=True)
        if len(views) > 1:
            click.echo("nodes came or went meanwhile, so sessions may be missing; save again", err=True)
    ctx.exit(0 if whole else 1)


@snapshot.command()
@asking
@_as_json
@click.option("--force", is_flag=True, help="Also if it is older than the tombstones of ended sessions are kept.")
@click.option("--as-used", is_flag=True, help="Let the time since the snapshot not count: as if each session had just been used.")
@_secret
@_file
@click.pass_context
def load(ctx: click.Context, node: Asked, as_json: bool, secret_file: Path | None, file_path: Path, force: bool, as_used: bool) -> None:
    """Give the sessions of FILE back to the cluster that this node belongs to, while it serves requests.

    A session that has ended there since stays ended, one that lives there gets what it lacks, one that nobody has used for too long is left out. Managers that this node does not have are left out, and
    named. A cluster whose nodes were all stopped knows of no end since the snapshot: what users had logged out of after it lives again. Exit code 1: not every node has
    confirmed its sessions; they will get them when they compare.
    """
    found = read_snapshot(file_path, _secret_of(secret_file))
    _check_age(found, force)
    there = {one["name"] for one in node.ask("/snapshot/")["managers"]}
    counts: Counter[str] = Counter()
    unconfirmed: set[str] = set()
    left_out = sorted(name for name, number in found.numbers["sessions"].items() if number and name not in there)
    with progress_bar(sum(found.numbers["sessions"].values()), "loading") as advance:
        for manager, sessions in found.pages():
            number = len(decode(sessions))
            if manager in there:
                said = node.ask(f"/snapshot/restore?manager={quote(manager)}&as_used={int(as_used)}", "POST", _PAGE_S, sessions)
                unconfirmed.update(said.pop("unconfirmed"))
                if manager != EPOCHS:
                    counts.update(said)
            advance(number)
    done = not unconfirmed and not left_out
    if as_json:
        click.echo(
            json.dumps(
                {**{name: counts[name] for name in ("restored", "merged", "ended", "over")}, "unconfirmed": sorted(unconfirmed), "left_out": left_out}, indent=2
            )
        )
    else:
        click.echo(
            f"{counts['restored']} sessions restored, {counts['merged']} were there, {counts['ended']} had ended since, {counts['over']} were not used for too long"
        )
        if left_out:
            click.echo(f"left out, as this node has no such manager: {', '.join(left_out)}", err=True)
        if unconfirmed:
            click.echo(f"not confirmed by {', '.join(sorted(unconfirmed))}; they get the rest when they compare", err=True)
    ctx.exit(0 if done else 1)


@snapshot.command()
@_as_json
@_secret
@_file
def show(file_path: Path, secret_file: Path | None, as_json: bool) -> None:
    """Check FILE, and say of what and when it is. Needs no node."""
    found = read_snapshot(file_path, _secret_of(secret_file))
    age_s = max(0.0, time.time() - found.about["at_ms"] / 1000)
    numbers = found.numbers["sessions"]
    if as_json:
        click.echo(
            json.dumps(
                {"cluster": found.about["cluster"], "age_s": round(age_s, 3), "sessions": dict(_of_users(numbers)), "skipped": found.numbers["skipped"]},
                indent=2,
            )
        )
        return
    print_table(["MANAGER", "SESSIONS"], [[name, str(number)] for name, number in _of_users(numbers).items()])
    click.echo(f"of cluster {found.about['cluster']}, {time_text(age_s)} old, undamaged", err=True)


def _secret_of(path: Path | None) -> Secret | None:
    """The first of the file. Raises `LocalError`."""
    return read_secrets(path)[0] if path is not None else None


def _of_users(numbers: dict[str, int]) -> dict[str, int]:
    """Without our own bookkeeping."""
    return {name: number for name, number in numbers.items() if name != EPOCHS}


def _check_age(found: SnapshotFile, force: bool) -> None:
    """Nobody remembers for longer than `retention_s` what has ended. Raises `LocalError`."""
    kept_s = min((one["retention_s"] for one in found.about["managers"] if found.numbers["sessions"].get(one["name"])), default=0.0)
    age_s = time.time() - found.about["at_ms"] / 1000
    if age_s > kept_s and not force:
        raise LocalError(
            f"{found.path} is {time_text(age_s)} old, and ends of sessions are remembered for {time_text(kept_s)} (retention_s): "
            "sessions that users have ended since would live again; --force loads it all the same"
        )
