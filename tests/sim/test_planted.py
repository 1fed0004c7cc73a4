"""The simulator catches what it is for: each planted bug breaks the promise that it should, within a few seeds."""

from __future__ import annotations

import pytest

from .planted import BUGS, Bug
from .planted_persistent import PERSISTENT_BUGS
from .run import collect, run_seed
from .scenes import SCENES
from .world import SimulationError

_SEEDS = range(1, 13)
_LITTLE = 10.0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # coroutines of a world that was left in the middle, when they are collected
@pytest.mark.parametrize("bug", [*BUGS, *PERSISTENT_BUGS], ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    bug.plant(monkeypatch.setattr)
    reports = []
    for seed in sorted(_SEEDS, key=lambda seed: seed != bug.seed):
        try:
            if bug.scene:
                SCENES[bug.scene](2 * seed, bug.manager)
            else:
                run_seed(seed, bug.kinds, bug.manager, features=(bug.feature,) if bug.feature else (), rate=_LITTLE if bug.feature else bug.rate)
        except SimulationError as error:
            what = str(error).splitlines()[0].split(" s: ", 1)[1]
            reports.append(what)
            error.__traceback__ = None
            collect()
            if what.startswith(bug.promises):
                return
    pytest.fail(f"{bug.name}: not caught in {len(_SEEDS)} seeds; reported instead: {reports}")
