"""Hosts of their own on this machine: network namespaces on one bridge, whose cables can be pulled. Needs root and `ip` (iproute2).

Everything is named after this process and goes with the block; nothing outside the namespaces is touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from types import TracebackType

__all__ = ["Hosts", "ip", "why_not"]


def why_not() -> str:
    """Why there can be none here; empty if there can."""
    if shutil.which("ip") is None:
        return "needs the command ip (iproute2)"
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    name = f"cat{os.getpid()}-try"
    try:
        ip("netns", "add", name)
        ip("netns", "del", name)
    except subprocess.CalledProcessError as error:
        return f"this machine allows no network namespaces: {error.stderr.decode().strip()}"
    return ""


class Hosts:
    """`count` hosts, 10.77.0.1 and on, each in the namespace of its name, all on one switch, which is the namespace `switch`."""

    def __init__(self, count: int) -> None:
        self._prefix = f"cat{os.getpid()}"
        self.switch = f"{self._prefix}-s"
        self.names = [f"{self._prefix}-{number}" for number in range(1, count + 1)]
        self.addresses = [f"10.77.0.{number}" for number in range(1, count + 1)]

    def __enter__(self) -> Hosts:
        ip("netns", "add", self.switch)
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._remove()

    def unplug(self, number: int) -> None:
        """Pull the cable of this host (from 0) at the switch: both ends go on believing in it."""
        ip("-n", self.switch, "link", "set", f"port{number}", "nomaster")

    def plug(self, number: int) -> None:
        ip("-n", self.switch, "link", "set", f"port{number}", "master", "bridge")

    def part(self, numbers: list[int]) -> None:
        """These hosts get a switch of their own."""
        ip("-n", self.switch, "link", "add", "other", "type", "bridge", "mcast_snooping", "0")
        ip("-n", self.switch, "link", "set", "other", "up")
        for number in numbers:
            ip("-n", self.switch, "link", "set", f"port{number}", "master", "other")

    def heal(self) -> None:
        """All on one switch again."""
        for number in range(len(self.names)):
            self.plug(number)
        ip("-n", self.switch, "link", "del", "other")

    def _build(self) -> None:
        ip("-n", self.switch, "link", "add", "bridge", "type", "bridge", "mcast_snooping", "0")
        ip("-n", self.switch, "link", "set", "bridge", "up")
        for number, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
            ip("netns", "add", name)
            ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{number}", "netns", self.switch)
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "route", "add", "default", "dev", "eth0")
            ip("-n", self.switch, "link", "set", f"port{number}", "up")
            self.plug(number)

    def _remove(self) -> None:
        for name in (*self.names, self.switch):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)


def ip(*arguments: str) -> str:
    """`ip ARGUMENT...`, and what it prints; when it fails, that is in the exception."""
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30).stdout.decode()
