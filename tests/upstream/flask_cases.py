"""A plugin for Flask's own tests: every application that they make has our sessions, of one real node."""

from __future__ import annotations

from typing import Any

import _pytest.monkeypatch
import flask

from caterwaul import ClusterManager
from caterwaul.managers.web.flask import CaterwaulSession

_pytest.monkeypatch.notset = _pytest.monkeypatch.NOTSET  # type: ignore[attr-defined]  # Flask's tests know it by the name it had

cluster = ClusterManager(node={"name": "upstream"}, membership={"discovery": []}, admin={"socket": ""})
cluster.start()
plain = flask.Flask.__init__


def with_sessions(app: flask.Flask, *arguments: Any, **keywords: Any) -> None:
    plain(app, *arguments, **keywords)
    CaterwaulSession(app, cluster.manager())


flask.Flask.__init__ = with_sessions  # type: ignore[method-assign]
