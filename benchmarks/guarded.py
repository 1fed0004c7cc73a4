"""What security costs: the same work with TLS and in the clear, side by side, and datagrams of friends and of strangers.

tls-100B-none, tls-100B-all     deltas per second to one replica, with a shared secret and in the clear, by turns
sealed                          microseconds to seal and to open a heartbeat, in one process
forged                          a node that gets 10,000 forged datagrams a second: what they cost, and what they change
"""

from __future__ import annotations

import os
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from caterwaul.cluster.security.keyring import make_secret, read_secrets, write_secrets
from caterwaul.membership.member import Member
from caterwaul.membership.messages import Heartbeat
from caterwaul.membership.sealing import SealedDatagrams
from caterwaul.membership.secret import Secret

from .processes import Group, MeasureError, free_port

__all__ = ["forged", "sealed", "tls_pair"]

Repetition = dict[str, float]

_FORGED_PER_S = 10_000
_BURST = 100  # datagrams sent at once: 100 bursts a second
_SEALED = 20_000  # heartbeats of the row sealed


class _Secret:
    """A file with a new secret, until the end of the block."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="caterwaul-bench-")
        self.path = Path(self._directory.name, "secret")
        write_secrets(self.path, [make_secret()], replace=False)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self._directory.cleanup()


@contextmanager
def tls_pair() -> Iterator[tuple[Group, Group]]:
    """Two clusters, each of a writer and a replica that have met: the first encrypted."""
    with _Secret() as path, Group(security={"secret_file": str(path)}) as encrypted:
        encrypted.grow(2)
        with Group() as clear:  # after the first has its port
            yield encrypted, clear.grow(2)


def sealed() -> Repetition:
    """Of a sender that is known, and of one that is heard for the first time (its key has to be derived)."""
    secrets = [Secret(os.urandom(32))]
    senders = [SealedDatagrams(secrets, "bench", os.urandom(16), os.urandom) for _ in range(500)]
    heartbeat = Heartbeat.of(Member(uid=bytes(16), name="n1", host="127.0.0.1", port=1), "bench").encode()
    opener = SealedDatagrams(secrets, "bench", os.urandom(16), os.urandom)
    began = time.perf_counter()
    datagrams = [senders[0].seal(heartbeat) for _ in range(_SEALED)]
    seal_s = time.perf_counter() - began
    opener.open(datagrams[0])
    began = time.perf_counter()
    opened = [opener.open(datagram) for datagram in datagrams[1:]]
    open_s = time.perf_counter() - began
    firsts = [sender.seal(heartbeat) for sender in senders[1:]]
    began = time.perf_counter()
    opened += [opener.open(datagram) for datagram in firsts]
    first_s = time.perf_counter() - began
    return {
        "seal_us": seal_s / _SEALED * 1e6, "open_us": open_s / (_SEALED - 1) * 1e6, "open_first_us": first_s / len(firsts) * 1e6,
        "datagram_bytes": len(datagrams[0]), "refused": opened.count(None),
    }  # fmt: skip


def forged(seconds: float) -> Repetition:
    """Two nodes; one of them and everybody else on the group gets forgeries that name the right key, each of another sender: the dearest to refuse."""
    port = free_port(socket.SOCK_DGRAM)
    with _Secret() as path, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        (secret,) = read_secrets(path)
        with Group(security={"secret_file": str(path)}, membership={"multicast_port": port}) as group:
            group.grow(2)
            node = group.writer
            before, used = node.do("statistics"), node.do("cpu")["cpu_s"]
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            began = time.monotonic()
            sent = 0
            while (now := time.monotonic() - began) < seconds:
                for _ in range(_BURST):
                    sender.sendto(_forgery(secret, sent), ("228.0.0.4", port))
                    sent += 1
                time.sleep(max(0.0, sent / _FORGED_PER_S - (time.monotonic() - began)))
            took = time.monotonic() - began
            spent = node.do("cpu")["cpu_s"] - used
            after = node.do("statistics")
            got = after["membership"]["unsealed"] - before["membership"]["unsealed"]
            if got < sent / 4:
                raise MeasureError(f"only {got} of {sent} forged datagrams have arrived")
            return {
                "sent_per_s": sent / took, "arrived_per_s": got / took, "cores": spent / took, "us_each": spent / got * 1e6,
                "view_changes": after["node"]["view"] - before["node"]["view"], "dials": after["channel"].get("dials_failed", 0),
                "senders_kept": after["security"]["datagrams"]["senders"], "seconds": now,
            }  # fmt: skip


def _forgery(secret: Secret, number: int) -> bytes:
    return b"CS\x01" + secret.id + struct.pack(">QQQ", number, number, number + 1) + bytes(120)
