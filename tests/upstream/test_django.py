"""Django's own session tests, over our store and a real node."""

from __future__ import annotations

import re
from pathlib import Path

from .sources import run, unpack


def test_djangos_own_session_tests_pass(tmp_path: Path) -> None:
    root = unpack("Django", "tests/sessions_tests/", tmp_path)
    done = run(root / "tests", "-m", "django_cases")
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) tests, 0 failed, 0 skipped", done.stdout)
    assert found is not None, done.stdout
    assert int(found[1]) > 140, "the suite has shrunk: are all of its tests still found?"
