"""The command `caterwaul`.

Exit codes: 0 it went well, 1 it did not, 2 the command or the configuration is wrong. What a command was asked for goes to
standard output, everything else to standard error; `--json` gives programs one JSON value instead of text for people.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import click

from ..membership.errors import LocalError
from .asking import Asked, asking
from .config import SettingsError
from .demo.command import run_check, run_demo
from .demo.nodes import Layout
from .describe import to_json, to_markdown, to_toml
from .draining import DRAINED, DRAINING, SERVING
from .foreground import configured, read_settings, run_node
from .login_commands import logins, logout
from .security.commands import ca, secret
from .snapshot_commands import snapshot
from .store_commands import store
from .text_tables import print_table, progress_bar, size_text, time_text
from .wrap_command import wrap

__all__ = ["main"]

_PAGE = 500  # sessions asked for at a time
_SHOWN = 10  # keys in a table; JSON has all
_LOOK_S = 0.1  # between looks at something that goes on
_REHEARSAL_S = 300.0  # a million sessions take a minute
T = TypeVar("T")


class _Group(click.Group):
    """Ends with one line for each mistake, and never with a traceback for what a user can mend."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SettingsError as error:
            for line in error.lines:
                click.echo(line, err=True)
            ctx.exit(2)
        except LocalError as error:
            click.echo(f"caterwaul: {error}", err=True)
            ctx.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("caterwaul"), prog_name="caterwaul", message="%(prog)s %(version)s")
def main() -> None:
    """In-memory HTTP session replication for Python web servers.

    Try `caterwaul demo`. To run a node: `caterwaul node --config node.toml`; to look at it from another terminal:
    `caterwaul members` and `caterwaul sessions`.
    """


main.add_command(secret)
main.add_command(ca)
main.add_command(logins)
main.add_command(logout)
main.add_command(snapshot)
main.add_command(store)
main.add_command(wrap)


_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON value on standard output.")


@main.command()
@configured
@click.option("--verbose", "-v", is_flag=True, help="Log what happens, not only what is wrong.")
def node(path: str | None, overrides: Sequence[str], verbose: bool) -> None:
    """Run a node in the foreground, until it is interrupted.

    The same as `twistd -n caterwaul --config FILE`. With a table [web] it serves that WSGI application. Ctrl-C and
    SIGTERM leave the cluster in good order.
    """
    run_node(read_settings(path, overrides), verbose)


@main.command()
@configured
@click.option("--json", "as_json", is_flag=True, help="Every key with value, default, unit, bounds and documentation, as JSON.")
@click.option("--markdown", is_flag=True, help="The reference of all settings with their defaults, as Markdown.")
def config(path: str | None, overrides: Sequence[str], as_json: bool, markdown: bool) -> None:
    """Check a configuration and print what is in effect, each key explained.

    The output is itself a configuration file. Mistakes are printed one a line, and the exit code is then 2.
    """
    if markdown:
        click.echo(to_markdown(), nl=False)
    else:
        settings = read_settings(path, overrides)
        click.echo(to_json(settings) if as_json else to_toml(settings).rstrip("\n"))


@main.command()
@asking
@_as_json
def members(node: Asked, as_json: bool) -> None:
    """Show the members that a running node sees.

    STATE is `in sync` when the node asked and that member have compared what they hold, `joining` while they do, and
    `degraded` when the member does not answer. LAG is what waits to be sent to it or confirmed by it.
    """
    found = node.ask("/members")["members"]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    rows = [
        [
            "*" if member["me"] else "", member["name"], member["uid"], member["address"], member["domain"] or "-", member["state"],
            size_text(member["lag_bytes"]), str(member["weight"]), member["http"] or "-",
        ]
        for member in found
    ]  # fmt: skip
    print_table(["", "NAME", "UID", "ADDRESS", "DOMAIN", "STATE", "LAG", "WEIGHT", "HTTP"], rows)
    click.echo(f"{len(found)} member{'s' * (len(found) != 1)}; * is the one that was asked", err=True)


