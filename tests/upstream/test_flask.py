"""Flask's own session tests, over our interface and a real node."""

from __future__ import annotations

import re
from pathlib import Path

from .sources import run, unpack

#: What is another answer on purpose (docs/flask.md).
OTHERWISE = {
    "test_basic.py::test_missing_session": "needs no secret key",
    "test_basic.py::test_session_secret_key_fallbacks": "the same",
    "test_testing.py::test_session_transactions_no_null_sessions": "the same",
    "test_basic.py::test_session_using_session_settings": "taking the last attribute away is no logout; `clear()` is one",
    "test_basic.py::test_session_using_samesite_attribute": "changes the cookie's settings between requests",
    "test_basic.py::test_session_expiration": "looks for Expires; the cookie has Max-Age",
    "test_basic.py::test_session_refresh_vary": "a page that does not look at the session says nothing of it, also of a permanent one",
    "test_reqctx.py::test_session_dynamic_cookie_name": "is about a subclass of Flask's own interface",
}


def test_flasks_own_session_tests_pass(tmp_path: Path) -> None:
    root = unpack("Flask", "tests/", tmp_path)
    unpack("Flask", "pyproject.toml", tmp_path)
    files = sorted({name.partition("::")[0] for name in OTHERWISE})
    deselected = [argument for name in OTHERWISE for argument in ("--deselect", f"tests/{name}")]
    done = run(
        root,
        "-m",
        "pytest",
        "-p",
        "flask_cases",
        "-k",
        "session or flash",
        *deselected,
        *(f"tests/{name}" for name in files),
        "tests/test_session_interface.py",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) passed", done.stdout)
    assert found is not None, done.stdout
    assert int(found[1]) >= 15, "the suite has shrunk: are all of its tests still found?"
