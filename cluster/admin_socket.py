"""The Unix socket of a node's admin service: where it lies, who may open it, and how to ask it (the command line does).

With `admin.socket = "auto"` each process has its own socket ``NAME-PID.sock`` in a directory of this user's, so several
nodes, and several workers of one server, never fight for a path, and a command finds whoever runs. A socket that nobody
answers on is what a killed process left; it is removed by whoever comes across it.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..membership.errors import LocalError

__all__ = ["ANSWER_S", "Running", "answer_of", "answers", "ask", "find_running", "prepare_path", "socket_directory", "socket_path"]

ANSWER_S = 10.0  # a node whose reactor is busier than that is as good as none for a person at a terminal
_CONNECT_S = 1.0


@dataclass(frozen=True, slots=True)
class Running:
    """A node of this user on this machine."""

    name: str
    pid: int
    path: Path


def socket_directory() -> Path:
    """Where this user's automatic sockets lie."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(runtime, "caterwaul") if os.path.isabs(runtime) else Path(f"/tmp/caterwaul-{os.getuid()}")


def socket_path(setting: str, name: str) -> Path | None:
    """What `admin.socket` means in this process; None: no socket."""
    if setting == "auto":
        return socket_directory() / f"{name}-{os.getpid()}.sock"
    return Path(setting) if setting else None


def prepare_path(path: Path) -> None:
    """Make room for a socket: the automatic directory, private; what a dead process left is removed.

    Raises `LocalError` when the directory is not ours alone, a live process answers at `path`, or something else is there.
    """
    directory = socket_directory()
    if path.parent == directory:
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            found = directory.lstat()
        except OSError as error:
            raise LocalError(f"admin socket: {directory} cannot be made: {error.strerror}; set admin.socket to another path") from None
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise LocalError(f"admin socket: {directory} is not a directory of this user alone; remove it, or set admin.socket to another path")
    if answers(path):
        raise LocalError(f"admin socket: another process answers at {path}; stop it, or set admin.socket to another path")
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise LocalError(f"admin socket: {path} is there already, and is no socket; set admin.socket to another path")
        path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise LocalError(f"admin socket: {path} cannot be made anew: {error.strerror}; set admin.socket to another path") from None


def answers(path: Path) -> bool:
    """Whether a live process accepts connections there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        trial.settimeout(_CONNECT_S)
        try:
            trial.connect(os.fspath(path))
        except TimeoutError:
            return True  # its queue is full, so it has one
        except OSError:
            return False
        return True


def find_running(name: str = "") -> list[Running]:
    """This user's nodes with automatic sockets, those of one node name or all, by name and process id."""
    found = []
    for path in sorted(socket_directory().glob("*.sock")):
        node, _, pid = path.stem.rpartition("-")
        if not node or not pid.isdecimal() or (name and node != name):
            continue
        if answers(path):
            found.append(Running(node, int(pid), path))
        elif not _is_alive(int(pid)):  # a live one may be about to listen
            with suppress(OSError):
                path.unlink()
    return found


def ask(path: Path, target: str, method: str = "GET", timeout_s: float = ANSWER_S, body: bytes = b"") -> Any:
    """One request over the socket: the decoded JSON. Raises `LocalError` saying whether nobody runs there, or what was answered."""
    return answer_of(_UnixConnection(path, timeout_s), str(path), target, method, {}, timeout_s, body)


def answer_of(
    connection: http.client.HTTPConnection, where: str, target: str, method: str, headers: Mapping[str, str], timeout_s: float, body: bytes = b""
) -> Any:
    """The same over a connection that is not made yet. `where`: for errors."""
    try:
        connection.request(method, target, body=body or None, headers=dict(headers))
        response = connection.getresponse()
        found = json.loads(response.read())
    except (FileNotFoundError, ConnectionRefusedError):
        raise LocalError(f"no node is running at {where}") from None
    except PermissionError:
        raise LocalError(f"{where} belongs to another user; only the user that runs a node may ask it") from None
    except TimeoutError:
        raise LocalError(f"the node at {where} did not answer within {timeout_s:g} s") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise LocalError(f"the node at {where} gave no usable answer: {error}") from None
    finally:
        connection.close()
    if response.status >= 400 and "error" in found:
        raise LocalError(f"the node at {where} answered: {found['error']}")
    return found


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))
