"""The configuration explained: as TOML with a comment for each key, as JSON, and as the page docs/configuration.md.

All three are read off the knobs, so there is one text for each setting, and it stands where the setting is declared.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any

from .settings import Settings

__all__ = ["Entry", "entries", "to_json", "to_markdown", "to_toml"]

_UNITS = {"_s": "seconds", "_bytes": "bytes"}
_WIDTH = 110


@dataclass(frozen=True, slots=True)
class Entry:
    """One setting: where it stands, what it is now, and what its knob says of it."""

    table: str
    key: str
    value: Any
    default: Any
    doc: str
    unit: str
    bounds: str  #: in words; empty where there are none

    @property
    def name(self) -> str:
        return f"{self.table}.{self.key}"


def entries(settings: Settings) -> Iterator[Entry]:
    """Every setting of this configuration, table by table."""
    yield from _of_table("node", settings.node)
    yield from _of_table("cluster", settings.cluster)
    yield from _of_table("security", settings.security)
    yield from _of_table("membership", settings.membership)
    yield from _of_table("channel", settings.channel)
    for name, manager in settings.managers.items():
        yield from _of_table(f"managers.{name}", manager)
        yield from _of_table(f"managers.{name}.cookie", settings.cookies[name])
    for name, logins in settings.sso.items():
        yield from _of_table(f"sso.{name}", logins)
        yield from _of_table(f"sso.{name}.cookie", settings.sso_cookies[name])
    for name, shared in settings.maps.items():
        yield from _of_table(f"maps.{name}", shared)
    yield from _of_table("admin", settings.admin)
    yield from _of_table("web", settings.web)
    yield from _of_table("store", settings.store)


def to_toml(settings: Settings) -> str:
    """The effective configuration as a TOML file that reads back as the same settings."""
    lines = [f"# {settings.source or 'defaults'}: the effective configuration\n"]
    for table, group in groupby(entries(settings), key=lambda entry: entry.table):
        lines.append(f"\n[{table}]\n")
        for entry in group:
            facts = [f"default {_toml(entry.default)}", entry.unit, entry.bounds]
            comment = textwrap.wrap(f"{entry.doc} ({'; '.join(filter(None, facts))})", _WIDTH, break_long_words=False, break_on_hyphens=False)
            lines.extend(f"# {line}\n" for line in comment)
            lines.append(f"{entry.key} = {_toml(entry.value)}\n")
    return "".join(lines)


def to_json(settings: Settings) -> str:
    """``{"table.key": {"value": ..., "default": ..., "unit": ..., "bounds": ..., "doc": ...}}``."""
    found = {
        entry.name: {"value": entry.value, "default": entry.default, "unit": entry.unit, "bounds": entry.bounds, "doc": entry.doc}
        for entry in entries(settings)
    }
    return json.dumps(found, indent=2)


def to_markdown() -> str:
    """The page docs/configuration.md: every setting with its default."""
    lines = [_PAGE_HEAD]
    for table, group in groupby(entries(Settings.of(maps={"default": {}}, sso={"default": {}})), key=lambda entry: entry.table):
        shown = table.replace(".default", ".NAME")
        lines.append(f"\n## `[{shown}]`\n\n| setting | default | meaning |\n|---|---|---|\n")
        for entry in group:
            facts = "; ".join(filter(None, [entry.unit, entry.bounds]))
            default = "" if entry.name == "node.name" else f"`{_toml(entry.default)}`"
            meaning = entry.doc.replace("|", "\\|") + (f" *({facts})*" if facts else "")
            lines.append(f"| `{entry.key}` | {default} | {meaning} |\n")
    return "".join(lines)


_PAGE_HEAD = """# Configuration

One TOML file for a node, or the same names as keywords in Python:

```python
ClusterManager("node.toml")
ClusterManager(node={"name": "a"}, **{"membership.drop_time_s": 5.0})
```

Every key has a default, so an empty file is a valid one. Anything unknown, of the wrong type or out of bounds is refused before
anything starts, with one line for each mistake:

```
node.toml: membership.drop_time_s: 0.2 is shorter than two heartbeats (1.0)
```

`caterwaul config --config node.toml` prints what is in effect, with these explanations; `--json` prints it for programs.
Several session managers, one for each application, are several tables `[managers.NAME]`; without any there is one named `default`. Each table `[maps.NAME]` makes a shared map, each table `[sso.NAME]` logins that applications share.

This page is written by `caterwaul config --markdown`.
"""


def _of_table(table: str, instance: Any) -> Iterator[Entry]:
    kind = type(instance)
    default = kind()
    for field in fields(kind):
        unit = next((unit for ending, unit in _UNITS.items() if field.name.endswith(ending)), "")
        value, usual = getattr(instance, field.name), getattr(default, field.name)
        yield Entry(table, field.name, value, usual, field.metadata["doc"], unit, _bounds(field.metadata))


def _bounds(metadata: Any) -> str:
    low, high, choices = metadata["minimum"], metadata["maximum"], metadata["choices"]
    if choices:
        return "one of " + ", ".join(map(str, choices)) if len(choices) > 1 else f"only {choices[0]}"
    if low is not None and high is not None:
        return f"from {low} to {high}"
    if low is not None:
        return f"at least {low}"
    return f"at most {high}" if high is not None else ""


def _toml(value: Any) -> str:
    """Numbers, text, truth and lists of them, as TOML writes them (JSON text is valid TOML text)."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {_toml(inner)}" for name, inner in value.items()) + "}"
    return repr(value) if type(value) in (int, float) else json.dumps(value, ensure_ascii=False)
