"""What the store in files promises beyond the contract of stores: damage, permissions, a disk that fails, who else is at work."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caterwaul.managers.stores import file_items, file_swap, private_directory
from caterwaul.managers.stores.file import FileStore
from caterwaul.managers.stores.file_form import pack, space_directory, space_of, unpack
from caterwaul.managers.stores.opening import open_store
from caterwaul.managers.stores.store import NOTHING, Save, Stored, StoreError
from caterwaul.membership.errors import LocalError

FAR_MS, OVER_MS = 4_000_000_000_000, 1_000_000_000_000
KEY, OTHER, THIRD = b"k" * 16, b"o" * 16, b"k" * 15 + b"3"
SAME_LOCK = bytes([KEY[0] ^ 16]) * 16


@pytest.fixture
def where(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(where: Path) -> Iterator[FileStore]:
    store = opened(where)
    yield store
    store.close()


def opened(where: Path, space: str = "shop", timeout_s: float = 2.0) -> FileStore:
    store = FileStore(where, space, timeout_s)
    store.open()
    return store


def path_of(where: Path, key: bytes = KEY) -> Path:
    return where / "space-shop" / key.hex()[:2] / key.hex()


def aside(where: Path) -> list[str]:
    return [path.name for path in (where / "space-shop" / ".aside").iterdir() if path.suffix != ".lock"]


def contents(store: FileStore) -> dict[bytes, bytes]:
    return {key: item.data for key, item in store.load(store.keys()).items()}


def saved(store: FileStore, data: bytes = b"one", *keys: bytes) -> dict[bytes, bytes]:
    return store.save_many([Save(key, data, FAR_MS) for key in keys or [KEY]])


def calls(store: FileStore) -> list[Callable[[], Any]]:
    return [
        lambda: store.load([KEY]), lambda: store.save_many([Save(KEY, b"", FAR_MS)]), lambda: store.delete({KEY: b"x"}), store.keys, lambda: store.expired(FAR_MS),
        lambda: store.quarantine({KEY: b"x"}), store.clear,
    ]  # fmt: skip


# what is in a file


@given(st.binary(max_size=200), st.integers(-(2**63), 2**63 - 1), st.data())
def test_what_was_packed_is_unpacked_and_nothing_else(data: bytes, until_ms: int, draw: st.DataObject) -> None:
    file = pack(KEY, data, until_ms)
    item = unpack(KEY, file)
    assert item is not None
    assert item[:2] == (data, until_ms)
    assert unpack(OTHER, file) is None
    assert unpack(KEY, file + b"\0") is None
    assert unpack(KEY, file[: draw.draw(st.integers(0, len(file) - 1))]) is None
    turned = bytearray(file)
    turned[draw.draw(st.integers(0, len(file) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    assert unpack(KEY, bytes(turned)) is None
    assert unpack(KEY, draw.draw(st.binary(max_size=100))) is None


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_name_of_a_space_makes_a_directory_and_comes_back(name: str) -> None:
    if len(directory := "space-" + "".join(f"%{byte:02x}" for byte in name.encode())) < 256:
        directory = space_directory(name)
        assert space_of(directory) == name
        assert set(directory) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.%")
        assert len(directory) < 256


def test_a_name_that_is_too_long_is_refused() -> None:
    with pytest.raises(LocalError, match="at most 255"):
        space_directory("x" * 250)


def test_what_is_no_directory_of_a_space_is_none(where: Path, store: FileStore) -> None:
    saved(store)
    for name in ("space-Shop", "space-%41%ff", "lost+found", "space-%2", "space-%2F"):
        shutil.copytree(where / "space-shop", where / name)
        assert space_of(name) is None
    assert store.spaces() == ["shop"]


def test_what_is_no_item_is_left_alone(where: Path, store: FileStore) -> None:
    saved(store)
    bucket = path_of(where).parent
    for name in (KEY.hex().upper(), KEY.hex()[:-1], OTHER.hex(), "core"):
        (bucket / name).write_bytes(b"x")
    (bucket.parent / "tmp").mkdir()
    assert store.keys() == [KEY]
    assert store.expired(FAR_MS) == {KEY: store.load([KEY])[KEY].revision}
    store.clear()
    assert len(list(bucket.iterdir())) == 4


# damage


@pytest.mark.parametrize("damage", ["cut", "turned", "empty", "longer", "link", "directory", "pipe", "other", "open to others"])
def test_a_damaged_file_is_put_away_and_the_rest_goes_on(where: Path, store: FileStore, damage: str) -> None:
    saved(store, b"one", KEY, OTHER)
    path = path_of(where)
    file = path.read_bytes()
    if damage != "open to others":
        path.unlink()
    match damage:
        case "cut" | "turned" | "empty" | "longer":
            path.write_bytes({"cut": file[:-1], "turned": file[:-1] + b"x", "empty": b"", "longer": file + b"x"}[damage])
            path.chmod(0o600)
        case "link":
            (where / "elsewhere").write_bytes(file)
            (where / "elsewhere").chmod(0o600)
            path.symlink_to(where / "elsewhere")
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "other":
            shutil.copy(path_of(where, OTHER), path)
        case _:
            path.chmod(0o640)
    again = opened(where)
    assert contents(again) == {OTHER: b"one"}
    assert again.damaged == 1
    assert [path.name.partition(".")[0] for path in (where / "space-shop" / ".damaged").iterdir()] == [KEY.hex()]
    assert saved(again, b"new") != {}
    assert contents(store) == {KEY: b"new", OTHER: b"one"}
    again.close()


@pytest.mark.parametrize("through", ["save_many", "delete", "expired"])
def test_damage_is_noticed_by_whoever_comes_first(where: Path, store: FileStore, through: str) -> None:
    revisions = saved(store)
    path_of(where).write_bytes(b"x")
    os.utime(path_of(where), (0, 0))
    match through:
        case "save_many":
            assert store.save_many([Save(KEY, b"two", FAR_MS, revisions[KEY])]) == {}
        case "delete":
            store.delete(revisions)
        case _:
            assert store.expired(OVER_MS) == {}
    assert store.damaged == 1
    assert store.keys() == []


def test_a_damaged_file_that_cannot_be_moved_is_not_there_all_the_same(where: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(store, b"one", KEY, OTHER)
    path_of(where).write_bytes(b"x")
    monkeypatch.setattr(os, "rename", failing(os.rename, errno.EROFS))
    assert store.load([KEY, OTHER]).keys() == {OTHER}
    assert store.damaged == 0


# who may use it


def test_only_its_user_can_use_anything_of_it(where: Path) -> None:
    before = os.umask(0)
    try:
        store = opened(where)
        store.quarantine(saved(store))
        saved(store)
    finally:
        os.umask(before)
    for path in [where, *where.rglob("*")]:
        assert path.lstat().st_mode & 0o7777 == (0o700 if path.is_dir() else 0o600), path
    store.close()


@pytest.mark.parametrize("part", ["", "space-shop"])
def test_a_directory_that_others_can_use_is_refused_at_once(where: Path, store: FileStore, part: str) -> None:
    saved(store)
    (where / part).chmod(0o750)
    for call in [*calls(store), FileStore(where, "shop").open]:
        with pytest.raises(StoreError, match=f"has mode 0750, so others of this machine can use it: chmod -R go= {where / part}"):
            call()
    (where / part).chmod(0o700)
    assert contents(store) == {KEY: b"one"}


@pytest.mark.parametrize("part", ["", "space-shop"])
def test_a_symbolic_link_is_refused(where: Path, store: FileStore, part: str) -> None:
    real = where.with_name("real")
    (where / part).rename(real)
    (where / part).symlink_to(real)
    for call in [*calls(store), FileStore(where, "shop").open]:
        with pytest.raises(StoreError, match="is a symbolic link"):
            call()


def test_another_users_directory_is_refused(where: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_directory.os, "geteuid", lambda: os.getuid() + 1)
    for call in [*calls(store), FileStore(where, "shop").open]:
        with pytest.raises(StoreError, match="belongs to user"):
            call()


@pytest.mark.parametrize("url", ["file:", "file:/tmp/x", "file://host/x", "file:///x?y", "file:///x#y", "file:///x%00y", "file://./x"])
def test_what_names_no_directory_is_refused(url: str) -> None:
    with pytest.raises(LocalError, match="names no directory"):
        open_store(url, "shop")


def test_a_directory_may_have_any_name(tmp_path: Path) -> None:
    where = tmp_path / "a b#c?d%41\xe4"
    store = open_store(where.as_uri(), "shop")
    store.open()
    assert (where / "space-shop").is_dir()
    assert store.name == where.as_uri()
    store.close()


# trouble


def test_a_directory_that_was_deleted_is_trouble_until_it_is_opened_again(where: Path, store: FileStore) -> None:
    saved(store)
    shutil.rmtree(where)
    for call in calls(store):
        with pytest.raises(StoreError, match="is not there"):
            call()
    assert not where.exists()
    store.open()
    assert saved(store, b"two") != {}
    assert contents(store) == {KEY: b"two"}


def test_a_space_that_was_deleted_is_trouble_too(where: Path, store: FileStore) -> None:
    shutil.rmtree(where / "space-shop")
    for call in calls(store):
        with pytest.raises(StoreError, match="is not there"):
            call()
    store.open()
    assert saved(store) != {}


def test_a_parent_that_is_not_there_has_to_be_made_by_somebody(where: Path) -> None:
    with pytest.raises(StoreError, match="is not there: make it"):
        opened(where / "below")


def failing_with(error: Exception) -> Callable[..., Any]:
    def call(*args: Any, **named: Any) -> Any:
        raise error

    return call


def failing(real: Callable[..., Any], number: int, at: int = 0) -> Callable[..., Any]:
    """The same, but it fails when it is called for the `at`-th time, or each time."""
    count = 0

    def call(*args: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if at in (0, count):
            raise OSError(number, os.strerror(number))
        return real(*args, **named)

    return call


_CALLS = ["open", "write", "utime", "fsync", "link", "rename", "mkdir", "stat", "listdir"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS], ids=["EIO", "ENOSPC", "EROFS"])
@pytest.mark.parametrize("name", _CALLS)
def test_whatever_fails_in_a_save_nothing_has_changed(where: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """Whichever call of the system it is; and then it is saved, into new files, as soon as nothing fails."""
    revisions = saved(store, b"one", KEY, OTHER)
    saves = [Save(KEY, b"two", FAR_MS, revisions[KEY]), Save(THIRD, b"two", FAR_MS), Save(bytes(16), b"two", FAR_MS), Save(OTHER, b"two", FAR_MS)]
    at = 0
    while True:
        at += 1
        real = getattr(os, name)
        monkeypatch.setattr(os, name, failing(real, number, at))
        try:
            done = store.save_many(saves)
            break
        except StoreError as error:
            text = str(error)
        finally:
            monkeypatch.setattr(os, name, real)
        assert text == f"store {store.name} cannot save: {os.strerror(number)}"
        assert contents(store) == {KEY: b"one", OTHER: b"one"}
        assert aside(where) == []
    assert at > 1 or name == "listdir"
    assert set(done) == {KEY, THIRD, bytes(16)}
    assert contents(store) == {KEY: b"two", THIRD: b"two", bytes(16): b"two", OTHER: b"one"}
    assert aside(where) == []
    assert store.damaged == 0


@pytest.mark.parametrize("name", ["open", "fsync", "stat"])
def test_what_fails_in_a_deletion_leaves_all(where: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    revisions = saved(store, b"one", KEY, OTHER, THIRD)
    del revisions[THIRD]
    at = 0
    while True:
        at += 1
        real = getattr(os, name)
        monkeypatch.setattr(os, name, failing(real, errno.EIO, at))
        try:
            store.delete(revisions)
            break
        except StoreError:
            pass
        finally:
            monkeypatch.setattr(os, name, real)
        assert store.load([KEY, OTHER, THIRD]).keys() == {KEY, OTHER, THIRD}
        assert aside(where) == []
    assert at > 1
    assert store.keys() == [THIRD]
    assert aside(where) == []


def test_a_full_disk_lets_go_of_what_is_deleted(where: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    revisions = saved(store)
    monkeypatch.setattr(os, "rename", failing(os.rename, errno.ENOSPC))
    store.delete(revisions)
    assert store.keys() == []


def test_what_cannot_be_read_is_trouble_and_stays_where_it_is(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(store)
    monkeypatch.setattr(file_items, "unpack", failing(unpack, errno.EIO))
    with pytest.raises(StoreError, match="Input/output error"):
        store.load([KEY])
    monkeypatch.undo()
    assert contents(store) == {KEY: b"one"}
    assert store.damaged == 0


def test_a_disk_that_takes_little_at_a_time_gets_all(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    saved(store, bytes(range(256)))
    assert contents(store) == {KEY: bytes(range(256))}


def test_each_file_and_each_directory_is_made_durable_before_it_is_believed(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files before names; each directory once; a batch by few calls more than its files."""
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(descriptor: int) -> None:
        done.append("directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def renamed(*args: Any, **named: Any) -> None:
        done.append("rename")
        rename(*args, **named)

    monkeypatch.setattr(file_swap.os, "fsync", synced)
    monkeypatch.setattr(file_swap.os, "rename", renamed)
    saved(store, b"x", KEY, THIRD, OTHER)
    assert done == ["file"] * 3 + ["rename"] * 3 + ["directory"] * 3  # two of items, and the one where these are new
    done.clear()
    store.delete(dict.fromkeys([KEY, THIRD], store.load([KEY])[KEY].revision))
    assert done == ["rename"] * 2 + ["directory"]


def test_without_more_threads_it_takes_longer_and_no_more(where: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends starts none, nor one that has as many as it may."""
    monkeypatch.setattr(threading.Thread, "start", failing_with(RuntimeError("can't start new thread")))
    assert len(saved(store, b"x", KEY, OTHER, THIRD)) == 3
    monkeypatch.setattr(os, "fsync", failing(os.fsync, errno.EIO, 2))
    with pytest.raises(StoreError):
        saved(store, b"x", bytes(16), b"\1" * 16, b"\2" * 16)
    assert store.keys() == sorted([KEY, OTHER, THIRD])
    assert aside(where) == []


# what is over


def test_no_file_is_opened_to_see_that_nothing_is_over(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(store, b"x", *(bytes([number]) * 16 for number in range(50)))
    read = []
    monkeypatch.setattr("caterwaul.managers.stores.file.read_item", lambda *args: read.append(args))
    assert store.expired(FAR_MS - 1) == {}
    assert read == []


def test_a_time_that_a_backup_has_changed_is_set_right(where: Path, store: FileStore) -> None:
    saved(store)
    os.utime(path_of(where), (1, 1))
    assert store.expired(OVER_MS) == {}
    assert path_of(where).stat().st_mtime_ns == FAR_MS * 1_000_000


@pytest.mark.parametrize("until_ms", [-(2**63), -1, 0, 2**31 * 1000, FAR_MS, 2**63 - 1])
def test_any_time_can_be_saved(store: FileStore, until_ms: int) -> None:
    revisions = store.save_many([Save(KEY, b"x", until_ms)])
    assert store.load([KEY])[KEY].until_ms == until_ms
    assert store.expired(max(0, until_ms)) == revisions
    assert store.expired(until_ms - 1) == {}


def test_few_at_a_time_come_to_all_of_them(store: FileStore) -> None:
    """Also if those that come first cannot be deleted: the next call goes on where the last one stopped."""
    keys = [bytes([number]) * 16 for number in range(9)]
    store.save_many([Save(key, b"x", OVER_MS) for key in keys])
    assert {key for _ in range(5) for key in store.expired(OVER_MS, 2)} == set(keys)


# others at work


def test_what_a_crash_left_is_removed_and_what_somebody_is_writing_is_not(where: Path, store: FileStore) -> None:
    folder = where / "space-shop" / ".aside"
    living = [path.name for path in folder.iterdir()]
    living.append(living[0].replace("lock", "1.7"))
    (folder / living[1]).touch()
    for name in ("dead.lock", "dead.1.2", "dead.1.3", "nolock.1.4"):
        (folder / name).touch()
    other = opened(where)
    left = {path.name for path in folder.iterdir()}
    assert set(living) < left
    assert len(left) == 3  # and the lock of the second
    other.close()
    store.close()
    assert {path.name for path in folder.iterdir()} == set()


def test_who_waits_too_long_for_others_is_told_so(where: Path, store: FileStore) -> None:
    impatient = opened(where, timeout_s=0.05)
    revisions = saved(store)
    with (where / "space-shop" / ".locks" / f"{KEY[0] % 16:x}").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for call in (lambda: saved(impatient, b"two", OTHER, SAME_LOCK), lambda: impatient.delete(revisions), lambda: impatient.quarantine(revisions)):
            with pytest.raises(StoreError, match=r"others have been changing the same items for 0\.05 s"):
                call()
        assert contents(impatient) == {KEY: b"one"}
    assert aside(where) == []
    impatient.quarantine(revisions)
    impatient.close()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # threads of the tests' own
def test_a_forked_process_can_go_on_with_it(where: Path, store: FileStore) -> None:
    saved(store)
    if not (child := os.fork()):
        ok = saved(store, b"two", OTHER) and contents(store)
        os._exit(0 if ok else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0
    saved(store, b"three", THIRD)
    assert contents(store) == {KEY: b"one", OTHER: b"two", THIRD: b"three"}
    assert aside(where) == []


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_the_files_of_a_forked_process_have_names_of_their_own(where: Path, store: FileStore) -> None:
    theirs, ours = os.pipe()
    with private_directory.open_directory(where / "space-shop") as space:
        if not (child := os.fork()):
            os.write(ours, store._aside.name(space).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(theirs, 100).decode() != store._aside.name(space)
    os.close(theirs)
    os.close(ours)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=80))
def test_no_bytes_in_a_file_do_harm(where: Path, store: FileStore, file: bytes) -> None:
    path_of(where).parent.mkdir(mode=0o700, exist_ok=True)
    path_of(where).write_bytes(file)
    path_of(where).chmod(0o600)
    found: dict[bytes, Stored] = store.load([KEY])
    assert found == {}
    assert saved(store)[KEY] != NOTHING
