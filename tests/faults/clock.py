"""A wall clock of one process that is wrong, and that can be set while the process runs (libfaketime). Its monotonic clock stays right.

Two things of libfaketime (0.9.10) have to be kept from an interpreter. It corrects the end of waits by the monotonic clock that are right already, so
that threads waiting for the interpreter spin: FAKETIME_FORCE_MONOTONIC_FIX=0. And it spoils `clock_nanosleep` with an absolute time, with which
`time.sleep` of Python 3.11 and newer waits, so that each call fails: the processes sleep by `select`, from their first module on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["FalseClock", "why_not"]

_PLACES = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib*/faketime/libfaketimeMT.so.1", "/usr/local/lib/faketime/libfaketimeMT.so.1")
_ROOT = Path(__file__).parents[2]
_SLEEP = "import select, time\n\ntime.sleep = lambda seconds: select.select([], [], [], seconds) and None\n"


def _library() -> Path | None:
    return next((found for place in _PLACES for found in sorted(Path("/").glob(place[1:]))), None)


def why_not() -> str:
    return "" if _library() else "needs libfaketime (packages faketime, libfaketime)"


class FalseClock:
    """Lives in a folder of its own, in a file that says by how many seconds it is wrong."""

    def __init__(self, folder: Path, offset_s: int = 0) -> None:
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(_SLEEP)
        self._folder = folder
        self._file = folder / "offset"
        self.set(offset_s)

    def set(self, offset_s: int) -> None:
        """From the next look at the clock on."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{offset_s:+d}\n")
        new.replace(self._file)  # a reader sees the one or the other

    @property
    def prefix(self) -> Sequence[str]:
        """Before the command of the process."""
        return (
            "env", f"PYTHONPATH={self._folder}:{_ROOT}", f"LD_PRELOAD={_library()}", f"FAKETIME_TIMESTAMP_FILE={self._file}",
            "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "FAKETIME_FORCE_MONOTONIC_FIX=0",
        )  # fmt: skip
