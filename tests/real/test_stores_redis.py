"""The store in Redis against real servers that are killed, stopped, full, busy, cut off, promoted and taken over. What every store does is in `tests/contract/test_stores.py`."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from redis.exceptions import RedisError

from caterwaul.cluster.security.authority import CertificateAuthority
from caterwaul.cluster.security.certificates import AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE
from caterwaul.managers.stores.opening import without_password
from caterwaul.managers.stores.redis import RedisStore
from caterwaul.managers.stores.store import Save, StoreError

from .processes import free_port, until
from .redis_processes import RedisProcess, cluster, sentinel, what_is_missing
from .wire import Wire

pytestmark = pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing())

FAR_MS = 4_000_000_000_000
KEYS = [bytes([number]) + b"k" * 15 for number in range(0, 256, 2)]  # some in each bucket
KEY = KEYS[77]
SHORT_S = 0.5  # for servers that hang
SOON_S = 3.0  # a timeout or three on a busy machine, and not ten
AGAIN_S = 8.0  # within that a failover is over


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    """Keeps what it is told."""
    with RedisProcess(tmp_path_factory.mktemp("redis"), "--appendonly", "yes", "--appendfsync", "no") as server:
        yield server


@pytest.fixture(autouse=True)
def _empty(request: pytest.FixtureRequest) -> None:
    if "server" in request.fixturenames:
        request.getfixturevalue("server").ask("FLUSHALL")


def at(url: str, timeout_s: float = 2.0, space: str = "shop") -> RedisStore:
    return RedisStore(url, space, timeout_s, without_password(url))


@contextmanager
def opened(url: str, timeout_s: float = 2.0, space: str = "shop") -> Iterator[RedisStore]:
    store = at(url, timeout_s, space)
    try:
        store.open()
        yield store
    finally:
        store.close()


def saved(store: RedisStore, data: bytes = b"x", keys: list[bytes] = KEYS, until_ms: int = FAR_MS) -> dict[bytes, bytes]:
    found = store.save_many([Save(key, data, until_ms) for key in keys])
    assert set(found) == set(keys)
    return found


def data_of(store: RedisStore, keys: list[bytes] = KEYS) -> set[bytes]:
    found = store.load(keys)
    assert set(found) == set(keys)
    return {item.data for item in found.values()}


def listed(server: RedisProcess) -> set[int]:
    """How many keys the lists of all buckets have together, of each kind."""
    with server.client() as client:
        return {sum(client.zcard(name) for name in client.scan_iter(f"caterwaul:*:{kind}")) for kind in ("keys", "due")}


def refused(call: Callable[[], object], *texts: str) -> float:
    """It is a StoreError that says this, with no password in it. How long it took."""
    began = time.monotonic()
    with pytest.raises(StoreError) as caught:
        call()
    for text in texts:
        assert text in str(caught.value)
    assert "secret" not in str(caught.value)
    return time.monotonic() - began


def again(call: Callable[[], object]) -> None:
    """It works within the time of a failover."""

    def works() -> bool:
        try:
            call()
        except StoreError:
            return False
        return True

    until(works, AGAIN_S, "the store works again")


# -- one server


def test_a_password_is_asked_for_and_shown_nowhere(tmp_path: Path) -> None:
    with RedisProcess(tmp_path, password="secret") as server:
        place = f"127.0.0.1:{server.port}"
        with opened(f"redis://:secret@{place}") as store, opened(f"redis://default:secret@{place}") as other:
            saved(store)
            assert data_of(other) == {b"x"}
            assert (store.name, other.name) == (f"redis://:***@{place}", f"redis://default:***@{place}")
        for url, text in [(f"redis://{place}", "wants a password"), (f"redis://:secret2@{place}", "does not know this user and password")]:
            refused(at(url).open, text)


def test_a_socket_of_this_machine_and_its_databases(server: RedisProcess) -> None:
    with opened(f"unix://{server.socket}") as store, opened(f"unix://{server.socket}?db=3") as other, opened(server.url + "/3") as same:
        saved(store)
        assert other.keys() == []
        saved(other, b"y")
        assert data_of(store) == {b"x"}
        assert data_of(same) == {b"y"}
        assert (store.shared, same.shared) == (False, True)


def test_over_tls_both_sides_show_certificates(tmp_path: Path) -> None:
    authority = CertificateAuthority.init(tmp_path / "ca", "shop")
    for name in ("server", "store"):
        authority.issue(name, tmp_path / name, 1)
    at_server, at_store, port = tmp_path / "server", tmp_path / "store", free_port()
    files = ("--tls-cert-file", at_server / CERTIFICATE_FILE, "--tls-key-file", at_server / KEY_FILE, "--tls-ca-cert-file", at_server / AUTHORITY_FILE)
    with RedisProcess(tmp_path / "redis", "--tls-port", str(port), *map(str, files), password="secret"):
        trusting = f"rediss://:secret@127.0.0.1:{port}?ssl_ca_certs={at_store / AUTHORITY_FILE}"
        own = f"&ssl_certfile={at_store / CERTIFICATE_FILE}&ssl_keyfile={at_store / KEY_FILE}"
        with opened(f"{trusting}{own}&ssl_check_hostname=no") as store:
            saved(store)
            assert data_of(store) == {b"x"}
        for url, text in [
            (f"{trusting}&ssl_check_hostname=no", ""),
            (trusting + own, "CERTIFICATE_VERIFY_FAILED"),
            (f"rediss://:secret@127.0.0.1:{port}", "CERTIFICATE_VERIFY_FAILED"),
        ]:
            refused(at(url).open, text)


def test_a_server_that_was_killed_and_came_back_is_used_again(server: RedisProcess) -> None:
    with opened(server.url) as store:
        saved(store)
        server.kill()
        try:
            took = [refused(call, store.name, "onnect") for call in (lambda: store.load(KEYS), store.keys, store.spaces, store.clear, store.open)]
            assert max(took) < 1
        finally:
            server.start()
        assert data_of(store) == {b"x"}
        assert store.keys() == KEYS


def test_a_restart_between_two_calls_is_not_noticed(server: RedisProcess) -> None:
    with opened(server.url) as store:
        revisions = saved(store)
        server.kill()
        server.start()
        assert len(store.save_many([Save(key, b"y", FAR_MS, revisions[key]) for key in KEYS])) == len(KEYS)  # its scripts are gone as well
        server.kill()
        server.start()
        assert data_of(store) == {b"y"}


def test_a_server_that_hangs_costs_the_timeout_and_no_answer_is_taken_for_anothers(server: RedisProcess) -> None:
    with opened(server.url, SHORT_S) as store:
        revisions = saved(store)
        with server.paused():
            assert refused(lambda: store.save_many([Save(KEY, b"y", FAR_MS, revisions[KEY])]), "does not answer") < SOON_S
            assert refused(lambda: store.load(KEYS), "does not answer") < SOON_S
        again(lambda: store.load([KEY]))
        until(lambda: store.load([KEY])[KEY].data == b"y", what="the save that nobody confirmed")  # it was in the server's queue
        assert data_of(store, [key for key in KEYS if key != KEY]) == {b"x"}


def test_more_threads_than_connections_wait_no_longer_for_a_server_that_hangs(server: RedisProcess) -> None:
    with opened(server.url, SHORT_S) as store, ThreadPoolExecutor(40) as threads:
        saved(store)
        with server.paused():
            began = time.monotonic()
            calls = [threads.submit(refused, lambda: store.load(KEYS)) for _ in range(40)]
            assert max(call.result() for call in calls) < SOON_S
            assert time.monotonic() - began < SOON_S
        assert {b"x"} == data_of(store)
        with server.client() as client:
            assert sum(one["name"] == "caterwaul" for one in client.client_list()) <= 16


@pytest.mark.parametrize("accepts", [True, False], ids=["that says nothing", "that takes no connection"])
def test_a_black_hole_costs_the_timeout(accepts: bool) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16 if accepts else 0)
        port = listening.getsockname()[1]
        full = [socket.socket() for _ in range(0 if accepts else 3)]
        for one in full:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))  # the queue is full with these: the kernel drops what comes
        for url in (f"redis://127.0.0.1:{port}", f"redis+sentinel://127.0.0.1:{port}/mine", f"redis+cluster://127.0.0.1:{port}"):
            store = at(url, SHORT_S)
            for call in (store.open, store.clear) if "+" not in url else (store.keys,):
                assert refused(call, store.name) < SOON_S
            store.close()
        for one in full:
            one.close()


def test_a_save_whose_answer_was_lost_was_saved(server: RedisProcess) -> None:
    with Wire(server.port) as wire, opened(f"redis://127.0.0.1:{wire.port}", SHORT_S) as store:
        revisions = saved(store)
        wire.cut_answers(1)
        later = store.save_many([Save(key, b"y", FAR_MS, revisions[key]) for key in KEYS])
        assert set(later) == set(KEYS)
        assert wire.cuts == 0
        wire.cut_answers(1)
        assert store.save_many([Save(key, b"z", FAR_MS, revisions[key]) for key in KEYS]) == {}  # what they replace is long gone
        wire.cut_answers(2)
        refused(lambda: store.save_many([Save(KEY, b"z", FAR_MS, later[KEY])]), store.name)
        assert data_of(store, [KEY]) == {b"z"}


def test_an_answer_that_never_comes_is_asked_for_once(server: RedisProcess) -> None:
    with Wire(server.port) as wire, opened(f"redis://127.0.0.1:{wire.port}", SHORT_S) as store:
        revisions = saved(store)
        wire.swallow_answers(True)
        assert refused(lambda: store.save_many([Save(KEY, b"y", FAR_MS, revisions[KEY])]), "does not answer") < SOON_S
        wire.swallow_answers(False)
        assert data_of(store, [KEY]) == {b"y"}


def test_a_full_server_refuses_and_breaks_nothing(tmp_path: Path) -> None:
    with RedisProcess(tmp_path, "--maxmemory", "8mb", "--maxmemory-policy", "noeviction") as server, opened(server.url) as store:
        revisions = saved(store, b"x" * 1000)
        refused(lambda: _fill(store), "full (maxmemory)")  # in the middle of a batch: each bucket has all of its part, or nothing
        pages, after = [], b""
        while page := store.keys(after):
            pages += page
            after = page[-1]
        assert {len(pages)} == listed(server)
        server.ask("CONFIG", "SET", "maxmemory", "1mb")
        refused(lambda: store.save_many([Save(key, b"z", FAR_MS, revisions[key]) for key in KEYS]), "full (maxmemory)")
        assert data_of(store) == {b"x" * 1000}
        store.delete(revisions)  # which makes room
        assert store.load(KEYS) == {}
        server.ask("CONFIG", "SET", "maxmemory", "0")
        saved(store, b"z")


def _fill(store: RedisStore) -> None:
    for number in range(1000):
        store.save_many([Save(bytes([10 * one]) + number.to_bytes(15), b"y" * 3000, FAR_MS) for one in range(20)])


def test_what_expires_goes_from_the_server_and_from_its_lists(server: RedisProcess) -> None:
    with opened(server.url) as store:
        saved(store, until_ms=_soon_ms())
        until(lambda: not store.load(KEYS), what="the items expire")
        assert store.spaces() == []
        assert listed(server) == {0}
        saved(store, until_ms=_soon_ms())
        until(lambda: not store.load(KEYS), what="the items expire")
        assert listed(server) == {len(KEYS)}
        saved(store, b"y", [bytes([number]) + b"z" * 15 for number in range(0, 256, 4)])  # who saves cleans up, two for one
        assert listed(server) == {64}
        assert len(store.keys()) == 64


@pytest.mark.parametrize("offset_s", [-86_400, 86_400])
def test_a_clock_that_is_a_day_off_keeps_items_as_long_as_any(server: RedisProcess, offset_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, so that the server's is by ours."""
    monkeypatch.setattr("caterwaul.managers.stores.redis.time", SimpleNamespace(time=lambda: time.time() + offset_s))
    with opened(server.url) as store:
        until_ms = _soon_ms() + offset_s * 1000 + 60_000
        saved(store, until_ms=until_ms)
        assert {item.until_ms for item in store.load(KEYS).values()} == {until_ms}
        assert 0 < server.ask("PTTL", f"caterwaul:{{shop:{KEY[0] >> 2:02x}}}:{KEY.hex()}") <= 60_500
        saved(store, keys=[b"y" * 16], until_ms=_soon_ms() + offset_s * 1000)
        assert listed(server) == {len(KEYS) + 1}
        until(lambda: store.keys() == KEYS, what="one item expires")