@main.command()
@asking
@_as_json
@click.option("--manager", default="", metavar="NAME", help="Session manager; may be left out when there is only one.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Show at most this many.")
@click.option("--count", is_flag=True, help="Only how many there are.")
def sessions(node: Asked, as_json: bool, manager: str, limit: int, count: bool) -> None:
    """List the sessions that a running node holds.

    KEY is the beginning of the hash of the session's id. Ids and values are never shown: who sees this list must not be
    able to take over a session.
    """
    asked = f"/sessions?manager={quote(manager)}"
    total: int = node.ask(f"{asked}&limit=0")["count"]
    if count:
        click.echo(json.dumps({"count": total}) if as_json else total)
        return
    found = list(_progress(_pages(node, asked, limit), min(limit, total), "sessions"))
    if as_json:
        click.echo(json.dumps({"count": total, "sessions": found}, indent=2))
        return
    rows = [
        [
            session["key"][:8], time_text(session["age_s"]), time_text(session["idle_s"]), str(session["attributes"]), size_text(session["bytes"]),
            session["primary"], ",".join(session["holders"]),
        ]
        for session in found
    ]  # fmt: skip
    print_table(["KEY", "AGE", "IDLE", "ATTRIBUTES", "SIZE", "PRIMARY", "HOLDERS"], rows)
    click.echo(f"{len(found)} of {total} sessions" + ("; --limit shows more" if len(found) < total else ""), err=True)


def _pages(node: Asked, asked: str, limit: int) -> Iterator[dict[str, Any]]:
    after = ""
    while limit > 0:
        page = node.ask(f"{asked}&limit={min(limit, _PAGE)}&after={after}")["sessions"]
        if not page:
            return
        for session in page:
            yield {**session, "key": session["key"][:8]}
        limit -= len(page)
        after = page[-1]["key"]


@main.command()
@asking
@_as_json
@click.option("--timeout", "timeout_s", type=click.FloatRange(0.1), default=60.0, show_default=True, metavar="S", help="Give up waiting after so many seconds.")
@click.option("--stay", is_flag=True, help="Do not end the node afterwards: it goes on as a lite member.")
@click.option("--cancel", is_flag=True, help="Take part again: the end of a drain, or of having drained.")
@click.pass_context
def drain(ctx: click.Context, node: Asked, as_json: bool, timeout_s: float, stay: bool, cancel: bool) -> None:
    """Hand all sessions of a running node over to the other nodes, then end it.

    From the first moment the node says that it is not ready, so that balancers send users elsewhere; requests that still come are
    served. A session counts as handed over when all nodes that should hold it have confirmed it. A node inside an application's own process
    goes on without sessions until that process ends.

    Exit code 1: something is left after --timeout, or nobody else can hold it; the node goes on draining, and does not end.
    """
    if cancel:
        _say_drain(node.ask("/drain?cancel=1", "POST"), as_json)
        return
    report = _watch_drain(node, timeout_s)
    over = report["state"] == DRAINED and not report["stranded"] and not report["left"]
    if over and not stay:
        report.update(node.ask("/leave", "POST"))
        over = _until(lambda: not report["left_process"] or not node.answers(), timeout_s)
    _say_drain(report, as_json)
    if not over and report.get("left_process"):
        click.echo(f"its process has not ended within {timeout_s:g} s", err=True)
    ctx.exit(0 if over else 1)


def _watch_drain(node: Asked, timeout_s: float) -> dict[str, Any]:
    """Begin a drain, and show how far it is until it is over or the time is."""
    report: dict[str, Any] = node.ask("/drain", "POST")
    with progress_bar(1000, "handing over") as advance:
        shown = 0

        def over() -> bool:
            nonlocal shown
            report.update(node.ask("/drain"))
            done = 1000 if report["state"] == DRAINED else 999 * (report["total"] - report["left"]) // max(1, report["total"])
            advance(max(0, done - shown))
            shown = max(shown, done)
            return bool(report["state"] != DRAINING)

        _until(over, timeout_s)
    return report


def _say_drain(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(report, indent=2))
    elif report["state"] == SERVING:
        click.echo("the node takes part again")
    elif report["state"] == DRAINING:
        click.echo(f"{report['left']} of {report['total']} sessions and tombstones are still to be handed over; the node goes on with it", err=True)
    elif report["stranded"]:
        click.echo(f"nobody else can hold {report['stranded']} sessions; the node goes on, start another first", err=True)
    else:
        stays = "; the node goes on without any until its process ends"
        ending = (", and the node has left" if report["left_process"] else stays) if "left_process" in report else ""
        click.echo(f"{report['total']} sessions and tombstones handed over in {report['seconds']:.1f} s{ending}")


