"""The command line: what it prints where, and how it ends."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from caterwaul.cluster import asking, cli
from caterwaul.cluster.admin_socket import Running
from caterwaul.cluster.demo.nodes import Layout
from caterwaul.membership.errors import LocalError

MEMBER = {
    "name": "a", "uid": "00112233", "address": "127.0.0.1:4000", "domain": "", "zone": "", "weight": 1, "state": "in sync",
    "lag_bytes": 2048, "me": True, "managers": ["default"], "pid": 7, "http": "127.0.0.1:80",
}  # fmt: skip
OTHER = MEMBER | {"name": "b", "uid": "44556677", "me": False, "state": "degraded", "http": None, "domain": "east", "lag_bytes": 0}


def session(number: int) -> dict[str, Any]:
    return {
        "key": f"{number:032x}"[::-1], "age_s": 10.5, "idle_s": 200.0, "attributes": 3, "bytes": 1500, "primary": "a", "holders": ["a", "b"],
    }  # fmt: skip


class Node:
    """Stands for a running node: answers from memory, and keeps what it was asked."""

    def __init__(self, sessions: int = 0) -> None:
        self.sessions = [session(number) for number in range(sessions)]
        self.asked: list[tuple[Path, str]] = []

    def ask(self, path: Path, target: str, method: str = "GET", timeout_s: float = 0.0, body: bytes = b"") -> Any:
        self.asked.append((path, target))
        if target == "/members":
            return {"members": [MEMBER, OTHER]}
        arguments = dict(part.split("=") for part in target.partition("?")[2].split("&"))
        keys = [found["key"] for found in self.sessions]
        start = keys.index(arguments["after"]) + 1 if arguments.get("after") else 0
        return {"count": len(keys), "sessions": self.sessions[start : start + int(arguments["limit"])]}


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    node = Node(1203)
    monkeypatch.setattr(asking, "ask", node.ask)
    monkeypatch.setattr(asking, "find_running", lambda name: [Running(name or "a", 7, Path("/run/a-7.sock"))])
    return node


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments)


class TestConfig:
    def test_it_prints_a_configuration_that_can_be_read_back(self) -> None:
        result = run("config", "--set", "node.name=b")
        assert result.exit_code == 0
        assert tomllib.loads(result.stdout)["node"]["name"] == "b"

    def test_mistakes_go_to_standard_error_one_a_line_and_the_code_is_2(self, tmp_path: Path) -> None:
        path = tmp_path / "node.toml"
        path.write_text("[node]\nnme = 1\n[membership]\ndrop_time_s = 0.2\n")
        result = run("config", "--config", str(path))
        assert result.exit_code == 2
        assert result.stdout == ""
        assert result.stderr.splitlines() == [
            f"{path}: node.nme: no such setting; did you mean name?",
            f"{path}: membership.drop_time_s: 0.2 is shorter than two heartbeats (1.0)",
        ]

    def test_json_has_every_key(self) -> None:
        assert json.loads(run("config", "--json").stdout)["node.weight"]["default"] == 1

    def test_markdown_is_the_reference_of_the_defaults(self) -> None:
        assert run("config", "--markdown").stdout.startswith("# Configuration\n")


class TestMembers:
    def test_a_table_shows_each_member_and_marks_the_one_asked(self, node: Node) -> None:
        lines = run("members").stdout.splitlines()
        assert lines[0].split() == ["NAME", "UID", "ADDRESS", "DOMAIN", "STATE", "LAG", "WEIGHT", "HTTP"]
        assert lines[1].split() == ["*", "a", "00112233", "127.0.0.1:4000", "-", "in", "sync", "2.0", "KiB", "1", "127.0.0.1:80"]
        assert lines[2].split() == ["b", "44556677", "127.0.0.1:4000", "east", "degraded", "0", "B", "1", "-"]

    def test_json_is_what_the_node_said(self, node: Node) -> None:
        assert json.loads(run("members", "--json").stdout) == [MEMBER, OTHER]

    def test_the_socket_may_be_named(self, node: Node) -> None:
        run("members", "--socket", "/x.sock")
        assert node.asked == [(Path("/x.sock"), "/members")]

    def test_a_configuration_file_names_the_node(self, node: Node, tmp_path: Path) -> None:
        path = tmp_path / "node.toml"
        path.write_text('[admin]\nsocket = "/y.sock"\n')
        run("members", "--config", str(path))
        assert node.asked == [(Path("/y.sock"), "/members")]

    def test_without_a_node_it_says_how_to_start_one(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(asking, "find_running", lambda name: [])
        result = run("members")
        assert result.exit_code == 1
        assert result.stderr.startswith("caterwaul: no node of this user is running on this machine; start one with `caterwaul node`")

    def test_of_several_nodes_one_has_to_be_chosen(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(asking, "find_running", lambda name: [Running(n, 7, Path(f"/{n}.sock")) for n in "ab"])
        result = run("members")
        assert result.exit_code == 1
        assert "--socket /a.sock   (a, process 7)" in result.stderr
        assert "--socket /b.sock   (b, process 7)" in result.stderr

    def test_a_node_without_a_socket_cannot_be_asked(self, node: Node, tmp_path: Path) -> None:
        path = tmp_path / "node.toml"
        path.write_text('[admin]\nsocket = ""\n')
        result = run("members", "--config", str(path))
        assert result.exit_code == 1
        assert "cannot be asked" in result.stderr

    def test_what_goes_wrong_is_one_line(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        def nobody(path: Path, *asked: object) -> None:
            raise LocalError(f"no node is running at {path}")

        monkeypatch.setattr(asking, "ask", nobody)
        result = run("members", "--socket", "/x.sock")
        assert (result.exit_code, result.stderr) == (1, "caterwaul: no node is running at /x.sock\n")


class TestSessions:
    def test_only_the_beginning_of_a_key_is_shown(self, node: Node) -> None:
        result = run("sessions", "--limit", "2")
        assert result.stdout.splitlines()[1].split() == ["00000000", "10.5", "s", "3", "min", "3", "1.5", "KiB", "a", "a,b"]
        assert node.sessions[0]["key"] not in result.stdout
        assert "2 of 1203 sessions; --limit shows more" in result.stderr

    def test_many_sessions_are_asked_for_in_pages(self, node: Node) -> None:
        found = json.loads(run("sessions", "--limit", "1201", "--json").stdout)
        assert (found["count"], len(found["sessions"])) == (1203, 1201)
        assert [target.partition("limit=")[2].partition("&")[0] for _, target in node.asked] == ["0", "500", "500", "201"]

    def test_the_number_alone_can_be_had(self, node: Node) -> None:
        assert run("sessions", "--count").stdout == "1203\n"
        assert json.loads(run("sessions", "--count", "--json").stdout) == {"count": 1203}


class TestWhole:
    def test_every_command_has_a_help_text(self) -> None:
        for name, command in cli.main.commands.items():
            result = run(name, "--help")
            assert result.exit_code == 0
            assert len((command.help or "").split(".")[0]) > 20, name

    @pytest.mark.parametrize("arguments", [["nonsense"], ["members", "--nonsense"], ["sessions", "--limit", "0"], ["demo", "--nodes", "1"]])
    def test_wrong_use_ends_with_2(self, arguments: list[str]) -> None:
        assert run(*arguments).exit_code == 2

    def test_the_version_is_that_of_the_package(self) -> None:
        assert run("--version").stdout.startswith("caterwaul 0.")

    def test_the_demo_gets_what_was_asked_for_and_decides_the_exit_code(self, monkeypatch: pytest.MonkeyPatch) -> None:
        got: list[Any] = []

        def started(*arguments: Any) -> int:
            got.append(arguments)
            return 1

        monkeypatch.setattr(cli, "run_demo", started)
        monkeypatch.setattr(cli, "run_check", started)
        assert run("demo", "--nodes", "4", "--port", "0").exit_code == 1
        assert run("demo", "--check", "--json").exit_code == 1
        assert run("demo", "--manager", "backup", "--backups", "2", "--port", "0").exit_code == 1
        assert run("demo", "--manager", "partitioned", "--data", "4", "--web", "3", "--check").exit_code == 1
        assert run("demo", "--data", "4").exit_code == 2
        assert got == [
            (Layout(4), 0, None), (Layout(), 200, 10_000, None, True, False, False), (Layout(manager="backup"), 0, None),
            (Layout(3, 4, 3, "partitioned"), 200, 10_000, None, False, False, False),
        ]  # fmt: skip
