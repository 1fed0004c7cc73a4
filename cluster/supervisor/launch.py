"""Becomes another program that dies with its parent: ``python -I -S launch.py PARENT_PID PROGRAM ARGUMENT...``.

A parent that is killed with SIGKILL can tell its children nothing; the Linux kernel can. The request survives `execv`, and
comes after the check that the parent is not dead already. A child that is stopped (SIGSTOP) dies too.
Imports little: it runs before every supervised process. Elsewhere than on Linux it only becomes the program.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

__all__: list[str] = []

_PR_SET_PDEATHSIG = 1


def _main(arguments: list[str]) -> None:
    parent, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == parent:
        os.execv(command[0], command)


if __name__ == "__main__":
    _main(sys.argv[1:])
