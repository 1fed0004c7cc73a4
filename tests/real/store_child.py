"""For `test_store_crashes`: for each line, a directory and how many items, a process of its own that opens the store there, stops itself, and then saves and deletes.

Says the process's number when it has stopped, and how it ended (`os.waitstatus_to_exitcode`).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from caterwaul.managers.stores.file import FileStore
from caterwaul.managers.stores.store import Save, StoreError

FAR_MS = 4_000_000_000_000
OLD, NEW, GOING, OTHER = b"k" * 16, b"k" * 15 + b"n", b"g" * 16, b"o" * 16
REFUSED = 3  # the exit code for a StoreError


def act(where: Path, items: int) -> int:
    store = FileStore(where, "shop")
    store.open()
    there = store.load([OLD, GOING])
    os.kill(os.getpid(), signal.SIGSTOP)
    try:
        saved = store.save_many([Save(OLD, b"new", FAR_MS, there[OLD].revision), Save(NEW, b"new", FAR_MS)][:items])
        store.delete({GOING: there[GOING].revision})
    except StoreError:
        return REFUSED
    return 0 if len(saved) == items else 1


def main() -> None:
    for line in sys.stdin:
        if not (child := os.fork()):
            where, items = line.rsplit(maxsplit=1)
            os._exit(act(Path(where), int(items)))
        os.waitpid(child, os.WUNTRACED)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
