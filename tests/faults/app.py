"""The application of the nodes under test: appends a token and counts it, logs out, shows what there is. ``web.application`` names it.

Each append is one commit, whose confirmations are in the answer. A cookie whose session is gone begins no other: 410, so that a client
never writes where nobody looks. Where the session is unknown, or one too many, nothing is written, and the front answers 503.

It is imported before the node starts anything else, so it is also where a bug is planted into a node, to see that the tests find it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

from caterwaul import Counter
from caterwaul.managers.errors import SessionUnknown

from .planted import BUGS

__all__ = ["PLANT", "application"]

PLANT = "CATERWAUL_FAULTS_PLANT"  #: in the environment: the name of a bug
_COUNT = "count"

for _bug in BUGS:
    if _bug.name == os.environ.get(PLANT):
        _bug.plant(setattr)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    session, node = environ["caterwaul.session"], environ["caterwaul.node"]
    wanted = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    status, found = "200 OK", {}
    if session.unknown:
        raise SessionUnknown("the session is not known at the moment")
    if "HTTP_COOKIE" in environ and session.id is None:
        status = "410 Gone"
    else:
        found = _ACTIONS[environ["PATH_INFO"]](session, node.managers["default"], wanted)
    body = json.dumps({"node": node.name, "time": time.time(), **found}).encode()
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def _append(session: Any, manager: Any, wanted: dict[str, str]) -> dict[str, Any]:
    session.setdefault("l" + wanted["list"], []).append(wanted["token"])
    session.setdefault(_COUNT, Counter()).add(1)
    if "pad" in wanted:  # bytes that no compression makes fewer, so that there is something to move
        session["pad"] = os.urandom(int(wanted["pad"]))
    if "idle" in wanted:
        session.max_idle_s = float(wanted["idle"])
    return _commit(session, manager, wanted)


def _logout(session: Any, manager: Any, wanted: dict[str, str]) -> dict[str, Any]:
    session.invalidate()
    return _commit(session, manager, wanted)


def _read(session: Any, manager: Any, wanted: dict[str, str]) -> dict[str, Any]:
    count = session.get(_COUNT)
    return {"lists": {name: list(value) for name, value in session.items() if isinstance(value, list)}, "count": int(count) if count is not None else 0}


def _commit(session: Any, manager: Any, wanted: dict[str, str]) -> dict[str, Any]:
    receipt = manager.commit(session, acks=wanted.get("acks"))
    if receipt.needs_wait:
        receipt.wait()
    return {"confirmed": list(receipt.confirmed), "unconfirmed": list(receipt.unconfirmed)}


_ACTIONS: dict[str, Callable[[Any, Any, dict[str, str]], dict[str, Any]]] = {"/append": _append, "/logout": _logout, "/read": _read}
