"""A network for nodes that can be broken in many ways, one at a time or several: hosts on a switch, and a second way in for the tests.

Each host has `eth0` on the switch, which all faults concern, and `manage` (10.78.0.x) on another one, which none does: a test goes
on talking to a node that is cut off from its peers. The test's end of that is in the switch's namespace, so nothing is configured
outside the namespaces; whoever wants to talk from there calls `enter` in a thread of its own.

A fault is what the receiver does not get (iptables, INPUT), never what the sender may not send: a real network does not tell the sender.
Each fault returns an `Undo`; whatever was not undone goes with the namespaces.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from types import TracebackType

from ..real.namespaces import Hosts, ip
from ..real.namespaces import why_not as why_no_namespaces
from .cable import UDP, Badness, Cable

__all__ = ["BadCable", "Network", "Undo", "enter", "why_not", "why_not_cabled", "why_not_filtered"]

_CLONE_NEWNET = 0x40000000
_GROUPS = "224.0.0.0/4"
_LOSS = ("-p", "udp", "-m", "statistic", "--mode", "random", "--probability")
_RESET = ("-p", "tcp", "!", "--tcp-flags", "RST", "RST", "-j", "REJECT", "--reject-with", "tcp-reset")  # a reset is not answered by a reset


@cache
def why_not() -> str:
    """Why there can be no such network here; empty if there can."""
    return why_no_namespaces()


@cache
def why_not_filtered() -> str:
    """The same for the faults that need iptables. Tries the rules that need most, in a namespace of its own."""
    if (reason := why_not()) or shutil.which("iptables") is None:
        return reason or "needs the command iptables"
    name = f"cat{os.getpid()}-try"
    ip("netns", "add", name)
    try:
        _filter(name, "-A", (*_LOSS, "0.3", "-j", "DROP"))
        _filter(name, "-A", _RESET)
    except subprocess.CalledProcessError as error:
        return f"iptables cannot do what is needed here: {error.stderr.decode().strip()}"
    finally:
        ip("netns", "del", name)
    return ""


@cache
def why_not_cabled() -> str:
    """The same for cables that are bad: one is made, in a network of its own."""
    if reason := why_not():
        return reason
    with Network(1) as network:
        try:
            network.bad_cable(0, Badness(UDP))()
        except (OSError, subprocess.CalledProcessError) as error:
            return f"no TAP device (/dev/net/tun) can be made here: {error}"
    return ""


def enter(namespace: str) -> None:
    """The calling thread lives in that network namespace from now on; its sockets stay there."""
    with open(f"/run/netns/{namespace}", "rb") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")


class Undo:
    """Takes a fault back, once: called, or at the end of a `with`."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self._steps = list(steps)

    def __call__(self) -> None:
        while self._steps:
            self._steps.pop()()

    def __enter__(self) -> Undo:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self()


class BadCable(Undo):
    """`counts`: see `Cable`."""

    def __init__(self, cable: Cable, *steps: Callable[[], object]) -> None:
        super().__init__(*steps, cable.cut)
        self.counts = cable.counts


