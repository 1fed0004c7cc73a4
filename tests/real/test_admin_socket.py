"""The admin socket on a real file system: private, found again, cleaned up after the dead, never taken from the living."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from caterwaul import ClusterManager
from caterwaul.cluster.admin_socket import ask, find_running, prepare_path, socket_directory, socket_path
from caterwaul.membership.errors import LocalError

PID_OF_NOBODY = 2**22 + 1  # above what Linux gives out


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "caterwaul"


@pytest.fixture
def node(runtime: Path) -> Iterator[ClusterManager]:
    cluster = ClusterManager(node={"name": "a-b"}, membership={"discovery": []})
    cluster.start()
    yield cluster
    cluster.stop()


def listener(path: Path) -> socket.socket:
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    found.bind(os.fspath(path))
    found.listen()
    return found


def test_a_running_node_is_found_by_its_name_and_answers(runtime: Path, node: ClusterManager) -> None:
    (found,) = find_running()
    assert (found.name, found.pid) == ("a-b", os.getpid())
    assert find_running("other") == []
    assert [member["name"] for member in ask(found.path, "/members")["members"]] == ["a-b"]
    assert ask(found.path, "/sessions?limit=0") == {"manager": "default", "count": 0, "sessions": []}
    assert ask(found.path, "/health/ready") == {"ready": True}
    assert ask(found.path, "/config")["node"]["name"] == "a-b"
    assert set(ask(found.path, "/statistics")) == {"node", "membership", "channel", "security", "admin", "audit", "managers"}


def test_sessions_are_listed_by_the_hash_of_their_id(runtime: Path, node: ClusterManager) -> None:
    manager = node.manager()
    for _ in range(3):
        session = manager.open_local(None)
        session["secret"] = "value"
        manager.commit(session)
    path = find_running()[0].path
    first = ask(path, "/sessions?limit=2")
    assert (first["count"], len(first["sessions"])) == (3, 2)
    rest = ask(path, f"/sessions?after={first['sessions'][-1]['key']}")["sessions"]
    assert len({found["key"] for found in first["sessions"] + rest}) == 3
    assert session.id not in str(first) + str(rest)
    assert "value" not in str(first) + str(rest)
    with pytest.raises(LocalError, match="is not the key of a session"):
        ask(path, "/sessions?after=x")


def test_only_this_user_may_open_it(runtime: Path, node: ClusterManager) -> None:
    assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
    assert stat.S_IMODE(find_running()[0].path.stat().st_mode) == 0o600


def test_nothing_is_left_of_a_node_that_stopped(runtime: Path, node: ClusterManager) -> None:
    node.stop()
    assert list(runtime.iterdir()) == []


def test_what_a_dead_process_left_is_removed(runtime: Path) -> None:
    runtime.mkdir(mode=0o700)
    left = runtime / f"a-{PID_OF_NOBODY}.sock"
    listener(left).close()
    assert left.exists()
    assert find_running() == []
    assert not left.exists()


def test_a_socket_that_a_living_process_is_about_to_listen_on_stays(runtime: Path) -> None:
    runtime.mkdir(mode=0o700)
    path = runtime / f"a-{os.getpid()}.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        bound.bind(os.fspath(path))
        assert find_running() == []
    assert path.exists()


def test_a_named_socket_is_taken_from_the_dead_and_not_from_the_living(tmp_path: Path) -> None:
    path = tmp_path / "node.sock"
    listener(path).close()
    prepare_path(path)
    assert not path.exists()
    with listener(path), pytest.raises(LocalError, match="another process answers at"):
        prepare_path(path)


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "node.sock"
    path.write_text("mine")
    cluster = ClusterManager(membership={"discovery": []}, admin={"socket": str(path)})
    with pytest.raises(LocalError, match="is there already, and is no socket"):
        cluster.start()
    assert path.read_text() == "mine"


def test_a_directory_that_others_can_reach_is_not_used(runtime: Path) -> None:
    runtime.mkdir(mode=0o755)
    with pytest.raises(LocalError, match="is not a directory of this user alone"):
        prepare_path(runtime / "a-1.sock")


def test_without_a_runtime_directory_it_is_below_tmp_by_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert socket_directory() == Path(f"/tmp/caterwaul-{os.getuid()}")
    assert socket_path("auto", "a") == socket_directory() / f"a-{os.getpid()}.sock"
    assert socket_path("", "a") is None


def test_asking_nobody_says_so(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="no node is running at"):
        ask(tmp_path / "none.sock", "/members")
