"""What the benchmarks count and print, without measuring anything."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from benchmarks import report, stores
from benchmarks.__main__ import main
from benchmarks.figures import chosen, digits, markdown, percentile, plain, spread
from benchmarks.fronts import work
from benchmarks.fronts.costs import FRONTS, REDIS_WORKS, Timed, costs, figures_of
from benchmarks.fronts.driving import Wsgi, parse
from benchmarks.fronts.redis_server import what_is_missing
from benchmarks.micro import commit_path
from benchmarks.node import Watch, digest_of, value_of
from benchmarks.rows import plan


def test_a_figure_is_the_median_with_the_lowest_and_highest_beside_it() -> None:
    assert spread([3.0, 1.0, 10.0]) == (1.0, 3.0, 10.0)
    assert str(spread([3.0, 1.0, 10.0])) == "3 (1-10)"
    assert str(spread([7.0, 7.0])) == "7"
    with pytest.raises(ValueError, match="no repetition"):
        spread([])


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(i) for i in range(1, 101)]
    assert percentile(values, 0.5) == 50.0
    assert percentile(values, 0.99) == 99.0
    assert percentile(values, 1.0) == 100.0
    assert percentile([5.0], 0.01) == 5.0
    assert percentile([], 0.5) == 0.0


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (1.234, "1.23"), (12.34, "12.3"), (99.96, "100"), (63483.1, "63483"), (0.054, "0.05")])
def test_numbers_have_three_digits_that_matter(value: float, text: str) -> None:
    assert digits(value) == text


def test_rows_are_chosen_by_their_beginning_or_by_a_pattern() -> None:
    assert chosen("flood-1r-100B-none-1t", ["flood-1r"])
    assert chosen("latency-2r-100B-all", ["latency*all"])
    assert not chosen("latency-2r-100B-none", ["latency*all"])
    assert chosen("anything", [])


def test_the_plan_has_every_combination_once() -> None:
    names = [row.name for row in plan()]
    assert len(names) == len(set(names))
    assert len([name for name in names if name.startswith("flood-")]) == 3 * 2 * 2 * 2
    assert len([name for name in names if name.startswith("latency-")]) == 3 * 2 * 2
    assert {"memory", "join", "rejoin", "detect"} <= set(names)
    assert len([name for name in names if name.startswith("store-")]) == len(stores.KINDS) * len(stores.WORKS)
    assert len([name for name in names if name.startswith("fronts-")]) == len(FRONTS) * 3 + 2 * len(REDIS_WORKS)


def test_two_tables_say_the_same() -> None:
    head, rows = ["row", "n"], [["a", "1"], ["long", "22"]]
    assert plain(head, rows).splitlines() == ["row    n", "----  --", "a      1", "long  22"]
    assert markdown(head, rows).splitlines() == ["| row | n |", "|---|---:|", "| a | 1 |", "| long | 22 |"]


def test_the_digest_of_a_session_knows_names_from_values_and_no_order() -> None:
    assert digest_of([("a", b"1"), ("b", b"2")]) == digest_of([("b", b"2"), ("a", b"1")])
    assert digest_of([("a", b"1")]) != digest_of([("a", b"2")])
    assert digest_of([("ab", b"c")]) != digest_of([("a", b"bc")])


def test_a_value_has_the_size_that_was_asked_for_and_is_never_the_same() -> None:
    assert len(value_of(100, 1)) == 100
    assert value_of(16, 1) != value_of(16, 2)


class _Manager:
    def __init__(self) -> None:
        self.received_messages: list[object] = []

    def received(self, peer: object, message: object, offset_ms: int) -> None:
        self.received_messages.append(message)


def test_a_delta_counts_as_applied_once_the_manager_has_merged_it() -> None:
    manager = _Manager()
    watch = Watch(manager)  # type: ignore[arg-type]
    watch.received(None, ["default", 1, b"origin", [[b"k", 1], [b"k", 2]]], 0)  # type: ignore[arg-type]
    assert watch.deltas == 2
    assert watch.messages == 1
    assert watch.last_ns > 0
    assert len(manager.received_messages) == 1
    watch.clear()
    assert (watch.deltas, watch.last_ns) == (0, 0)


def test_the_parts_of_a_commit_are_all_measured() -> None:
    parts = commit_path(100, 1000)
    assert 100 < parts["bytes_a_delta"] < 200
    assert all(amount > 0 for amount in parts.values())


_ROWS = {"flood-1r-100B-none-1t": [
    {"updates_per_s": rate, "call_p50_us": 11.0, "call_p99_us": 30.0, "cpu_writer_us": 15.0, "cpu_replica_us": 5.0, "deltas_a_message": 90.0, "wrong": 1, "unconfirmed": 0, "slept": 2}
    for rate in (50.0, 200.0, 100.0)
]}  # fmt: skip


def test_a_table_shows_the_spread_of_rates_and_the_sum_of_what_is_wrong() -> None:
    line = report.table("flood", _ROWS).splitlines()[2]
    assert line.startswith("| flood-1r-100B-none-1t | 100 (50-200) |")
    assert line.endswith("| 3 | 0 | 6 |")
    assert report.table("join", _ROWS) == ""


def test_a_comparison_says_how_many_times_faster() -> None:
    theirs = {"flood-1r-100B-none-1t": [{"updates_per_s": 50.0, "wrong": 40}]}
    line = report.comparison(_ROWS, theirs, "Other").splitlines()[2]
    assert line == "| flood-1r-100B-none-1t | updates/s | 100 (50-200) | 50 | 2 | 3 | 40 |"


def test_only_the_marked_tables_of_a_document_change() -> None:
    document = "before\n<!-- table: flood -->\nold\n<!-- end -->\nbetween\n<!-- table: join -->\nkept\n<!-- end -->\n"
    assert report.fill(document, {"flood": "new", "join": ""}) == document.replace("old", "new")


def test_the_report_fills_a_document_from_measurements(tmp_path) -> None:  # type: ignore[no-untyped-def]
    measured = tmp_path / "ours.json"
    measured.write_text(
        json.dumps({"name": "Caterwaul", "machine": {"cores": 2}, "rows": [{"name": name, "repetitions": found} for name, found in _ROWS.items()]})
    )
    document = tmp_path / "performance.md"
    document.write_text("<!-- table: flood -->\n<!-- end -->\n<!-- table: machine -->\n<!-- end -->\n")
    result = CliRunner().invoke(report.main, [str(measured), "--into", str(document)])
    assert result.exit_code == 0, result.output
    assert "100 (50-200)" in document.read_text()
    assert "| cores | 2 |" in document.read_text()


def test_rows_can_be_listed_without_measuring_them() -> None:
    result = CliRunner().invoke(main, ["--list", "--rows", "flood-1r-100B,memory"])
    assert result.exit_code == 0
    assert result.output.split() == [
        "flood-1r-100B-none-1t", "flood-1r-100B-none-8t", "flood-1r-100B-all-1t", "flood-1r-100B-all-8t", "memory",
    ]  # fmt: skip


def test_a_selection_of_nothing_is_a_mistake() -> None:
    result = CliRunner().invoke(main, ["--rows", "nonsense"])
    assert result.exit_code == 2
    assert "no row is called" in result.output


def test_a_session_costs_what_a_request_takes_longer_with_it() -> None:
    bare, ours, redis = (Timed([base * 1000, (base + 1) * 1000, (base + 20) * 1000], cpu_s=base * 3e-6) for base in (10, 30, 110))
    figures = figures_of(bare, ours, redis)
    assert (figures["bare_us"], figures["with_us"], figures["with_p99_us"]) == (11, 31, 50)
    assert (figures["cost_us"], figures["cost_mean_us"], figures["cost_p99_us"]) == pytest.approx((20, 20, 20))
    assert figures["cost_cpu_us"] == pytest.approx(20)
    assert figures["requests_per_s"] == pytest.approx(1e6 / 37)
    assert figures["of_redis"] == pytest.approx(20 / 100)
    assert "of_redis" not in figures_of(bare, redis, None)


def test_without_a_redis_server_its_rows_are_skipped_and_it_is_said_why(monkeypatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert what_is_missing() == "no redis-server on the PATH"
    said: list[str] = []
    assert costs("flask", list(REDIS_WORKS), 10, 1, said.append) == {}
    assert said == ["no redis-server on the PATH: skipping fronts-flask-read-redis, fronts-flask-change-redis"]


def test_the_application_under_measurement_counts_its_changes_in_one_attribute_of_ten() -> None:
    session: dict[str, str] = {}
    assert work.handle(work.BEGIN, session) == work.handle(work.READ, None)
    assert len(session) == work.ATTRIBUTES
    assert {len(value) for value in session.values()} == {100}
    before = dict(session)
    assert int(work.handle(work.CHANGE, session)) == 1
    assert int(work.handle(work.READ, session)) == 1
    assert len(dict(before.items() ^ session.items())) == 1


def test_a_request_that_is_not_answered_well_stops_the_measurement() -> None:
    def broken(environ: dict[str, object], start_response) -> list[bytes]:  # type: ignore[no-untyped-def]
        start_response("503 Service Unavailable", [])
        return [b""]

    with pytest.raises(RuntimeError, match="the application answered 503"):
        Wsgi(broken).time(work.READ, ["none"])


def test_an_answer_is_read_from_its_bytes() -> None:
    answer = parse(b"HTTP/1.1 200 OK\r\nVary: Cookie\r\nset-cookie: sid=abc.n1; Path=/\r\n\r\nbody")
    assert answer == (200, "abc.n1", b"body")


def test_without_a_server_or_library_a_kind_of_store_is_skipped_and_it_is_said_why(monkeypatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []
    assert stores.rates("redis", ["save-single", "load-batch"], 500, 1, 1, said.append) == {}
    assert stores.rates("unknown", ["save-single"], 500, 1, 1, said.append) == {}
    assert said[0] == "no redis-server on the PATH: skipping store-redis-save-single, store-redis-load-batch"
    assert said[1].endswith(": skipping store-unknown-save-single")
