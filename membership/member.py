"""Who a member is: one running process, from its start to its end.

The `uid` is random and new at each start, so it *is* the incarnation: a process that restarts on the same address is
another member, and nothing that the old one sent can be mistaken for the new one's. The `name` stays (it is the route
that a load balancer puts into cookies; workers of one host share theirs); the address says where to dial.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any

from .errors import LocalError, RemoteError

__all__ = ["PROTOCOL_MAX", "PROTOCOL_MIN", "UID_BYTES", "WORKER_MARK", "Member", "is_address", "require_name"]

UID_BYTES = 16
#: Stands between the name of a host's node and the process id in the name of a worker beside it. No node that people name has it in its name.
WORKER_MARK = "+"
#: The range of protocol versions this build speaks. A link uses the highest that both ends know.
PROTOCOL_MIN, PROTOCOL_MAX = 1, 2

_TEXT_MAX = 255  # the longest host name DNS allows; names, domains and zones have no reason to be longer
_PAYLOAD_MAX_KEYS = 32


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Member:
    """Identity and placement labels of one process. Equal, hashed and ordered by `uid` alone; immutable, so any thread may read it."""

    uid: bytes  #: 16 random bytes, new at each process start
    name: str  #: stable name; of a worker beside a host's node that node's name and its process id, ``NODE+PID``
    host: str  #: IP address other members dial; on the wire never a name
    port: int  #: TCP port of the channel
    domain: str = ""  #: members of another domain hold none of our sessions
    zone: str = ""  #: placement label: the failure domain above the machine
    machine: str = ""  #: placement label: the physical host (DESIGN's `host` label)
    weight: int = 1  #: share of partitions; 0 = lite member, holds nothing
    versions: tuple[int, int] = (PROTOCOL_MIN, PROTOCOL_MAX)
    payload: Mapping[str, Any] = field(default_factory=dict)  #: small plain data: HTTP address, managers announced, load

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Member) and self.uid == other.uid

    def __hash__(self) -> int:
        return hash(self.uid)

    def __lt__(self, other: Member) -> bool:
        return self.uid < other.uid

    def __repr__(self) -> str:
        return f"<Member {self.name} {self.uid.hex()[:8]} {self.host}:{self.port}>"

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    @property
    def route(self) -> str:
        """What cookies and certificates call it, so that balancers find it: its name, for a worker that of its host's node."""
        return self.name.partition(WORKER_MARK)[0]

    @property
    def version(self) -> int:
        """The protocol version of a link with this member: the highest that both ends know. The handshake makes sure that there is one and that it is this."""
        return min(self.versions[1], PROTOCOL_MAX)

    @property
    def managers(self) -> frozenset[str]:
        """Names of the session managers this member takes part in."""
        return frozenset(self.payload.get("managers", ()))

    @property
    def ends(self) -> frozenset[str] | None:
        """Names of the session managers whose ends of sessions its application listens to; None: it does not know of such announcements."""
        return frozenset(self.payload["ends"]) if "ends" in self.payload else None

    def kind_of(self, manager: str) -> str:
        """How it runs that manager; members take part in a manager of the same name only if they run it in the same way."""
        return str(self.payload.get("kinds", {}).get(manager, "delta"))

    def with_payload(self, **changes: Any) -> Member:
        """The same incarnation announcing something new."""
        return replace(self, payload={**self.payload, **changes})

    def to_wire(self) -> dict[str, Any]:
        """Map form of PROTOCOL.md section *Member*: text keys, plain values; defaults are left out."""
        wire: dict[str, Any] = {
            "uid": self.uid, "name": self.name, "host": self.host, "port": self.port, "v": list(self.versions),
        }  # fmt: skip
        optional = (("domain", self.domain, ""), ("zone", self.zone, ""), ("machine", self.machine, ""), ("weight", self.weight, 1))
        wire.update({key: value for key, value, default in optional if value != default})
        if self.payload:
            wire["payload"] = dict(self.payload)
        return wire

    @classmethod
    def from_wire(cls, wire: object) -> Member:
        """Check and build. Unknown keys are ignored (a newer peer may send more).

        Raises `RemoteError` naming the first field that is missing, of the wrong type or out of range.
        """
        if type(wire) is not dict:
            raise RemoteError("member: not a map")

        def take(key: str, kind: type, check: Callable[[Any], bool], default: Any = None) -> Any:
            value = wire.get(key, default)
            if type(value) is not kind or not check(value):
                raise RemoteError(f"member: field {key!r} is missing or malformed")
            return value

        def text(value: str) -> bool:
            return len(value) <= _TEXT_MAX and value.isprintable()

        versions = take("v", list, lambda v: len(v) == 2 and all(type(n) is int for n in v) and 0 < v[0] <= v[1])
        payload = take("payload", dict, lambda p: len(p) <= _PAYLOAD_MAX_KEYS and all(type(k) is str for k in p), {})
        for key in ("managers", "ends"):
            names = payload.get(key, [])
            if type(names) is not list or not all(type(name) is str for name in names):
                raise RemoteError(f"member: payload {key!r} is malformed")
        kinds = payload.get("kinds", {})
        if type(kinds) is not dict or not all(type(name) is str and type(kind) is str for name, kind in kinds.items()):
            raise RemoteError("member: payload 'kinds' is malformed")
        return cls(
            uid=take("uid", bytes, lambda v: len(v) == UID_BYTES),
            name=take("name", str, lambda v: bool(v) and text(v)),
            host=take("host", str, lambda v: text(v) and is_address(v)),
            port=take("port", int, lambda v: 0 < v < 65536),
            domain=take("domain", str, text, ""),
            zone=take("zone", str, text, ""),
            machine=take("machine", str, text, ""),
            weight=take("weight", int, lambda v: 0 <= v <= 1000, 1),
            versions=(versions[0], versions[1]),
            payload=payload,
        )


def is_address(host: str) -> bool:
    """Whether `host` is an IP address. What the network says is dialled only if it is: a name would make us ask the DNS for whoever sent it."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def require_name(name: str) -> str:
    """A node name as it may appear in a cookie's route suffix: 1 to 16 of ``A-Z a-z 0-9 _ -``. Raises `LocalError`."""
    if not 0 < len(name) <= 16 or not all(c.isascii() and (c.isalnum() or c in "_-") for c in name):
        raise LocalError(f"node name {name!r}: use 1 to 16 letters, digits, '_' or '-' (it becomes the route suffix of cookies)")
    return name
