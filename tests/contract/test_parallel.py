"""WSGI and twisted.web where requests of one session overlap. (The asyncio fronts' tests have that contract in them.)"""

from __future__ import annotations

from typing import Any

import pytest

pytest.register_assert_rewrite("tests.contract.fronts", "tests.contract.parallel")

from .fronts import Answer, Call  # noqa: E402
from .parallel import ParallelContract  # noqa: E402
from .test_fronts import WSGI, TestTwistedWeb, world  # noqa: E402, F401

_drive_twisted = TestTwistedWeb.drive
del TestTwistedWeb  # or it would be collected here, too


class TestWSGIInParallel(ParallelContract):
    def drive(self, call: Call) -> Answer:
        return WSGI().drive(call)


class TestTwistedWebInParallel(ParallelContract):
    def drive(self, call: Call) -> Answer:
        answer: Any = _drive_twisted(self, call)  # type: ignore[arg-type]
        return answer  # type: ignore[no-any-return]
