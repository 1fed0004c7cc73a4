"""The fuzzer finds what it is there for: planted bugs. And what it found can be run again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import thread_time

import pytest
from click.testing import CliRunner

from caterwaul.membership.errors import RemoteError

from . import __main__ as program
from . import limits
from .limits import Failed, Feeder, load, save
from .targets import TARGETS, Target

ROOT = Path(__file__).parents[2]


def refuse(_: bytes) -> None:
    raise RemoteError("no")


def escape(data: bytes) -> None:
    if data == b"bad":
        raise KeyError(data)


def dawdle(data: bytes) -> None:
    end = thread_time() + (1.2 * limits.CPU_MS_MAX / 1000 if data == b"bad" else 0)
    while thread_time() < end:
        pass


def hoard(data: bytes) -> None:
    bytearray(12 << 20 if data == b"bad" else 1)


def target(run: Callable[[bytes], None], lives: int = 0) -> Target:
    return Target(lambda: run, lambda: [b""], lives=lives)


def test_what_is_allowed_is_counted() -> None:
    feeder = Feeder(target(refuse))
    for _ in range(3):
        feeder.feed(b"")
    assert (feeder.executions, feeder.refused) == (3, 3)


@pytest.mark.parametrize(("run", "why"), [(escape, "KeyError: b'bad'"), (dawdle, "ms of CPU"), (hoard, "MiB of memory")])
def test_what_is_not_is_found(run: Callable[[bytes], None], why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MEMORY_BYTES_MAX", 10 << 20)  # to have a hundred takes too long
    monkeypatch.setattr(limits, "_GROWTH_KIB", -1)  # look closer at all: a process that was large before, as this one, does not grow
    feeder = Feeder(target(run))
    feeder.feed(b"good")
    with pytest.raises(Failed, match=why) as found:
        feeder.feed(b"bad")
    assert found.value.inputs == [b"bad"]


def test_of_a_target_with_state_everything_since_the_last_new_one_is_kept() -> None:
    def fresh() -> Callable[[bytes], None]:
        heard: list[bytes] = []

        def run(data: bytes) -> None:
            heard.append(data)
            assert heard != [b"3", b"4"]

        return run

    feeder = Feeder(Target(fresh, lambda: [b""], lives=3))
    for data in (b"0", b"1", b"2", b"3"):
        feeder.feed(data)
    with pytest.raises(Failed) as found:
        feeder.feed(b"4")
    assert found.value.inputs == [b"3", b"4"]


def test_a_failure_is_run_again_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "planted", target(escape))
    path = tmp_path / "failed.cbor"
    path.write_bytes(save("planted", [b"good", b"bad"]))
    assert load(path.read_bytes()) == ("planted", [b"good", b"bad"])
    ran = CliRunner().invoke(program.main, ["--replay", str(path)])
    assert ran.exit_code == 1
    assert "KeyError" in ran.output
    path.write_bytes(save("planted", [b"good"]))
    ran = CliRunner().invoke(program.main, ["--replay", str(path)])
    assert (ran.exit_code, ran.output.partition(";")[0]) == (0, "planted: nothing escaped")


def test_a_short_campaign(tmp_path: Path) -> None:
    """Whole processes, with coverage where there is atheris."""
    command = [
        sys.executable,
        "-m",
        "tests.fuzz",
        "--minutes",
        "0",
        "--target",
        "cookie",
        "--target",
        "record",
        "--folder",
        str(tmp_path),
        "--jobs",
        "2",
        "--seed",
        "1",
    ]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.startswith("2 targets, 2 s each, 2 at a time, seed 1\n")
    assert json.loads((tmp_path / "record.json").read_text())["executions"] > 100
    assert list((tmp_path / "corpus" / "record").iterdir())


def test_a_campaign_that_finds_something_says_how_to_run_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "failed-cookie-1.cbor"
    bad.write_bytes(save("cookie", [b"bad"]))
    script = (
        "import json, sys; from pathlib import Path; name, _, folder, _ = sys.argv[1:]\n"
        f"Path(folder, name + '.json').write_text(json.dumps({{'executions': 5, 'seconds': 1.0, 'failed': {str(bad)!r}}}))\n"
        "sys.exit('Traceback: KeyError')"
    )
    monkeypatch.setattr(program, "CHILD", ["-c", script])
    ran = CliRunner().invoke(program.main, ["--minutes", "0", "--target", "cookie", "--folder", str(tmp_path)])
    assert ran.exit_code == 1
    assert f"KeyError\nreplay: python -m tests.fuzz --replay {bad}" in ran.output


def test_a_process_that_dies_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "CHILD", ["-c", "import os; os.abort()"])
    ran = CliRunner().invoke(program.main, ["--minutes", "0", "--target", "cookie", "--folder", str(tmp_path)])
    assert ran.exit_code == 1
    assert "its process ended with -6" in ran.output
