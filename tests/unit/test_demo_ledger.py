"""What the check calls lost, excused and foreign."""

from __future__ import annotations

from caterwaul.cluster.demo.ledger import Ledger, Write

_KILLED_AT = 100.0


def _ledger() -> tuple[Ledger, list[Write]]:
    """Client 0: confirmed; unconfirmed by the killed node half a second, then two seconds before; by another node; unanswered."""
    ledger = Ledger()
    writes = [ledger.begin(0, f"token{number}", number == 0) for number in range(5)]
    ledger.answer(writes[0], 99.9, "node1", ["node2"])
    ledger.answer(writes[1], 99.5, "node1", [])
    ledger.answer(writes[2], 98.0, "node1", [])
    ledger.answer(writes[3], 99.5, "node2", [])
    return ledger, writes


def _pairs(writes: list[Write], *missing: int) -> dict[str, str]:
    return {write.name: write.token for number, write in enumerate(writes) if number not in missing}


def test_counts_what_was_attempted_answered_and_acknowledged() -> None:
    ledger, writes = _ledger()
    assert (ledger.attempted, ledger.answered, ledger.acknowledged) == (5, 4, 1)
    assert len({write.name for write in writes}) == 5


def test_everything_found_everywhere_is_good_and_an_unanswered_write_may_be_there_or_not() -> None:
    ledger, writes = _ledger()
    verdict = ledger.judge({"node1": {0: _pairs(writes)}, "node2": {0: _pairs(writes, 4)}}, [("node1", _KILLED_AT)])
    assert verdict.good
    assert (verdict.found, verdict.lost, verdict.excused) == (9, 0, 0)


def test_a_confirmed_write_that_is_missing_anywhere_is_lost_once_and_told() -> None:
    ledger, writes = _ledger()
    verdict = ledger.judge({"node1": {0: _pairs(writes, 0)}, "node2": {0: _pairs(writes, 0)}, "node3": {0: _pairs(writes)}}, [("node1", _KILLED_AT)])
    assert not verdict.good
    assert verdict.lost == 1
    assert verdict.told[0] == "node1: token0 of client 0 is missing; answered by node1 -0.100 s from the kill of node1, confirmed by node2"


def test_without_confirmation_only_the_last_second_of_the_killed_node_is_excused() -> None:
    ledger, writes = _ledger()
    assert ledger.judge({"node2": {0: _pairs(writes, 1)}}, [("node1", _KILLED_AT)]).excused == 1
    assert ledger.judge({"node2": {0: _pairs(writes, 1)}}, [("node1", _KILLED_AT)]).good
    assert ledger.judge({"node2": {0: _pairs(writes, 2)}}, [("node1", _KILLED_AT)]).lost == 1
    assert ledger.judge({"node2": {0: _pairs(writes, 3)}}, [("node1", _KILLED_AT)]).lost == 1


def test_a_value_of_somebody_else_or_under_another_name_is_foreign() -> None:
    ledger, writes = _ledger()
    other = ledger.begin(1, "of client 1", False)
    ledger.answer(other, 1.0, "node1", [])
    strange = {**_pairs(writes), other.name: "of client 1"}
    verdict = ledger.judge({"node1": {0: strange, 1: {other.name: other.token}}}, [("node1", _KILLED_AT)])
    assert verdict.foreign == 1
    assert not verdict.good
    swapped = {**_pairs(writes), writes[0].name: "token1", writes[1].name: "token0"}
    assert ledger.judge({"node1": {0: swapped, 1: {other.name: other.token}}}, [("node1", _KILLED_AT)]).foreign == 2


def test_a_session_that_cannot_be_read_is_no_success() -> None:
    ledger, _ = _ledger()
    verdict = ledger.judge({"node3": {0: None}}, [("node1", _KILLED_AT)])
    assert verdict.unread == 1
    assert not verdict.good
    assert verdict.told == ["node3: the session of client 0 cannot be read"]


def test_only_the_first_losses_are_told() -> None:
    ledger = Ledger()
    for number in range(50):
        ledger.answer(ledger.begin(0, f"token{number}", True), 1.0, "node1", ["node2"])
    verdict = ledger.judge({"node2": {0: {}}}, [("node1", _KILLED_AT)])
    assert verdict.lost == 50
    assert len(verdict.told) == 20
