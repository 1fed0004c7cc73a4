"""A store in Redis or Valkey: a server, a group watched by Sentinel, or a Cluster.

Where items lie is `redis_layout.py`, who is asked for them `redis_servers.py`. A call is a script or command for each bucket that it concerns, all of them sent before an answer is read.

- An item expires in the server, so `expired` has nothing to do.
- A connection that breaks during a call is made again, once, and all is asked again: to load, list and delete twice is harmless, and a save that finds its own bytes has been saved.
  A call that got no answer in time is not repeated; it may have been done. Who saves loads then, and merges.
- Durable is what the server keeps. With `appendonly yes` and `appendfsync always` that is all; with `everysec` a power cut, or being killed, takes the last second or two. A replica follows behind: a
  failover takes what it had not got yet, though it was confirmed. Then an older revision is there, the next save is refused, and its writer merges. What the server's configuration says about this is in
  `warnings` after `open`, and in the log.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import BoundedSemaphore, Lock
from typing import Any, TypeVar

from redis.exceptions import AuthenticationError, BusyLoadingError, ConnectionError, RedisError, TimeoutError  # noqa: A004
from twisted.logger import Logger

from ...membership.errors import LocalError
from .redis_address import parse
from .redis_layout import ALL_LISTS, BUCKETS, Command, Layout, space_of, unpacked
from .redis_servers import ask, servers_at
from .redis_trouble import explained, unfit, worries
from .store import BATCH_MAX, NOTHING, Save, Stored, StoreError, revision_of

__all__ = ["RedisStore"]

_CALLS_MAX = 16  # at the same time, each with one connection to a server
_BUCKETS_FIRST = 8  # that `keys` looks into at first
_SCAN = 10_000  # names that a server looks at without a pause: a few milliseconds
_log = Logger()
T = TypeVar("T")


class RedisStore:
    """`url`: see `redis_address.py`; raises `LocalError` if it says nothing sensible. `name`: the same without a password. `timeout_s`: for each answer.

    `warnings`: since `open`, why the servers may forget what they confirmed.
    """

    def __init__(self, url: str, space: str, timeout_s: float, name: str) -> None:
        try:
            address = parse(url)
            self._servers = servers_at(address, timeout_s)
        except LocalError as error:
            raise LocalError(f"store {name}: {error}") from error
        self.name = name
        self.damaged = 0
        self.shared = address.kind != "unix"
        self.warnings: list[str] = []
        self._in_cluster = address.kind == "cluster"
        self._timeout_s = timeout_s
        self._layout = Layout(space)
        self._calls = BoundedSemaphore(_CALLS_MAX)
        self._lock = Lock()  # over `damaged`

    def open(self, create: bool = False) -> None:
        with self._call():
            self.warnings = []
            for client in self._servers.masters():
                told = client.info()
                if reason := unfit(told, self._in_cluster):
                    raise StoreError(f"store {self.name}: {reason}")
                self.warnings += [f"{told.get('tcp_port') or 'socket'}: {worry}" for worry in worries(told, client)]
        for warning in self.warnings:
            _log.warn("store {name} may lose sessions: {warning}", name=self.name, warning=warning)
        self._ask([self._layout.present(bucket, ()) for bucket in range(BUCKETS)])

    def close(self) -> None:
        self._servers.close()

    def load(self, keys: Collection[bytes]) -> dict[bytes, Stored]:
        found: dict[bytes, Stored] = {}
        damaged: dict[bytes, bytes] = {}
        for key, item in zip(keys, self._ask([self._layout.load(key) for key in keys], foreign=True), strict=True):
            if item is None:
                continue
            if isinstance(item, RedisError):
                damaged[key] = b""
            elif (stored := unpacked(item)) is None:
                damaged[key] = item[:16]
            else:
                found[key] = stored
        self._put_aside(damaged)
        return found

    def save_many(self, saves: Sequence[Save]) -> dict[bytes, bytes]:
        buckets = _by_bucket(saves, lambda save: save.key)
        now_ms = int(time.time() * 1000)
        answers = self._ask(
            [self._layout.save(bucket, some, now_ms) for bucket, some in buckets.items()],
            lambda: [self._layout.save(bucket, some, now_ms, again=True) for bucket, some in buckets.items()],
        )
        saved = (save for some, said in zip(buckets.values(), answers, strict=True) for save, done in zip(some, said, strict=True) if done)
        return {save.key: revision_of(save.data) for save in saved}

    def delete(self, revisions: Mapping[bytes, bytes]) -> None:
        buckets = _by_bucket(revisions.items(), lambda pair: pair[0])
        self._ask([self._layout.delete(bucket, dict(some)) for bucket, some in buckets.items()])

    def keys(self, after: bytes = b"", limit: int = BATCH_MAX) -> list[bytes]:
        return self._listed(self._layout, after, limit)

    def expired(self, now_ms: int, limit: int = BATCH_MAX) -> dict[bytes, bytes]:
        return {}

    def quarantine(self, revisions: Mapping[bytes, bytes]) -> None:
        self._put_aside({key: revision for key, revision in revisions.items() if revision != NOTHING})

    def spaces(self) -> list[str]:
        """Walks through all names that the servers hold, of whatever they are: some tenths of a second for a million."""
        with self._call():
            names = {name for client in self._servers.masters() for name in client.scan_iter(ALL_LISTS, _SCAN, "zset")}
        found = {space for name in names if (space := space_of(name)) is not None}
        return [space for space in sorted(found) if self._listed(Layout(space), b"", 1)]

    def clear(self) -> None:
        buckets: Iterable[int] = range(BUCKETS)
        while buckets:
            pages = self._ask([self._layout.page(bucket, b"", BATCH_MAX) for bucket in buckets])
            filled = [(bucket, page) for bucket, page in zip(buckets, pages, strict=True) if page]
            self._ask([self._layout.delete(bucket, dict.fromkeys(page, b""), whatever=True) for bucket, page in filled])
            buckets = [bucket for bucket, page in filled if len(page) == BATCH_MAX]

    def _listed(self, layout: Layout, after: bytes, limit: int) -> list[bytes]:
        """From the bucket of `after` on, more of them at a time where there is little in them."""
        found: list[bytes] = []
        bucket, width = Layout.bucket(after), _BUCKETS_FIRST
        while bucket < BUCKETS and len(found) < limit:
            left = limit - len(found)
            buckets = range(bucket, min(bucket + width, BUCKETS))
            pages: dict[int, list[bytes]] = {}
            for each, page in zip(buckets, self._ask([layout.page(each, after, left) for each in buckets]), strict=True):
                pages[each] = page[:left]
                left -= len(pages[each])
            there = self._ask([layout.present(each, page) for each, page in pages.items() if page])
            listed = [key for page in pages.values() for key in page]
            found += [key for key, is_there in zip(listed, (one for answer in there for one in answer), strict=True) if is_there]
            if left:
                bucket, width = buckets.stop, 2 * width
            else:
                bucket, after = Layout.bucket(listed[-1]), listed[-1]
        return found

    def _put_aside(self, revisions: Mapping[bytes, bytes]) -> None:
        """An empty revision means whatever is there."""
        buckets = _by_bucket(revisions.items(), lambda pair: pair[0])
        moved = sum(self._ask([self._layout.quarantine(bucket, dict(some)) for bucket, some in buckets.items()]))
        with self._lock:
            self.damaged += moved

    def _ask(self, commands: Sequence[Command], again: Callable[[], Sequence[Command]] | None = None, *, foreign: bool = False) -> list[Any]:
        """The answers. `again`: what is asked instead after a connection broke, if not the same. `foreign`: that something is no string is an answer, too."""
        if not commands:
            return []
        with self._call():
            try:
                answers = ask(self._servers, commands)
            except ConnectionError as error:
                if isinstance(error, AuthenticationError | BusyLoadingError):
                    raise
                self._servers.forget()
                answers = ask(self._servers, again() if again else commands)
            for answer in answers:
                if isinstance(answer, RedisError) and not (foreign and str(answer).startswith("WRONGTYPE")):
                    raise answer
        return answers

    @contextmanager
    def _call(self) -> Iterator[None]:
        if not self._calls.acquire(timeout=self._timeout_s):
            raise StoreError(f"store {self.name}: {_CALLS_MAX} calls are under way, and none of them ended within {self._timeout_s:g} s")
        try:
            yield
        except RedisError as error:
            if isinstance(error, ConnectionError | TimeoutError):
                self._servers.forget()
            raise StoreError(f"store {self.name}: {explained(error)}") from error
        finally:
            self._calls.release()


def _by_bucket(things: Iterable[T], key_of: Callable[[T], bytes]) -> dict[int, list[T]]:
    buckets: dict[int, list[T]] = defaultdict(list)
    for thing in things:
        buckets[Layout.bucket(key_of(thing))].append(thing)
    return buckets