def _soon_ms() -> int:
    return int(time.time() * 1000) + 500


def test_what_somebody_else_removed_is_not_listed(server: RedisProcess) -> None:
    with opened(server.url) as store:
        saved(store)
        server.ask("DEL", f"caterwaul:{{shop:{KEY[0] >> 2:02x}}}:{KEY.hex()}")
        assert KEY not in store.load(KEYS)
        assert store.keys() == [key for key in KEYS if key != KEY]
        assert listed(server) == {len(KEYS) - 1}
        assert store.keys(KEYS[76], 1) == [KEYS[78]]


@pytest.mark.parametrize("change", ["APPEND", "SET", "LPUSH"])
def test_what_was_damaged_is_put_where_a_person_finds_it(server: RedisProcess, change: str) -> None:
    name, aside = (f"caterwaul:{{shop:{KEY[0] >> 2:02x}}}:{part}{KEY.hex()}" for part in ("", "bad:"))
    with opened(server.url) as store:
        saved(store)
        if change == "LPUSH":
            server.ask("DEL", name)
        server.ask(change, name, "damage")
        assert KEY not in store.load(KEYS)
        assert store.damaged == 1
        assert store.keys() == [key for key in KEYS if key != KEY]
        assert server.ask("EXISTS", aside) == 1
        assert 0 < server.ask("PTTL", aside) <= 7 * 86_400_000
        saved(store, b"y", [KEY])
        assert data_of(store, [KEY]) == {b"y"}


