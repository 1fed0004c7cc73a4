"""Which browser tab a request comes from: the page says so, with a header or in the URL. It is no secret, and means nothing outside its session."""

from __future__ import annotations

import re
from urllib.parse import parse_qs

__all__ = ["HEADER", "PARAMETER", "tab_id"]

HEADER = "X-Tab"  #: of requests that a script makes
PARAMETER = "_tab"  #: of links and forms
_is_id = re.compile(r"[A-Za-z0-9_-]{1,64}").fullmatch


def tab_id(header: str | None, query: str | bytes = "") -> str | None:
    """The id for `Session.tab`: what the header `X-Tab` says, else the parameter `_tab` of this query string. None: neither says anything that is one. Never raises."""
    if header and _is_id(header.strip()):
        return header.strip()
    text = query.decode("latin-1") if isinstance(query, bytes) else query
    if PARAMETER not in text:
        return None
    try:
        values = parse_qs(text, max_num_fields=1000).get(PARAMETER, [])
    except ValueError:
        return None
    return values[0] if len(values) == 1 and _is_id(values[0]) else None
