"""Bad input over real sockets, and machines that cannot: counted or refused with a reason in one line, and everybody else goes on."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from caterwaul.cluster.frames import DATA, HELLO, REFUSE, Frame, FrameDecoder, encode_ack, encode_hello, encode_piece
from caterwaul.cluster.handshake import encode_greeting
from caterwaul.managers.changes import encode_delta
from caterwaul.managers.messages import DELTAS
from caterwaul.membership.codec import decode, encode
from caterwaul.membership.member import Member
from caterwaul.membership.messages import Heartbeat

from .processes import CATERWAUL, Cluster, Command, Node, free_port, until

HANDSHAKE_S = 1.0
STRANGER = b"\x01" * 16


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes, for all tests of this module: each of them has to leave them whole."""
    with Cluster(security={}, channel={"handshake_timeout_s": HANDSHAKE_S, "reconnect_min_s": 0.05}) as found:
        found.grow("ab")
        yield found


@pytest.fixture
def node(cluster: Cluster) -> Iterator[Node]:
    """The node that is sent things; afterwards it has the members, the sessions and the manners that it had before."""
    a, b = cluster.nodes
    before = a.do("count")
    yield a
    until(lambda: a.names == b.names == ["a", "b"], what="only members are members")
    assert a.do("count") == before
    for writer, other in ((a, b), (b, a)):
        until(lambda writer=writer, other=other: writer.write({"n": 1}, acks="all")["confirmed"] == [other.name], what="writes go on")  # type: ignore[misc]
    assert a.is_running
    assert "Traceback" not in a.log + b.log


def member(uid: bytes = STRANGER, **fields: Any) -> Member:
    return Member(uid, "stranger", **{"host": "127.0.0.1", "port": free_port(), **fields})


def hello(cluster: str, me: Member | None = None, **changes: Any) -> bytes:
    """A dialler's HELLO, with some keys changed."""
    whole = encode_greeting(me or member(), cluster, epoch=None, fresh=os.urandom(8), peer=None, received=(0, 0))
    return encode_hello({**decode(whole[4:])[1], **changes})


def say(node: Node, data: bytes) -> list[Frame]:
    """Send this over a connection of its own; the frames that came back until the node closed it."""
    with socket.create_connection(("127.0.0.1", node.about["port"]), timeout=10.0) as connection:
        connection.sendall(data)
        return listen(connection)


def listen(connection: socket.socket) -> list[Frame]:
    decoder, frames = FrameDecoder(), []
    try:
        while data := connection.recv(65536):
            frames += decoder.feed(data)
    except ConnectionResetError:  # aborted: what had been sent is lost with it
        pass
    return frames


