"""Tables out of measurements: for the terminal, and into ``docs/performance.md``.

``python -m benchmarks.report OURS.json... --compare THEIRS.json --into docs/performance.md`` replaces what is between the
document's marks ``<!-- table: NAME -->`` and ``<!-- end -->``. A file to compare with has the shape of ours (``name`` and
``rows``, each with ``name`` and ``repetitions``), from whatever measured the same work on the same machine in the same hour.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from .figures import digits, markdown, plain, spread

__all__ = ["TABLES", "Column", "comparison", "fill", "main", "table", "terminal"]

Rows = dict[str, list[dict[str, float]]]


class Column(NamedTuple):
    title: str
    figure: str
    total: bool = False  #: the sum of the repetitions, not their spread


TABLES: dict[str, tuple[str, list[Column]]] = {
    "flood": ("updates as fast as they go", [
        Column("updates/s to the last replica", "updates_per_s"), Column("call p50 us", "call_p50_us"), Column("p99 us", "call_p99_us"),
        Column("CPU us/update: writer", "cpu_writer_us"), Column("each replica", "cpu_replica_us"), Column("deltas/message", "deltas_a_message"),
        Column("wrong", "wrong", True), Column("unconfirmed", "unconfirmed", True), Column("slept", "slept", True),
    ]),
    "latency": ("200 commits a second", [
        Column("visible p50 us", "p50_us"), Column("p99 us", "p99_us"), Column("call p50 us", "call_p50_us"), Column("p99 us", "call_p99_us"),
        Column("CPU us/update, all nodes", "cpu_all_us"), Column("wrong", "wrong", True), Column("unconfirmed", "unconfirmed", True),
    ]),
    "nodes": ("one node writes, the others hold what their type of manager wants", [
        Column("updates/s", "updates_per_s"), Column("call p50 us", "call_p50_us"), Column("p99 us", "call_p99_us"),
        Column("CPU us/update: writer", "cpu_writer_us"), Column("all nodes", "cpu_all_us"), Column("unconfirmed", "unconfirmed", True), Column("wrong", "wrong", True),
    ]),
    "lookup": ("sessions held elsewhere, of four nodes", [
        Column("first p50 us", "first_p50_us"), Column("p99 us", "first_p99_us"), Column("again p50 us", "again_p50_us"), Column("p99 us", "again_p99_us"),
        Column("sessions", "opened"), Column("near hits", "near_hits"), Column("missing", "missing", True),
    ]),
    "rebalance": ("a fourth node joins", [
        Column("s from process start until settled", "seconds"), Column("bytes moved", "moved_bytes"), Column("fair share of all bytes", "ideal_bytes"),
        Column("moved/share", "moved_ideal"), Column("sessions on the joiner", "joiner_holds"), Column("sessions", "sessions"),
    ]),
    "prefork": ("two hosts of four workers, one write in five requests", [
        Column("members", "members"), Column("requests/s", "requests_per_s"), Column("read p50 us", "read_p50_us"), Column("p99 us", "read_p99_us"),
        Column("write p50 us", "write_p50_us"), Column("p99 us", "write_p99_us"), Column("CPU us/request, all", "cpu_request_us"),
        Column("CPU ms/s when idle, all", "cpu_idle_ms"), Column("MB, all", "memory_mb"), Column("MB for the sessions", "sessions_mb"), Column("sessions", "sessions"),
        Column("missing", "missing", True), Column("wrong", "wrong", True),
    ]),
    "tls": ("updates as fast as they go to one replica, encrypted and in the clear by turns", [
        Column("updates/s with TLS", "updates_per_s"), Column("in the clear", "clear_per_s"), Column("clear/TLS", "ratio"),
        Column("call p50 us with TLS", "call_p50_us"), Column("in the clear", "clear_p50_us"),
        Column("CPU us/update, both nodes, with TLS", "cpu_all_us"), Column("in the clear", "clear_cpu_us"),
        Column("wrong", "wrong", True), Column("unconfirmed", "unconfirmed", True),
    ]),
    "sealed": ("a heartbeat", [
        Column("us to seal", "seal_us"), Column("us to open", "open_us"), Column("us to open a new sender's", "open_first_us"), Column("bytes", "datagram_bytes"),
        Column("refused", "refused", True),
    ]),
    "forged": ("forged datagrams", [
        Column("sent/s", "sent_per_s"), Column("arrived/s", "arrived_per_s"), Column("cores of the node", "cores"), Column("CPU us each", "us_each"),
        Column("changes of the view", "view_changes", True), Column("dials", "dials", True), Column("senders kept", "senders_kept"),
    ]),
    "behind": ("a commit with write-behind to a store and without, by turns: as fast as they go, and 200 a second", [
        Column("CPU us p50, as fast as they go, with a store", "steady_cpu_p50_us_with"), Column("without", "steady_cpu_p50_us_without"), Column("more us", "steady_cpu_p50_us_more"),
        Column("by the clock p50 with", "steady_p50_us_with"), Column("without", "steady_p50_us_without"), Column("more us", "steady_p50_us_more"),
        Column("p99 with", "steady_p99_us_with"), Column("without", "steady_p99_us_without"),
        Column("CPU us p50, 200/s, with a store", "paced_cpu_p50_us_with"), Column("without", "paced_cpu_p50_us_without"), Column("more us", "paced_cpu_p50_us_more"),
        Column("by the clock p50 with", "paced_p50_us_with"), Column("without", "paced_p50_us_without"), Column("more us", "paced_p50_us_more"),
        Column("p99 with", "paced_p99_us_with"), Column("without", "paced_p99_us_without"), Column("wrong", "wrong", True),
    ]),
    "persistent": ("whole requests: sessions in a store and nowhere else, and a DeltaManager with acks = all, by turns", [
        Column("reading/s, one thread", "shared_read_1t_per_s"), Column("delta", "delta_read_1t_per_s"), Column("eight threads", "shared_read_8t_per_s"), Column("delta", "delta_read_8t_per_s"),
        Column("writing/s, one thread", "shared_write_1t_per_s"), Column("delta", "delta_write_1t_per_s"), Column("eight threads", "shared_write_8t_per_s"), Column("delta", "delta_write_8t_per_s"),
        Column("read p50 us", "shared_read_1t_p50_us"), Column("p99 us", "shared_read_1t_p99_us"), Column("write p50 us", "shared_write_1t_p50_us"), Column("p99 us", "shared_write_1t_p99_us"),
        Column("wrong", "wrong", True),
    ]),
    "restart": ("both nodes of a cluster killed and started again", [
        Column("s from process start until all sessions are in memory", "from_spawn_s"), Column("from node start", "from_start_s"), Column("sessions", "sessions"),
        Column("read meanwhile p50 us", "read_p50_us"), Column("p99 us", "read_p99_us"), Column("missing", "missing", True), Column("wrong", "wrong", True),
        Column("asked before a node was ready", "early"), Column("of those unknown", "early_missing"), Column("made and stored/s before", "stored_per_s"),
    ]),
    "passivated": ("ten times as many sessions as may be in memory", [
        Column("MB for the sessions", "active_mb"), Column("without a limit", "all_mb"), Column("read p50 us", "active_p50_us"), Column("p99 us", "active_p99_us"),
        Column("without a limit p50 us", "all_p50_us"), Column("sessions", "sessions"), Column("max_active", "max_active"), Column("missing", "active_missing", True),
    ]),
    "fronts": ("what a session costs a request", [
        Column("request without p50 us", "bare_us"), Column("with p50 us", "with_us"), Column("p99 us", "with_p99_us"), Column("requests/s with", "requests_per_s"),
        Column("cost p50 us", "cost_us"), Column("mean us", "cost_mean_us"), Column("p99 us", "cost_p99_us"), Column("CPU us", "cost_cpu_us"),
        Column("of Redis' cost", "of_redis"), Column("wrong", "wrong", True),
    ]),
    "store": ("sessions of 1000 bytes in a store, one thread", [
        Column("sessions/s", "sessions_per_s"), Column("call p50 us", "call_p50_us"), Column("p99 us", "call_p99_us"), Column("CPU us/session here", "cpu_us"),
        Column("wrong", "wrong", True),
    ]),
    "memory": ("memory of a packed session", [
        Column("primary bytes/session", "primary_bytes"), Column("replica bytes/session", "replica_bytes"), Column("counted by memory_max_bytes", "counted_bytes"),
        Column("sessions", "sessions"), Column("wrong", "wrong", True),
    ]),
    "join": ("a joiner", [
        Column("s from process start", "from_spawn_s"), Column("s from node start", "from_start_s"), Column("s from first contact", "from_contact_s"),
        Column("CPU s donor", "cpu_donor_s"), Column("joiner", "cpu_joiner_s"), Column("joiner RSS MB", "joiner_rss_mb"), Column("wrong", "wrong", True),
    ]),
    "rejoin": ("a node that was away, and one session in a hundred changed", [
        Column("s from waking up", "from_wake_s"), Column("s from contact", "from_contact_s"), Column("bytes on the wire", "wire_bytes"),
        Column("bytes changed", "changed_bytes"), Column("wire/changed", "wire_a_changed_byte"), Column("sessions changed", "changed"),
        Column("records moved", "records"), Column("partitions that differed", "partitions"), Column("s away", "away_s"), Column("wrong", "wrong", True),
    ]),
    "away": ("one of four nodes that was away, and one session in a hundred changed; one backup", [
        Column("s from waking up until in sync", "in_sync_s"), Column("until settled", "settled_s"), Column("bytes it held", "held_bytes"),
        Column("bytes moved when it was lost", "loss_bytes"), Column("when it came back", "moved_bytes"), Column("came back/held", "moved_held"),
        Column("sessions changed", "changed"), Column("s away", "away_s"), Column("wrong", "wrong", True),
    ]),
    "detect": ("a killed process of three", [Column("ms until the first drops it", "first_ms"), Column("the last", "last_ms")]),
    "micro": ("parts of a commit, one thread", [
        Column("open+set+commit+release us", "commit_us"), Column("flush us", "flush_us"), Column("decode us", "decode_us"), Column("apply us", "apply_us"),
        Column("bytes/delta", "bytes_a_delta"),
    ]),
}  # fmt: skip

_MARK = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(kind: str, rows: Rows, draw: Callable[[Sequence[str], list[list[str]]], str] = markdown) -> str:
    """All measured rows of one kind, or an empty text."""
    columns = TABLES[kind][1]
    lines = [[name, *(_cell(column, repetitions) for column in columns)] for name, repetitions in rows.items() if name.split("-")[0] == kind]
    return draw([kind, *(column.title for column in columns)], lines) if lines else ""


def _cell(column: Column, repetitions: list[dict[str, float]]) -> str:
    values = [repetition[column.figure] for repetition in repetitions if column.figure in repetition]
    if not values:
        return ""
    return digits(sum(values)) if column.total else str(spread(values))


def terminal(rows: Rows) -> str:
    """Everything that was measured."""
    found = [f"{TABLES[kind][0]}: median (lowest-highest)\n{drawn}" for kind in TABLES if (drawn := table(kind, rows, plain))]
    return "\n\n".join(found)


def comparison(ours: Rows, theirs: Rows, name: str) -> str:
    """Rows that both have, with the figures that both have: medians, and how many times better ours is."""
    lines = []
    for row, repetitions in ours.items():
        for figure, title, more in _COMPARED:
            if row in theirs and all(figure in one for one in (*repetitions, *theirs[row])):
                mine, other = spread(one[figure] for one in repetitions), spread(one[figure] for one in theirs[row])
                ratio = (mine.middle / other.middle if more else other.middle / mine.middle) if mine.middle and other.middle else 0.0
                lines.append([row, title, str(mine), str(other), digits(ratio) if ratio else "", *_wrongs(repetitions, theirs[row])])
    return markdown(["row", "figure", "Caterwaul", name, "ratio (above 1: Caterwaul is ahead)", "wrong: Caterwaul", f"wrong: {name}"], lines)


_COMPARED = [
    ("updates_per_s", "updates/s", True), ("p50_us", "visible p50 us", False), ("p99_us", "visible p99 us", False),
    ("from_start_s", "s to hold all", False), ("last_ms", "ms until dropped", False),
]  # fmt: skip


def _wrongs(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> list[str]:
    return [digits(sum(one.get("wrong", 0) for one in side)) for side in (ours, theirs)]


def fill(document: str, tables: dict[str, str]) -> str:
    """The document with the tables in their places; a table that was not measured stays as it is."""
    return _MARK.sub(lambda found: f"{found[1]}{tables[found[2]]}\n{found[3]}" if tables.get(found[2]) else found[0], document)


def _rows_of(measured: dict[str, Any]) -> Rows:
    return {row["name"]: row["repetitions"] for row in measured["rows"]}


def _about(parts: list[dict[str, Any]]) -> str:
    """The machine; what changed between the parts of the measurement as lowest to highest."""
    facts: dict[str, list[Any]] = {}
    for part in parts:
        for key, value in part.get("machine", {}).items():
            facts.setdefault(key.replace("_", " "), []).append(value)
    return markdown(["machine", ""], [[key, str(min(found)) if min(found) == max(found) else f"{min(found)} to {max(found)}"] for key, found in facts.items()])


@click.command()
@click.argument("ours", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--compare", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Measurements of another product, of the same shape.")
@click.option("--as", "name", default="comparison", show_default=True, help="The table of the document that gets the comparison.")
@click.option("--into", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Fill the tables of this document; without it they are printed.")
def main(ours: tuple[Path, ...], compare: Path | None, name: str, into: Path | None) -> None:
    """Tables from the JSON files OURS (parts of one measurement) that `python -m benchmarks --json` has written."""
    parts = [json.loads(path.read_text()) for path in ours]
    rows: Rows = {}
    for part in parts:
        rows |= _rows_of(part)
    tables = {kind: table(kind, rows) for kind in TABLES} | {"machine": _about(parts)}
    if compare is not None:
        other = json.loads(compare.read_text())
        tables[name] = comparison(rows, _rows_of(other), other["name"])
    if into is None:
        click.echo("\n\n".join(f"{name}\n\n{drawn}" for name, drawn in tables.items() if drawn))
    else:
        into.write_text(fill(into.read_text(), tables))


if __name__ == "__main__":
    main()
