"""Klein's own session tests, over our store and a manager."""

from __future__ import annotations

import unittest
from collections.abc import Iterable
from typing import Any

import pytest
from klein.test import test_memory, test_session

from caterwaul.managers.web.klein import SessionStore

from ..contract.double import World


def make(authorizer: Any = None) -> SessionStore:
    return SessionStore(World().node(), *[authorizer] if authorizer else [])  # type: ignore[arg-type]


def from_authorizers(authorizers: Iterable[Any]) -> SessionStore:
    return SessionStore.fromAuthorizers(World().node(), authorizers)  # type: ignore[arg-type]


make.fromAuthorizers = from_authorizers  # type: ignore[attr-defined]  # all that the tests know of Klein's store in memory


@pytest.mark.parametrize("module", [test_session, test_memory], ids=lambda module: module.__name__)
def test_kleins_own_session_tests_pass(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come with Klein as it is installed."""
    monkeypatch.setattr(module, "MemorySessionStore", make)
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromModule(module).run(result)
    assert [text for _, text in result.failures + result.errors] == []
    assert (result.testsRun >= 3, result.skipped) == (True, [])
