"""Old and missing libraries are refused with one line that says what to install."""

from __future__ import annotations

import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

import caterwaul.requirements as requirements
from caterwaul.requirements import REQUIRED, check

ROOT = Path(__file__).parents[2]


def test_what_is_installed_will_do() -> None:
    check()


@pytest.mark.parametrize(
    ("installed", "oldest"), [("6.2.1", "6.2.1"), ("6.10", "6.9"), ("26.10.0rc1", "26.10"), ("26.10.0.post1+local", "26.10"), ("100", "26.10")]
)
def test_what_is_new_enough(installed: str, oldest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "_installed", lambda _: installed)
    check({"twisted": ("twisted", oldest)})


def test_what_is_too_old_or_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "_installed", {"cbor2": "6.1.4", "twisted": "26.9.9"}.get)
    with pytest.raises(ImportError) as refused:
        check({**REQUIRED, "no-such-thing": ("no_such_thing", "1")})
    assert str(refused.value) == (
        "Caterwaul needs cbor2 6.2.1 or newer (6.1.4 is installed), twisted 26.10 or newer (26.9.9 is installed), no-such-thing 1 or newer (is not installed): "
        "pip install 'cbor2>=6.2.1' 'twisted>=26.10' 'no-such-thing>=1'"
    )


def test_without_metadata_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "_installed", lambda _: None)
    check()


def test_importing_caterwaul_checks_before_anything_else(tmp_path: Path) -> None:
    """An old cbor2 comes first on the path: only its metadata, so that whoever imported it would fail otherwise."""
    old = tmp_path / "cbor2-6.1.4.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: cbor2\nVersion: 6.1.4\n")
    (tmp_path / "cbor2.py").write_text("raise AssertionError('imported')")
    ran = subprocess.run([sys.executable, "-c", "import caterwaul"], cwd=ROOT, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith("ImportError: Caterwaul needs cbor2 6.2.1 or newer (6.1.4 is installed)")


def test_the_installer_asks_for_the_same() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    asked = dict(line.replace("[tls]", "").split(" >= ") for line in config["options"]["install_requires"].split("\n") if line)
    assert {name: oldest for name, (_, oldest) in REQUIRED.items()}.items() <= asked.items()
