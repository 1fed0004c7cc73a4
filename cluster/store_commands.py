"""`caterwaul store`: prepare a store, look at what is in it, and move sessions between stores and files. No node has to run."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click

from ..managers.kept import KeptEnd, read_item
from ..managers.record import Record
from ..managers.settings import ManagerSettings
from ..managers.stores.opening import without_password
from ..managers.stores.store import NOTHING, Stored
from ..membership.codec import decode, encode
from ..membership.errors import LocalError, RemoteError
from .security.keyring import read_secrets
from .security.store_keys import store_secrets
from .snapshot_file import SnapshotWriter, read_snapshot
from .store_clock import CLOCK, age_s, stamp
from .store_place import BATCH, Place, Url, is_good, key_pages, merge, on_store, pages
from .text_tables import print_table, progress_bar, size_text, time_text

__all__ = ["store"]


_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON value on standard output.")
_space = click.option("--space", metavar="CLUSTER/MANAGER", help="Only this space. Default: all that the store has.")
_secret = click.option(
    "--secret-file", type=click.Path(path_type=Path), metavar="FILE", help="File with a secret (`caterwaul secret`) that seals what is in the other FILE."
)


@click.group()
def store() -> None:
    """Prepare the store of a configuration's `[store] url`, look into it, move what it has.

    URL is what the configuration says, such as sqlite:////var/lib/caterwaul/sessions.db, file:///var/lib/caterwaul, postgresql://user@host/db or redis://host; or @FILE, for a
    file that holds it, if there is a password in it. Each manager of a
    cluster has a space of its own in it, CLUSTER/MANAGER. All commands may be used while nodes use the store.
    """


@store.command()
@on_store
@_as_json
def init(place: Place, as_json: bool) -> None:
    """Make what the store needs (directories, tables), or bring it to this version. Nothing that it has is lost."""
    with place.opened("", create=True) as found:
        click.echo(json.dumps({"store": found.name, "ready": True}) if as_json else f"{found.name} is ready")


@store.command()
@on_store
@click.option("--cluster", metavar="NAME", required=True, help="The cluster that uses it, `cluster.name` of its configuration.")
@_as_json
def trust(place: Place, cluster: str, as_json: bool) -> None:
    """Say that what the store shows is right, though the cluster has not used it for longer than ends of sessions are remembered.

    Nodes refuse to bring anything back from such a store (a backup that was put back, one that was taken out of the configuration): whoever has ended a session since would be logged in again.
    """
    with place.opened(f"{cluster}/{CLOCK}") as found:
        seconds = age_s(found)
        stamp(found)
    _say(
        as_json,
        {"store": found.name, "cluster": cluster, "was_used_ago_s": round(seconds, 1)},
        f"{found.name} counts as used by {cluster} just now; {time_text(seconds)} ago before",
    )


@store.command("ls")
@on_store
@_space
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="With --space: so many sessions.")
@click.option("--after", metavar="KEY", default="", help="With --space: those after this one.")
@_as_json
def list_(place: Place, space: str | None, limit: int, after: str, as_json: bool) -> None:
    """What is in the store: its spaces, or with --space its sessions by key, the hash of their ids; never ids or values."""
    if space is not None:
        _list_sessions(place, space, limit, after, as_json)
        return
    counts = {name: _count(place, name) for name in place.spaces(None)}
    if as_json:
        click.echo(json.dumps(counts, indent=2))
        return
    head = ["SPACE", "SESSIONS", "ENDED", "OVER", "DAMAGED", "BYTES"]
    print_table(head, [[name, *(str(row[each]) for each in ("sessions", "ended", "over", "damaged")), size_text(row["bytes"])] for name, row in counts.items()])


@store.command()
@on_store
@click.argument("key", metavar="KEY")
@_space
@_as_json
@click.pass_context
def show(ctx: click.Context, place: Place, key: str, space: str | None, as_json: bool) -> None:
    """One session: when it was made and used, and the names and sizes of its attributes. KEY is what `ls --space` prints."""
    wanted = _key(key)
    for name in place.spaces(space):
        with place.opened(name) as found:
            item = found.load([wanted]).get(wanted)
        if item is None:
            continue
        about = {"space": name, **_about(wanted, item), "attributes": _attributes(item)}
        if as_json:
            click.echo(json.dumps(about, indent=2))
        else:
            click.echo("\n".join(f"{field}: {value}" for field, value in about.items() if field != "attributes"))
            if about["attributes"]:
                print_table(["ATTRIBUTE", "BYTES"], [[each, str(size)] for each, size in about["attributes"].items()])
        return
    click.echo(f"no session {key} in {without_password(place.url)}", err=True)
    ctx.exit(1)


@store.command()
@on_store
@_space
@_as_json
@click.pass_context
def verify(ctx: click.Context, place: Place, space: str | None, as_json: bool) -> None:
    """Read everything. Exit code 1: something is damaged; it was put out of the way where the store can tell, and nodes do the same."""
    found = {name: _count(place, name) for name in place.spaces(space)}
    damaged = sum(counts["damaged"] for counts in found.values())
    if as_json:
        click.echo(json.dumps({"spaces": found, "damaged": damaged}, indent=2))
    else:
        click.echo(f"{sum(counts['sessions'] + counts['ended'] for counts in found.values())} items read, {damaged} damaged")
    ctx.exit(1 if damaged else 0)


@store.command()
@on_store
@click.argument("file_path", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--cluster", metavar="NAME", help="The cluster whose spaces are exported; needed if the store has those of several.")
@_secret
@_as_json
def export(place: Place, file_path: Path, cluster: str | None, secret_file: Path | None, as_json: bool) -> None:
    """Write all sessions of the store, and what it knows of ended ones, to FILE: a snapshot, which `caterwaul snapshot load` and `caterwaul store import` take."""
    spaces = place.spaces(None)
    clusters = sorted({name.partition("/")[0] for name in spaces})
    if cluster is None and len(clusters) > 1:
        raise LocalError(f"{without_password(place.url)} has sessions of {len(clusters)} clusters ({', '.join(clusters)}): say which with --cluster")
    cluster = cluster or (clusters[0] if clusters else "caterwaul")
    managers = {name.partition("/")[2]: name for name in spaces if name.partition("/")[0] == cluster}
    about = {
        "cluster": cluster, "at_ms": int(time.time() * 1000), "managers": [{"name": name, "retention_s": ManagerSettings.retention_s} for name in sorted(managers)],
    }  # fmt: skip
    numbers: Counter[str] = Counter()
    secret = read_secrets(secret_file)[0] if secret_file is not None else None
    total = sum(place.length(space) for space in managers.values())
    with SnapshotWriter(file_path, about, secret) as file, progress_bar(total, "exporting") as advance:
        for manager, space in sorted(managers.items()):
            with place.opened(space) as found:
                for some in pages(found):
                    file.add(manager, encode([item.data for item in some.values()]))
                    numbers[manager] += len(some)
                    advance(len(some))
        size = file.finish({"sessions": dict(numbers), "skipped": 0})
    _say(as_json, {"path": str(file_path), "bytes": size, "items": dict(numbers)}, f"{sum(numbers.values())} items exported to {file_path}, {size} bytes")


@store.command("import")
@on_store
@click.argument("file_path", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
@_secret
@_as_json
def import_(place: Place, file_path: Path, secret_file: Path | None, as_json: bool) -> None:
    """Merge what FILE holds (of `store export` or `snapshot save`) into the store. What has ended there stays ended."""
    found = read_snapshot(file_path, read_secrets(secret_file)[0] if secret_file is not None else None)
    counts: Counter[str] = Counter()
    with progress_bar(sum(found.numbers["sessions"].values()), "importing") as advance:
        for manager, sessions in found.pages():
            items = decode(sessions)
            with place.opened(f"{found.about['cluster']}/{manager}") as there:
                counts.update(merge(there, {read_item(item).key: Stored(item, _until_ms(item), NOTHING) for item in items}))
            advance(len(items))
    _say_merged(as_json, counts)


@store.command()
@on_store
@click.argument("target", metavar="TO", type=Url())
@click.option("--to-secret", type=click.Path(path_type=Path), metavar="FILE", help="What `--store-secret` is for URL, for the store TO.")
@_space
@_as_json
def copy(place: Place, target: str, to_secret: Path | None, space: str | None, as_json: bool) -> None:
    """Merge all that the store URL has into the store TO, which is prepared (`init`) if need be. To change over: stop the nodes, copy, change `[store] url`, start."""
    counts: Counter[str] = Counter()
    spaces = place.spaces(space)
    to = Place(target, {**store_secrets(to_secret), "encrypt": place.secrets["encrypt"]})
    with progress_bar(sum(map(place.length, spaces)), "copying") as advance:
        for name in spaces:
            with place.opened(name) as found, to.opened(name, create=True) as there:
                for some in pages(found):
                    counts.update(merge(there, some))
                    advance(len(some))
    _say_merged(as_json, counts)


# -- items


def _key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 16:
        raise LocalError(f"{text!r} is no key: 32 hexadecimal digits, as `ls --space` prints them")
    return key


def _until_ms(item: bytes) -> int:
    """For what comes from a file, which does not say: as long as the defaults keep it. Nodes set it right with their next save."""
    found = read_item(item)
    if isinstance(found, KeptEnd):
        return found.head.ended_ms + int(ManagerSettings.retention_s * 1000)
    return found.used_ms + int(ManagerSettings.retention_s * 1000)


def _about(key: bytes, item: Stored) -> dict[str, Any]:
    now_ms = time.time() * 1000
    try:
        found = read_item(item.data)
    except RemoteError as error:
        return {"key": key.hex(), "state": f"damaged: {error}", "bytes": len(item.data)}
    state = "over" if item.until_ms <= now_ms else "ended" if isinstance(found, KeptEnd) else "live"
    used_ms = found.head.ended_ms if isinstance(found, KeptEnd) else found.used_ms
    return {
        "key": key.hex(),
        "state": state,
        "bytes": len(item.data),
        "used_ago_s": round((now_ms - used_ms) / 1000, 1),
        "kept_for_s": round((item.until_ms - now_ms) / 1000, 1),
    }


def _attributes(item: Stored) -> dict[str, int]:
    try:
        found = read_item(item.data)
        registers = {} if isinstance(found, KeptEnd) else Record.unpack(found.body).registers
    except RemoteError:
        return {}
    return {name: len(value) for name, (_, _, value) in sorted(registers.items()) if value is not None and not name.startswith("\0")}


def _count(place: Place, space: str) -> dict[str, int]:
    counts = {"sessions": 0, "ended": 0, "over": 0, "damaged": 0, "bytes": 0}
    now_ms = time.time() * 1000
    with place.opened(space) as found, progress_bar(0, space) as advance:
        for some in key_pages(found):
            for at in range(0, len(some), BATCH):
                for key, item in found.load(some[at : at + BATCH]).items():
                    counts["bytes"] += len(item.data)
                    if not is_good(key, item):
                        counts["damaged"] += 1
                    elif item.until_ms <= now_ms:
                        counts["over"] += 1
                    else:
                        counts["ended" if isinstance(read_item(item.data), KeptEnd) else "sessions"] += 1
            advance(len(some))
        counts["damaged"] += found.damaged
    return counts


def _list_sessions(place: Place, space: str, limit: int, after: str, as_json: bool) -> None:
    rows: list[dict[str, Any]] = []
    with place.opened(space) as found:
        last = _key(after) if after else b""
        while len(rows) < limit and (keys := found.keys(last, min(BATCH, limit - len(rows)))):
            items = found.load(keys)
            rows += [_about(key, items[key]) for key in keys if key in items]
            last = keys[-1]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    cells = [
        [row["key"], row["state"], size_text(row["bytes"]), *(time_text(max(0.0, row[each])) if each in row else "-" for each in ("used_ago_s", "kept_for_s"))]
        for row in rows
    ]
    print_table(["KEY", "STATE", "SIZE", "USED AGO", "KEPT FOR"], cells)


def _say(as_json: bool, value: dict[str, Any], text: str) -> None:
    click.echo(json.dumps(value, indent=2) if as_json else text)


def _say_merged(as_json: bool, counts: Counter[str]) -> None:
    found = {name: counts[name] for name in ("added", "merged", "there")}
    _say(as_json, found, f"{found['added']} items added, {found['merged']} merged with what was there, {found['there']} were there")
