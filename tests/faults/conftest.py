"""For the fault tests: what they measure is printed at the end, one line for each."""

from __future__ import annotations

from collections.abc import Callable

import pytest

_FIGURES = "figures"


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`measured(drop_s=1.2, ...)`: figures for the report."""
    figures: dict[str, object] = {}
    request.node.user_properties.append((_FIGURES, figures))  # which a worker of xdist hands over with its report
    return figures.update


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for kind in ("passed", "failed", "xfailed") for report in terminalreporter.stats.get(kind, ()) if report.when == "call"]
    found = {report.nodeid.rpartition("::")[2].removeprefix("test_"): dict(report.user_properties).get(_FIGURES) for report in reports}
    if any(found.values()):
        terminalreporter.section("measured")
        for test, figures in sorted(found.items()):
            shown = ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in (figures or {}).items())
            if shown:
                terminalreporter.write_line(f"{test}: {shown}")
