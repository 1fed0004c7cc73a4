"""The fault tests find what they are for: with a bug planted into all nodes, the test that should find it fails, and says what is wrong.

Most bugs are the simulator's (`planted.py` has a few more). A real node hides some of them better than a simulated one: what shows for milliseconds only, as two members of
one address do, is left to the simulator.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from . import test_cables, test_memory, test_partitions, test_processes, test_repeats, test_scarcity
from .app import PLANT
from .limits import why_not_cgroup
from .network import why_not, why_not_cabled, why_not_filtered

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "there are namespaces")


def needs(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(bool(reason), reason=reason or "there is what it needs")


@pytest.mark.parametrize(
    ("bug", "test", "says"),
    [
        ("skip a tombstone", test_processes.test_f3_a_pause_longer_than_the_drop_time, "resurrected: "),
        ("expire before reading", test_processes.test_f3_a_pause_longer_than_the_drop_time, "does not show what was logged out|c removed nobody"),
        (
            "never reconcile",
            test_partitions.test_f5_a_partition_with_writes_on_both_sides_heals,
            "(resurrected|lost|different): ",
        ),  # whichever session is asked first
        ("a counter's last writer wins", test_partitions.test_f5_a_partition_with_writes_on_both_sides_heals, "miscounted: "),
        ("unbounded outbox", test_scarcity.test_f13_a_link_that_is_too_slow_for_what_is_written, "<= .1048576"),
        pytest.param(
            "believe repeated datagrams",
            test_repeats.test_f4_heartbeats_of_a_life_before_are_said_again,
            "c is dropped|counted as repeats",
            marks=needs(why_not_filtered()),
        ),
        pytest.param(
            "raise on a forged datagram", test_cables.test_f10_datagrams_that_are_doubled_late_and_damaged, "Traceback|forged", marks=needs(why_not_cabled())
        ),
        pytest.param(
            "sessions are not counted", test_memory.test_f26_a_cap_on_memory_that_the_limit_on_sessions_keeps, "killed", marks=needs(why_not_cgroup("memory"))
        ),
    ],
)
def test_a_planted_bug_is_found(bug: str, test: Callable[[Callable[..., None]], None], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLANT, bug)
    with pytest.raises(AssertionError, match=says):
        test(lambda **figures: None)
