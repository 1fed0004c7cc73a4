"""Of the store in Redis what needs no server: URLs, names, bytes, and what servers' refusals mean."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis._parsers.base import BaseParser
from redis.connection import SSLConnection
from redis.crc import key_slot
from redis.exceptions import ConnectionError, InvalidResponse, TimeoutError  # noqa: A004

from caterwaul.managers.stores.opening import open_store, without_password
from caterwaul.managers.stores.redis_address import parse
from caterwaul.managers.stores.redis_layout import BUCKETS, Layout, space_of, unpacked
from caterwaul.managers.stores.redis_servers import _Cluster, servers_at
from caterwaul.managers.stores.redis_trouble import explained, unfit
from caterwaul.managers.stores.store import Save, Stored, revision_of
from caterwaul.membership.errors import LocalError

keys = st.binary(min_size=16, max_size=16)


@pytest.mark.parametrize(
    ("url", "kind", "hosts", "service", "options"),
    [
        ("redis://shop", "server", [("shop", 6379)], "", {}),
        ("redis://u:p%40%2F@[::1]:7000/3", "server", [("::1", 7000)], "", {"username": "u", "password": "p@/", "db": 3}),
        ("rediss://:p@shop:1?ssl_ca_certs=/ca.pem", "server", [("shop", 1)], "", {"password": "p", "ssl": True, "ssl_ca_certs": "/ca.pem"}),
        ("rediss://shop?ssl_check_hostname=no", "server", [("shop", 6379)], "", {"ssl": True, "ssl_check_hostname": False}),
        ("unix:///run/redis.sock?db=2", "unix", [], "", {"path": "/run/redis.sock", "db": 2}),
        ("unix://u:p@/run/redis.sock", "unix", [], "", {"path": "/run/redis.sock", "username": "u", "password": "p"}),
        ("redis+sentinel://u:p@a:1,b/mine/1", "sentinel", [("a", 1), ("b", 26379)], "mine", {"username": "u", "password": "p", "db": 1}),
        ("redis+cluster://a,[fe80::1]:2,b:3", "cluster", [("a", 6379), ("fe80::1", 2), ("b", 3)], "", {}),
        ("rediss+cluster://a", "cluster", [("a", 6379)], "", {"ssl": True}),
    ],
)
def test_what_a_url_says(url: str, kind: str, hosts: list[tuple[str, int]], service: str, options: dict[str, Any]) -> None:
    found = parse(url)
    assert (found.kind, list(found.hosts), found.service, found.options) == (kind, hosts, service, options)
    assert open_store(url, "shop").name == without_password(url)
    assert open_store(url, "shop").shared is (kind != "unix")


def test_sentinels_have_passwords_of_their_own() -> None:
    found = parse("rediss+sentinel://u:p@a:1/mine?sentinel_username=s&sentinel_password=t%26&ssl_ca_certs=c")
    assert found.sentinel_options == {"username": "s", "password": "t&", "ssl": True, "ssl_ca_certs": "c"}


@pytest.mark.parametrize("url", ["rediss://a", "rediss+sentinel://a/mine", "rediss+cluster://a"])
def test_tls_is_for_every_connection(url: str) -> None:
    """Also to the Sentinels. Nobody answers in this test."""
    made: list[bool] = []
    address = parse(f"{url}?ssl_ca_certs=/ca.pem")
    servers = servers_at(address, 1.0)
    pool = servers._pool(("a", 1)) if isinstance(servers, _Cluster) else servers._pool  # type: ignore[attr-defined]
    made.append(issubclass(pool.connection_class, SSLConnection) and pool.connection_kwargs["ssl_ca_certs"] == "/ca.pem")
    if address.kind == "sentinel":
        made += [issubclass(one.connection_pool.connection_class, SSLConnection) for one in servers._sentinel.sentinels]  # type: ignore[attr-defined]
    assert all(made)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://", "names no host"),
        ("redis://a,b", "several hosts: redis+sentinel:// or redis+cluster://"),
        ("redis://a/one", "'one' is no database's number"),
        ("redis://a/1/2", "'1/2' is no database's number"),
        ("redis://a:port", "'a:port' is no host and port"),
        ("redis://a:0", "'a:0' is no host and port"),
        ("redis://a?socket_timeout=5", "does not take socket_timeout"),
        ("redis://a?ssl_ca_certs=x", "does not take ssl_ca_certs"),
        ("unix://run/redis.sock", "three slashes"),
        ("unix://", "no socket"),
        ("redis+sentinel://a:1", "redis+sentinel://HOST:PORT/SERVICE"),
        ("redis+cluster://a/1", "only database 0"),
        ("redis://[::1", "neither a name nor an address"),
        ("redis://:qz/zq@a", "%2F"),
        ("redis://:qz#zq@a", "%23"),
    ],
)
def test_a_url_that_says_nothing_sensible_is_refused_and_shows_no_password(url: str, text: str) -> None:
    with pytest.raises(LocalError) as refused:
        open_store(url, "shop")
    assert text in str(refused.value)
    assert f"store {without_password(url)}: " in str(refused.value)
    assert "qz" not in str(refused.value)
    assert "zq" not in str(refused.value)


def test_an_old_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redis.__version__", "5.2.1")
    with pytest.raises(LocalError, match=r"store redis://a: redis-py 5\.2\.1 is installed, and 8\.1 or newer needed: pip install 'caterwaul\[redis\]'"):
        open_store("redis://a", "shop")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://u:secret@a:1/2", "redis://u:***@a:1/2"),
        ("redis://:secret@a", "redis://:***@a"),
        ("redis://:se/cret@a", "redis://:***@a"),
        ("redis://:se@cret@a", "redis://:***@a"),
        ("redis://u@a:1", "redis://u@a:1"),
        ("redis+sentinel://a:1,b:2/x?sentinel_password=secret&ssl_keyfile=k", "redis+sentinel://a:1,b:2/x?sentinel_password=***&ssl_keyfile=k"),
        ("postgresql://u:secret@/db?host=/run", "postgresql://u:***@/db?host=/run"),
        ("file:///var/lib/a:b@c", "file:///var/lib/a:b@c"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


@given(space=st.text(), key=keys)
def test_what_a_script_touches_is_in_one_place_of_a_cluster_whatever_the_space_is_called(space: str, key: bytes) -> None:
    layout, bucket = Layout(space), Layout.bucket(key)
    commands = [
        layout.save(bucket, [Save(key, b"x", 1)], 0), layout.delete(bucket, {key: b""}), layout.quarantine(bucket, {key: b""}), layout.present(bucket, [key]),
    ]  # fmt: skip
    names = {name for command in commands for name in command.words[3 : 3 + int(command.words[2])]} | {layout.load(key).name, layout.page(bucket, b"", 1).name}
    assert all(isinstance(name, bytes) for name in names)
    assert len({key_slot(name) for name in names if isinstance(name, bytes)}) == 1
    assert {space_of(name) for name in names if isinstance(name, bytes) and name.endswith(b"}:keys")} == {space}


@given(st.lists(keys))
def test_buckets_in_order_are_keys_in_order(some: list[bytes]) -> None:
    assert sorted(some) == sorted(some, key=lambda key: (Layout.bucket(key), key))
    assert all(0 <= Layout.bucket(key) < BUCKETS for key in some)


@pytest.mark.parametrize("name", [b"caterwaul:{a:00}:due", b"caterwaul:{a:00}:keys2", b"caterwaul:a:00:keys", b"other:{a:00}:keys", b""])
def test_other_names_are_no_spaces(name: bytes) -> None:
    assert space_of(name) is None


@given(data=st.binary(), until_ms=st.integers(-1, 1 << 52), at=st.integers(0, 40), byte=st.integers(1, 255))
def test_bytes_that_are_not_what_was_saved_are_noticed(data: bytes, until_ms: int, at: int, byte: int) -> None:
    item = Layout("shop").save(0, [Save(bytes(16), data, until_ms)], 0).words[-1]
    assert isinstance(item, bytes)
    assert unpacked(item) == Stored(data, until_ms, revision_of(data))
    assert unpacked(item[:at]) in (None, unpacked(item))
    if at < len(item) and not 16 <= at < 24:  # the moment at which it expires is the server's, too
        assert unpacked(item[:at] + bytes([item[at] ^ byte]) + item[at + 1 :]) is None


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'. script: 1f, on @user_script:9.", "full"),
        ("ERR Error running script (call to f_1f): @user_script:9: @user_script: 9: -OOM command not allowed when used memory > 'maxmemory'.", "full"),
        ("READONLY You can't write against a read only replica. script: 1f", "is a replica"),
        ("LOADING Redis is loading the dataset in memory", "still loading"),
        ("NOAUTH Authentication required.", "wants a password"),
        ("WRONGPASS invalid username-password pair or user is disabled.", "does not know this user"),
        ("NOPERM User shop has no permissions to run the 'evalsha' command", "ACL"),
        ("CLUSTERDOWN The cluster is down", "cluster is down"),
        ("BUSY Redis is busy running a script.", "somebody's script"),
        ("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.", "cannot save to its disk"),
        ("NOREPLICAS Not enough good replicas to write.", "min-replicas-to-write"),
        ("TRYAGAIN Multiple keys request during rehashing of slot", "moving these items"),
        ("ERR unknown command 'EVALSHA'", "unknown command 'EVALSHA'"),
    ],
)
def test_what_a_server_refuses_with_is_said_plainly(said: str, text: str) -> None:
    found = explained(BaseParser.parse_error(said))
    assert text in found
    assert said.partition(" ")[2][:40] in found


def test_what_connections_fail_with_is_said_plainly() -> None:
    assert explained(TimeoutError("Timeout reading from socket")) == "it does not answer (Timeout reading from socket)"
    assert explained(ConnectionError("Error 111 connecting to a:1. Connection refused.")) == "Error 111 connecting to a:1. Connection refused."
    assert explained(InvalidResponse("Protocol Error: b'H'")) == "what answers there is no Redis"


@pytest.mark.parametrize(
    ("told", "in_cluster", "text"),
    [
        ({"redis_version": "7.0.15", "redis_mode": "standalone", "role": "master"}, False, ""),
        ({"redis_version": "6.2.0", "redis_mode": "cluster", "role": "master"}, True, ""),
        ({"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "9.1.2", "server_mode": "cluster", "role": "master"}, True, ""),
        ({"redis_version": "7.2.4", "server_mode": "sentinel"}, False, "redis+sentinel://HOST:PORT/SERVICE"),
        ({"redis_version": "6.0.16"}, False, "it is Redis 6.0.16; 6.2 or newer is needed, or Valkey"),
        ({"redis_version": "5"}, False, "it is Redis 5; 6.2"),
        ({}, False, "unknown version"),
        ({"redis_version": "7.0.15", "redis_mode": "sentinel"}, False, "redis+sentinel://HOST:PORT/SERVICE"),
        ({"redis_version": "7.0.15", "redis_mode": "cluster"}, False, "redis+cluster://"),
        ({"redis_version": "7.0.15", "redis_mode": "standalone"}, True, "belongs to no Cluster"),
        ({"redis_version": "7.0.15", "redis_mode": "standalone", "role": "slave"}, False, "is a replica"),
    ],
)
def test_servers_that_cannot_keep_items_are_told(told: dict[str, Any], in_cluster: bool, text: str) -> None:
    found = unfit(told, in_cluster)
    assert text in found if text else not found