def channel(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = node.do("statistics")["channel"]
    return found


HELLOS: list[tuple[str, Callable[[str, Node], bytes], str, str]] = [
    ("another protocol", lambda name, node: b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "malformed", "frame of 1195725856 bytes"),
    ("noise", lambda name, node: b"\0\0\0\x08" + b"\xff" * 8, "malformed", "malformed CBOR"),
    ("an oversized length", lambda name, node: pack(">I", 64 * 1024 + 1), "malformed", "frame of 65537 bytes"),
    ("a frame before HELLO", lambda name, node: encode_ack(1, 1), "malformed", "frame of kind 4 in the handshake"),
    ("a wrong version", lambda name, node: hello(name, versions=[7, 9]), "version", "7-9 there, 1-2 here"),
    ("a wrong form of HELLO", lambda name, node: hello(name, caterwaul=2), "version", "format"),
    ("a wrong cluster", lambda name, node: hello("another"), "cluster", "'another' there"),
    ("an unknown feature", lambda name, node: hello(name, mandatory=["telepathy"]), "mandatory", "telepathy"),
    ("no member", lambda name, node: hello(name, member=[]), "malformed", "member: not a map"),
    ("a name for an address", lambda name, node: hello(name, member(host="a.host.example")), "malformed", "'host'"),
    ("its own uid", lambda name, node: hello(name, member(bytes.fromhex(node.uid))), "self", "this is the process that dialled"),
]


@pytest.mark.parametrize(("make", "code", "reason"), [case[1:] for case in HELLOS], ids=[case[0] for case in HELLOS])
def test_a_handshake_that_makes_no_sense_is_counted_and_refused_with_the_reason(
    cluster: Cluster, node: Node, make: Callable[[str, Node], bytes], code: str, reason: str
) -> None:
    before = channel(node)["refusals"].get(code, 0)
    ((kind, text),) = say(node, make(cluster.name, node))
    assert kind == REFUSE
    assert text.startswith(f"{code}: ")
    assert reason in text
    assert channel(node)["refusals"][code] == before + 1
    assert "handshake with 127.0.0.1:" in node.log


@pytest.mark.parametrize("part", [0, 40], ids=["nothing", "half a hello"])
def test_who_does_not_finish_the_handshake_is_cut_off_after_its_time(cluster: Cluster, node: Node, part: int) -> None:
    before = channel(node).get("handshakes_expired", 0)
    assert say(node, hello(cluster.name)[:part]) == []
    assert channel(node)["handshakes_expired"] == before + 1


def test_half_a_hello_and_the_end_is_no_trouble(cluster: Cluster, node: Node) -> None:
    sockets = channel(node)["sockets"]
    with socket.create_connection(("127.0.0.1", node.about["port"])) as connection:
        connection.sendall(hello(cluster.name)[:40])
        until(lambda: channel(node)["sockets"] == sockets + 1, what="it is accepted")
    until(lambda: channel(node)["sockets"] == sockets, what="it is forgotten")


def deltas(*batch: bytes) -> bytes:
    return encode(["default", DELTAS, STRANGER, [decode(delta) for delta in batch]])


GOOD = encode_delta(b"k" * 16, 1, 0, {}, {"name": encode("value")}, 1000, 1000)
FRAMES = {
    "junk for a payload": (encode_piece(DATA, 1, 1, 0, b"\xff\xff"), "malformed CBOR"),
    "a message of another form": (encode_piece(DATA, 1, 1, 0, encode({"no": 1})), "message: not an array"),
    "an unknown kind of frame": (b"\0\0\0\x02\x81\x09", "frame of unknown kind 9"),
    "a second hello": (encode_hello({}), "HELLO on an established connection"),
    "an oversized frame": (pack(">I", 1024 * 1024 + 1), "frame of 1048577 bytes"),
    "unknown flags": (encode_piece(DATA, 1, 1, 7, b""), "frame of kind 3: unknown flags"),
    "an unknown operation of membership": (encode_piece(DATA, 1, 1, 0, encode(["", 99])), "membership: unknown operation"),
    "a name to dial": (encode_piece(DATA, 1, 1, 0, encode(["", 5, [[b"x" * 16, "a.host.example", 80]]])), "membership: malformed KNOWN"),
    "one bad delta after a good one": (encode_piece(DATA, 1, 1, 0, encode(["default", DELTAS, STRANGER, [decode(GOOD), [1]]])), "delta:"),
}


@pytest.mark.parametrize(("frame", "reason"), FRAMES.values(), ids=FRAMES.keys())
def test_a_malformed_frame_of_a_member_costs_it_the_connection_and_nothing_is_applied(cluster: Cluster, node: Node, frame: bytes, reason: str) -> None:
    before = channel(node).get("remote_errors", 0)
    me = member(os.urandom(16), payload={"managers": ["default"]})
    with socket.create_connection(("127.0.0.1", node.about["port"]), timeout=10.0) as connection:
        connection.sendall(hello(cluster.name, me))
        until(lambda: "stranger" in node.names, what="the handshake was good")
        connection.sendall(frame.replace(STRANGER, me.uid))  # nobody may speak of commits of others
        frames = listen(connection)
    assert frames[0][0] == HELLO
    kind, text = frames[-1]
    assert kind == REFUSE
    assert text.startswith("malformed: ")
    assert reason in text
    assert channel(node)["remote_errors"] == before + 1
    assert f"{reason}" in node.log


def test_a_good_delta_of_the_same_stranger_would_have_been_applied(cluster: Cluster) -> None:
    """Or the test above shows nothing."""
    with Cluster(security={}) as other:
        (node,) = other.grow("a")
        me = member(payload={"managers": ["default"]})
        with socket.create_connection(("127.0.0.1", node.about["port"]), timeout=10.0) as connection:
            connection.sendall(hello(other.name, me) + encode_piece(DATA, 1, 1, 0, deltas(GOOD)))
            until(lambda: node.do("count") == 1, what="it is applied")


def test_datagrams_that_are_no_heartbeats_of_this_cluster_are_counted_and_change_nothing(cluster: Cluster, node: Node) -> None:
    def heartbeat(name: str = cluster.name, **fields: Any) -> bytes:
        return Heartbeat.of(member(os.urandom(16), **fields), name).encode()

    def statistics() -> dict[str, int]:
        found: dict[str, int] = node.do("statistics")["membership"]
        return found

    malformed = [b"", b"junk", b"\xff" * 252, b"x" * 1200, heartbeat()[:-1], heartbeat() + b"\0", encode(["CW", 2, "c"]), heartbeat(host="a.host.example")]
    foreign = [heartbeat("another")] * 3
    before, dials, changes = statistics(), channel(node).get("dials_failed", 0), node.do("changes")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        for datagram in [*malformed, b"x" * 1201, b"x" * 60000, *foreign]:
            sender.sendto(datagram, ("228.0.0.4", cluster.membership["multicast_port"]))
    until(lambda: statistics()["foreign"] >= before["foreign"] + len(foreign), what="all have arrived")
    after = statistics()
    assert after["malformed"] == before["malformed"] + len(malformed) + 2, "those too long to be any of ours count with them"
    assert after["foreign"] == before["foreign"] + len(foreign)
    assert node.do("changes") == changes
    assert channel(node).get("dials_failed", 0) == dials


def test_a_node_of_another_cluster_at_a_seeds_address_is_told_why_and_so_are_we(cluster: Cluster, node: Node) -> None:
    before = channel(node)["refusals"].get("cluster", 0)
    with Cluster(security={}, discovery=["static"], seeds=[f"127.0.0.1:{node.about['port']}"]) as other:
        (stranger,) = other.grow("z")
        until(lambda: channel(stranger)["refusals"].get("cluster"), what="it was refused")
        assert f"refused by the peer: another cluster: '{other.name}' there, '{cluster.name}' here" in stranger.log
    assert channel(node)["refusals"]["cluster"] > before


# -- machines and configurations that cannot


def failing(code: int, *arguments: str, prefix: tuple[str, ...] = ()) -> list[str]:
    """The lines that `caterwaul node` says before it ends with this code."""
    with Command("node", "--set=node.name=x", *arguments, prefix=prefix) as command:
        assert command.exit_code(20.0) == code, command.log
        return command.log.splitlines()


ALONE = "--set=membership.discovery=[]"


def test_a_channel_port_in_use_is_named_with_its_address_and_setting(node: Node, tmp_path: Path) -> None:
    port = node.about["port"]
    (line,) = failing(1, ALONE, f"--set=node.port={port}", f"--set=admin.socket={tmp_path}/x")
    assert f"TCP port {port} of 127.0.0.1" in line
    assert "node.port" in line
    assert "Address already in use" in line
    assert not list(tmp_path.iterdir())


def test_a_web_port_in_use_is_named_with_its_address_and_setting(node: Node) -> None:
    port = node.about["port"]
    (line,) = failing(1, ALONE, "--set=admin.socket=", f"--set=web.listen=127.0.0.1:{port}", "--set=web.application=wsgiref.simple_server:demo_app")
    assert "web.listen" in line
    assert f"TCP port {port} on 127.0.0.1" in line
    assert "Address already in use" in line


def test_a_multicast_port_that_somebody_has_for_himself_is_named_with_its_setting(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("", 0))
        port = taken.getsockname()[1]
        (line,) = failing(1, f"--set=membership.multicast_port={port}", f"--set=admin.socket={tmp_path}/x")
    assert f"UDP port {port}" in line
    assert "membership.multicast_port" in line
    assert "Address already in use" in line


def test_an_admin_socket_in_use_is_named_with_its_setting(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as taken:
        taken.bind(os.fspath(path))
        taken.listen()
        (line,) = failing(1, ALONE, f"--set=admin.socket={path}")
        assert f"another process answers at {path}" in line
        assert "admin.socket" in line
        assert path.is_socket(), "it belongs to that process"


def test_three_mistakes_are_three_lines_and_nothing_listens(tmp_path: Path) -> None:
    path, port = tmp_path / "node.toml", free_port()
    path.write_text(
        f'[node]\nname = "x"\nport = {port}\nhost = "a.host.example"\n[membership]\ndrop_time_s = 0.2\n[admin]\nsockett = "{tmp_path}/admin.sock"\n'
    )
    with Command("node", "--config", str(path)) as command:
        assert command.exit_code(20.0) == 2
        lines = command.log.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        [str(path), "admin.sockett"], [str(path), "node.host"], [str(path), "membership.drop_time_s"],
    ]  # fmt: skip
    assert "names are not resolved" in lines[1]
    assert lines[2].endswith("0.2 is shorter than two heartbeats (1.0)")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    assert list(tmp_path.iterdir()) == [path]


class TestWithoutMulticast:
    """Each in a network namespace of its own, which has nothing but a loopback interface that is down."""

    APART = ("unshare", "--net")
    UP = (*APART, "sh", "-c", 'ip link set lo up && exec "$0" "$@"')

    @pytest.fixture(autouse=True)
    def _permitted(self) -> None:
        try:
            subprocess.run([*self.UP, "true"], check=True, capture_output=True, timeout=10)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespace can be made here: {error}")

    def test_without_a_route_it_says_so_in_one_line_with_the_way_out(self, tmp_path: Path) -> None:
        for prefix, arguments, interface in (
            (self.APART, (), "127.0.0.1"),
            (self.UP, ("--set=membership.multicast_interface=192.0.2.1",), "192.0.2.1"),
        ):
            (line,) = failing(1, f"--set=admin.socket={tmp_path}/x", *arguments, prefix=prefix)
            assert f"cannot join multicast group 228.0.0.4 on interface {interface}: " in line
            assert "membership.discovery = ['static'] with membership.seeds" in line
            assert not list(tmp_path.iterdir())

    def test_static_discovery_needs_none(self, tmp_path: Path) -> None:
        settings = ('--set=membership.discovery=["static"]', '--set=membership.seeds=["127.0.0.1:7000"]', f"--set=admin.socket={tmp_path}/x")
        with Command("node", "--set=node.name=x", *settings, prefix=self.UP) as command:
            until(lambda: "x of cluster caterwaul on 127.0.0.1:" in command.log or not command.is_running, what="it runs")
            asked = subprocess.run([*CATERWAUL, "members", "--json", "--socket", f"{tmp_path}/x"], capture_output=True, text=True, timeout=20, check=False)
            assert '"name": "x"' in asked.stdout, asked.stderr + command.log
            assert command.log.count("\n") == 1, command.log
