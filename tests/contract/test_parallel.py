"""The other fronts where requests of one session overlap. (The asyncio fronts' tests have that contract in them.)"""

from __future__ import annotations

from typing import Any

import pytest

pytest.register_assert_rewrite("tests.contract.fronts", "tests.contract.parallel")

from . import test_fronts  # noqa: E402
from .fronts import Answer, Call, Driven  # noqa: E402
from .parallel import ParallelContract  # noqa: E402
from .test_fronts import world  # noqa: E402, F401


class TestInParallel(ParallelContract):
    front: Driven

    @pytest.fixture(
        autouse=True,
        params=[test_fronts.WSGI, test_fronts.TestFlask, test_fronts.TestDjango, test_fronts.TestPyramid, test_fronts.TestTwistedWeb, test_fronts.TestKlein],
    )
    def of_each(self, request: Any) -> None:
        self.front = request.param()
        self.interrupts = self.front.interrupts

    def drive(self, call: Call) -> Answer:
        return self.front.drive(call)
