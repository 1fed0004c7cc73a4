"""Real nodes with a secret or certificates: who gets in, who does not, and that keys change without losing anybody.

Requirements 2, 6, 15 to 22, 24 to 26 of docs/security.md.
"""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from caterwaul.cluster.admin_socket import answers, ask
from caterwaul.cluster.handshake import encode_greeting
from caterwaul.cluster.security.authority import CertificateAuthority
from caterwaul.cluster.security.certificates import ADMINISTRATOR
from caterwaul.cluster.security.keyring import make_secret, read_lines, read_secrets, write_secrets
from caterwaul.membership.member import Member
from caterwaul.membership.messages import Heartbeat

from .processes import CATERWAUL, Cluster, Command, Node, free_port, holds, until

HANDSHAKE_S = 1.0
CHANNEL = {"handshake_timeout_s": HANDSHAKE_S, "reconnect_min_s": 0.05}


class Certified(Cluster):
    """Each node with a certificate of its own, of an authority in `ca`."""

    def __init__(self, directory: Path, **more: Any) -> None:
        super().__init__(security={}, channel=CHANNEL, **more)
        self.ca = CertificateAuthority.init(directory / "ca", self.name)
        self.directory = directory

    def directory_of(self, name: str) -> Path:
        return self.directory / name

    def start(self, name: str, **more: Any) -> Node:  # type: ignore[override]
        if "security" not in more:
            self.ca.issue(name, self.directory_of(name), 90)
            more["security"] = {"certificates": str(self.directory_of(name))}
        return super().start(name, **more)