def test_a_server_that_forgot_its_scripts_is_told_them_again(server: RedisProcess) -> None:
    with opened(server.url) as store:
        saved(store)
        server.ask("SCRIPT", "FLUSH")
        assert store.save_many([Save(KEY, b"y", FAR_MS)]) == {}
        assert store.keys() == KEYS


def test_a_busy_server_says_so(tmp_path: Path) -> None:
    with RedisProcess(tmp_path, "--lua-time-limit", "10") as server, opened(server.url, SHORT_S) as store, ThreadPoolExecutor(1) as threads:
        saved(store)
        endless = threads.submit(lambda: server.ask("EVAL", "while true do end", 0))

        def busy() -> bool:
            with pytest.raises(StoreError) as caught:
                store.load([KEY])
            return "somebody's script" in str(caught.value)

        try:
            until(lambda: _hangs(server), what="the script hangs")
            until(busy, what="BUSY")
        finally:
            until(lambda: _works(lambda: server.ask("SCRIPT", "KILL")), what="the end of the script")
        assert isinstance(endless.exception(), RedisError)
        assert data_of(store) == {b"x"}


def test_a_server_that_is_still_loading_says_so(tmp_path: Path) -> None:
    slowly = ("--key-load-delay", "6000", "--loading-process-events-interval-bytes", "1024")  # microseconds
    with RedisProcess(tmp_path, "--appendonly", "yes", "--appendfsync", "no", *slowly) as server, opened(server.url) as store:
        saved(store, b"x" * 1000)
        server.ask("BGREWRITEAOF")
        until(lambda: not server.ask("INFO", "persistence")["aof_rewrite_in_progress"], what="all in one file")
        server.kill()
        server.start(wait=False)
        until(lambda: "still loading" in _refusal(store), what="LOADING")
        server.wait()
        assert data_of(store) == {b"x" * 1000}


