"""docs/security.md promises that each requirement has a test: here is that there are sixty, and that those tests exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \|(.*)\|$", PAGE, re.MULTILINE)


def existing() -> set[str]:
    return {name for path in (ROOT / "tests").rglob("*.py") for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))}


def test_there_are_sixty_requirements_in_order() -> None:
    assert [int(row[0]) for row in ROWS] == list(range(1, 61))


def test_every_test_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 60
    assert named - existing() == set()


def test_every_requirement_has_a_test() -> None:
    assert [number for number, _, _, shown in ROWS if "`test_" not in shown] == []


def test_the_page_says_what_is_not_protected() -> None:
    _, _, rest = PAGE.partition("\n## What is not protected\n")
    assert len(re.findall(r"^- ", rest.partition("\n## ")[0], re.MULTILINE)) > 5
