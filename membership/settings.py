"""Settings of membership: how members find each other and when one counts as gone."""

from __future__ import annotations

from dataclasses import dataclass

from .knobs import knob
from .networks import PRIVATE_NETWORKS

__all__ = ["MembershipSettings"]


@dataclass(frozen=True)
class MembershipSettings:
    """Table `[membership]` of the configuration file."""

    discovery: list[str] = knob(
        ["multicast"],
        "How members are found; several at once. `multicast` needs no list; `static` dials `seeds`; `dns` polls `dns_names`; "
        "`file` re-reads `seeds_file`. One reachable seed is enough, members tell each other of the rest.",
        choices=("multicast", "static", "dns", "file"),
    )
    multicast_address: str = knob("228.0.0.4", "Group address. Clusters that must not see each other use another address, port or cluster name.")
    multicast_port: int = knob(45564, "UDP port of the group. Several nodes and several clusters of one host share it.", minimum=1, maximum=65535)
    multicast_interface: str = knob("", "Address of the interface to use; empty: the bind address of the channel, so loopback stays on loopback.")
    multicast_ttl: int = knob(1, "Router hops a heartbeat survives. 1 stays in the segment; more lets strangers listen.", minimum=0, maximum=255)
    receive_buffer_bytes: int = knob(
        4 * 1024 * 1024,
        "Kernel buffer of the multicast socket (a default one holds 1.7 s of a 50-node cluster). The node warns when the kernel grants less.",
        minimum=65536,
    )
    heartbeat_interval_s: float = knob(
        0.5, "Time between heartbeats. Lower finds newcomers and losses sooner and costs 1/interval datagrams a second and node.", minimum=0.05
    )
    drop_time_s: float = knob(
        3.0,
        "Silence after which a member is gone if a probe fails too. At least two heartbeats. Lower detects a frozen process sooner; "
        "too low drops processes whose threads hold the interpreter (a killed process is known at once in any case).",
        minimum=0.2,
    )
    probe_timeout_s: float = knob(0.3, "How long up to three other members are given to say that they reach a suspect.", minimum=0.05, maximum=5.0)
    seeds: list[str] = knob([], "`host:port` of channels to dial with discovery `static`; a port of its own is optional when all use the same.")
    seed_retry_s: float = knob(5.0, "Time between dials of a seed that is not a member.", minimum=0.5)
    dns_names: list[str] = knob([], "Names polled with discovery `dns`: `_service._tcp.name` as SRV, others as A and AAAA with `node.port`.")
    dns_poll_s: float = knob(10.0, "Time between DNS look-ups. Lower finds pods sooner and loads the resolver.", minimum=0.5)
    seeds_file: str = knob("", "Path of a file with one `host:port` a line (`#` comments), read again when it changes (discovery `file`).")
    file_poll_s: float = knob(2.0, "Time between looks at `seeds_file`.", minimum=0.1)
    allowed_networks: list[str] = knob(
        PRIVATE_NETWORKS,
        "Networks that members may be in. What a heartbeat or another member says of an address elsewhere is not dialled, and counted (`outside`). "
        "The default is loopback and the private ones; addresses that you give yourself (`seeds` and so on) are dialled anyway.",
    )
    members_max: int = knob(256, "Members at most; more are refused and counted. All-to-all links grow with its square.", minimum=2, maximum=4096)