def _refusal(store: RedisStore) -> str:
    try:
        store.load(KEYS)
    except StoreError as error:
        return str(error)
    return ""


def _hangs(server: RedisProcess) -> bool:
    return not _works(lambda: server.ask("GET", "x"))


def _works(call: Callable[[], object]) -> bool:
    try:
        call()
    except RedisError:
        return False
    return True


def test_a_replica_is_refused_and_used_when_it_is_promoted(tmp_path: Path, server: RedisProcess) -> None:
    with RedisProcess(tmp_path / "replica") as replica, opened(replica.url) as store:
        replica.ask("REPLICAOF", "127.0.0.1", server.port)
        until(lambda: replica.follows(), what="the replica follows")
        refused(lambda: saved(store), "is a replica")
        refused(at(replica.url).open, "is a replica")
        replica.ask("REPLICAOF", "NO", "ONE")
        saved(store)


def test_what_may_forget_says_so(tmp_path: Path, server: RedisProcess) -> None:
    with opened(server.url) as store:
        assert store.warnings == []
    with RedisProcess(tmp_path, "--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru") as forgetful, opened(forgetful.url) as store:
        lru, restart = store.warnings
        assert "maxmemory-policy allkeys-lru drops sessions at 52428800 bytes" in lru
        assert "a restart loses all sessions" in restart
        forgetful.ask("CONFIG", "SET", "save", "3600 1")
        forgetful.ask("CONFIG", "SET", "maxmemory", "0")
        store.open()
        assert store.warnings == []


