"""The configuration explained: for people as TOML and Markdown, for programs as JSON."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from caterwaul.cluster.describe import entries, to_json, to_markdown, to_toml
from caterwaul.cluster.settings import Settings

ROOT = Path(__file__).parents[2]
UNUSUAL = {"node": {"name": "a", "weight": 3}, "membership": {"discovery": ["static"], "seeds": ['h"x:1']}, "managers": {"one": {}, "two": {"acks": "all"}}}


def test_the_printed_configuration_reads_back_as_the_same() -> None:
    for settings in (Settings.of(), Settings.of(**UNUSUAL)):
        assert Settings.of(**tomllib.loads(to_toml(settings))) == settings


def test_each_key_is_printed_under_its_documentation_with_default_unit_and_bounds() -> None:
    text = to_toml(Settings.of())
    assert "(default 3.0; seconds; at least 0.2)\ndrop_time_s = 3.0\n" in text
    assert all(len(line) <= 112 for line in text.splitlines() if line.startswith("#"))


def test_programs_get_every_key_with_value_and_default() -> None:
    found = json.loads(to_json(Settings.of(node={"name": "a", "port": 4000})))
    assert found["node.port"]["value"] == 4000
    assert found["node.port"]["default"] == 0
    assert found["channel.chunk_bytes"]["unit"] == "bytes"
    assert found["managers.default.type"]["bounds"] == "one of delta, backup, partitioned, persistent"


def test_every_setting_says_what_it_means() -> None:
    for entry in entries(Settings.of()):
        assert len(entry.doc) >= 15, entry.name
        assert entry.doc[0].isupper() or not entry.doc[0].isalpha(), entry.name
        assert entry.doc.endswith((".", ")")), entry.name


def test_the_page_of_the_documentation_is_up_to_date() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == to_markdown(), "run `make docs`"
