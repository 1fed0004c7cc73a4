"""What a session costs a request: the time of a request with it, less that of the same request to the same application without.

    fronts-flask-read          one attribute is read
    fronts-flask-change        one of ten is read and changed, and the change committed
    fronts-flask-change-one    the same, and the answer waits until the other member has confirmed it
    fronts-flask-read-redis, fronts-flask-change-redis     the first two over Redis: Flask-Session, and Django's cache sessions

Two nodes on loopback, of which one serves. Short blocks of requests of each kind take turns, so that what the machine does meanwhile befalls all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from ..figures import percentile
from ..processes import Group, MeasureError, Process
from .redis_server import RedisServer, what_is_missing
from .serving import BARE, OURS, REDIS
from .work import CHANGE, CHANGE_ONE, READ

__all__ = ["FRONTS", "REDIS_WORKS", "WORKS", "Timed", "costs", "figures_of", "works_of"]

Repetition = dict[str, float]

FRONTS = ("wsgi", "flask", "django", "pyramid", "asgi", "starlette", "fastapi", "litestar", "aiohttp", "twisted_web", "klein")
WORKS = {READ: (OURS, READ), CHANGE: (OURS, CHANGE), CHANGE_ONE: (OURS, CHANGE_ONE)}  #: name of a row: whose sessions, and what is asked
REDIS_WORKS = {f"{READ}-redis": (REDIS, READ), f"{CHANGE}-redis": (REDIS, CHANGE)}

_WITH_REDIS = ("flask", "django")
_SESSIONS = 200
_BLOCKS = 10
_BESIDE = {READ: f"{READ}-redis", CHANGE: f"{CHANGE}-redis", CHANGE_ONE: f"{CHANGE}-redis"}


def works_of(front: str) -> list[str]:
    return [*WORKS, *(REDIS_WORKS if front in _WITH_REDIS else ())]


def costs(front: str, works: Sequence[str], requests: int, repetitions: int, tell: Callable[[str], None]) -> dict[str, list[Repetition]]:
    """The repetitions of each of these rows of one front, `requests` a row and repetition. Those over Redis are left out where there is none."""
    wanted = {work: place for work, place in (WORKS | REDIS_WORKS).items() if work in works}
    missing = what_is_missing() if any(work in REDIS_WORKS for work in wanted) else ""
    if missing:
        tell(f"{missing}: skipping {', '.join(f'fronts-{front}-{work}' for work in wanted if work in REDIS_WORKS)}")
        wanted = {work: place for work, place in wanted.items() if work not in REDIS_WORKS}
    if not wanted:
        return {}
    over_redis = any(work in REDIS_WORKS for work in wanted)
    with RedisServer() if over_redis else nullcontext() as redis, Group() as group:
        serving = group.add("benchmarks.fronts.serving")
        group.grow(2)
        serving.do("serve", front=front, sessions=_SESSIONS, redis_port=redis.port if redis else 0)
        if redis and redis.count() != _SESSIONS:
            raise MeasureError(f"Redis holds {redis.count()} of {_SESSIONS} sessions: the application does not keep them there")
        block = max(1, requests // _BLOCKS)
        _blocks(serving, wanted, block)  # warms up, and is thrown away
        found: dict[str, list[Repetition]] = {work: [] for work in wanted}
        for _ in range(repetitions):
            for work, figures in _repetition(serving, wanted, block).items():
                found[work].append(figures | {"wrong": _wrong(group, wanted[work][0])})
        return found


def _repetition(serving: Process, wanted: dict[str, tuple[str, str]], block: int) -> dict[str, Repetition]:
    timed = {work: [] for work in ("", *wanted)}
    used = dict.fromkeys(timed, 0.0)
    for _ in range(_BLOCKS):
        for work, answer in _blocks(serving, wanted, block).items():
            timed[work] += answer["calls"]
            used[work] += answer["cpu_s"]
    bare = Timed(timed[""], used[""])
    each = {work: Timed(timed[work], used[work]) for work in wanted}
    return {work: figures_of(bare, one, each.get(_BESIDE.get(work, ""))) for work, one in each.items()}


def _blocks(serving: Process, wanted: dict[str, tuple[str, str]], requests: int) -> dict[str, Any]:
    """One block of each kind; that without a session is called ``""``."""
    return {work: serving.do("time", place=place, what=what, requests=requests) for work, (place, what) in {"": (BARE, READ), **wanted}.items()}


class Timed:
    """Requests of one kind. Microseconds."""

    def __init__(self, calls: Sequence[int], cpu_s: float) -> None:
        ordered = sorted(calls)
        self.p50, self.p99 = percentile(ordered, 0.5) / 1e3, percentile(ordered, 0.99) / 1e3
        self.mean = sum(ordered) / len(ordered) / 1e3
        self.cpu = cpu_s / len(ordered) * 1e6


def figures_of(bare: Timed, one: Timed, over_redis: Timed | None) -> Repetition:
    cost = one.p50 - bare.p50
    figures = {
        "bare_us": bare.p50, "with_us": one.p50, "with_p99_us": one.p99, "requests_per_s": 1e6 / one.mean, "bare_per_s": 1e6 / bare.mean,
        "cost_us": cost, "cost_mean_us": one.mean - bare.mean, "cost_p99_us": one.p99 - bare.p99, "cost_cpu_us": one.cpu - bare.cpu,
    }  # fmt: skip
    if over_redis is not None:
        figures["of_redis"] = cost / (over_redis.p50 - bare.p50)
    return figures


def _wrong(group: Group, place: str) -> int:
    """Sessions that do not hold all that was changed, or that the other member holds otherwise."""
    wrong: int = group.writer.do("wrong", place=place)["wrong"]
    if place == OURS:
        ids = group.writer.do("ids")["ids"]
        one, other = (node.do("digests", ids=ids)["digests"] for node in group.nodes)
        wrong += sum(1 for mine, theirs in zip(one, other, strict=True) if not mine or mine != theirs)
    return wrong
