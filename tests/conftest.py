"""For all tests. With `CI` set, a test that was skipped counts as failed: half a suite shows nothing."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("caterwaul", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # both would measure how busy the machine is
settings.load_profile("caterwaul")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background of a script: every process of the tests would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits for processes comes first: of several workers one begins with it, while the others compute, and who is done early helps."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/real/"))


def pytest_collection_finish() -> None:
    """All modules of all tests are there to stay: no collection of garbage has to look through them, and some tests ask for hundreds."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, which counts as failed where CI is set: {report.longrepr}"
    return report
