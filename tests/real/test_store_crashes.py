"""The store in files when its process is killed between any two calls of the system, when the disk fails, and when it is full (F16 to F18)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from caterwaul.managers.stores.file import FileStore
from caterwaul.managers.stores.store import Save, StoreError

from .store_child import FAR_MS, GOING, NEW, OLD, OTHER, REFUSED

ROOT = Path(__file__).parents[2]
#: What changes something, in all that a save and a deletion do. A question mark: not on all processors.
CHANGES = ["openat", "write", "utimensat", "fsync", "linkat", "renameat", "?renameat2", "unlinkat", "mkdirat", "flock"]


@cache
def why_no_strace() -> str:
    """Attaching to a process of ours is more than a container may allow."""
    if not shutil.which("strace"):
        return "needs strace"
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as stranger, tracing(stranger.pid, "fsync:error=EIO") as tracer:
        reason = "" if is_traced(stranger.pid, tracer) else f"strace cannot trace here: {tracer.stderr.read().strip()[:200]}"
        stranger.kill()
    return reason


def tracing(process: int, inject: str) -> subprocess.Popen[str]:
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={inject.partition(':')[0]}", "-e", f"inject={inject}", "-p", str(process)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def is_traced(process: int, tracer: subprocess.Popen[str]) -> bool:
    """Waits until it is, or will not be."""
    while "TracerPid:\t0" in Path(f"/proc/{process}/status").read_text():
        if tracer.poll() is not None:
            return False
    return True


needs_strace = pytest.mark.skipif(bool(why_no_strace()), reason=why_no_strace() or "there is strace")


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store as it was; to be copied."""
    where = tmp_path_factory.mktemp("before") / "store"
    store = FileStore(where, "shop")
    store.open()
    assert len(store.save_many([Save(key, b"old", FAR_MS) for key in (OLD, GOING, OTHER)])) == 3
    store.close()
    return where


Act = Callable[[Path, str, int], int]


