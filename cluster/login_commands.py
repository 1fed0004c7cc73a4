"""`caterwaul logins` and `caterwaul logout`: whose sessions are where, and their ends."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import click

from .asking import Asked, asking
from .text_tables import print_table, time_text

__all__ = ["logins", "logout"]

_manager = click.option("--manager", default="", metavar="NAME", help="Session manager; may be left out when there is only one.")
_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON value on standard output.")


@click.command()
@asking
@_as_json
@_manager
@click.argument("principal")
@click.pass_context
def logins(ctx: click.Context, node: Asked, as_json: bool, manager: str, principal: str) -> None:
    """List the sessions in which PRINCIPAL is logged in, on all nodes, the youngest login first.

    KEY is the hash of the session's id, and what `caterwaul logout --session` takes. Exit code 1: a node did not answer; what only that one
    holds is missing.
    """
    found = node.ask(f"/logins?manager={quote(manager)}&principal={quote(principal, safe='')}")
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        rows = [[login["key"], login["node"], time_text(login["age_s"]), time_text(login["idle_s"]), _about(login["about"])] for login in found["sessions"]]
        print_table(["KEY", "NODE", "AGE", "IDLE", "ABOUT"], rows)
        silent = f"; no answer of {', '.join(found['silent'])}" if found["silent"] else ""
        click.echo(f"{len(rows)} session{'s' * (len(rows) != 1)} of {principal}{silent}", err=True)
    ctx.exit(1 if found["silent"] else 0)


@click.command()
@asking
@_as_json
@_manager
@click.option("--principal", metavar="NAME", help="End all sessions in which this one is logged in.")
@click.option("--session", "key", metavar="KEY", help="End the session of this key, as `caterwaul logins` shows it.")
@click.option("--everybody", is_flag=True, help="End all sessions in which anybody is logged in.")
@click.pass_context
def logout(ctx: click.Context, node: Asked, as_json: bool, manager: str, principal: str | None, key: str | None, everybody: bool) -> None:
    """End sessions on all nodes, at once and for good.

    With --principal and --everybody also sessions that no node knows of at the moment end: those on the other side of a partition, when
    it heals. Exit code 1: not every node has confirmed it, or there is no such session.
    """
    if sum((principal is not None, key is not None, everybody)) != 1:
        raise click.UsageError("one of --principal, --session and --everybody")
    chosen = f"principal={quote(principal, safe='')}" if principal is not None else f"session={quote(key)}" if key is not None else "everybody=1"
    report: dict[str, Any] = node.ask(f"/logout?manager={quote(manager)}&{chosen}", "POST")
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        click.echo(_said(report), err=not report["done"])
    ctx.exit(0 if report["done"] else 1)


def _about(about: dict[str, str]) -> str:
    """On one line, whatever a browser has sent."""
    return " ".join(f"{name}={value!r}" for name, value in sorted(about.items())) or "-"


def _said(report: dict[str, Any]) -> str:
    if report["unconfirmed"]:
        return f"not confirmed by {', '.join(report['unconfirmed'])}, which will hear of it when they answer again"
    if not report["done"]:
        return "no node holds such a session, or not all who hold it have confirmed its end"
    return "ended on all nodes" if report["confirmed"] else "ended"
