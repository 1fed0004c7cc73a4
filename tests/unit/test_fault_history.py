"""The checker of the fault tests finds what it is for: each violation is planted once, in a history that is good without it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ..faults.history import History, Kill, Operation, Reading, Verdict

GOOD = Reading(True, {"l0": ["t1", "t2"]}, 2)


def history(*more: Operation) -> History:
    """Session 1 at node a: two appends that b confirmed, one that was never answered."""
    made = History()
    for number in (1, 2):
        made.operations.append(Operation(number, "a", 1, "append", "l0", f"t{number}", number + 0.1, True, ("b",)))
    made.operations.append(Operation(3.0, "a", 1, "append", "l0", "t3"))
    made.operations.extend(more)
    return made


def judge(made: History, *views: Reading | None) -> Verdict:
    return made.judge({"abc"[number]: {1: view} for number, view in enumerate(views)})


def violations(verdict: Verdict) -> set[str]:
    return {line.partition(":")[0] for line in verdict.told}


def test_a_good_history_is_good_with_what_was_not_answered_and_without() -> None:
    verdict = judge(history(), GOOD, GOOD)
    assert verdict.good
    assert verdict.found == 4
    whole = Reading(True, {"l0": ["t1", "t2", "t3"]}, 3)
    assert judge(history(), whole, whole).good


@pytest.mark.parametrize(
    ("view", "kind"),
    [
        (Reading(True, {"l0": ["t1"]}, 1), "lost"),
        (Reading(False), "lost"),
        (Reading(True, {"l0": ["t1", "t2"], "l9": ["x"]}, 3), "foreign"),
        (Reading(True, {"l0": ["t1", "t2", "t2"]}, 3), "twice"),
        (Reading(True, {"l0": ["t1", "t2"], "l1": ["t2"]}, 3), "twice"),
        (Reading(True, {"l0": ["t2", "t1"]}, 2), "disordered"),
        (Reading(True, {"l0": ["t1", "t2"]}, 3), "miscounted"),
        (None, "unread"),
    ],
)
def test_a_planted_violation_is_found(view: Reading | None, kind: str) -> None:
    verdict = judge(history(), view)
    assert not verdict.good
    assert violations(verdict) == {kind}


def test_what_another_session_was_sent_is_foreign() -> None:
    verdict = judge(history(Operation(4.0, "a", 2, "append", "l0", "t4", 4.1, True, ("b",))), Reading(True, {"l0": ["t1", "t2"], "l1": ["t4"]}, 3))
    assert violations(verdict) == {"foreign"}


def test_nodes_that_differ_are_found() -> None:
    assert violations(judge(history(), GOOD, Reading(True, {"l0": ["t1", "t2", "t3"]}, 3))) == {"different"}


def test_a_session_that_was_logged_out_stays_so() -> None:
    made = history(Operation(4.0, "a", 1, "logout", end_s=4.1, answered=True))
    assert judge(made, Reading(False), Reading(False)).good
    assert judge(made, GOOD, GOOD).resurrected == 2
    assert violations(judge(made, Reading(True))) == {"resurrected"}, "also when nothing is left in it"


def test_a_logout_without_answer_may_be_done_or_not() -> None:
    made = history(Operation(4.0, "a", 1, "logout"))
    assert judge(made, Reading(False)).good
    assert judge(made, GOOD).good
    assert violations(judge(made, Reading(True, {"l0": ["t1"]}, 1))) == {"lost"}


@pytest.mark.parametrize(("confirmed", "killed", "at_s", "excused"), [((), "a", 2.5, 1), (("b",), "a", 2.5, 0), ((), "b", 2.5, 0), ((), "a", 3.5, 0)])
def test_only_what_nobody_confirmed_within_a_second_before_the_kill_is_excused(confirmed: tuple[str, ...], killed: str, at_s: float, excused: int) -> None:
    made = history()
    made.operations[1] = replace(made.operations[1], confirmed=confirmed)
    made.kills.append(Kill(killed, at_s))
    verdict = judge(made, Reading(True, {"l0": ["t1"]}, 1))
    assert (verdict.excused, verdict.lost) == (excused, 1 - excused)


def test_a_history_of_too_little_is_void() -> None:
    made = history()
    assert made.void(0.0, 4.0, 0.5) == ""
    assert "VOID: 0.5 operations a second" in made.void(0.0, 4.0, 0.6)


def test_times_are_of_what_was_answered_there_and_then() -> None:
    made = history(Operation(2.5, "b", 1, "append", "l1", "t5", 3.5, True), Operation(2.6, "b", 1, "append", "l1", "t6", refused="503"))
    assert made.quantile_s(0.0, 9.0, 0.99) == pytest.approx(1.0)
    assert made.quantile_s(0.0, 9.0, 0.99, ["a"]) == pytest.approx(0.1)
    assert made.quantile_s(5.0, 9.0, 0.99) == float("inf")
    assert [one.token for one in made.failed(0.0, 9.0)] == ["t6"]
    assert made.failed(0.0, 9.0, ["a"]) == [], "what is under way has not failed"