def test_who_may_only_do_what_the_store_needs_can_use_it(server: RedisProcess) -> None:
    """The ACL of docs/stores.md."""
    needed = "+@connection +eval +evalsha +time +get +getrange +set +exists +rename +unlink +pexpire +zadd +zrange +zrem +scan +info -@dangerous +info".split()  # noqa: SIM905
    server.ask("ACL", "SETUSER", "shop", "reset", "on", ">secret", "~caterwaul:*", *needed)
    with opened(f"redis://shop:secret@127.0.0.1:{server.port}") as store:
        store.quarantine({KEYS[0]: saved(store)[KEYS[0]]})
        assert store.spaces() == ["shop"]
        store.clear()
    server.ask("ACL", "SETUSER", "shop", "-evalsha")
    refused(at(f"redis://shop:secret@127.0.0.1:{server.port}").open, "ACL")


def test_what_is_no_redis_is_said_so(server: RedisProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as threads:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threads.submit(answer)
        refused(at(f"redis://127.0.0.1:{listening.getsockname()[1]}").open, "no Redis")


# -- Sentinel


def test_after_a_failover_the_new_master_is_used_within_seconds(tmp_path: Path) -> None:
    with (
        RedisProcess(tmp_path / "one", password="secret") as one,
        RedisProcess(tmp_path / "two", "--replicaof", f"127.0.0.1 {one.port}", password="secret") as two,
    ):
        until(lambda: two.follows(), what="the replica follows")
        with sentinel(tmp_path / "sentinel", "mine", one) as watching:
            hosts = f"127.0.0.1:{free_port()},127.0.0.1:{watching.port}"  # the first of them is down
            with opened(f"redis+sentinel://:secret@{hosts}/mine") as store:
                revisions = saved(store)
                two.wait_for_all_of(one)
                one.kill()
                refused(lambda: store.load(KEYS), store.name)
                again(lambda: store.load([KEY]))
                assert data_of(store) == {b"x"}
                again(lambda: store.save_many([Save(key, b"y", FAR_MS, revisions[key]) for key in KEYS]))
                assert data_of(store) == {b"y"}
                one.start()  # as a master that nobody follows, until the Sentinel makes it a replica
                until(lambda: one.follows(), what="the old master follows")
                assert data_of(store) == {b"y"}
            refused(at(f"redis+sentinel://:secret@{hosts}/other").open, "other")
            refused(at(f"redis://127.0.0.1:{watching.port}").open, "redis+sentinel://HOST:PORT/SERVICE")


def test_a_master_that_is_made_a_replica_is_left(tmp_path: Path) -> None:
    """Asked to, not dead: its connections answer READONLY, or are closed."""
    with RedisProcess(tmp_path / "one") as one, RedisProcess(tmp_path / "two", "--replicaof", f"127.0.0.1 {one.port}") as two:
        until(lambda: two.follows(), what="the replica follows")
        with sentinel(tmp_path / "sentinel", "mine", one) as watching, opened(f"redis+sentinel://127.0.0.1:{watching.port}/mine") as store:
            saved(store)
            until(lambda: _works(lambda: watching.ask("SENTINEL", "FAILOVER", "mine")), what="the Sentinel finds the replica good")
            until(lambda: one.follows(), what="the old master follows")
            again(lambda: store.clear())
            saved(store, b"y")
            assert data_of(store) == {b"y"}


# -- Cluster


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisProcess]]:
    with cluster(tmp_path_factory.mktemp("cluster"), replicas=1) as nodes:
        yield nodes


def of_cluster(*nodes: RedisProcess) -> str:
    return f"redis+cluster://{','.join(f'127.0.0.1:{node.port}' for node in nodes)}"


def test_items_lie_on_all_masters_and_any_node_says_where(nodes: list[RedisProcess]) -> None:
    for node in nodes:
        with opened(of_cluster(node)) as store:
            saved(store)
            assert store.keys() == KEYS
            assert store.spaces() == ["shop"]
            assert all(one.ask("DBSIZE") > 20 for one in nodes[:3])
            store.clear()
            assert store.keys() == []
    refused(at(nodes[0].url).open, "redis+cluster://HOST:PORT")