@pytest.fixture(scope="module")
def act() -> Iterator[Act]:
    """Save so many items, and delete one, in the store there, in a process of its own, with what strace shall do to that; how it ended."""
    command = [sys.executable, "-m", "tests.real.store_child"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None

        def run(where: Path, inject: str, items: int) -> int:
            parent.stdin.write(f"{where} {items}\n")
            parent.stdin.flush()
            child = int(parent.stdout.readline())
            try:
                with tracing(child, inject) as tracer:
                    assert is_traced(child, tracer), tracer.stderr.read()
                    os.kill(child, signal.SIGCONT)
                    return int(parent.stdout.readline())
            except BaseException:
                os.kill(child, signal.SIGKILL)  # it has stopped itself, and its parent waits
                raise

        yield run
        parent.stdin.close()


def contents(where: Path) -> dict[bytes, bytes]:
    """What a start finds. Nothing of it is damaged, and nothing else is left."""
    store = FileStore(where, "shop")
    store.open()
    found = {key: item.data for key, item in store.load(store.keys()).items()}
    assert store.damaged == 0
    store.close()
    assert not list((where / "space-shop" / ".aside").iterdir())
    return found


@needs_strace
@pytest.mark.parametrize("call", CHANGES)
def test_killed_at_each_call_of_the_system_it_leaves_old_or_new(before: Path, act: Act, tmp_path: Path, call: str) -> None:
    old, new = {OLD: b"old", GOING: b"old", OTHER: b"old"}, {OLD: b"new", NEW: b"new", OTHER: b"old"}
    for number in range(1, 200):
        where = tmp_path / str(number)
        shutil.copytree(before, where)
        ended = act(where, f"{call}:signal=KILL:when={number}", 2)
        found = contents(where)
        if ended == 0:
            assert found == new
            break
        assert ended == -signal.SIGKILL
        assert all(data in (old.get(key), new.get(key)) for key, data in found.items())
        assert found.keys() >= {OLD, OTHER}  # what is only replaced is never away
        if GOING not in found:  # which is done last
            assert found == new
    assert number > 1 or call.startswith("?")


@needs_strace
@pytest.mark.parametrize(
    ("fault", "items"),
    [
        *(("fsync:error=EIO", items) for items in (1, 2)), *(("write:error=ENOSPC", items) for items in (1, 2)), ("fsync:error=EIO:when=2", 1), ("write:error=EIO", 2),
        ("renameat,?renameat2:error=EROFS", 2), ("linkat:error=EIO", 2),
    ],
)  # fmt: skip
def test_a_disk_that_fails_costs_nothing_and_the_next_save_is_a_new_file(before: Path, act: Act, tmp_path: Path, fault: str, items: int) -> None:
    """The second `fsync` is that of the directory (of several items several threads do it, and strace counts for each)."""
    where = tmp_path / "store"
    shutil.copytree(before, where)
    assert act(where, fault, items) == REFUSED
    assert contents(where) == {OLD: b"old", GOING: b"old", OTHER: b"old"}
    assert act(where, "fsync:delay_enter=0", items) == 0
    assert contents(where) == {OLD: b"new", OTHER: b"old"} | ({NEW: b"new"} if items > 1 else {})


@needs_strace
def test_a_deletion_that_is_not_durable_has_not_happened(before: Path, act: Act, tmp_path: Path) -> None:
    shutil.copytree(before, tmp_path / "store")
    assert act(tmp_path / "store", "fsync:error=EIO:when=3", 1) == REFUSED
    assert contents(tmp_path / "store") == {OLD: b"new", GOING: b"old", OTHER: b"old"}


@contextmanager
def small_disk(where: Path) -> Iterator[None]:
    where.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k,mode=700", "tmpfs", str(where)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


def test_a_full_disk_keeps_what_it_has_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk"):
        store = FileStore(tmp_path / "disk", "shop")
        store.open()
        saved: dict[bytes, bytes] = {}
        refused, text = b"", ""
        for number in range(100):
            key = number.to_bytes(1) * 16
            try:
                saved |= store.save_many([Save(key, bytes([number]) * 20_000, FAR_MS)])
            except StoreError as error:
                refused, text = key, str(error)
                break
        assert "No space left on device" in text
        assert len(saved) > 10
        first = min(saved)
        with pytest.raises(StoreError):  # nor is anything replaced
            store.save_many([Save(first, bytes(20_000), FAR_MS, saved[first])])
        again = FileStore(tmp_path / "disk", "shop")
        again.open()
        assert {key: item.revision for key, item in again.load([*saved, refused]).items()} == saved
        again.delete({first: saved[first]})
        assert store.save_many([Save(refused, bytes(20_000), FAR_MS)])
        again.close()
        store.close()
        assert contents(tmp_path / "disk").keys() == {*saved, refused} - {first}


def test_processes_that_save_one_item_lose_nothing(tmp_path: Path) -> None:
    """Three processes, two items in one batch in either order."""
    program = f"""
import sys
from pathlib import Path
from caterwaul.managers.stores.file import FileStore
from caterwaul.managers.stores.store import NOTHING, Save
number, keys = int(sys.argv[1]), [{OLD!r}, {OTHER!r}]
store = FileStore(Path(sys.argv[2]), "shop", 20.0)
store.open()
print(flush=True)
sys.stdin.readline()
for token in range(6):
    left = set(keys)
    while left:
        found = store.load(left)
        saves = [Save(key, (found[key].data if key in found else b"") + b"%d.%d " % (number, token), {FAR_MS}, found[key].revision if key in found else NOTHING)
            for key in sorted(left, reverse=number % 2)]
        left -= set(store.save_many(saves))
"""
    command = [sys.executable, "-c", program]
    processes = [
        subprocess.Popen([*command, str(number), str(tmp_path / "store")], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for number in range(3)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        for process in processes:
            process.communicate(b"\n", timeout=60)
        assert [process.returncode for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    wanted = sorted(b"%d.%d" % (number, token) for number in range(3) for token in range(6))
    assert {key: sorted(data.split()) for key, data in contents(tmp_path / "store").items()} == {OLD: wanted, OTHER: wanted}
