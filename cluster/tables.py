"""The tables of the configuration that belong to the node itself; those of membership, managers and cookies are declared there."""

from __future__ import annotations

from dataclasses import dataclass

from ..membership.knobs import knob

__all__ = ["AdminSettings", "ChannelSettings", "ClusterSettings", "NodeSettings", "SecuritySettings", "WebSettings"]


@dataclass(frozen=True)
class NodeSettings:
    """Table `[node]` of the configuration file."""

    name: str = knob(
        "",
        "Stable name of this node, the route suffix of its cookies: 1 to 16 letters, digits, `_`, `-`, and no two nodes the same. "
        "Empty: this machine's host name, cut to what is allowed.",
    )
    host: str = knob(
        "127.0.0.1",
        "IP address of this machine to bind and to tell other members; no name (members do not resolve what others tell them) and no wildcard. Without a key for the cluster only loopback is accepted.",
    )
    port: int = knob(0, "TCP port of the channel. 0: any free one, which discovery tells the others (give a fixed one to be a seed).", minimum=0, maximum=65535)
    domain: str = knob("", "Members of another domain hold none of this node's sessions. Splits a large group into small ones that replicate among themselves.")
    zone: str = knob("", "Placement label: what fails together above the machine (room, availability zone). Copies are spread over zones first.")
    machine: str = knob("", "Placement label: the physical machine, where several virtual ones share it.")
    weight: int = knob(
        1,
        "Share of what is spread over members: one with 2 keeps watch over twice as many sessions as one with 1. "
        "0: a lite member, which serves requests and holds no session.",
        minimum=0,
        maximum=1000,
    )
    workers: str = knob(
        "full",
        "What a `ClusterManager` that is given this file is. `full`: this node. `lite`: a worker beside this node, which `caterwaul node` runs with the same file on the same "
        "host: it holds no session, is called `NAME+PID`, and finds the node by `port`. Cookies name the node, whichever worker answered. For servers of several processes.",
        choices=("full", "lite"),
    )
    drain_on_term: bool = knob(
        False,
        "At SIGTERM (and when the process ends in good order) hand all sessions over first, as `caterwaul drain` does. "
        "Without it the other copies take over, and are made complete again after the node has left.",
    )
    drain_timeout_s: float = knob(
        20.0,
        "With `drain_on_term`: the longest wait for the others' confirmations. Below the patience of whoever sends SIGTERM (Kubernetes: 30 s).",
        minimum=0.1,
    )
    drain_notice_s: float = knob(
        1.0,
        "A drain takes at least this long: time for balancers to see that the node is not ready any more. Above the time between their probes.",
        minimum=0.0,
    )
    insecure: bool = knob(
        False,
        "Allow a `host` outside loopback with neither a secret nor certificates: anyone on that network reads and forges sessions. The node says so at "
        "each start. Datagrams stay off there: use discovery `static`, `dns` or `file`.",
    )


@dataclass(frozen=True)
class ClusterSettings:
    """Table `[cluster]` of the configuration file."""

    name: str = knob("caterwaul", "Only nodes of the same cluster name see each other, also on one group address and port. 1 to 64 printable characters.")


@dataclass(frozen=True)
class SecuritySettings:
    """Table `[security]` of the configuration file."""

    secret_file: str = knob(
        "",
        "File with the cluster's shared secret (`caterwaul secret new FILE`), readable by this user only. With it every connection is encrypted "
        "and every node has to prove the secret. Looked at every second. Empty: the environment variable CATERWAUL_SECRET, if it is set.",
    )
    certificates: str = knob(
        "",
        "Directory of this node's certificate (`caterwaul ca issue NODE`): instead of a secret, each node shows who it is, and can be shut out alone. "
        "Looked at every second.",
    )


@dataclass(frozen=True)
class ChannelSettings:
    """Table `[channel]` of the configuration file."""

    chunk_bytes: int = knob(
        16384, "Largest piece of a message in one data frame; control frames go between pieces. Larger costs probes their latency on slow links.",
        minimum=1024, maximum=256 * 1024 - 64,
    )  # fmt: skip
    ahead_bytes: int = knob(
        65536, "Bytes given to the transport ahead of need. Larger fills fast long links, and delays control frames behind data.", minimum=4096
    )
    outbox_max_bytes: int = knob(
        32 * 1024 * 1024,
        "Bytes kept for one peer (unsent and unconfirmed). Over it the outbox keeps only which sessions are dirty, and sends their current state when the peer drains.",
        minimum=65536,
    )
    message_max_bytes: int = knob(64 * 1024 * 1024, "A reassembled message at most; a peer that sends more is disconnected.", minimum=1024 * 1024)
    compress_above_bytes: int = knob(
        0, "Messages above this size are compressed (zstd where Python has it, else zlib). 0: never; worth it on links under 1 Gbit/s.", minimum=0
    )
    handshake_timeout_s: float = knob(5.0, "From accept to a complete handshake; later the connection is closed.", minimum=0.1)
    reconnect_min_s: float = knob(0.1, "First pause before dialling a member again; doubles, with jitter.", minimum=0.01)
    reconnect_max_s: float = knob(5.0, "Longest pause before dialling a member again.", minimum=0.1)
    connect_timeout_s: float = knob(3.0, "How long one dial may take.", minimum=0.1)
    unauthenticated_max: int = knob(
        32,
        "Accepted connections without a finished handshake at most, of all addresses; for one more the oldest of them is closed, and counted (`refusals`: `busy`).",
        minimum=1,
    )
    accepts_per_s: float = knob(
        20.0,
        "Connections that one address may open a second without being admitted, after `unauthenticated_max` at once; more are closed at once and counted "
        "(`refusals`: `rate`). Lower makes a flood cheaper; too low delays nodes with a wrong secret, and nobody else.",
        minimum=0.1,
    )


@dataclass(frozen=True)
class AdminSettings:
    """Table `[admin]` of the configuration file."""

    socket: str = knob(
        "auto",
        "Path of the Unix socket that `caterwaul members` and `caterwaul sessions` ask; only this user may open it. "
        "`auto`: one for each process below `$XDG_RUNTIME_DIR/caterwaul` (or `/tmp/caterwaul-UID`). Empty: none.",
    )
    listen: str = knob(
        "",
        "`address:port` to answer on over TCP too (port 0: any free one). On loopback with `token_file`; elsewhere only with `security.certificates`, and then "
        "to whoever shows an administrator's certificate (`caterwaul ca issue --admin`). Empty: only the Unix socket.",
    )
    token_file: str = knob("", "File with the token for `listen` on loopback (`caterwaul secret new FILE` makes one), readable by this user only.")
    listen_read_only: bool = knob(True, "Over TCP only look: `drain` and `leave` are refused there.")


@dataclass(frozen=True)
class WebSettings:
    """Table `[web]` of the configuration file: a WSGI application served by `twistd caterwaul`."""

    listen: str = knob("", "`host:port` to serve the application on (port 0: any free one). Empty: this node serves none.")
    application: str = knob(
        "", 'The WSGI application as `module:callable`, or `module:function()` for what a function makes; the session is in `environ["caterwaul.session"]`.'
    )
    wrap: bool = knob(
        False,
        "Replace the sessions of the application's framework (Flask, Django, Pyramid) as well, so that it needs no change: what `caterwaul wrap` does. "
        "The cookie is then the framework's, where that can be read.",
    )
    manager: str = knob("default", "The session manager that the application uses.")
    threads: int = knob(16, "Requests handled at the same time. More serve slow views, and take turns at the interpreter.", minimum=1, maximum=1024)
