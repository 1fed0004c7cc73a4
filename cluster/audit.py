"""The audit log: each login, its end, and each refusal, as an event of Twisted's log and as a line of JSON in a file.

Managers tell what befalls logins where it is done (`Audited`), so each is told once in the cluster where there is no fault. Here it gets a node, an address and a time. Of a
session there is the beginning of its key, which is a hash; never an id or a value.

The file is written by a thread of its own: a disk that is full, slow or gone costs requests nothing, and lines that it did not take are counted. It is opened anew when the
path names another file than the one that is open, so whoever rotates it renames it and needs no signal.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from queue import Full, Queue
from threading import Thread
from typing import Any, cast

from twisted.logger import Logger, LogPublisher, globalLogPublisher

from ..managers.base import SessionManager
from ..managers.entry import Audited
from ..managers.throttle import address_of
from ..membership.errors import LocalError

__all__ = ["AuditFile", "AuditLog"]

_log = Logger()
_WAITING_MAX = 10_000  # lines for a disk that is slow
_STOP_S = 2.0
_KEY_CHARACTERS = 16  # of a session's key: enough to find it again, and no key to end it with
_FIELDS = ("event", "principal", "session", "became", "by", "address", "about", "manager", "node")


class AuditLog:
    """Of one manager on one node. Reactor's thread. Raises `LocalError` if the file cannot be had."""

    def __init__(self, manager: SessionManager, node: str) -> None:
        settings = manager.settings
        self._manager = manager.name
        self._node = node
        self._trusted = settings.trusted_proxies
        try:
            self._file = AuditFile(settings.audit_log) if settings.audit_log else None
        except OSError as error:
            raise LocalError(f"managers.{manager.name}.audit_log: {settings.audit_log} cannot be written: {error.strerror or error}") from None
        publisher = LogPublisher(globalLogPublisher) if self._file is None else LogPublisher(globalLogPublisher, cast(Any, self._write))
        self._audit = Logger(namespace="caterwaul.audit", observer=publisher)
        manager.on_audit = self.heard

    def heard(self, happened: Audited) -> None:
        """It has befallen a login here."""
        self._audit.info(
            "{event}: {principal!r} in {manager}, session {session}, by {by!r}, from {address!r}",
            event=happened.what,
            principal=happened.principal,
            session=happened.key.hex()[:_KEY_CHARACTERS],
            became=happened.became.hex()[:_KEY_CHARACTERS],
            by=happened.by,
            address=address_of(happened.origin, self._trusted) or happened.origin[0],
            about=dict(happened.about),
            manager=self._manager,
            node=self._node,
        )

    def stop(self) -> None:
        """What has been heard is written, or given up after a while."""
        if self._file is not None:
            self._file.stop()

    def statistics(self) -> dict[str, int]:
        return {"written": 0, "lost": 0} if self._file is None else {"written": self._file.written, "lost": self._file.lost}

    def _write(self, event: dict[str, Any]) -> None:
        assert self._file is not None, "else it observes nothing"
        time = datetime.fromtimestamp(event["log_time"], UTC).isoformat(timespec="milliseconds")
        self._file.put(json.dumps({"time": time, **{name: event[name] for name in _FIELDS if event[name]}}).encode() + b"\n")


class AuditFile:
    """Lines at the end of a file. `put` from any thread. Raises `OSError` if the file cannot be opened now; what happens later is counted."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._waiting: Queue[bytes] = Queue(_WAITING_MAX)
        self._fd: int | None = self._open()
        self._torn = False  # the last line is there in part
        self._is_failing = False
        self.written = self.lost = 0
        self._thread = Thread(target=self._run, name="caterwaul-audit", daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> None:
        """To be written soon. Never waits."""
        try:
            self._waiting.put_nowait(line)
        except Full:
            self.lost += 1

    def stop(self) -> None:
        with suppress(Full):
            self._waiting.put_nowait(b"")
        self._thread.join(_STOP_S)

    def _run(self) -> None:
        while line := self._waiting.get():
            try:
                self._write(line)
                self.written += 1
                self._is_failing = False
            except OSError as error:
                self.lost += 1
                self._complain(error)
        self._close()

    def _write(self, line: bytes) -> None:
        if self._fd is None or self._is_another():
            self._close()
            self._fd = self._open()
        whole = b"\n" + line if self._torn else line
        done = os.write(self._fd, whole)
        self._torn = done < len(whole) and (done > 0 or self._torn)
        if done < len(whole):
            raise OSError("only a part of the line was written")

    def _is_another(self) -> bool:
        """The path names another file by now, or none."""
        assert self._fd is not None, "open"
        try:
            now = os.stat(self._path)
        except FileNotFoundError:
            return True
        ours = os.fstat(self._fd)
        return (now.st_dev, now.st_ino) != (ours.st_dev, ours.st_ino)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _close(self) -> None:
        fd, self._fd, self._torn = self._fd, None, False
        if fd is not None:
            os.close(fd)

    def _complain(self, error: OSError) -> None:
        if not self._is_failing:
            self._is_failing = True
            _log.warn(
                "{path} does not take the audit log ({error}); lines that it misses are counted as lost", path=self._path, error=error.strerror or str(error)
            )
