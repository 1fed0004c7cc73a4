"""Pages name settings, pages and headings that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from caterwaul.cluster.describe import entries
from caterwaul.cluster.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_TABLES = "node|security|membership|channel|managers|maps|admin|web"  # what follows `cluster.` is most often Python
_FILES = (".py", ".toml", ".csr", ".key", ".pem", ".crt", ".crl")


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_to_other_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def test_settings_that_a_page_names_in_full_exist() -> None:
    known = {entry.name.replace(".default", ".NAME") for entry in entries(Settings.of(maps={"default": {}}))}
    named = {(name, page.name) for page in PAGES for name in re.findall(rf"`((?:{_TABLES})\.[a-zA-Z_.]+)(?: = [^`]*)?`", page.read_text(encoding="utf-8"))}
    assert {(name, page) for name, page in named if name.replace(".default.", ".NAME.") not in known and not name.endswith(_FILES)} == set()
