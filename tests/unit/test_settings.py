"""Configuration: what is accepted, and what each mistake is answered with."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from caterwaul.cluster.config import SettingsError
from caterwaul.cluster.describe import entries
from caterwaul.cluster.settings import Settings, host_name, load, parse_overrides
from caterwaul.membership.member import require_name


def mistakes(**keywords: Any) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        Settings.of(**keywords)
    return caught.value.lines


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(text, encoding="utf-8")
    return path


class TestAccepted:
    def test_nothing_at_all_is_a_whole_configuration(self) -> None:
        settings = Settings.of()
        assert settings.node.host == "127.0.0.1"
        assert list(settings.managers) == ["default"]
        assert settings.membership.multicast_address == "228.0.0.4"

    def test_an_empty_file_says_the_same_as_no_file(self, tmp_path: Path) -> None:
        from_file = load(written(tmp_path, ""))
        assert from_file.to_tables() == Settings.of().to_tables()

    def test_the_default_name_is_a_legal_one_made_of_the_host_name(self) -> None:
        assert require_name(host_name()) == Settings.of().node.name

    @pytest.mark.parametrize(
        ("host", "name"), [("web-1.example.org", "web-1"), ("a_very_long_host_name_indeed", "a_very_long_host"), ("ä", "node"), ("", "node")]
    )
    def test_a_host_name_is_cut_to_what_a_cookie_may_carry(self, monkeypatch: pytest.MonkeyPatch, host: str, name: str) -> None:
        monkeypatch.setattr("socket.gethostname", lambda: host)
        assert host_name() == name

    def test_tables_and_dotted_names_say_the_same(self) -> None:
        nested = Settings.of(node={"name": "a", "port": 4000}, managers={"shop": {"acks": "one", "cookie": {"http_only": False}}})
        dotted = Settings.of(**{"node.name": "a", "node.port": 4000, "managers.shop.acks": "one", "managers.shop.cookie.http_only": False})
        assert nested == dotted
        assert nested.managers["shop"].acks == "one"
        assert not nested.cookies["shop"].http_only

    def test_a_whole_number_is_a_number(self) -> None:
        drop = Settings.of(**{"membership.drop_time_s": 5}).membership.drop_time_s
        assert (drop, type(drop)) == (5.0, float)

    def test_acks_may_be_written_as_a_number(self) -> None:
        assert Settings.of(**{"managers.default.acks": 2}).managers["default"].acks == "2"

    def test_several_managers_replace_the_default_one(self, tmp_path: Path) -> None:
        settings = load(written(tmp_path, "[managers.shop]\n[managers.admin]\nidle_timeout_s = 60.0\n"))
        assert list(settings.managers) == ["admin", "shop"]
        assert settings.managers["admin"].idle_timeout_s == 60.0

    def test_keywords_replace_what_a_file_says(self, tmp_path: Path) -> None:
        settings = load(written(tmp_path, '[node]\nname = "a"\nport = 4000\n'), **{"node.name": "b"})
        assert (settings.node.name, settings.node.port) == ("b", 4000)

    def test_changing_keys_keeps_all_others(self) -> None:
        settings = Settings.of(node={"name": "a", "zone": "east"})
        changed = settings.changed(node={"name": "b"})
        assert (changed.node.name, changed.node.zone) == ("b", "east")
        assert settings.node.name == "a"

    def test_overrides_of_a_command_line_are_toml_or_else_text(self) -> None:
        found = parse_overrides(["node.port=4000", "node.name=b", "node.insecure=true", 'membership.seeds=["a:1"]', "web.application=m:f"])
        assert found == {"node.port": 4000, "node.name": "b", "node.insecure": True, "membership.seeds": ["a:1"], "web.application": "m:f"}

    def test_a_host_outside_loopback_is_accepted_only_by_saying_so(self) -> None:
        membership = {"discovery": ["static"], "seeds": ["10.0.0.2:4000"]}
        assert Settings.of(node={"host": "10.0.0.1", "insecure": True}, membership=membership).node.host == "10.0.0.1"
        assert Settings.of(node={"host": "10.0.0.1"}, security={"secret_file": "/etc/caterwaul/secret"}).node.host == "10.0.0.1"

    def test_a_list_given_once_is_not_shared_between_configurations(self) -> None:
        assert Settings.of().membership.discovery is not Settings.of().membership.discovery


class TestMistakes:
    def test_every_mistake_has_a_line_of_its_own(self) -> None:
        lines = mistakes(node={"hots": "x", "port": "1"}, mebership={}, membership={"drop_time_s": 0.2})
        assert lines == [
            "mebership: no such table; did you mean membership?",
            "node.hots: no such setting; did you mean host?",
            "node.port: '1' is not a whole number",
            "membership.drop_time_s: 0.2 is shorter than two heartbeats (1.0)",
        ]

    def test_each_line_begins_with_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        written(tmp_path, "[membership]\ndrop_time_s = 0.2\n")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SettingsError) as caught:
            load("node.toml")
        assert caught.value.lines == ["node.toml: membership.drop_time_s: 0.2 is shorter than two heartbeats (1.0)"]

    @pytest.mark.parametrize(
        ("key", "value", "text"),
        [
            ("node.weight", True, "True is not a whole number"),
            ("node.weight", 1.0, "1.0 is not a whole number"),
            ("node.insecure", 1, "1 is not true or false"),
            ("node.name", 7, "7 is not text in quotes"),
            ("membership.seeds", "a:1", "'a:1' is not a list"),
            ("membership.seeds", [1], "1 is not text in quotes"),
            ("membership.drop_time_s", float("nan"), "nan is not a finite number"),
            ("node.port", 65536, "65536 is above the most allowed, 65535"),
            ("node.port", -1, "-1 is below the least allowed, 0"),
            ("membership.discovery", ["multicats"], "'multicats' is none of multicast, static, dns, file; did you mean multicast?"),
            ("node.name", "a b", "node name 'a b': use 1 to 16 letters, digits, '_' or '-' (it becomes the route suffix of cookies)"),
            ("node.host", "localhost", "'localhost' is not an IP address of this machine (names are not resolved here)"),
            ("node.host", "0.0.0.0", "0.0.0.0 cannot be dialled by other members; give the address of one interface"),
            ("node.zone", "x" * 256, f"{'x' * 256!r} is not a label of up to 255 printable characters"),
            ("cluster.name", "", "'' is not a name of 1 to 64 printable characters"),
            ("membership.multicast_address", "10.0.0.1", "'10.0.0.1' is not a multicast address (224.0.0.0 to 239.255.255.255)"),
            ("membership.multicast_interface", "eth0", "'eth0' is not an IP address of this machine"),
            ("membership.seeds", ["a:1"], 'is not used, because discovery does not name "static"'),
            ("channel.reconnect_max_s", 0.1, None),
            ("channel.outbox_max_bytes", 65536, None),
            ("managers.default.acks", "most", "'most' is none of none, one, quorum, all, and no number of members"),
            ("managers.default.idle_timeout_s", 50000.0, "50000 is longer than absolute_timeout_s (43200)"),
            ("managers.default.acks", "²", "'²' is none of none, one, quorum, all, and no number of members"),
            ("admin.socket", "a.sock", "'a.sock' is not an absolute path"),
            ("admin.socket", "/" + "x" * 107, "is longer than 107 bytes, which is what the system takes as the path of a socket"),
            ("managers.default", 3, "3 is not a table of settings"),
        ],
    )
    def test_a_wrong_value_is_named_with_what_is_wrong(self, key: str, value: object, text: str | None) -> None:
        if text is None:  # the least allowed is still a good value
            assert Settings.of(**{key: value})
        else:
            assert mistakes(**{key: value}) == [f"{key}: {text}"]

    def test_a_host_outside_loopback_without_a_key_is_refused_with_the_reason(self) -> None:
        (line,) = mistakes(node={"host": "10.0.0.1"})
        assert line.startswith("node.host: 10.0.0.1 is outside loopback, and this cluster has no secret")

    def test_datagrams_are_never_in_the_clear_outside_loopback(self) -> None:
        (line,) = mistakes(node={"host": "10.0.0.1", "insecure": True})
        assert line.startswith('membership.discovery: names "multicast", which is never in the clear outside loopback')

    def test_who_has_a_key_does_not_talk_in_the_clear(self, monkeypatch: pytest.MonkeyPatch) -> None:
        (line,) = mistakes(node={"insecure": True}, security={"secret_file": "/x"})
        assert line.startswith("node.insecure: is set, and a secret or certificates are given too")
        monkeypatch.setenv("CATERWAUL_SECRET", "x")
        assert mistakes(node={"insecure": True}) == [line]

    def test_a_node_has_one_way_to_know_others(self) -> None:
        (line,) = mistakes(security={"secret_file": "/x", "certificates": "/y"})
        assert line.startswith("security.certificates: is given, and secret_file too")

    def test_a_node_is_in_an_allowed_network_itself(self) -> None:
        (line,) = mistakes(membership={"allowed_networks": ["10.0.0.0/8"]})
        assert line.startswith("membership.allowed_networks: does not hold node.host 127.0.0.1")
        (_, line) = mistakes(membership={"allowed_networks": ["10.0.0.1/8"]})
        assert line.startswith("membership.allowed_networks: '10.0.0.1/8' is not a network such as 10.0.0.0/8")

    def test_a_discovery_needs_its_list(self) -> None:
        assert mistakes(**{"membership.discovery": ["static", "dns", "file"]}) == [
            'membership.seeds: is empty, and discovery "static" needs it',
            'membership.dns_names: is empty, and discovery "dns" needs it',
            'membership.seeds_file: is empty, and discovery "file" needs it',
        ]

    @pytest.mark.parametrize("seed", ["", ":1", "host:", "host:x", "host:70000", "host", "[::1]"])
    def test_a_seed_is_an_address_with_a_port(self, seed: str) -> None:
        lines = mistakes(membership={"discovery": ["static"], "seeds": [seed]})
        assert lines == [f"membership.seeds: {seed!r} is not host:port (the port may be left out only when node.port is set)"]

    @pytest.mark.parametrize("seed", ["host:1", "10.0.0.1:4000", "[::1]:4000"])
    def test_names_and_addresses_of_both_kinds_are_seeds(self, seed: str) -> None:
        assert Settings.of(membership={"discovery": ["static"], "seeds": [seed]}).membership.seeds == [seed]

    def test_with_a_port_of_its_own_a_node_may_leave_out_those_of_its_seeds(self) -> None:
        settings = Settings.of(node={"port": 4000}, membership={"discovery": ["static"], "seeds": ["host", "::1"]})
        assert settings.membership.seeds == ["host", "::1"]

    def test_a_store_is_one_that_is_known_and_shows_no_password(self) -> None:
        assert mistakes(store={"url": "ftp://x"})[0].startswith("store.url: store ftp://x: unknown kind 'ftp'")
        found = mistakes(store={"url": "redis://ada:secret@host/0"})
        assert found == ["store.url: has a password in it: put it into a file of mode 0600, and name that with url_file"]
        assert mistakes(store={"url": "postgresql://host/db?password=secret"}) == found
        assert mistakes(store={"url": "memory:", "url_file": "f"}) == ["store.url_file: is given, and url too: a node has one store"]
        assert mistakes(store={"encrypt": True}) == ["store.encrypt: needs secret_file"]

    def test_sessions_that_live_in_a_store_only_need_one(self) -> None:
        assert mistakes(managers={"shop": {"type": "persistent"}}) == [
            'managers.shop.type: "persistent" keeps sessions in a store and nowhere else: give [store] a url'
        ]
        assert Settings.of(managers={"shop": {"type": "persistent"}}, store={"url": "memory:"}).managers["shop"].type == "persistent"
        found = mistakes(managers={"shop": {"type": "persistent", "expire_on_shutdown": True}}, store={"url": "memory:"})
        assert [line.partition(":")[0] for line in found] == ["managers.shop.expire_on_shutdown"]
        assert mistakes(managers={"shop": {"turns": "wait"}})[0].startswith("managers.shop.turns")

    def test_the_web_table_is_whole_or_empty(self) -> None:
        assert mistakes(web={"listen": "127.0.0.1:80"}) == ["web.application: is missing, and web.listen is given"]
        assert mistakes(web={"application": "m:f"}) == ["web.listen: is missing, and web.application is given"]
        assert mistakes(web={"listen": "localhost", "application": "m", "manager": "x"}) == [
            "web.listen: 'localhost' is not address:port, such as 127.0.0.1:8080",
            "web.application: 'm' is not module:callable",
            "web.manager: there is no table [managers.x]",
        ]

    def test_what_a_browser_would_refuse_is_refused_by_its_key(self) -> None:
        (line,) = mistakes(**{"managers.shop.cookie.secure": False})
        assert line.startswith("managers.shop.cookie.name: __Host-sid needs secure = true")

    @pytest.mark.parametrize("kind", ["managers", "maps"])
    def test_managers_and_maps_have_short_plain_names(self, kind: str) -> None:
        assert mistakes(**{kind: {"a b": {}}}) == [f"{kind}.a b: the name is 1 to 32 letters, digits, '_' or '-'"]
        assert mistakes(**{kind: 3}) == [f"{kind}: 3 is not a table of {kind}, [{kind}.NAME]"]

    def test_mistakes_in_maps_are_named(self) -> None:
        assert mistakes(maps={"prices": {"type": "delta", "acks": "some"}}) == [
            "maps.prices.type: 'delta' is none of replicated, partitioned",
            "maps.prices.acks: 'some' is none of none, one, quorum, all, and no number of members",
        ]

    @pytest.mark.parametrize(("text", "line"), [("[node", "not valid TOML"), ("[node]\nname = 1979-05-27", "is not text in quotes")])
    def test_a_file_that_is_no_configuration_is_one_line(self, tmp_path: Path, text: str, line: str) -> None:
        with pytest.raises(SettingsError) as caught:
            load(written(tmp_path, text))
        assert len(caught.value.lines) == 1
        assert line in caught.value.lines[0]

    def test_a_file_that_cannot_be_read_is_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="cannot be read: No such file or directory"):
            load(tmp_path / "none.toml")
        (tmp_path / "bad.toml").write_bytes(b"\xff")
        with pytest.raises(SettingsError, match="not UTF-8 text"):
            load(tmp_path / "bad.toml")

    def test_an_override_that_is_none_is_refused(self) -> None:
        with pytest.raises(SettingsError, match=r"--set: 'node' is not TABLE.KEY=VALUE"):
            parse_overrides(["node"])

    def test_a_key_inside_a_value_is_refused(self) -> None:
        assert mistakes(**{"node": {"name": "a"}, "node.name.x": 1}) == ["node.name.x: is inside something that is not a table"]


def test_every_table_of_the_settings_is_described() -> None:
    settings = Settings.of()
    described = {entry.name for entry in entries(settings)}
    for table in ("node", "cluster", "membership", "channel", "admin", "web"):
        assert {f"{table}.{field.name}" for field in fields(getattr(settings, table))} <= described
    assert {f"managers.default.{field.name}" for field in fields(settings.managers["default"])} <= described
    assert {f"managers.default.cookie.{field.name}" for field in fields(settings.cookies["default"])} <= described
