"""A cable that is bad: what comes to a host passes through a thread, which loses nothing of it, but doubles, delays and changes some.

    with lab.network.bad_cable(0, Badness(UDP, doubled=0.2, late=0.5, late_s=0.04, damaged=0.1)) as cable:
        ...
    cable.counts["damaged"]

The kernel can do the like (netem) only where it was built so, and what it damages no checksum lets pass. Here the thread reads and writes
frames at two TAP devices, one on the switch of all hosts and one on a switch of this host alone. What goes from the host passes untouched.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from errno import EIO
from heapq import heappop, heappush
from itertools import count
from random import Random
from threading import Event, Thread
from time import monotonic

__all__ = ["TCP", "UDP", "Badness", "Cable", "damage"]

TCP, UDP = 6, 17  #: protocols of IP

_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x2, 0x1000  # linux/if_tun.h
_FRAME_BYTES = 1 << 16
_ETHERNET_BYTES, _IP_BYTES = 14, 20


@dataclass(frozen=True)
class Badness:
    """Of the frames of one protocol. `doubled`, `late`, `damaged`: so many of 1, each by chance, a second copy for itself. `late_s`: at most;
    what is late comes behind what was sent after it. `passes`: the checksum is made right for what was damaged, so that the kernel lets it pass."""

    protocol: int
    doubled: float = 0.0
    late: float = 0.0
    late_s: float = 0.04
    damaged: float = 0.0
    passes: bool = True


class Cable(Thread):
    """Runs from `made` to `cut`. `counts`: frames of that protocol that ``came``; copies that were ``doubled``, ``late``, ``damaged``; of how many frames
    one copy at least is ``intact``."""

    def __init__(self, enter: Callable[[], None], names: tuple[str, str], badness: Badness, seed: int) -> None:
        """`enter`: puts a thread where the switch is. `names`: of the TAP devices that it makes there, towards the host and towards the others."""
        super().__init__(name=f"cable-{names[0]}", daemon=True)
        self.counts: Counter[str] = Counter()
        self._enter = enter
        self._names = names
        self._badness = badness
        self._random = Random(seed)
        self._made, self._cut = Event(), Event()
        self._late: list[tuple[float, int, bytes]] = []
        self._order = count()
        self._error: BaseException | None = None

    def made(self) -> None:
        """Start it, and wait until its devices are there. Raises what it has failed with."""
        self.start()
        self._made.wait()
        self._check()

    def cut(self) -> None:
        """End it; its devices go with it. Raises what it has failed with."""
        self._cut.set()
        self.join()
        self._check()

    def run(self) -> None:
        host = others = -1
        try:
            self._enter()
            host, others = (_tap(name) for name in self._names)
            self._made.set()
            self._carry(host, others)
        except BaseException as error:
            self._error = error
        finally:
            self._made.set()
            for descriptor in (host, others):
                if descriptor >= 0:
                    os.close(descriptor)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _carry(self, host: int, others: int) -> None:
        while not self._cut.is_set():
            due_s = self._late[0][0] - monotonic() if self._late else 0.1
            for readable in select.select([host, others], [], [], min(0.1, max(0.0, due_s)))[0]:
                frame = os.read(readable, _FRAME_BYTES)
                if readable == host:
                    _put(others, frame)
                else:
                    for copy in self._act(frame):
                        _put(host, copy)
            while self._late and self._late[0][0] <= monotonic():
                _put(host, heappop(self._late)[2])

    def _act(self, frame: bytes) -> Iterator[bytes]:
        """What of this frame leaves at once; the rest waits in `_late`."""
        badness, chance = self._badness, self._random.random
        if frame[12:14] != b"\x08\x00" or frame[_ETHERNET_BYTES + 9] != badness.protocol:
            yield frame
            return
        self.counts["came"] += 1
        is_intact = False
        for number in range(2 if chance() < badness.doubled else 1):
            self.counts["doubled"] += number
            copy = frame
            if chance() < badness.damaged and (changed := damage(frame, self._random, passes=badness.passes)) is not None:
                self.counts["damaged"] += 1
                copy = changed
            is_intact |= copy is frame
            if chance() < badness.late:
                self.counts["late"] += 1
                heappush(self._late, (monotonic() + self._random.uniform(0.0, badness.late_s), next(self._order), copy))
            else:
                yield copy
        self.counts["intact"] += is_intact


def damage(frame: bytes, random: Random, *, passes: bool) -> bytes | None:
    """The frame with one bit of what TCP or UDP carries flipped; None if they carry nothing. `passes`: with the right checksum for that."""
    at = _ETHERNET_BYTES + 4 * (frame[_ETHERNET_BYTES] & 15)
    end = _ETHERNET_BYTES + int.from_bytes(frame[_ETHERNET_BYTES + 2 : _ETHERNET_BYTES + 4])  # a short frame is filled up behind the packet
    is_tcp = frame[_ETHERNET_BYTES + 9] == TCP
    data = at + (4 * (frame[at + 12] >> 4) if is_tcp else 8)
    if data >= end:
        return None
    changed = bytearray(frame)
    changed[random.randrange(data, end)] ^= 1 << random.randrange(8)
    checksum = at + (16 if is_tcp else 6)
    if passes:
        changed[checksum : checksum + 2] = b"\0\0"  # which UDP takes for: none
    if passes and is_tcp:
        pseudo = changed[_ETHERNET_BYTES + 12 : _ETHERNET_BYTES + 20] + struct.pack("!HH", TCP, end - at)
        changed[checksum : checksum + 2] = _checksum(bytes(pseudo + changed[at:end]))
    return bytes(changed)


def _checksum(data: bytes) -> bytes:
    """RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2)


def _put(device: int, frame: bytes) -> None:
    try:
        os.write(device, frame)
    except OSError as error:
        if error.errno != EIO:  # it is not plugged in yet
            raise


def _tap(name: str) -> int:
    """A new TAP device of that name in the namespace of this thread, as a descriptor. The kernel cuts and sums up what it hands over."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