@pytest.fixture(params=["secret", "certificates"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    with Certified(tmp_path) if request.param == "certificates" else Cluster(channel=CHANNEL) as found:
        yield found


def refusals(node: Node) -> dict[str, int]:
    found: dict[str, int] = node.do("statistics")["channel"]["refusals"]
    return found


def resumed(node: Node) -> int:
    """How many times a link of this node has got another connection."""
    return int(node.do("statistics")["channel"].get("links_resumed", 0))


def certificate(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = node.do("statistics")["security"]
    return found


def is_closed(connection: socket.socket, timeout_s: float = 5.0) -> bool:
    """Whether the other end closes it in time; what it says before does not matter."""
    connection.settimeout(timeout_s)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def dial(node: Node) -> socket.socket:
    return socket.create_connection(("127.0.0.1", node.about["port"]), timeout=5.0)


def tls(context: ssl.SSLContext, node: Node) -> ssl.SSLSocket:
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(dial(node))


def stranger() -> Member:
    return Member(b"\x01" * 16, "stranger", "127.0.0.1", 9)


class TestWhoGetsIn:
    def test_two_with_the_same_key_replicate_and_nobody_else_gets_in(self, cluster: Cluster) -> None:
        a, b = cluster.grow("ab")
        session = a.write({"n": 1}, acks="all")
        assert session["confirmed"] == ["b"]
        assert b.read(session["id"])["values"] == {"n": 1}
        hello = encode_greeting(stranger(), cluster.name, epoch=None, fresh=b"f" * 8, peer=None, received=(0, 0))

        with dial(a) as plain:  # in the clear, and first of all a HELLO that would be right
            plain.sendall(hello)
            assert is_closed(plain)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            tls(old, a)
        with tls(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), a) as unknown:  # no certificate, or no proof of the secret
            unknown.sendall(hello)
            assert is_closed(unknown)
        until(lambda: sum(refusals(a).values()) >= 3, what="they are counted")
        assert (a.names, b.names) == (["a", "b"], ["a", "b"])
        assert b.write({"n": 2}, session["id"], acks="all")["confirmed"] == ["a"]
        assert "Traceback" not in a.log + b.log

    def test_a_node_with_another_key_stays_outside_and_both_say_so(self, cluster: Cluster, tmp_path: Path) -> None:
        a, b = cluster.grow("ab")
        seeds = {"discovery": ["static"], "seeds": [f"127.0.0.1:{a.about['port']}"]}
        if isinstance(cluster, Certified):
            other = CertificateAuthority.init(tmp_path / "other", cluster.name)
            other.issue("x", tmp_path / "x", 90)
            x = cluster.start("x", security={"certificates": str(tmp_path / "x")}, **seeds)
        else:
            write_secrets(tmp_path / "other", [make_secret()], replace=False)
            x = cluster.start("x", security={"secret_file": str(tmp_path / "other")}, **seeds)
        until(lambda: refusals(a).get("secret" if not isinstance(cluster, Certified) else "admission"), what="it was refused")
        until(lambda: refusals(x), what="it knows that it was")
        assert (a.names, b.names, x.names) == (["a", "b"], ["a", "b"], ["x"])
        assert "handshake with 127.0.0.1:" in a.log

    def test_a_node_in_the_clear_stays_outside(self, cluster: Cluster) -> None:
        (a,) = cluster.grow("a")
        x = cluster.start("x", security={}, discovery=["static"], seeds=[f"127.0.0.1:{a.about['port']}"])
        until(lambda: refusals(x), what="it was refused")
        assert (a.names, x.names) == (["a"], ["x"])

    def test_datagrams_in_the_clear_are_not_even_hints(self, cluster: Cluster) -> None:
        (a,) = cluster.grow("a")
        before = a.do("statistics")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            for _ in range(20):
                sender.sendto(Heartbeat.of(stranger(), cluster.name).encode(), ("228.0.0.4", cluster.membership["multicast_port"]))
        until(lambda: a.do("statistics")["membership"]["unsealed"] >= 20, what="they have arrived")
        after = a.do("statistics")
        assert after["channel"].get("dials_failed", 0) == before["channel"].get("dials_failed", 0)
        assert after["membership"]["malformed"] == 0
        assert a.names == ["a"]


class TestFloods:
    def test_who_says_nothing_is_cut_off_and_too_many_of_them_at_once(self, cluster: Cluster) -> None:
        (a,) = cluster.grow("a")
        began = time.monotonic()
        silent = [dial(a) for _ in range(40)]
        try:
            until(lambda: refusals(a).get("busy", 0) + refusals(a).get("rate", 0) >= 8, what="those beyond 32 are refused")
            silent[-1].sendall(b"\x16\x03\x01")  # the beginning of a ClientHello, where it is not refused
            assert all(is_closed(connection) for connection in silent)
            assert time.monotonic() - began < HANDSHAKE_S + 2.0
            assert "Traceback" not in a.log
            assert a.log.count("too many connections") < 12, "the log does not grow with the flood"
        finally:
            for connection in silent:
                connection.close()
        cluster.start("b")
        cluster.meet()

    def test_half_a_handshake_is_cut_off_too(self, cluster: Cluster) -> None:
        (a,) = cluster.grow("a")
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        engine = context.wrap_bio(incoming, outgoing)
        with pytest.raises(ssl.SSLWantReadError):
            engine.do_handshake()
        with dial(a) as half:
            half.sendall(outgoing.read())
            assert is_closed(half, HANDSHAKE_S + 2.0)


def test_no_connection_is_resumed(cluster: Cluster) -> None:
    """Neither tickets nor session ids: what a connection proved counts for it alone."""
    (a,) = cluster.grow("a")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if isinstance(cluster, Certified):
        context.load_cert_chain(cluster.directory_of("a") / "node.pem", cluster.directory_of("a") / "node.key")
    with tls(context, a) as first:
        first.settimeout(0.5)
        with pytest.raises((TimeoutError, ssl.SSLError)):  # tickets would come with the first bytes
            first.recv(1)
        session = first.session
    with dial(a) as raw, context.wrap_socket(raw, session=session) as second:
        assert not second.session_reused


class TestKeysChange:
    def test_a_secret_is_changed_under_load_and_nobody_is_lost(self) -> None:
        with Cluster(channel=CHANNEL) as cluster:
            nodes = cluster.grow("abc")
            sessions = nodes[0].do("fill", count=20)
            nodes[0].do("begin_writing", sessions=sessions)
            changes = [len(node.do("changes")) for node in nodes]
            old = cluster.secret_file.read_text()
            (first,) = read_lines(cluster.secret_file)
            second = make_secret()
            for lines in ([first, second], [second, first], [second]):
                write_secrets(cluster.secret_file, lines, replace=True)
                ids = [found.id.hex() for found in read_secrets(cluster.secret_file)]
                for node in nodes:
                    until(lambda node=node, ids=ids: node.do("statistics")["security"]["secrets"] == ids, what=f"{node.name} has read it")  # type: ignore[misc]
            until(lambda: any(refusals(node).get("revoked") for node in nodes), 5.0, "connections of the old secret are cut off")
            until(lambda: nodes[0].write({"n": 1}, acks="all")["confirmed"] == ["b", "c"], what="they have met again")
            nodes[0].do("end_writing")
            assert [len(node.do("changes")) for node in nodes] == changes, "no member was lost"
            late = cluster.start("d")
            cluster.meet()
            write_secrets(cluster.secret_file.with_name("old"), old.split(), replace=False)
            x = cluster.start(
                "x", security={"secret_file": str(cluster.secret_file.with_name("old"))}, discovery=["static"], seeds=[f"127.0.0.1:{late.about['port']}"]
            )
            until(lambda: refusals(x), what="the old secret is refused")
            assert x.names == ["x"]

    def test_a_mistake_while_it_is_changed_shuts_nobody_out(self) -> None:
        with Cluster(channel=CHANNEL) as cluster:
            a, b = cluster.grow("ab")
            cluster.secret_file.write_text("oops\n")
            until(lambda: a.do("statistics")["security"]["errors"], what="it was looked at")
            cluster.secret_file.unlink()
            until(lambda: a.do("statistics")["security"]["errors"] > 1, what="and again")
            assert "everything stays as it was" in a.log
            assert "oops" not in a.log
            assert b.write({"n": 1}, acks="all")["confirmed"] == ["a"]

    def test_a_revoked_node_is_cut_off_by_all_when_one_is_told(self, tmp_path: Path) -> None:
        with Certified(tmp_path, drop_time_s=1.0) as cluster:
            a, b, c = cluster.grow("abc")
            cluster.ca.revoke("c")
            began = time.monotonic()
            cluster.ca.publish(cluster.directory_of("a"))
            until(lambda: a.names == b.names == ["a", "b"], what="they are without it")
            assert time.monotonic() - began < 10.0
            assert "closes the connection: revoked" in c.log
            assert refusals(b)["revoked"] > 0
            assert b.do("statistics")["security"]["revoked"] == 1
            assert (cluster.directory_of("b") / "revoked.crl").read_bytes() == (cluster.ca.directory / "revoked.crl").read_bytes(), (
                "it has come over the network"
            )
            holds(lambda: "c" not in a.names + b.names, 2.0)
            assert a.write({"n": 1}, acks="all")["confirmed"] == ["b"]
            d = cluster.start("d")
            cluster.meet([a, b, d])

    def test_the_authority_is_changed_and_nobody_is_lost(self, tmp_path: Path) -> None:
        with Certified(tmp_path) as cluster:
            nodes = cluster.grow("abc")
            changes = [len(node.do("changes")) for node in nodes]
            issued = [certificate(node)["certificate"] for node in nodes]

            def all_have(authorities: int, *, new: bool = False) -> None:
                for node, before in zip(nodes, issued, strict=True):
                    found = until(lambda node=node: certificate(node)["authorities"] == authorities and certificate(node), what=f"{node.name} has read it")  # type: ignore[misc]
                    assert (found["certificate"] != before) == new
                    assert found["valid_for_s"] > 89 * 86400

            d = cluster.start("d")
            cluster.meet()
            changes = [len(node.do("changes")) for node in nodes]
            cluster.ca.rotate()
            cluster.ca.publish(cluster.directory_of("a"))  # a while before the others
            until(lambda: certificate(nodes[0])["authorities"] == 2, what="a has read it")
            holds(lambda: nodes[0].write({"n": 1}, acks="all")["confirmed"] == ["b", "c", "d"], 4.0)
            assert nodes[0].do("statistics")["channel"]["links_begun"] == 3, "no link was made anew"
            for node in cluster.nodes:
                cluster.ca.publish(cluster.directory_of(node.name))
            all_have(2)
            for node in nodes:
                others = {other.name: (other, resumed(other)) for other in nodes if other is not node}
                cluster.ca.issue(node.name, cluster.directory_of(node.name), 90)
                until(lambda node=node: certificate(node)["certificate"] not in issued, what=f"{node.name} shows another")  # type: ignore[misc]
                for name, (other, before) in others.items():
                    until(lambda other=other, before=before: resumed(other) > before, what=f"{name} knows {node.name} by the new one")  # type: ignore[misc]
            cluster.ca.finish_rotation()
            assert d.names == ["a", "b", "c", "d"], "it has its old certificate still"
            assert [len(node.do("changes")) for node in nodes] == changes
            for node in nodes:
                cluster.ca.publish(cluster.directory_of(node.name))
            all_have(1, new=True)
            until(lambda: all(node.names == ["a", "b", "c"] for node in nodes), what="what the authority of before has issued counts no more, connected or not")
            until(lambda: nodes[0].write({"n": 1}, acks="all")["confirmed"] == ["b", "c"], what="they are together")
            assert [len(node.do("changes")) for node in nodes] == [count + 1 for count in changes], "d has gone, and nobody else"
            cluster.start("e")
            cluster.meet([*nodes, cluster.nodes[-1]])

    def test_a_certificate_of_another_node_is_of_no_use(self, tmp_path: Path) -> None:
        with Certified(tmp_path) as cluster:
            (a,) = cluster.grow("a")
            cluster.ca.issue("b", tmp_path / "stolen", 90)
            x = Cluster.start(cluster, "x", security={"certificates": str(tmp_path / "stolen")})
            assert x.exit_code() != 0
            assert "was issued for node 'b', and this is 'x'" in x.log
            assert a.names == ["a"]


class TestWhatIsShown:
    def test_a_secret_is_shown_nowhere(self, tmp_path: Path) -> None:
        """Neither on the command line of the process, nor in its log, nor in what the admin service answers. Requirement 56."""
        secret, token = make_secret(), make_secret()
        for name, text in (("secret", secret), ("token", token)):
            write_secrets(tmp_path / name, [text], replace=False)
        arguments = [
            "node", "-v", "--set=node.name=x", f"--set=security.secret_file={tmp_path}/secret", f"--set=admin.socket={tmp_path}/x.sock",
            "--set=admin.listen=127.0.0.1:0", f"--set=admin.token_file={tmp_path}/token", f"--set=membership.multicast_port={free_port(socket.SOCK_DGRAM)}",
        ]  # fmt: skip
        with Command(*arguments) as node:
            until(lambda: answers(tmp_path / "x.sock"), what="it answers")
            shown = json.dumps([ask(tmp_path / "x.sock", path) for path in ("/config", "/statistics", "/members")])
            write_secrets(tmp_path / "secret", [secret[:10]], replace=True)  # too short: an error that could quote it
            until(lambda: ask(tmp_path / "x.sock", "/statistics")["security"]["errors"], what="it was refused")
            shown += node.log + Path(f"/proc/{node.pid}/cmdline").read_text()
        for part in (secret, token, secret[:10]):
            assert part not in shown
        assert "in the clear" not in shown

    def test_a_node_without_a_key_says_that_it_stays_on_loopback(self, tmp_path: Path) -> None:
        with Command("node", "--set=node.name=x", "--set=membership.discovery=[]", f"--set=admin.socket={tmp_path}/x.sock") as node:
            until(lambda: "in the clear: no secret, no certificates, so loopback only" in node.log, what="it says so")

    def test_insecure_is_loud(self, tmp_path: Path) -> None:
        with Command("node", "--set=node.name=x", "--set=node.insecure=true", "--set=membership.discovery=[]", f"--set=admin.socket={tmp_path}/x.sock") as node:
            until(lambda: "node.insecure is set: nothing between members is encrypted" in node.log, what="it says so")


class TestAdministrators:
    def test_a_token_opens_the_door_on_loopback(self, tmp_path: Path) -> None:
        for name in ("token", "wrong"):
            write_secrets(tmp_path / name, [make_secret()], replace=False)
        port = free_port()
        arguments = [
            "node", "--set=node.name=x", "--set=membership.discovery=[]", "--set=admin.socket=", f"--set=admin.listen=127.0.0.1:{port}", f"--set=admin.token_file={tmp_path}/token",
        ]  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        with Command(*arguments) as node:
            until(lambda: said("members", "--json", "--url", url, "--token-file", f"{tmp_path}/token")[0] == 0, what="it answers")
            code, text = said("members", "--json", "--url", url, "--token-file", f"{tmp_path}/wrong")
            assert (code, "a token is needed" in text) == (1, True)
            code, text = said("drain", "--url", url, "--token-file", f"{tmp_path}/token")
            assert (code, "only answers questions" in text) == (1, True)
            assert node.is_running

    def test_a_certificate_of_an_administrator_opens_it_elsewhere(self, tmp_path: Path) -> None:
        authority = CertificateAuthority.init(tmp_path / "ca", "caterwaul")
        for name in ("x", "other"):
            authority.issue(name, tmp_path / name, 90)
        authority.issue("admin", tmp_path / "admin", 90, scheme=ADMINISTRATOR)
        port = free_port()
        arguments = [
            "node", "--set=node.name=x", "--set=membership.discovery=[]", "--set=admin.socket=", f"--set=admin.listen=127.0.0.1:{port}",
            f"--set=security.certificates={tmp_path}/x", "--set=admin.listen_read_only=false",
        ]  # fmt: skip
        url = f"https://127.0.0.1:{port}"
        with Command(*arguments) as node:
            until(lambda: said("members", "--json", "--url", url, "--certificates", f"{tmp_path}/admin")[0] == 0, what="it answers")
            code, text = said("members", "--url", url, "--certificates", f"{tmp_path}/other")
            assert (code, "a token is needed" in text) == (1, True), "a node is no administrator"
            with pytest.raises((ssl.SSLError, ConnectionError)):
                ask_without_certificate(port)
            authority.revoke("admin")
            authority.publish(tmp_path / "x")
            until(lambda: said("members", "--url", url, "--certificates", f"{tmp_path}/admin")[0] == 1, what="whoever is revoked is an administrator no more")
            assert node.is_running
        code, text = said("node", "--set=node.name=admin", f"--set=security.certificates={tmp_path}/admin")
        assert (code, "names no node of cluster" in text) == (1, True), "an administrator is no node"

    def test_a_node_that_was_revoked_is_asked_nothing(self, tmp_path: Path) -> None:
        """Whoever has stolen its key can answer in its place, and nobody may believe that."""
        authority = CertificateAuthority.init(tmp_path / "ca", "caterwaul")
        authority.issue("x", tmp_path / "x", 90)
        authority.issue("admin", tmp_path / "admin", 90, scheme=ADMINISTRATOR)
        port = free_port()
        arguments = [
            "node", "--set=node.name=x", "--set=membership.discovery=[]", "--set=admin.socket=", f"--set=admin.listen=127.0.0.1:{port}",
            f"--set=security.certificates={tmp_path}/x",
        ]  # fmt: skip
        ask = ("members", "--url", f"https://127.0.0.1:{port}", "--certificates", f"{tmp_path}/admin")
        with Command(*arguments) as node:
            until(lambda: said(*ask)[0] == 0, what="it answers")
            authority.revoke("x")
            assert said(*ask)[0] == 0, "nobody knows yet"
            authority.publish(tmp_path / "admin")
            code, text = said(*ask)
            assert (code, "its certificate has been revoked" in text) == (1, True)
            (tmp_path / "admin" / "revoked.crl").write_bytes(b"none")
            code, text = said(*ask)
            assert (code, "is no list of revoked certificates" in text) == (1, True), "what cannot be read revokes nobody, so nobody is asked"
            assert node.is_running

    def test_a_token_is_not_said_over_the_network(self, tmp_path: Path) -> None:
        write_secrets(tmp_path / "token", [make_secret()], replace=False)
        code, text = said("members", "--url", "http://192.0.2.1:7001", "--token-file", f"{tmp_path}/token")
        assert (code, "would be overheard" in text) == (1, True)


def ask_without_certificate(port: int) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), timeout=5.0) as raw, context.wrap_socket(raw) as nobody:
        nobody.sendall(b"GET /members HTTP/1.1\r\nHost: a\r\n\r\n")
        nobody.recv(1)


def said(*arguments: str) -> tuple[int, str]:
    """Exit code, and all that the command said."""
    done = subprocess.run([*CATERWAUL, *arguments], capture_output=True, text=True, timeout=30.0)
    return done.returncode, done.stdout + done.stderr