@main.command()
@asking
@_as_json
@click.option("--lose", "names", multiple=True, required=True, metavar="NODE", help="Name of a node that would be lost. Any number of times.")
@click.pass_context
def rehearse(ctx: click.Context, node: Asked, as_json: bool, names: Sequence[str]) -> None:
    """Say which sessions would not survive the loss of these nodes, all at once. Nothing is harmed.

    LOST: no other node has a copy. BEHIND: others have one, without its last changes. Exit code 1 if there are any; --json names
    all of them.
    """
    asked = "&".join(f"lose={quote(name)}" for name in names)
    found = node.ask(f"/rehearse?{asked}", timeout_s=_REHEARSAL_S)
    bad = any(part["lost"] or part["behind"] for part in found["managers"].values())
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        rows = [[name, str(part["sessions"]), str(part["lost"]), str(part["behind"]), _few(part["keys"]) or "-"] for name, part in found["managers"].items()]
        print_table(["MANAGER", "HELD THERE", "LOST", "BEHIND", "SUCH AS"], rows)
        click.echo(f"without {', '.join(found['lose'])}: {', '.join(found['survivors']) or 'nobody'} would go on", err=True)
    ctx.exit(1 if bad else 0)


def _few(keys: Sequence[str]) -> str:
    return " ".join((*keys[:_SHOWN], *(["..."] if len(keys) > _SHOWN else [])))


def _until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Ask again and again. Whether it became true in time."""
    deadline = time.monotonic() + timeout_s
    while not (true := condition()) and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
    return true


@main.command()
@click.option("--nodes", type=click.IntRange(2, 9), default=3, show_default=True, help="How many node processes.")
@click.option("--data", type=click.IntRange(2, 9), help="Instead: so many nodes that hold sessions, and serve nobody. With --web.")
@click.option("--web", type=click.IntRange(1, 9), help="Instead: so many nodes that serve users, and hold no sessions (lite members). With --data.")
@click.option("--manager", type=click.Choice(["delta", "backup", "partitioned"]), default="delta", show_default=True, help="Which nodes hold a session.")
@click.option("--backups", type=click.IntRange(1, 8), default=2, show_default=True, help="Copies besides the first, for backup and partitioned.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port of the page. 0: any free one.")
@click.option("--logs", type=click.Path(file_okay=False, path_type=Path), help="Keep the output of the nodes in this directory.")
@click.option("--check", is_flag=True, help="Run the story without a person, and say what was lost (nothing should be).")
@click.option("--rolling", is_flag=True, help="With --check: nobody is killed; each node drains, leaves and is started again, and no request may fail.")
@click.option("--store", default="", metavar="URL", help="Keep sessions in a store besides, such as sqlite:///demo.db.")
@click.option("--restart-all", is_flag=True, help="With --check and --store: at the end all nodes are killed at once, and everything has to come back.")
@click.option("--visitors", type=click.IntRange(200, 5000), default=200, show_default=True, help="With --check: clients, with a session each.")
@click.option("--writes", type=click.IntRange(10_000), default=10_000, show_default=True, help="With --check: writes through the proxy.")
@_as_json
@click.pass_context
def demo(
    ctx: click.Context, nodes: int, data: int | None, web: int | None, manager: str, backups: int, port: int, logs: Path | None,
    check: bool, rolling: bool, store: str, restart_all: bool, visitors: int, writes: int, as_json: bool,
) -> None:  # fmt: skip
    """Run a cluster on this machine and lose no session when a node is killed.

    Starts the nodes behind a balancer and prints the address of a page. With --check, clients use it instead: one node is
    killed (of more than three nodes another, as soon as the first is dropped) and one paused in mid-run, or with --data and --web a node of each kind is killed
    and one more started; then everything is read back, and the last line is the result as JSON.
    """
    if (data is None) != (web is None):
        raise click.UsageError("--data and --web go together")
    if rolling and not check:
        raise click.UsageError("--rolling needs --check")
    if restart_all and not (check and store):
        raise click.UsageError("--restart-all needs --check and --store")
    layout = Layout(nodes, data or 0, web or 0, manager, backups, store)
    ctx.exit(run_check(layout, visitors, writes, logs, as_json, rolling, restart_all) if check else run_demo(layout, port, logs))


def _progress(items: Iterable[T], length: int, label: str) -> Iterator[T]:
    """The items, with a bar when there are enough of them to wait for."""
    if length <= 2 * _PAGE:
        yield from items
        return
    with progress_bar(length, label) as advance:
        for item in items:
            advance(1)
            yield item
