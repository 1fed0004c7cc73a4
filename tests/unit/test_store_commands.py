"""`caterwaul store`: a store is looked into and moved, without a node."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from caterwaul.cluster.cli import main
from caterwaul.cluster.store_clock import CLOCK, age_s, stamp
from caterwaul.managers.heads import EXPIRED, INVALIDATED, Cover, Head
from caterwaul.managers.kept import Kept, KeptEnd, joined_items, read_item
from caterwaul.managers.record import Record
from caterwaul.managers.stores.opening import open_store
from caterwaul.managers.stores.store import Save

NOW_MS = 2**43
A, B = b"a" * 16, b"b" * 16


def record(*writes: tuple[bytes, dict[str, bytes | None]]) -> Record:
    found = Record()
    for origin, changes in writes:
        found.write(found.counter + 1, origin, changes)
    return found


def kept(number: int, *writes: tuple[bytes, dict[str, bytes | None]]) -> bytes:
    return Kept(bytes([number]) * 16, NOW_MS, NOW_MS, record(*writes or ((A, {"name": b"\x63ada"}),)).pack()).pack()


def ended(number: int, state: int = INVALIDATED, cover: Cover | None = None, counter: int = 2) -> bytes:
    return KeptEnd(bytes([number]) * 16, Head(state, counter, A, A, (), cover, NOW_MS)).pack()


def fill(url: str, space: str, *items: bytes) -> None:
    store = open_store(url, space)
    store.open(create=True)
    store.save_many([Save(read_item(item).key, item, NOW_MS * 2) for item in items])
    store.close()


def contents(url: str, space: str) -> dict[int, bytes]:
    store = open_store(url, space)
    store.open()
    found = {key[0]: item.data for key, item in store.load(store.keys()).items()}
    store.close()
    return found


def run(*arguments: str, fails: bool = False) -> Any:
    done = CliRunner().invoke(main, ["store", *arguments])
    assert (done.exit_code != 0) == fails, done.output
    return done.output


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/here"


def test_ls_and_show_tell_names_and_sizes_and_no_value(url: str) -> None:
    fill(url, "shop/default", kept(1), kept(2), ended(3))
    assert json.loads(run("ls", url, "--json")) == {
        "shop/default": {"sessions": 2, "ended": 1, "over": 0, "damaged": 0, "bytes": sum(map(len, contents(url, "shop/default").values()))}
    }
    assert "shop/default  2" in run("ls", url)
    rows = json.loads(run("ls", url, "--space", "shop/default", "--json"))
    assert [(row["key"], row["state"]) for row in rows] == [("01" * 16, "live"), ("02" * 16, "live"), ("03" * 16, "ended")]
    assert json.loads(run("ls", url, "--space", "shop/default", "--after", "02" * 16, "--json"))[0]["key"] == "03" * 16
    shown = run("show", url, "01" * 16)
    assert "name" in shown
    assert "ada" not in shown
    assert json.loads(run("show", url, "01" * 16, "--json"))["attributes"] == {"name": 4}
    assert "no session" in run("show", url, "09" * 16, fails=True)
    assert "32 hexadecimal digits" in run("show", url, "xyz", fails=True)


def test_verify_says_what_is_damaged(url: str) -> None:
    fill(url, "shop/default", kept(1))
    assert "1 items read, 0 damaged" in run("verify", url)
    store = open_store(url, "shop/default")
    store.open()
    store.save_many([Save(b"\7" * 16, kept(8), NOW_MS * 2), Save(b"\6" * 16, b"nonsense", NOW_MS * 2)])
    assert json.loads(run("verify", url, "--json", fails=True))["damaged"] == 2


def test_sessions_move_between_stores_and_through_a_file(url: str, tmp_path: Path) -> None:
    fill(url, "shop/default", kept(1), ended(2))
    fill(url, "shop/other", kept(3))
    there, again, file = f"file://{tmp_path}/there", f"file://{tmp_path}/again", str(tmp_path / "file")
    assert json.loads(run("copy", url, there, "--json")) == {"added": 3, "merged": 0, "there": 0}
    assert contents(there, "shop/default") == contents(url, "shop/default")
    assert json.loads(run("copy", url, there, "--json")) == {"added": 0, "merged": 0, "there": 3}
    assert json.loads(run("export", url, file, "--json"))["items"] == {"default": 2, "other": 1}
    run("init", again)
    assert json.loads(run("import", again, file, "--json")) == {"added": 3, "merged": 0, "there": 0}
    assert contents(again, "shop/other") == contents(url, "shop/other")


def test_a_copy_merges_with_what_is_there(url: str, tmp_path: Path) -> None:
    fill(url, "shop/default", kept(1, (A, {"a": b"\x01"})), kept(2))
    there = f"file://{tmp_path}/there"
    fill(there, "shop/default", kept(1, (B, {"b": b"\x02"})), ended(2))
    assert json.loads(run("copy", url, there, "--json")) == {"added": 0, "merged": 1, "there": 1}
    found = contents(there, "shop/default")
    one = read_item(found[1])
    assert isinstance(one, Kept)
    assert set(Record.unpack(one.body).registers) == {"a", "b"}
    assert isinstance(read_item(found[2]), KeptEnd)


def test_an_export_wants_to_know_which_cluster(url: str, tmp_path: Path) -> None:
    fill(url, "shop/default", kept(1))
    fill(url, "blog/default", kept(2))
    assert "--cluster" in run("export", url, str(tmp_path / "file"), fails=True)
    assert json.loads(run("export", url, str(tmp_path / "file"), "--cluster", "blog", "--json"))["items"] == {"default": 1}


def test_what_is_no_store_is_said() -> None:
    assert "unknown kind 'ftp'" in run("ls", "ftp://x", fails=True)
    assert "names no directory" in run("ls", "file:x", fails=True)


# -- what is kept of one session in two places


items = st.lists(
    st.tuples(st.sampled_from([A, B]), st.dictionaries(st.sampled_from("xyz"), st.sampled_from([b"\1", b"\2", None]), min_size=1)), max_size=4
).map(lambda writes: kept(1, *writes)) | st.builds(
    lambda expired, counter: ended(1, EXPIRED if expired else INVALIDATED, Cover({A: counter, B: counter}, {}) if expired else None, counter),
    st.booleans(),
    st.integers(1, 5),
)


def meaning(item: bytes) -> object:
    found = read_item(item)
    return found if isinstance(found, KeptEnd) else (found[:3], Record.unpack(found.body).pack())


@given(st.lists(items, min_size=2, max_size=3))
def test_joining_is_in_any_order(some: list[bytes]) -> None:
    for one, other in pairwise(some):
        assert meaning(joined_items(one, other)) == meaning(joined_items(other, one))
        assert meaning(joined_items(one, joined_items(one, other))) == meaning(joined_items(one, other))


def test_an_expiry_that_had_not_seen_all_does_not_stand() -> None:
    session = kept(1, (A, {"x": b"\1"}), (A, {"x": b"\2"}))
    assert isinstance(read_item(joined_items(session, ended(1, EXPIRED, Cover({A: 2}, {})))), KeptEnd)
    assert isinstance(read_item(joined_items(session, ended(1, EXPIRED, Cover({A: 1}, {})))), Kept)
    assert isinstance(read_item(joined_items(session, ended(1, INVALIDATED))), KeptEnd)


def test_a_password_is_not_given_on_a_command_line(url: str, tmp_path: Path) -> None:
    said = run("ls", "redis://ada:secret@127.0.0.1/0", fails=True)
    assert "secret" not in said
    assert "@FILE" in said
    file = tmp_path / "url"
    file.write_text(f"{url}\n")
    file.chmod(0o644)
    assert "chmod 600" in run("ls", f"@{file}", fails=True)
    file.chmod(0o600)
    fill(url, "shop/default", kept(1))
    assert "shop/default" in run("ls", f"@{file}")
    file.write_text("two words")
    assert "does not hold a URL" in run("ls", f"@{file}", fails=True)


def test_a_store_of_long_ago_is_trusted_when_somebody_says_so(url: str) -> None:
    store = open_store(url, f"shop/{CLOCK}")
    store.open(create=True)
    assert age_s(store) == 0.0
    stamp(store, 1e9)
    assert age_s(store, 1e9 + 60) == 60
    fill(url, "shop/default", kept(1))
    assert list(json.loads(run("ls", url, "--json"))) == ["shop/default"]
    assert json.loads(run("verify", url, "--json"))["damaged"] == 0
    assert json.loads(run("trust", url, "--cluster", "shop", "--json"))["was_used_ago_s"] > 1e8
    assert age_s(store) < 60
