"""The commands `caterwaul secret` and `caterwaul ca`: what an operator does with keys, each step one command.

A secret is never an argument, and is shown only by `secret new` without a file.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import click

from ...membership.errors import LocalError
from .authority import CertificateAuthority, make_request, utc_now
from .certificates import ADMINISTRATOR, NODE
from .keyring import make_secret, read_lines, read_secrets, write_secrets

__all__ = ["ca", "secret"]

_PATH = click.Path(path_type=Path)
_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON value on standard output.")
_directory = click.option("--dir", "directory", type=_PATH, default="caterwaul-ca", show_default=True, metavar="DIR", help="Where the authority is kept.")


@click.group()
def secret() -> None:
    """Make and change the secret that the nodes of a cluster share.

    To change it without losing a node: `secret add` on one machine, copy the file to all; `secret use` there, copy it again;
    `secret remove` there, and copy it once more. Nodes look at the file every second.
    """


@secret.command("new")
@click.argument("file", type=_PATH, required=False)
def new_secret(file: Path | None) -> None:
    """Make a secret: into FILE, which only its owner may read, or on standard output."""
    text = make_secret()
    if file is None:
        click.echo(text)
        return
    write_secrets(file, [text], replace=False)
    click.echo(f"{file}: secret {_id_of(file, 0)}; copy it to every node, and name it there in security.secret_file", err=True)


@secret.command("add")
@click.argument("file", type=_PATH)
def add_secret(file: Path) -> None:
    """Add another secret at the end of FILE: it is accepted, and not used yet."""
    write_secrets(file, [*read_lines(file), make_secret()], replace=True)
    click.echo(f"{file}: secret {_id_of(file, -1)} was added; when every node has this file, `caterwaul secret use {file}`", err=True)


@secret.command("use")
@click.argument("file", type=_PATH)
def use_secret(file: Path) -> None:
    """Put the last secret of FILE first: it is used from now on, and the others are still accepted."""
    lines = read_lines(file)
    if len(lines) < 2:
        raise LocalError(f"{file} has one secret only; `caterwaul secret add {file}` adds another")
    write_secrets(file, [lines[-1], *lines[:-1]], replace=True)
    click.echo(f"{file}: secret {_id_of(file, 0)} comes first; when every node has this file, `caterwaul secret remove {file}`", err=True)


@secret.command("remove")
@click.argument("file", type=_PATH)
def remove_secret(file: Path) -> None:
    """Leave only the first secret in FILE: who has but another one is a stranger."""
    lines = read_lines(file)
    if len(lines) < 2:
        raise LocalError(f"{file} has one secret only, and nothing else would be left")
    write_secrets(file, lines[:1], replace=True)
    click.echo(f"{file}: only secret {_id_of(file, 0)} is left", err=True)


@secret.command("list")
@click.argument("file", type=_PATH)
@_as_json
def list_secrets(file: Path, as_json: bool) -> None:
    """Show the ids of the secrets in FILE, the one in use first. An id is the same on all nodes, and says nothing of the secret."""
    ids = [found.id.hex() for found in read_secrets(file)]
    click.echo(json.dumps(ids) if as_json else "\n".join(ids))


def _id_of(file: Path, index: int) -> str:
    return read_secrets(file)[index].id.hex()


@click.group()
def ca() -> None:
    """Give each node a certificate of the cluster's own authority, and take it back.

    The authority's directory belongs on a machine of yours and on no node. `ca issue NODE` fills a directory for a node: move
    it there, and name it in security.certificates. Nodes look at it every second.
    """


@ca.command("init")
@click.argument("cluster")
@_directory
def init(cluster: str, directory: Path) -> None:
    """Make the authority of CLUSTER (its cluster.name), and the secret that seals its multicast."""
    CertificateAuthority.init(directory, cluster)
    click.echo(f"{directory}: the authority of cluster {cluster!r}; keep ca.key from everybody. Next: `caterwaul ca issue NODE`", err=True)


@ca.command("issue")
@click.argument("node")
@_directory
@click.option("--out", type=_PATH, metavar="DIR", help="Directory of the node, made if need be; NODE below the authority's directory unless given.")
@click.option("--days", type=click.IntRange(1, 3650), default=90, show_default=True, help="How long it is valid.")
@click.option("--admin", "is_admin", is_flag=True, help="For an administrator (--url of the commands that ask), who is no node and never becomes one.")
@click.option("--request", type=_PATH, metavar="FILE", help="What `ca request` has made on the node, whose key then never leaves it.")
def issue(node: str, directory: Path, out: Path | None, days: int, is_admin: bool, request: Path | None) -> None:
    """Make a certificate for NODE (its node.name), with all that it has to trust, and a key unless there is a --request. The same again renews it."""
    out = out if out is not None else directory / ("administrators" if is_admin else "nodes") / node
    until = CertificateAuthority(directory).issue(node, out, days, request, scheme=ADMINISTRATOR if is_admin else NODE)
    use = "give it to that person, for --certificates" if is_admin else "move it to that node, readable by its user only, and name it in security.certificates"
    click.echo(f"{out}: {node} until {until:%Y-%m-%d}; {use}", err=True)


@ca.command("request")
@click.argument("node")
@click.option("--out", type=_PATH, required=True, metavar="DIR", help="The node's directory, made if need be.")
def request_certificate(node: str, out: Path) -> None:
    """On the machine of NODE: make its key, and a request for a certificate of it.

    Take the request to the authority, `ca issue NODE --request FILE`, and bring back what that has made.
    """
    path = make_request(node, out)
    click.echo(f"{path}: take it to the authority, `caterwaul ca issue {node} --request {path.name}`, and put what that makes into {out}", err=True)


@ca.command("revoke")
@click.argument("node", default="")
@click.option("--serial", "serials", multiple=True, metavar="HEX", help="A certificate by its number, also one that is not in the list. Any number of times.")
@_directory
@click.option("--out", type=_PATH, multiple=True, metavar="DIR", help="Directory of a node or administrator here, to give the list to. Any number of times.")
def revoke(node: str, serials: tuple[str, ...], directory: Path, out: tuple[Path, ...]) -> None:
    """Trust no certificate of NODE (or administrator) any more.

    Give revoked.crl to any one running node (its directory in security.certificates): the nodes tell each other within seconds, and
    connections of NODE are closed. NODE still has the multicast secret: `ca rotate` changes that.
    """
    authority = CertificateAuthority(directory)
    try:
        count = authority.revoke(node, [int(serial, 16) for serial in serials])
    except ValueError:
        raise LocalError("--serial: a number in hexadecimal, as `caterwaul ca list --json` shows it") from None
    for target in out:
        authority.publish_revoked(target)
    told = "" if out else f"; copy {directory / 'revoked.crl'} into the directory of any node that runs"
    click.echo(f"{count} certificate{'s' * (count != 1)} revoked{told}", err=True)


@ca.command("rotate")
@_directory
@click.option("--finish", is_flag=True, help="End it: the authority and the multicast secret of before are trusted no more.")
def rotate(directory: Path, finish: bool) -> None:
    """Change the authority's key and the multicast secret, without losing a node.

    First `ca rotate`, then `ca publish` to every node; then `ca issue` for every node; then `ca rotate --finish`, and
    `ca publish` once more.
    """
    authority = CertificateAuthority(directory)
    if finish:
        authority.finish_rotation()
        click.echo("only the new authority is left; `caterwaul ca publish DIR...` gives that to the nodes", err=True)
    else:
        authority.rotate()
        click.echo("a new authority beside the one of before; `caterwaul ca publish DIR...`, and when every node has it, issue new certificates", err=True)


@ca.command("publish")
@click.argument("out", type=_PATH, nargs=-1, required=True)
@_directory
def publish(out: tuple[Path, ...], directory: Path) -> None:
    """Copy what all nodes share (authorities, revoked certificates, multicast secrets) into the directories of nodes, and of administrators without the secrets."""
    authority = CertificateAuthority(directory)
    for target in out:
        if not target.is_dir():
            raise LocalError(f"{target} is no directory of a node or administrator; `caterwaul ca issue` makes one")
        authority.publish(target)
    click.echo(f"{len(out)} director{'ies' if len(out) != 1 else 'y'} brought up to date", err=True)


@ca.command("list")
@_directory
@_as_json
def list_certificates(directory: Path, as_json: bool) -> None:
    """Show the certificates that have not ended, oldest first."""
    authority = CertificateAuthority(directory)
    revoked = authority.revoked_serials
    found: list[dict[str, Any]] = [{**entry, "revoked": int(entry["serial"], 16) in revoked} for entry in authority.issued()]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    now = utc_now()
    for entry in found:
        days = (datetime.datetime.fromisoformat(entry["until"]) - now).days
        click.echo(
            f"{entry['node']:16}  {entry['serial'][:16]}  {'revoked' if entry['revoked'] else f'{days} days left'}{'  administrator' * (entry['for'] == ADMINISTRATOR)}"
        )