class Network(Hosts):
    """Hosts by number, from 0. A context manager."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.managed = [f"10.78.0.{number}" for number in range(1, count + 1)]  #: addresses that no fault concerns

    def partition(self, numbers: Sequence[int]) -> Undo:
        """These on one side, all others on the other: two switches."""
        self.part(list(numbers))
        return Undo(self.heal)

    def one_way(self, sender: int, receiver: int) -> Undo:
        """Nothing from `sender` reaches `receiver`."""
        return self._drop(receiver, ("-s", self.addresses[sender], "-j", "DROP"))

    def cut(self, one: int, other: int) -> Undo:
        """Nothing between these two."""
        return Undo(self.one_way(one, other), self.one_way(other, one))

    def black_hole(self, one: int, other: int) -> Undo:
        """No TCP between these two, and nobody is told; datagrams pass."""
        return Undo(*(self._drop(b, ("-s", self.addresses[a], "-p", "tcp", "-j", "DROP")) for a, b in ((one, other), (other, one))))

    def reset(self, one: int, other: int) -> Undo:
        """Every TCP segment between these two is answered by a reset."""
        return Undo(*(self._drop(b, ("-s", self.addresses[a], *_RESET)) for a, b in ((one, other), (other, one))))

    def deaf(self, number: int) -> Undo:
        """This host gets no multicast."""
        return self._drop(number, ("-d", _GROUPS, "-j", "DROP"))

    def mute(self, number: int) -> Undo:
        """No host gets multicast from this one."""
        others = (other for other in range(len(self.names)) if other != number)
        return Undo(*(self._drop(other, ("-s", self.addresses[number], "-d", _GROUPS, "-j", "DROP")) for other in others))

    def silent(self) -> Undo:
        """No host gets multicast: a switch that snoops and has lost its querier."""
        return Undo(*(self.deaf(number) for number in range(len(self.names))))

    def lossy(self, part: float) -> Undo:
        """So many of the datagrams that come to each host are lost, by chance."""
        return Undo(*(self._drop(number, (*_LOSS, str(part), "-j", "DROP")) for number in range(len(self.names))))

    def slow(self, number: int, rate: str) -> Undo:
        """The cable of this host takes no more than `rate` (of `tc`), either way."""
        undo = []
        for namespace, device in ((self.names[number], "eth0"), (self.switch, f"port{number}")):
            _tc(namespace, "add", device, "root", "tbf", "rate", rate, "burst", "16kb", "latency", "400ms")
            undo.append(lambda namespace=namespace, device=device: _tc(namespace, "del", device, "root"))  # type: ignore[misc]
        return Undo(*undo)

    def bad_cable(self, number: int, badness: Badness) -> BadCable:
        """What comes to this host comes by a cable that is bad in that way."""
        near, inner, outer = f"near{number}", f"inner{number}", f"outer{number}"
        cable = Cable(lambda: enter(self.switch), (inner, outer), badness, seed=number)
        ip("-n", self.switch, "link", "add", near, "type", "bridge", "mcast_snooping", "0")
        undo = BadCable(cable, lambda: ip("-n", self.switch, "link", "del", near), lambda: self.plug(number))
        cable.made()
        ip("-n", self.switch, "link", "set", near, "up")
        for device, bridge in ((inner, near), (outer, "bridge"), (f"port{number}", near)):
            ip("-n", self.switch, "link", "set", device, "master", bridge, "up")
        return undo

    def connections(self, sender: int, receiver: int) -> Callable[[], int]:
        """How many times from now on `sender` begins a TCP connection to `receiver`, as the receiver's kernel counts it (with repeats)."""
        name, rule = self.names[receiver], ("-i", "eth0", "-s", self.addresses[sender], "-p", "tcp", "--syn")
        _filter(name, "-A", rule)

        def count() -> int:
            shown = ip("netns", "exec", name, "iptables", "-w", "-nvxL", "INPUT").splitlines()
            return next(int(line.split()[0]) for line in shown if self.addresses[sender] in line.split())

        return count

    def _drop(self, number: int, rule: Sequence[str]) -> Undo:
        name = self.names[number]
        _filter(name, "-A", ("-i", "eth0", *rule))
        return Undo(lambda: _filter(name, "-D", ("-i", "eth0", *rule)))

    def _build(self) -> None:
        super()._build()
        ip("-n", self.switch, "link", "add", "manage", "type", "bridge")
        ip("-n", self.switch, "address", "add", "10.78.0.254/24", "dev", "manage")
        ip("-n", self.switch, "link", "set", "manage", "up")
        for number, (name, address) in enumerate(zip(self.names, self.managed, strict=True)):
            ip("-n", name, "link", "add", "manage", "type", "veth", "peer", "name", f"manage{number}", "netns", self.switch)
            ip("-n", name, "address", "add", f"{address}/24", "dev", "manage")
            ip("-n", name, "link", "set", "manage", "up")
            ip("-n", self.switch, "link", "set", f"manage{number}", "master", "manage", "up")


def _filter(namespace: str, action: str, rule: Sequence[str]) -> None:
    ip("netns", "exec", namespace, "iptables", "-w", action, "INPUT", *rule)


def _tc(namespace: str, action: str, device: str, *rest: str) -> None:
    ip("netns", "exec", namespace, "tc", "qdisc", action, "dev", device, *rest)