def test_items_are_found_while_and_after_their_slot_moves(nodes: list[RedisProcess]) -> None:
    first, second = nodes[0], nodes[1]
    with opened(of_cluster(*nodes)) as store:
        revisions = saved(store)
        slot = first.ask("CLUSTER", "KEYSLOT", next(name for name in first.ask("KEYS", "*") if b":keys" in name))
        names = first.ask("CLUSTER", "GETKEYSINSLOT", slot, 100)
        moving = [bytes.fromhex(name.rpartition(b":")[2].decode()) for name in names if not name.endswith((b"keys", b"due"))]
        assert moving
        second.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", first.ask("CLUSTER", "MYID"))
        first.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", second.ask("CLUSTER", "MYID"))
        first.ask("MIGRATE", "127.0.0.1", second.port, "", 0, 5000, "KEYS", next(name for name in names if moving[0].hex().encode() in name))
        assert data_of(store) == {b"x"}  # one of them is there already: ASK
        refused(lambda: store.save_many([Save(moving[0], b"y", FAR_MS, revisions[moving[0]])]), "is moving these items")  # its list is still here
        first.ask("MIGRATE", "127.0.0.1", second.port, "", 0, 5000, "KEYS", *first.ask("CLUSTER", "GETKEYSINSLOT", slot, 100))
        assert set(store.save_many([Save(moving[0], b"y", FAR_MS, revisions[moving[0]])])) == {moving[0]}
        for node in nodes[:3]:
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", second.ask("CLUSTER", "MYID"))
        assert data_of(store, [moving[0]]) == {b"y"}
        assert data_of(store, [key for key in KEYS if key != moving[0]]) == {b"x"}
        assert store.keys() == KEYS
        store.clear()


@pytest.mark.parametrize("fate", [RedisProcess.down, RedisProcess.paused], ids=["was killed", "hangs"])
def test_a_master_of_a_cluster_is_replaced_by_its_replica_within_seconds(
    nodes: list[RedisProcess], fate: Callable[[RedisProcess], AbstractContextManager[None]]
) -> None:
    replica, master = sorted((nodes[0], nodes[3]), key=RedisProcess.follows, reverse=True)
    with opened(of_cluster(master), SHORT_S) as store, opened(of_cluster(master), SHORT_S) as idle:  # no other node is named
        store.clear()
        revisions = saved(store)
        assert data_of(idle) == {b"x"}
        replica.wait_for_all_of(master)
        with fate(master):
            refused(lambda: store.load(KEYS), store.name)
            again(lambda: store.load(KEYS))
            assert data_of(store) == {b"x"}
            again(lambda: store.save_many([Save(key, b"y", FAR_MS, revisions[key]) for key in KEYS]))
            assert data_of(store) == {b"y"}
            assert store.keys() == KEYS
            assert store.spaces() == ["shop"]
            if fate is RedisProcess.down:
                assert data_of(idle) == {b"y"}  # it notices now, and asks who there is
        until(lambda: master.follows(), what="the old master follows")
        assert data_of(store) == {b"y"}


def test_a_cluster_that_is_down_says_so(nodes: list[RedisProcess]) -> None:
    """One master hangs, and has no replica."""
    with opened(of_cluster(*nodes), SHORT_S) as store:
        store.clear()
        saved(store)
        with nodes[2].paused():
            assert refused(lambda: store.load(KEYS), store.name) < SOON_S
            until(lambda: b"cluster_state:fail" in nodes[1].ask("CLUSTER", "INFO"), what="the cluster is down")
            assert refused(lambda: store.load(KEYS), store.name) < SOON_S
            here = next(key for key in KEYS if nodes[1].ask("CLUSTER", "COUNTKEYSINSLOT", _slot(nodes[1], key)))
            refused(lambda: store.load([here]), "cluster is down")
        again(lambda: store.load(KEYS))
        assert data_of(store) == {b"x"}


def _slot(node: RedisProcess, key: bytes) -> int:
    found: int = node.ask("CLUSTER", "KEYSLOT", f"caterwaul:{{shop:{key[0] >> 2:02x}}}:x")
    return found
