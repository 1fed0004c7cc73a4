"""What a part of the seeds has besides: ids that are replaced, locks, logins that two applications share.

Each is drawn by itself, from a source of its own, so all that a seed draws for the rest stays what it is without them. Each has managers of its own in the
same cluster, under the same faults, a few users, and checks that say which promise of its page of the documentation was broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Protocol

from .checkers import Checkers
from .locks import BankClerks, bank_settings
from .logins import Visitors, login_settings
from .node import SimCluster
from .renewals import Renewers, renewal_settings
from .world import World

__all__ = ["FEATURES", "Feature", "begin", "chosen", "in_turn", "with_features"]

#: Each, and the share of the seeds that have it. A manager costs as much as its users: so a seed takes a third longer than without them, on average.
FEATURES = {"renewal": 0.2, "locks": 0.2, "logins": 0.12}


class Feature(Protocol):
    """Users who come until the time that they were told, and what is checked of them."""

    def healed(self) -> None:
        """Faults are over, and have been for a moment; other users come no more."""

    def difference(self) -> str:
        """What copies there are that are not as they should be, in one line."""

    def settled(self) -> None:
        """All copies agree. Raises `SimulationError`."""

    def over(self) -> None:
        """What ends by itself had time to. Raises `SimulationError`."""


def chosen(rng: Random) -> tuple[str, ...]:
    return tuple([name for name, share in FEATURES.items() if rng.random() < share])


def in_turn(seed: int | str) -> tuple[str, ...]:
    """What seeds have in every run: each even one has one of them."""
    return (list(FEATURES)[seed // 2 % len(FEATURES)],) if isinstance(seed, int) and seed % 2 == 0 else ()


def with_features(settings: dict[str, Any], features: Sequence[str], rng: Random, again: Random) -> dict[str, Any]:
    """Keywords of `Settings.of` with the managers that these need, of the type of the manager `default`. `again`: see `login_settings`."""
    kind = {name: value for name, value in settings["managers"]["default"].items() if name in ("type", "backups")}
    managers, more = dict(settings["managers"]), {}
    if "renewal" in features:
        managers["renewing"] = {**kind, **renewal_settings()}
    if "locks" in features:
        managers["bank"] = {**kind, **bank_settings("renewal" in features)}
    if "logins" in features:
        applications, shared = login_settings(kind, rng, again)
        managers |= applications
        more["sso"] = {"main": shared}
    return {**settings, "managers": managers, **more}


def begin(world: World, cluster: SimCluster, checkers: Checkers, features: Sequence[str], until: float) -> list[Feature]:
    made: dict[str, Any] = {"renewal": Renewers, "locks": BankClerks, "logins": Visitors}
    return [made[name](world, cluster, checkers, until) for name in features]
