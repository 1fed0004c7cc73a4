"""The file of a snapshot: whole or refused, whatever has become of it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from caterwaul.cluster.snapshot_commands import _check_age, snapshot
from caterwaul.cluster.snapshot_file import SnapshotWriter, read_snapshot
from caterwaul.membership.codec import encode
from caterwaul.membership.errors import LocalError
from caterwaul.membership.secret import Secret

PAGES = [("default", encode([b"one", b"two"])), ("map:carts", encode([b"three"]))]


def written(path: Path, at_ms: int = 1000, pages: list[tuple[str, bytes]] = PAGES, **about: Any) -> Path:
    managers = [{"name": "default", "retention_s": 3600.0}, {"name": "map:carts", "retention_s": 60.0}]
    with SnapshotWriter(path, {"cluster": "shop", "at_ms": at_ms, "managers": managers, **about}) as file:
        for manager, sessions in pages:
            file.add(manager, sessions)
        file.finish({"sessions": {"default": 2, "map:carts": 1}, "skipped": 0})
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    found = read_snapshot(written(tmp_path / "s"))
    assert list(found.pages()) == PAGES
    assert found.about["cluster"] == "shop"
    assert found.numbers["sessions"] == {"default": 2, "map:carts": 1}
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_one_that_is_not_finished_leaves_what_was_there(tmp_path: Path) -> None:
    path = written(tmp_path / "s")
    before = path.read_bytes()
    with SnapshotWriter(path, {"cluster": "other"}) as file:
        file.add("default", b"")
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["s"]


@settings(max_examples=150)
@given(data=st.data())
def test_a_bit_that_fell_over_or_an_end_that_is_missing_is_noticed(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = written(tmp_path_factory.mktemp("snapshot") / "s")
    good = path.read_bytes()
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(good) - 1))
        bad = bytearray(good)
        bad[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        bad = bytearray(good[: data.draw(st.integers(0, len(good) - 1))])
    path.write_bytes(bad)
    with pytest.raises(LocalError, match=str(path)):
        read_snapshot(path)


@pytest.mark.parametrize("about", [{"at_ms": "now"}, {"managers": 5}, {"managers": [{"name": 5}]}])
def test_one_that_does_not_say_what_it_is_of_is_refused(about: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="does not say what it is of"):
        read_snapshot(written(tmp_path / "s", **about))


def test_one_that_others_can_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "s")
    path.chmod(0o640)
    with pytest.raises(LocalError, match="mode 0640, so others of this machine can use it: chmod 600"):
        read_snapshot(path)
    path.chmod(0o600)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", lambda descriptor: os.stat_result((0o100600, 0, 0, 0, 4711, 0, 0, 0, 0, 0)))
        with pytest.raises(LocalError, match="belongs to user 4711, and this process is user"):
            read_snapshot(path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(LocalError, match="is no file"):
        read_snapshot(tmp_path / "pipe")
    with pytest.raises(LocalError, match="cannot be read: No such file"):
        read_snapshot(tmp_path / "none")
    with pytest.raises(LocalError, match="cannot be written: No such file"):
        SnapshotWriter(tmp_path / "no" / "s", {})


def test_one_older_than_ends_are_remembered_is_not_loaded_unless_forced(tmp_path: Path) -> None:
    now_ms = int(time.time() * 1000)
    _check_age(read_snapshot(written(tmp_path / "fresh", now_ms - 30_000)), False)
    old = read_snapshot(written(tmp_path / "old", now_ms - 90_000))
    with pytest.raises(LocalError, match=r"90\.\d s old, and ends of sessions are remembered for 60\.0 s .*--force"):
        _check_age(old, False)
    _check_age(old, True)


def test_show_needs_no_node(tmp_path: Path) -> None:
    found = CliRunner().invoke(snapshot, ["show", str(written(tmp_path / "s", int(time.time() * 1000) - 5000))])
    assert found.exit_code == 0
    assert "default    2\nmap:carts  1\n" in found.output
    assert "of cluster shop, 5.0 s old, undamaged" in found.output


def test_what_is_sealed_is_read_with_the_same_secret_only(tmp_path: Path) -> None:
    one, other = Secret(b"one" * 16), Secret(b"two" * 16)
    path = tmp_path / "s"
    with SnapshotWriter(path, {"cluster": "shop", "at_ms": 1, "managers": []}, one) as file:
        file.add("default", b"what nobody may see")
        file.finish({"sessions": {}, "skipped": 0})
    assert b"nobody" not in path.read_bytes()
    assert b"shop" not in path.read_bytes()
    assert list(read_snapshot(path, one).pages()) == [("default", b"what nobody may see")]
    with pytest.raises(LocalError, match="sealed with another secret"):
        read_snapshot(path, other)
    with pytest.raises(LocalError, match="is sealed: give --secret-file"):
        read_snapshot(path)
    with pytest.raises(LocalError, match="is not sealed: leave out --secret-file"):
        read_snapshot(written(tmp_path / "plain"), one)
