"""Discovery from a file that somebody else keeps: one ``host:port`` a line, ``#`` begins a comment.

The file is looked at every few seconds and read when its time or size has changed. Bad lines are skipped and named once
in a warning; while the file is missing, unreadable or without a good line (it may be half written) the last good list
stays.
"""

from __future__ import annotations

from pathlib import Path

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from ..errors import LocalError
from .base import Polling, parse_address

__all__ = ["FileDiscovery"]

_log = Logger()
_FILE_BYTES_MAX = 1024 * 1024  # ten thousands of addresses; more is not a list of seeds


class FileDiscovery(Polling):
    """`retry_s`: an unchanged list is named again this often; `poll_s`: the file is looked at this often."""

    def __init__(self, path: str, default_port: int, poll_s: float, retry_s: float, clock: IReactorTime) -> None:
        if not path:
            raise LocalError("discovery by file needs the path of the list (membership.seeds_file)")
        super().__init__(poll_s, clock)
        self._path = Path(path)
        self._default_port = default_port
        self._retry_s = retry_s
        self._again_at = 0.0
        self._signature: tuple[int, int] | None = None  # time and size of what was read last
        self._trouble = ""  # warned of already
        self._addresses: list[tuple[str, int]] = []

    def poll(self, now: float) -> None:
        if self._reread() or self._again_at <= now:
            self._again_at = now + self._retry_s
            for host, port in self._addresses:
                self.tell(host, port)

    def _reread(self) -> bool:
        """Whether there is a new list."""
        try:
            status = self._path.stat()
            signature = (status.st_mtime_ns, status.st_size)
            if signature == self._signature:
                return False
            with self._path.open("rb") as file:
                text = file.read(_FILE_BYTES_MAX).decode()
        except (OSError, ValueError) as error:
            self._signature = None
            self._warn(f"cannot be read ({error})")
            return False
        self._signature = signature
        return self._adopt(text)

    def _adopt(self, text: str) -> bool:
        addresses, bad = [], []
        for number, line in enumerate(text.splitlines(), 1):
            entry = line.partition("#")[0].strip()
            if entry:
                try:
                    addresses.append(parse_address(entry, self._default_port))
                except LocalError as error:
                    bad.append(f"line {number}: {error}")
        if bad:
            self._warn("; ".join(bad[:10]))
        elif addresses:
            self._trouble = ""
        if addresses:
            self._addresses = addresses
        return bool(addresses)

    def _warn(self, trouble: str) -> None:
        self.errors += 1
        if trouble != self._trouble:
            self._trouble = trouble
            _log.warn("seeds file {path}: {trouble}", path=str(self._path), trouble=trouble)
