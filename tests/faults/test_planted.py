"""The fault tests find what they are for: with a bug planted into all nodes, the test that should find it fails, and says what is wrong.

The bugs are the simulator's. A real node hides some of them better than a simulated one: what shows for milliseconds only, as two members of
one address do, is left to the simulator.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from . import test_partitions, test_processes, test_scarcity
from .app import PLANT
from .network import why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "there are namespaces")


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
    ],
)
def test_a_planted_bug_is_found(bug: str, test: Callable[[Callable[..., None]], None], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLANT, bug)
    with pytest.raises(AssertionError, match=says):
        test(lambda **figures: None)
