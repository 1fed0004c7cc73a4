"""Token buckets: how often, for whom, and how much is remembered."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from caterwaul.membership.rate import Rate


def test_a_burst_and_then_the_rate() -> None:
    rate = Rate(2.0, 3)
    assert [rate.take(0.0, "a") for _ in range(4)] == [True, True, True, False]
    assert [rate.take(0.5, "a"), rate.take(0.5, "a")] == [True, False]
    assert rate.take(0.5, "b")


def test_what_did_not_count_is_given_back() -> None:
    rate = Rate(1.0, 1)
    for _ in range(100):
        assert rate.take(0.0, "a")
        rate.give_back(0.0, "a")
    rate.give_back(0.0, "never seen")
    assert [rate.take(0.0, "a"), rate.take(0.0, "a")] == [True, False]


def test_a_flood_of_keys_is_forgotten_from_its_beginning() -> None:
    rate = Rate(1.0, 1)
    for number in range(10_000):
        assert rate.take(0.0, number)
    assert not rate.take(0.0, 9_999)
    assert rate.take(0.0, 0)


@given(st.lists(st.floats(0, 10), max_size=200), st.floats(0.1, 20), st.integers(1, 20))
def test_never_more_than_the_rate_and_one_burst(times: list[float], per_s: float, burst: int) -> None:
    rate = Rate(per_s, burst)
    taken = sum(rate.take(now, "a") for now in sorted(times))
    assert taken <= burst + per_s * (max(times, default=0) - min(times, default=0)) + 1e-6
