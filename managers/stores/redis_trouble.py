"""What a Redis or Valkey refused or is not fit for, in words for who runs it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from redis import Redis
from redis.exceptions import InvalidResponse, RedisError, ResponseError, TimeoutError  # noqa: A004

__all__ = ["VERSION_MIN", "explained", "unfit", "worries"]

VERSION_MIN = (6, 2)  #: SET ... PXAT, ZRANGE ... BYLEX
_WORDS_MAX = 200

#: By the word that begins what the server says; older ones put it into the middle of what they say of a script.
_MEANINGS = {
    "OOM": "it is full (maxmemory), and takes nothing new",
    "READONLY": "it is a replica, and takes no writes; name its master, or use redis+sentinel:// or redis+cluster://",
    "LOADING": "it is still loading its data",
    "NOAUTH": "it wants a password",
    "WRONGPASS": "it does not know this user and password",
    "NOPERM": "its ACL does not allow this user what is needed (docs/stores.md)",
    "CLUSTERDOWN": "its cluster is down: nobody serves a part of the slots",
    "MASTERDOWN": "it is a replica without its master",
    "TRYAGAIN": "it is moving these items to another server",
    "BUSY": "it is busy with somebody's script",
    "MISCONF": "it cannot save to its disk, and so takes no writes",
    "NOREPLICAS": "fewer replicas than it wants (min-replicas-to-write) are there",
    "MOVED": "its servers send us from one to the other",
    "ASK": "its servers send us from one to the other",
}
_known = re.compile(rf"(?<!\w)-?({'|'.join(_MEANINGS)})\b")


def explained(error: RedisError) -> str:
    """What is the matter, and the server's or redis-py's own words."""
    said = " ".join(f"{error.status_code or ''} {error}".split())[:_WORDS_MAX]
    if word := _known.search(said):
        return f"{_MEANINGS[word[1]]} ({said})"
    if isinstance(error, TimeoutError):
        return f"it does not answer ({said})"
    if isinstance(error, InvalidResponse):
        return "what answers there is no Redis"
    return said


def unfit(told: Mapping[str, Any], in_cluster: bool) -> str:
    """Why items cannot be kept where INFO tells this; empty: they can."""
    version = str(told.get("redis_version", ""))  # Valkey says which Redis it is like
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < VERSION_MIN:
        return f"it is Redis {version or 'of an unknown version'}; {'.'.join(map(str, VERSION_MIN))} or newer is needed, or Valkey"
    mode = told.get("redis_mode") or told.get("server_mode")  # as Valkey calls it
    if mode == "sentinel":
        return "a Sentinel answers there: redis+sentinel://HOST:PORT/SERVICE"
    if (mode == "cluster") is not in_cluster:
        return "it belongs to a Cluster: redis+cluster://HOST:PORT" if mode == "cluster" else "it belongs to no Cluster: redis://HOST:PORT"
    return _MEANINGS["READONLY"] if told.get("role") == "slave" else ""


def worries(told: Mapping[str, Any], client: Redis) -> list[str]:
    """What makes a server of which INFO tells this forget what it has confirmed."""
    policy, limit = told.get("maxmemory_policy", "noeviction"), told.get("maxmemory", 0)
    said = []
    if limit and policy != "noeviction":
        said.append(f"maxmemory-policy {policy} drops sessions at {limit} bytes; noeviction refuses new ones instead")
    if not told.get("aof_enabled") and not _saves(client):
        said.append("with neither appendonly nor save a restart loses all sessions")
    return said


def _saves(client: Redis) -> bool:
    """Whether it writes snapshots; that it does where it may not tell."""
    try:
        return bool(client.config_get("save").get("save", "?"))
    except ResponseError:
        return True
