"""When a member is dialled again, and which requests are over."""

from __future__ import annotations

from random import Random

import pytest

from caterwaul.cluster.redial import Dial, Expired, Redial
from caterwaul.cluster.requests import Ended, RequestTable
from caterwaul.membership.errors import LocalError

A, B, C = (bytes([number]) * 16 for number in range(3))


def redial() -> Redial:
    return Redial(min_s=0.1, max_s=5.0, rng=Random(1))


def test_the_end_that_dialled_dials_again_at_once_and_the_other_a_little_later() -> None:
    core = redial()
    core.opened(0.0, A)
    core.opened(0.0, B)
    core.lost(100.0, A, dialled=True)
    core.lost(100.0, B, dialled=False)
    assert core.tick(100.0) == [Dial(A)]
    assert core.deadline() == 100.2
    assert core.tick(100.2) == [Dial(B)]
    assert core.deadline() is None


def test_pauses_double_with_jitter_up_to_the_bound() -> None:
    core = redial()
    core.opened(0.0, A)
    core.lost(100.0, A, dialled=True)
    now, pauses = 100.0, []
    for _ in range(10):
        assert core.tick(now) == [Dial(A)]
        core.failed(now, A)
        deadline = core.deadline()
        assert deadline is not None
        pauses.append(deadline - now)
        now = deadline
    for attempt, pause in enumerate(pauses, 1):
        most = min(5.0, 0.1 * 2**attempt)
        assert most / 2 - 1e-9 <= pause <= most + 1e-9


def test_a_connection_that_breaks_at_once_again_and_again_is_not_dialled_in_a_loop() -> None:
    core = redial()
    now = 0.0
    for _ in range(20):
        core.opened(now, A)
        core.lost(now, A, dialled=True)
        deadline = core.deadline()
        assert deadline is not None
        now = deadline
        core.tick(now)
    assert now > 20.0


def test_a_forgotten_member_is_not_dialled_and_a_connected_one_has_no_deadline() -> None:
    core = redial()
    core.opened(0.0, A)
    core.lost(1.0, A, dialled=True)
    core.opened(1.0, A)
    assert core.deadline() is None
    core.lost(2.0, A, dialled=True)
    core.forget(A)
    core.failed(2.0, A)
    assert core.deadline() is None
    assert core.tick(1000.0) == []


def test_what_is_guarded_expires_unless_it_is_released() -> None:
    core = redial()
    core.guard("x", 5.0)
    core.guard("y", 6.0)
    core.release("y")
    assert core.deadline() == 5.0
    assert core.tick(5.0) == [Expired("x")]
    assert core.deadline() is None


@pytest.mark.parametrize(("mode", "needed"), [("first", 1), ("majority", 2), ("all", 3)])
def test_a_request_ends_when_its_mode_is_met(mode: str, needed: int) -> None:
    table = RequestTable()
    number, ended = table.begin(0.0, [A, B, C], mode, 1.0)
    assert not ended
    for index, uid in enumerate([A, B, C][:needed]):
        ended = table.replied(number, uid, index)
        assert bool(ended) == (index == needed - 1)
    assert ended == [Ended(number, dict(zip([A, B, C][:needed], range(needed), strict=True)), {}, None)]
    assert table.replied(number, C, 9) == []
    assert table.deadline() is None


def test_a_request_ends_as_soon_as_it_cannot_be_met_and_names_who_failed() -> None:
    table = RequestTable()
    number, _ = table.begin(0.0, [A, B, C], "majority", 1.0)
    assert table.failed(number, A, "no") == []
    assert table.lost(B) == [Ended(number, {}, {A: "no", B: "connection lost"}, "0 of 2 replies needed; 2 members failed")]


def test_a_request_that_nobody_answers_times_out_naming_all() -> None:
    table = RequestTable()
    number, _ = table.begin(0.0, [B, A], "all", 1.0)
    table.replied(number, A, "yes")
    assert table.deadline() == 1.0
    assert table.tick(1.0) == [Ended(number, {A: "yes"}, {B: "timed out"}, "1 of 2 replies needed; 1 members failed")]


def test_asking_nobody_fails_at_once_and_an_unknown_mode_is_our_callers_error() -> None:
    table = RequestTable()
    _, ended = table.begin(0.0, [], "first", 1.0)
    assert ended[0].error == "0 of 1 replies needed; 0 members failed"
    with pytest.raises(LocalError, match="one of first, majority, all"):
        table.begin(0.0, [A], "some", 1.0)
