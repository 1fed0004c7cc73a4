"""Connections to a Redis or Valkey: who has to be asked for a name, and many commands in one go.

Three shapes. A *server* has everything. Behind *Sentinels* the master of the moment has, which they are asked for at each new connection. In a *Cluster* each master has some of 16384
slots; who has which is asked once, and again when a server says otherwise or cannot be reached. What was asked of the wrong one is asked of the right one: it did nothing.

redis-py's own Cluster client is not used. It repeats what failed ten times, by default and in effect one command after the other, and each of them may take as long as a call may
take in all; here a command that may have been done is repeated by who knows that this is right (`redis.py`). Its connections, pools and Sentinels are.

Nothing of RESP3 is needed, so version 2 is spoken, which proxies know too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from threading import Lock
from time import monotonic, sleep
from typing import Any, NamedTuple, Protocol

import redis
from redis import Redis
from redis.backoff import NoBackoff
from redis.connection import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, ClusterDownError, ConnectionError, MovedError, NoScriptError, RedisError, ResponseError, TimeoutError, TryAgainError  # noqa: A004
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from ...membership.errors import LocalError
from .redis_address import RedisAddress
from .redis_layout import Command

__all__ = ["Servers", "ask", "servers_at"]

_CLIENT_MIN = (8, 1)
_CONNECTIONS_MAX = 64
_HOPS_MAX = 5  # from one server of a Cluster to the next
_MOVING_S = 0.02  # between two attempts while a server moves a slot's items
_ASKING = Command(b"", ("ASKING",))

Host = tuple[str, int]


class Servers(Protocol):
    """`ask`: the answers to commands, in their order; what a server refused is an exception among them. Raises `RedisError` if one cannot be reached, and then nobody knows what was done."""

    def ask(self, commands: Sequence[Command]) -> list[Any]: ...

    def forget(self) -> None:
        """One could not be reached: look again who there is."""

    def masters(self) -> list[Redis]: ...

    def close(self) -> None: ...


def ask(servers: Servers, commands: Sequence[Command]) -> list[Any]:
    """`Servers.ask`, and scripts in full where a server has not seen them since its start."""
    answers = servers.ask(commands)
    unseen = [number for number, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
    if unseen:
        for number, answer in zip(unseen, servers.ask([commands[number].in_full() for number in unseen]), strict=True):
            answers[number] = answer
    return answers


def servers_at(address: RedisAddress, timeout_s: float) -> Servers:
    """Connects to nobody yet. A connection may take half of `timeout_s`, an answer all of it. Raises `LocalError` for an old redis-py."""
    if tuple(map(int, redis.__version__.split(".")[:2])) < _CLIENT_MIN:
        raise LocalError(f"redis-py {redis.__version__} is installed, and {'.'.join(map(str, _CLIENT_MIN))} or newer needed: pip install 'caterwaul[redis]'")
    options: dict[str, Any] = {
        "socket_timeout": timeout_s, "socket_connect_timeout": timeout_s / 2, "retry": Retry(NoBackoff(), 0), "max_connections": _CONNECTIONS_MAX,
        "client_name": "caterwaul", "driver_info": None, "protocol": 2, "health_check_interval": 0,
    }  # fmt: skip
    if address.kind == "cluster":
        return _Cluster(address.hosts, {**options, **address.options})
    if address.kind == "sentinel":
        return _Master(*_watched(address, options, timeout_s))
    if address.kind == "unix":
        return _Master(ConnectionPool(UnixDomainSocketConnection, **options, **address.options))
    host, port = address.hosts[0]
    return _Master(_pool(host, port, {**options, **address.options}))


def _pool(host: str, port: int, options: dict[str, Any]) -> ConnectionPool:
    mine = dict(options)
    kind = SSLConnection if mine.pop("ssl", False) else Connection
    return ConnectionPool(kind, host=host, port=port, **mine)


def _watched(address: RedisAddress, options: dict[str, Any], timeout_s: float) -> tuple[ConnectionPool, Sentinel]:
    each_s = timeout_s / len(address.hosts)  # one after the other is asked
    talk = {name: options[name] for name in ("retry", "protocol", "driver_info")} | {"socket_timeout": each_s, "socket_connect_timeout": each_s}
    sentinel = Sentinel(address.hosts, sentinel_kwargs={**talk, **address.sentinel_options})
    return SentinelConnectionPool(address.service, sentinel, **options, **address.options), sentinel


class _NotReached(Exception):
    """`reason`: what redis-py says of a connection of `pool`."""

    def __init__(self, pool: ConnectionPool, reason: RedisError) -> None:
        super().__init__(pool, reason)
        self.pool, self.reason = pool, reason


def _exchange(parts: Sequence[tuple[ConnectionPool, Sequence[Command]]]) -> list[list[Any]]:
    """Tell all before any is listened to: so several servers work at the same time. One that cannot be reached ends it for all."""
    if not parts:
        return []
    taken: list[tuple[ConnectionPool, Any]] = []
    pool = parts[0][0]
    try:
        for pool, commands in parts:
            connection = pool.get_connection()
            taken.append((pool, connection))
            connection.send_packed_command(connection.pack_commands(command.words for command in commands))
        found = []
        for (owner, connection), (_, commands) in zip(taken, parts, strict=True):
            pool = owner
            found.append([_answer(connection) for _ in commands])
        return found
    except BaseException as error:
        for _, connection in taken:
            connection.disconnect()  # or the next would take answers for his that came late
        if isinstance(error, RedisError):
            raise _NotReached(pool, error) from error
        raise
    finally:
        for owner, connection in taken:
            owner.release(connection)


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


class _Master:
    """One pool, of connections to wherever everything is."""

    def __init__(self, pool: ConnectionPool, sentinel: Sentinel | None = None) -> None:
        self._pool, self._sentinel = pool, sentinel

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        try:
            return _exchange([(self._pool, commands)])[0]
        except _NotReached as error:
            raise error.reason from error

    def forget(self) -> None:
        pass  # a new connection asks the Sentinels anew

    def masters(self) -> list[Redis]:
        return [Redis(connection_pool=self._pool)]

    def close(self) -> None:
        self._pool.close()
        if self._sentinel is not None:
            self._sentinel.close()


class _Hop(NamedTuple):
    """Where a command goes next. `asking`: its slot is on the way there."""

    host: Host
    asking: bool = False


class _Cluster:
    def __init__(self, seeds: Iterable[Host], options: dict[str, Any]) -> None:
        self._options = options
        self._seeds = set(seeds)
        self._told = set(seeds)  #: all of whom anybody has told, replicas too
        self._pools: dict[Host, ConnectionPool] = {}
        self._owners: list[Host | None] = []  # by slot; empty: not known
        self._failed: set[Host] = set()  # asked last
        self._timeout_s = float(options["socket_timeout"])
        self._lock = Lock()
        self._looking = Lock()

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        owners = self._known()
        answers: list[Any] = [None] * len(commands)
        hops = {number: self._first(owners, command) for number, command in enumerate(commands)}
        for _ in range(_HOPS_MAX):
            hops = self._round(commands, hops, answers)
            if not hops:
                break
        return answers

    def _round(self, commands: Sequence[Command], hops: dict[int, _Hop | None], answers: list[Any]) -> dict[int, _Hop | None]:
        """Ask once, and say what has to be asked elsewhere."""
        parts: dict[Host, list[tuple[int, list[Command]]]] = defaultdict(list)
        for number, hop in hops.items():
            if hop is None:
                answers[number] = ClusterDownError("nobody has the slot")
                self.forget()
            else:
                parts[hop.host].append((number, [_ASKING, commands[number]] if hop.asking else [commands[number]]))
        further: dict[int, _Hop | None] = {}
        for (host, asked), found in zip(parts.items(), self._exchange(parts), strict=True):
            rest = iter(found)
            for number, lines in asked:
                answers[number] = [next(rest) for _ in lines][-1]
                if isinstance(answers[number], AskError | TryAgainError):
                    further[number] = self._redirected(host, answers[number])
                elif isinstance(answers[number], ClusterDownError):
                    self.forget()
        if any(isinstance(answers[number], TryAgainError) for number in further):
            sleep(_MOVING_S)
        return further

    def _exchange(self, parts: dict[Host, list[tuple[int, list[Command]]]]) -> list[list[Any]]:
        try:
            return _exchange([(self._pool(host), [line for _, lines in asked for line in lines]) for host, asked in parts.items()])
        except _NotReached as error:
            self._failed |= {host for host in parts if self._pools.get(host) is error.pool}
            raise error.reason from error

    def _redirected(self, host: Host, answer: AskError | TryAgainError) -> _Hop:
        if isinstance(answer, TryAgainError):
            return _Hop(host)
        there = (answer.host or host[0], answer.port)
        if isinstance(answer, MovedError):
            self.forget()
        return _Hop(there, not isinstance(answer, MovedError))

    @staticmethod
    def _first(owners: Sequence[Host | None], command: Command) -> _Hop | None:
        host = owners[key_slot(command.name)]
        return None if host is None else _Hop(host)

    def forget(self) -> None:
        self._owners = []

    def masters(self) -> list[Redis]:
        return [Redis(connection_pool=self._pool(host)) for host in sorted({host for host in self._known() if host is not None})]

    def close(self) -> None:
        with self._lock:
            for pool in self._pools.values():
                pool.close()

    def _pool(self, host: Host) -> ConnectionPool:
        with self._lock:
            if host not in self._pools:
                self._pools[host] = _pool(*host, self._options)
            return self._pools[host]

    def _known(self) -> list[Host | None]:
        if owners := self._owners:
            return owners
        if not self._looking.acquire(timeout=self._timeout_s):
            raise TimeoutError("other threads are looking for its servers")
        try:
            owners = self._owners or self._look()  # another thread may forget it meanwhile
            self._owners = owners
            return owners
        finally:
            self._looking.release()

    def _look(self) -> list[Host | None]:
        """Ask one after the other who has which slots, those last that failed, and begin with nobody more when a call's time is over."""
        reason: RedisError = ConnectionError("it has no servers")
        end = monotonic() + self._timeout_s
        for host in sorted(self._told, key=lambda host: (host in self._failed, host)):
            try:
                ranges = Redis(connection_pool=self._pool(host)).execute_command("CLUSTER SLOTS")
            except RedisError as error:
                self._failed.add(host)
                reason = error
                if monotonic() > end:
                    break
            else:
                self._failed.discard(host)
                return self._hear(host, ranges)
        raise reason

    def _hear(self, teller: Host, ranges: Iterable[Sequence[Any]]) -> list[Host | None]:
        """`[[first slot, last slot, [host, port, ...], replica, ...], ...]`. A host that is not said is the teller's."""
        owners: list[Host | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        told = set(self._seeds)
        for first, last, *hosts in ranges:
            named = [(host.decode() if host else teller[0], port) for host, port, *_ in hosts]
            owners[first : last + 1] = [named[0]] * (last + 1 - first)
            told |= set(named)
        with self._lock:
            self._told = told
            for gone in set(self._pools) - told:
                self._pools.pop(gone).disconnect(inuse_connections=False)
        return owners
